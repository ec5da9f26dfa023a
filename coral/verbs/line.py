"""A line of work: the branch that one object's commits land on, and what is staged for the next of them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from coral import forks, threads
from coral.errors import (
    ConflictError,
    CoralError,
    FormatError,
    LockedError,
    NotFoundError,
    NothingToCommitError,
    PartNotFoundError,
    RefNotFoundError,
    UnreadableError,
    UsageError,
)
from coral.format.names import check_part_name, check_ref, check_ref_name
from coral.ids import CommitHash
from coral.timings import Stopwatch, step
from coral.verbs.commit import Draft, land
from coral.verbs.parts import PartNames
from coral.verbs.staging import Overlay, Staging

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.history import Commit, History
    from coral.objects import ChunkStore, Parent, StoreWriter
    from coral.verbs.parts import PartReader

_OF_A_FILE = (FormatError, NotFoundError, ConflictError, UsageError, UnreadableError)
"""What is wrong with a file that is to be staged, and not with the store, which the others need as well."""

_FROM_HEAD = re.compile(r"(?:HEAD|@)((?:[~^].*)?)", re.DOTALL)

OTHER = "all else"
"""The step that holds what belongs to none of the others."""

Build = Callable[["StoreWriter", "Parent"], "Manifest"]
"""Makes a part of the store's writer and of what was last stored under its name."""

Position = tuple[str | None, CommitHash | None]
"""A branch, None when HEAD is detached, and its tip, None before the first commit."""


