"""A local folder: what the library keeps on the disk is written here, in the order that makes it durable.

Promises:

* :meth:`Folder.write` is atomic and durable: a reader sees the old bytes or the new ones, and once the call returns a
  power cut cannot take them back (file fsync, rename, folder fsync).
* Keys are relative, ``/``-separated, and can never leave the folder or follow a symbolic link out of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import AlreadyExistsError, InvalidNameError, NotFoundError
from coral.storage import disk
from coral.storage.files import (
    AppendFile,
    NewFile,
    ReadFile,
    open_to_append,
    read_from,
    sync_file,
    sync_folder,
    translate_errors,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BESIDE_SUFFIX = ".coral-tmp"
_STALE_TMP_SECONDS = 60.0
MAP_BYTES = 16 << 20
"""What is longer is mapped rather than read."""
_UNIQUE = re.compile(r"\.[0-9a-f]{16}\Z", re.ASCII)


class Folder:
    """A local folder of files named by keys.

    Args:
        root: the folder; created by the first write.
        temporary: where files are written before they get their name; on the same file system as ``root``.
            None puts them beside their target.
    """

    def __init__(self, root: Path, *, temporary: Path | None = None) -> None:
        self.root = root
        self._temporary = temporary
        self._above: tuple[Folder, str] | None = None

    def path(self, key: str) -> Path:
        """The path of a key. Raises InvalidNameError for a key that would leave the folder."""
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise InvalidNameError(f"{key!r} is not a path inside the folder {self.root}")
        return self.root.joinpath(*parts)

    def sub(self, key: str) -> Folder:
        """The folder under a key, sharing the place for temporary files; no link may stand in its place."""
        inner = Folder(self.path(key), temporary=self._temporary)
        inner._above = (self, key)
        return inner

    # -- reading

    def exists(self, key: str) -> bool:
        path = self.path(key)
        with translate_errors(path):
            return path.exists()

    def read(self, key: str) -> bytes:
        """The bytes of a file. Raises NotFoundError."""
        path = self.path(key)
        with translate_errors(path):
            return path.read_bytes()

    def map(self, key: str) -> mmap.mmap | bytes:
        """The bytes of a file. A large one is mapped rather than read; the mapping keeps a descriptor open."""
        path = self.path(key)
        with translate_errors(path), path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= MAP_BYTES:
                return file.read(size)
            return mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)

    def open(self, key: str) -> ReadFile:
        """Open a file for reading at offsets. Raises NotFoundError."""
        return ReadFile(self.path(key))

    def size(self, key: str) -> int:
        """Bytes of a file. Raises NotFoundError."""
        path = self.path(key)
        with translate_errors(path):
            return path.stat().st_size

    def modified(self, key: str) -> float:
        """When a file was last changed, in seconds since 1970. Raises NotFoundError."""
        path = self.path(key)
        with translate_errors(path):
            return path.stat().st_mtime

    def names(self, key: str = "") -> list[str]:
        """The sorted names in a folder; empty when there is no such folder."""
        path = self.path(key) if key else self.root
        try:
            with translate_errors(path):
                return sorted(os.listdir(path))
        except NotFoundError:
            return []

    # -- writing

    def make_folder(self, key: str = "") -> None:
        """Create a folder and those above it, durably; refuse to pass through a symbolic link."""
        if self._above is not None:
            above, place = self._above
            above.make_folder(place)
        else:
            with translate_errors(self.root):
                _make_root(self.root)
        current = self.root
        for part in [part for part in key.split("/") if part]:
            current = current / part
            with translate_errors(current):
                if not _is_folder(current):
                    _make_one(current)

    def _inside(self, key: str) -> Path:
        """The path of a key whose file is to be changed. Raises StorageError when a symbolic link stands above it."""
        path = self.path(key)
        if self._above is not None:
            above, place = self._above
            above._inside(f"{place}/{key}")
        current = self.root
        for part in key.split("/")[:-1]:
            current = current / part
            with translate_errors(current):
                if not _is_folder(current):
                    break
        return path

    def new_file(self, key: str, *, direct: bool = False) -> NewFile:
        """Start a file that will be published under ``key`` (or another key of this folder).

        Args:
            direct: it only grows, and may become large: write it past the page cache where there is a way.
        """
        made = NewFile
        if direct and hasattr(os, "O_DIRECT"):
            from coral.storage.direct import DirectFile  # with numpy, which not everybody wants

            made = DirectFile
        target = self.path(key)
        # A character takes up to four bytes, and a file name has 255.
        unique = f"{target.name[:40]}.{os.urandom(8).hex()}"
        if self._temporary is None:
            self.make_folder(os.path.dirname(key))
            _sweep_beside(target)
            return made(target.parent / f".{unique}{_BESIDE_SUFFIX}", self)
        Folder(self._temporary.parent).make_folder(self._temporary.name)
        return made(self._temporary / unique, self)

    def write(self, key: str, data: Buffer, *, mode: int | None = None) -> None:
        """Write a whole file, atomically and durably; ``mode`` is its permissions, None leaves them to the umask."""
        with self.new_file(key) as file:
            file.write(data)
            file.publish(key, mode=mode)

    def create(self, key: str, data: Buffer) -> None:
        """Write a whole file that must not exist yet, atomically and durably. Raises AlreadyExistsError."""
        with self.new_file(key) as file:
            file.write(data)
            file.publish_first(key)

    def append(self, key: str) -> AppendFile:
        """Open a file to append to, created (durably named) when it is missing."""
        path = self.path(key)
        self.make_folder(os.path.dirname(key))
        fresh = not self.exists(key)
        file = AppendFile(path)
        if fresh:
            with translate_errors(path):
                sync_folder(path.parent)
        return file

    def renew(self, key: str, file: AppendFile) -> None:
        """Put a new file, durable, in the place of one whose fsync failed; ``file`` appends to it from then on.

        Raises:
            StorageError: what was written cannot be read back, or the disk refused; ``file`` is as it was before.
        """
        with translate_errors(file.path), self.new_file(key) as fresh:
            fresh.write(read_from(file.fileno(), 0))
            other = open_to_append(fresh.path)
            try:
                size = fresh.size
                fresh.publish(key)
                file.go_on_in(other, size)
            finally:
                disk.current.close(other)

    def move(self, source: str, target: str) -> None:
        """Rename a file within the folder, durably."""
        old, new = self._inside(source), self.path(target)
        self.make_folder(os.path.dirname(target))
        with translate_errors(old):
            disk.current.rename(old, new)
            sync_folder(new.parent)
            if old.parent != new.parent:
                sync_folder(old.parent)

    def link(self, source: str, target: str) -> None:
        """Give a file, or a symbolic link itself, a second name, durably.

        Raises:
            AlreadyExistsError: the second name is taken.
            StorageError: among others, the file system knows no hard links.
        """
        old, new = self._inside(source), self.path(target)
        self.make_folder(os.path.dirname(target))
        with translate_errors(old):
            try:
                disk.current.link(old, new, follow_symlinks=False)
            except FileExistsError as error:
                raise AlreadyExistsError(f"{new} exists already") from error
            sync_folder(new.parent)

    def remove(self, key: str) -> None:
        """Unlink a file, durably; a missing one is fine."""
        path = self._inside(key)
        with translate_errors(path):
            try:
                disk.current.unlink(path)
            except FileNotFoundError:
                return
            sync_folder(path.parent)

    def remove_all(self, keys: Iterable[str]) -> None:
        """Unlink many files, durably; missing ones are fine. Cheaper than one by one: each folder is synced once."""
        paths = [self._inside(key) for key in keys]
        for path in paths:
            with translate_errors(path), contextlib.suppress(FileNotFoundError):
                disk.current.unlink(path)
        for folder in sorted({path.parent for path in paths}):
            with translate_errors(folder):
                sync_folder(folder)

    def mark_changed(self, key: str) -> None:
        """Position a file as changed just now. Raises NotFoundError."""
        path = self._inside(key)
        with translate_errors(path):
            disk.current.utime(path)

    def remove_folder(self, key: str) -> None:
        """Remove an empty folder, durably; a missing one is fine, and one that is not empty stays."""
        path = self._inside(key)
        with translate_errors(path):
            try:
                disk.current.rmdir(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return
            sync_folder(path.parent)

    def remove_tree(self, key: str) -> None:
        """Remove a folder with all that is in it; a missing one is fine. What links in it lead to stays."""
        path = self._inside(key)
        with translate_errors(path):
            if not _is_folder(path):
                return
            for root, folders, files in os.walk(path, topdown=False):
                for name in files:
                    disk.current.unlink(os.path.join(root, name))
                for name in folders:
                    inner = os.path.join(root, name)
                    (disk.current.unlink if os.path.islink(inner) else disk.current.rmdir)(inner)
            disk.current.rmdir(path)
            sync_folder(path.parent)

    def sync_names(self) -> None:
        """Make durable the names that can be seen in this folder, whoever gave them; none when it is not there."""
        with translate_errors(self.root), contextlib.suppress(FileNotFoundError):
            sync_folder(self.root)

    def sync(self, key: str) -> None:
        """Make the files in a folder, which another library wrote, and their names durable."""
        folder = self.path(key)
        with translate_errors(folder):
            for path in folder.iterdir():
                sync_file(path)
            sync_folder(folder)

    def sweep_temporary(self) -> int:
        """Remove temporary files that killed processes left; returns how many."""
        # Through a link it would remove somebody's files, and so it would by any name.
        if self._temporary is None:
            return 0
        with translate_errors(self._temporary):
            if self._temporary.is_symlink() or not self._temporary.is_dir():
                return 0
            found = [path for path in self._temporary.iterdir() if _UNIQUE.search(path.name)]
        return sum(map(_remove_if_abandoned, found))


def _is_folder(path: Path) -> bool:
    """Whether a folder is there; False for nothing. Raises OSError for a symbolic link and for a file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return True


def _make_one(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        disk.current.mkdir(path)
    sync_folder(path.parent)


def _make_root(path: Path) -> None:
    # A root may be reached through a symbolic link: the user chose where it lies.
    if not path.exists():
        _make_root(path.parent)
        _make_one(path)


def _sweep_beside(target: Path) -> None:
    """Remove what processes that were killed while writing this file left beside it."""
    start = f".{target.name[:40]}."
    with translate_errors(target.parent), os.scandir(target.parent) as found:
        left = [entry.name for entry in found if entry.name.startswith(start) and entry.name.endswith(_BESIDE_SUFFIX)]
    for name in left:
        _remove_if_abandoned(target.parent / name)


def _remove_if_abandoned(path: Path) -> bool:
    try:
        if time.time() - path.lstat().st_mtime < _STALE_TMP_SECONDS:
            return False
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.current.unlink(path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
