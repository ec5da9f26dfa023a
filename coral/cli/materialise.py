"""Models in the place of the manifests that a checkout left in the working tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coral.cli.filtering import open_filter
from coral.cli.look.output import count, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session
from coral.errors import CorruptionError, NotFoundError
from coral.format.manifest import is_manifest
from coral.git.index import blob_id, index_entries, update
from coral.git.surroundings import top_of

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.git.index import Entry

_HEAD_BYTES = 64


def materialise(session: Session, paths: Sequence[str]) -> dict[str, Manifest]:
    """Write the models that git has checked out as manifests; returns them by name.

    A file is left alone unless it is just what git's index holds, so that nothing of the user's is lost.

    Args:
        paths: files and folders of the working tree; none means all of it.

    Raises:
        NotFoundError: no git repository, or a path that git does not know.
        CorruptionError: tensors are neither here nor at the remote; the others are written.
    """
    top = top_of(Path.cwd())
    if top is None:
        raise NotFoundError("this folder is in no git repository", hint="'coral checkout REF' writes a commit's files")
    listed = index_entries(Path.cwd(), paths)
    for path in paths:
        if not index_entries(Path.cwd(), [path]):
            raise NotFoundError(f"git does not know {path!r}", hint="'coral tracked' lists the models that it knows")
    wanted = {entry.name: found for entry in listed if (found := _manifest(top, entry)) is not None}
    opened = open_filter(top)
    absent = opened.lacking(wanted.values())
    there = {name: manifest for name, manifest in wanted.items() if manifest not in absent}
    total = sum(manifest.nbytes for manifest in there.values())
    try:
        with progress_bar("writing", total, quiet=session.quiet) as progress:
            for name, manifest in there.items():
                opened.write_file(name, manifest, progress=progress)
    finally:
        update(top, there)
        opened.finish()
    if absent:
        names = [name for name in wanted if name not in there]
        raise CorruptionError(
            f"tensors of {', '.join(names[:5])} are not here"
            + (f", and of {len(names) - 5} more" if names[5:] else ""),
            hint="'coral remote' lists where they were looked for; 'coral remote add NAME PATH' names another place",
        )
    return there


def _manifest(top: Path, entry: Entry) -> Manifest | None:
    """The manifest that a working file is, if it is the one that the index holds."""
    from coral.verbs.inside_git.filter import read_manifest

    path = top / entry.name
    if entry.stage or not entry.is_file or path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        text = head + file.read() if is_manifest(head) else b""
    return read_manifest(text) if text and blob_id(text, entry.blob) == entry.blob else None


def say_written(session: Session, written: dict[str, Manifest]) -> None:
    """Tell the user what was written."""
    if not written:
        session.say("nothing to write: no file is a manifest")
        return
    nbytes = sum(manifest.nbytes for manifest in written.values())
    session.say(f"wrote {count(len(written), 'file')}, {size(nbytes)}")
