"""numpy's own files: one array after a short header (``.npy``), or an archive of such (``.npz``, stored)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from coral.containers import zips
from coral.containers.file import Output, Parsed, ReadRecords, write_record
from coral.containers.source import FileRange, FileSource
from coral.containers.zips import Member, NotThisError, Span
from coral.errors import FormatError
from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import Manifest

ARRAY_NAME: Final = "array"
"""The name of the one array of a ``.npy`` file."""

SKELETON_LIMIT: Final = 1 << 16
"""Most bytes before an array; one that starts later is kept whole."""

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
# Exactly what numpy writes; anything else is kept as bytes.
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d{1,2})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)
_DESCRIPTIONS: Final = {
    b"|b1": "BOOL",
    b"|u1": "U8",
    b"|i1": "I8",
    b"<i2": "I16",
    b"<u2": "U16",
    b"<f2": "F16",
    b"<i4": "I32",
    b"<u4": "U32",
    b"<f4": "F32",
    b"<c8": "C64",
    b"<f8": "F64",
    b"<i8": "I64",
    b"<u8": "U64",
}


class _Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int


def looks_like_npy(data: FileRange) -> bool:
    """Whether the bytes begin as a ``.npy`` file does."""
    return data.read(0, len(_MAGIC)) == _MAGIC


def parse_npy(data: FileRange) -> Parsed:
    """Take a ``.npy`` file apart. Raises NotThisError when it is not a whole one."""
    dtype, shape, start = _read_header(data)
    array = FileSource(ARRAY_NAME, dtype, shape, data.part(start, len(data)))
    return Parsed("npy", data.read(0, start), (), [array])


def parse_npz(data: FileRange, members: Sequence[Member]) -> Parsed:
    """Take a ``.npz`` archive apart; its compressed members stay in the skeleton. Raises NotThisError."""
    spans, sources = [], []
    for member in members:
        content = data.part(member.start, member.stop)
        if not member.name.endswith(_SUFFIX) or not looks_like_npy(content):
            continue
        dtype, shape, start = _read_header(content)
        name = member.name.removesuffix(_SUFFIX)
        spans.append(Span(name, member.start + start, start, member))
        sources.append(FileSource(name, dtype, shape, content.part(start, len(content))))
    if len({source.name for source in sources}) != len(sources):
        raise NotThisError("a member stands twice")
    return Parsed("npz", zips.make_skeleton(data, spans), (), sources)


def restore_npy(manifest: Manifest, skeleton: bytes, read: ReadRecords, out: Output) -> None:
    """Write a ``.npy`` file back byte for byte. Raises FormatError, CorruptionError."""
    if len(manifest.records) != 1:
        raise FormatError(f"a .npy file's manifest lists {len(manifest.records)} tensors instead of one")
    out.write(skeleton)
    write_record(manifest.records[0], read(manifest.records), out.write)


def _read_header(data: FileRange) -> _Array:
    """Dtype, shape and start of an array; as plain bytes when its type or order is not coral's."""
    major = data.read(6, 7)
    width = 2 if major == b"\1" else 4
    start = 8 + width + int.from_bytes(data.read(8, 8 + width), "little")
    if major not in (b"\1", b"\2", b"\3") or start > min(len(data), SKELETON_LIMIT):
        raise NotThisError("a damaged .npy header")
    raw = _Array("U8", (len(data) - start,), start)
    match = _HEADER.fullmatch(data.read(8 + width, start))
    if match is None or match[1] not in _DESCRIPTIONS or match[2] == b"True":
        return raw
    dtype = _DESCRIPTIONS[match[1]]
    shape = tuple(int(length) for length in match[3].split(b",") if length.strip())
    if len(shape) > 64 or BITS[dtype] % 8 or byte_count(dtype, shape) != len(data) - start:
        return raw
    return _Array(dtype, shape, start)
