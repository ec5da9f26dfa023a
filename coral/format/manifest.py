"""The manifest: the readable text that says what one checkpoint file, or one in-memory group, is made of.

Two lines a tensor, sorted by the UTF-8 bytes of the name, so that git's own diff is readable and git's own
three-way merge is right::

    coral manifest 1
    container safetensors
    skeleton canonical
    metadata format pt
    encoder.weight<TAB>F32<TAB>[384, 384]
    <TAB>b3:7c1f…
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter, lt
from typing import NamedTuple

from coral.errors import FormatError, VersionError
from coral.format.dtypes import BITS, byte_count
from coral.format.names import escape, escape_all, unescape
from coral.ids import ContentRef, is_content_ref

MAGIC = "coral manifest 1"
_ANY_VERSION = re.compile(r"coral manifest (\d+)")
_RECORD = (
    "(?:[^\x00-\x1f\x7f-\x9f\u2028\u2029]*+\t[A-Z0-9_]++\t\\[[0-9, ]*+\\]\n"
    "\t(?:b3l?:[0-9a-f]{64}|hex:(?:[0-9a-f]{2}){0,32}+)\n)"
)
_RECORDS = re.compile(_RECORD + "*+")
_SHAPE = re.compile(r"\[(?:(?:0|[1-9]\d{0,18})(?:, (?:0|[1-9]\d{0,18}))*)?\]", re.ASCII)
_MAX_DIMENSIONS = 64
_MAX_TENSOR_BYTES = (1 << 63) - 1
_MANY = 1_000
TEXT_LIMIT = 256 << 20
"""Most bytes of a manifest's text that anyone should read: a million tensors are 120 MB."""
SKELETON_NAME = "(the rest of the file)"
CONTAINER_NAMES = ("safetensors", "torch", "npy", "npz", "gguf", "opaque")


class TensorRecord(NamedTuple):
    """One tensor of a manifest: its name, dtype (a safetensors name), shape, and where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: ContentRef

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return byte_count(self.dtype, self.shape)


class Skeleton(NamedTuple):
    """A file's bytes that are not tensors: where they are stored, and how many they are."""

    content: ContentRef
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one file or group is made of.

    Attributes:
        container: how the tensors sit in a file, one of :data:`CONTAINER_NAMES`.
        records: the tensors, sorted by name; names are unique.
        skeleton: the rest of the file; None when it regenerates from records and metadata ("canonical").
        metadata: the container's own key-value pairs, in the container's order.
    """

    container: str
    records: tuple[TensorRecord, ...]
    skeleton: Skeleton | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    _by_name: dict[str, TensorRecord] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.container not in CONTAINER_NAMES:
            raise FormatError(f"unknown container {self.container!r} in a manifest")
        ordered = tuple(sorted(self.records, key=itemgetter(0)))
        if not _ascend([record[0] for record in ordered]):
            raise FormatError("a manifest lists a tensor twice")
        object.__setattr__(self, "records", ordered)
        object.__setattr__(self, "_by_name", None)

    def __getitem__(self, name: str) -> TensorRecord:
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    @property
    def _table(self) -> dict[str, TensorRecord]:
        # Made when asked for: most manifests are only walked.
        if self._by_name is None:
            object.__setattr__(self, "_by_name", {record.name: record for record in self.records})
        assert self._by_name is not None
        return self._by_name

    @property
    def everything(self) -> tuple[TensorRecord, ...]:
        """All that is stored: the tensors, and the skeleton as if it were one more, of a name that means nothing."""
        if self.skeleton is None:
            return self.records
        return (*self.records, TensorRecord(SKELETON_NAME, "U8", (self.skeleton.nbytes,), self.skeleton.content))

    @property
    def nbytes(self) -> int:
        """Raw bytes of all tensors; tied ones count each time."""
        return sum(record.nbytes for record in self.records)

    def to_bytes(self) -> bytes:
        """The manifest's text, UTF-8."""
        skeleton = "canonical" if self.skeleton is None else f"{self.skeleton.content} {self.skeleton.nbytes}"
        lines = [MAGIC, f"container {self.container}", f"skeleton {skeleton}"]
        lines += [f"metadata {_escape_key(key)} {escape(value)}" for key, value in self.metadata]
        shapes = {shape: _shape_text(shape) for shape in {record.shape for record in self.records}}
        names = escape_all([record.name for record in self.records])
        lines += [
            f"{name}\t{dtype}\t{shapes[shape]}\n\t{content}"
            for name, (_, dtype, shape, content) in zip(names, self.records, strict=True)
        ]
        lines.append("")
        return "\n".join(lines).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest's text.

        Raises:
            VersionError: written in a newer format.
            FormatError: anything that :meth:`to_bytes` would not have written.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise FormatError("a manifest is not UTF-8") from None
        _check_version(text.partition("\n")[0])
        if not text.endswith("\n"):
            raise FormatError("a manifest does not end with a newline")
        tab = text.find("\t")
        body = text.rfind("\n", 0, tab) + 1 if tab >= 0 else len(text)
        container, skeleton, metadata = _parse_head(text[:body].split("\n")[1:-1])
        with _collector_paused(text.count("\n", body) > _MANY):
            return cls(container, tuple(_parse_records(text[body:])), skeleton, metadata)


