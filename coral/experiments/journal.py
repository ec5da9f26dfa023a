"""The journal's line format: ``<xxh3-64 in 16 hex digits> <JSON object>``, one line an event.

A line counts when its checksum is right, and is skipped when not; so a journal cut at any byte reads as the
events before the cut. The line break stands *before* each line: a line torn by a full disk costs itself only.

Events have ``e`` (kind) and ``t`` (milliseconds since 1970, UTC):

=========  ==========================================================================================
``m``      metrics: ``v`` name to value, ``s`` step (absent: none), ``d`` metadata (absent: none)
``p``      parameters: ``v`` laid over those before
``set``    ``v`` with any of add_tags, remove_tags, labels (laid over; null removes one), objective (laid over), notes
``a``      an artifact: ``v``
``c``      a commit: ``hash``, ``step``, ``metrics``
``drop``   ``n`` points that a full disk made coral drop
``end``    ``status``, ``failure``, ``commit``
=========  ==========================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import BinaryIO

from coral.experiments.scalars import Json
from coral.ids import checksum

Event = dict[str, Json]

_LINE = re.compile(rb"^([0-9a-f]{16}) (\{.*\})$", re.MULTILINE)
# Events die young when they come in blocks; a million dicts at once would have the collector walk them all.
_BLOCK_BYTES = 1024 * 1024
quote = encode_basestring_ascii
"""A string as JSON writes it, quotes included."""


def encode(event: Mapping[str, Json]) -> bytes:
    """An event's line. Raises ValueError for NaN: values go through ``scalars.tagged`` first."""
    return line(json.dumps(event, separators=(",", ":"), allow_nan=False).encode())


def line(body: bytes) -> bytes:
    """The line of an event that is JSON already."""
    return b"\n%016x %b" % (checksum(body), body)


def decode(data: bytes) -> tuple[list[Event], int]:
    """The events of the sound lines of ``data``, and where the last sound line ends."""
    sound = [match for match in _LINE.finditer(data) if int(match[1], 16) == checksum(match[2])]
    if not sound:
        return [], 0
    bodies = [match[2] for match in sound]
    try:
        events = json.loads(b"[%b]" % b",".join(bodies))
    except (ValueError, RecursionError):
        events = list(filter(None, map(_parse, bodies)))
    return [event for event in events if isinstance(event, dict)], sound[-1].end()


def _parse(body: bytes) -> Event | None:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):  # right checksum, hostile content
        return None
    return event if isinstance(event, dict) else None


class JournalReader:
    """Follows a growing journal: each :meth:`read` gives the events appended since the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[list[Event]]:
        """The new events, some thousands at a time.

        Raises FileNotFoundError when the journal is gone: its run has ended.
        """
        size = _BLOCK_BYTES
        with open(self._path, "rb") as file:
            while data := _read_at(file, self._offset, size):
                events, used = decode(data)
                self._offset += used
                if events:
                    yield events
                elif used == 0:
                    if len(data) < size:
                        return
                    size *= 2  # a line longer than a block


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
