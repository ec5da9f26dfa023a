"""Writing a repository's history anew with other blobs, by ``git fast-export`` and ``git fast-import``.

What they say to each other passes through here line by line; only the ids of blobs are changed. The new commits come
into being beside the old ones, with branches of their own in an empty repository that shares the objects; the user's
branches move at the end, all at once, and only if they are where they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from coral.errors import ConflictError, GitCommandError, NotFoundError
from coral.git.command import Conversation, ask, run, stream

BACKUP = "refs/coral/before-import-lfs"
_EXPORT = ("fast-export", "--no-data", "--reencode=no", "--use-done-feature", "--all")
_IMPORT = ("fast-import", "--quiet", "--done", "--force", "--date-format=raw-permissive")
_KINDS = ("refs/heads", "refs/tags")
_FILES = (b"M 100644 ", b"M 100755 ")
_DATA = b"data "
_PIECE_BYTES = 1 << 20
_TAG = re.compile(rb"object ([0-9a-f]+)\ntype (commit|tag)\n")
_SIGNATURE = re.compile(rb"^-----BEGIN (?:PGP SIGNATURE|PGP MESSAGE|SSH SIGNATURE|SIGNED MESSAGE)-----$", re.MULTILINE)

Change = Callable[[bytes, bytes], bytes]
"""Gives the id of the blob that stands for a file from now on; the path is quoted where git would quote it."""


class Ref(NamedTuple):
    """A branch or tag: its full name, what it leads to, and the commit that this is, or stands for."""

    name: str
    target: str
    commit: str


class Moved(NamedTuple):
    """A branch or tag that leads somewhere else now."""

    name: str
    old: str
    new: str


def branches_and_tags(folder: Path, names: Sequence[str] = ()) -> list[Ref]:
    """Those named, or all; none that only leads to another, or to something else than a commit.

    Raises:
        NotFoundError: a name that is not one of them.
    """
    listed = run(folder, ["for-each-ref", "--format=%(refname) %(objectname) %(symref)", *_KINDS]).decode()
    rows = [line.split(" ") for line in listed.splitlines()]
    targets = [(name, target) for name, target, symref in rows if not symref]
    questions = "".join(f"{target}^{{commit}}\n" for _, target in targets)
    answers = run(folder, ["cat-file", "--batch-check"], data=questions.encode()).decode().splitlines()
    peeled = [answer.split(" ") for answer in answers]
    found = {
        name: Ref(name, target, words[0])
        for (name, target), words in zip(targets, peeled, strict=True)
        if words[1:2] == ["commit"]
    }
    return [found[_full_name(folder, name, found)] for name in names] if names else list(found.values())


def _full_name(folder: Path, name: str, known: Mapping[str, Ref]) -> str:
    words = ["rev-parse", "--symbolic-full-name", "--verify", "--quiet", "--end-of-options", name]
    full = (ask(folder, words) or "").strip()
    if full not in known:
        raise NotFoundError(f"{name!r} is neither a branch nor a tag", hint="only those can be rewritten")
    return full


class Rewriter:
    """The history of some refs, and what it is to become.

    Args:
        folder: in the repository.
        beside: where there is nothing yet, for a repository that lasts as long as this is used.

    Raises:
        GitCommandError: here, and in all methods: git cannot read, or write, some commit. The refs are where they were.
    """

    def __init__(self, folder: Path, refs: Sequence[Ref], *, beside: Path) -> None:
        self._folder = folder
        self._refs = refs
        kind = run(folder, ["rev-parse", "--show-object-format"]).decode().strip()
        objects = run(folder, ["rev-parse", "--path-format=absolute", "--git-path", "objects"]).decode().rstrip("\n")
        run(folder, ["init", "--quiet", "--bare", "--template=", f"--object-format={kind}", str(beside)])
        self._environment = {"GIT_OBJECT_DIRECTORY": objects}
        self._own = f"--git-dir={beside}"
        commits = "".join(f"create refs/heads/{number} {ref.commit}\n" for number, ref in enumerate(refs))
        run(folder, [self._own, "update-ref", "--stdin"], data=commits.encode(), environment=self._environment)

    def follow(self, change: Change) -> None:
        """Show every file that the history ever added or changed, the oldest first; nothing is changed."""
        with self._stream(_EXPORT) as old:
            transform(old.stdout, change, lambda _: None)

    def rewrite(self, change: Change) -> list[Moved]:
        """Write the history anew; what is given back is where the refs belong, and :func:`move` moves them."""
        # In this order, so that an export that fails is what is told of.
        with self._stream(_IMPORT) as new, self._stream(_EXPORT) as old:
            transform(old.stdout, change, partial(new.tell, now=False))
        words = [self._own, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)"]
        lines = run(self._folder, words, environment=self._environment).decode().splitlines()
        written = {int(number): commit for number, commit in (line.split(" ") for line in lines)}
        commits = {ref.commit: written[number] for number, ref in enumerate(self._refs)}
        moved = [Moved(ref.name, ref.target, self._renewed(ref.target, commits)) for ref in self._refs]
        return [one for one in moved if one.new != one.old]

    def _stream(self, arguments: Sequence[str]) -> AbstractContextManager[Conversation]:
        return stream(self._folder, [self._own, *arguments], environment=self._environment)

    def _renewed(self, target: str, commits: Mapping[str, str]) -> str:
        """The new commit, or a tag like the old one that leads to it. A signature is left out: it would be wrong."""
        if target in commits:
            return commits[target]
        text = run(self._folder, ["cat-file", "tag", target])
        match = _TAG.match(text)
        if match is None:
            raise GitCommandError(f"the tag {target} is malformed")
        old = match[1].decode()
        new = self._renewed(old, commits)
        if new == old:
            return target
        signatures = list(_SIGNATURE.finditer(text))
        text = text[: signatures[-1].start()] if signatures else text
        changed = b"object %s" % new.encode() + text[match.end(1) :]
        return run(self._folder, ["hash-object", "-w", "-t", "tag", "--stdin"], data=changed).decode().strip()


def transform(source: IO[bytes], change: Change, write: Callable[[bytes], object]) -> None:
    """Copy what ``git fast-export --no-data`` prints, with other blobs."""
    while line := source.readline():
        if line.startswith(_FILES):
            command, mode, blob, path = line.rstrip(b"\n").split(b" ", 3)
            line = b" ".join((command, mode, change(blob, path), path)) + b"\n"
        write(line)
        if line.startswith(_DATA):
            _copy(source, int(line[len(_DATA) :]), write)


def _copy(source: IO[bytes], left: int, write: Callable[[bytes], object]) -> None:
    while left:
        piece = source.read(min(left, _PIECE_BYTES))
        if not piece:
            raise GitCommandError("git fast-export ended in the middle of a message")
        write(piece)
        left -= len(piece)


def move(folder: Path, moved: Sequence[Moved]) -> str:
    """Move refs, and keep where they were under :data:`BACKUP`; all of it happens, or none.

    Where git itself is killed just then, some may have moved; but none whose old place is not kept, and the rest moves
    when the same is done again.

    Returns:
        What the names of the old ones begin with.

    Raises:
        ConflictError: a ref was moved meanwhile.
    """
    prefix = _free_prefix(folder)
    lines = ["start"]
    for name, old, new in moved:
        lines += [f"create {prefix}{name.removeprefix('refs/')} {old}", f"update {name} {new} {old}"]
    try:
        run(folder, ["update-ref", "-m", "import-lfs", "--stdin"], data="\n".join([*lines, "commit", ""]).encode())
    except GitCommandError as error:
        raise ConflictError(
            f"the branches stay where they were: {error.message}", hint="run it again when nobody else commits"
        ) from None
    return prefix


def _free_prefix(folder: Path) -> str:
    """A place for the old refs where none are yet: what an earlier import kept stays."""
    number = 1
    while run(folder, ["for-each-ref", "--count=1", prefix := f"{BACKUP}{f'-{number}' if number > 1 else ''}/"]):
        number += 1
    return prefix
