"""git's index of the user's repository: which blob stands for which file, and telling git that a file is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from coral.git.command import run

_SHA1_DIGITS = 40


class IndexEntry(NamedTuple):
    """A file in the index; ``name`` is from the top of the working tree, ``stage`` is 0 unless it is in conflict."""

    name: str
    mode: str
    blob: str
    stage: int


def entries(folder: Path, paths: Sequence[str] = ()) -> list[IndexEntry]:
    """The files of the index, in its order.

    Args:
        folder: the top of the working tree, or a folder in it.
        paths: files and folders, relative to ``folder``; none means all of the working tree.

    Raises:
        GitCommandError: no repository.
    """
    literal = [f":(literal){path}" if paths else path for path in paths] or [":/"]
    listed = run(folder, ["ls-files", "--stage", "--full-name", "-z", "--", *literal])
    found = []
    for line in listed.decode(errors="surrogateescape").split("\0")[:-1]:
        head, _, name = line.partition("\t")
        mode, blob, stage = head.split(" ")
        found.append(IndexEntry(name, mode, blob, int(stage)))
    return found


def blob_id(text: bytes, like: str) -> str:
    """The id that git gives to a blob.

    Args:
        like: any id of the same repository, which tells SHA-1 from SHA-256.
    """
    hashed = hashlib.sha1(usedforsecurity=False) if len(like) == _SHA1_DIGITS else hashlib.sha256()
    hashed.update(b"blob %d\0" % len(text) + text)
    return hashed.hexdigest()


def update(top: Path, names: Iterable[str]) -> None:
    """Have git look at files anew, and stage them as they are. Raises GitCommandError."""
    listed = b"".join(name.encode(errors="surrogateescape") + b"\0" for name in names)
    if listed:
        run(top, ["update-index", "-z", "--stdin"], data=listed)
