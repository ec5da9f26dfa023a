"""Any sequence of verbs leaves a repository as plain dictionaries would be."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coral import Repository
from coral.errors import AlreadyExistsError, ConflictError, NothingToCommitError, OverwriteError, PartNotFoundError
from coral.ids import CommitHash
from tests.repository.helpers import raw

_PARTS = st.sampled_from(["a", "b", "dir/c"])
_TENSORS = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=3)
_REFS = st.sampled_from(["main", "dev", "v0", "v1"])

Part = dict[str, int]
Parts = dict[str, Part]


def _arrays(part: Part) -> dict[str, np.ndarray]:
    return {name: np.full(20, value, "f4") for name, value in part.items()}


class RepositoryModel(RuleBasedStateMachine):
    """A repository beside dictionaries: commits by hash, branches, tags, HEAD, what is staged, and files."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where that is to be had: some ten thousand fsyncs would take the time.
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.repo = Repository(self.folder, init=True, shell_staging=True)

    @initialize()
    def begin(self) -> None:
        self.repo.stage_weights(_arrays({"x": 0}), "a")
        first = self.repo.commit("first").commit_hash
        self.commits: dict[CommitHash, Parts] = {first: {"a": {"x": 0}}}
        self.parents: dict[CommitHash, CommitHash | None] = {first: None}
        self.branches = {"main": first}
        self.tags: dict[str, CommitHash] = {}
        self.branch: str | None = "main"
        self.head = first
        self.staged: dict[str, Part | None] = {}
        self.files: Parts = {}

    @property
    def tip(self) -> Parts:
        return self.commits[self.head]

    def _now(self) -> Parts:
        return {name: part for name, part in {**self.tip, **self.staged}.items() if part is not None}

    # -- staging

    @rule(name=_PARTS, part=_TENSORS)
    def stage(self, name: str, part: Part) -> None:
        self.repo.stage_weights(_arrays(part), name)
        self.staged[name] = part

    @rule(name=_PARTS, part=_TENSORS)
    def update(self, name: str, part: Part) -> None:
        old = self._now().get(name)
        try:
            self.repo.stage_weights(_arrays(part), name, update=True)
        except PartNotFoundError:
            assert old is None
        else:
            assert old is not None
            self.staged[name] = {**old, **part}

    @rule(name=_PARTS)
    def unstage(self, name: str) -> None:
        try:
            self.repo.unstage(name)
        except PartNotFoundError:
            assert name not in self.staged
        else:
            del self.staged[name]

    @rule(name=_PARTS)
    def rm(self, name: str) -> None:
        known = name in self._now()
        try:
            self.repo.rm(name, cached=True)
        except PartNotFoundError:
            assert not known
            return
        assert known
        if name in self.tip:
            self.staged[name] = None
        else:
            self.staged.pop(name)

    # -- commits, branches, tags

    @rule(allow_empty=st.booleans())
    def commit(self, allow_empty: bool) -> None:
        parts = self._now()
        try:
            made = self.repo.commit("next", allow_empty=allow_empty)
        except NothingToCommitError:
            assert parts == self.tip and not allow_empty
        else:
            assert parts != self.tip or allow_empty
            assert made.parents == (self.head,)
            self.parents[made.commit_hash], self.commits[made.commit_hash] = self.head, parts
            self._move(made.commit_hash)
        self.staged = {}

    def _move(self, new: CommitHash) -> None:
        self.head = new
        if self.branch is not None:
            self.branches[self.branch] = new

    @rule(name=st.sampled_from(["dev", "x/y"]))
    def create_branch(self, name: str) -> None:
        try:
            self.repo.create_branch(name)
        except AlreadyExistsError:
            assert name in self.branches
        else:
            assert self.branches.setdefault(name, self.head) == self.head

    @precondition(lambda self: len(self.tags) < 2)
    @rule()
    def tag(self) -> None:
        name = f"v{len(self.tags)}"
        self.repo.tag(name)
        self.tags[name] = self.head

    @rule()
    def reopen(self) -> None:
        self.repo = Repository(self.folder, shell_staging=True)

    # -- moving

    @rule(ref=_REFS, everything=st.booleans(), force=st.booleans())
    def move(self, ref: str, everything: bool, force: bool) -> None:
        target = {**self.tags, **self.branches}.get(ref)
        if target is None or (not everything and ref not in self.branches):
            return
        new = self.commits[target]
        blocked = any(self.tip.get(name) != new.get(name) for name in self.staged)
        verb = self.repo.checkout if everything else self.repo.switch
        try:
            verb(ref, force=force)
        except OverwriteError:
            raise
        except ConflictError:
            assert blocked and not force
            return
        assert force or not blocked
        follow = new if everything else {name: part for name, part in new.items() if name in self.files}
        kept = {name: part for name, part in self.files.items() if name not in self.tip and name not in new}
        self.files = {**kept, **follow}
        self.head, self.branch = target, ref if ref in self.branches else None
        if force:
            self.staged = {}

    @rule(hard=st.booleans())
    def reset(self, hard: bool) -> None:
        parent = self.parents[self.head]
        if parent is None or not self._files_are_held(parent):
            return
        self.repo.reset("HEAD~1", hard=hard)
        if hard:
            new = self.commits[parent]
            kept = {name: part for name, part in self.files.items() if name not in self.tip}
            self.files = {**kept, **{name: new[name] for name in self.files if name in new}}
        self._move(parent)
        self.staged = {}

    def _files_are_held(self, new: CommitHash) -> bool:
        """Whether the files will still be in reach after the branch moves back to a commit."""
        if self.branch is None:
            return False
        tips = {*self.tags.values(), new, *(tip for name, tip in self.branches.items() if name != self.branch)}
        reached: set[CommitHash] = set()
        for tip in tips:
            at: CommitHash | None = tip
            while at is not None:
                reached.add(at)
                at = self.parents[at]
        return all(any(self.commits[at].get(name) == part for at in reached) for name, part in self.files.items())

    # -- what must hold

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "head"):
            return
        head = self.repo.history.head()
        assert (head.branch, head.commit) == (self.branch, self.head)
        assert (self.repo.branches(), self.repo.tags()) == (dict(sorted(self.branches.items())), self.tags)
        assert set(self.repo.parts()) == set(self.tip)
        for name, part in self.tip.items():
            assert raw(self.repo.get_all_weights(name=name)) == raw(_arrays(part))
        status = self.repo.status()
        changed = {name for name, part in self.staged.items() if part != self.tip.get(name)}
        assert {change.name for change in status.staged} == changed
        present = {name for name in ("a", "b", "dir/c") if (self.folder / name).exists()}
        assert present == set(self.files)
        now = self._now()
        assert set(status.modified) == {name for name, part in self.files.items() if name in now and now[name] != part}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestRepositoryModel = RepositoryModel.TestCase
TestRepositoryModel.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
