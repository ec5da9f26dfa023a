"""Single files: written under a name of their own until they are whole, appended to, or read at offsets.

Promises:

* :meth:`NewFile.publish` is atomic and durable: a reader sees the old bytes or the new ones, and once the call returns
  a power cut cannot take them back (file fsync, rename, folder fsync).
* An fsync that fails is fatal for that file: it is never retried on it, because the kernel may have dropped the
  dirty pages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from coral import forks
from coral.errors import AlreadyExistsError, NotFoundError, StorageError
from coral.storage import disk

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HINTS = {
    errno.ENOSPC: "free some space and run the same command again; nothing that was committed is lost",
    errno.EDQUOT: "free some of your quota and run the same command again; nothing that was committed is lost",
    errno.EFBIG: "the file is larger than the file system, or this process's limit, allows",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "check the permissions of the folder",
}
_WRITEBACK_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def translate_errors(path: object) -> Iterator[None]:
    """Turn the operating system's errors into coral's, naming the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        code = error.errno
        text = os.strerror(code) if code is not None else str(error)
        raise StorageError(f"{path}: {text}", hint=_HINTS.get(code or 0), errno=code) from error


def write_all(fd: int, data: Buffer) -> None:
    """Write all of ``data`` to a file descriptor, whatever the kernel takes at a time."""
    view = memoryview(data).cast("B")
    while view:
        view = view[disk.current.write(fd, view) :]


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable that another program, or library, wrote."""
    fd = disk.current.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk.current.fsync(fd)
    finally:
        disk.current.close(fd)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = disk.current.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.current.fsync(fd)
    finally:
        disk.current.close(fd)


class AppendFile:
    """A file that only grows; each :meth:`write` is one unbuffered system call, so that kill -9 loses none of it.

    Attributes:
        doubtful: an fsync failed, so nobody knows what of the file a power cut would take; see :meth:`Folder.renew`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.doubtful = False
        with translate_errors(path):
            self._fd = open_to_append(path)

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Buffer) -> None:
        """Append ``data``. Raises StorageError; part of it may then be in the file."""
        with translate_errors(self.path):
            write_all(self._fd, data)

    def write_line(self, data: bytes) -> None:
        """As :meth:`write`, at a third of its cost; for callers that append a hundred thousand times a second."""
        try:
            done = disk.current.write(self._fd, data)
        except OSError:
            done = 0
        if done != len(data):
            self.write(data[done:])

    def sync(self) -> None:
        """Make all that was written so far durable. Raises StorageError; then, and ever after, it is not."""
        if self.doubtful:
            # The kernel may have dropped what it could not write, and would say yes the next time.
            raise StorageError(f"{self.path}: an earlier fsync failed", errno=errno.EIO)
        with translate_errors(self.path):
            try:
                disk.current.fsync(self._fd)
            except OSError:
                self.doubtful = True
                raise

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            disk.current.close(fd)

    def go_on_in(self, other: int, size: int) -> None:
        """Write to another file from now on, beginning with what this one holds beyond a size; threads may write."""
        old = os.dup(self._fd)
        try:
            # One step, so that no line goes to neither of the two.
            disk.current.dup2(other, self._fd, inheritable=False)
            self.doubtful = False
            self.write(read_from(old, size))
        finally:
            os.close(old)


