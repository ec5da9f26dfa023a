"""A file system of its own, in a file, whose power can be cut: what Linux keeps of what was written.

Needs Linux, root, a loop device, and the program that makes the file system. The cut is the file system's own: from
that moment it writes nothing more, its log included, and what it has not handed to the disk is gone. What it has
handed over, the disk keeps: this is no test of a disk that lies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from coral.errors import StorageError

FileSystem = Literal["ext4", "xfs"]
FILE_SYSTEMS: tuple[FileSystem, ...] = get_args(FileSystem)

_BYTES = 512 << 20  # XFS takes no less than 300 MB; only what is written takes any
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, and XFS_IOC_GOINGDOWN
_WITHOUT_THE_LOG = 2
_PATIENCE_SECONDS = 1.0


class Mounted:
    """A fresh file system, mounted; use it as a context manager, which leaves nothing behind.

    Args:
        kind: of file system.
        place: a folder that is not there yet; it takes the file and the mount point.
        size: bytes of the file system.

    Attributes:
        root: where it is mounted.
        beside: a folder that is not on it, and goes when it goes.

    Raises:
        StorageError: this machine, or this user, cannot.
    """

    def __init__(self, kind: FileSystem, place: Path, *, size: int = _BYTES) -> None:
        self.kind = kind
        self.root = place / "mounted"
        self.beside = place / "beside"
        self._place, self._image = place, place / "image"
        self._is_mounted = False
        self.beside.mkdir(parents=True)
        try:
            with self._image.open("wb") as image:
                image.truncate(size)
            _run(f"mkfs.{kind}", "-q", str(self._image))
            self.root.mkdir()
            self._mount()
        except BaseException:
            self.close()
            raise

    def sync(self) -> None:
        """Make all that was written so far safe."""
        _run("sync", "-f", str(self.root))

    def cut(self) -> None:
        """Cut the power, whoever writes at the moment; from now on everything here is refused."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("=I", _WITHOUT_THE_LOG))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Mount it again: the file system recovers by its log. Raises StorageError, also while files are open here."""
        self._unmount()
        self._mount()

    def close(self) -> None:
        """Unmount it, whoever uses it, and remove it."""
        if self._is_mounted:
            try:
                self._unmount()
            except StorageError:
                _run("umount", "-l", str(self.root))
                self._is_mounted = False
        shutil.rmtree(self._place)

    def _mount(self) -> None:
        # The loop device goes with the mount.
        _run("mount", "-t", self.kind, "-o", "loop", str(self._image), str(self.root))
        self._is_mounted = True

    def _unmount(self) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                _run("umount", str(self.root))
            except StorageError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                self._is_mounted = False
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def why_not(kind: FileSystem, place: Path) -> str | None:
    """Why such a file system cannot be had here, found by trying; None when it can.

    Args:
        place: a folder that is not there yet, and is not afterwards.
    """
    if os.geteuid() != 0:
        return "only root may mount"
    try:
        with Mounted(kind, place) as mounted:
            mounted.cut()
    except (OSError, StorageError) as error:
        return f"{kind}: {error}"
    return None


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise StorageError(f"there is no {command[0]} here") from error
    if done.returncode:
        raise StorageError(f"{' '.join(command)}: {done.stderr.strip()[:400]}")
