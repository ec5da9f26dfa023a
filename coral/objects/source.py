"""Bytes that are stored as if they were a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BytesSource:
    """Plain bytes as a one-dimensional U8 tensor."""

    dtype = "U8"

    def __init__(self, name: str, data: Buffer) -> None:
        self.name = name
        self._data = memoryview(data).cast("B")
        self.shape = (len(self._data),)

    def read(self, start: int, stop: int) -> Buffer:
        return self._data[start:stop]
