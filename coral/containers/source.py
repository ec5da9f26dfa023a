"""What a tensor's bytes come from: anything that reads them in ranges, such as a part of a file."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from coral.errors import ConflictError, StorageError, UnreadableError, UsageError
from coral.storage.files import translate_errors

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ReadableFile(Protocol):
    """A file as the containers read it.

    Attributes:
        size: bytes.
    """

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop). Raises ConflictError when the file has become shorter."""
        ...

    def take(self, start: int, stop: int) -> Buffer:
        """As :meth:`read`, for bytes that are asked for once."""
        ...

    def check_unchanged(self) -> None:
        """Raise ConflictError when the file is known to have changed since it was opened."""
        ...

    def close(self) -> None:
        """Let go of the file; harmless afterwards."""
        ...


class BytesFile:
    """A file that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop)."""
        return self._data[start:stop]

    def take(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop)."""
        return self._data[start:stop]

    def check_unchanged(self) -> None:
        """It cannot."""

    def close(self) -> None:
        """Nothing to let go of."""


class StreamFile:
    """A file that comes from front to back, once: for containers that begin with their index.

    What is read again from the front is remembered, and so is what was passed over, which is little: tensors so small
    that they are read last.

    Args:
        name: what errors call it.
        size: bytes of it all.
        head: those that came already.
        read_into: fills memory with the next ones, and returns how many they were; fewer at the end alone.
    """

    def __init__(self, name: str, size: int, head: bytes, read_into: Callable[[memoryview], int]) -> None:
        self.size = size
        self._name = name
        self._read_into = read_into
        self._starts = [0]
        self._kept = [head]
        self._at = len(head)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop). Raises ConflictError when fewer come than were promised."""
        return bytes(self.take(start, stop))

    def take(self, start: int, stop: int) -> Buffer:
        """As :meth:`read`, in memory of their own."""
        if start > self._at:
            self._starts.append(self._at)
            self._kept.append(bytes(self._next(start - self._at)))
        if start == self._at:
            return self._next(stop - start)
        number = bisect_right(self._starts, start) - 1
        first, piece = self._starts[number], self._kept[number]
        if stop > first + len(piece) == self._at:
            piece = self._kept[number] = piece + bytes(self._next(stop - self._at))
        found = piece[start - first : stop - first]
        if len(found) != stop - start:
            raise ValueError(f"the bytes {start} to {stop} of {self._name} have gone by")
        return found

    def _next(self, length: int) -> memoryview:
        # Neither cleared nor mapped anew each time, as a bytearray of this size is.
        import numpy as np

        data = np.empty(length, np.uint8).data
        if self._read_into(data) != length:
            raise self._changed()
        self._at += length
        return data

    def check_unchanged(self) -> None:
        """Raise ConflictError unless all that was promised came, and nothing else."""
        if self._at != self.size or self._read_into(memoryview(bytearray(1))):
            raise self._changed()

    def _changed(self) -> ConflictError:
        return ConflictError(
            f"{self._name} changed while it was read", hint="run the same again when nothing writes to the file"
        )

    def close(self) -> None:
        """Nothing to let go of."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into NotFoundError and UnreadableError."""
    try:
        with translate_errors(path):
            yield
    except StorageError as error:
        raise UnreadableError(error.message, hint=error.hint, errno=error.errno) from error


class OpenFile:
    """A regular file, open for reading by position.

    Never mapped: a mapping kills the process (SIGBUS) when another one cuts the file short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path):
            # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise UsageError(f"{path} is not a regular file")
                self._file = os.fdopen(fd, "rb", buffering=0)
            except BaseException:
                os.close(fd)
                raise
        self.size = status.st_size
        self._stamp = _stamp(status)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), in memory of their own.

        Raises:
            ConflictError: the file has become shorter.
            UnreadableError: the disk refused.
        """
        data = self._read_some(start, stop)
        if len(data) == stop - start:
            return data
        pieces = [data]
        at = start + len(data)
        while at < stop:
            piece = self._read_some(at, stop)
            if not piece:
                raise self._changed()
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def take(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop), in memory of their own. Raises as :meth:`read`."""
        return self.read(start, stop)

    def _read_some(self, start: int, stop: int) -> bytes:
        with _reading(self.path):
            return os.pread(self._file.fileno(), stop - start, start)

    def check_unchanged(self) -> None:
        """Raise ConflictError when the file changed since it was opened, by its size and its times.

        A write through a mapping, or one within the same tick of the file system's clock as the opening (some
        milliseconds), may leave both as they were.
        """
        with _reading(self.path):
            now = _stamp(os.fstat(self._file.fileno()))
        if now != self._stamp:
            raise self._changed()

    def _changed(self) -> ConflictError:
        return ConflictError(
            f"{self.path} changed while it was read", hint="run the same again when nothing writes to the file"
        )

    def close(self) -> None:
        """Let go of the file; harmless afterwards."""
        self._file.close()


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes [first, last) of an open file."""

    file: ReadableFile
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the range; those that there are, as of a slice. Raises ConflictError."""
        part = self.part(start, stop)
        return part.file.read(part.first, part.last)

    def part(self, start: int, stop: int) -> FileRange:
        """The bytes [start, stop) of the range, not read; those that there are, as of a slice."""
        first = min(self.first + start, self.last)
        return FileRange(self.file, first, max(first, min(self.first + stop, self.last)))


@dataclass(frozen=True, slots=True)
class FileSource:
    """A tensor that lies in a file as it is kept."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: FileRange

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop), in memory of their own. Raises ConflictError when the file has become shorter."""
        part = self.data.part(start, stop)
        return part.file.take(part.first, part.last)
