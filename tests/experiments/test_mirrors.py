"""A mirror is told of all that is recorded, and nothing that it does reaches the training."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coral.errors import ConflictError, UsageError
from coral.experiments import Experiment, ExperimentStatus, ExperimentTracker, events, mirror
from coral.experiments.events import Event
from coral.experiments.local.journal import decode
from coral.experiments.mirror import MirroredSink
from coral.repository import Repository
from coral.testing.contracts.mirrors import ListMirror, points_of
from coral.testing.interrupts import Steps

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def short_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that hangs is waited for for a second."""
    monkeypatch.setattr(mirror, "FLUSH_SECONDS", 1.0)


class Hook(ListMirror):
    """Does something when it is told of something."""

    def __init__(self, action: Callable[[Experiment, Event], object]) -> None:
        super().__init__()
        self._action = action

    def event(self, run: Experiment, event: Event) -> None:
        """Keep it, then do that."""
        super().event(run, event)
        self._action(run, event)


def journal_of(repo: Repository, run_id: str) -> list[Event]:
    """What a live run's journal holds."""
    return decode((repo.folder.root / "experiments" / f"{run_id}.jsonl").read_bytes())[0]


def everything(repo: Repository, run: Experiment | ExperimentTracker) -> None:
    """Log something of each kind."""
    assert isinstance(run, ExperimentTracker)
    run.log("loss", 0.5, 1)
    run.log("loss", float("nan"))
    run.log_metrics({"loss": 0.25, "acc": 1}, 2, metadata={"split": "val"})
    run.log_params({"opt": {"lr": 0.1}})
    run.add_tags(["a"])
    run.set_notes("n")
    run.log_text("abc", "a.txt")
    repo.stage_weights({"w": np.zeros(4)})
    repo.commit("c", step=2)


def threads_of_mirrors() -> list[threading.Thread]:
    """Those that are there."""
    return [one for one in threading.enumerate() if one.name == "coral-mirror"]


def test_a_mirror_is_told_what_the_journal_has(repo: Repository) -> None:
    """All of it, in order, at the same times; between a start and the end."""
    mirrored = [ListMirror(), ListMirror()]
    tracker = ExperimentTracker(repo, mirrors=mirrored)
    run = tracker.start("a", params={"lr": 1})
    everything(repo, tracker)
    recorded = journal_of(repo, run.experiment_id)
    run.end()
    for one in mirrored:
        first, *rest, last = one.events(run.experiment_id)
        assert rest == recorded and len({event["e"] for event in rest}) == 5
        assert first["e"] == "start" and isinstance(first["v"], dict) and first["v"]["params"] == {"lr": 1}
        assert {**last, "t": 0} == events.at(events.end(ExperimentStatus.COMPLETED), 0)
        assert one.closed == [run.experiment_id]
        assert repr(one.points(run.experiment_id)) == repr(points_of(tracker.get(run.experiment_id).history))


