"""``coral rm``: remove files, and stage the removal."""

from __future__ import annotations

import click

from coral.cli.complete import complete_part
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, parts_named, pass_session


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=complete_part)
@click.option("--cached", is_flag=True, help="Keep the files; only the next commit loses them.")
@click.option("-f", "--force", is_flag=True, help="Remove files even if no commit holds their bytes.")
@json_option
@pass_session
def command(session: Session, paths: tuple[str, ...], cached: bool, force: bool, as_json: bool) -> None:
    """Take files out of the next commit, and delete them.

    What earlier commits hold stays in them.

    \b
    Examples:
      coral rm old.safetensors
      coral rm --cached model.pt
    """
    repo = session.open()
    known = {*repo.history.parts(repo.history.head().commit), *(change.name for change in repo.status().staged)}
    names = parts_named(repo, paths, known)
    repo.rm(*names, cached=cached, force=force)
    if as_json:
        print_json({"removed": names})
    for name in () if as_json else names:
        session.say(f"rm {name}")
