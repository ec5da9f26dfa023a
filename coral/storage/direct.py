"""Large files written past the page cache (O_DIRECT), which costs half the CPU of copying into it and out again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coral.pool import Pool
from coral.storage import disk
from coral.storage.files import Home, NewFile, Position, translate_errors

if TYPE_CHECKING:
    from typing_extensions import Buffer

BUFFER_BYTES = 4 << 20
"""Written at once; a multiple of every disk's block."""
_BUFFERS = 3
_Page = NDArray[np.uint8]


class DirectFile(NewFile):
    """A :class:`NewFile` that only grows. Callers fill buffers; a thread of its own writes those that are full.

    What is shorter than a buffer, and the end of what is longer, goes through the page cache when it is settled.
    """

    def __init__(self, temporary: Path, home: Home) -> None:
        self._page: _Page | None = None
        self._filled = self._settled = 0
        self._writing: deque[Future[_Page]] = deque()
        self._thread: Pool | None = None
        self._owed: Position | None = None
        super().__init__(temporary, home)

    def write_at(self, parts: Sequence[Buffer]) -> int:
        """As inherited; an error of the disk may be raised by a later call, at the latest by :meth:`settle`."""
        assert self._owed is None, "it was to go back, could not, and was not settled since"
        views = [np.frombuffer(memoryview(part), np.uint8) for part in parts]
        with self._lock, translate_errors(self._path):
            offset = self.size
            for view in views:
                self._take(view)
        return offset

    def _take(self, data: _Page) -> None:
        while len(data):
            page = self._page = self._empty_page() if self._page is None else self._page
            piece = data[: BUFFER_BYTES - self._filled]
            np.copyto(page[self._filled : self._filled + len(piece)], piece)
            self._filled += len(piece)
            self.size += len(piece)
            data = data[len(piece) :]
            if self._filled == BUFFER_BYTES:
                self._hand_over(page)

    def _hand_over(self, page: _Page) -> None:
        if self._thread is None:
            self._thread = Pool(1, "coral-disk")
        if not self._writing:
            _set_direct(self._fd, True)
        self._page, self._filled, self._settled = None, 0, 0
        offset = self.size - BUFFER_BYTES
        # The job holds this file, which is therefore never let go of while a write is under way.
        self._writing.append(self._thread.submit(self._write_page, page, offset))

    def _empty_page(self) -> _Page:
        if len(self._writing) < _BUFFERS:
            return np.frombuffer(mmap.mmap(-1, BUFFER_BYTES), np.uint8)
        page = self._writing[0].result()
        self._writing.popleft()  # not earlier: whoever is interrupted while waiting must still know of it
        return page

    def _write_page(self, page: _Page, offset: int) -> _Page:
        try:
            _write(self._fd, page, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file system that takes the flag and then does not mean it.
            _set_direct(self._fd, False)
            _write(self._fd, page, offset)
        return page

    def settle(self) -> None:
        """As inherited. Goes back first, where it was to and the disk refused."""
        if self._owed is not None:
            self.go_back(self._owed)
        with translate_errors(self._path):
            wait(self._writing)
            for job in self._writing:
                job.result()
            self._writing.clear()
            if self._page is not None and self._filled > self._settled:
                _set_direct(self._fd, False)
                _write(self._fd, self._page[: self._filled], self.size - self._filled)
                self._settled = self._filled

    def mark(self) -> Position:
        """As inherited. What was not written in one piece is in the mark, too: it will be written again."""
        self.settle()
        return Position(self.size, b"" if self._page is None else self._page[: self._filled].tobytes())

    def go_back(self, mark: Position) -> None:
        """As inherited, also after an error."""
        self._owed = mark
        wait(self._writing)
        self._writing.clear()
        self._page, self._filled, self._settled = None, 0, 0
        super().go_back(Position(mark.size - len(mark.unwritten)))
        self._take(np.frombuffer(mark.unwritten, np.uint8))
        self._owed = None

    def publish(self, key: str, *, mode: int | None = None, modified: float | None = None) -> Path:
        """As inherited."""
        try:
            self.settle()
        except BaseException:
            self.discard()
            raise
        self._end_thread()
        return super().publish(key, mode=mode, modified=modified)

    def discard(self) -> None:
        """As inherited; nothing is written any more when it returns."""
        wait(self._writing)
        self._end_thread()
        super().discard()

    def after_fork(self) -> None:
        """As inherited; the thread that writes is the parent's."""
        self._writing.clear()
        self._thread = self._page = None
        super().after_fork()

    def _end_thread(self) -> None:
        self._page = None
        self._writing.clear()
        if self._thread is not None:
            self._thread.close()
            self._thread = None


def _set_direct(fd: int, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
    if wanted != flags:
        with contextlib.suppress(OSError):  # a file system that has no way past its cache
            fcntl.fcntl(fd, fcntl.F_SETFL, wanted)


def _write(fd: int, data: _Page, offset: int) -> None:
    view = data.data
    while view:
        done = disk.current.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
