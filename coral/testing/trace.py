"""What a program did to a folder: its system calls in order, with the bytes they wrote and the marks in between."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "create", "write", "truncate", "sync", "rename", "link", "unlink", "mkdir", "rmdir", "chmod", "open", "mark"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of the numbers that ``shim.c`` gives them. ``open`` is an open for writing that changes nothing yet."""
CHANGES: frozenset[Kind] = frozenset(KINDS) - {"open", "chmod", "mark"}
"""Those after which the disk is another one."""

_HEAD = struct.Struct("=IIIIQQ")


class Operation(NamedTuple):
    """One call that succeeded.

    Attributes:
        path: absolute; of a file that was written, the name it had at that moment.
        target: the second path of a rename or link.
        offset: where a write begins; the new size of a truncate.
        data: what was written; of a mark, what the program said.
    """

    kind: Kind
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""


def parse(log: bytes) -> list[Operation]:
    """The operations of a log that ``shim.c`` wrote; one that is cut off at its end, by a kill, is left out."""
    return list(_parse(log))


def _parse(log: bytes) -> Iterator[Operation]:
    position = 0
    while position + _HEAD.size <= len(log):
        kind, path_length, target_length, _, offset, length = _HEAD.unpack_from(log, position)
        path = position + _HEAD.size
        target, data = path + path_length, path + path_length + target_length
        position = data + length
        if position > len(log):
            return
        names = log[path:target].decode(errors="surrogateescape"), log[target:data].decode(errors="surrogateescape")
        yield Operation(KINDS[kind], *names, offset, log[data:position])


def mask(kinds: Iterable[Kind]) -> int:
    """A set of kinds as the bits that ``shim.c`` takes."""
    return sum(1 << KINDS.index(kind) for kind in set(kinds))