class Line:
    """Where one :class:`Repository` object is at.

    Its branch is fixed ("pinned") at its first commit, or when a run starts; the shell may switch to another one
    meanwhile without moving it.

    Args:
        staging: where the overlay is kept between calls.
        durable: make every part durable as it is staged, because the process ends before the commit.
    """

    def __init__(
        self,
        history: History,
        reader: PartReader,
        store: Callable[[], ChunkStore],
        staging: Staging,
        *,
        durable: bool = False,
    ) -> None:
        self._history = history
        self._reader = reader
        self._store = store
        self._staging = staging
        self._durable = durable
        self.stopwatch = Stopwatch()
        self._lock = forks.rlock()
        self._pid = os.getpid()
        self._owner = 0
        self._is_busy = False
        self._opened: Overlay | None = None
        self._writer: StoreWriter | None = None
        # What is staged names chunks that nothing else may name yet.
        self._holding = contextlib.ExitStack()
        self._is_holding = False
        self._parents: dict[str, Parent] = {}
        self._is_pinned = False
        self._pinned: str | None = None
        self._tip: CommitHash | None = None

    # -- the branch

    @threads.one_at_a_time
    def pin(self, branch: str | None = None) -> str | None:
        """Fix the branch; None takes the one HEAD is on now. Raises RefNotFoundError when there is no such branch."""
        head = self._history.head()
        branches = {} if branch is None else self._history.branches()
        tip = head.commit if branch is None else branches.get(check_ref(branch))
        if branch is not None and tip is None and branch != head.branch:
            if branches:
                self._history.resolve(branch)
                raise RefNotFoundError(f"{branch!r} is not a branch", hint="create_branch() makes one")
            check_ref_name(branch)
        self._pinned, self._tip = head.branch if branch is None else branch, tip
        self._is_pinned = True
        return self._pinned

    @property
    def branch(self) -> str | None:
        """The branch that commits land on; None for a detached HEAD."""
        return self._pinned if self._is_pinned else self._history.head().branch

    def position(self) -> Position:
        """The branch and its tip. Raises RefNotFoundError when the branch went away."""
        if not self._is_pinned or self._pinned is None:
            head = self._history.head()
            return (None if self._is_pinned else head.branch), head.commit
        tip = self._history.branch_tip(self._pinned)
        if tip is None and self._tip is not None:
            raise RefNotFoundError(
                f"the branch {self._pinned!r} was deleted or renamed meanwhile",
                hint="create it again, or pin() this object to another",
            )
        self._tip = tip
        return self._pinned, tip

    def follow_rename(self, old: str, new: str) -> None:
        """Stay on a branch that was given another name."""
        if self._is_pinned and self._pinned == old:
            self._pinned = new

    def resolve(self, ref: str) -> CommitHash:
        """The commit of a ref; ``HEAD`` is this line's own branch, wherever the shell has gone meanwhile."""
        own = _FROM_HEAD.fullmatch(ref) if self._is_pinned and self._pinned is not None else None
        if own is None:
            return self._history.resolve(ref)
        if self.position()[1] is None:
            raise RefNotFoundError(f"the branch {self._pinned!r} has no commit yet")
        try:
            return self._history.resolve(f"refs/heads/{self._pinned}{own[1]}")
        except RefNotFoundError:
            hint = f"the history of {self._pinned!r}, where HEAD is for this object, does not reach that far"
            raise RefNotFoundError(f"{ref!r} names no commit", hint=hint) from None

    @threads.one_at_a_time
    def move(self, new: CommitHash, reason: str) -> None:
        """Point the branch, or the detached HEAD, at another commit, and forget what was staged."""
        with self._busy():
            branch, tip = self.position()
            if branch is not None:
                self._history.move_branch(branch, new, expected=tip, reason=reason)
            elif tip is not None:
                self._history.move_detached_head(new, expected=tip, reason=reason)
            self._tip = new
            self._drop()

    # -- one at a time

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other thread stage or commit meanwhile; may be nested."""
        if self._pid != os.getpid():
            self._after_fork()
        threads.take(self._lock)
        owner, self._owner = self._owner, threading.get_ident()
        try:
            yield
        finally:
            self._owner = owner
            self._lock.release()

    def check_not_inside(self) -> None:
        """Raise ConflictError in a signal handler or a callback that came in the middle of staging or committing."""
        if self._owner == threading.get_ident():
            raise _in_the_middle()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """As :meth:`alone`, not nested: a signal handler that runs in the middle of this must not begin another."""
        with self.alone():
            if self._is_busy:
                raise _in_the_middle()
            self._is_busy = True
            try:
                yield
            finally:
                self._is_busy = False
                self._let_go_if_clean()

    def _hold(self) -> None:
        """Keep garbage collection from what is being staged, until a commit or the shell's staging area names it."""
        if not self._is_holding:
            self._holding.enter_context(self._store().held())
            self._is_holding = True

    def _let_go_if_clean(self) -> None:
        if self._writer is None and (self._durable or not self._staging.peek().parts):
            self._let_go()

    def _let_go(self) -> None:
        self._is_holding = False
        self._holding.close()

    def check_not_holding(self) -> None:
        """Raise ConflictError where this object itself keeps garbage collection waiting."""
        if self._is_holding and self._pid == os.getpid():
            raise ConflictError("this repository object has parts staged", hint="commit them first, or unstage them")

    def _after_fork(self) -> None:
        # The open pack is the parent's, and so is what was staged into it.
        self._pid = os.getpid()
        self._owner = 0
        self._is_busy = False
        self._opened = None
        if self._writer is not None:
            self._discard()
        self._let_go()

    # -- staging

    @contextlib.contextmanager
    def overlay(self) -> Iterator[Overlay]:
        """What is staged, to be read and changed; nobody else changes it meanwhile. May be nested."""
        with self.alone():
            if self._opened is not None:
                yield self._opened
                return
            with self._staging.open() as overlay:
                self._opened = overlay
                try:
                    yield overlay
                finally:
                    self._opened = None

    def staged(self) -> dict[str, Manifest | None]:
        """What the next commit changes, by part: read, without waiting for whoever is staging."""
        return dict(self._staging.peek().parts)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is staged inside is laid over what this thread has staged already, and committed inside; or not at all.

        It stands whatever another commit made of these parts meanwhile: who stages all of what he names, and commits it
        in the same breath, has decided nothing that the other commit could have changed. What another thread has
        staged is left to it.
        """
        with self.alone():
            try:
                with self.overlay() as overlay:
                    is_own = overlay.stager_beside(threads.caller()) is None
                    self._opened = overlay.copy() if is_own else Overlay()
                    self._opened.is_apart = True
                    yield
            except BaseException:
                if not self._staging.peek().parts:
                    self._discard()
                raise
            finally:
                self._let_go_if_clean()

    @threads.one_at_a_time
    def stage(self, name: str, build: Build) -> Manifest:
        """Stage a part that is built. Raises what its building raises; nothing was staged then."""
        check_part_name(name)
        with self._adding() as (writer, parts):
            parts[name] = self._build(name, build, writer, self._staging.peek().parts)
            return parts[name]

    @threads.one_at_a_time
    def stage_all(
        self, builds: Mapping[str, Build], *, partly: bool
    ) -> tuple[dict[str, Manifest], dict[str, CoralError]]:
        """Stage parts in one step; each is built, whatever becomes of the others.

        Args:
            partly: stage those that could be built; else all are, or none is.

        Returns:
            The parts that are staged, and what went wrong with those that could not be built.

        Raises:
            LockedError, StorageError, CorruptionError: the store is busy or damaged, or its disk refused; nothing was
                staged.
        """
        failed: dict[str, CoralError] = {}
        with self._adding() as (writer, parts):
            staged = self._staging.peek().parts  # once for all of them: the shell's is read from the disk
            names = self._names(staged)
            for name, build in builds.items():
                try:
                    names.add(check_part_name(name))
                    parts[name] = self._build(name, build, writer, staged)
                except LockedError:
                    raise
                except _OF_A_FILE as error:
                    failed[name] = error
            if failed and not partly:
                parts.clear()
        return parts, failed

    def _names(self, staged: Mapping[str, Manifest | None]) -> PartNames:
        """The names in the next commit as it is staged so far."""
        there: Iterable[str] = ()
        with contextlib.suppress(CoralError):  # the commit will say what is wrong with the tip
            tip = self.position()[1]
            there = self._history.parts(tip) if tip else ()
        return PartNames(name for name in {*there, *staged} if staged.get(name, True) is not None)

    def _build(self, name: str, build: Build, writer: StoreWriter, staged: Mapping[str, Manifest | None]) -> Manifest:
        with step("read, hash and encode tensors"):
            manifest = build(writer, self._parent_of(name, staged))
        manifest.to_bytes()  # what cannot be written must be refused now, not at the commit
        return manifest

    @contextlib.contextmanager
    def _adding(self) -> Iterator[tuple[StoreWriter, dict[str, Manifest]]]:
        """What is put there is staged in one step, when the context ends without an error."""
        with self._busy(), self.stopwatch.running(OTHER):
            self._hold()
            if self._writer is None:
                self._writer = self._store().writer()
            parts: dict[str, Manifest] = {}
            try:
                yield self._writer, parts
                if self._durable and parts:
                    self._seal()
                with self._own_overlay() as overlay:
                    self._rebase_if_clean(overlay)
                    for name, manifest in parts.items():
                        overlay.put(name, manifest)
            finally:
                # A writer in which nothing is staged would keep garbage collection waiting for good.
                if self._durable or not (self._opened or self._staging.peek()).parts:
                    self._discard()

    @contextlib.contextmanager
    def _own_overlay(self) -> Iterator[Overlay]:
        """The overlay, to be changed. Raises ConflictError when another thread is in the middle of staging."""
        with self.overlay() as overlay:
            other = overlay.stager_beside(threads.caller())
            if other is not None:
                raise ConflictError(
                    f"the thread {other.name!r} has parts staged in this repository object",
                    hint="save() stages and commits in one; to stage by hand, give each thread a Repository of its own",
                )
            yield overlay
            overlay.stager = None if self._durable else threads.caller()

    def _parent_of(self, name: str, staged: Mapping[str, Manifest | None]) -> Parent:
        """The part as this object last staged it, else as the next commit holds it so far."""
        from coral.objects import Parent

        if name not in self._parents:
            records = {}
            with contextlib.suppress(CoralError):  # there is none, or it is damaged: nothing to build on
                records = {record.name: record for record in self._next(name, staged).records}
            store = self._store()
            # What the shell stages is the last that its process does.
            self._parents[name] = Parent(records, store.chunk_ids, None if self._durable else store.memory)
        return self._parents[name]

    @threads.one_at_a_time
    def unstage(self, names: tuple[str, ...]) -> None:
        """Take parts out of the next commit; all of them when none is named. Raises PartNotFoundError."""
        with self._busy(), self._own_overlay() as overlay:
            for name in names:
                if name not in overlay.parts:
                    raise PartNotFoundError(f"{name!r} is not staged", hint="'coral status' lists what is")
            for name in names or tuple(overlay.parts):
                overlay.parts.pop(name, None)
            if not overlay.parts:
                self._discard()  # and with it the store, which garbage collection may want

    @threads.one_at_a_time
    def stage_removal(self, names: tuple[str, ...]) -> None:
        """Have the next commit hold these parts no more."""
        with self._busy(), self._own_overlay() as overlay:
            self._rebase_if_clean(overlay)
            tip = self.position()[1]
            for name in names:
                if tip is not None and self._history.part(tip, name) is not None:
                    overlay.parts[name] = None
                else:
                    overlay.parts.pop(name, None)
            if not overlay.parts:
                self._discard()

    @threads.one_at_a_time
    def drop_staged(self) -> None:
        """Forget what was staged."""
        with self._busy():
            self._drop()

    def _drop(self) -> None:
        with self.overlay() as overlay:
            overlay.clear()
        self._discard()

    def staged_or_tip(self, name: str) -> Manifest:
        """A part as the next commit would hold it. Raises PartNotFoundError."""
        return self._next(name, self._staging.peek().parts)

    def check_there(self, names: Iterable[str]) -> None:
        """Raise PartNotFoundError for a part that the next commit would not hold."""
        staged = self._staging.peek().parts
        for name in names:
            self._next(name, staged)

    def _next(self, name: str, staged: Mapping[str, Manifest | None]) -> Manifest:
        if name in staged:
            found = staged[name]
            if found is not None:
                return found
        else:
            tip = self.position()[1]
            oid = self._history.part(tip, name) if tip else None
            if oid is not None:
                return self._reader.load(oid)
        raise PartNotFoundError(f"{name!r} is neither staged nor in the branch's tip")

    def check_can_leave(self, old: Mapping[str, Manifest], new: Mapping[str, Manifest], ref: str) -> None:
        """Raise ConflictError when something is staged that a move from ``old`` to ``new`` would lose."""
        blocking = sorted(name for name in self.staged() if old.get(name) != new.get(name))
        if blocking:
            raise ConflictError(
                f"{', '.join(blocking)} is staged, and differs between here and {ref}",
                hint="commit it first, unstage it ('coral reset'), or use --force to drop it",
            )

    # -- committing

    def land(self, draft: Draft) -> Commit:
        """Make what is staged durable, and commit it on the branch.

        Raises:
            NothingToCommitError: it changes nothing.
            ConflictError: another commit changed a part that was staged by hand; landing again lays this one over it.
        """
        with self._busy():
            with self.overlay() as overlay:
                self._rebase_if_clean(overlay)
                try:
                    self._seal()
                except BaseException:
                    # What was staged, by whichever thread, is not durable, so nothing may name it.
                    overlay.clear()
                    self._staging.drop_unsealed()
                    raise
                landed = self._try_to_land(overlay, draft)
            # Raised out here, because the overlay is kept only when its context ends without an error.
            if isinstance(landed, BaseException):
                raise landed
            self._tip = landed.commit_hash
            return landed

    def _try_to_land(self, overlay: Overlay, draft: Draft) -> Commit | BaseException:
        branch, _ = self.position()
        if self._is_pinned and branch is None and self._history.head() != (None, self._tip):
            return ConflictError("HEAD was detached and has moved since", hint="pin() takes up where it is now")
        written: list[CommitHash] = []
        try:
            commit = land(self._history, overlay, draft, branch=branch, written=written.append)
        except NothingToCommitError as error:
            overlay.clear()
            return error
        except ConflictError as error:
            return error
        except BaseException as error:
            # The disk may have refused what comes after the move.
            if not written or not self._has_landed(written[-1]):
                raise
            self._tip = written[-1]
            overlay.clear()
            return error
        overlay.clear()
        return commit

    def _has_landed(self, commit_hash: CommitHash) -> bool:
        with contextlib.suppress(CoralError):
            tip = self.position()[1]
            return tip is not None and self._history.is_ancestor(commit_hash, tip)
        return False

    def _rebase_if_clean(self, overlay: Overlay) -> None:
        """An empty overlay lies over the branch's tip, wherever that is now."""
        if overlay.parts:
            return
        if not self._is_pinned:
            self.pin()
        overlay.base = self.position()[1]

    def _seal(self) -> None:
        """Make what was staged durable."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with writer, step("write and sync packs"):
                writer.seal()

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None


def _in_the_middle() -> ConflictError:
    return ConflictError(
        "this repository object is in the middle of staging or committing",
        hint="in a signal handler, set a flag and save at the next step",
    )
