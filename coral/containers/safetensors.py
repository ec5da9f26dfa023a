"""safetensors files: an 8-byte length, a JSON header, and the tensors' bytes without gaps.

The header is parsed here rather than by the safetensors library, because coral must know where every byte of it
comes from. What the library refuses is refused, and so are duplicate keys, which its specification forbids.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol, TypeGuard, TypeVar

from coral.containers.file import (
    NotThisError,
    Output,
    Parsed,
    ReadRecords,
    TensorView,
    Traits,
    plain_views,
    write_record,
)
from coral.containers.promises import Promise
from coral.containers.source import FileRange, FileSource
from coral.errors import FormatError
from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import Manifest, TensorRecord

HEADER_LIMIT: Final = 100_000_000
"""Largest header in bytes, as in the safetensors library."""

_LENGTH_BYTES = 8
SKELETON_LIMIT: Final = _LENGTH_BYTES + HEADER_LIMIT
"""Most bytes that a skeleton has: the length and the header."""

METADATA_KEY: Final = "__metadata__"

# The library writes wider types first. The order is part of coral's format: it must never follow a later library.
_WIDEST_FIRST = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8"),
    *("F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
_WRITE_ORDER: Final = {dtype: rank for rank, dtype in enumerate(_WIDEST_FIRST)}
_MAX_DIMENSIONS = 64
_MAX_NUMBER = 1 << 63
_MAX_METADATA = 100_000
_SLICE = 1 << 20
# Arrays in arrays, or of thousands of elements, cannot be valid; Python would spend gigabytes on parsing them.
_WILD_ARRAY = re.compile(rb"\[[^\]]{0,4000}\[|\[[^\]]{4000}")


class NamedTensor(Protocol):
    """What a header says of a tensor."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


_T = TypeVar("_T", bound=NamedTensor)


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class _Header(NamedTuple):
    entries: Sequence[_Entry]
    metadata: tuple[tuple[str, str], ...]
    nbytes: int


