"""The socket for far stores: what a place can do with bytes under keys, and what each of its verbs promises.

A place may be a folder, a bucket, another machine. It keeps whole objects, and changes none of them in its place.

Promises of every place, which ``coral.testing.contracts.places`` holds it to:

* **Whole or not at all.** Who reads, looks or lists meets an object as it was handed in, never a part of it, whatever
  ended the call that was writing it.
* **Kept.** Once :meth:`Place.create`, :meth:`Place.replace` or :meth:`Place.remove` has returned, neither a crash of
  either end nor a power cut takes it back. After one that raised StorageError, or never returned, it took place or
  did not; who must know looks.
* **Seen.** What has returned is seen by every call that begins later, whoever makes it.
* **The first wins.** Of several who create one key exactly one succeeds, and of several who replace what they all saw;
  wherever :attr:`Place.compares`.
* **Shared.** Threads may call it at once, and so may other processes and machines.
* **Errors are coral's.** Besides those that are named at the verbs, StorageError: the place refused, or is not to be
  had, and the same call may work later.

Not promised: who must know which of two equal writers they are finds their own id in what they wrote. Over a network
the answer to a call may get lost and the call be made again, so that AlreadyExistsError and ConflictError may tell of
one's own object: read it before believing that somebody else was quicker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, NewType, Protocol

from coral.errors import InvalidNameError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Stamp = NewType("Stamp", str)
"""Tells the bytes that a key has from those that it had: while it is the same, they are. Means nothing elsewhere."""

LONGEST_PART, LONGEST_KEY = 200, 800
# No capitals, which some file systems take for the small letters.
_PART = re.compile(r"[a-z0-9_][a-z0-9._-]*", re.ASCII)


class Found(NamedTuple):
    """An object that is there.

    Attributes:
        nbytes: its length.
        stamp: of its bytes.
        modified: when it was written, in seconds since 1970 by the clock of whoever knows.
    """

    key: str
    nbytes: int
    stamp: Stamp
    modified: float


class Place(Protocol):
    """Bytes under keys, far away.

    A key is made of parts with ``/`` between them, see :func:`check_key`; every verb raises InvalidNameError for
    another one. No key may be the folder of another one: what comes of that is not promised.
    """

    @property
    def compares(self) -> bool:
        """Whether :meth:`create` and :meth:`replace` compare and write in one step; else there may be one writer."""

    def listing(self, folder: str = "") -> Iterable[Found]:
        """All objects whose keys begin with a folder and ``/``, in no order; "" is every one.

        What was there when it began and still is when it ends is in it once; what comes or goes meanwhile may be.
        """

    def look(self, key: str) -> Found:
        """One object. Raises NotFoundError.

        Who is to replace it looks first, and reads then: the other way round the stamp may be of newer bytes.
        """

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes | memoryview:
        """The bytes [start, stop) of an object; those that there are, as of a slice. Raises NotFoundError.

        All of them are of one and the same object, as it was when the call began or later. Many may be mapped.
        """

    def create(self, key: str, data: Buffer) -> Stamp:
        """Put an object where there is none. What is large is handed in mapped, and not changed before it returns.

        Raises:
            AlreadyExistsError: there is one, and it stays as it is.
        """

    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        """Put an object in the place of one that still has the bytes that were expected.

        Raises:
            ConflictError: it has others, or is gone, and that stays so. Not as LockedError, which is no lost race.
        """

    def remove(self, key: str) -> None:
        """Take an object away, whatever it is; one that is not there is fine."""


def check_key(key: str) -> str:
    """The key itself. Raises InvalidNameError for one that some place could not keep, or keep apart from others.

    Each of its parts begins with a small letter, a digit or ``_``, and may have ``.`` and ``-`` as well.
    """
    if not is_key(key):
        raise InvalidNameError(f"{key!r} is no key of a place")
    return key


def is_key(key: str) -> bool:
    """Whether every place can keep an object under such a key."""
    parts = key.split("/")
    return len(key) <= LONGEST_KEY and all(_PART.fullmatch(part) and len(part) <= LONGEST_PART for part in parts)