@contextlib.contextmanager
def _collector_paused(pause: bool) -> Iterator[None]:
    # Nothing here makes cycles, yet Python's collector would look at each new record again and again: half the time.
    if not (pause and gc.isenabled()):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_manifest(data: bytes) -> bool:
    """Whether bytes look like a manifest of any version."""
    return _ANY_VERSION.match(data[:40].decode("latin-1")) is not None


def _check_version(line: str) -> None:
    if line == MAGIC:
        return
    match = _ANY_VERSION.fullmatch(line)
    if match is None:
        raise FormatError("not a coral manifest")
    raise VersionError(f"manifest format {match[1]} is newer than this coral reads", hint="upgrade coral")


def _escape_key(key: str) -> str:
    return escape(key).replace(" ", "%20")


def _parse_head(lines: list[str]) -> tuple[str, Skeleton | None, tuple[tuple[str, str], ...]]:
    try:
        container_line, skeleton_line, *metadata_lines = lines
        (container_word, container), (skeleton_word, skeleton) = (
            container_line.split(" ", 1),
            skeleton_line.split(" ", 1),
        )
        metadata = tuple(_parse_metadata(line) for line in metadata_lines)
    except ValueError as error:
        raise FormatError(f"a manifest's head is malformed: {error}") from None
    if (container_word, skeleton_word) != ("container", "skeleton") or container not in CONTAINER_NAMES:
        raise FormatError("a manifest's head is malformed")
    return container, _parse_skeleton(skeleton), metadata


def _parse_metadata(line: str) -> tuple[str, str]:
    word, key, value = line.split(" ", 2)
    if word != "metadata":
        raise ValueError(f"unknown line {line[:80]!r}")
    return unescape(key.replace("%20", " ")), unescape(value)


def _parse_skeleton(text: str) -> Skeleton | None:
    if text == "canonical":
        return None
    content, _, length = text.partition(" ")
    if not is_content_ref(content) or not re.fullmatch(r"0|[1-9]\d{0,17}", length, re.ASCII):
        raise FormatError("a manifest's skeleton line is malformed")
    return Skeleton(ContentRef(content), int(length))


def _parse_records(text: str) -> Iterable[TensorRecord]:
    if not _RECORDS.fullmatch(text):
        match = _RECORDS.match(text)
        rest = text[match.end() if match else 0 :]
        raise FormatError(f"malformed tensor in a manifest: {rest[:80]!r}")
    # Each record is now five lines: name, dtype, shape, an empty one, content.
    lines = text.replace("\t", "\n").split("\n")
    names, dtypes, shapes, contents = lines[:-1:5], lines[1::5], lines[2::5], lines[4::5]
    if "%" in text:
        names = [unescape(name) for name in names]
    if not _ascend(names):
        raise FormatError("the tensors of a manifest are not in order")
    parsed = {(dtype, shape): _parse_shape(dtype, shape) for dtype, shape in set(zip(dtypes, shapes, strict=True))}
    sizes = map(parsed.__getitem__, zip(dtypes, shapes, strict=True))
    return map(TensorRecord._make, zip(names, dtypes, sizes, contents, strict=True))


def _ascend(names: list[str]) -> bool:
    """Whether the names are in order, none of them twice."""
    return all(map(lt, names, islice(names, 1, None)))


def _parse_shape(dtype: str, text: str) -> tuple[int, ...]:
    if dtype not in BITS:
        raise FormatError(f"unknown dtype {dtype[:80]!r} in a manifest")
    if not _SHAPE.fullmatch(text):
        raise FormatError(f"malformed shape in a manifest: {text[:80]!r}")
    shape = tuple(map(int, text[1:-1].split(", "))) if len(text) > 2 else ()
    if len(shape) > _MAX_DIMENSIONS or byte_count(dtype, shape) > _MAX_TENSOR_BYTES:
        raise FormatError(f"a tensor of absurd shape in a manifest: {text[:80]}")
    return shape


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(format(size, 'd') for size in shape)}]"
