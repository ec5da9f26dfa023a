"""Memory that each thread keeps for itself and uses again: fresh pages cost more than filling them."""

from __future__ import annotations

import threading

import numpy as np


class Scratch(threading.local):
    """One growing buffer for each thread."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, length: int) -> memoryview:
        """This thread's first ``length`` bytes; valid until its next call."""
        if len(self._buffer) < length:
            # A new one rather than a longer one: a view that somebody still holds would forbid the resizing.
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]

    def copy(self, data: memoryview) -> memoryview:
        """A copy of some bytes in this thread's buffer; other threads run meanwhile."""
        out = self.take(len(data))
        np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(data, np.uint8))  # unlike a slice, it lets go of the GIL
        return out
