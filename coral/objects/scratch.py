"""Memory that each thread keeps for itself and uses again: fresh pages cost more than filling them."""

from __future__ import annotations

import threading


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
