"""What a power cut may leave of a folder, given all that was written to it in order.

The disk that is modelled promises what POSIX and the common file systems of Linux do, and no more:

* bytes are there for sure once their file was fsynced; until then each sector (512 bytes) or page may be as it was at
  any moment since, independently of the others, and so may the file's length;
* a name that came or went is so for sure once its folder was fsynced; until then each such change may be there or
  not, independently of the others, and of the bytes. A file that was fsynced and whose name was not is nameless;
* a rename happens whole or not at all; from one folder to another, it lasts once the new folder was fsynced, and until
  the old one was, the old name may be back.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from coral.testing.trace import CHANGES, Operation

SECTOR, PAGE = 512, 4096
_VERSIONS = 6
_HOUR = 3600

Loss = Literal["nothing", "everything", "data", "contents", "names", "some"]
"""What of all that was not synced is lost: ``contents`` keeps the lengths, ``some`` is drawn by chance."""
LOSSES: list[Loss] = ["nothing", "everything", "data", "contents", "names"]
_SOME: list[Loss] = ["some"]


@dataclass(eq=False)
class _File:
    """A file's bytes: those that are safe, and the calls since."""

    safe: bytes = b""
    since: list[Operation] = field(default_factory=list)

    def now(self, calls: int | None = None) -> bytes:
        """The bytes after so many of the calls that are not safe; None is all of them."""
        data = bytearray(self.safe)
        for call in self.since[:calls]:
            if call.kind == "truncate":
                data = data[: call.offset] + bytes(max(0, call.offset - len(data)))
            else:
                data += bytes(max(0, call.offset - len(data)))
                data[call.offset : call.offset + len(call.data)] = call.data
        return bytes(data)


_FOLDER = _File()
_Change = dict[str, _File | None]
"""Names that came or went together; None is a name that went."""


class State(NamedTuple):
    """One thing that a power cut may leave.

    Attributes:
        cut: how many operations had been made.
        loss: what was lost.
        files: path to bytes.
        folders: paths.
        marks: what the program had been told, or had said, before.
    """

    cut: int
    loss: Loss
    files: dict[str, bytes]
    folders: frozenset[str]
    marks: tuple[bytes, ...]


class Disk:
    """A folder and what was done to it so far.

    Args:
        root: the folder, as the operations call it.
        files: what it held in the beginning, safely; path below it to bytes.
        folders: the folders below it.
    """

    def __init__(self, root: Path, files: dict[str, bytes], folders: Iterable[str]) -> None:
        self._root = str(root)
        self._safe: dict[str, _File] = {path: _File(data) for path, data in files.items()}
        self._safe.update(dict.fromkeys(folders, _FOLDER))
        self._now = dict(self._safe)
        self._changes: list[_Change] = []
        self._marks: list[bytes] = []
        self._made = 0

    def apply(self, operation: Operation) -> bool:
        """Do one operation; returns whether it changed what a power cut may leave."""
        self._made += 1
        if operation.kind == "mark":
            self._marks.append(operation.data)
            return False
        if operation.kind not in CHANGES:
            return False
        path, target = self._inside(operation.path), self._inside(operation.target)
        if operation.kind == "sync":
            return self._sync(path)
        if operation.kind in ("write", "truncate"):
            file = self._now.get(path)
            if file is not None:  # else it has no name any more
                file.since.append(operation)
            return file is not None
        self._change(self._names(operation, path, target))
        return True

    def _inside(self, path: str) -> str:
        return path[len(self._root) + 1 :].rstrip("/")

    def _names(self, operation: Operation, path: str, target: str) -> _Change:
        if operation.kind == "rename":
            assert self._now[path] is not _FOLDER, "the rename of a folder is not modelled"
            return {path: None, target: self._now[path]}
        if operation.kind == "link":
            return {target: self._now[path]}
        return {path: {"create": _File(), "mkdir": _FOLDER}.get(operation.kind)}

    def _change(self, change: _Change) -> None:
        self._changes.append(change)
        _lay(self._now, change)

    def _sync(self, path: str) -> bool:
        file = self._now.get(path) if path else _FOLDER
        if file is not None and file is not _FOLDER:
            file.safe, file.since = file.now(), []
            return True
        kept: list[_Change] = []
        for change in self._changes:
            here = {name: file for name, file in change.items() if _folder_of(name) == path}
            there = {name: file for name, file in change.items() if _folder_of(name) != path}
            if any(file is not None for file in there.values()):
                kept.append(change)  # the old folder of a rename: it lasts with the new one
            elif here:
                _lay(self._safe, here)
                if there:
                    kept.append(there)
            else:
                kept.append(change)
        was, self._changes = self._changes, kept
        return len(was) != len(kept)

    # -- what may be left

    def left(self, loss: Loss, chance: random.Random) -> State:
        """What a power cut leaves now."""
        names = dict(self._safe)
        drop = {"everything": 1.0, "names": 1.0, "some": chance.choice((0.2, 0.5, 0.8))}.get(loss, 0.0)
        for change in self._changes:
            if chance.random() >= drop:
                _lay(names, change)
        folders = frozenset(path for path, file in names.items() if file is _FOLDER and _is_reachable(path, names))
        kept: dict[int, bytes] = {}
        files = {}
        for path, file in sorted(names.items(), key=lambda item: item[0]):
            if file is not None and file is not _FOLDER and _is_reachable(path, names):
                if id(file) not in kept:
                    kept[id(file)] = _bytes_left(file, loss, chance)
                files[path] = kept[id(file)]
        return State(self._made, loss, files, folders, tuple(self._marks))


