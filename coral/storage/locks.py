"""Locks between processes; all of them die with their holder, so none is ever left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from coral import forks, threads
from coral.errors import LockedError, NotFoundError, StorageError
from coral.storage import disk
from coral.storage.files import translate_errors

_POLL_SECONDS = 0.005
_PROBE_SECONDS = 0.1
_HELD = (errno.EAGAIN, errno.EACCES)
_MAY_NOT_WRITE = (errno.EACCES, errno.EROFS, errno.EPERM)


def _open(path: Path, *, shared: bool = False) -> int:
    with translate_errors(path):
        try:
            return _create(path)
        except OSError as error:
            if not shared or error.errno not in _MAY_NOT_WRITE:
                raise
            # Who may only read the folder still keeps others from collecting what is being read.
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _refuse_link(folder: Path) -> None:
    # A lock is made where there is none: not in a folder that a repository from elsewhere leads to.
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _create(path: Path) -> int:
    # The umask says whether colleagues of a group may hold it as well.
    flags, mode = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
    _refuse_link(path.parent)
    try:
        return disk.current.open(path, flags, mode)
    except FileNotFoundError:
        _make_folder(path.parent)
        return disk.current.open(path, flags, mode)


def _make_folder(path: Path) -> None:
    if not path.is_dir():
        _make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            disk.current.mkdir(path)


class FileLock:
    """A flock, held while a ``with`` lasts; see :func:`file_lock`."""

    def __init__(self, path: Path, *, shared: bool, timeout: float) -> None:
        self._path, self._shared, self._timeout = path, shared, timeout
        self._file: FileIO | None = None  # closes itself where a ``with`` is interrupted before it began

    def __enter__(self) -> None:
        try:
            with forks.opening:
                forks.tell(self)
                self._file = FileIO(_open(self._path, shared=self._shared))
            fd = self._file.fileno()
            operation = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
            if not _patiently(lambda: fcntl.flock(fd, operation | fcntl.LOCK_NB), self._path, self._timeout):
                raise LockedError(
                    f"another process holds {self._path} for more than {self._timeout:g} s",
                    hint="wait for the other coral process to finish, then run the command again",
                )
        except BaseException:
            self._release()
            raise

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # Closing is not enough: a child that another library forks has the same open file, and keeps the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)
            file.close()

    def after_fork(self) -> None:
        """In a child: close the file, which leaves the lock to the parent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def file_lock(path: Path, *, shared: bool = False, timeout: float = 60.0) -> FileLock:
    """Hold a flock on a file, as a context manager.

    Args:
        path: the lock file; created when missing, never removed (removing one is a race).
        shared: readers share, one writer excludes; who may not write to the file may share it where it is there.
        timeout: seconds to wait.

    Raises:
        LockedError: another process held it all that time.
    """
    return FileLock(path, shared=shared, timeout=timeout)


def _patiently(take: Callable[[], None], path: Path, timeout: float) -> bool:
    """Try to take a lock until it works; False when it was held for so many seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with translate_errors(path):
                take()
            return True
        except StorageError as error:
            if error.errno not in _HELD:
                raise
        if time.monotonic() >= deadline:
            return False
        threads.stop_if_unwanted()
        time.sleep(_POLL_SECONDS)


class ProcessLock:
    """A POSIX record lock that says "this process is alive"; a forked child does not inherit it.

    The file must be opened for nothing else: closing any descriptor of it in the process drops the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open(path)
        self._pid = os.getpid()
        try:
            # Somebody who asks is_held holds it for a moment.
            if not _patiently(lambda: fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB), path, _PROBE_SECONDS):
                raise LockedError(f"another process holds {path}")
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise

    def release(self) -> None:
        """Drop the lock; harmless when called again, or in a forked child."""
        if self._fd >= 0 and self._pid == os.getpid():
            os.close(self._fd)
        self._fd = -1


def is_held(path: Path) -> bool:
    """Whether another process holds a :class:`ProcessLock` on this file. Never call it from the holder itself."""
    try:
        with translate_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except NotFoundError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the holder.
        return not _patiently(lambda: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB), path, timeout=0)
    finally:
        os.close(fd)
