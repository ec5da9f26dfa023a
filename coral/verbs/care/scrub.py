"""Reading a part of all bytes, another one each time, so that all of them are read once in a while.

Chunks are taken in the order of their ids, which are hashes: a tenth of the ids is a tenth of the chunks. Where it
stopped is kept in a small file, every few seconds' worth of reading, so that one that is interrupted goes on there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from coral.errors import CoralError, NotFoundError, UsageError
from coral.storage.contents import CACHE

if TYPE_CHECKING:
    from coral.ids import ChunkId
    from coral.storage.folder import Folder

_FILE = f"{CACHE}/scrub.json"
_ALL = 1 << 64
_TURNS = 16


class Scrub:
    """A share of all ids, from where the last one stopped.

    Args:
        folder: ``.coral``.
        share: more than 0, at most 1.
    """

    def __init__(self, folder: Folder, share: float) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"{share:g} is no share of all data", hint="more than 0, at most 1")
        self._folder = folder
        self._start = self._stopped_at()
        self._length = max(1, round(share * _ALL))

    def _stopped_at(self) -> int:
        try:
            place = int(json.loads(self._folder.read(_FILE))["next"], 16)
        except (NotFoundError, ValueError, KeyError, TypeError):
            return 0
        return place % _ALL

    def _place(self, chunk: ChunkId) -> int:
        return (int.from_bytes(chunk[:8], "big") - self._start) % _ALL

    def __contains__(self, chunk: ChunkId) -> bool:
        return self._place(chunk) < self._length

    def turns(self, chunks: list[ChunkId]) -> Iterator[list[ChunkId]]:
        """Chunks of this share in groups; once the next one is asked for, a group counts as read."""
        groups: list[list[ChunkId]] = [[] for _ in range(_TURNS)]
        for chunk in chunks:
            groups[self._place(chunk) * _TURNS // self._length].append(chunk)
        for turn, group in enumerate(groups, start=1):
            yield group
            place = (self._start + self._length * turn // _TURNS) % _ALL
            with contextlib.suppress(CoralError):  # where it is read-only, the next begins where this one did
                self._folder.write(_FILE, json.dumps({"next": f"{place:016x}"}).encode())
