"""The average of two versions of a tensor, as weights of fine-tunes are merged, computed chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coral.format.dtypes import NUMPY_NAMES
from coral.tensors.numpy import numpy_dtype

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coral.format.manifest import TensorRecord
    from coral.format.tensors import TensorSource
    from coral.verbs.merging.merge import Read, Versions

_AVERAGED = ("F64", "F32", "F16", "BF16", "C64")
"""Dtypes whose average is a number of the same kind; of the very short ones it would say nothing."""


class Average:
    """The mean of both versions, where both are floating point of one shape."""

    name = "average"
    help = "Take the mean of both versions."
    why_not = "there is no mean of these"
    frame = None

    def settle(self, versions: Versions, read: Read) -> TensorSource | None:
        """The mean, or None where there is none."""
        one, other = versions.ours, versions.theirs
        if one is None or other is None or one.dtype not in _AVERAGED or one[1:3] != other[1:3]:
            return None
        return _AverageSource(one, other, read)


class _AverageSource:
    """The mean of two tensors of one dtype and shape, in the order of its reading."""

    def __init__(self, one: TensorRecord, other: TensorRecord, read: Read) -> None:
        import numpy as np

        self.name, self.dtype, self.shape = one.name, one.dtype, one.shape
        self._type = numpy_dtype(NUMPY_NAMES[one.dtype])
        self._wide = np.result_type(self._type, np.float64 if self._type.itemsize > 2 else np.float32)
        self._pieces = zip(read(one), read(other), strict=True)

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop), which is the next chunk."""
        import numpy as np

        if start == stop:
            return b""
        one, other = (np.frombuffer(piece, self._type).astype(self._wide) for piece in next(self._pieces))
        # Halved first: the sum of two large numbers may be none.
        mean = (one / 2 + other / 2).astype(self._type)
        assert mean.nbytes == stop - start
        return mean.view(np.uint8).data