def test_the_run_that_a_mirror_sees(repo: Repository) -> None:
    """It is the run as it is with the event, with its artifacts' bytes; and a copy, whatever the mirror does to it."""
    seen: list[object] = []

    def spoil(run: Experiment, event: Event) -> None:
        seen.append((1, list(run.tags), str(run.status)) if run.params.get("lr") else (None, str(run.status)))
        if event["e"] == "a":
            seen.append(run.load_artifact("a.txt"))
        run.params.clear()
        run.tags.append("spoilt")
        run.artifacts.clear()
        event.clear()

    whole = ListMirror()
    tracker = ExperimentTracker(repo, mirrors=[Hook(spoil), whole])
    run = tracker.start("a", params={"lr": 1}, tags=["x"])
    everything(repo, tracker)
    recorded = journal_of(repo, run.experiment_id)
    run.end()
    kept = tracker.get(run.experiment_id)
    assert seen[0] == (1, ["x"], "running") and b"abc" in seen and seen[-1] == (None, "completed")
    assert kept.params == run.params == {"lr": 1, "opt": {"lr": 0.1}} and kept.tags == run.tags == ["x", "a"]
    assert len(run.artifacts) == 1
    assert whole.events(run.experiment_id)[1:-1] == recorded


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("kind", ["start", "m", "end", "close"])
def test_a_mirror_that_raises_is_left_out(repo: Repository, error: BaseException, kind: str) -> None:
    """Whatever it raises, and when: one warning says so, it is told nothing more, and the others are told all."""

    class Raises(ListMirror):
        def event(self, run: Experiment, event: Event) -> None:
            super().event(run, event)
            if event["e"] == kind:
                raise error

        def close(self, run: Experiment) -> None:
            super().close(run)
            if kind == "close":
                raise error

    bad, good = Raises(), ListMirror()
    tracker = ExperimentTracker(repo, mirrors=[bad, good])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            run = tracker.start("a")
            tracker.log("loss", 0.5, 1)
            tracker.log_params({"a": 1})
            assert str(run.end().status) == "completed"
    assert len(told) == 1 and "Raises is left out from now on: it raised" in str(told[0].message)
    assert len(bad.told) == {"start": 1, "m": 2, "end": 4, "close": 4}[kind]
    assert len(good.told) == 8 and len(good.closed) == 2
    assert [len(one.metrics) for one in tracker.list()] == [1, 1]


def test_a_mirror_that_hangs_is_left_out(repo: Repository) -> None:
    """Logging goes on as if it were not there, and the end waits for a while, once."""
    stuck = threading.Event()
    bad, good = Hook(lambda run, event: stuck.wait()), ListMirror()
    tracker = ExperimentTracker(repo, mirrors=[bad, good])
    run, began = tracker.start("a"), time.monotonic()
    for step in range(1000):
        tracker.log("loss", 0.5, step)
    assert time.monotonic() - began < 1.0
    with pytest.warns(RuntimeWarning, match="the mirror Hook is left out from now on: it is slow"):
        run.end()
    assert time.monotonic() - began < 10.0
    assert len(good.told) == 1002 and len(bad.told) == 1
    again, began = tracker.start("b"), time.monotonic()
    again.end()
    assert time.monotonic() - began < 0.9
    stuck.set()
    assert len(good.told) == 1004


