"""Blobs of the user's repository: single ones by the name of what leads to them, many by their ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from coral.errors import CorruptionError, GitCommandError
from coral.git.command import ask, run, stream

_PIECE_BYTES = 1 << 20
# As many questions as fit into a pipe, so that none is waited with until the one before it is answered.
_AT_ONCE = 256


def read_blob(folder: Path, revision: str, *, limit: int) -> bytes | None:
    """A blob's bytes; None when there is none, or when it is longer than ``limit``.

    Args:
        folder: in the repository.
        revision: an object id, or ``:0:path`` for what the index holds, or ``HEAD:path``.
    """
    length = (ask(folder, ["cat-file", "-s", revision]) or "").strip()
    if not length.isdigit() or int(length) > limit:
        return None
    try:
        return run(folder, ["cat-file", "blob", revision])
    except GitCommandError:
        return None


def write_blob(folder: Path, data: bytes) -> str:
    """Keep bytes in the repository, as they are; returns their id. Raises GitCommandError."""
    return run(folder, ["hash-object", "-w", "--no-filters", "--stdin"], data=data).decode().strip()


class BlobReader:
    """Many blobs of one repository, read through two git processes that stay.

    Args:
        folder: in the repository.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._sizes = self._stack.enter_context(stream(folder, ["cat-file", "--batch-check"]))
        self._contents = self._stack.enter_context(stream(folder, ["cat-file", "--batch"]))

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def sizes(self, blobs: Sequence[str]) -> Iterator[int | None]:
        """Bytes of each; None for what is not here, or no blob."""
        todo = iter(blobs)
        while some := list(islice(todo, _AT_ONCE)):
            self._sizes.tell("".join(f"{blob}\n" for blob in some).encode())
            answers = [self._sizes.stdout.readline().split() for _ in some]
            yield from (int(words[2]) if words[1:2] == [b"blob"] else None for words in answers)

    def small(self, blobs: Iterable[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Those that are no longer than ``limit``, and their bytes."""
        todo = iter(blobs)
        while some := list(islice(todo, _AT_ONCE)):
            sizes = zip(some, self.sizes(some), strict=True)
            for blob in [blob for blob, size in sizes if size is not None and size <= limit]:
                yield blob, b"".join(self.pieces(blob))

    def pieces(self, blob: str) -> Iterator[bytes]:
        """The bytes of one, piece by piece; to be read to the end before the next. Raises CorruptionError."""
        self._contents.tell(f"{blob}\n".encode())
        words = self._contents.stdout.readline().split()
        if words[1:2] != [b"blob"]:
            raise CorruptionError(f"git has no blob {blob}", hint="'git fsck' says what else is missing")
        left = int(words[2])
        while left:
            piece = self._contents.stdout.read(min(left, _PIECE_BYTES))
            if not piece:
                raise CorruptionError(f"git cannot read all of the blob {blob}", hint="see 'git fsck'")
            left -= len(piece)
            yield piece
        self._contents.stdout.read(1)  # the newline after it
