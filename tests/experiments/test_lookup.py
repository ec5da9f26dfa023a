"""Which run is meant: one rule for ids, their first digits and names, at every door that takes a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import CoralError, ExperimentNotFoundError, RefNotFoundError, UsageError
from coral.experiments import Experiment, ExperimentTracker
from coral.experiments.lookup import find
from coral.history import Commit
from coral.repository import Repository

IDS = st.text("abc0", min_size=12, max_size=12)
NAMES = st.text("abc0", max_size=5) | IDS
Committer = Callable[..., Commit]
Finisher = Callable[..., Experiment]


@given(st.dictionaries(IDS, NAMES, max_size=6), st.data())
def test_the_rule(names: dict[str, str], data: st.DataObject) -> None:
    """An id means its run; else what one run alone begins with or is called means that one; nothing is guessed."""
    known = [*names, *names.values(), *(run[:length] for run in names for length in (3, 4, 8))]
    wanted = data.draw(st.sampled_from(known) | NAMES if known else NAMES)
    prefixed = {run for run in names if len(wanted) >= 4 and run.startswith(wanted)}
    called = {run for run, name in names.items() if wanted and name == wanted}
    expected = {wanted} if wanted in names else prefixed | called
    if len(expected) == 1:
        assert {find(wanted, names)} == expected
    else:
        with pytest.raises(UsageError if expected else ExperimentNotFoundError) as caught:
            find(wanted, names)
        assert all(run in str(caught.value) for run in expected)


@pytest.mark.parametrize("wanted", [None, 5, b"a", ["a"], {}])
def test_what_is_no_text_names_no_run(tracker: ExperimentTracker, wanted: object, finished: Finisher) -> None:
    """It is a UsageError, not one of Python's."""
    finished(tracker, "a", [1.0])
    with pytest.raises(UsageError, match="names no run"):
        tracker.get(wanted)  # type: ignore[arg-type]


def test_a_name_that_is_nearly_right_is_told(tracker: ExperimentTracker, finished: Finisher) -> None:
    """The hint has the names and ids that look like it."""
    run = finished(tracker, "victim", [1.0])
    for wanted, meant in (("victm", "victim"), (run.experiment_id[:-1] + "x", run.experiment_id)):
        with pytest.raises(ExperimentNotFoundError, match=f"did you mean '{meant}'"):
            tracker.get(wanted)


def _deleted_and_restored(tracker: ExperimentTracker, name: str) -> str:
    tracker.delete(name)
    return tracker.restore(name).experiment_id


DOORS: dict[str, Callable[[ExperimentTracker, str], object]] = {
    "get": lambda tracker, name: tracker.get(name).experiment_id,
    "compare": lambda tracker, name: tracker.compare([name])["experiments"][0]["experiment_id"],  # type: ignore[index]
    "lineage": lambda tracker, name: tracker.lineage(name).experiment.experiment_id,
    "ref": lambda tracker, name: tracker.get(tracker.repo.history.commit(tracker.repo.resolve(f"run:{name}")).run_id),  # type: ignore[arg-type]
    "resume": lambda tracker, name: tracker.resume(name, owner="shell").parent_experiment,
    "delete and restore": lambda tracker, name: _deleted_and_restored(tracker, name),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_run_is_named_in_the_same_ways_at_every_door(
    repo: Repository,
    tracker: ExperimentTracker,
    door: Callable[[ExperimentTracker, str], object],
    commit: Committer,
    finished: Finisher,
) -> None:
    """By id, first digits or unique name; a name of two runs is refused, and both are listed."""
    tracker.start("victim")
    commit(repo, 1)
    run = tracker.end()
    for wanted in (run.experiment_id, run.experiment_id[:6], "victim"):
        found = door(ExperimentTracker(repo), wanted)
        assert (found.experiment_id if isinstance(found, Experiment) else found) == run.experiment_id
        for child in tracker.list(status="running"):
            with ExperimentTracker(repo).attach(child.experiment_id) as live:
                live.end()
            tracker.delete(child.experiment_id)
    other = finished(tracker, "victim", [1.0])
    with pytest.raises(UsageError) as caught:
        door(tracker, "victim")
    assert run.experiment_id in str(caught.value) and other.experiment_id in str(caught.value)
    with pytest.raises((ExperimentNotFoundError, RefNotFoundError)):
        door(tracker, "nobody")


def test_attach_takes_a_name(repo: Repository, tracker: ExperimentTracker) -> None:
    """So does whatever goes on with a run of the shell."""
    run = tracker.start("open", owner="shell")
    run.close()
    with tracker.attach("open") as live:
        live.log("loss", 0.5)
    assert len(tracker.get("open").metrics) == 1
    with pytest.raises(ExperimentNotFoundError):
        tracker.attach("nobody")


def test_a_deleted_run_is_named_among_the_deleted(
    repo: Repository, tracker: ExperimentTracker, finished: Finisher
) -> None:
    """A name that a run has which is still there brings back the one in the trash, and says which that was."""
    first = finished(tracker, "a", [1.0])
    tracker.delete("a")
    finished(tracker, "a", [2.0])
    assert tracker.restore("a").experiment_id == first.experiment_id
    with pytest.raises(ExperimentNotFoundError, match="--deleted"):
        tracker.restore("a")


def test_a_metric_that_nobody_logged_is_said_so_first(repo: Repository, tracker: ExperimentTracker) -> None:
    """Before it is asked which way is better, with near misses; also while the runs that log are live."""
    run = tracker.start("a")
    run.log("val_loss", 0.5)
    for _ in ("live", "ended"):
        questions: list[Callable[[], object]] = [
            lambda: tracker.find_best("val_los"),
            lambda: tracker.best_commit("val_los"),
            lambda: tracker.load_best("val_los", "min"),
            lambda: repo.resolve("best:val_los"),
            lambda: repo.resolve("best:val_los:min"),
        ]
        for ask in questions:
            with pytest.raises(CoralError, match="no run logged 'val_los'\nhint: did you mean 'val_loss'"):
                ask()
        with pytest.raises(UsageError, match="which way"):
            tracker.find_best("val_loss")
        if run.is_open:
            run.end()
    tracker.delete("a")
    with pytest.raises(ExperimentNotFoundError, match="no run logged 'val_loss'"):
        tracker.find_best("val_loss")


def test_several_runs_of_a_name_are_listed(tracker: ExperimentTracker, finished: Finisher) -> None:
    """One a line that fits a terminal, newest first, with when each was made and where it stands."""
    first = finished(tracker, "victim", [1.0])
    time.sleep(0.01)
    second = tracker.start("victim").fail()
    with pytest.raises(UsageError) as caught:
        tracker.get("victim")
    lines = (caught.value.hint or "").splitlines()
    assert [line.split()[0] for line in lines[1:]] == [second.experiment_id, first.experiment_id]
    assert "failed" in lines[1] and "completed" in lines[2] and max(map(len, lines)) <= 80
