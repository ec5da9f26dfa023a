"""The journal's line format: ``<xxh3-64 in 16 hex digits> <JSON object>``, one line an event.

A line counts when its checksum is right, and is skipped when not; so a journal cut at any byte reads as the
events before the cut. A line break stands *before* each line, so that one torn by a full disk costs itself only, and
one *after* it, so that the last one is known to be whole: see :func:`damaged`.

What an event says stands in :mod:`coral.experiments.events`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import BinaryIO

from coral.experiments.events import Event
from coral.experiments.scalars import Json
from coral.ids import checksum

_LINE = re.compile(rb"^([0-9a-f]{16}) (\{.*\})$\n?", re.MULTILINE)
# Events die young when they come in blocks; a million dicts at once would have the collector walk them all.
_BLOCK_BYTES = 1024 * 1024
_MAX_LINE_BYTES = 64 * 1024 * 1024
quote = encode_basestring_ascii
"""A string as JSON writes it, quotes included."""


def encode(event: Mapping[str, Json]) -> bytes:
    """An event's line. Raises ValueError for NaN: values go through ``scalars.tagged`` first."""
    return line(json.dumps(event, separators=(",", ":"), allow_nan=False).encode())


def line(body: bytes) -> bytes:
    """The line of an event that is JSON already."""
    return b"\n%016x %b\n" % (checksum(body), body)


def decode(data: bytes) -> tuple[list[Event], int]:
    """The events of the sound lines of ``data``, and where the last sound line ends."""
    sound = _sound(data)
    if not sound:
        return [], 0
    bodies = [match[2] for match in sound]
    try:
        events = json.loads(b"[%b]" % b",".join(bodies))
    except (ValueError, RecursionError):
        events = list(filter(None, map(_parse, bodies)))
    return [event for event in events if isinstance(event, dict)], sound[-1].end()


def _sound(data: bytes) -> list[re.Match[bytes]]:
    return [match for match in _LINE.finditer(data) if int(match[1], 16) == checksum(match[2])]


def damaged(data: bytes) -> int:
    """How many lines were written whole and are no longer what was written.

    Not among them: a last line that a crash cut short, and one that a full disk did and that stands whole after it.
    """
    if sum(match.end() - match.start() + 1 for match in _sound(data)) == len(data):
        return 0
    *lines, tail = data.split(b"\n")
    whole = [line for line in lines if line]
    bad = [at for at, line in enumerate(whole) if not _sound(line)]
    after = [*whole[1:], tail]
    # A cut leaves no more of a line than there was: one that is whole but for its line break had that flipped.
    last = not _sound(tail) and bool(_sound(tail[:-1]))
    return last + sum(not after[at].startswith(whole[at]) for at in bad)


def _parse(body: bytes) -> Event | None:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):  # right checksum, hostile content
        return None
    return event if isinstance(event, dict) else None


class JournalReader:
    """Follows a growing journal: each :meth:`read` gives the events appended since the one before.

    Attributes:
        damaged: how many lines of what was read are damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._damaged_before = 0
        self.damaged = 0

    def read(self) -> Iterator[list[Event]]:
        """The new events, some thousands at a time.

        Raises FileNotFoundError when the journal is gone: its run has ended.
        """
        size = _BLOCK_BYTES
        with _open(self._path) as file:
            while data := _read_at(file, self._offset, size):
                events, used = decode(data)
                if used == 0 and size >= _MAX_LINE_BYTES:
                    used = len(data)  # no line is as long as that
                self._count(data, used)
                self._offset += used
                if events:
                    yield events
                elif used == 0:
                    if len(data) < size:
                        return
                    size *= 2  # a line longer than a block

    def _count(self, data: bytes, used: int) -> None:
        self._damaged_before += damaged(data[:used])
        self.damaged = self._damaged_before + (damaged(data[used:]) if used < len(data) else 0)


def _open(path: Path) -> BinaryIO:
    """Open a journal. Raises FileNotFoundError; OSError for a link, and for a pipe, which is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _no_follow(path))
    file = os.fdopen(fd, "rb")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def _no_follow(path: Path) -> int:
    # The kernel's own link to an open file is followed.
    return 0 if path.is_relative_to("/proc/self/fd") else os.O_NOFOLLOW


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
