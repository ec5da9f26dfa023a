"""What imports from git-LFS share: the bytes behind its pointers, and what must be so before anything changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coral.containers import OpenFile
from coral.errors import NotFoundError, UsageError
from coral.git.command import ask
from coral.git.lfs import Pointer
from coral.storage.contents import TMP, lock
from coral.storage.locks import file_lock
from coral.verbs import layout

if TYPE_CHECKING:
    from coral.storage.folder import Folder
    from coral.verbs.inside_git.filter import GitFilter

_PIECE_BYTES = 1 << 20
_SCRATCH = "import-lfs"
_SHOWN = 5

Report = Callable[[int], object]
"""Told how many bytes were just dealt with."""


def is_likely_here(pointer: Pointer, places: Iterable[Path]) -> bool:
    """Whether one of the places has a file of the right length."""
    return any(_length(path) == pointer.size for path in places)


def keep(opened: GitFilter, name: str, pointer: Pointer, places: Iterable[Path]) -> bytes | None:
    """Store the file that a pointer stands for, from the first place that has it, by its SHA-256.

    Returns:
        What git shall keep of it; None when no place has it.

    Raises:
        ConflictError: the file changed while it was read.
    """
    for path in places:
        if _length(path) != pointer.size:
            continue
        file = OpenFile(path)
        if _sha256(file) == pointer.sha256:
            return opened.keep_whole(name, file)
        file.close()
    return None


def _length(path: Path) -> int | None:
    """Bytes of a regular file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sha256(file: OpenFile) -> str:
    found = hashlib.sha256()
    for start in range(0, file.size, _PIECE_BYTES):
        found.update(file.read(start, min(start + _PIECE_BYTES, file.size)))
    return found.hexdigest()


def refuse_without_filter(top: Path) -> None:
    """Raise UsageError when git would not know what to do with a manifest."""
    if not ask(top, ["config", "--name-only", "--get-regexp", r"^filter\.coral\.(clean|process)$"], nothing_found=1):
        raise UsageError("git does not know coral's filter here", hint="run 'coral install' first")


@contextlib.contextmanager
def alone(top: Path) -> Iterator[Folder]:
    """Keep other imports out; gives an empty folder that is there as long as this lasts. Raises LockedError."""
    folder = layout.create(top)
    with file_lock(folder.path(lock(_SCRATCH)), timeout=0):
        scratch = folder.sub(TMP)
        scratch.remove_tree(_SCRATCH)
        scratch.make_folder(_SCRATCH)
        try:
            yield scratch.sub(_SCRATCH)
        finally:
            scratch.remove_tree(_SCRATCH)


def missing_error(names: Sequence[str], *, bring: str) -> NotFoundError:
    """What to raise for pointers whose bytes are not here.

    Args:
        bring: the command that brings them.
    """
    return NotFoundError(
        f"the bytes that git-LFS keeps of {shorten(names)} are not here",
        hint=f"'{bring}' brings them; with --skip-missing their pointers stay",
    )


def shorten(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
