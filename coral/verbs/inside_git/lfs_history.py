"""From git-LFS to coral, in all of a history: every commit that held pointers becomes one that holds manifests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from coral.errors import ConflictError, UsageError
from coral.format.manifest import TEXT_LIMIT
from coral.git import index
from coral.git.blobs import BlobReader, read_blob, write_blob
from coral.git.command import ask, run
from coral.git.lfs import ATTRIBUTES, ATTRIBUTES_LIMIT, POINTER_LIMIT, LfsObjects, Pointer, parse_pointer, with_coral
from coral.git.rewriting import Moved, Ref, Rewriter, move
from coral.verbs.inside_git.filter import GitFilter
from coral.verbs.inside_git.lfs import Report, is_likely_here, keep, missing_error, shorten

_AT_ONCE = 4096
_UNDER_WAY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "rebase-merge", "rebase-apply")


class OldFile(NamedTuple):
    """A pointer somewhere in the history.

    Attributes:
        path: where it was first, quoted as git quotes it.
    """

    pointer: Pointer
    path: str


@dataclass(slots=True)
class Found:
    """What a history holds of git-LFS's, by blob.

    Attributes:
        files: the pointers, in the order they were committed.
        attributes: the new texts of ``.gitattributes`` files.
    """

    files: dict[str, OldFile] = field(default_factory=dict)
    attributes: dict[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes behind the pointers."""
        return sum(file.pointer.size for file in self.files.values())


@dataclass(frozen=True, slots=True)
class NewBlobs:
    """What git shall keep from now on, by what it kept.

    Attributes:
        files: manifests' blobs for pointers'.
        attributes: of files named ``.gitattributes``.
        missing: where pointers stay.
    """

    files: dict[bytes, bytes]
    attributes: dict[bytes, bytes]
    missing: tuple[str, ...]

    def for_file(self, blob: bytes, path: bytes) -> bytes:
        """The blob that a file has from now on."""
        return self.files.get(blob) or (self.attributes.get(blob, blob) if _is_attributes(path) else blob)


# -- before anything changes


def check(top: Path, refs: Sequence[Ref]) -> None:
    """See that nothing can be lost, and no working tree be left behind.

    Raises:
        ConflictError: something is changed, or under way, or checked out elsewhere.
        UsageError: the history is not all here.
    """
    if (ask(top, ["rev-parse", "--is-shallow-repository"]) or "").strip() == "true":
        raise UsageError("only a part of the history is here", hint="'git fetch --unshallow' brings the rest")
    changed = index.changed(top, untracked=False)
    if changed:
        raise ConflictError(f"{shorten(changed)}: not committed", hint="commit or stash all changes first")
    _refuse_under_way(top)
    elsewhere = sorted(_checked_out_elsewhere(top).intersection(ref.name for ref in refs))
    if elsewhere:
        raise ConflictError(
            f"{shorten(elsewhere)}: checked out in another worktree",
            hint="'git worktree list' says where; remove it, or 'git switch --detach' there",
        )


def _refuse_under_way(top: Path) -> None:
    questions = [word for name in _UNDER_WAY for word in ("--git-path", name)]
    answers = run(top, ["rev-parse", "--path-format=absolute", *questions]).decode(errors="surrogateescape")
    found = [name for name, path in zip(_UNDER_WAY, answers.splitlines(), strict=False) if Path(path).exists()]
    if found:
        raise ConflictError(f"a merge, rebase or bisection is under way ({found[0]})", hint="finish or abort it first")


def _checked_out_elsewhere(top: Path) -> set[str]:
    lines = run(top, ["worktree", "list", "--porcelain"]).decode(errors="surrogateescape").splitlines()
    return {line.removeprefix("branch ") for line in lines if line.startswith("branch ")} - {_head(top)}


def _head(top: Path) -> str:
    """The branch that is checked out."""
    return (ask(top, ["symbolic-ref", "--quiet", "HEAD"]) or "").strip()


# -- what there is


def look(top: Path, history: Rewriter) -> Found:
    """Find the pointers and attributes in a history. Raises GitCommandError."""
    with BlobReader(top) as blobs:
        search = _Search(blobs)
        history.follow(search.see)
        search.settle()
    return search.found


