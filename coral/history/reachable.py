"""What a history reaches: the blobs of every commit that a ref, a reflog or HEAD names, and of all that led there.

Every name is read as the text that it is, and anything that is not as git writes it is an error: whoever asks is about
to throw away what is not reached.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from coral.errors import CorruptionError, NotFoundError
from coral.history import trees
from coral.history.commit import CommitObject
from coral.history.libgit import Handle
from coral.ids import BlobId, CommitHash
from coral.storage.folder import Folder

_REF = re.compile(rb"([0-9a-f]{40})\s*|ref: \S+\s*", re.ASCII)
_MOVE = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) ", re.ASCII)
_ID = re.compile(rb"\b[0-9a-f]{40}\b", re.ASCII)
_TAGGED = re.compile(rb"object ([0-9a-f]{40})\n", re.ASCII)
_PSEUDO_REF = re.compile(r"[A-Z][A-Z_]*", re.ASCII)
_NOTHING = "0" * 40


class Reachable:
    """What a history reaches, found step by step: each walk gives what the ones before did not."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._seen: set[str] = set()

    def blobs(self, more: Iterable[str] = ()) -> Iterator[BlobId]:
        """The blobs that are reached now and were not before.

        Args:
            more: other objects to begin from.

        Raises:
            CorruptionError: a ref, a reflog or an object cannot be read; so nobody knows what is reached.
        """
        todo = [*more, *_named(self._handle.git_dir)]
        todo += [oid for oid in _noted(self._handle.git_dir) if self._handle.exists(oid)]
        while todo:
            oid = todo.pop()
            if oid in self._seen or oid == _NOTHING:
                continue
            self._seen.add(oid)
            kind = self._handle.kind(oid)
            if kind == "blob":
                yield BlobId(oid)
            elif kind == "tree":
                todo += (entry.oid for entry in trees.entries(self._handle, oid).values() if _is_ours(entry))
            else:
                todo += self._next(kind, oid)

    def _next(self, kind: str, oid: str) -> Iterable[str]:
        _, data = self._handle.read(oid)
        if kind == "commit":
            commit = CommitObject.from_bytes(data, CommitHash(oid))
            return (commit.tree, *commit.parents)
        found = _TAGGED.match(data)
        if found is None:
            raise CorruptionError(f"the git tag {oid} is malformed", hint="run coral fsck")
        return [found[1].decode()]


def _is_ours(entry: trees.Entry) -> bool:
    # A submodule's commit lies in another repository.
    return entry.mode != "160000"


def _named(git_dir: Path) -> Iterator[str]:
    """What refs and reflogs name, those of linked worktrees among them. Raises CorruptionError."""
    folders = [git_dir, *sorted((git_dir / "worktrees").glob("*"))]
    for folder in folders:
        for path in _files(folder / "refs"):
            yield from _ref(path)
        yield from _ref(folder / "HEAD")
        for path in _files(folder / "logs"):
            yield from _reflog(path)
    # After the loose refs: git writes the packed one before it removes the loose one.
    yield from _ids(_read(git_dir / "packed-refs"))


def _noted(git_dir: Path) -> Iterator[str]:
    """What git has noted beside its refs, such as ORIG_HEAD; it may be of another repository."""
    for path in sorted(git_dir.iterdir()):
        if path.is_file() and _PSEUDO_REF.fullmatch(path.name):
            yield from _ids(_read(path))


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not name.endswith(".lock"))


def _ref(path: Path) -> Iterator[str]:
    data = _read(path)
    found = _REF.fullmatch(data)
    if found is None and data:
        raise CorruptionError(f"the ref {path} is damaged", hint="run coral fsck")
    if found is None and path.exists():
        raise CorruptionError(f"the ref {path} is empty", hint="run coral fsck")
    if found is not None and found[1]:
        yield found[1].decode()


def _reflog(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        found = _MOVE.match(line)
        if found is None:
            raise CorruptionError(f"line {number} of the reflog {path} is damaged", hint="mend or remove that line")
        yield from (found[1].decode(), found[2].decode())


def _ids(data: bytes) -> Iterator[str]:
    return (found.decode() for found in _ID.findall(data))


def _read(path: Path) -> bytes:
    """A file's bytes; none where it went away. Raises StorageError."""
    try:
        return Folder(path.parent).read(path.name)
    except NotFoundError:
        return b""
