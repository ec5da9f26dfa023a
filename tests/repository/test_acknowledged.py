"""What was acknowledged is kept, and what comes next works: threads, interrupts, refusing disks, signals, the end."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from coral import ConflictError, Repository, StorageError
from coral.errors import LockedError, NothingToCommitError
from coral.history import refs
from coral.storage import disk
from coral.storage.locks import file_lock
from coral.testing.disks import Interposed
from coral.testing.interrupts import Steps
from coral.testing.trace import Kind
from tests.processes import without_threads
from tests.repository.helpers import child, finish


def state(value: float, size: int = 300) -> dict[str, np.ndarray]:
    """A model all of whose numbers are one."""
    return {"w": np.full(size, value, np.float32), "b": np.full(7, value, np.float32)}


def held(repo: Repository, ref: str = "HEAD") -> set[float]:
    """All numbers of a commit's weights."""
    parts = [name for name in repo.parts(ref) if not name.startswith("state")]
    arrays = [np.asarray(one) for name in parts for one in repo.get_all_weights(ref, name).values()]
    return {float(one) for array in arrays for one in np.unique(array)}


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    repo = Repository(tmp_path, init=True)
    repo.save(state(0), step=0)
    return repo


# -- threads


def test_commits_beside_hold_what_their_callers_passed(repo: Repository) -> None:
    """Threads that save with `wait=False` at the same moment, again and again, do not share a buffer."""
    begin = threading.Barrier(3)

    def save(first: int) -> list[tuple[int, str]]:
        begin.wait(60)
        steps = range(first, first + 6)
        made = [(step, repo.save(state(step, 200_000), step=step, wait=False)) for step in steps]
        return [(step, pending.result().commit_hash) for step, pending in made]

    with ThreadPoolExecutor(3) as pool:
        told = list(itertools.chain(*pool.map(save, (100, 200, 300))))
    assert [held(repo, made) for _, made in told] == [{step} for step, _ in told]
    assert len(list(repo.log())) == 19


def test_what_one_thread_staged_no_other_replaces_or_takes_along(repo: Repository) -> None:
    """Staging by hand is one thread's; `save` of another lands without it, and leaves it staged."""

    def elsewhere(call: Callable[[], object]) -> object:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    repo.stage_weights(state(1), "mine.safetensors")
    for call in (
        partial(repo.stage_weights, state(2), "mine.safetensors"),
        partial(repo.stage_state, {"x": 2}),
        partial(repo.unstage),
    ):
        with pytest.raises(ConflictError, match="MainThread"):
            elsewhere(call)
    elsewhere(lambda: repo.save(state(3), step=3))
    assert set(repo.parts()) == {"model.safetensors", "state.safetensors"} and held(repo) == {3}
    elsewhere(lambda: repo.save(state(4), step=4))
    made = repo.commit("mine")
    assert held(repo) == {1, 4} and made.parents == (repo.resolve("HEAD~1"),)
    with pytest.raises(NothingToCommitError):
        repo.commit("again")


def test_what_a_thread_staged_that_is_over_anybody_may_go_on_with(repo: Repository) -> None:
    """Nobody else could."""
    thread = threading.Thread(target=repo.stage_weights, args=(state(1),))
    thread.start()
    thread.join()
    repo.stage_weights(state(2))
    repo.commit("two")
    assert held(repo) == {2}


def test_what_is_staged_goes_with_the_next_save_of_its_thread(repo: Repository) -> None:
    """As with one that waits, so with one that does not; a failed one takes nothing along."""
    repo.stage_weights(state(5), "more.safetensors")
    with pytest.raises(Exception, match="object"):
        repo.save(state(1), bad=object())
    assert [change.name for change in repo.status().staged] == ["more.safetensors"]
    repo.save(state(1), wait=False).result()
    assert held(repo) == {1, 5} and not repo.status().staged


def test_what_is_unstaged_lets_go_of_the_store(repo: Repository) -> None:
    """Garbage collection, of this object and of others, waits for nobody who has nothing staged."""
    repo.stage_weights(state(1))
    repo.unstage()
    repo.maintenance.gc(prune_now=True)
    Repository(repo.path).maintenance.gc(prune_now=True)
    repo.stage_weights(state(1))
    repo.commit("again")
    assert held(repo) == {1} and not repo.maintenance.fsck(read_data=True).damage


# -- interrupts, and disks that refuse


