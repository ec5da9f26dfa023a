"""Where branches and HEAD point, moved together with the files that follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coral import threads
from coral.errors import ConflictError, RefNotFoundError
from coral.format.names import check_ref, check_ref_name
from coral.verbs.parts import is_state
from coral.verbs.worktree import CheckoutResult, Plan

if TYPE_CHECKING:
    from coral.history import History
    from coral.ids import CommitHash
    from coral.objects.writer import Progress
    from coral.verbs.line import Line
    from coral.verbs.parts import PartReader
    from coral.verbs.worktree import WorkTree


@dataclass(frozen=True, slots=True)
class Heads:
    """Moves HEAD and the branch of a line of work.

    Attributes:
        resolve: the commit of any form of ref.
    """

    history: History
    reader: PartReader
    line: Line
    worktree: WorkTree
    resolve: Callable[[str], CommitHash]

    def switch(self, branch: str, *, create: bool, force: bool) -> CheckoutResult:
        """Move HEAD to a branch; files that are there already follow. See :meth:`Repository.switch`."""
        if create:
            with self.history.operation(f"switch -c {branch}", files=force):
                return self._switch_to_new(branch, force=force)
        if check_ref(branch) not in self.history.branches():
            self.history.resolve(branch)
            raise RefNotFoundError(
                f"{branch!r} is not a branch",
                hint="'coral checkout' goes to any commit; 'coral switch -c' makes a branch",
            )
        return self.go(branch, everything=False, force=force)

    def _switch_to_new(self, branch: str, *, force: bool) -> CheckoutResult:
        check_ref_name(branch)
        if self.history.head().commit is None:
            self._point_head(branch, None, f"checkout: moving to {branch}")
            return CheckoutResult("", branch)
        self._create(branch)
        return self.go(branch, everything=False, force=force, stay=not force)

    @threads.uninterrupted
    def _create(self, branch: str) -> None:
        self.history.create_branch(branch, self.resolve("HEAD"))

    def go(
        self, ref: str, *, everything: bool, force: bool, stay: bool = False, progress: Progress | None = None
    ) -> CheckoutResult:
        """Move HEAD, to the branch of that name or else detached, and have the files follow.

        Args:
            everything: write all files of the commit, rather than those that are there already.
            force: overwrite bytes that no commit holds, and drop what is staged.
            stay: touch no file where the commit remains the same.
        """
        branches, head = self.history.branches(), self.history.head()
        branch = self.line.branch if check_ref(ref) in ("HEAD", "@") else ref if ref in branches else None
        commit_hash = branches[branch] if branch in branches else self.resolve(ref)
        old = self.reader.at(head.commit) if head.commit else {}
        new = self.reader.at(commit_hash)
        if not force:
            self.line.check_can_leave(old, new, ref)
        if stay and commit_hash == head.commit:
            plan = Plan({})
        else:
            plan = self.worktree.plan(old, new, everything=everything, force=force)
        self.worktree.execute(plan, progress=progress)
        if force:
            self.line.drop_staged()
        reason = f"checkout: moving from {head.branch or head.commit or ''} to {ref}"
        self._point_head(branch, None if branch else commit_hash, reason)
        there = set(self.worktree.materialised(new))
        states = tuple(sorted(name for name, part in new.items() if is_state(part) and name not in there))
        return CheckoutResult(commit_hash, branch, tuple(plan.write), plan.unchanged, plan.remove, states)

    @threads.uninterrupted
    def _point_head(self, branch: str | None, commit_hash: CommitHash | None, reason: str) -> None:
        with self.history.operation(files=True):
            self.history.set_head(branch=branch, commit_hash=commit_hash, reason=reason)
        self.line.pin()

    def write_parts(
        self, ref: str, names: Sequence[str], *, force: bool, progress: Progress | None = None
    ) -> CheckoutResult:
        """Write these parts of a commit as files; HEAD stays where it is."""
        commit_hash = self.resolve(ref)
        plan = self.worktree.plan_files({name: self.reader.one(commit_hash, name) for name in names}, force=force)
        self.worktree.execute(plan, progress=progress)
        return CheckoutResult(commit_hash, self.history.head().branch, tuple(plan.write), plan.unchanged)

    def reset(self, ref: str, *, hard: bool, force: bool) -> CheckoutResult:
        """Point the branch at another commit, and forget what was staged; ``hard`` brings along the files there."""
        commit_hash = self.resolve(ref)
        branch, tip = self.line.position()
        plan = Plan({})
        if hard:
            old = self.reader.at(tip) if tip else {}
            plan = self.worktree.plan(old, self.reader.at(commit_hash), everything=False, force=force, keep=False)
            # The files first: when the disk refuses, the same command finds all as it was, and goes on.
            self.worktree.execute(plan)
        with self.history.operation(files=hard):
            self.line.move(commit_hash, f"reset: moving to {ref}")
        return CheckoutResult(commit_hash, branch, tuple(plan.write), plan.unchanged, plan.remove)

    def follow(self, commit_hash: CommitHash | None) -> None:
        """Have the files that are there follow HEAD to a commit."""
        head = self.history.head().commit
        if commit_hash is not None and head is not None and commit_hash != head:
            old, new = self.reader.at(head), self.reader.at(commit_hash)
            self.line.check_can_leave(old, new, commit_hash[:10])
            self.worktree.execute(self.worktree.plan(old, new, everything=False, force=False))


def delete_branch(history: History, name: str, *, force: bool) -> None:
    """Delete a branch. Raises ConflictError when its commits are on no other branch or tag, unless ``force``."""
    tip = history.branch_tip(name)
    if tip is not None and not force:
        others = [*(other for key, other in history.branches().items() if key != name), *history.tags().values()]
        if not any(history.is_ancestor(tip, other) for other in others):
            raise ConflictError(
                f"the commits of {name!r} are on no other branch or tag",
                hint="tag its tip first, or use --force to let go of them",
            )
    history.delete_branch(name)
