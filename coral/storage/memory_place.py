"""A place in this process's memory: the smallest that keeps every promise but that of lasting."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from coral import forks
from coral.errors import AlreadyExistsError, ConflictError, NotFoundError
from coral.storage.place import Found, Stamp, check_key

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Kept(NamedTuple):
    data: bytes
    found: Found


class MemoryPlace:
    """Bytes under keys for as long as the object lives; what it promises to keep, it keeps until then."""

    compares = True

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._written = 0
        self._lock = forks.lock()

    def listing(self, folder: str = "") -> Iterable[Found]:
        """As of any place."""
        start = f"{check_key(folder)}/" if folder else ""
        with self._lock:
            return [kept.found for key, kept in self._kept.items() if key.startswith(start)]

    def look(self, key: str) -> Found:
        """As of any place."""
        return self._get(key).found

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """As of any place."""
        return self._get(key).data[start:stop]

    def create(self, key: str, data: Buffer) -> Stamp:
        """As of any place."""
        with self._lock:
            if check_key(key) in self._kept:
                raise AlreadyExistsError(f"{key} exists already")
            return self._put(key, data)

    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        """As of any place."""
        with self._lock:
            kept = self._kept.get(check_key(key))
            if kept is None or kept.found.stamp != expected:
                raise ConflictError(f"{key} has changed")
            return self._put(key, data)

    def remove(self, key: str) -> None:
        """As of any place."""
        with self._lock:
            self._kept.pop(check_key(key), None)

    def _get(self, key: str) -> _Kept:
        kept = self._kept.get(check_key(key))
        if kept is None:
            raise NotFoundError(f"there is no {key}")
        return kept

    def _put(self, key: str, data: Buffer) -> Stamp:
        self._written += 1
        stamp, copy = Stamp(str(self._written)), bytes(data)
        self._kept[key] = _Kept(copy, Found(key, len(copy), stamp, time.time()))
        return stamp