@pytest.mark.parametrize("wait", [True, False])
def test_an_interrupted_save_can_be_followed_by_any_other(repo: Repository, wait: bool) -> None:
    """At every line of coral's: the save in the handler lands, and no commit is a mixture."""
    value = 1.0
    for place in itertools.count(1, 11):
        steps = Steps(place)
        call = partial(repo.save, state(value), step=int(value))
        if not steps.run(call if wait else partial(call, wait=False)):
            break
        repo.save(state(value + 1), step=int(value) + 1)
        for commit in itertools.islice(repo.log(), 3):
            assert held(repo, commit.commit_hash) == {commit.step}, steps.place
        value += 2
    repo.maintenance.gc(prune_now=True)  # nothing is held any more
    assert value > 20


def test_commits_of_what_was_staged_too(repo: Repository) -> None:
    """An interrupted `commit` has landed, or can be made again."""
    for value, place in enumerate(itertools.count(1, 17), 1):
        repo.stage_weights(state(value))
        steps = Steps(place)
        hit = steps.run(lambda: repo.commit("staged", step=value))  # noqa: B023
        with contextlib.suppress(NothingToCommitError):
            repo.commit("again")
        assert held(repo) == {value}, steps.place
        if not hit:
            break
    assert value > 5


class RefusedAfterTheMove(Interposed):
    """A disk that refuses the first sync of a folder after a branch has moved."""

    def __init__(self, repo: Repository) -> None:
        super().__init__()
        self.repo, self.before, self.refused = repo, repo.resolve("HEAD"), False

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if kind == "sync" and not self.refused and self.repo.history.head().commit != self.before:
            self.refused = True
            raise OSError(5, "Input/output error")
        return do()


@pytest.mark.parametrize("where", ["main", "HEAD~0"])
def test_a_commit_that_landed_and_was_refused_can_be_followed(repo: Repository, where: str) -> None:
    """The branch, or the detached HEAD, has moved, and the sync of its folder failed: the next save goes on there."""
    repo.checkout(where, force=True)
    for call in (
        lambda value: repo.save(state(value), step=value),
        lambda value: (repo.stage_weights(state(value)), repo.commit("x", step=value)),
    ):
        with disk.use(RefusedAfterTheMove(repo)) as _:
            repo.history._refs._durable_folders.clear()
            with pytest.raises(StorageError):
                call(1)
        call(2)
        assert held(repo) == {2}
        call(3)


class RefusedPack(Interposed):
    """A disk that refuses the name of a pack."""

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if kind == "rename" and str(arguments[1]).endswith(".pack"):
            raise OSError(28, "No space left on device")
        return do()


def test_what_another_thread_staged_goes_with_the_pack_that_was_refused(repo: Repository) -> None:
    """Its bytes were in the same pack: its commit is refused, and names nothing that is not there."""
    repo.stage_weights(state(1), "mine.safetensors")
    with ThreadPoolExecutor(1) as pool:
        with disk.use(RefusedPack()), pytest.raises(StorageError):
            pool.submit(repo.save, state(2)).result()
        with pytest.raises(NothingToCommitError):
            repo.commit("mine")
        pool.submit(repo.save, state(3)).result()
    repo.stage_weights(state(1), "mine.safetensors")
    repo.commit("mine")
    assert held(repo) == {1, 3} and not repo.maintenance.fsck(read_data=True).damage


