"""What a tensor's bytes come from, whatever holds them: a mapped file, an array, a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from coral.format.dtypes import byte_count

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TensorSource(Protocol):
    """A named tensor whose bytes can be read."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """The element type's safetensors name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop) of the tensor, C order, little-endian; not copied when that can be avoided."""
        ...


@dataclass(frozen=True, slots=True)
class BufferSource:
    """A tensor whose bytes lie in memory (or in a mapped file) as they are kept."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return byte_count(self.dtype, self.shape)

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes [start, stop), not copied."""
        return self.data[start:stop]
