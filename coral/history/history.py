"""The history of a coral repository: its commits, and the branches and tags that name them.

The order of writing: blobs and trees, then the commit, both durable when the call returns; then a ref moves to it. A
kill at any moment leaves every ref at a whole commit.
"""

from __future__ import annotations

import contextlib
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from coral.errors import (
    AlreadyExistsError,
    CorruptionError,
    RefNotFoundError,
    UsageError,
)
from coral.format.names import check_ref
from coral.history import commit as commits
from coral.history import message as messages
from coral.history import trees
from coral.history.commit import Commit, CommitObject
from coral.history.expressions import Expressions
from coral.history.libgit import Handle
from coral.history.operations import Operation, OperationLog
from coral.history.plain import CONFIG, RefTarget
from coral.history.refs import TAGS, Change, Head, ReflogEntry, Refs, branch_ref, check_hash, missing_ref, tag_ref
from coral.history.walk import latest_first, merge_base, newest_first
from coral.ids import BlobId, CommitHash
from coral.storage.contents import LOCKS
from coral.storage.folder import Folder

if TYPE_CHECKING:
    from coral.history.reachable import Reachable

MAX_BLOB_BYTES = 512 * 2**20
_MAX_CLOCK_SKEW_SECONDS = 24 * 60 * 60


