"""What the store asks of a tensor that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TensorSource(Protocol):
    """A named tensor whose bytes can be read in ranges, so that it never has to be in memory whole."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """A safetensors dtype name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Buffer:
        """Bytes [start, stop) of the tensor in C order, little-endian."""


class BytesSource:
    """Plain bytes as a one-dimensional U8 tensor."""

    dtype = "U8"

    def __init__(self, name: str, data: Buffer) -> None:
        self.name = name
        self._data = memoryview(data).cast("B")
        self.shape = (len(self._data),)

    def read(self, start: int, stop: int) -> Buffer:
        return self._data[start:stop]
