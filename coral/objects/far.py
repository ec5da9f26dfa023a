"""Chunks of a far place, read from its packs where they are: found by its indexes, in ranges, and verified.

Nothing that comes from there is believed. A listing says which packs there are, their indexes where a chunk's record
lies, and the record is read alone, checked as one of this machine's is, and decoded, its bases first; what does not
have its id is refused. What another one merged away meanwhile is looked for again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from coral.errors import NotFoundError
from coral.objects.packs import PackSet
from coral.objects.shelf import Shelf
from coral.storage.place import Found, Place

# A small tensor's record is some hundred bytes, and a request takes as long as many of them do.
_AHEAD_BYTES = 32 << 10


class FarShelf(Shelf):
    """The chunks of a place.

    Args:
        folder: the one that holds its packs.
        threads: as of any shelf; so many reads may be under way at once.
        guard: keeps others from collecting what is there, where there is a way.
    """

    def __init__(
        self,
        place: Place,
        folder: str,
        *,
        threads: int | None = None,
        guard: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        super().__init__(PackSet(_FarFolder(place, folder)), threads=threads)
        self._guard = guard

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """As of any shelf, by the guard."""
        return self._guard()


class _FarFolder:
    """A place's folder as packs are read from it. What a pack holds never changes, so its length is asked once."""

    def __init__(self, place: Place, folder: str) -> None:
        self._place = place
        self._start = f"{folder}/"
        self._folder = folder
        self._listed: dict[str, Found] = {}

    def names(self) -> list[str]:
        found = {one.key.removeprefix(self._start): one for one in self._place.listing(self._folder)}
        self._listed = found
        return sorted(found)

    def map(self, key: str) -> bytes | memoryview:
        return self._place.read(self._start + key)

    def open(self, key: str) -> _FarFile:
        return _FarFile(self._place, self._start + key)

    def size(self, key: str) -> int:
        return self._find(key).nbytes

    def modified(self, key: str) -> float:
        return self._find(key).modified

    def _find(self, key: str) -> Found:
        found = self._listed.get(key)
        if found is None:
            raise NotFoundError(f"there is no {self._start}{key}")
        return found


class _FarFile:
    """An object that is read in ranges. After a short one more is read at once: the next is likely beside it."""

    def __init__(self, place: Place, key: str) -> None:
        self._place = place
        self._key = key
        self._ahead = threading.local()  # each thread goes its own way

    def read_into(self, offset: int, out: memoryview) -> int:
        data: bytes | memoryview
        if len(out) < _AHEAD_BYTES:
            data = self._read_short(offset, len(out))
        else:
            data = self._place.read(self._key, offset, offset + len(out))
        out[: len(data)] = data
        return len(data)

    def _read_short(self, offset: int, length: int) -> bytes | memoryview:
        start, data = getattr(self._ahead, "last", (0, b""))
        if not start <= offset <= start + len(data) - length:
            start, data = offset, self._place.read(self._key, offset, offset + _AHEAD_BYTES)
            self._ahead.last = start, data
        found: bytes | memoryview = data[offset - start : offset - start + length]
        return found
