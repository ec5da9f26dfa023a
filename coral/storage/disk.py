"""The one seam to the disk: each system call by which the library changes something there, and a way to stand in.

Everything of the library that writes does it by ``disk.current``; tests put a disk of their own in its place
(``coral.testing``), to record what is written, to have it refused, or to die in the middle of it. What libgit2 writes
passes below; ``coral.testing.syscalls`` sees both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from coral.storage.writeback import start_writeback


class Disk:
    """The real disk: one method a system call, each with the arguments, result and errors of :mod:`os`.

    ``open`` and ``close`` are for what is written or synced; reading needs no seam. The methods are the functions of
    :mod:`os` themselves, so that the seam costs a journal of a hundred thousand lines a second next to nothing.
    """

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    dup2 = staticmethod(os.dup2)
    write = staticmethod(os.write)
    pwrite = staticmethod(os.pwrite)
    pwritev = staticmethod(os.pwritev)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    fchmod = staticmethod(os.fchmod)
    start_writeback = staticmethod(start_writeback)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    utime = staticmethod(os.utime)


current: Disk = Disk()
"""What the library writes with; always asked anew, never kept."""


@contextlib.contextmanager
def use(disk: Disk) -> Iterator[None]:
    """Have the whole process write with another disk for a while; files that are open meanwhile change over too."""
    global current
    before, current = current, disk
    try:
        yield
    finally:
        current = before
