"""What a tensor's bytes come from, as all who take tensors in see it."""

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
        """The element type's safetensors name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop) of the tensor, C order, little-endian; not copied when that can be avoided."""