def test_a_lock_that_others_keep_is_waited_for_once(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of a hundred attempts; and it is a LockedError."""
    waited: list[object] = []

    def lock(path: Path, **_: object) -> object:
        waited.append(path)
        return file_lock(path, timeout=0.2)

    monkeypatch.setattr(refs, "file_lock", lock)
    with (repo.folder.root / "locks/refs").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            repo.save(state(1), step=1)
    assert len(waited) == 1
    repo.save(state(2), step=2)
    assert held(repo) == {2}


def test_a_failure_is_told_though_who_asks_is_interrupted(repo: Repository) -> None:
    """At every line of `flush` and of `result`: it is told by the trace of the interrupt, or by the next one."""
    for ask in ("flush", "result"):
        for place in itertools.count(1):
            with disk.use(RefusedPack()):
                pending = repo.save(state(place), wait=False)
                pending._future.exception()
            steps = Steps(place)
            hit = False
            with contextlib.suppress(StorageError):
                hit = steps.run(repo.flush if ask == "flush" else pending.result)
            if not hit:
                break
            told = isinstance(steps.during, StorageError)
            try:
                repo.flush()
            except StorageError:
                told = True
            assert told, steps.place
        assert place > 5


def test_an_observer_that_waits_for_its_own_commit_is_refused(repo: Repository) -> None:
    """Rather than waiting for ever."""
    refused: list[str] = []
    asks = [repo.flush, lambda: repo.save(state(2)), lambda: repo.commit("x", allow_empty=True)]

    class Observer:
        def trailers(self, **_: object) -> dict[str, str]:
            return {}

        def committed(self, _: object) -> None:
            for ask in asks:
                try:
                    ask()
                except ConflictError as error:
                    refused.append(error.message.partition(" ")[0])

    repo.add_commit_observer(Observer())
    repo.save(state(1), wait=False).result(60)
    asks.pop(0)
    repo.save(state(3))
    assert refused == ["this"] * 5


# -- where no thread can be had

linux_only = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="NOT TESTED: the size of a process is read in /proc"
)


@linux_only
def test_a_commit_that_no_thread_can_be_started_for_is_refused(tmp_path: Path) -> None:
    """At once; the next one, and the end of the process, wait for nobody."""
    out = without_threads(
        """
        import numpy as np
        from coral import Repository
        repo = Repository(sys.argv[1], init=True)
        repo.save({"w": np.ones(100)}, step=0)
        no_threads()
        try:
            repo.save({"w": np.full(100, 2.0)}, step=1, wait=False)
        except RuntimeError as error:
            print(error.message)
        again()
        print(repo.save({"w": np.full(100, 3.0)}, step=2).step)
        print(repo.save({"w": np.full(100, 4.0)}, step=3, wait=False).result().step)
        """,
        tmp_path,
    )
    assert out.splitlines() == ["the commit cannot be made beside the program: can't start new thread", "2", "3"]


# -- signals

_COMMITTING = """
    import atexit, signal, threading, time
    from coral.experiments import ExperimentTracker
    repo = Repository(sys.argv[1], init=True)
    repo.save({"w": np.zeros(3)}, step=0)
    def save(step, size=2_000_000):
        return repo.save({"w": np.random.default_rng(step).normal(size=size)}, step=step, wait=False)
"""


def ended(script: str, project: Path, *, begin: str = "", front: Sequence[str] = ()) -> tuple[int, str, str]:
    """How a script ends that may call `save(step)`: its exit status, what it printed, and its errors."""
    whole = f"{begin}\n" + "\n".join(line[4:] for line in _COMMITTING.splitlines()) + f"\n{script}"
    process = child(whole, project, front=front)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def steps_of(project: Path) -> list[int | None]:
    """The steps of the commits there are, the newest first."""
    return [commit.step for commit in Repository(project).log()]


def test_a_signal_waits_for_no_lock_of_the_main_thread(tmp_path: Path) -> None:
    """The main thread is in the middle of logging, as the commit is about to be: both go on, and the signal kills."""
    script = """
from dataclasses import replace
from coral.experiments import events
run = ExperimentTracker(repo).start("x")
real = events.Fold._params
def params(self, event, t):
    if event["v"] == {"a": 1}: os.kill(os.getpid(), signal.SIGTERM); time.sleep(1)
    return real(self, event, t)
events.KINDS["p"] = replace(events.KINDS["p"], apply=params)
save(1)
run.log_params({"a": 1})
time.sleep(60)
"""
    code, _, errors = ended(script, tmp_path)
    assert code == -signal.SIGTERM, errors
    assert steps_of(tmp_path) == [1, 0]


def test_a_program_that_ends_while_a_signal_is_dealt_with_ends_of_it(tmp_path: Path) -> None:
    """Nothing that begins after the signal is begun in vain: it waits for the end."""
    script = """
save(1)
os.kill(os.getpid(), signal.SIGTERM)
print("went on", flush=True)
save(2)
print("too late")
"""
    code, out, errors = ended(script, tmp_path)
    assert (code, out) == (-signal.SIGTERM, "went on\n"), errors
    assert steps_of(tmp_path) == [1, 0]
    code, out, errors = ended("save(3)\nos.kill(os.getpid(), signal.SIGTERM)", tmp_path)
    assert code == -signal.SIGTERM, errors
    assert steps_of(tmp_path)[0] == 3


def test_a_programs_own_handler_may_end_the_run_and_save(tmp_path: Path) -> None:
    """Wherever it comes, and however often: coral calls it, and it is no part of what it came on top of."""
    script = """
run = ExperimentTracker(repo).start("x")
ended = []
def handler(*_):
    repo.save({"w": np.ones(5)}, step=7)
    ended.append(run.end(status="cancelled"))
    if len(ended) == 3: sys.exit(4)
signal.signal(signal.SIGTERM, handler)
save(1)
run.log("m", 1.0, 1)
for _ in range(9): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.02)
"""
    code, _, errors = ended(script, tmp_path)
    assert code == 4, errors
    assert steps_of(tmp_path)[-2:] == [1, 0] and set(steps_of(tmp_path)) == {7, 1, 0}


@pytest.mark.parametrize(
    "between",
    [
        "kept = signal.getsignal(signal.SIGTERM); repo.flush(); signal.signal(signal.SIGTERM, kept)",
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)",
        "kept = signal.getsignal(signal.SIGTERM); signal.signal(signal.SIGTERM, lambda *a: kept(*a)); repo.flush()",
    ],
    ids=["put back", "taken away", "chained to"],
)
def test_handlers_of_others_come_and_go(tmp_path: Path, between: str) -> None:
    """A library keeps what it found and puts it back, takes it away, or calls it: the commit under way is made."""
    script = f"save(1)\n{between}\nsave(2)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
    code, _, errors = ended(script, tmp_path)
    assert code == -signal.SIGTERM, errors
    assert steps_of(tmp_path) == [2, 1, 0]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-pf", "true"], check=False).returncode != 0,
    reason="NOT TESTED: a process cannot be made the first one of its kind here",
)
def test_the_first_process_of_a_container_ends_too(tmp_path: Path) -> None:
    """The kernel keeps it from signals that it does not handle."""
    script = "save(1)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
    code, _, errors = ended(script, tmp_path, front=["unshare", "-pf"])
    assert code == 128 + signal.SIGTERM, errors
    assert steps_of(tmp_path) == [1, 0]


def test_who_logs_while_a_signal_ends_the_run_meets_no_error(tmp_path: Path) -> None:
    """The program ends by the signal, and not by an exception of its own."""
    script = """
