"""Disks to put in the place of the real one (``coral.storage.disk.use``): they record, fail, or kill the process.

They see what coral itself writes. What libgit2 writes they do not: ``coral.testing.syscalls`` has the same for all of a
process.
"""

from __future__ import annotations

import errno as errors
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from coral.storage.disk import Disk
from coral.testing.trace import CHANGES, Kind, Operation

When = Literal["before", "half", "after"]
"""Relative to the operation; half of what is no write is after it."""

_KINDS: dict[str, Kind] = {
    "write": "write",
    "pwrite": "write",
    "pwritev": "write",
    "ftruncate": "truncate",
    "fsync": "sync",
    "fchmod": "chmod",
    "rename": "rename",
    "link": "link",
    "unlink": "unlink",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
    "utime": "chmod",
}
_CALLS = ("open", *_KINDS)


class Interposed(Disk):
    """A disk that hands each call that changes something to :meth:`call`, one at a time, and passes all others on.

    Args:
        below: the disk that does it in the end.
    """

    def __init__(self, below: Disk | None = None) -> None:
        self.below = below or Disk()
        self.turn = threading.RLock()
        for name in _CALLS:
            setattr(self, name, functools.partial(self._enter, name))

    def _enter(self, name: str, *arguments: object, **named: object) -> object:
        do = functools.partial(getattr(self.below, name), *arguments, **named)
        kind = _opens_as(arguments) if name == "open" else _KINDS[name]
        if kind is None:
            return do()
        with self.turn:
            return self.call(kind, name, arguments, do)

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        """Make one call, or not; returns what it returns."""
        return do()

    def half(self, name: str, arguments: tuple[object, ...]) -> object:
        """Make a write with the first half of its bytes."""
        if name == "pwritev":
            fd, parts, offset = arguments
            data = b"".join(map(bytes, parts))  # type: ignore[call-overload]
            return self.below.pwrite(fd, data[: (len(data) + 1) // 2], offset)  # type: ignore[arg-type]
        fd, whole, *rest = arguments
        data = bytes(whole)  # type: ignore[call-overload]
        return getattr(self.below, name)(fd, data[: (len(data) + 1) // 2], *rest)


class Unsynced(Interposed):
    """A disk that takes an fsync for done: where what is durable is another test's matter."""

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        return None if kind == "sync" else do()


class Recording(Interposed):
    """Notes each call that succeeded, with its bytes."""

    def __init__(self, below: Disk | None = None) -> None:
        super().__init__(below)
        self.operations: list[Operation] = []

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        known = self._describe(kind, name, arguments)
        result = do()
        if known.kind == "write" and isinstance(result, int):
            known = known._replace(data=known.data[:result])
        if kind != "open":
            self.operations.append(known)
        return result

    @staticmethod
    def _describe(kind: Kind, name: str, arguments: tuple[object, ...]) -> Operation:
        first, second = arguments[0], arguments[1] if len(arguments) > 1 else None
        path = path_of(first) if isinstance(first, int) else os.fspath(first)  # type: ignore[call-overload]
        if kind in ("rename", "link"):
            return Operation(kind, path, os.fspath(second))  # type: ignore[call-overload]
        if kind == "truncate" and isinstance(second, int):
            return Operation(kind, path, offset=second if name == "ftruncate" else 0)
        if kind != "write":
            return Operation(kind, path)
        data = b"".join(map(bytes, second)) if isinstance(second, Sequence) and name == "pwritev" else bytes(second)  # type: ignore
        offset = arguments[2] if len(arguments) > 2 else os.fstat(first).st_size  # type: ignore[arg-type]
        return Operation(kind, path, offset=offset, data=data)  # type: ignore[arg-type]


class Chosen(Interposed):
    """Counts the operations of some kinds, and does something at one of them.

    Args:
        at: the number of the operation, from 0.
        kinds: what counts.
    """

    def __init__(self, at: int, *, kinds: Iterable[Kind] = CHANGES, below: Disk | None = None) -> None:
        super().__init__(below)
        self.at = at
        self.count = 0
        self.kinds = frozenset(kinds)

    def number(self, kind: Kind) -> int | None:
        """The number of an operation that begins now, None when its kind does not count."""
        if kind not in self.kinds:
            return None
        self.count += 1
        return self.count - 1


class Failing(Chosen):
    """A disk that refuses one operation, or each from that one on.

    Args:
        errno: what it says; 0 is a write that takes only half of the bytes.
        forever: whether every later one fails too.
    """

    def __init__(
        self,
        at: int = 0,
        errno: int = errors.EIO,
        *,
        forever: bool = False,
        kinds: Iterable[Kind] = CHANGES,
        below: Disk | None = None,
    ) -> None:
        super().__init__(at, kinds=kinds, below=below)
        self.errno = errno
        self.forever = forever

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        number = self.number(kind)
        if number is None or not (number == self.at or (self.forever and number > self.at)):
            return do()
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        return self.half(name, arguments) if kind == "write" else do()


class Killing(Chosen):
    """A disk at which the process kills itself, with no chance to tidy up: before, half-way through, or after."""

    def __init__(
        self, at: int, when: When = "before", *, kinds: Iterable[Kind] = CHANGES, below: Disk | None = None
    ) -> None:
        super().__init__(at, kinds=kinds, below=below)
        self.when = when

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if self.number(kind) != self.at:
            return do()
        if self.when == "half" and kind == "write":
            self.half(name, arguments)
        elif self.when != "before":
            do()
        os.kill(os.getpid(), signal.SIGKILL)
        return None


def path_of(fd: int) -> str:
    """The name of an open file; Linux says it."""
    return os.readlink(f"/proc/self/fd/{fd}")


def _opens_as(arguments: tuple[object, ...]) -> Kind | None:
    path, flags = arguments[:2]
    if not isinstance(flags, int) or not isinstance(path, str | os.PathLike):
        return None
    if flags & os.O_CREAT and not os.path.lexists(path):
        return "create"
    if flags & os.O_TRUNC:
        return "truncate"
    return "open" if flags & (os.O_WRONLY | os.O_RDWR) else None
