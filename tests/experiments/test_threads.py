"""Threads: eight may log to one run; nothing is lost and no lines are mixed."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from coral.errors import ConflictError
from coral.experiments import ExperimentTracker, Run
from coral.experiments.local import writer
from coral.experiments.local.backend import LocalBackend
from coral.repository import Repository
from coral.testing.interrupts import Steps


def test_eight_threads_log_to_one_run(tracker: ExperimentTracker) -> None:
    """Every point of every thread is there, in its thread's order."""
    run = tracker.start("a")

    def work(number: int) -> None:
        for step in range(2000):
            run.log(f"m{number}", step / 7, step=step)
            if step % 500 == 0:
                run.log_metrics({"shared": float(number)}, step=step)
                run.log_params({f"p{number}": step})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = tracker.end()
    for number in range(8):
        history = ended.get_metric_history(f"m{number}")
        assert list(history.steps) == list(range(2000)) and list(history.values) == [step / 7 for step in range(2000)]
    assert Counter(ended.get_metric_history("shared").values) == Counter({float(number): 4 for number in range(8)})
    assert len(ended.params) == 8 and len(ended.parameter_history) == 32


def test_a_commit_waits_for_no_query(repo: Repository) -> None:
    """A commit holds the repository's lock while its runs are told, so being told takes no lock of the queries."""
    backend = LocalBackend(repo.folder)
    run = ExperimentTracker(repo, backend=backend).start("a")
    repo.stage_weights({"w": np.zeros(4)})
    committing = threading.Thread(target=lambda: repo.commit("c"), daemon=True)
    with backend._following.mutex:
        committing.start()
        committing.join(timeout=20)
        assert not committing.is_alive()
    assert len(run.commits) == 1
    run.end()


def test_two_runs_of_one_repository_in_threads(repo: Repository) -> None:
    """Logging, committing and asking in several threads at once come to an end; each run has every commit."""
    trackers = [ExperimentTracker(repo), ExperimentTracker(repo)]
    runs = [tracker.start(f"run {number}") for number, tracker in enumerate(trackers)]

    def train(number: int) -> None:
        for step in range(8):
            runs[number].log("loss", 1 / (step + 1), step=step)
            repo.save({"w": np.full(4, step)}, step=step, metrics={"loss": 1 / (step + 1)})

    def ask(number: int) -> None:
        for _ in range(8):
            trackers[number].list()
            trackers[number].find_best("loss", "min")
            asked.append(len(runs[number].metrics))

    asked: list[int] = []
    jobs = [threading.Thread(target=job, args=(number,), daemon=True) for job in (train, ask) for number in (0, 1)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join(timeout=60)
    assert not any(one.is_alive() for one in jobs)
    made = {commit.commit_hash for commit in repo.log()}
    assert len(made) == len(asked) == 16
    for run in runs:
        run.end()
        assert {commit.commit_hash for commit in run.commits} == made


def test_importing_is_light() -> None:
    """`import coral.experiments` loads neither frameworks nor data frames nor databases."""
    heavy = ("numpy", "torch", "pandas", "sqlite3", "git", "pygit2")
    code = f"import sys, coral.experiments; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr


def test_a_run_that_ended_leaves_no_thread(tracker: ExperimentTracker) -> None:
    """What syncs a live run's journal now and then ends with it, though the run is still at hand."""
    tracker.start("before").end()  # what every run of the process shares stays
    before = set(threading.enumerate())
    run = tracker.start("a")
    started = set(threading.enumerate()) - before
    assert started
    tracker.end()
    for thread in started:
        thread.join(writer.IDLE_SECONDS / 2)
    assert not any(thread.is_alive() for thread in started) and not run.is_open


def test_of_threads_that_start_a_run_one_does(repo: Repository) -> None:
    """The others are refused, and the run of the one goes on."""
    tracker, begin = ExperimentTracker(repo), threading.Barrier(4)

    def start(number: int) -> Run | None:
        begin.wait(60)
        try:
            return tracker.start(f"of {number}")
        except ConflictError:
            return None

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            started = [run for run in pool.map(start, range(4)) if run is not None]
        assert [run.is_open for run in started] == [True] and tracker.active is started[0]
        started[0].end()


def test_an_interrupt_leaves_what_is_known_of_a_run_as_it_is_recorded(repo: Repository) -> None:
    """At every line of `log_params`: the next one is seen at once, with all before it."""
    run = ExperimentTracker(repo).start("x")
    for place in itertools.count(1):
        hit = Steps(place).run(lambda: run.log_params({f"a{place}": place}))  # noqa: B023
        run.log_params({f"b{place}": place})
        assert f"b{place}" in run.params, (
            place,
            run._unfolded,
            run._changing.locked(),
            run._sink,
            list(run.params)[-3:],
        )
        if not hit:
            break
    kept = dict(run.params)
    run.end()
    assert place > 10 and ExperimentTracker(repo).get(run.experiment_id).params == kept


def test_a_run_that_its_block_ended_has_ended(repo: Repository) -> None:
    """Ending it again changes nothing: the first ending stands, here and on the disk."""
    with ExperimentTracker(repo).start("x") as run:
        pass
    assert run.end(status="failed").status == ExperimentTracker(repo).get("x").status == "completed"
