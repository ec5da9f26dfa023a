"""Files as named tensors: what is a tensor in a checkpoint file, what is not, and how the file is written back.

Every container is a skeleton plus the spans of its tensors, and restores byte for byte. A file is known by its
content, never by its name alone; what is not understood is one opaque span of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coral.containers import promises
from coral.containers.container import (
    OPAQUE,
    begins_with_its_index,
    container_of,
    is_model_name,
    promise_of,
    take_apart,
)
from coral.containers.file import Output, Parsed, ParsedFile, ReadRecords, TensorView
from coral.containers.source import (
    BytesFile,
    FileRange,
    OpenFile,
    ReadableFile,
    StreamFile,
)
from coral.errors import FormatError
from coral.format.manifest import Manifest

__all__ = [
    "BytesFile",
    "OpenFile",
    "Output",
    "ParsedFile",
    "ReadRecords",
    "ReadableFile",
    "StreamFile",
    "TensorView",
    "begins_with_its_index",
    "broken_promise",
    "check_skeleton",
    "is_model_name",
    "parse",
    "parse_file",
    "restore",
    "views",
    "written_in_order",
]


def parse(path: Path, *, opaque: bool = False) -> ParsedFile:
    """Take a file apart into named tensors and the rest.

    Args:
        path: any regular file.
        opaque: keep the file whole, whatever it is.

    Raises:
        FormatError: a file that is plainly not what its name promises: malformed, cut short, empty, or a pointer.
        NotFoundError, UnreadableError: the file cannot be read.
        ConflictError: the file became shorter while it was read.
        UsageError: a folder, pipe or device.
    """
    return parse_file(OpenFile(path), name=path.name, opaque=opaque)


def parse_file(file: ReadableFile, *, name: str = "", opaque: bool = False, keeps_broken: bool = False) -> ParsedFile:
    """As :func:`parse`, of a file that is open, and is closed with what is returned.

    Args:
        name: what it is called; an empty name promises nothing.
        keeps_broken: take a file that is not what its name promises as any other, and say so, rather than raise.
    """
    if opaque:
        return ParsedFile(file, OPAQUE.parse)
    return ParsedFile(file, lambda data: _parse_named(data, name, keeps_broken=keeps_broken))


def broken_promise(content: bytes, name: str) -> str:
    """What is wrong with a file's content, as far as its name promises a format; nothing is an empty string."""
    try:
        promises.check(FileRange(BytesFile(content), 0, len(content)), promise_of(name))
    except FormatError as error:
        return error.message
    return ""


def written_in_order(manifest: Manifest) -> bool:
    """Whether :func:`restore` appends alone, so that a file may be sent on as it is written."""
    return container_of(manifest).traits.flows


def _parse_named(data: FileRange, name: str, *, keeps_broken: bool) -> Parsed:
    if not name:
        return take_apart(data, None)
    promise = promise_of(name)
    try:
        promises.check(data, promise)
        return take_apart(data, promise)
    except FormatError as error:
        if not keeps_broken:
            raise
        return take_apart(data, None)._replace(reason=error.message)


def check_skeleton(manifest: Manifest) -> None:
    """Refuse a manifest whose skeleton is longer than any that :func:`parse` makes, before memory is taken for it.

    Raises:
        FormatError: the length cannot be.
    """
    limit = container_of(manifest).traits.skeleton_limit
    if manifest.skeleton is not None and manifest.skeleton.nbytes > limit:
        raise FormatError(
            f"a {manifest.container} skeleton of {manifest.skeleton.nbytes} bytes; at most {limit} can be"
        )


def restore(manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
    """Write a file back, byte for byte.

    Args:
        manifest: what :func:`parse` found, its tensors kept.
        skeleton: the skeleton's bytes; None when canonical.
        read: yields the bytes of the records it is given, in that order.
        out: appended to; bytes already written may be overwritten.

    Raises:
        FormatError: a skeleton that does not fit its manifest.
        CorruptionError: a record's bytes are not as many as they should be.
    """
    container_of(manifest).restore(manifest, skeleton, read, out)


def views(manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
    """The tensors that a file holds, by name; each is a record, or a view of one.

    Raises:
        FormatError: a skeleton that does not fit its manifest.
    """
    return container_of(manifest).views(manifest, skeleton)