class _Search:
    """Finds pointers among the files that it is shown; only what it finds stays in memory."""

    def __init__(self, blobs: BlobReader) -> None:
        self.found = Found()
        self._blobs = blobs
        self._waiting: list[tuple[str, bytes]] = []

    def see(self, blob: bytes, path: bytes) -> bytes:
        """Take note of a file; the answer is its blob again."""
        self._waiting.append((blob.decode(), path))
        if len(self._waiting) >= _AT_ONCE:
            self.settle()
        return blob

    def settle(self) -> None:
        """Look at all that was noted."""
        texts = dict(self._blobs.small({blob for blob, _ in self._waiting}, limit=POINTER_LIMIT))
        for blob, path in self._waiting:
            pointer = parse_pointer(texts.get(blob, b""))
            if pointer is not None:
                self.found.files.setdefault(blob, OldFile(pointer, path.decode(errors="surrogateescape")))
            elif _is_attributes(path) and blob not in self.found.attributes:
                self._see_attributes(blob)
        self._waiting.clear()

    def _see_attributes(self, blob: str) -> None:
        for _, text in self._blobs.small([blob], limit=ATTRIBUTES_LIMIT):
            edited = with_coral(text)
            if edited != text:
                self.found.attributes[blob] = edited


def _is_attributes(path: bytes) -> bool:
    """Whether a path, which may be in quotes, is of a ``.gitattributes``."""
    return path.strip(b'"').rpartition(b"/")[2] == ATTRIBUTES.encode()


# -- doing it


def store(
    top: Path, found: Found, objects: LfsObjects, *, skip_missing: bool = False, report: Report | None = None
) -> NewBlobs:
    """Store all files that pointers stand for, each as its difference to the one before it in the same place.

    Raises:
        NotFoundError: bytes are not here, and nothing was said of leaving their pointers in place.
    """
    working = _working_files(top, found)
    places = {blob: [objects.path(file.pointer), *working[blob]] for blob, file in found.files.items()}
    absent = [file.path for blob, file in found.files.items() if not is_likely_here(file.pointer, places[blob])]
    _refuse_missing(absent, skip_missing)
    latest: dict[str, str] = {}
    opened = GitFilter(top, previous=lambda path: read_blob(top, latest.get(path, ""), limit=TEXT_LIMIT))
    kept, missing = {}, []
    for blob, (pointer, path) in found.files.items():
        text = keep(opened, path, pointer, places[blob])
        if text is not None:
            latest[path] = write_blob(top, text)
            kept[blob.encode()] = latest[path].encode()
        else:
            missing.append(path)
        if report is not None:
            report(pointer.size)
    opened.finish()
    _refuse_missing(missing, skip_missing)
    attributes = {blob.encode(): write_blob(top, text).encode() for blob, text in found.attributes.items()}
    return NewBlobs(kept, attributes, tuple(missing))


def _refuse_missing(names: Sequence[str], skip_missing: bool) -> None:
    if names and not skip_missing:
        raise missing_error(names, bring="git lfs fetch --all")


def _working_files(top: Path, found: Found) -> dict[str, list[Path]]:
    """The files of the working tree in which a pointer's bytes may be."""
    places = defaultdict(list)
    for entry in index.index_entries(top):
        if entry.blob in found.files:
            places[entry.blob].append(top / entry.name)
    return places


def rewrite(top: Path, history: Rewriter, blobs: NewBlobs) -> tuple[list[Moved], str]:
    """Write a history anew, move the refs, and bring the working tree along.

    Returns:
        What was moved, and what the names of the old refs begin with.

    Raises:
        GitCommandError: git cannot write some commit anew; everything is as it was.
        ConflictError: a ref was moved meanwhile; everything is as it was.
    """
    moved = history.rewrite(blobs.for_file)
    if not moved:
        return [], ""
    backup = move(top, moved)
    if _head(top) in {one.name for one in moved}:
        run(top, ["reset", "--hard", "--quiet"])
    return moved, backup