def open_to_append(path: Path) -> int:
    """A descriptor of a file that only grows, made where it is missing."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return disk.current.open(path, flags, 0o644)


def read_from(fd: int, start: int) -> bytes:
    """All that a file holds from an offset on."""
    pieces = []
    while piece := os.pread(fd, _PIECE_BYTES, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


class Position(NamedTuple):
    """How far a file was written, see :meth:`NewFile.mark`.

    Attributes:
        size: in bytes.
        unwritten: the last of them, where they are to be written once more.
    """

    size: int
    unwritten: bytes = b""


class Home(Protocol):
    """Where a new file gets its name: what it asks of its folder."""

    def path(self, key: str) -> Path:
        """The path of a key. Raises InvalidNameError for a key that would leave the folder."""

    def make_folder(self, key: str = "") -> None:
        """Create a folder and those above it, durably."""


class NewFile:
    """A file being written under a temporary name, invisible until :meth:`publish` renames it into place.

    The temporary file is held under flock while its writer lives, so that leftovers of killed processes can be
    told apart and swept.
    """

    def __init__(self, temporary: Path, home: Home) -> None:
        self._path = temporary
        self._home = home
        self._fd = -1
        self.size = 0
        self._started = 0
        self._lock = threading.Lock()
        with translate_errors(temporary), forks.opening:
            forks.tell(self)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = disk.current.open(temporary, flags, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def write(self, data: Buffer) -> None:
        """Append ``data``."""
        self.write_at([data])

    def write_at(self, parts: Sequence[Buffer]) -> int:
        """Append parts as one run of bytes; returns its offset. Threads may call it at once, and write in parallel."""
        views = [memoryview(part).cast("B") for part in parts]
        with self._lock:
            offset = self.size
            self.size += sum(map(len, views))
        with translate_errors(self._path):
            position = offset
            while views:
                done = disk.current.pwritev(self._fd, views, position)
                position += done
                while views and done >= len(views[0]):
                    done -= len(views.pop(0))
                if done:
                    views[0] = views[0][done:]
        self._write_ahead()
        return offset

    def _write_ahead(self) -> None:
        """Have the kernel write while the caller computes, rather than all of it at the end."""
        if self.size - self._started < _WRITEBACK_BYTES:
            return
        with self._lock:
            start, self._started = self._started, self.size
        disk.current.start_writeback(self._fd, start, self._started - start)

    def patch(self, offset: int, data: Buffer) -> None:
        """Overwrite bytes already written, such as a header that depends on what follows it."""
        view = memoryview(data).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"patch of {len(view)} bytes at {offset} is outside of the {self.size} bytes written")
        with translate_errors(self._path):
            while view:
                done = disk.current.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done

    @property
    def path(self) -> Path:
        """Where the bytes are until they get their name."""
        return self._path

    def read_back(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of what was written."""
        with translate_errors(self._path):
            return os.pread(self._fd, stop - start, start)

    def settle(self) -> None:
        """Have the kernel take all that was written. Raises StorageError."""

    def mark(self) -> Position:
        """Where the file is now; while nobody writes. Raises StorageError when what was written before is not there."""
        return Position(self.size)

    def go_back(self, mark: Position) -> None:
        """Forget what was written after a mark; while nobody writes."""
        with translate_errors(self._path):
            disk.current.ftruncate(self._fd, mark.size)
        self.size = mark.size
        self._started = min(self._started, mark.size)

    def publish(self, key: str, *, mode: int | None = None, modified: float | None = None) -> Path:
        """Make the bytes durable, then give them their name, replacing what had it; returns the path.

        Args:
            mode: permissions; None leaves them to the umask.
            modified: time of the last change, in seconds since 1970; None is now.
        """
        target = self._home.path(key)
        try:
            with translate_errors(target):
                if mode is not None:
                    disk.current.fchmod(self._fd, mode)
                if modified is not None:
                    disk.current.utime(self._fd, (modified, modified))
                disk.current.fsync(self._fd)
            self._home.make_folder(os.path.dirname(key))
            with translate_errors(target):
                disk.current.rename(self._path, target)
                sync_folder(target.parent)
        except BaseException:
            self.discard()
            raise
        self._close()
        return target

    def publish_first(self, key: str) -> None:
        """Make the bytes durable, then give them a name that nobody has; the first of several who try gets it.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        target = self._home.path(key)
        try:
            self.settle()
            self._home.make_folder(os.path.dirname(key))
            with translate_errors(target):
                disk.current.fsync(self._fd)
                try:
                    disk.current.link(self._path, target)
                except FileExistsError as error:
                    raise AlreadyExistsError(f"{target} exists already") from error
                sync_folder(target.parent)
        finally:
            self.discard()

    def discard(self) -> None:
        """Throw the bytes away; harmless after :meth:`publish`."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                disk.current.unlink(self._path)
            self._close()

    def after_fork(self) -> None:
        """In a child: the file is the parent's, who goes on writing it."""
        self._close()

    def __del__(self) -> None:
        self.discard()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            disk.current.close(fd)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class ReadFile:
    """A file read at offsets; threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        with translate_errors(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` with the bytes at an offset; returns how many there were."""
        done = 0
        with translate_errors(self.path):
            while done < len(out):
                count = os.preadv(self._fd, [out[done:]], offset + done)
                if count == 0:
                    break
                done += count
        return done

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()
