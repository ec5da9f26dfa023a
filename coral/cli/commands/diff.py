"""``coral diff``: what changed between two commits, tensor by tensor."""

from __future__ import annotations

import click

from coral.cli.complete import complete_ref
from coral.cli.look.differences import print_diff, print_stat
from coral.cli.look.output import diff_data, json_option, print_json
from coral.cli.session import Session, pass_session
from coral.errors import UsageError


@click.command()
@click.argument("old", required=False, metavar="[A", shell_complete=complete_ref)
@click.argument("new", required=False, metavar="[B]]", shell_complete=complete_ref)
@click.option("--stat", is_flag=True, help="One line a file.")
@click.option("--max", "limit", type=click.IntRange(min=0), default=20, show_default=True, help="Tensors to list.")
@json_option
@pass_session
def command(session: Session, old: str | None, new: str | None, stat: bool, limit: int, as_json: bool) -> None:
    """Show what changed from commit A to commit B, the largest changes first.

    With A alone: what that commit changed against the one before it; with none, the last commit. No tensor is read.

    \b
    Examples:
      coral diff
      coral diff v1.0 main
      coral diff --stat HEAD~3 HEAD
    """
    if old is not None and new is None and ".." in old:
        old, _, new = old.partition("..")
        if not old or not new or new.startswith("."):
            raise UsageError("write a range as A..B")
    diff = session.open().diff(old or "HEAD", new)
    if as_json:
        print_json(diff_data(diff))
    elif stat:
        print_stat(diff)
    else:
        print_diff(diff, limit)
