r"""The log of operations: every move of a ref, who made it, and where the ref was before; so that it can be undone.

A line is ``checksum json\n``, the checksum of the JSON in 16 hex digits. Lines are appended, in one write each, when a
ref has moved, and are not synced: the log is advisory. A power cut may take its last lines, and a kill may come before
one is written; what was moved then is moved all the same, and is in the reflogs. A line that is torn or damaged is
passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from coral.errors import CoralError, NotFoundError
from coral.ids import checksum
from coral.storage.contents import OPERATIONS
from coral.storage.folder import Folder

_DIGITS = 16
_LONGEST_COMMAND = 200
_ID = re.compile(rb"\b[0-9a-f]{40}\b", re.ASCII)


class Move(NamedTuple):
    """One ref that moved.

    Attributes:
        ref: its full name, or ``HEAD``.
        old, new: the object's hash, or ``ref: <name>``; None where there was no such ref.
    """

    ref: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Operation:
    """What one command did.

    Attributes:
        id: of the operation.
        time: when.
        who: user and machine.
        command: what was done, for people.
        moves: of refs, in their order.
        renames: the moves are a branch's other name, which its reflog has followed.
        files: the project's files followed HEAD.
        trash: what garbage collection put into the trash, by its name there.
        undoes: the operations that this one took back.
    """

    id: str
    time: datetime
    who: str
    command: str
    moves: tuple[Move, ...] = ()
    renames: bool = False
    files: bool = False
    trash: str | None = None
    undoes: tuple[str, ...] = ()


@dataclass
class _Current:
    """The operation that a thread is in the middle of."""

    log: OperationLog
    id: str
    command: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)


_current: ContextVar[_Current | None] = ContextVar("operation", default=None)


class OperationLog:
    """The log of one repository.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def operation(self, command: str | None, **extra: object) -> Iterator[None]:
        """All moves inside, by this thread and those that work for it, are one operation; the outermost counts.

        Args:
            command: what is done, for people; None takes each move's own reason.
            extra: fields of :class:`Operation`.
        """
        if self._under_way() is not None:
            yield
            return
        before = _current.set(_Current(self, _new_id(), command, extra))
        try:
            yield
        finally:
            _current.reset(before)

    def _under_way(self) -> _Current | None:
        current = _current.get()
        return current if current is not None and current.log is self else None

    def append(self, reason: str, moves: Sequence[Move], *, renames: bool = False, **extra: object) -> None:
        """Note that refs have moved. What goes wrong is passed over."""
        current = self._under_way()
        line = {
            "id": current.id if current is not None else _new_id(),
            "time": int(time.time() * 1000),
            "who": _who(),
            "command": ((current.command if current is not None else None) or reason)[:_LONGEST_COMMAND],
            "moves": moves,
            **({"renames": True} if renames else {}),
            **(current.extra if current is not None else {}),
            **extra,
        }
        with contextlib.suppress(CoralError):
            self._write(line)

    def _write(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode()
        whole = b"%016x %s\n" % (checksum(text), text)
        file = self._folder.append(OPERATIONS)
        try:
            file.write(whole if self._is_whole(os.fstat(file.fileno()).st_size) else b"\n" + whole)
        finally:
            file.close()

    def _is_whole(self, size: int) -> bool:
        """Whether the log ends with the end of a line."""
        if not size:
            return True
        last = memoryview(bytearray(1))
        file = self._folder.open(OPERATIONS)
        try:
            file.read_into(size - 1, last)
        finally:
            file.close()
        return last[0] == 0x0A

    def operations(self) -> list[Operation]:
        """Everything that was noted, the newest first; damaged lines are left out."""
        found: dict[str, Operation] = {}
        for line in self._lines():
            one = _parse(line)
            if one is not None:
                # The moves of one operation are in several lines.
                before = found.get(one.id)
                found[one.id] = one if before is None else _joined(before, one)
        return list(reversed(found.values()))

    def named_since(self, when: float) -> set[str]:
        """The objects that operations since then name, before and after, and those in lines that are damaged."""
        named: set[str] = set()
        for line in self._lines():
            one = _parse(line)
            if one is None or one.time.timestamp() >= when:
                named.update(found.decode() for found in _ID.findall(line))
        return named

    def _lines(self) -> list[bytes]:
        try:
            return self._folder.read(OPERATIONS).splitlines()
        except NotFoundError:
            return []


def _parse(line: bytes) -> Operation | None:
    head, _, text = line.partition(b" ")
    if len(head) != _DIGITS or head != b"%016x" % checksum(text):
        return None
    try:
        data = json.loads(text)
        return Operation(
            str(data["id"]),
            datetime.fromtimestamp(data["time"] / 1000, UTC),
            str(data["who"]),
            str(data["command"]),
            tuple(Move(*move) for move in data["moves"]),
            bool(data.get("renames")),
            bool(data.get("files")),
            data.get("trash"),
            tuple(data.get("undoes", ())),
        )
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None


def _joined(one: Operation, other: Operation) -> Operation:
    return Operation(
        one.id,
        one.time,
        one.who,
        one.command,
        one.moves + other.moves,
        one.renames or other.renames,
        one.files or other.files,
        one.trash or other.trash,
        one.undoes,
    )


def _new_id() -> str:
    return os.urandom(4).hex()


@cache
def _who() -> str:
    user = os.getuid()
    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(user).pw_name}@{os.uname().nodename}"
    return f"{user}@{os.uname().nodename}"
