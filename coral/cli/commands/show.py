"""``coral show``: one commit, and what it changed."""

from __future__ import annotations

import click

from coral.cli.complete import complete_ref
from coral.cli.look.commits import Names, full, named_data
from coral.cli.look.differences import print_diff
from coral.cli.look.output import diff_data, json_option, print_json
from coral.cli.look.parts import part_data
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("ref", default="HEAD", shell_complete=complete_ref)
@click.option("--max", "limit", type=click.IntRange(min=0), default=10, show_default=True, help="Tensors to list.")
@json_option
@pass_session
def command(session: Session, ref: str, limit: int, as_json: bool) -> None:
    """Show the commit REF, and what it changed against the one before it.

    \b
    Examples:
      coral show
      coral show v1.0
      coral show best:val_loss:min
    """
    repo = session.open()
    details = repo.show(ref)
    names = Names(repo)
    if as_json:
        parts = [part_data(name, part) for name, part in sorted(details.parts.items())]
        print_json({**named_data(details.commit, names), "parts": parts, "diff": diff_data(details.diff)})
        return
    click.echo("\n".join(full(details.commit, names)))
    click.echo()
    print_diff(details.diff, limit)
