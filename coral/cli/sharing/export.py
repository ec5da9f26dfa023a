"""``coral export``: the models that git keeps as manifests, as plain files in another folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, printable
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, check_path, pass_session
from coral.errors import NotFoundError, PartNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.git.index import Entry


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--to", "target", required=True, metavar="DIR", type=click.Path(), help="The folder to write into.")
@click.option("--ref", metavar="REV", help="A commit of git's; without it the index counts.")
@click.option("-f", "--force", is_flag=True, help="Replace files that are there.")
@pass_session
def command(session: Session, paths: tuple[str, ...], target: str, ref: str | None, force: bool) -> None:
    """Write the files at PATHs, as git has them, into DIR: models byte for byte, other files as they are.

    PATHs are files or folders, '.' is this one. In DIR files are where they are below the top of the working tree.
    Links, submodules and files in conflict are left out.

    To stop using coral altogether, give git the models themselves, which need no coral from then on; older commits
    still do, and so does the folder .coral:

    \b
      coral untrack '*.safetensors'
      git add --renormalize .
      git commit -m 'models without coral'

    \b
    Examples:
      coral export --to /tmp/release model.safetensors
      coral export --ref v1.0 --to /tmp/v1 .
    """
    from coral.cli.filtering import open_filter
    from coral.git.blobs import BlobReader
    from coral.git.index import index_entries, tree_entries
    from coral.git.surroundings import top_of
    from coral.verbs.inside_git import export

    top = top_of(Path.cwd())
    if top is None:
        raise NotFoundError("this folder is in no working tree of git's", hint="go to one that git checks files out in")
    known = tree_entries(top, ref) if ref is not None else index_entries(top)
    wanted = [entry for path in paths for entry in _meant(known, top, path)]
    with BlobReader(top) as blobs:
        planned = export.plan(dict.fromkeys(wanted), blobs, Path(target), force=force)
        with progress_bar("exporting", planned.nbytes, quiet=session.quiet) as progress:
            export.execute(planned, blobs, Path(target), open_filter(top), progress=progress)
    for name in planned.left_out:
        session.say(f"left out: {printable(name)}")
    written = len(planned.models) + len(planned.others)
    session.say(f"{count(written, 'file')} written, {count(len(planned.models), 'model')} among them")


def _meant(known: list[Entry], top: Path, path: str) -> list[Entry]:
    from coral.verbs.inside_git.export import below

    found = below(known, _name_of(top, check_path(path)))
    if not found:
        raise PartNotFoundError(f"git tracks no file {path!r} there")
    return found


def _name_of(top: Path, path: str) -> str:
    try:
        plain = Path(os.path.normpath(Path.cwd() / path))
        return (plain.parent.resolve() / plain.name).relative_to(top).as_posix()
    except ValueError:
        raise UsageError(f"{path} is outside of the working tree {top}") from None
