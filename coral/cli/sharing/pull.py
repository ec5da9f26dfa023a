"""``coral pull``: the models that git has checked out as manifests."""

from __future__ import annotations

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.materialise import materialise, say_written
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@json_option
@pass_session
def command(session: Session, paths: tuple[str, ...], as_json: bool) -> None:
    """Write the models of the working tree that are still manifests, and fetch their tensors where they are not here.

    After a clone, or after a checkout with CORAL_SKIP_SMUDGE=1, git's files are manifests. PATHs are files and folders;
    without any, all of the working tree is meant. Files that you changed are left alone.

    \b
    Examples:
      coral pull
      coral pull models/best.safetensors
    """
    written = materialise(session, paths)
    if as_json:
        print_json({name: manifest.nbytes for name, manifest in written.items()})
    else:
        say_written(session, written)
