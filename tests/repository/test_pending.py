"""Commits that do not stop training: of the state as it was, in order, whole, and never lost without a word."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from coral import PendingCommit, Repository
from coral.errors import ConflictError, CoralError, RefNotFoundError, UnsupportedValueError
from tests.repository.helpers import child


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path, init=True)


def value(repo: Repository, ref: str = "HEAD") -> float:
    """What all elements of ``w`` are."""
    (only,) = np.unique(np.asarray(repo.get_weight("w", ref)))
    return float(only)


def test_what_training_does_meanwhile_does_not_leak_in(repo: Repository) -> None:
    """Each commit holds weights, optimizer state and numbers as they were at its call, whatever changed since."""
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    weights, moments, pending = [], [], []
    for step in range(6):
        loss = model(torch.randn(4, 600)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights.append(model.weight.detach().clone())
        moments.append(optimizer.state[model.weight]["exp_avg"].clone())
        pending.append(repo.save(model, optimizer, step=step, wait=False, epoch=[step]))
    for step, one in enumerate(pending):
        made = one.result().commit_hash
        again = torch.nn.Linear(600, 600)
        fresh = torch.optim.AdamW(again.parameters(), lr=0.1)
        assert repo.load_into(again, made, fresh) == {"epoch": [step]}
        assert torch.equal(again.weight, weights[step])
        assert torch.equal(fresh.state[again.weight]["exp_avg"], moments[step])
    assert [commit.step for commit in repo.log()] == [5, 4, 3, 2, 1, 0]


def test_order_is_kept_among_commits_that_wait_and_those_that_do_not(repo: Repository) -> None:
    """A commit that waits comes after one under way, and what is staged meanwhile goes into the next one."""
    for step in range(0, 9, 3):
        repo.save({"w": np.full(300_000, step, np.float32)}, step=step, wait=False)
        repo.stage_weights({"x": np.full(10, step)}, "x.safetensors")
        assert isinstance(repo.commit("staged", step=step + 1, wait=False), PendingCommit)
        repo.stage_weights({"x": np.full(10, -step)}, "y.safetensors")
        made = repo.commit("waited", step=step + 2)
        assert made.commit_hash == repo.resolve("HEAD")
    assert [commit.step for commit in repo.log()] == list(range(8, -1, -1))
    assert value(repo, "HEAD~2") == 6
    assert set(repo.parts("HEAD~1")) == {"model.safetensors", "state.safetensors", "x.safetensors", "y.safetensors"}


def test_the_same_bytes_whether_waited_for_or_not(tmp_path: Path) -> None:
    """Both ways give the same manifests."""
    oids = []
    for wait in (True, False):
        repo = Repository(tmp_path / str(wait), init=True)
        for seed in range(3):
            weights = {"a": np.random.default_rng(seed).normal(size=(700, 500)).astype(np.float32), "b": np.int64(seed)}
            if wait:
                repo.save(weights, seed=seed)
            else:
                repo.save(weights, seed=seed, wait=False)
            repo.flush()
            oids.append(repo.history.parts(repo.resolve("HEAD")))
    assert oids[:3] == oids[3:]


def test_a_failure_surfaces_at_result_and_at_the_next_commit(repo: Repository) -> None:
    """Whoever asks is told; if nobody did, the next commit is refused once, and nothing of the failed one is kept."""
    first = repo.save({"w": np.zeros(100_000)})
    repo.create_branch("side")
    repo.pin("side")
    Repository(repo.path).delete_branch("side", force=True)
    told = repo.save({"w": np.ones(100_000)}, wait=False)
    with pytest.raises(RefNotFoundError, match="side"):
        told.result()
    untold = repo.save({"w": np.ones(100_000)}, wait=False)
    while not untold.done():
        time.sleep(0.01)
    Repository(repo.path).create_branch("side")
    with pytest.raises(RefNotFoundError, match="side"):
        repo.save({"w": np.full(100_000, 2.0)})
    assert untold.done() and "side" in repr(untold)
    made = repo.save({"w": np.full(100_000, 3.0)})
    assert [commit.commit_hash for commit in repo.log("side")] == [made.commit_hash, first.commit_hash]
    assert value(repo, "side") == 3


def test_bad_values_are_refused_at_once(repo: Repository) -> None:
    """What cannot be kept is an error of the call itself, not of a thread that nobody looks at."""
    with pytest.raises(UnsupportedValueError):
        repo.save({"w": np.ones(3)}, wait=False, bad=object())
    with pytest.raises(CoralError, match="no commit"):
        repo.resolve("HEAD")  # and none is on its way


def test_result_can_be_asked_with_a_timeout(repo: Repository) -> None:
    """TimeoutError while it is under way; the commit afterwards."""
    hold = threading.Event()
    repo.add_commit_observer(_Holding(hold))
    pending = repo.save({"w": np.ones(10)}, wait=False)
    assert not pending.done() and "under way" in repr(pending)
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.01)
    hold.set()
    assert pending.result(timeout=60).commit_hash == repo.resolve("HEAD")
    assert pending.done()


class _Holding:
    def __init__(self, hold: threading.Event) -> None:
        self._hold = hold

    def trailers(self, **_: object) -> dict[str, str]:
        return {}

    def committed(self, _: object) -> None:
        assert self._hold.wait(60)


def test_memory_is_one_copy_that_is_used_again(repo: Repository) -> None:
    """The second save copies into the pages of the first, and the third too."""
    state = {"w": np.zeros(1 << 20, np.float32)}
    places = []
    for step in range(3):
        repo.save(state, step=step, wait=False).result()
        state["w"] += 1
        places.append({name: id(copies._memory.obj) for name, copies in repo._committer._copies.items()})
    assert places[0] == places[1] == places[2]


_TRAINS = """
    import signal, time
    repo = Repository(sys.argv[1], init=True)
    repo.save({"w": np.random.default_rng(0).normal(size=5_000_000)}, step=0)
    pending = repo.save({"w": np.random.default_rng(1).normal(size=5_000_000)}, step=1, wait=False)
    print(pending.done(), flush=True)