def test_a_full_queue_leaves_out_points_alone(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that has fallen behind hears of all that is said once, and how many points it missed."""
    monkeypatch.setattr(mirror, "MOST_WAITING", 10)
    go = threading.Event()
    slow = Hook(lambda run, event: go.wait())
    tracker = ExperimentTracker(repo, mirrors=[slow])
    run = tracker.start("a")
    for step in range(50):
        tracker.log("loss", 0.5, step)
        tracker.log_params({"step": step})
    go.set()
    run.end()
    kinds = [event["e"] for event in slow.events(run.experiment_id)]
    missed = sum(event["n"] for event in slow.events(run.experiment_id) if event["e"] == "drop")  # type: ignore[misc]
    assert kinds.count("p") == 50 and kinds[0] == "start" and kinds[-1] == "end"
    assert kinds.count("m") + missed == 50 and 0 < kinds.count("m") <= 11
    assert len(tracker.get(run.experiment_id).metrics) == 50


def test_a_slow_mirror_hears_of_the_end(repo: Repository) -> None:
    """At the end of a run the points of a mirror that is far behind are left out, so that it learns how that went."""
    slow = Hook(lambda run, event: time.sleep(0.02))
    tracker = ExperimentTracker(repo, mirrors=[slow])
    run = tracker.start("a")
    for step in range(500):
        tracker.log("loss", 0.5, step)
    tracker.log_params({"late": 1})
    run.end()
    told = slow.events(run.experiment_id)
    assert [event["e"] for event in told if event["e"] != "m"] == ["start", "drop", "p", "end"]
    assert sum(event["e"] == "m" for event in told) + int(str(told[-3]["n"])) == 500


def test_a_run_without_mirrors_pays_nothing(tracker: ExperimentTracker, repo: Repository) -> None:
    """Its sink is the backend's own, and no thread waits for anything."""
    of_others = set(threads_of_mirrors())
    run = tracker.start("a")
    assert not isinstance(run._sink, MirroredSink) and run._sink is not None and run._point == run._sink.point
    assert set(threads_of_mirrors()) <= of_others
    run.end()
    mirrored = ExperimentTracker(repo, mirrors=[ListMirror()])
    assert isinstance(mirrored.start("b")._sink, MirroredSink)
    mirrored.end()


def test_what_is_no_mirror_is_refused(repo: Repository) -> None:
    """A class, or anything without the two verbs, is told at once."""
    for wrong in (object(), ListMirror, "mlflow"):
        with pytest.raises(UsageError, match="is no mirror"):
            ExperimentTracker(repo, mirrors=[wrong])  # type: ignore[list-item]


def test_an_attached_run_is_followed(repo: Repository) -> None:
    """Whoever goes on with a run of the shell has it start, and part, without an end."""
    run_id = ExperimentTracker(repo).start("a", owner="shell").experiment_id
    follows = ListMirror()
    with ExperimentTracker(repo, mirrors=[follows]).attach(run_id) as run:
        run.log("loss", 0.5, 1)
    assert [event["e"] for event in follows.events(run_id)] == ["start", "m"] and follows.closed == [run_id]


def test_the_thread_ends_with_the_tracker(repo: Repository) -> None:
    """A tracker that is gone leaves no thread behind; one of a run that goes on stays as long."""
    of_others = set(threads_of_mirrors())  # of tests before this one, that may just be about to end
    run = ExperimentTracker(repo, mirrors=[ListMirror()]).start("a")
    gc.collect()
    (own,) = set(threads_of_mirrors()) - of_others
    run.end()
    del run
    gc.collect()
    own.join(10)
    assert not own.is_alive()


def test_many_threads_log_to_one_mirror(repo: Repository) -> None:
    """None of their points is lost on the way, and one thread alone calls the mirror."""
    callers: set[int] = set()
    follows = Hook(lambda run, event: callers.add(threading.get_ident()))
    tracker = ExperimentTracker(repo, mirrors=[follows])
    run = tracker.start("a")

    def log(name: str) -> None:
        for step in range(300):
            run.log(name, 0.5, step)

    workers = [threading.Thread(target=log, args=(name,)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    run.end()
    assert {name: len(points) for name, points in follows.points(run.experiment_id).items()} == dict.fromkeys(
        "abcd", 300
    )
    assert len(callers) == 1 and threading.get_ident() not in callers


def test_a_mirror_that_ends_the_run_hangs_nothing(repo: Repository) -> None:
    """It must not, and is left out for it: it would wait for itself."""
    tracker = ExperimentTracker(repo, mirrors=[Hook(lambda run, event: event["e"] == "p" and tracker.end())])
    run = tracker.start("a")
    with pytest.warns(RuntimeWarning, match="is left out"):
        tracker.log_params({"a": 1})
        for thread in threads_of_mirrors():
            thread.join(timeout=3)
        run.end()
    assert str(tracker.get(run.experiment_id).status) == "completed"


def test_an_interrupt_costs_a_mirror_one_point_at_most(repo: Repository) -> None:
    """At every line of `log`, and of what says something once: the run and its mirrors go on, and the end is told."""
    follows = ListMirror()
    tracker = ExperimentTracker(repo, mirrors=[follows])
    run, hits = tracker.start("a"), 0
    for place in itertools.count(1):
        hit = Steps(place).run(lambda: tracker.log("loss", 0.5, place))  # noqa: B023
        hit |= Steps(place).run(lambda: tracker.add_tags([f"tag{place}"]))  # noqa: B023
        hits += hit
        if not hit:
            break
    run.end()
    told, recorded = follows.points(run.experiment_id)["loss"], tracker.get(run.experiment_id)
    logged = [(one.step, one.value) for one in recorded.metrics]
    assert place > 5 and set(told) <= set(logged) and len(told) >= len(logged) - hits
    tags = [tag for event in follows.events(run.experiment_id) if event["e"] == "set" for tag in event["v"]["add_tags"]]  # type: ignore[index, call-overload, union-attr]
    assert tags == recorded.tags and follows.events(run.experiment_id)[-1]["e"] == "end"


@contextlib.contextmanager
def child() -> Iterator[list[int]]:
    """Fork; the child leaves with 0, or with 1 when the block raised."""
    pids = [os.fork()]
    if pids[0]:
        yield pids
        return
    status = 1
    try:
        yield pids
        status = 0
    finally:
        os._exit(status)


def test_a_forked_child_tells_no_mirror(repo: Repository) -> None:
    """What it logs to its parent's run is recorded; a run of its own, by a tracker of before, is followed there."""
    follows = ListMirror()
    idle = ExperimentTracker(Repository(repo.path), mirrors=[follows])
    idle.start("before").end()
    shell = ExperimentTracker(Repository(repo.path)).start("shell", owner="shell")
    attached = ExperimentTracker(Repository(repo.path), mirrors=[follows]).attach(shell.experiment_id)
    tracker = ExperimentTracker(repo, mirrors=[follows])
    run = tracker.start("a")
    tracker.log("loss", 0.5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        with child() as pids:
            if not pids[0]:
                before = len(follows.told)
                tracker.log("loss", 0.25, 2)
                time.sleep(0.1)
                assert len(follows.told) == before
                with contextlib.suppress(ConflictError):
                    run.end()
                warnings.simplefilter("error", RuntimeWarning)  # of a mirror that would be waited for
                attached.close()
                own = idle.start("child")
                own.end()
                assert [event["e"] for event in follows.events(own.experiment_id)] == ["start", "end"]
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    tracker.log("loss", 0.125, 3)
    run.end()
    attached.close()
    assert follows.points(run.experiment_id) == {"loss": [(1, 0.5), (3, 0.125)]}
    assert len(tracker.get(run.experiment_id).metrics) == 3


MIRROR = """
from coral.experiments import mirror
mirror.FLUSH_SECONDS = 2.0
class Lines:
    def event(self, run, event):
        with open(sys.argv[2], "a") as file:
            file.write(event["e"] + " " + str(event.get("status")) + chr(10))
        if "hang" in sys.argv and event["e"] == "m":
            time.sleep(600)
    def close(self, run):
        with open(sys.argv[2], "a") as file:
            file.write("closed" + chr(10))
tracker = ExperimentTracker(repo, mirrors=[Lines()])
run = tracker.start("a")
tracker.log("loss", 0.5, 1)
"""


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        ("", "completed", 0),
        ("raise ValueError('x')", "failed", 1),
        ("raise KeyboardInterrupt", "cancelled", -2),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "cancelled", -15),
    ],
)
@pytest.mark.parametrize("hang", [False, True])
def test_the_end_of_the_process_is_told(
    spawn: Spawn, tmp_path: Path, tracker: ExperimentTracker, ending: str, status: str, code: int, hang: bool
) -> None:
    """However it ends, the mirror hears of it first; one that hangs keeps neither the process nor the run from it."""
    lines = tmp_path / "lines"
    process = spawn(MIRROR + ending, str(lines), *(["hang"] if hang else []))
    process.communicate(timeout=60)
    assert process.returncode == code
    told = ["start None", "m None"]
    assert lines.read_text().splitlines() == (told if hang else [*told, f"end {status}", "closed"])
    assert str(tracker.list()[0].status) == status
