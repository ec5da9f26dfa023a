"""``coral reflog``: where HEAD or a branch has been."""

from __future__ import annotations

import click

from coral.cli.complete import complete_branch
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("ref", default="HEAD", shell_complete=complete_branch)
@click.option("-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most N moves.")
@json_option
@pass_session
def command(session: Session, ref: str, max_count: int | None, as_json: bool) -> None:
    """Show the commits that HEAD, or the branch REF, pointed at, newest first.

    Any of them can be gone back to: 'coral checkout HEAD@{2}'.

    \b
    Examples:
      coral reflog
      coral reflog main
    """
    entries = session.open().reflog(ref)[:max_count]
    if as_json:
        print_json(
            [
                {"index": one.index, "old": one.old, "new": one.new, "reason": one.reason, "time": one.time}
                for one in entries
            ]
        )
        return
    for entry in entries:
        short = click.style((entry.new or "0" * 10)[:10], fg="yellow")
        click.echo(f"{short} {ref}@{{{entry.index}}}: {entry.reason}")
