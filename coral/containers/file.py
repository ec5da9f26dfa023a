"""What every container shares: a file taken apart, the views of its tensors, and writing its spans back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from coral.containers.source import FileRange, ReadableFile
from coral.errors import CorruptionError, FormatError
from coral.format.manifest import Manifest, TensorRecord
from coral.format.tensors import TensorSource

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")

ReadRecords = Callable[[Sequence[TensorRecord]], "Iterator[Buffer]"]
"""Yields the bytes of records, one after another; a piece is part of one record, and valid until the next."""


class Output(Protocol):
    """Where a file is written back to: bytes appended, and bytes already written overwritten."""

    def write(self, data: Buffer) -> None: ...

    def patch(self, offset: int, data: bytes) -> None: ...


class TensorView(NamedTuple):
    """A tensor of a file, as a view of one of its records.

    Attributes:
        name: the tensor's own name.
        record_name: the record that holds its bytes.
        dtype: safetensors name; the record's own.
        shape: elements along each axis.
        stride: elements between neighbours along each axis; None when the tensor is the whole record.
        offset: elements of the record before the first one.
    """

    name: str
    record_name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    offset: int = 0


class NotThisError(Exception):
    """The file is not of the kind that was looked for; the message, which continues "kept whole: ", says why.

    Args:
        hint: what to do about it; None where saving it again is all.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CutShortError(NotThisError):
    """The file is of that kind, and ends before it should."""


class Traits(NamedTuple):
    """What holds for every file of a container.

    Attributes:
        skeleton_limit: most bytes of a skeleton, so that a manifest that says more is refused before it is read.
        flows: a file is read from front to back as it comes, and written so too, no byte of it overwritten.
    """

    skeleton_limit: int
    flows: bool


class Parsed(NamedTuple):
    """What a container's parser found in a file's bytes, and why it is kept whole where its name promises more.

    Attributes:
        skeleton: the bytes that are not tensors, or where they lie; None when they regenerate ("canonical").
    """

    container: str
    skeleton: bytes | Sequence[FileRange] | None
    metadata: tuple[tuple[str, str], ...]
    tensors: Sequence[TensorSource]
    reason: str = ""

    def read_skeleton(self) -> bytes | None:
        """The skeleton's bytes. Of a stream they are read after the tensors, or those would be remembered."""
        if self.skeleton is None or isinstance(self.skeleton, bytes):
            return self.skeleton
        return b"".join(part.read(0, len(part)) for part in self.skeleton)


def plain_views(manifest: Manifest) -> Mapping[str, TensorView]:
    """Each record as a tensor of its own."""
    return {name: TensorView(name, name, dtype, shape) for name, dtype, shape, _ in manifest.records}


def needed(skeleton: bytes | None) -> bytes:
    """The skeleton of a container that never regenerates. Raises FormatError when there is none."""
    if skeleton is None:
        raise FormatError("a manifest without the skeleton that its container needs")
    return skeleton


def only_record(manifest: Manifest, what: str) -> TensorRecord:
    """The record of a container that has one. Raises FormatError when there are others."""
    if len(manifest.records) != 1:
        raise FormatError(f"{what} manifest lists {len(manifest.records)} tensors instead of one")
    return manifest.records[0]


def numbered(wanted: Iterable[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
    """Things by names that are all different: who comes later and wants a name that is given gets ``NAME~2``."""
    names: set[str] = set()
    numbers: dict[str, int] = {}
    for base, thing in wanted:
        name = base
        while name in names:
            # Counted on from the last of the same name: a million of them must not take a million squared steps.
            numbers[base] = numbers.get(base, 1) + 1
            name = f"{base}~{numbers[base]}"
        names.add(name)
        yield name, thing


class ParsedFile:
    """A file taken apart into tensors and the rest; a context manager that keeps the file open.

    Attributes:
        container: one of :data:`coral.format.manifest.CONTAINER_NAMES`.
        metadata: the container's own key-value pairs, in its order.
        tensors: in the file's order; readable while the file is open, and what was read stays valid.
        reason: why it is kept whole, or what is wrong with it, though its name promises tensors; else empty.
    """

    def __init__(self, file: ReadableFile, parse: Callable[[FileRange], Parsed]) -> None:
        self._file = file
        try:
            parsed = parse(FileRange(self._file, 0, self._file.size))
        except BaseException:
            self._file.close()
            raise
        self._parsed = parsed
        self.container = parsed.container
        self.metadata = parsed.metadata
        self.tensors = parsed.tensors
        self.reason = parsed.reason

    @property
    def skeleton(self) -> bytes | None:
        """The bytes that are not tensors; None when they regenerate ("canonical"). To be read after the tensors."""
        return self._parsed.read_skeleton()

    def check_unchanged(self) -> None:
        """Raise ConflictError when the file changed since it was opened, as far as its size and times tell."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Let go of the file."""
        self.tensors = ()
        self._file.close()

    def __enter__(self) -> ParsedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_record(record: TensorRecord, pieces: Iterator[Buffer], write: Callable[[Buffer], None]) -> None:
    """Write all bytes of a record, which are the next of ``pieces``, and check that they are as many as its shape says.

    Raises:
        CorruptionError: more or fewer bytes came.
    """
    done = 0
    while done < record.nbytes:
        piece = next(pieces, b"")
        length = memoryview(piece).nbytes
        done += length
        if not length or done > record.nbytes:
            raise CorruptionError(f"tensor {record.name!r} should have {record.nbytes} bytes, {done} came")
        write(piece)
