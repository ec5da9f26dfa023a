"""numpy's own files: one array after a short header (``.npy``).

A record bears an array's name only where its bytes are the array's elements in C order. Those of an array in Fortran
order are its transpose, the record ``NAME.T``; those of a type that coral lacks are the record ``NAME.bytes``.
Where another array has that for its own name, the record is numbered: ``NAME.T~2``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import mul
from typing import Final, NamedTuple

from coral.containers.file import (
    NotThisError,
    Output,
    Parsed,
    ReadRecords,
    TensorView,
    Traits,
    needed,
    only_record,
    plain_views,
    write_record,
)
from coral.containers.promises import FRONT_BYTES, Promise, Start, shorter_than
from coral.containers.source import FileRange, FileSource
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

MAGIC: Final = b"\x93NUMPY"
"""What such a file begins with."""

_TRANSPOSED_NAME = re.compile(r"(.*)\.T(?:~\d+)?", re.DOTALL)
_ARRAY = re.compile(
    rb"\{'descr': '[<>|=]?([a-zA-Z])(\d{1,9})(?:\[\w{1,9}\])?', 'fortran_order': \w+, "
    rb"'shape': \(((?:\d{1,18}, ?){0,64}(?:\d{1,18})?)\)"
)
_UNICODE_BYTES = 4
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


def _why_cut(data: FileRange) -> str:
    return shorter_than(data, _whole_bytes(data.read(0, FRONT_BYTES)))


def _whole_bytes(front: bytes) -> int:
    """Bytes of a whole file, as its header says; those of the header alone where it does not."""
    width = 2 if front[6:7] == b"\1" else 4
    begin = 8 + width + int.from_bytes(front[8 : 8 + width], "little")
    array = _ARRAY.match(front[8 + width : begin])
    if array is None:
        return begin
    item = int(array[2]) * (_UNICODE_BYTES if array[1] == b"U" else 1)
    return begin + item * math.prod(int(length) for length in array[3].split(b",") if length.strip())


class Npy:
    """Files of numpy.save."""

    name = "npy"
    traits = Traits(SKELETON_LIMIT, flows=True)
    promises: Mapping[str, Promise] = {".npy": Promise("npy file", (Start(MAGIC, _why_cut),))}

    def recognises(self, head: bytes) -> bool:
        """Whether a file begins as one does."""
        return head.startswith(MAGIC)

    def parse(self, data: FileRange) -> Parsed:
        """Take a file apart. Raises NotThisError when it is not a whole one."""
        suffix, dtype, shape, start = read_header(data)
        array = FileSource(ARRAY_NAME + suffix, dtype, shape, data.part(start, len(data)))
        return Parsed(self.name, data.read(0, start), (), [array])

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write the header and the array."""
        header = needed(skeleton)
        record = only_record(manifest, "a .npy file's")
        out.write(header)
        write_record(record, read(manifest.records), out.write)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The array, by its own name and in its own order."""
        header = needed(skeleton)
        return own_arrays(manifest, ((record.name, header) for record in manifest.records))


class Array(NamedTuple):
    """An array as it is kept, under its name with this suffix; its bytes begin at ``start``."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    start: int


def own_arrays(manifest: Manifest, headers: Iterable[tuple[str, bytes]]) -> Mapping[str, TensorView]:
    """The arrays of a file, by name; one in Fortran order is a view of its transpose.

    Args:
        headers: of each record, by name; not looked at where no name is a transpose's.

    Raises:
        FormatError: two arrays have one name.
    """
    found = dict(plain_views(manifest))
    transposed = {name: match[1] for name in found if (match := _TRANSPOSED_NAME.fullmatch(name))}
    if not transposed:
        return found
    ours = [name for name, header in headers if name in transposed and _is_transposed(manifest[name], header)]
    # All of these names are free before the first is given: an array may be called as the record of another one.
    for record in [found.pop(name) for name in ours]:
        own, shape = transposed[record.name], record.shape[::-1]
        if own in found:
            raise FormatError(f"two arrays of an archive are called {own!r}")
        stride = tuple(accumulate(shape[:-1], mul, initial=1))
        found[own] = TensorView(own, record.name, record.dtype, shape, stride)
    return found


def _is_transposed(record: TensorRecord, header: bytes) -> bool:
    """Whether a record is what :func:`_parse` makes of an array in Fortran order."""
    return _parse(header, record.nbytes)[:3] == (TRANSPOSED, *record[1:3])


def read_header(data: FileRange) -> Array:
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


def _parse(header: bytes, nbytes: int) -> Array:
    """What an array is kept as that has this header, and so many bytes."""
    start = len(header)
    raw = Array(RAW, "U8", (nbytes,), start)
    match = _HEADER.fullmatch(header, 10 if header[6:7] == b"\1" else 12)
    if match is None or match[1] not in _DESCRIPTIONS:
        return raw
    dtype = _DESCRIPTIONS[match[1]]
    shape = tuple(int(length) for length in match[3].split(b",") if length.strip())
    if len(shape) > 64 or BITS[dtype] % 8 or byte_count(dtype, shape) != nbytes:
        return raw
    if match[2] == b"True" and len(shape) > 1:
        return Array(TRANSPOSED, dtype, shape[::-1], start)
    return Array("", dtype, shape, start)