def canonical_header(tensors: Iterable[NamedTensor], metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """The first bytes of the file that safetensors itself would write: length, header and padding.

    Args:
        tensors: in any order.
        metadata: in the order to be written; none leaves the metadata object out.

    Raises:
        FormatError: a header of over 100 MB, which safetensors would not read.
    """
    entries = []
    pairs = tuple(metadata)
    if pairs:
        inner = ",".join(f"{_quote(key)}:{_quote(value)}" for key, value in pairs)
        entries.append(f'"{METADATA_KEY}":{{{inner}}}')
    offset = 0
    for tensor in canonical_order(tensors):
        stop = offset + byte_count(tensor.dtype, tensor.shape)
        shape = ",".join(map(str, tensor.shape))
        entries.append(
            f'{_quote(tensor.name)}:{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":[{offset},{stop}]}}'
        )
        offset = stop
    header = ("{" + ",".join(entries) + "}").encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT:
        raise FormatError(f"a safetensors header of {len(header)} bytes: at most {HEADER_LIMIT} can be read back")
    return len(header).to_bytes(8, "little") + header


def canonical_order(tensors: Iterable[_T]) -> list[_T]:
    """Tensors in the order in which safetensors writes them: by dtype, then by name."""
    return sorted(tensors, key=lambda tensor: (_WRITE_ORDER[tensor.dtype], tensor.name))


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Safetensors:
    """safetensors files."""

    name = "safetensors"
    traits = Traits(SKELETON_LIMIT, flows=True)
    promises: Mapping[str, Promise] = {".safetensors": Promise("safetensors file", refuses_malformed=True)}

    def recognises(self, head: bytes) -> bool:
        """Whether a file begins with a header length of at most 4 GB and the brace of a header."""
        return head[4:9] == b"\0\0\0\0{"

    def parse(self, data: FileRange) -> Parsed:
        """Take a file apart. Raises NotThisError: the header is not what the specification allows, or another's."""
        try:
            return _parse(data)
        except FormatError as error:
            raise NotThisError(error.message, hint=error.hint) from None

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write a file back. Raises FormatError also where the skeleton speaks of other tensors than the manifest."""
        out.write(canonical_header(manifest.records, manifest.metadata) if skeleton is None else skeleton)
        order = _file_order(manifest, skeleton)
        pieces = read(order)
        for record in order:
            write_record(record, pieces, out.write)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The records."""
        return plain_views(manifest)


def _parse(data: FileRange) -> Parsed:
    head = data.read(0, _head_length(data.read(0, _LENGTH_BYTES), len(data)))
    header = _parse_header(head)
    if len(head) + header.nbytes != len(data):
        raise FormatError(
            f"a safetensors file of {len(data)} bytes whose header says {len(head) + header.nbytes}",
            hint="the file is truncated or was not written completely; save it again",
        )
    body = data.part(len(head), len(data))
    tensors = [
        FileSource(entry.name, entry.dtype, entry.shape, body.part(entry.start, entry.stop)) for entry in header.entries
    ]
    regenerated = canonical_header(header.entries, header.metadata)
    return Parsed(Safetensors.name, None if regenerated == head else head, header.metadata, tensors)


def _file_order(manifest: Manifest, skeleton: bytes | None) -> list[TensorRecord]:
    if skeleton is None:
        return canonical_order(manifest.records)
    whole = _head_length(skeleton[:_LENGTH_BYTES], len(skeleton)) == len(skeleton)
    entries = _parse_header(skeleton).entries if whole else ()
    theirs = {entry.name: (entry.dtype, entry.shape) for entry in entries}
    ours = {record.name: (record.dtype, record.shape) for record in manifest.records}
    if not whole or theirs != ours:
        raise FormatError("a safetensors skeleton does not list the tensors of its manifest")
    return [manifest[entry.name] for entry in entries]


def _head_length(start: bytes, size: int) -> int:
    """Bytes of length and header, of a file of ``size`` bytes that begins with ``start``."""
    length = int.from_bytes(start, "little")
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise FormatError(
            f"a safetensors file of {size} bytes is too short for its header",
            hint="the file is truncated, or is not a safetensors file",
        )
    if length > HEADER_LIMIT:
        raise FormatError(f"a safetensors header of {length} bytes; at most {HEADER_LIMIT} are allowed")
    return _LENGTH_BYTES + length


def _parse_header(head: bytes) -> _Header:
    top = _parse_json(head[_LENGTH_BYTES:])
    metadata = _parse_metadata(top.pop(METADATA_KEY, None))
    entries = [_parse_entry(name, info) for name, info in top.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            kind = "overlaps" if entry.start < end else "leaves a gap after"
            raise FormatError(f"tensor {_show(entry.name)} {kind} the tensor before it in a safetensors file")
        end = entry.stop
    return _Header(entries, metadata, end)


def _parse_json(text: bytes) -> dict[str, object]:
    _check_structure(text)
    try:
        top = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a safetensors header is not JSON in UTF-8: {error}") from None
    if not isinstance(top, dict):
        raise FormatError("a safetensors header is not a JSON object")
    return top


def _check_structure(text: bytes) -> None:
    # Before Python objects are made of it: a header of 100 MB could otherwise become many gigabytes of them.
    structure = _without_strings(text)
    objects, arrays = structure.count(b"{"), structure.count(b"[")
    fits = 2 * (objects - 2) <= arrays <= 2 * objects and structure.count(b":") <= 4 * objects + _MAX_METADATA
    if not fits or _WILD_ARRAY.search(structure):
        raise FormatError("a safetensors header holds something else than tensors")


def _without_strings(text: bytes) -> bytes:
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = []
    inside = 0
    for start in range(0, len(plain), _SLICE):
        pieces = plain[start : start + _SLICE].split(b'"')
        outside.append(b"".join(pieces[inside::2]))
        inside = (inside + len(pieces) - 1) % 2
    return b"".join(outside)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        double = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FormatError(f"{_show(double)} stands twice in a safetensors header")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse_metadata(value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise FormatError(f"{METADATA_KEY} of a safetensors header is not an object of strings")
    for key, text in value.items():
        if not isinstance(text, str):
            raise FormatError(f"{METADATA_KEY} of a safetensors header is not an object of strings: {_show(key)}")
        _check_unicode(key)
        _check_unicode(text)
    return tuple(value.items())


def _parse_entry(name: str, info: object) -> _Entry:
    _check_unicode(name)
    if not isinstance(info, dict):
        raise FormatError(f"tensor {_show(name)} of a safetensors header is not an object")
    dtype, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"tensor {_show(name)} has dtype {_show(dtype)}, which coral does not know")
    if not _are_sizes(shape, _MAX_DIMENSIONS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        raise FormatError(f"tensor {_show(name)} of a safetensors header has no valid shape and data_offsets")
    start, stop = offsets
    size = 1
    for length in shape:
        size *= length
        if size >= _MAX_NUMBER:
            raise FormatError(f"tensor {_show(name)} is larger than any file: {shape}")
    if byte_count(dtype, tuple(shape)) != stop - start:
        raise FormatError(f"tensor {_show(name)}: {dtype} {shape} does not take the bytes from {start} to {stop}")
    return _Entry(name, dtype, tuple(shape), start, stop)


def _are_sizes(value: object, most: int) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(number) is int and 0 <= number < _MAX_NUMBER for number in value)
    )


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{_show(text)} in a safetensors header is not valid unicode") from None


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
