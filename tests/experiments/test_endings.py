"""Truthful endings, in real processes: however a process ends, its run says so."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from coral.errors import ConflictError, CoralError
from coral.experiments import Experiment, ExperimentTracker
from coral.repository import Repository

Spawn = Callable[..., "subprocess.Popen[str]"]
START = "run = tracker.start('a'); run.log('loss', 0.5, step=1)\n"
# Who starts the tests with nohup has SIGHUP ignored, and the processes they start inherit that.
DEAF_TO_NOTHING = "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
READY = START + "print('ready', flush=True)\n"


def only(tracker: ExperimentTracker) -> Experiment:
    """The one run there is."""
    (run,) = tracker.list()
    return run


@pytest.mark.parametrize(
    ("script", "code", "status", "kind"),
    [
        ("", 0, "completed", None),
        ("run.end()", 0, "completed", None),
        ("sys.exit(0)", 0, "completed", None),
        ("sys.exit(3)", 3, "completed", None),  # a known limit; see endings
        ("with run: sys.exit(3)", 3, "failed", "exception"),
        ("with run: sys.exit(0)", 0, "completed", None),
        ("1 / 0", 1, "failed", "exception"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "cancelled", "interrupt"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT, "cancelled", "interrupt"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", -signal.SIGTERM, "cancelled", "signal"),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(9)", -signal.SIGHUP, "cancelled", "signal"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "failed", "lost"),
        ("os._exit(7)", 7, "failed", "lost"),
    ],
)
def test_each_way_to_end(
    spawn: Spawn, tracker: ExperimentTracker, script: str, code: int, status: str, kind: str | None
) -> None:
    """The status, the failure's kind, and the process's own exit status are all as they should be."""
    process = spawn(DEAF_TO_NOTHING + START + script)
    process.communicate(timeout=30)
    run = only(tracker)
    assert (process.returncode, str(run.status)) == (code, status)
    assert (run.failure or {}).get("kind") == kind
    assert [point.value for point in run.metrics] == [0.5]
    assert run.ended_at is not None
    assert only(tracker).ended_at == run.ended_at


def test_a_lost_run_ended_when_it_was_last_heard_of(spawn: Spawn, tracker: ExperimentTracker, repo: Repository) -> None:
    """Nothing logged is lost to SIGKILL; whoever looks first writes it down; its journal and lock are gone."""
    script = "for i in range(5000): run.log('loss', i / 7, step=i)\nprint('k', flush=True); time.sleep(60)"
    process = spawn("run = tracker.start('a')\n" + script)
    assert process.stdout is not None and process.stdout.readline() == "k\n"
    assert str(only(tracker).status) == "running"
    process.kill()
    process.wait()
    run = only(tracker)
    assert run.failure is not None and run.failure["kind"] == "lost" and str(run.status) == "failed"
    assert [point.value for point in run.get_metric_history("loss")] == [i / 7 for i in range(5000)]
    assert run.ended_at == run.metrics[-1].timestamp
    assert os.listdir(repo.folder.root / "experiments") == [f"{run.experiment_id}.json"]
    assert os.listdir(repo.folder.root / "locks" / "runs") == []


def test_handlers_of_others_are_called_and_may_go_on(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """A script's own SIGTERM handler runs as before; a process that survives it goes on, and its exit says why."""
    process = spawn(
        "signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n" + READY
        + "sys.stdin.readline(); run.log('loss', 0.25, step=2); print(run.status, flush=True)"
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "mine\n"
    out, _ = process.communicate("\n", timeout=30)
    assert (out, process.returncode) == ("running\n", 0)
    run = only(tracker)
    assert str(run.status) == "cancelled" and len(run.metrics) == 2


def test_the_excepthook_of_others_is_called(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """An exception hook that was there before us still sees the exception."""
    process = spawn("sys.excepthook = lambda *_: print('mine')\n" + START + "raise ValueError('x')")
    out, _ = process.communicate(timeout=30)
    assert out == "mine\n" and str(only(tracker).status) == "failed"


def test_an_ignored_signal_stays_ignored(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """nohup's SIGHUP does not end a run."""
    process = spawn(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        + START
        + "os.kill(os.getpid(), signal.SIGHUP); print(run.status)"
    )
    assert process.communicate(timeout=30)[0] == "running\n"
    assert str(only(tracker).status) == "completed"


def test_handlers_are_put_back_when_the_last_run_ends(spawn: Spawn) -> None:
    """Outside of runs the process's signals are as they were."""
    look = "print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
    process = spawn(f"{look}run = tracker.start('a')\n{look}run.end()\n{look}")
    assert process.communicate(timeout=30)[0].split() == ["True", "False", "True"]


def test_a_thread_that_dies_fails_the_run_it_started(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """Not the runs of other threads."""
    spawn(
        """
        def work():
            ExperimentTracker(repo).start("in thread")
            raise RuntimeError("x")
        run = tracker.start("main")
        threading.excepthook = lambda args: None
        thread = threading.Thread(target=work); thread.start(); thread.join()
        """.replace("        threading.excepthook = lambda args: None\n", "")
    ).communicate(timeout=30)
    assert {run.name: str(run.status) for run in tracker.list()} == {"in thread": "failed", "main": "completed"}


def test_a_forked_child_neither_ends_nor_keeps_the_run(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """The child's exit leaves the run running; the parent's death ends it though the child lives on."""
    process = spawn(
        START
        + """
import warnings; warnings.simplefilter("ignore")
if os.fork() == 0:
    run.log("loss", 0.25, step=2)
    sys.exit(0)
os.wait()
print(tracker.get(run.experiment_id).status, len(run.metrics), flush=True)
child = os.fork()
if child == 0:
    os.close(1); os.close(2)
    time.sleep(60); os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running 2\n"
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        run = only(tracker)
        assert run.failure is not None and run.failure["kind"] == "lost"
        assert str(run.status) == "failed"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_run_of_the_shell_lives_from_process_to_process(
    spawn: Spawn, tracker: ExperimentTracker, repo: Repository
) -> None:
    """Start, log, commit and end are separate processes; meanwhile it is RUNNING though no process lives."""
    started = spawn("print(tracker.start('bert', tags=['nlp'], owner='shell').experiment_id)")
    run = started.communicate(timeout=30)[0].strip()
    assert str(tracker.get(run).status) == "running" and len(tracker.running()) == 1
    spawn(f"with tracker.attach('{run}') as run: run.log('loss', 0.5, step=3)").communicate(timeout=30)
    spawn(f"with tracker.attach('{run}') as run: commit(1, step=3)").communicate(timeout=30)
    assert str(tracker.get(run).status) == "running"
    late = tracker.attach(run)
    spawn(f"tracker.attach('{run}').end()").communicate(timeout=30)
    with pytest.raises(ConflictError):
        late.log("loss", 0.1, step=4)
    late.close()
    ended = tracker.get(run)
    assert str(ended.status) == "completed" and len(ended.metrics) == 1
    assert ended.commit_hash == repo.resolve("HEAD") and tracker.find_best("loss", "min")[0]["link"] == "exact"
    with pytest.raises(ConflictError):
        tracker.attach(run)


def test_a_run_of_a_living_process_cannot_be_attached(spawn: Spawn, tracker: ExperimentTracker) -> None:
    """Its process is the one that logs and ends."""
    process = spawn(READY + "sys.stdin.readline()")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with pytest.raises(ConflictError):
        tracker.attach(only(tracker).experiment_id)


@pytest.mark.parametrize("born", [False, True])
def test_eight_processes_start_together(spawn: Spawn, tracker: ExperimentTracker, repo: Repository, born: bool) -> None:
    """All succeed on a fresh repository, each with its run and points; with commits, each on its own branch."""
    if born:
        repo.stage_weights({"w": np.zeros(4, dtype=np.float32)})
        repo.commit("first")
    script = """
    print("ready", flush=True); sys.stdin.readline()
    with tracker.run("w") as run:
        for i in range(50): run.log("loss", i, step=i)
        if int(sys.argv[3]): commit(int(sys.argv[2]), step=49)
        print("logged", flush=True); sys.stdin.readline()
    """
    processes = [spawn(script, str(number), str(int(born))) for number in range(1, 9)]
    for answer in ("ready\n", "logged\n"):
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == answer
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    outputs = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    runs = tracker.list()
    assert len(runs) == 8 and all(str(run.status) == "completed" and len(run.metrics) == 50 for run in runs)
    if born:
        assert len({run.branch for run in runs}) == 8
        assert {run.commit_hash for run in runs} == {repo.branches()[str(run.branch)] for run in runs}


@pytest.mark.parametrize("first", ["completed", "failed", "cancelled"])
def test_the_first_ending_stands(repo: Repository, tracker: ExperimentTracker, first: str) -> None:
    """Whichever follow, by the run or its tracker: none is an error, none changes what is known or recorded."""
    run = tracker.start("a")
    {"completed": run.end, "failed": lambda: run.fail("x"), "cancelled": run.cancel}[first]()
    before = (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_bytes()
    later = [run.end, lambda: run.end("0" * 40), lambda: run.end(status="failed"), run.fail, lambda: run.cancel("y")]
    later += [lambda: run.end(None, "bogus"), lambda: run.end(status="running")]
    of_tracker: list[Callable[[], Experiment | None]] = [tracker.end, tracker.fail, tracker.cancel]
    for end in [*later, *of_tracker]:
        assert end() is run and run.status == first
    assert (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_bytes() == before
    assert tracker.get("a").status == first


def test_an_ending_hides_no_error(repo: Repository, tracker: ExperimentTracker) -> None:
    """`fail` in an except and `end` in its finally hide no error of the program, nor does a commit beside."""
    with pytest.raises(ZeroDivisionError):
        tracker.start("a")
        try:
            _ = 1 / 0
        except ZeroDivisionError as error:
            tracker.fail(str(error))
            raise
        finally:
            tracker.end()
    assert tracker.get("a").failure == {"kind": "error", "message": "division by zero"}
    with pytest.raises(ZeroDivisionError):
        repo.save({"w": np.zeros(4096, np.float32)})
        repo.create_branch("side")
        repo.pin("side")
        tracker.start("b")
        try:
            Repository(repo.path).delete_branch("side", force=True)
            repo.save({"w": np.ones(4096, np.float32)}, wait=False).wait()
            _ = 1 / 0
        except ZeroDivisionError as error:
            tracker.fail(str(error))
            raise
        finally:
            tracker.end()
    assert tracker.get("b").failure == {"kind": "error", "message": "division by zero"}
    with pytest.raises(CoralError):
        repo.flush()


def test_a_run_that_was_let_go_of_is_not_ended(tracker: ExperimentTracker) -> None:
    """It has not ended, and who no longer has it cannot end it."""
    run = tracker.start("a", owner="shell")
    run.close()
    for end in (run.end, run.fail, run.cancel):
        with pytest.raises(ConflictError, match="not open here"):
            end()
