"""The indexes of git's packs, looked at before libgit2 follows them: an offset beyond the pack ends the process."""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator

from coral.errors import CorruptionError

_MAGIC = b"\xfftOc\0\0\0\2"
_FAN_OUT = 4 * 256
_NAME, _CRC, _TRAILER = 20, 4, 20
_FAR = 1 << 31
"""An offset from here on is the number of a longer one, in the table behind."""
_BLOCK = 1 << 20


class Indexes:
    """The indexes in the folder of a repository's packs; each is looked at once, as it is and when it is another."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen = 0
        self._sound: set[tuple[str, int, int, int]] = set()

    def check(self) -> None:
        """Raise CorruptionError for an index that leads out of its pack; it costs a call of stat when none came."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed == self._seen:
                return
            found = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".idx")]
        except FileNotFoundError:
            return
        for entry in found:
            try:
                status = entry.stat()
                key = entry.name, status.st_ino, status.st_size, status.st_mtime_ns
                if key not in self._sound and _leads_out(entry.path, status.st_size):
                    raise CorruptionError(f"{entry.path} leads out of its pack", hint="run coral fsck")
            except FileNotFoundError:  # consolidated in this moment
                continue
            self._sound.add(key)
        self._seen = changed


def _leads_out(path: str, size: int) -> bool:
    """Whether an offset leads out of the pack beside; what else an index may have wrong libgit2 sees itself."""
    end = os.stat(f"{path.removesuffix('.idx')}.pack").st_size - _TRAILER
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC) + _FAN_OUT)
        has_magic = head.startswith(_MAGIC)
        fan_out = head[len(_MAGIC) :] if has_magic else head[:_FAN_OUT]
        if len(fan_out) < _FAN_OUT:
            return False
        (count,) = struct.unpack(">I", fan_out[-4:])
        if not count or count * (_NAME + _CRC + (4 if has_magic else 0)) > size:
            return False
        if not has_magic:
            return any(max(offsets[::6]) >= end for offsets in _numbers(file.fileno(), _FAN_OUT, 6 * count))
        start = len(head) + count * (_NAME + _CRC)
        far = (size - 2 * _TRAILER - start - 4 * count) // 8
        blocks = _numbers(file.fileno(), start, count)
        return any(_lead_out(file.fileno(), offsets, end, start + 4 * count, far) for offsets in blocks)


def _lead_out(fd: int, offsets: array[int], end: int, behind: int, far: int) -> bool:
    if max(offsets) < min(end, _FAR):
        return False
    numbers = [offset - _FAR for offset in offsets if offset >= _FAR]
    if any(number >= far for number in numbers) or any(end <= offset < _FAR for offset in offsets):
        return True
    return any(int.from_bytes(os.pread(fd, 8, behind + 8 * number)) >= end for number in numbers)


def _numbers(fd: int, start: int, count: int) -> Iterator[array[int]]:
    """So many numbers of four bytes, from a place of a file, a block at a time; whole sixes in each."""
    step = _BLOCK // 24 * 24
    for at in range(0, 4 * count, step):
        found = array("I", os.pread(fd, min(step, 4 * count - at), start + at))
        if sys.byteorder == "little":
            found.byteswap()
        yield found
