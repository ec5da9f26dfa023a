"""GGUF files, as llama.cpp reads them: key-value pairs, the tensors' names, shapes, types and places, then their bytes.

The skeleton is the file without its tensors, padding included. A tensor of a type that coral has bears its own name;
one that is quantised in blocks is kept as rows of its blocks' bytes, U8, under its name and its type's: ``NAME.Q4_K``.
Where another tensor has that for its own name, the record is numbered: ``NAME.Q4_K~2``.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from coral.containers.file import (
    CutShortError,
    NotThisError,
    Output,
    Parsed,
    ReadRecords,
    TensorView,
    Traits,
    needed,
    numbered,
    plain_views,
    write_record,
)
from coral.containers.promises import Promise, Start
from coral.containers.source import FileRange, FileSource
from coral.errors import FormatError
from coral.format.manifest import Manifest

SKELETON_LIMIT: Final = 64 << 20
"""Most bytes beside the tensors; a vocabulary of half a million words takes some 20 MiB."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = b"general.alignment"
_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 << 20
_MOST_TENSORS = 1 << 20
_MOST_DIMENSIONS = 4  # ggml's own
_MOST_BYTES = 1 << 62
_FIRST_READ = 1 << 16
_STRING, _ARRAY, _UINT32 = 8, 9, 4
# By the numbers of the types of values; 7 is a truth value.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LEAST_PAIR, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
_DTYPES = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_ITEM_BYTES = {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}


class _Block(NamedTuple):
    """A type that is quantised: so many elements of a row are a block of so many bytes."""

    name: str
    elements: int
    nbytes: int


_BLOCKS: Final = {
    2: _Block("Q4_0", 32, 18),
    3: _Block("Q4_1", 32, 20),
    6: _Block("Q5_0", 32, 22),
    7: _Block("Q5_1", 32, 24),
    8: _Block("Q8_0", 32, 34),
    10: _Block("Q2_K", 256, 84),
    11: _Block("Q3_K", 256, 110),
    12: _Block("Q4_K", 256, 144),
    13: _Block("Q5_K", 256, 176),
    14: _Block("Q6_K", 256, 210),
    15: _Block("Q8_K", 256, 292),
    16: _Block("IQ2_XXS", 256, 66),
    17: _Block("IQ2_XS", 256, 74),
    18: _Block("IQ3_XXS", 256, 98),
    19: _Block("IQ1_S", 256, 50),
    20: _Block("IQ4_NL", 32, 18),
    21: _Block("IQ3_S", 256, 110),
    22: _Block("IQ2_S", 256, 82),
    23: _Block("IQ4_XS", 256, 136),
    29: _Block("IQ1_M", 256, 56),
    34: _Block("TQ1_0", 256, 54),
    35: _Block("TQ2_0", 256, 66),
    39: _Block("MXFP4", 32, 17),
    40: _Block("NVFP4", 64, 36),
}