"""


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise SystemError", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_process_that_ends_finishes_its_commit(tmp_path: Path, ending: str) -> None:
    """At the end of the script, at sys.exit, after an exception and at SIGTERM, the commit under way is made first."""
    process = child(_TRAINS + "    " + ending, tmp_path)
    out, error = process.communicate(timeout=120)
    assert out.strip() == "False", error
    expected = {"": 0, "sys.exit(3)": 3, "raise SystemError": 1}.get(ending, -signal.SIGTERM)
    assert process.returncode == expected, error
    repo = Repository(tmp_path)
    assert [commit.step for commit in repo.log()] == [1, 0]
    assert np.array_equal(np.asarray(repo.get_weight("w")), np.random.default_rng(1).normal(size=5_000_000))


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_killed_process_leaves_whole_commits(tmp_path: Path, delay: float) -> None:
    """kill -9 in the middle: the commit is there whole, or not at all, and the repository goes on."""
    process = child(_TRAINS + "    time.sleep(60)", tmp_path)
    assert process.stdout is not None and process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.communicate()
    repo = Repository(tmp_path)
    steps = [commit.step for commit in repo.log()]
    assert steps in ([0], [1, 0])
    assert not repo.maintenance.fsck(read_data=True).damage
    expected = np.random.default_rng(len(steps) - 1).normal(size=5_000_000)
    assert np.array_equal(np.asarray(repo.get_weight("w")), expected)
    repo.save({"w": np.zeros(3)}, step=2, wait=False).result()


def test_a_signal_handler_in_the_middle_of_a_commit_is_refused(repo: Repository) -> None:
    """It gets a ConflictError rather than waiting for itself for ever."""
    caught: list[Exception] = []

    class Interrupting:
        def trailers(self, **_: object) -> dict[str, str]:
            return {}

        def committed(self, _: object) -> None:
            signal.raise_signal(signal.SIGUSR1)

    def handler(*_: object) -> None:
        try:
            repo.save({"w": np.ones(3)}, wait=False)
        except ConflictError as error:
            caught.append(error)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        repo.add_commit_observer(Interrupting())
        repo.save({"w": np.zeros(3)})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(caught) == 1 and len(list(repo.log())) == 1


def test_a_forked_child_does_not_wait_for_its_parents_commit(repo: Repository) -> None:
    """The thread is the parent's: the child's own commits go on, and its end is not held up."""
    hold = threading.Event()
    observer = _Holding(hold)
    repo.add_commit_observer(observer)
    pending = repo.save({"w": np.ones(10)}, wait=False)
    while repo.history.head().commit is None:
        time.sleep(0.01)
    forked = os.fork()
    if forked == 0:
        code = 1
        try:
            repo.remove_commit_observer(observer)
            repo.flush()
            for ask in (pending.result, pending.done, pending.wait):
                with pytest.raises(ConflictError, match="parent"):
                    ask()
            assert "parent" in repr(pending)
            Repository(repo.path).save({"w": np.full(10, 2.0)}, wait=False).result()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    hold.set()
    pending.result()
    assert value(repo) == 2


@pytest.mark.parametrize(
    "verb", [lambda repo: repo.maintenance.gc(), lambda repo: repo.maintenance.fsck(repair=True)], ids=["gc", "repair"]
)
def test_what_wants_the_store_alone_waits(repo: Repository, verb: Callable[[Repository], object]) -> None:
    """It comes after the commit under way, rather than being refused for what that stages; and tells what failed."""
    hold = threading.Event()
    observer = _Holding(hold)
    repo.add_commit_observer(observer)
    pending = repo.save({"w": np.ones(10)}, wait=False)
    threading.Timer(0.2, hold.set).start()
    verb(repo)
    assert pending.done() and pending.result().commit_hash == repo.resolve("HEAD")
    repo.remove_commit_observer(observer)
    repo.create_branch("side")
    repo.pin("side")
    Repository(repo.path).delete_branch("side", force=True)
    repo.save({"w": np.zeros(10)}, wait=False)
    with pytest.raises(RefNotFoundError, match="side"):
        verb(repo)


def test_the_commit_under_way_is_the_last_operation(repo: Repository) -> None:
    """Undo waits for it, and takes it back."""
    first = repo.save({"w": np.zeros(10)})
    pending = repo.save({"w": np.random.default_rng(0).normal(size=5_000_000)}, wait=False)
    assert not pending.done()
    (undone,) = repo.undo()
    assert pending.result().commit_hash in {move.new for move in undone.moves}
    assert repo.resolve("HEAD") == first.commit_hash
