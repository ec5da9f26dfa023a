"""Blobs of the user's repository: single ones by the name of what leads to them, many by their ids."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from coral.errors import CorruptionError, GitCommandError
from coral.git.command import Conversation, ask, run, stream

T = TypeVar("T")
LARGEST = 256 << 20
"""Bytes of the largest blob that is read whole: a manifest of two million tensors."""
_HEAD_BYTES = 64
BLOCK = 128
"""So many ids that are told, and the answers, fit into a pipe of 16 KiB while nobody reads."""
_PIECE_BYTES = 1 << 20


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
        options: of git itself, such as ``--git-dir``.
    """

    def __init__(self, folder: Path, *, options: Sequence[str] = ()) -> None:
        self._stack = contextlib.ExitStack()
        commands = ([*options, "--no-replace-objects", "cat-file", how] for how in ("--batch-check", "--batch"))
        self._sizes, self._contents = (self._stack.enter_context(stream(folder, command)) for command in commands)

    def __enter__(self) -> BlobReader:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)

    def sizes(self, blobs: Iterable[str]) -> Iterator[int | None]:
        """Bytes of each; None for what is not here, or no blob."""
        todo = iter(blobs)
        while some := list(islice(todo, BLOCK)):
            for answer in look_up(self._sizes, some):
                yield int(answer[2]) if answer[1:2] == ["blob"] else None

    def small(self, blobs: Iterable[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
        """Those that are no longer than ``limit``, and their bytes. Raises as :meth:`read`."""
        return self.read(((blob, blob) for blob in blobs), limit=limit)

    def read(
        self, found: Iterable[tuple[str, T]], *, limit: int = LARGEST, wanted: Callable[[bytes], bool] | None = None
    ) -> Iterator[tuple[T, bytes]]:
        """Blobs that come with something to tell them by, one at a time; what is no blob, or not here, is left out.

        Args:
            limit: what is longer is left out.
            wanted: is given the first 64 bytes of each, and says whether to read the rest.

        Raises:
            GitCommandError: git failed.
        """
        todo = iter(found)
        while some := list(islice(todo, BLOCK)):
            sizes = zip(some, self.sizes(ident for ident, _ in some), strict=True)
            taken = [one for one, size in sizes if size is not None and size <= limit]
            self._contents.tell(b"".join(f"{ident}\n".encode() for ident, _ in taken))
            for _, what in taken:
                data = self._read_one(wanted)
                if data is not None:
                    yield what, data

    def _read_one(self, wanted: Callable[[bytes], bool] | None) -> bytes | None:
        rest = self._begin()
        head = self._contents.stdout.read(min(rest, _HEAD_BYTES))
        is_wanted = wanted is None or wanted(head)
        kept = [head]
        for piece in self._pieces(rest - len(head)):
            if is_wanted:
                kept.append(piece)
        return b"".join(kept) if is_wanted else None

    def pieces(self, blob: str) -> Iterator[bytes]:
        """The bytes of one, piece by piece; to be read to the end before the next. Raises CorruptionError."""
        self._contents.tell(f"{blob}\n".encode())
        try:
            yield from self._pieces(self._begin())
        except GitCommandError as error:
            raise CorruptionError(f"git cannot read all of the blob {blob}: {error}", hint="see 'git fsck'") from None

    def _begin(self) -> int:
        """The length of the blob that git answers with now."""
        words = self._contents.stdout.readline().split()
        if words[1:2] != [b"blob"]:
            raise GitCommandError(f"git lost the object {words[0].decode()}") if words else self._contents.failure()
        return int(words[2])

    def _pieces(self, left: int) -> Iterator[bytes]:
        """The rest of a blob, and the newline after it."""
        while left:
            piece = self._contents.stdout.read(min(left, _PIECE_BYTES))
            if not piece:
                raise self._contents.failure()
            left -= len(piece)
            yield piece
        if self._contents.stdout.read(1) != b"\n":
            raise self._contents.failure()


def read_found(
    folder: Path,
    found: Iterable[tuple[str, T]],
    *,
    wanted: Callable[[bytes], bool] | None = None,
    options: Sequence[str] = (),
) -> Iterator[tuple[T, bytes]]:
    """As :meth:`BlobReader.read`, by processes that start when there is anything to read."""
    rest = iter(found)
    first = next(rest, None)
    if first is not None:
        with BlobReader(folder, options=options) as reader:
            yield from reader.read(chain([first], rest), wanted=wanted)


def look_up(talk: Conversation, names: Sequence[str]) -> list[list[str]]:
    """What ``cat-file --batch-check`` says of names, at most :data:`BLOCK`: id, kind and size; none of a missing one.

    Raises:
        GitCommandError: git failed.
    """
    talk.tell(b"".join(f"{name}\n".encode() for name in names))
    answers = [talk.stdout.readline() for _ in names]
    if not all(answers):
        raise talk.failure()
    return [[] if answer.endswith((b" missing\n", b" ambiguous\n")) else answer.decode().split() for answer in answers]
