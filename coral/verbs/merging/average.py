"""The average of two versions of a tensor, as weights of fine-tunes are merged, computed chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from coral.format.dtypes import NUMPY_NAMES
from coral.format.manifest import TensorRecord
from coral.tensors.numpy import numpy_dtype
from coral.verbs.merging.merge import Merge

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coral.objects import ChunkStore

_AVERAGED = ("F64", "F32", "F16", "BF16", "C64")
"""Dtypes whose average is a number of the same kind; of the very short ones it would say nothing."""


class _AverageSource:
    """The mean of two tensors of one dtype and shape, in the order of its reading."""

    def __init__(self, store: ChunkStore, one: TensorRecord, other: TensorRecord) -> None:
        self.name, self.dtype, self.shape = one.name, one.dtype, one.shape
        self._type = numpy_dtype(NUMPY_NAMES[one.dtype])
        self._wide = np.result_type(self._type, np.float64 if self._type.itemsize > 2 else np.float32)
        self._pieces = zip(store.stream([one]), store.stream([other]), strict=True)

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop), which is the next chunk."""
        if start == stop:
            return b""
        one, other = (np.frombuffer(piece, self._type).astype(self._wide) for piece in next(self._pieces))
        # Halved first: the sum of two large numbers may be none.
        mean = (one / 2 + other / 2).astype(self._type)
        assert mean.nbytes == stop - start
        return mean.view(np.uint8).data


def average(store: ChunkStore, merge: Merge, names: Iterable[str] | None = None) -> Merge:
    """Settle conflicts with the mean of both sides, stored durably, where both are floating point of one shape.

    Args:
        names: of the conflicts; None takes all. The others, and those that have no mean, stay.

    Raises:
        CorruptionError: a tensor cannot be read.
        StorageError: the disk refused.
    """
    sources = []
    for name in merge.conflicts if names is None else names:
        if name in merge.ours and name in merge.theirs:
            one, other = merge.ours[name], merge.theirs[name]
            if one.dtype in _AVERAGED and (one.dtype, one.shape) == (other.dtype, other.shape):
                sources.append(_AverageSource(store, one, other))
    if not sources:
        return merge
    with store.writer(keeps_young=True) as writer:
        records = writer.write_tensors(sources)
        writer.seal()
    return merge.settled_with(records)
