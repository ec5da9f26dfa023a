"""``coral switch``: go to a branch."""

from __future__ import annotations

import click

from coral.cli.complete import complete_branch
from coral.cli.look.moves import move_data, print_move
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("name", shell_complete=complete_branch)
@click.option("-c", "--create", is_flag=True, help="Make the branch here first.")
@click.option("-f", "--force", is_flag=True, help="Overwrite files even if no commit holds their bytes.")
@json_option
@pass_session
def command(session: Session, name: str, create: bool, force: bool, as_json: bool) -> None:
    """Go to the branch NAME.

    Files that are there already follow; others are not written ('coral checkout NAME' writes all of them).

    \b
    Examples:
      coral switch main
      coral switch -c try-larger-lr
    """
    repo = session.open()
    before = repo.history.head().branch
    result = repo.switch(name, create=create, force=force)
    if as_json:
        print_json(move_data(repo, result))
    elif session.quiet:
        return
    elif before == name and not create and not (result.written or result.removed):
        click.echo(f"Already on '{name}'")
    else:
        print_move(repo, result, new=create, only_files=False)
