"""A repository and its runs beside plain dictionaries, through any sequence of verbs, with crashes in between.

``tests/repository/test_model.py`` does so for the shell's verbs, one at a time. Here it is what training does: commits
beside the caller, runs, and processes that are killed, or drop what they hold, without a word.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import hypothesis
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coral import Repository
from coral.errors import AlreadyExistsError, NothingToCommitError
from coral.experiments import ExperimentTracker
from coral.testing.processes import Note
from tests.repository.helpers import raw

T = TypeVar("T")
STEPS = 200
A_RUN_OF_STEPS = 40
FILE = "model.safetensors"
_PICK = st.integers(0, 99)
_VALUES = st.integers(0, 5)
_NAMES = st.sampled_from(["one", "two"])
_BRANCHES = st.sampled_from(["main", "dev", "x/y"])


def tensors(value: int) -> dict[str, np.ndarray]:
    """Weights that a number stands for; its neighbours' are close, so that they become deltas."""
    return {"w": np.arange(300, dtype="f4") + np.float32(value) / 64, "b": np.full(20, value, "f4")}


def _nth(found: dict[str, T], pick: int) -> str:
    """One of some keys. Hashes differ from time to time, and a strategy may not."""
    return list(found)[pick % len(found)]


class _Run:
    """What a run should be."""

    def __init__(self, name: str, params: dict[str, object]) -> None:
        self.name, self.params, self.status = name, params, "running"
        self.points: list[tuple[str, float, int]] = []
        self.commits: list[str] = []
        self.parent: str | None = None