def _lay(names: dict[str, _File], change: _Change) -> None:
    for name, file in change.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _is_reachable(path: str, names: dict[str, _File]) -> bool:
    folder = _folder_of(path)
    return not folder or (names.get(folder) is _FOLDER and _is_reachable(folder, names))


def _bytes_left(file: _File, loss: Loss, chance: random.Random) -> bytes:
    if not file.since or loss in ("nothing", "names"):
        return file.now()
    if loss in ("everything", "data"):
        return file.safe
    if loss == "contents":
        size = len(file.now())
        return file.safe[:size] + bytes(max(0, size - len(file.safe)))
    return _torn(file, chance)


def _torn(file: _File, chance: random.Random) -> bytes:
    """Each sector as it was at some moment since the file was safe."""
    last = len(file.since)
    moments = {0, last, *(chance.randint(0, last) for _ in range(_VERSIONS))}
    versions = [file.now(calls) for calls in moments]
    size, unit = len(chance.choice(versions)), chance.choice((SECTOR, PAGE))
    out = bytearray(size)
    for start in range(0, size, unit):
        piece = chance.choice(versions)[start : min(start + unit, size)]
        out[start : start + len(piece)] = piece
    return bytes(out)


def states(
    root: Path,
    before: tuple[dict[str, bytes], Iterable[str]],
    operations: Sequence[Operation],
    *,
    limit: int,
    seed: int,
) -> list[State]:
    """Different states that a power cut may leave, at most so many: each prefix with each of LOSSES, and as many where
    chance says what is lost; in no order, so that what is wrong shows early.

    Args:
        root: the folder, as the operations call it.
        before: what :func:`scan` said of the folder in the beginning.
        seed: what is drawn by chance depends on it alone.
    """
    chance = random.Random(seed)
    disk, found = Disk(root, *before), dict[object, State]()
    losses = LOSSES + _SOME * max(2, 3 * limit // max(1, len(operations)))
    for operation in operations:
        if disk.apply(operation) or operation.kind == "mark":
            for loss in losses:
                state = disk.left(loss, chance)
                # Of moments that leave the same the last: more had been promised by then.
                key = frozenset(state.files.items()), state.folders
                first = found[key].loss if key in found else loss
                found[key] = state._replace(loss=first)
    by_rule = [state for state in found.values() if state.loss != "some"]
    by_chance = [state for state in found.values() if state.loss == "some"]
    ruled = _draw(by_rule, max(limit // 2, limit - len(by_chance)), chance)
    chosen = ruled + _draw(by_chance, limit - len(ruled), chance)
    chance.shuffle(chosen)
    return chosen


def _draw(found: list[State], limit: int, chance: random.Random) -> list[State]:
    if len(found) <= limit:
        return found
    return [found[number] for number in sorted(chance.sample(range(len(found)), max(0, limit)))]


def scan(root: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of a folder with their bytes, and the folders, by their paths below it."""
    files: dict[str, bytes] = {}
    folders: list[str] = []
    for folder, names, leaves in os.walk(root):
        here = Path(folder)
        folders += [(here / name).relative_to(root).as_posix() for name in names]
        files |= {(here / name).relative_to(root).as_posix(): (here / name).read_bytes() for name in leaves}
    return files, folders


def materialise(state: State, folder: Path) -> None:
    """Write a state to a folder that is not there yet; an hour passes until somebody looks at it."""
    folder.mkdir(parents=True)
    for path in sorted(state.folders):
        os.mkdir(f"{folder}/{path}")
    for path, data in state.files.items():
        fd = os.open(f"{folder}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(fd, data)
            times = os.fstat(fd).st_mtime - _HOUR
        finally:
            os.close(fd)
        os.utime(f"{folder}/{path}", (times, times))
