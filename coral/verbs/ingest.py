"""Files into the store, and back: the way between a path and a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coral import containers
from coral.errors import FormatError
from coral.format.manifest import Manifest, Skeleton, TensorRecord
from coral.objects import BytesSource

if TYPE_CHECKING:
    from coral.objects import ChunkStore, Parent, TensorHasher
    from coral.objects.writer import Progress
    from coral.storage.folder import Folder

_SKELETON = "skeleton"

Tell = Callable[[str], object]
"""Told why a file is kept whole, or what is wrong with it, though its name promises tensors."""


def _tell_nobody(_: str) -> None: ...


def manifest_of(
    path: Path,
    hasher: TensorHasher,
    *,
    opaque: bool = False,
    parent: Parent | None = None,
    progress: Progress | None = None,
    tell: Tell = _tell_nobody,
) -> Manifest:
    """The manifest of a file; its tensors are stored when ``hasher`` is a writer.

    A file that changes meanwhile is found out by its size and times; a write through a mapping may move neither.

    Raises:
        FormatError: the file is plainly not what its name promises.
        ConflictError: the file changed while it was read; what was stored of it is part of nothing.
        NotFoundError, UnreadableError: it cannot be read.
        StorageError: the store's disk refused.
    """
    with _naming(path), containers.parse(path, opaque=opaque) as parsed:
        return take_in(parsed, hasher, parent, progress, tell)


def store_file(
    file: containers.ReadableFile,
    hasher: TensorHasher,
    *,
    name: str = "",
    parent: Parent | None = None,
    tell: Tell = _tell_nobody,
) -> Manifest:
    """As :func:`manifest_of`, of a file that is open, and is closed; one that is malformed is kept whole."""
    with containers.parse_file(file, name=name, keeps_broken=True) as parsed:
        return take_in(parsed, hasher, parent, tell=tell)


def take_in(
    parsed: containers.ParsedFile,
    hasher: TensorHasher,
    parent: Parent | None = None,
    progress: Progress | None = None,
    tell: Tell = _tell_nobody,
) -> Manifest:
    """As :func:`manifest_of`, of a file that was taken apart."""
    records = hasher.write_tensors(parsed.tensors, parent=parent, progress=progress)
    skeleton, rest = None, parsed.skeleton
    if rest is not None:
        (record,) = hasher.write_tensors([BytesSource(_SKELETON, rest)])
        skeleton = Skeleton(record.content, len(rest))
    parsed.check_unchanged()
    if parsed.reason:
        tell(parsed.reason)
    return Manifest(parsed.container, tuple(records), skeleton, tuple(parsed.metadata))


@contextlib.contextmanager
def _naming(file: object) -> Iterator[None]:
    """Say in a FormatError which file it is about."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{file}: {error.message}", hint=error.hint) from None


def skeleton_of(store: ChunkStore, manifest: Manifest) -> bytes | None:
    """The bytes of a file that are not tensors; None when they regenerate. Raises CorruptionError, FormatError."""
    if manifest.skeleton is None:
        return None
    containers.check_skeleton(manifest)
    return store.get_bytes(manifest.skeleton.content, manifest.skeleton.nbytes)


def views_of(store: ChunkStore, manifest: Manifest) -> Mapping[str, containers.TensorView]:
    """The tensors that a part shows, by name. Raises CorruptionError, FormatError."""
    return containers.views(manifest, skeleton_of(store, manifest))


def write_file(
    store: ChunkStore,
    manifest: Manifest,
    folder: Folder,
    name: str,
    *,
    mode: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a part as a file, byte for byte, replacing what was there only when all of it is written.

    Args:
        mode: the file's permissions; None leaves them to the process's umask.

    Raises:
        CorruptionError: a chunk is missing or damaged; the file is left as it was.
        FormatError: the manifest describes no file; the file is left as it was.
        StorageError: the disk refused; the file is left as it was.
    """

    def read(records: Iterable[TensorRecord]) -> Iterator[memoryview]:
        for piece in store.stream(records):
            yield piece
            if progress is not None:
                progress(len(piece))

    with _naming(name), folder.new_file(name) as out:
        containers.restore(manifest, skeleton_of(store, manifest), read, out)
        out.publish(name, mode=mode)
