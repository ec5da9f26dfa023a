"""How far two versions of a model are apart, tensor by tensor, in numbers: computed chunk by chunk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coral.errors import CorruptionError
from coral.format.chunking import cuts
from coral.format.dtypes import NUMPY_NAMES
from coral.format.manifest import Manifest, TensorRecord
from coral.tensors.numpy import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from coral.containers import ParsedFile
    from coral.objects import ChunkStore

Pieces = Callable[[TensorRecord], Iterator["Buffer"]]
"""Yields a tensor's bytes, cut on the chunk grid; a piece is valid until the next."""

ADDED, REMOVED, DTYPE, SHAPE, CHANGED = "added", "removed", "dtype", "shape", "changed"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model: what it is made of, and a way to its bytes."""

    manifest: Manifest
    pieces: Pieces

    @classmethod
    def stored(cls, manifest: Manifest, store: ChunkStore) -> Version:
        """A version whose tensors the store holds."""
        return cls(manifest, lambda record: store.stream([record]))

    @classmethod
    def in_file(cls, manifest: Manifest, parsed: ParsedFile) -> Version:
        """A version that is a file, which must stay open."""
        sources = {source.name: source for source in parsed.tensors}

        def pieces(record: TensorRecord) -> Iterator[Buffer]:
            for start, stop in cuts(record.dtype, record.shape):
                yield sources[record.name].read(start, stop)

        return cls(manifest, pieces)


NOTHING = Version(Manifest("safetensors", ()), lambda _: iter(()))


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two tensors of one dtype and shape are apart.

    Attributes:
        share: of the elements whose bytes differ, 0 to 1.
        l2: Euclidean norm of the difference, over the elements that are finite in both.
        largest: absolute value of the largest difference, over the same.
        cosine: of the angle between them, None when one is zero.
    """

    share: float
    l2: float
    largest: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor that differs.

    Attributes:
        kind: ``added``, ``removed``, ``dtype``, ``shape`` or ``changed``.
        old, new: its records, None where it is absent.
        distance: of a changed one, as far as it could be read and has numbers.
    """

    name: str
    kind: str
    old: TensorRecord | None
    new: TensorRecord | None
    distance: Distance | None = None

    @property
    def nbytes(self) -> int:
        """Raw bytes, of the new one unless it was removed."""
        record = self.new or self.old
        return record.nbytes if record is not None else 0


def compare(old: Version, new: Version) -> list[TensorDifference]:
    """Every tensor that differs: first those of which there is only one, or of other dtype or shape, by their size;
    then the changed ones, the largest change first.
    """
    found = [_measured(change, old, new) for change in _changes(old.manifest, new.manifest)]
    return sorted(found, key=_rank)


def _changes(old: Manifest, new: Manifest) -> Iterator[TensorDifference]:
    before = {record.name: record for record in old.records}
    after = {record.name: record for record in new.records}
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            yield TensorDifference(name, ADDED if was is None else REMOVED, was, now)
        elif was.dtype != now.dtype:
            yield TensorDifference(name, DTYPE, was, now)
        elif was.shape != now.shape:
            yield TensorDifference(name, SHAPE, was, now)
        elif was.content != now.content:
            yield TensorDifference(name, CHANGED, was, now)


def _measured(change: TensorDifference, old: Version, new: Version) -> TensorDifference:
    was, now = change.old, change.new
    if change.kind != CHANGED or was is None or now is None or now.dtype not in NUMPY_NAMES:
        return change
    try:
        with contextlib.closing(old.pieces(was)) as ones, contextlib.closing(new.pieces(now)) as others:  # type: ignore[type-var]
            distance = measure(now.dtype, zip(ones, others, strict=True))
    except CorruptionError:  # not here
        return change
    return TensorDifference(change.name, change.kind, was, now, distance)


def _rank(change: TensorDifference) -> tuple[int, float, str]:
    if change.kind != CHANGED:
        return 0, -change.nbytes, change.name
    return 1, -change.distance.l2 if change.distance is not None else math.inf, change.name


def measure(dtype: str, pieces: Iterable[tuple[Buffer, Buffer]]) -> Distance:
    """The distance of two tensors that come in pieces of equal length."""
    kind = numpy_dtype(NUMPY_NAMES[dtype])
    bits = np.dtype(f"u{kind.itemsize}")
    elements = differing = 0
    squares = old_squares = new_squares = product = largest = 0.0
    for one, other in pieces:
        before, after = (np.frombuffer(memoryview(piece), np.uint8) for piece in (one, other))
        elements += len(before) // kind.itemsize
        # Bit for bit: NaN equals NaN here, and zero does not equal minus zero.
        differing += int(np.count_nonzero(before.view(bits) != after.view(bits)))
        old, new = _numbers(before.view(kind)), _numbers(after.view(kind))
        sums = _sums(old, new)
        if not all(map(math.isfinite, sums)):
            good = np.isfinite(old) & np.isfinite(new)
            sums = _sums(old[good].astype(_widest(old)), new[good].astype(_widest(new)))
        squares, product = squares + sums[0], product + sums[1]
        old_squares, new_squares = old_squares + sums[2], new_squares + sums[3]
        largest = max(largest, sums[4])
    norms = math.sqrt(old_squares) * math.sqrt(new_squares)
    cosine = max(-1.0, min(1.0, product / norms)) if norms else None
    return Distance(differing / elements if elements else 0.0, math.sqrt(squares), largest, cosine)


def _numbers(values: NDArray[np.generic]) -> NDArray[np.inexact]:
    """Elements as numbers that products can be made of; short floats have room enough in float32."""
    if values.dtype.kind == "c" or values.dtype in (np.float32, np.float64):
        return values  # type: ignore[return-value]
    is_short_float = values.dtype.itemsize <= 2 and values.dtype.kind not in "biu"
    return values.astype(np.float32 if is_short_float else np.float64)


def _widest(values: NDArray[np.inexact]) -> type[np.inexact]:
    return np.complex128 if values.dtype.kind == "c" else np.float64


def _sums(old: NDArray[np.inexact], new: NDArray[np.inexact]) -> tuple[float, float, float, float, float]:
    """Squares of the difference, the product, squares of each, and the largest difference."""
    if not old.size:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        change = new - old
        return (
            float(np.vdot(change, change).real),
            float(np.vdot(old, new).real),
            float(np.vdot(old, old).real),
            float(np.vdot(new, new).real),
            float(np.abs(change).max()),
        )
