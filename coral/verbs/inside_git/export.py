"""Plain files out of git: models that git keeps as manifests, byte for byte, and other files as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import CorruptionError, InvalidNameError, OverwriteError
from coral.format.manifest import TEXT_LIMIT, Manifest, is_manifest
from coral.git.blobs import BlobReader
from coral.git.index import Entry
from coral.storage.folder import Folder
from coral.verbs.ingest import write_file
from coral.verbs.inside_git.filter import GitFilter, read_manifest
from coral.verbs.inside_git.lfs import shorten

if TYPE_CHECKING:
    from coral.objects.writer import Progress

_EXECUTABLE = "100755"
_EXECUTABLE_BITS = 0o755
_FORBIDDEN = (".git", ".coral")


@dataclass(slots=True)
class Plan:
    """What would be written.

    Attributes:
        models: by name, what git keeps of them.
        others: files that git keeps whole.
        left_out: links, other repositories, and files in conflict.
    """

    models: dict[Entry, Manifest] = field(default_factory=dict)
    others: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the models' tensors."""
        return sum(manifest.nbytes for manifest in self.models.values())


def below(entries: Iterable[Entry], name: str) -> list[Entry]:
    """The files that a name means: the file itself, or all below a folder; ``.`` is everything."""
    return [entry for entry in entries if name in (".", entry.name) or entry.name.startswith(f"{name}/")]


def plan(entries: Iterable[Entry], blobs: BlobReader, target: Path, *, force: bool = False) -> Plan:
    """What would be written into a folder.

    Args:
        force: files that are there may be replaced.

    Raises:
        InvalidNameError: a name that would lead out of the folder, or into the ``.git`` there.
        OverwriteError: files are there already.
    """
    found, folder = Plan(), Folder(target)
    for entry in entries:
        _refuse_repository(entry.name)
        if not entry.is_file or entry.stage:
            found.left_out.append(entry.name)
        elif (manifest := _manifest(blobs, entry.blob)) is not None:
            found.models[entry] = manifest
        else:
            found.others.append(entry)
    there = [e.name for e in (*found.models, *found.others) if os.path.lexists(folder.path(e.name))]
    if there and not force:
        raise OverwriteError(f"{shorten(there)}: there already in {target}", hint="--force replaces files")
    return found


def _refuse_repository(name: str) -> None:
    if not {part.lower() for part in name.split("/")}.isdisjoint(_FORBIDDEN):
        raise InvalidNameError(f"{name!r} is a path into a repository")


def _manifest(blobs: BlobReader, blob: str) -> Manifest | None:
    (length,) = blobs.sizes([blob])
    if length is None or length > TEXT_LIMIT:
        return None
    pieces = blobs.pieces(blob)
    head = next(pieces, b"")
    # Read to the end in any case: the next blob comes after it.
    rest = [piece for piece in pieces if is_manifest(head)]
    return read_manifest(head + b"".join(rest))


def execute(
    planned: Plan, blobs: BlobReader, target: Path, opened: GitFilter, *, progress: Progress | None = None
) -> None:
    """Write what was planned; each file is there whole or not at all.

    Raises:
        CorruptionError: tensors are not here, of which nothing is written then; or they are damaged.
        StorageError: the disk refuses, or a file or link is in the way of a folder.
    """
    absent = {id(manifest) for manifest in opened.lacking(planned.models.values())}
    names = [entry.name for entry, manifest in planned.models.items() if id(manifest) in absent]
    if names:
        raise CorruptionError(
            f"the tensors of {shorten(names)} are not here", hint="'coral pull' brings them, if a remote has them"
        )
    folder = Folder(target)
    for entry in planned.others:
        with folder.new_file(entry.name) as out:
            for piece in blobs.pieces(entry.blob):
                out.write(piece)
            out.publish(entry.name, mode=_mode(entry))
    for entry, manifest in planned.models.items():
        _write_model(opened, folder, entry, manifest, progress)


def _write_model(
    opened: GitFilter, folder: Folder, entry: Entry, manifest: Manifest, progress: Progress | None
) -> None:
    try:
        write_file(opened.store, manifest, folder, entry.name, mode=_mode(entry), progress=progress)
    except CorruptionError as error:
        raise CorruptionError(f"{entry.name}: {error.message}", hint=error.hint) from None


def _mode(entry: Entry) -> int | None:
    return _EXECUTABLE_BITS if entry.mode == _EXECUTABLE else None