class _Tensor(NamedTuple):
    """A tensor as it is kept, and where it begins, counted from the first byte after the index and its padding."""

    name: str
    suffix: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class _Span(NamedTuple):
    """A record, and its bytes [start, stop) in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Gguf:
    """GGUF files, little-endian, of versions 2 and 3; others are kept whole."""

    name = "gguf"
    traits = Traits(SKELETON_LIMIT, flows=True)
    promises: Mapping[str, Promise] = {".gguf": Promise("GGUF file", (Start(_MAGIC),))}

    def recognises(self, head: bytes) -> bool:
        """Whether a file begins as one does."""
        return head.startswith(_MAGIC)

    def parse(self, data: FileRange) -> Parsed:
        """Take a file apart. Raises NotThisError, CutShortError."""
        spans = _read_spans(data)
        if spans and spans[-1].stop > len(data):
            raise CutShortError(f"it is cut short: it has {len(data):,} of at least {spans[-1].stop:,} bytes")
        gaps = _gaps(spans, len(data))
        if not spans or sum(stop - start for start, stop in gaps) > SKELETON_LIMIT:
            raise NotThisError("it holds too much beside its tensors" if spans else "it holds no tensors")
        sources = [FileSource(name, dtype, shape, data.part(start, stop)) for name, dtype, shape, start, stop in spans]
        return Parsed(self.name, [data.part(start, stop) for start, stop in gaps if start < stop], (), sources)

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write a file back. Raises FormatError also where the skeleton speaks of other tensors than the manifest."""
        literal = needed(skeleton)
        try:
            spans = _spans(_Index(literal).tensors())
        except (NotThisError, _EndsEarlyError):
            raise FormatError("a GGUF skeleton is malformed") from None
        if {span[:3] for span in spans} != {record[:3] for record in manifest.records}:
            raise FormatError("a GGUF skeleton does not list the tensors of its manifest")
        gaps = _gaps(spans, len(literal) + manifest.nbytes)
        if gaps[-1][0] > gaps[-1][1]:
            raise FormatError("a GGUF skeleton is shorter than what stands between its tensors")
        pieces = read([manifest[span.name] for span in spans])
        rest = io.BytesIO(literal)
        for span, (start, stop) in zip(spans, gaps[:-1], strict=True):
            out.write(rest.read(stop - start))
            write_record(manifest[span.name], pieces, out.write)
        out.write(rest.read())

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The records: blocks are shown as their bytes."""
        return plain_views(manifest)


def _read_spans(data: FileRange) -> list[_Span]:
    """The tensors of a file in its order, reading no more of it than its index, and some."""
    length = _FIRST_READ
    while True:
        # From the front each time: a stream remembers what it read there.
        head = data.read(0, length)
        try:
            return _spans(_Index(head).tensors())
        except _EndsEarlyError:
            if length >= len(data):
                raise CutShortError("it is cut short: it ends within its index") from None
            if length > SKELETON_LIMIT:
                raise NotThisError("it holds too much beside its tensors") from None
        length *= 4


def _spans(found: tuple[Sequence[_Tensor], int]) -> list[_Span]:
    tensors, data_start = found
    names = _record_names(tensors)
    spans = [
        _Span(name, one.dtype, one.shape, data_start + one.start, data_start + one.start + one.nbytes)
        for one, name in zip(tensors, names, strict=True)
    ]
    spans.sort(key=lambda span: (span.start, span.stop))
    end = data_start
    for span in spans:
        if span.start < end:
            raise NotThisError("its tensors overlap")
        end = span.stop
    return spans


def _record_names(tensors: Sequence[_Tensor]) -> list[str]:
    """What the records are called; tensors that keep their name come first."""
    order = sorted(range(len(tensors)), key=lambda place: tensors[place].suffix != "")
    wanted = ((tensors[place].name + tensors[place].suffix, place) for place in order)
    names = {place: name for name, place in numbered(wanted)}
    return [names[place] for place in range(len(tensors))]


def _gaps(spans: Sequence[_Span], size: int) -> list[tuple[int, int]]:
    """What stands before, between and after the tensors of a file of ``size`` bytes."""
    bounds = [0, *(at for span in spans for at in (span.start, span.stop)), size]
    return list(zip(bounds[::2], bounds[1::2], strict=True))


class _EndsEarlyError(Exception):
    """More bytes are needed."""


class _Index:
    """Reads what stands before the tensors, of a file that begins with these bytes.

    Nothing is made of a count before that many things could stand in what is left.
    """

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._at = 0

    def tensors(self) -> tuple[Sequence[_Tensor], int]:
        """The tensors, in the order of the index, and where their bytes begin.

        Raises:
            NotThisError: it is malformed, or of a kind that is not understood.
            _EndsEarlyError: the bytes end before it does.
        """
        is_known = self._take(len(_MAGIC)) == _MAGIC and self._unpack("<I")[0] in _VERSIONS
        if not is_known:
            raise NotThisError(f"it is big-endian, or of another version than {' and '.join(map(str, _VERSIONS))}")
        count, pairs = self._unpack("<QQ")
        if count > _MOST_TENSORS:
            raise NotThisError(f"it holds {count} tensors")
        self._check_room(count * _LEAST_TENSOR + pairs * _LEAST_PAIR)
        alignment = self._read_pairs(pairs)
        found = [self._tensor(alignment) for _ in range(count)]
        if len({tensor.name for tensor in found}) != count:
            raise NotThisError("a tensor stands in it twice")
        return found, -(-self._at // alignment) * alignment

    def _read_pairs(self, count: int) -> int:
        """Pass over the key-value pairs; the alignment that they say."""
        alignment = _ALIGNMENT
        for _ in range(count):
            key = self._string()
            (kind,) = self._unpack("<I")
            start = self._at
            self._skip_value(kind)
            if key == _ALIGNMENT_KEY:
                if kind != _UINT32:
                    raise NotThisError("its alignment is no number of 32 bits")
                alignment = int.from_bytes(self._head[start : self._at], "little")
        if alignment & (alignment - 1) or not 0 < alignment <= _LARGEST_ALIGNMENT:
            raise NotThisError(f"its alignment is {alignment}")
        return alignment

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            item, count = self._unpack("<IQ")
            if item == _STRING:
                self._skip_strings(count)
            else:  # arrays of arrays nobody reads
                self._take(count * self._value_bytes(item))
        else:
            self._take(self._value_bytes(kind))

    def _value_bytes(self, kind: int) -> int:
        if kind not in _VALUE_BYTES:
            raise NotThisError(f"it holds a value of the unknown type {kind}")
        return _VALUE_BYTES[kind]

    def _skip_strings(self, count: int) -> None:
        """Pass over a vocabulary, which is most of an index."""
        head, at, size, unpack = self._head, self._at, len(self._head), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _EndsEarlyError
            at += 8 + unpack(head, at)[0]
        self._take(at - self._at)

    def _tensor(self, alignment: int) -> _Tensor:
        try:
            name = self._string().decode()
        except UnicodeDecodeError:
            raise NotThisError("the name of a tensor is no text") from None
        (dimensions,) = self._unpack("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise NotThisError(f"a tensor has {dimensions} dimensions")
        shape = self._unpack(f"<{dimensions}Q")[::-1]  # ggml's innermost axis comes first
        kind, start = self._unpack("<IQ")
        suffix, dtype, kept, nbytes = _as_kept(kind, shape)
        if start % alignment or max(start + nbytes, *kept, 0) > _MOST_BYTES:
            raise NotThisError("a tensor lies outside of any file, or is not aligned")
        return _Tensor(name, suffix, dtype, kept, start, nbytes)

    def _string(self) -> bytes:
        (length,) = self._unpack("<Q")
        return self._take(length)

    def _unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, length: int) -> bytes:
        self._check_room(length)
        self._at += length
        return self._head[self._at - length : self._at]

    def _check_room(self, length: int) -> None:
        if length > len(self._head) - self._at:
            raise _EndsEarlyError


def _as_kept(kind: int, shape: tuple[int, ...]) -> tuple[str, str, tuple[int, ...], int]:
    """What the name of a tensor's record ends with, its dtype, shape and bytes. Raises NotThisError."""
    if kind in _DTYPES:
        nbytes = math.prod(shape) * _ITEM_BYTES[kind]
        return "", _DTYPES[kind], shape, nbytes
    if kind not in _BLOCKS:
        raise NotThisError(f"a tensor is of the unknown type {kind}")
    block = _BLOCKS[kind]
    if not shape or shape[-1] % block.elements:
        raise NotThisError(f"the rows of a tensor are no whole blocks of {block.name}")
    rows = (*shape[:-1], shape[-1] // block.elements * block.nbytes)
    return f".{block.name}", "U8", rows, math.prod(rows)