class Training(RuleBasedStateMachine):
    """Commits by hash, branches and tags; runs by id, their points, commits and status."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where that is to be had: thousands of fsyncs would take the time.
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.branch, self.staged = "main", -1
        self.commits: dict[str, tuple[int, str | None]] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.runs: dict[str, _Run] = {}
        self.trash: dict[str, _Run] = {}
        self.live: str | None = None

    @initialize()
    def begin(self) -> None:
        Repository(self.folder, init=True)
        self._open()
        self.repo.save(tensors(0))
        self._landed(self.repo.resolve("HEAD"), 0)

    def _open(self) -> None:
        self.repo = Repository(self.folder)
        self.tracker = ExperimentTracker(self.repo)
        self.staged = -1
        if self.live is not None:
            self.tracker.attach(self.live)

    def _landed(self, commit: str, value: int) -> None:
        # Made again within the second, it is the same commit.
        found = (value, self.branches.get(self.branch))
        assert self.commits.setdefault(commit, found) == found
        self.branches[self.branch] = commit
        if self.live is not None:
            self.runs[self.live].commits.append(commit)

    @property
    def tip(self) -> str:
        return self.branches[self.branch]

    # -- commits

    @rule(value=_VALUES)
    def stage(self, value: int) -> None:
        self.repo.stage_weights(tensors(value), FILE)
        self.staged = value

    @rule(wait=st.booleans())
    def commit(self, wait: bool) -> None:
        value, self.staged = self.staged, -1
        try:
            made = self.repo.commit("next") if wait else self.repo.commit("next", wait=False).result()
        except NothingToCommitError:
            assert value in (-1, self.commits[self.tip][0])
        else:
            assert value not in (-1, self.commits[self.tip][0]) and made.parents == (self.tip,)
            self._landed(made.commit_hash, value)

    @rule(value=_VALUES, wait=st.booleans())
    def save(self, value: int, wait: bool) -> None:
        self.staged = -1
        try:
            found = self.repo.save(tensors(value), message="saved", wait=wait)  # type: ignore[call-overload]
            made = found if wait else found.result()
        except NothingToCommitError:
            assert value == self.commits[self.tip][0]
        else:
            self._landed(made.commit_hash, value)

    @rule(name=_BRANCHES)
    def make_branch(self, name: str) -> None:
        try:
            self.repo.create_branch(name)
        except AlreadyExistsError:
            assert name in self.branches
        else:
            assert self.branches.setdefault(name, self.tip) == self.tip

    @precondition(lambda self: len(self.tags) < 4)
    @rule()
    def tag(self) -> None:
        name = f"v{len(self.tags)}"
        self.repo.tag(name)
        self.tags[name] = self.tip

    @precondition(lambda self: self.live is None)
    @rule(name=_BRANCHES)
    def switch(self, name: str) -> None:
        if name in self.branches:
            self.repo.switch(name, force=True)
            self.branch, self.staged = name, -1
            self._open()

    @precondition(lambda self: self.live is None)
    @rule()
    def reset(self) -> None:
        parent = self.commits[self.tip][1]
        if parent is not None:
            self.repo.reset("HEAD~1")
            self.branches[self.branch], self.staged = parent, -1

    @rule(pick=_PICK)
    def checkout(self, pick: int) -> None:
        chosen = _nth(self.commits, pick)
        self.repo.checkout(chosen, FILE, force=True)
        from safetensors.numpy import load_file

        assert raw(load_file(self.folder / FILE)) == raw(tensors(self.commits[chosen][0]))

    @rule()
    def repack(self) -> None:
        self.repo.maintenance.repack()

    # -- runs

    @precondition(lambda self: self.live is None and len(self.runs) < 12)
    @rule(name=_NAMES, value=_VALUES)
    def start(self, name: str, value: int) -> None:
        run = self.tracker.start(name, params={"value": value}, owner="shell")
        self.live = run.experiment_id
        self.runs[self.live] = _Run(name, {"value": value})

    @precondition(lambda self: self.live is not None)
    @rule(metric=_NAMES, value=_VALUES, step=_VALUES)
    def log(self, metric: str, value: int, step: int) -> None:
        self.tracker.log(metric, value / 4, step=step)
        self.runs[str(self.live)].points.append((metric, value / 4, step))

    @precondition(lambda self: self.live is not None)
    @rule(value=_VALUES)
    def log_params(self, value: int) -> None:
        self.tracker.log_params({"more": value})
        self.runs[str(self.live)].params["more"] = value

    @precondition(lambda self: self.live is not None)
    @rule(status=st.sampled_from(["completed", "failed", "cancelled"]))
    def end(self, status: str) -> None:
        self.tracker.end(status=status)
        self.runs[str(self.live)].status = status
        self.live = None

    @precondition(lambda self: self.live is None and 0 < len(self.runs) < 12)
    @rule(pick=_PICK)
    def resume(self, pick: int) -> None:
        chosen = _nth(self.runs, pick)
        parent = self.runs[chosen]
        if not parent.commits:
            return
        child = self.tracker.resume(chosen, owner="shell")
        self.live = child.experiment_id
        made = self.runs[self.live] = _Run(parent.name, dict(parent.params))
        made.parent = chosen
        assert child.branch is not None
        self.branches[child.branch] = parent.commits[-1]
        self.tracker.end()
        made.status, self.live = "completed", None
        self.repo.switch(self.branch, force=True)
        self._open()

    @precondition(lambda self: self.live is None and self.runs)
    @rule(pick=_PICK)
    def delete(self, pick: int) -> None:
        chosen = _nth(self.runs, pick)
        self.tracker.delete(chosen)
        self.trash[chosen] = self.runs.pop(chosen)

    @precondition(lambda self: self.trash)
    @rule(pick=_PICK)
    def restore(self, pick: int) -> None:
        chosen = _nth(self.trash, pick)
        self.tracker.restore(chosen)
        self.runs[chosen] = self.trash.pop(chosen)

    # -- crashes

    @rule()
    def drop(self) -> None:
        """The object goes away without a word; what was staged in memory goes with it."""
        self._open()

    @rule(value=_VALUES, step=_VALUES)
    def kill_after_a_commit(self, value: int, step: int) -> None:
        """A process that says what it has done is killed right after: what it said is there."""
        told = self._killed(lambda tell: self._train(tell, value, step))
        for line in told:
            kind, _, what = line.partition(" ")
            if kind == "commit":
                self._landed(what, value)
            elif kind == "point":
                self.runs[str(self.live)].points.append(("one", value / 8, step))
        self._open()

    def _train(self, tell: Callable[[str], None], value: int, step: int) -> None:
        repo = Repository(self.folder)
        tracker = ExperimentTracker(repo)
        if self.live is not None:
            tracker.attach(self.live)
            tracker.log("one", value / 8, step=step)
            tell("point")
        repo.stage_weights(tensors(value), FILE)
        try:
            tell(f"commit {repo.commit('by another').commit_hash}")
        except NothingToCommitError:
            tell("nothing")
        repo.stage_weights(tensors(value + 1), FILE)  # never committed

    def _killed(self, work: Callable[[Callable[[str], None]], None]) -> list[str]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:

            def tell(text: str) -> None:
                os.write(writer, f"{text}\n".encode())

            try:
                work(tell)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        with os.fdopen(reader) as told:
            lines = told.read().splitlines()
        os.waitpid(pid, 0)
        assert {"nothing"} & set(lines) or any(line.startswith("commit") for line in lines), "the child failed"
        return lines

    # -- what must hold

    @invariant()
    def agrees(self) -> None:
        if not self.branches:
            return
        fresh = Repository(self.folder)
        assert fresh.branches() == dict(sorted(self.branches.items())) and fresh.tags() == self.tags
        assert fresh.history.head().branch == self.branch
        line, at = [], self.branches.get(self.branch)
        while at is not None:
            line.append(at)
            at = self.commits[at][1]
        assert [one.commit_hash for one in fresh.log()] == line
        assert raw(fresh.get_all_weights()) == raw(tensors(self.commits[self.tip][0]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = {run.experiment_id: run for run in ExperimentTracker(fresh).list()}
        assert found.keys() == self.runs.keys()
        for run_id, model in self.runs.items():
            run = found[run_id]
            assert (run.name, str(run.status), dict(run.params)) == (model.name, model.status, model.params)
            assert [(point.name, point.value, point.step) for point in run.metrics] == model.points
            assert [one.commit_hash for one in run.commits] == model.commits
            assert run.parent_experiment == model.parent

    def teardown(self) -> None:
        if hasattr(self, "repo"):
            if self.live is not None:
                self.tracker.end()
            for commit, (value, _) in self.commits.items():
                assert raw(Repository(self.folder).get_all_weights(commit, FILE)) == raw(tensors(value))
            assert not self.repo.maintenance.fsck(read_data=True).damage
        shutil.rmtree(self.folder)


SETTINGS = settings(
    max_examples=STEPS // A_RUN_OF_STEPS,
    stateful_step_count=A_RUN_OF_STEPS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def train(note: Note, seed: int) -> tuple[int, list[str]]:
    """The long form: as many steps, chosen by chance; how many there were, and what is wrong."""
    steps = 0

    @hypothesis.seed(seed)
    class Counted(Training):
        @invariant()
        def alive(self) -> None:
            nonlocal steps
            steps += bool(self.branches)
            note(steps)

    try:
        run_state_machine_as_test(Counted, settings=settings(SETTINGS, derandomize=False))
    except Exception as error:
        return steps, ["".join(traceback.format_exception(error))]
    return steps, []