run = ExperimentTracker(repo).start("x")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True: run.log("m", 1.0); run.log_params({"a": 1})
"""
    code, _, errors = ended(script, tmp_path)
    assert (code, errors) == (-signal.SIGTERM, "")


def test_a_forked_child_is_killed_at_once(tmp_path: Path) -> None:
    """It has its parent's handlers, and nothing to wait for."""
    script = """
save(1)
here, there = os.pipe()
child = os.fork()
if not child: os.write(there, b"x"); time.sleep(60)
os.read(here, 1)  # Python forgets signals that come in the middle of a fork
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert ended(script, tmp_path)[1] == f"{-signal.SIGTERM}\n"
    assert steps_of(tmp_path) == [1, 0]


# -- the end of the process


@pytest.mark.parametrize(
    ("begin", "script"),
    [
        ("import atexit\natexit.register(lambda: save(1))", ""),
        ("", "atexit.register(lambda: save(1))"),
        ("", "threading.Thread(target=save, args=(1,)).start()"),
        ("", "daemon = threading.Thread(target=save, args=(1,), daemon=True); daemon.start(); daemon.join(60)"),
        ("", "threading.Thread(target=lambda: (threading.main_thread().join(), save(1))).start()"),
        ("", "save(1); sys.exit(0)"),
    ],
    ids=["a handler from before coral", "a handler", "a thread", "a daemon", "after the main thread", "the script"],
)
def test_whoever_starts_a_commit_the_end_waits_for_it(tmp_path: Path, begin: str, script: str) -> None:
    """Handlers at exit, threads, and what runs when the main thread is over."""
    code, _, errors = ended(script, tmp_path, begin=begin)
    assert code == 0, errors
    assert steps_of(tmp_path) == [1, 0], errors


_FULL = """
import resource, weakref
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
"""


@pytest.mark.parametrize(
    "script",
    [
        "save(1)",
        "run = ExperimentTracker(repo).start('x'); save(1)",
        "save(1); sys.exit(3)",
        "atexit.register(lambda: save(1))",
        "with ExperimentTracker(repo).start('x'): save(1)",
    ],
    ids=["alone", "with a run", "after sys.exit", "in a handler", "in a block"],
)
def test_a_last_commit_that_fails_is_told(tmp_path: Path, script: str) -> None:
    """On the standard error, once, and by the exit status; whatever else runs at exit has its turn."""
    code, out, errors = ended(_FULL + "atexit.register(print, 'the last')\n" + script, tmp_path)
    assert code == (1 if script.startswith("with") else 120), (code, errors)
    assert errors.count("StorageError: ") == 1 and "File too large" in errors and out == "the last\n"
    assert steps_of(tmp_path) == [0]
    runs = ended("print(*[run.status for run in ExperimentTracker(repo).list()])", tmp_path)[1]
    assert runs.strip() == ("failed" if "start" in script else "")


def test_a_failure_that_was_asked_for_is_not_told_again(tmp_path: Path) -> None:
    """Whoever called `result` decides."""
    script = "pending = save(1)\ntry: pending.result()\nexcept OSError as error: print(type(error).__name__)"
    code, out, errors = ended(_FULL + script, tmp_path)
    assert (code, out, errors) == (0, "StorageError\n", "")


def test_the_end_is_told_of_by_no_other_status(tmp_path: Path) -> None:
    """A commit that is made leaves the exit status alone."""
    process = child("repo = Repository(sys.argv[1], init=True)\nrepo.save({'w': np.zeros(5)}, wait=False)", tmp_path)
    assert finish(process) == ""