class History:
    """Commits, branches and tags in an ordinary git repository.

    One object may be used by all threads of a process, and by the children that it forks.

    Args:
        git_dir: the git repository.
        locks: the folder of coral's flock files.
    """

    def __init__(self, git_dir: Path, *, locks: Path) -> None:
        self.git_dir = git_dir
        self._locks = locks
        self._handle = Handle(git_dir)
        self._operations = OperationLog(Folder(locks.parent))
        self._refs = Refs(self._handle, locks, self._operations)
        self._expressions = Expressions(self._handle, self._refs, self._object)

    @classmethod
    def create(cls, git_dir: Path, *, locks: Path | None = None, branch: str = "main") -> History:
        """Make an empty repository, durably; one that is there already is opened as it is.

        Several processes may do it at once. HEAD is written last: what has no HEAD is not a repository yet.
        """
        folder = Folder(git_dir)
        if not folder.exists("HEAD"):
            for key in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info", "hooks"):
                folder.make_folder(key)
            if not folder.exists("config"):
                folder.write("config", CONFIG)
            try:
                folder.create("HEAD", f"ref: {branch_ref(branch)}\n".encode())
            except AlreadyExistsError:
                pass
        return cls(git_dir, locks=locks if locks is not None else git_dir.parent / LOCKS)

    # -- objects

    def write_blob(self, data: bytes) -> BlobId:
        """Store bytes, durably; returns their id."""
        if len(data) > MAX_BLOB_BYTES:
            raise UsageError(f"{len(data):,} bytes are too many for the history (at most {MAX_BLOB_BYTES:,})")
        return BlobId(self._handle.write("blob", data))

    def read_blob(self, oid: BlobId) -> bytes:
        """Bytes that were stored, verified. Raises CorruptionError when they are missing or damaged."""
        kind, data = self._handle.read(check_hash(oid))
        if kind != "blob":
            raise CorruptionError(f"the git object {oid} is a {kind}, not a blob", hint="run coral fsck")
        return data

    def parts(self, commit_hash: CommitHash | None) -> dict[str, BlobId]:
        """Every path of a commit and its blob, sorted by path; none for None.

        Raises:
            CorruptionError: a path that no part may have (``.git/config``): writing a file there would run code.
        """
        return trees.walk(self._handle, self._object(commit_hash).tree) if commit_hash is not None else {}

    def part(self, commit_hash: CommitHash, path: str) -> BlobId | None:
        """The blob at a path of a commit, or None. Raises CorruptionError as :meth:`parts`."""
        return trees.Finder(self._handle, path).blob(self._object(commit_hash).tree)

    def versions(self, path: str) -> Iterator[BlobId]:
        """The blobs that a path had in any commit that a branch, a tag or HEAD leads to, each once.

        Lazily, the latest first: the whole history is read only by who asks for all of them.
        """
        finder, given = trees.Finder(self._handle, path), set()
        for commit in latest_first(self._tips(), self._object):
            oid = finder.blob(commit.tree)
            if oid is not None and oid not in given:
                given.add(oid)
                yield oid

    def _tips(self) -> dict[CommitHash, CommitObject]:
        """Where the history begins; what somebody made a branch of, and is no commit, is not part of it."""
        tips = {}
        for tip in (*self.branches().values(), *self.tags().values(), self.head().commit):
            if tip is not None and tip not in tips:
                with contextlib.suppress(RefNotFoundError):
                    tips[tip] = self._object(tip)
        return tips

    def write_commit(
        self,
        *,
        base: CommitHash | None = None,
        overlay: Mapping[str, BlobId | None],
        parents: Sequence[CommitHash] = (),
        message: str,
        author: str = "coral",
        trailers: Mapping[str, str] | None = None,
        time: datetime | None = None,
        sign: Callable[[bytes], str] | None = None,
    ) -> Commit:
        """Store a commit, durably; no ref moves.

        Args:
            base: the commit whose parts are kept where the overlay says nothing; None for none.
            overlay: path to blob; None removes the path.
            parents: commits, each once.
            message: kept exactly; not blank.
            author: ``Name <email>``, or a name alone.
            trailers: keys start with ``Coral-``.
            time: when; None is now in this machine's time zone, and never before a parent (clocks run backwards).
            sign: makes the signature of the commit's bytes.

        Raises:
            UsageError: a message, author, trailer or time that git cannot store.
            ConflictError: a path would be a file and a folder.
            CorruptionError: a parent, or a blob of the overlay, is not there.
        """
        text, who = messages.encode(message, trailers or {}), commits.identity(author)
        followed = [self._object(parent) for parent in dict.fromkeys(parents)]
        when, offset = commits.from_datetime(time) if time is not None else _now(followed)
        for oid in filter(None, overlay.values()):
            if self._handle.kind(check_hash(oid)) != "blob":
                raise CorruptionError(f"the git object {oid} is not a blob")
        tree = trees.overlay(self._handle, self._object(base).tree if base is not None else None, overlay)
        made = CommitObject(tree, tuple(dict.fromkeys(parents)), who, when, offset, when, text)
        if sign is not None:
            made = made._replace(signature=sign(made.to_bytes()))
        return made.commit(CommitHash(self._handle.write("commit", made.to_bytes())))

    def commit(self, commit_hash: str) -> Commit:
        """The commit of a full hash. Raises RefNotFoundError, CorruptionError."""
        if not self._handle.exists(check_hash(commit_hash)):
            raise RefNotFoundError(f"there is no commit {commit_hash}")
        return self._object(commit_hash).commit(CommitHash(commit_hash))

    def is_signed(self, commit_hash: CommitHash) -> bool:
        """Whether a commit bears a signature, good or not. Raises RefNotFoundError, CorruptionError."""
        head, _, _ = self._handle.read(check_hash(commit_hash))[1].partition(b"\n\n")
        return b"\ngpgsig " in head

    def has(self, oid: str) -> TypeGuard[CommitHash]:
        """Whether there is a commit of this full hash."""
        return self._handle.exists(check_hash(oid)) and self._handle.kind(oid) == "commit"

    def consolidate(self, *, force: bool = False) -> int:
        """Put loose objects into one pack when there are many (or when forced); returns how many it took.

        Cheap when there is nothing to do. Safe beside readers and writers, and when killed.
        """
        from coral.history.consolidate import consolidate

        return consolidate(self._handle, self._locks, force=force)

    def _object(self, commit_hash: str) -> CommitObject:
        kind, data = self._handle.read(check_hash(commit_hash))
        if kind != "commit":
            raise RefNotFoundError(f"{commit_hash} is a {kind}, not a commit")
        return CommitObject.from_bytes(data, CommitHash(commit_hash))

    # -- branches and tags

    def branches(self) -> dict[str, CommitHash]:
        """Every branch and its commit, sorted by name."""
        return self._refs.branches()

    def branch_tip(self, name: str) -> CommitHash | None:
        """The commit of one branch, or None; many branches cost it nothing. Raises InvalidNameError."""
        return self._refs.tip(branch_ref(name))

    def tags(self) -> dict[str, CommitHash]:
        """Every tag that leads to a commit, and that commit, sorted by name."""
        found = {}
        for name, oid in self._handle.refs(TAGS).items():
            with contextlib.suppress(RefNotFoundError):  # git allows a tag on any object
                found[name] = self._expressions.peel(oid, name)
        return found

    def damaged_refs(self) -> list[str]:
        """Branches, tags and other refs (full names) whose file says nothing: what they led to may seem unreachable."""
        return self._handle.damaged_refs("refs")

    def tag_names(self) -> list[str]:
        """Every tag, whatever it leads to, sorted: the names that are taken."""
        return list(self._handle.refs(TAGS))

    def create_branch(
        self, name: str, commit_hash: CommitHash, *, force: bool = False, reason: str | None = None
    ) -> None:
        """Make a branch. Raises AlreadyExistsError unless forced, InvalidNameError."""
        self._object(commit_hash)
        said = reason or f"branch: Created from {commit_hash[:10]}"
        self._refs.create(branch_ref(name), commit_hash, reason=said, force=force)

    def delete_branch(self, name: str) -> None:
        """Delete a branch. Raises RefNotFoundError, ConflictError when HEAD is on it."""
        self._refs.delete(branch_ref(name))

    def rename_branch(self, old: str, new: str) -> None:
        """Rename a branch with its reflog; HEAD follows it. Raises RefNotFoundError, AlreadyExistsError."""
        self._refs.rename(branch_ref(old), branch_ref(new))

    def move_branch(self, name: str, new: CommitHash, *, expected: CommitHash | None, reason: str) -> None:
        """Move a branch by compare-and-swap, durably.

        Args:
            name: the branch.
            new: the commit to move to.
            expected: where it is now; None makes the branch, which must not exist.
            reason: for the reflog.

        Raises:
            ConflictError: it is not there (AlreadyExistsError when it should not exist).
        """
        self._object(new)
        self._refs.move(branch_ref(name), new, expected=expected, reason=reason)

    def create_tag(
        self,
        name: str,
        commit_hash: CommitHash,
        *,
        message: str | None = None,
        author: str = "coral",
        force: bool = False,
    ) -> None:
        """Make a tag, annotated when there is a message. Raises AlreadyExistsError unless forced."""
        ref, target = tag_ref(name), str(commit_hash)
        self._object(commit_hash)
        if message is not None:
            when, offset = commits.from_datetime(datetime.now().astimezone())
            stamp = f"{commits.identity(author)} {when} {commits.format_offset(offset)}"
            head = f"object {commit_hash}\ntype commit\ntag {name}\ntagger {stamp}\n\n"
            target = self._handle.write("tag", f"{head}{messages.check_text(message, 'the message')}\n".encode())
        self._refs.create(ref, target, reason=f"tag: {name}", force=force)

    def delete_tag(self, name: str) -> None:
        """Delete a tag. Raises RefNotFoundError."""
        self._refs.delete(tag_ref(name))

    # -- HEAD

    def head(self) -> Head:
        """Where HEAD is."""
        return self._refs.head()

    def set_head(
        self, *, branch: str | None = None, commit_hash: CommitHash | None = None, reason: str | None = None
    ) -> None:
        """Put HEAD on a branch, or detached on a commit; give one of the two.

        Raises:
            RefNotFoundError: there is no such branch, and the repository has commits.
        """
        if (branch is None) == (commit_hash is None):
            raise UsageError("HEAD is put on a branch, or on a commit")
        head = self.head()
        came_from = head.branch or head.commit or ""
        if branch is not None:
            ref = branch_ref(branch)
            if head.commit is not None and self._refs.oid(ref) is None:
                raise missing_ref(ref, list(self.branches()))
            target = RefTarget(None, ref)
        else:
            self._object(commit_hash or "")
            target = RefTarget(commit_hash, None)
        self._refs.set_head(target, reason or f"checkout: moving from {came_from} to {branch or commit_hash}")

    def move_detached_head(self, new: CommitHash, *, expected: CommitHash, reason: str) -> None:
        """Move a detached HEAD by compare-and-swap. Raises ConflictError."""
        self._object(new)
        self._refs.move_detached_head(new, expected=expected, reason=reason)

    # -- operations

    def operation(self, command: str | None = None, *, files: bool = False) -> contextlib.AbstractContextManager[None]:
        """All refs that this thread moves inside are moved by one operation, which can be undone as one.

        Args:
            command: what is done, for people; None takes the reason of the first move.
            files: the project's files follow HEAD.
        """
        return self._operations.operation(command, **({"files": True} if files else {}))

    def note_collection(self, trash: str | None) -> None:
        """Note that garbage was put into the trash, under this name; None where it was removed at once."""
        self._operations.append("gc", [], trash=trash)

    def operations(self) -> list[Operation]:
        """What was done to the refs, the newest first, as far as it was noted."""
        return self._operations.operations()

    def named_since(self, when: float) -> set[str]:
        """The objects that operations since a time, in seconds since 1970, name; each can be put back."""
        return {oid for oid in self._operations.named_since(when) if self._handle.exists(oid)}

    def put_back(self, changes: Mapping[str, Change], *, undoes: Sequence[Operation]) -> None:
        """Put refs back to where they were before some operations. Raises ConflictError when one has moved since."""
        done, ids = ", ".join(one.command for one in undoes), [one.id for one in undoes]
        with self._operations.operation(f"undo: {done}", undoes=ids, files=any(one.files for one in undoes)):
            if changes:
                self._refs.restore(changes, reason=f"undo: {done}")
            else:
                self._operations.append("undo", [])

    def reachable(self) -> Reachable:
        """All that the history reaches, to be walked."""
        from coral.history.reachable import Reachable

        return Reachable(self._handle)

    # -- reading

    def resolve(self, ref: str) -> CommitHash:
        """The full hash of the commit that a ref names, in any of git's forms.

        A branch, a tag, a full or short hash (at least 4 digits), ``HEAD``, ``main~2``, ``main^2``, ``@{1}``,
        ``main@{2}``.

        Raises:
            RefNotFoundError: it names nothing, or something that is not a commit; the hint has near misses.
            InvalidNameError: it is not such a form.
        """
        return self._expressions.resolve(ref)

    def log(self, start: str, *, max_count: int | None = None, path: str | None = None) -> Iterator[Commit]:
        """The commits that lead to a commit, lazily: newest first, never a parent before its child.

        Args:
            start: a commit, or any form that :meth:`resolve` takes.
            max_count: at most so many.
            path: only those whose entry at this path differs from that of every parent.

        Raises:
            RefNotFoundError: nothing has that name.
        """
        if max_count is not None and max_count < 0:
            raise UsageError(f"max_count is {max_count}")
        return self._log([self.resolve(start)], max_count, path, lambda commit: True)

    def log_everywhere(
        self, keep: Callable[[Commit], bool], *, max_count: int | None = None, path: str | None = None
    ) -> Iterator[Commit]:
        """As :meth:`log`, the commits to ``keep`` of all that a branch, a tag or HEAD leads to."""
        return self._log(list(self._tips()), max_count, path, keep)

    def _log(
        self, starts: Sequence[CommitHash], max_count: int | None, path: str | None, keep: Callable[[Commit], bool]
    ) -> Iterator[Commit]:
        left = max_count if max_count is not None else -1
        finder = trees.Finder(self._handle, path) if path is not None else None
        for commit_hash, found in newest_first(starts[0], self._object, also=starts[1:]) if starts else ():
            if left == 0:
                return
            if (finder is None or self._changes(found, finder)) and keep(commit := found.commit(commit_hash)):
                left -= 1
                yield commit

    def _changes(self, commit: CommitObject, finder: trees.Finder) -> bool:
        held = finder.find(commit.tree)
        if not commit.parents:
            return held is not None
        return all(held != finder.find(self._object(parent).tree) for parent in commit.parents)

    def reflog(self, ref: str = "HEAD") -> list[ReflogEntry]:
        """The moves of HEAD, a branch or a full ref name, newest first. Raises RefNotFoundError, InvalidNameError."""
        full = ref if check_ref(ref) == "HEAD" or ref.startswith("refs/") else branch_ref(ref)
        if self._handle.ref(full) is None:
            raise missing_ref(full, list(self.branches()))
        return self._refs.reflog(full)

    def is_ancestor(self, one: CommitHash, two: CommitHash) -> bool:
        """Whether ``one`` is ``two`` or leads to it."""
        return one == two or self.merge_base(one, two) == one

    def merge_base(self, one: CommitHash, two: CommitHash) -> CommitHash | None:
        """The best common ancestor of two commits, or None."""
        return merge_base(one, two, self._object)


def _now(parents: Sequence[CommitObject]) -> tuple[int, int]:
    now = int(clock.time())
    latest = max((parent.committed for parent in parents), default=now)
    if now < latest <= now + _MAX_CLOCK_SKEW_SECONDS:
        now = latest
    offset = datetime.fromtimestamp(now).astimezone().utcoffset()
    return now, int(offset.total_seconds()) // 60 if offset is not None else 0
