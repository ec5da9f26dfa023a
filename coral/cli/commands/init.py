"""``coral init``: make a repository."""

from __future__ import annotations

from pathlib import Path

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("path", default=".", type=click.Path(file_okay=False))
@json_option
@pass_session
def command(session: Session, path: str, as_json: bool) -> None:
    """Make a repository in PATH, or in this folder; one that is there already is left as it is.

    \b
    Examples:
      coral init
      coral init my-model
    """
    from coral.repository import Repository
    from coral.verbs.layout import is_there

    project = Path(path).resolve()
    there = is_there(project)
    repo = Repository(project, init=True)
    if as_json:
        print_json({"path": str(repo.path), "created": not there})
    elif there:
        session.say(f"There is a coral repository already in {repo.folder.root}")
    else:
        session.say(f"Made a coral repository in {repo.folder.root}")
