"""numpy's own files: one array after a short header (``.npy``), or an archive of such (``.npz``, stored).

A record bears an array's name only where its bytes are the array's elements in C order. Those of an array in Fortran
order are its transpose, the record ``NAME.T``; those of a type that coral lacks are the record ``NAME.bytes``.
Where another array has that for its own name, the record is numbered: ``NAME.T~2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Final, NamedTuple

from coral.containers import zips
from coral.containers.file import Output, Parsed, ReadRecords, TensorView, numbered, write_record
from coral.containers.source import FileRange, FileSource
from coral.containers.zips import Member, NotThisError, Skeleton, Span
from coral.errors import FormatError
from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import Manifest, TensorRecord

ARRAY_NAME: Final = "array"
"""The name of the one array of a ``.npy`` file."""

SKELETON_LIMIT: Final = 1 << 16
"""Most bytes before an array; one that starts later is kept whole."""

TRANSPOSED: Final = ".T"
"""What follows the name of an array in Fortran order."""

RAW: Final = ".bytes"
"""What follows the name of an array that is big-endian, or of a type that is not coral's."""

_TRANSPOSED_NAME = re.compile(r"(.*)\.T(?:~\d+)?", re.DOTALL)
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
    """An array as it is kept, under its name with this suffix; its bytes begin at ``start``."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    start: int


def looks_like_npy(data: FileRange) -> bool:
    """Whether the bytes begin as a ``.npy`` file does."""
    return data.read(0, len(_MAGIC)) == _MAGIC


def parse_npy(data: FileRange) -> Parsed:
    """Take a ``.npy`` file apart. Raises NotThisError when it is not a whole one."""
    suffix, dtype, shape, start = _read_header(data)
    array = FileSource(ARRAY_NAME + suffix, dtype, shape, data.part(start, len(data)))
    return Parsed("npy", data.read(0, start), (), [array])


def parse_npz(data: FileRange, members: Sequence[Member]) -> Parsed:
    """Take a ``.npz`` archive apart; its compressed members stay in the skeleton. Raises NotThisError."""
    arrays: dict[str, tuple[Member, FileRange, _Array]] = {}
    for member in zips.stored(members):
        content = data.part(member.start, member.stop)
        if not member.name.endswith(_SUFFIX) or not looks_like_npy(content):
            continue
        if member.name in arrays:
            raise NotThisError("a member stands in it twice")
        arrays[member.name] = member, content, _read_header(content)
    if not arrays:
        raise NotThisError(_why_none(members))
    names = _record_names({name: array.suffix for name, (_, _, array) in arrays.items()})
    spans, sources = [], []
    for own, (member, content, (_, dtype, shape, start)) in arrays.items():
        spans.append(Span(names[own], member.start + start, start, member))
        sources.append(FileSource(names[own], dtype, shape, content.part(start, len(content))))
    return Parsed("npz", zips.make_skeleton(data, spans), (), sources)


def _record_names(suffixes: Mapping[str, str]) -> dict[str, str]:
    """What the records of an archive's arrays are called, by their members; arrays that keep their name come first."""
    order = sorted(suffixes, key=lambda member: suffixes[member] != "")
    wanted = ((member.removesuffix(_SUFFIX) + suffixes[member], member) for member in order)
    return {member: name for name, member in numbered(wanted)}


def _why_none(members: Sequence[Member]) -> str:
    """Why an archive has no array that could be taken out of it, and no pickle of torch's."""
    if any(member.packed_crc is not None and member.name.endswith((_SUFFIX, "/data.pkl")) for member in members):
        return "its members are compressed, or encrypted"
    return "its archive is laid out neither as torch.save's nor as numpy's"


def restore_npy(manifest: Manifest, skeleton: bytes, read: ReadRecords, out: Output) -> None:
    """Write a ``.npy`` file back byte for byte. Raises FormatError, CorruptionError."""
    if len(manifest.records) != 1:
        raise FormatError(f"a .npy file's manifest lists {len(manifest.records)} tensors instead of one")
    out.write(skeleton)
    write_record(manifest.records[0], read(manifest.records), out.write)


def views(manifest: Manifest, skeleton: bytes) -> Mapping[str, TensorView]:
    """The arrays of a file, by name; one in Fortran order is a view of its transpose. Raises FormatError."""
    found = {name: TensorView(name, name, dtype, shape) for name, dtype, shape, _ in manifest.records}
    transposed = {name: match[1] for name in found if (match := _TRANSPOSED_NAME.fullmatch(name))}
    if not transposed:
        return found
    headers = _headers(manifest, skeleton)
    ours = [name for name, header in headers if name in transposed and _is_transposed(manifest[name], header)]
    # All of these names are free before the first is given: an array may be called as the record of another one.
    for record in [found.pop(name) for name in ours]:
        own, shape = transposed[record.name], record.shape[::-1]
        if own in found:
            raise FormatError(f"two arrays of an archive are called {own!r}")
        stride = tuple(accumulate(shape[:-1], mul, initial=1))
        found[own] = TensorView(own, record.name, record.dtype, shape, stride)
    return found


def _headers(manifest: Manifest, skeleton: bytes) -> Iterator[tuple[str, bytes]]:
    if manifest.container == "npy":
        yield from ((record.name, skeleton) for record in manifest.records)
        return
    parts = Skeleton.from_bytes(skeleton, zips.lengths(manifest))
    for name, start, prefix, _ in parts.places:
        yield name, parts.read_literal(start - prefix, start)


def _is_transposed(record: TensorRecord, header: bytes) -> bool:
    """Whether a record is what :func:`_parse` makes of an array in Fortran order."""
    return _parse(header, record.nbytes)[:3] == (TRANSPOSED, *record[1:3])


def _read_header(data: FileRange) -> _Array:
    """An array as it is to be kept."""
    start = _header_end(data.read(0, 12))
    if start > min(len(data), SKELETON_LIMIT):
        raise NotThisError("its .npy header is damaged")
    return _parse(data.read(0, start), len(data) - start)


def _header_end(head: bytes) -> int:
    major = head[6:7]
    if major not in (b"\1", b"\2", b"\3"):
        raise NotThisError("its .npy header is of an unknown version")
    width = 2 if major == b"\1" else 4
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


def _parse(header: bytes, nbytes: int) -> _Array:
    """What an array is kept as that has this header, and so many bytes."""
    start = len(header)
    raw = _Array(RAW, "U8", (nbytes,), start)
    match = _HEADER.fullmatch(header, 10 if header[6:7] == b"\1" else 12)
    if match is None or match[1] not in _DESCRIPTIONS:
        return raw
    dtype = _DESCRIPTIONS[match[1]]
    shape = tuple(int(length) for length in match[3].split(b",") if length.strip())
    if len(shape) > 64 or BITS[dtype] % 8 or byte_count(dtype, shape) != nbytes:
        return raw
    if match[2] == b"True" and len(shape) > 1:
        return _Array(TRANSPOSED, dtype, shape[::-1], start)
    return _Array("", dtype, shape, start)
