"""Files as named tensors: what is a tensor in a checkpoint file, what is not, and how the file is written back.

Every container is a skeleton plus the spans of its tensors, and restores byte for byte. A file is known by its
content, never by its name alone; what is not understood is one opaque span of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coral.containers import npy, promises, safetensors, torchfile, torchlegacy, torchzip, zips
from coral.containers.file import Output, Parsed, ParsedFile, ReadRecords, TensorView, write_record
from coral.containers.promises import Promise, is_model_name, promise_of
from coral.containers.source import (
    BytesFile,
    FileRange,
    FileSource,
    OpenFile,
    ReadableFile,
    StreamFile,
    TensorSource,
)
from coral.containers.zips import CutShortError, NotThisError
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
    "TensorSource",
    "TensorView",
    "begins_with_its_index",
    "broken_promise",
    "check_skeleton",
    "is_model_name",
    "parse",
    "parse_file",
    "restore",
    "views",
]

OPAQUE_NAME = "data"
"""The name of an opaque file's one record."""

_SKELETON_LIMITS = {
    "safetensors": safetensors.SKELETON_LIMIT,
    "npy": npy.SKELETON_LIMIT,
    "npz": zips.SKELETON_LIMIT,
    "torch": zips.SKELETON_LIMIT,
}


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
        return ParsedFile(file, _parse_opaque)
    return ParsedFile(file, lambda data: _parse_named(data, name, keeps_broken=keeps_broken))


def broken_promise(content: bytes, name: str) -> str:
    """What is wrong with a file's content, as far as its name promises a format; nothing is an empty string."""
    try:
        promises.check(FileRange(BytesFile(content), 0, len(content)), promise_of(name))
    except FormatError as error:
        return error.message
    return ""


def begins_with_its_index(head: bytes) -> bool:
    """Whether a file that begins with these bytes can be taken apart from front to back, as it comes."""
    return not head.startswith(zips.MEMBER_SIGNATURE) and not torchlegacy.begins_legacy(head)


def _parse_named(data: FileRange, name: str, *, keeps_broken: bool) -> Parsed:
    if not name:
        return _parse_content(data, None)
    promise = promise_of(name)
    try:
        promises.check(data, promise)
        return _parse_content(data, promise)
    except FormatError as error:
        if not keeps_broken:
            raise
        return _parse_content(data, None)._replace(reason=error.message)


def _parse_content(data: FileRange, promise: Promise | None) -> Parsed:
    is_zip = zips.is_zip(data) and not safetensors.looks_like_safetensors(data)
    named_safetensors = promise is promises.PROMISES[".safetensors"]
    if safetensors.looks_like_safetensors(data) or (named_safetensors and not is_zip):
        try:
            return safetensors.parse(data)
        except FormatError as error:
            # Other formats may look like one; only the name makes it a promise that is broken.
            if named_safetensors:
                raise FormatError(error.message, hint=error.hint or promises.AGAIN) from None
    try:
        return _parse_archive(data)
    except NotThisError as error:
        if isinstance(error, CutShortError) and promise is not None and promise.has_tensors:
            raise FormatError(str(error), hint=promises.AGAIN) from None
        return _parse_opaque(data)._replace(reason=promises.why_whole(data, promise, str(error)))


def _parse_archive(data: FileRange) -> Parsed:
    if npy.looks_like_npy(data):
        return npy.parse_npy(data)
    if torchlegacy.looks_like_legacy(data):
        return torchlegacy.parse(data)
    if not zips.is_zip(data):
        raise NotThisError("it holds no tensors" if zips.is_empty_zip(data) else "no known container")
    members = zips.members_of(data)
    return torchzip.parse(data, members) if torchzip.is_torch(members) else npy.parse_npz(data, members)


def _parse_opaque(data: FileRange) -> Parsed:
    return Parsed("opaque", None, (), [FileSource(OPAQUE_NAME, "U8", (len(data),), data)])


def check_skeleton(manifest: Manifest) -> None:
    """Refuse a manifest whose skeleton is longer than any that :func:`parse` makes, before memory is taken for it.

    Raises:
        FormatError: the length cannot be.
    """
    limit = _SKELETON_LIMITS.get(manifest.container, 0)
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
    if manifest.container == "safetensors":
        safetensors.restore(manifest, skeleton, read, out)
    elif manifest.container == "opaque":
        _restore_opaque(manifest, read, out)
    elif manifest.container == "npy":
        npy.restore_npy(manifest, _needed(skeleton), read, out)
    else:
        zips.restore(manifest, _needed(skeleton), read, out)


def _needed(skeleton: bytes | None) -> bytes:
    if skeleton is None:
        raise FormatError("a manifest without the skeleton that its container needs")
    return skeleton


def _restore_opaque(manifest: Manifest, read: ReadRecords, out: Output) -> None:
    if len(manifest.records) != 1:
        raise FormatError(f"an opaque file's manifest lists {len(manifest.records)} tensors instead of one")
    write_record(manifest.records[0], read(manifest.records), out.write)


def views(manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
    """The tensors that a file holds, by name; each is a record, or a view of one.

    Raises:
        FormatError: a skeleton that does not fit its manifest.
    """
    if manifest.container == "torch":
        return torchfile.views(manifest, _needed(skeleton))
    if manifest.container in ("npy", "npz"):
        return npy.views(manifest, _needed(skeleton))
    return {name: TensorView(name, name, dtype, shape) for name, dtype, shape, _ in manifest.records}
