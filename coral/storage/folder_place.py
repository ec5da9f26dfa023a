"""A place in a folder, which may lie on a disk that several machines mount: one file an object, one lock.

What is written lies in ``tmp`` until it is whole and durable; ``locks`` holds the locks. Neither can be seen.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import ConflictError, InvalidNameError, NotFoundError
from coral.storage import disk
from coral.storage.contents import LOCKS, TMP
from coral.storage.files import translate_errors
from coral.storage.folder import MAP_BYTES, Folder
from coral.storage.locks import file_lock
from coral.storage.place import Found, Stamp, check_key, is_key

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Seconds since 1970, as a number, are told apart down to a quarter of this.
_TICK = 1e-6


class FolderPlace:
    """The files of a folder, by their paths in it.

    Args:
        root: the folder; created by the first write.
    """

    compares = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = Folder(root, temporary=root / TMP)
        self._lock = root / LOCKS / "place"

    def listing(self, folder: str = "") -> Iterable[Found]:
        """As of any place. What else lies there, under names that are no keys, is left out."""
        path = self._path(folder) if folder else self.root
        with translate_errors(path):
            return list(_below(path, f"{folder}/" if folder else ""))

    def look(self, key: str) -> Found:
        """As of any place."""
        path = self._path(key)
        with translate_errors(path):
            status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise NotFoundError(f"no file {path}")
        return _found(key, status)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes | memoryview:
        """As of any place. An object that is replaced meanwhile is read to its end."""
        path = self._path(key)
        with translate_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise NotFoundError(f"no file {path}")
                first, last, _ = slice(start, stop).indices(status.st_size)
                return _read(fd, first, last) if last - first <= MAP_BYTES else _map(fd, first, last)
            finally:
                os.close(fd)

    def create(self, key: str, data: Buffer) -> Stamp:
        """As of any place."""
        return self._write(key, data, modified=time.time(), first=True)

    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        """As of any place."""
        with self._alone():
            try:
                before = self.look(key)
            except NotFoundError:
                raise ConflictError(f"{self._path(key)} is gone") from None
            if before.stamp != expected:
                raise ConflictError(f"{self._path(key)} has changed")
            # Later than before, whatever clock wrote that: the time is part of the stamp.
            return self._write(key, data, modified=max(time.time(), before.modified + _TICK), first=False)

    def remove(self, key: str) -> None:
        """As of any place."""
        path = self._path(key)
        with translate_errors(path):
            is_there = path.exists()
        if is_there:
            with self._alone():
                self._folder.remove(key)

    def _path(self, key: str) -> Path:
        if check_key(key).partition("/")[0] in (TMP, LOCKS):
            raise InvalidNameError(f"{key!r} is where the place keeps what it needs itself")
        return self._folder.path(key)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else replaces or removes meanwhile; of creating, the file system lets the first one win."""
        return file_lock(self._lock)

    def _write(self, key: str, data: Buffer, *, modified: float, first: bool) -> Stamp:
        path = self._path(key)
        self._folder.sweep_temporary()
        with self._folder.new_file(key) as file:
            file.write(data)
            with translate_errors(path):
                disk.current.utime(file.path, (modified, modified))
                # Not later: once it has its name, somebody may have replaced it.
                stamp = _stamp(os.stat(file.path))
            if first:
                file.publish_first(key)
            else:
                file.publish(key)
            return stamp


def _map(fd: int, start: int, stop: int) -> memoryview:
    base = start - start % mmap.ALLOCATIONGRANULARITY
    return memoryview(mmap.mmap(fd, stop - base, prot=mmap.PROT_READ, offset=base))[start - base :]


def _read(fd: int, first: int, last: int) -> bytes:
    pieces = [os.pread(fd, max(0, last - first), first)]
    while pieces[-1] and (first := first + len(pieces[-1])) < last:
        pieces.append(os.pread(fd, last - first, first))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _below(path: Path, start: str) -> Iterator[Found]:
    for name in sorted(_names(path)):
        key = start + name
        if key in (TMP, LOCKS) or not is_key(key):
            continue
        with contextlib.suppress(FileNotFoundError):  # it went just now
            status = os.stat(path / name)
            if stat.S_ISDIR(status.st_mode) and not (path / name).is_symlink():
                yield from _below(path / name, f"{key}/")
            elif stat.S_ISREG(status.st_mode):
                yield _found(key, status)


def _names(path: Path) -> set[str]:
    try:
        return set(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _found(key: str, status: os.stat_result) -> Found:
    return Found(key, status.st_size, _stamp(status), status.st_mtime)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}")
