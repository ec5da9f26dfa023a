"""``coral tracked``: the patterns, and the files in git that coral keeps."""

from __future__ import annotations

import os

import click

from coral.cli.look.output import json_option, print_json, printable
from coral.cli.session import Session, pass_session
from coral.cli.sharing.inside_git import here


@click.command()
@json_option
@pass_session
def command(session: Session, as_json: bool) -> None:
    """List the patterns that 'coral track' wrote, and the files in git's index that coral keeps.

    \b
    Examples:
      coral tracked
      coral tracked --json
    """
    from coral.verbs.inside_git.track import tracked

    place = here()
    found = tracked(place)

    def shown(path: str) -> str:
        return printable(os.path.relpath(place.top / path))

    if as_json:
        patterns = [{"pattern": _text(one.pattern), "source": _text(one.source)} for one in found.patterns]
        print_json({"patterns": patterns, "files": list(map(_text, found.files))})
        return
    click.echo(
        "Patterns:" if found.patterns else "No patterns (use \"coral track '*.safetensors'\" to have git keep those)"
    )
    for one in found.patterns:
        click.echo(f"    {printable(one.pattern)} ({shown(one.source)})")
    if found.files:
        click.echo("Files in git:")
    for path in found.files:
        click.echo(f"    {shown(path)}")


def _text(path: str) -> str:
    """A path as JSON can hold it, which is Unicode."""
    return path.encode(errors="surrogateescape").decode(errors="replace")
