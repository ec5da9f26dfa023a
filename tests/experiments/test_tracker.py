"""The tracker: start, log, end, list, compare, find the best, resume, delete; more than what was printed of them."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral.errors import ConflictError, ExperimentNotFoundError, NotFoundError, RefNotFoundError, UsageError
from coral.experiments import Experiment, ExperimentMetric, ExperimentStatus, ExperimentTracker, Run
from coral.experiments.columns import MetricColumns
from coral.experiments.events import MAX_RUN_BYTES, Fold
from coral.experiments.local.backend import LocalBackend
from coral.history import Commit
from coral.repository import Repository

Committer = Callable[..., Commit]
Finisher = Callable[..., Experiment]


def test_the_basic_workflow(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """Start, log, commit, end with the commit: everything is there afterwards, in memory and on disk."""
    run = tracker.start("bert", description="d", params={"lr": 0.001}, tags=["nlp"], group="a/b", notes="n")
    assert isinstance(run, Run) and run.status is ExperimentStatus.RUNNING
    tracker.log("loss", 0.5, step=100)
    tracker.log_metrics({"loss": 0.25, "acc": np.float32(0.5)}, step=200)
    run.log({"val_loss": 0.75})
    tracker.log_params({"epochs": 20})
    tracker.add_tags(["v2"])
    tracker.set_labels({"team": "x"})
    tracker.set_notes("better")
    made = commit(repo, 1)
    ended = tracker.end(commit_hash=made.commit_hash)
    for one in (ended, tracker.get(run.experiment_id)):
        assert one.status is ExperimentStatus.COMPLETED
        assert (one.name, one.description, one.notes, one.group) == ("bert", "d", "better", "a/b")
        assert one.params == {"lr": 0.001, "epochs": 20} and len(one.parameter_history) == 2
        assert one.tags == ["nlp", "v2"] and one.labels == {"team": "x"}
        assert one.commit_hash == made.commit_hash and one.branch == "main"
        assert one.metric_names == ["acc", "loss", "val_loss"]
        assert [(point.value, point.step) for point in one.get_metric_history("loss")] == [(0.5, 100), (0.25, 200)]
        assert [point.name for point in one.metrics] == ["loss", "loss", "acc", "val_loss"]
        latest, best = one.get_latest_metric("loss"), one.get_best_metric("loss", mode="max")
        assert latest and latest.value == 0.25 and best and best.value == 0.5
        assert one.duration is not None and one.duration >= 0
        assert isinstance(one.metrics[-1], ExperimentMetric) and isinstance(one.metrics[0].timestamp, datetime)
        assert one.get_latest_metric("nope") is None and one.get_best_metric("nope", "min") is None
    assert made.run_id == run.experiment_id


def test_a_run_as_json(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """Commits, artifacts and points are named as their attributes are, and every time is ISO 8601."""
    run = tracker.start("a")
    tracker.log("loss", 0.5, step=1)
    tracker.log_text("x", "notes.txt")
    made = commit(repo, 1, step=1, metrics={"acc": math.inf})
    tracker.end()
    for one in (run, tracker.get(run.experiment_id)):
        data = json.loads(json.dumps(one.to_dict(history=True), allow_nan=False))
        (linked,), (kept,) = data["commits"], data["artifacts"]
        assert (linked["commit_hash"], linked["step"], linked["metrics"]) == (made.commit_hash, 1, {"acc": "Infinity"})
        assert kept["name"] == "notes.txt"
        times = [linked["timestamp"], kept["timestamp"], data["metrics"][0]["timestamp"], data["created_at"]]
        assert all(datetime.fromisoformat(time).tzinfo is not None for time in times)
        assert datetime.fromisoformat(linked["timestamp"]) == one.commits[0].timestamp


def test_one_active_run_a_tracker(tracker: ExperimentTracker) -> None:
    """A second start while one is active is a conflict with a hint; logging without a run, or after it, too."""
    with pytest.raises(ConflictError):
        tracker.log("loss", 1.0)
    run = tracker.start("a")
    with pytest.raises(ConflictError, match="end it first"):
        tracker.start("b")
    run.end()
    for call in (lambda: run.log("loss", 1.0), lambda: tracker.log("x", 1), lambda: run.add_tags(["x"])):
        with pytest.raises(ConflictError):
            call()
    assert tracker.start("b").is_open


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.log("loss", "0.5"),
        lambda run: run.log("", 0.5),
        lambda run: run.log(5, 0.5),
        lambda run: run.log("loss", 0.5, step=1.5),
        lambda run: run.log("loss", 0.5, step=2**70),
        lambda run: run.log({"loss": 1.0}, 5),
        lambda run: run.log("x" * 1001, 0.5),
        lambda run: run.log("", 0.5, metadata={"a": 1}),
        lambda run: run.log_metrics({"loss": None}),
        lambda run: run.log_metrics({"loss": 0.5, "": 0.5}),
        lambda run: run.log_metrics({"loss": 0.5, 5: 0.5}),
        lambda run: run.log({"loss": 0.5, "x" * 1001: 0.5}),
        lambda run: run.log_params([1]),
        lambda run: run.add_tags([1]),
        lambda run: run.set_objective({"loss": "up"}),
        lambda run: run.end(status="running"),
        lambda run: run.end(status="glorious"),
    ],
)
def test_programming_errors_raise(tracker: ExperimentTracker, call: object) -> None:
    """What makes no sense is a UsageError, and the run goes on."""
    run = tracker.start("a")
    with pytest.raises(UsageError):
        call(run)  # type: ignore[operator]
    run.log("loss", 1.0, step=1)
    assert len(run.end().metrics) == 1


def test_ending_with_an_unknown_commit_raises_and_the_run_goes_on(tracker: ExperimentTracker) -> None:
    """A commit that does not exist is never pinned."""
    run = tracker.start("a")
    with pytest.raises(RefNotFoundError):
        run.end("0" * 40)
    assert run.is_open


def test_a_live_run_is_seen_by_others(repo: Repository, tracker: ExperimentTracker) -> None:
    """Another tracker sees what was logged so far, at every call."""
    run = tracker.start("live", objective={"loss": "min"})
    other = ExperimentTracker(repo)
    for step in range(3):
        run.log("loss", 3.0 - step, step=step)
        run.add_tags([f"t{step}"])
        seen = other.get(run.experiment_id)
        assert len(seen.metrics) == step + 1 and seen.status is ExperimentStatus.RUNNING
        assert [one["best_value"] for one in other.find_best("loss")] == [3.0 - step]
        assert len(other.list(tags=[f"t{step}"])) == 1
    assert [one.experiment_id for one in other.running()] == [run.experiment_id]
    assert len(run.metrics) == 3 and run.degraded is False
    assert other.get_summary()["total_metrics_logged"] == 3


def test_list_filters(repo: Repository, tracker: ExperimentTracker, finished: Finisher) -> None:
    """By status, tags, branch, name, group and labels; newest first; limited."""
    first = finished(tracker, "a", [1.0], tags=["x", "y"], group="vision/resnet", labels={"k": "1"})
    second = finished(tracker, "b", [2.0], tags=["x"], group="vision", labels={"k": "2"})
    third = tracker.start("b").fail("boom")

    def ids(**kwargs: object) -> list[str]:
        return [one.experiment_id for one in tracker.list(**kwargs)]  # type: ignore[arg-type]

    one, two, three = first.experiment_id, second.experiment_id, third.experiment_id
    assert set(ids()) == {one, two, three}
    assert ids(status=ExperimentStatus.FAILED) == [three] == ids(status="failed")
    assert set(ids(status=["failed", ExperimentStatus.COMPLETED])) == {one, two, three}
    assert set(ids(tags=["x"])) == {one, two} and ids(tags=["x", "y"]) == [one] and ids(tags="y") == [one]
    assert ids(branch="nope") == [] and len(ids(branch="main")) == 3 and len(ids(limit=2)) == 2 and ids(limit=0) == []
    assert set(ids(name="b")) == {two, three} and set(ids(group="vision")) == {one, two}
    assert ids(group="vision/resnet") == [one] and ids(group="vis") == [] and ids(labels={"k": "2"}) == [two]
    assert third.failure == {"kind": "error", "message": "boom"}
    with pytest.raises(UsageError):
        tracker.list(status="glorious")


def test_get_takes_a_unique_prefix(tracker: ExperimentTracker, finished: Finisher) -> None:
    """Four digits or more that one run has; anything else raises, never a wrong or empty answer."""
    run = finished(tracker, "a", [1.0])
    assert tracker.get(run.experiment_id[:4]).experiment_id == run.experiment_id
    for name in ("", "ffffffffffff", run.experiment_id[:3], "../x", run.experiment_id + "0", "a\0b", "*"):
        with pytest.raises(ExperimentNotFoundError):
            tracker.get(name)


def test_find_best(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """Best first, ties to the older run, NaN and infinities never, each with its step, commit and link."""
    for name, values in (("a", [3.0, 1.0, 2.0]), ("b", [math.nan, -math.inf, 0.5]), ("c", [math.nan])):
        tracker.start(name, params={"n": name}, tags=[name])
        for step, value in enumerate(values):
            tracker.log("loss", value, step=step)
            commit(repo, 10 * ord(name) + step, step=step)
        tracker.end()
    best = tracker.find_best(metric="loss", mode="min", limit=5)
    assert [(one["name"], one["best_value"], one["best_step"], one["link"]) for one in best] == [
        ("b", 0.5, 2, "exact"),
        ("a", 1.0, 1, "exact"),
    ]
    assert best[0]["params"] == {"n": "b"} and best[0]["commit_hash"] == repo.resolve("HEAD~1")
    assert set(best[0]) == {
        "experiment_id", "name", "best_value", "best_step", "commit_hash", "link", "params", "tags", "branch", "status",
    }  # fmt: skip
    assert tracker.find_best("loss", mode="max")[0]["best_value"] == 3.0
    assert tracker.find_best("loss", "min", tags=["a"])[0]["name"] == "a"
    assert tracker.find_best("loss", "min", status="failed") == [] == tracker.find_best("nope", "min")
    assert len(tracker.find_best("loss", "min", limit=1)) == 1
    with pytest.raises(UsageError, match="better"):
        tracker.find_best("loss")
    with pytest.raises(UsageError):
        tracker.find_best("loss", mode="up")  # type: ignore[arg-type]


def test_the_objective_says_which_way_is_better(
    repo: Repository, tracker: ExperimentTracker, finished: Finisher
) -> None:
    """Declared by the runs; two runs that disagree make it ambiguous."""
    finished(tracker, "a", [2.0, 1.0], objective={"loss": "min"})
    assert tracker.find_best("loss")[0]["best_value"] == 1.0
    finished(tracker, "b", [2.0, 1.0], objective={"loss": "max"}, tags=["other"])
    assert tracker.find_best("loss", tags=["other"])[0]["best_value"] == 2.0
    with pytest.raises(UsageError):
        tracker.find_best("loss")


def test_save_with_metrics_alone_is_found(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """commit(step=, metrics=) logs the metrics and links them exactly, without doubling what the loop logged."""
    tracker.start("a", objective={"val": "min"})
    commit(repo, 1, step=1, metrics={"val": 0.5})
    tracker.log("val", 0.25, step=2)
    second = commit(repo, 2, step=2, metrics={"val": 0.25})
    run = tracker.end()
    assert [point.value for point in run.get_metric_history("val")] == [0.5, 0.25]
    best = tracker.find_best("val")[0]
    assert (best["commit_hash"], best["link"], run.commit_hash) == (second.commit_hash, "exact", second.commit_hash)


def test_load_best_gives_that_steps_weights(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """The weights are those of the best step, not of the last; refs say the same."""
    tracker.start("a", objective={"loss": "min"})
    for step, value in enumerate([3.0, 1.0, 2.0]):
        tracker.log("loss", value, step=step)
        commit(repo, value)
    tracker.end()
    assert tracker.load_best("loss")["w"][0] == 1.0  # type: ignore[index]
    assert repo.resolve("best:loss") == repo.resolve("best:loss:min") == repo.resolve("HEAD~1")
    assert repo.resolve("best:loss:max") == repo.resolve("HEAD~2")
    assert repo.resolve("run:a") == repo.resolve("HEAD")
    assert repo.resolve(f"run:{tracker.list()[0].experiment_id[:6]}") == repo.resolve("HEAD")


def test_refs_that_name_nothing_raise(repo: Repository, tracker: ExperimentTracker, finished: Finisher) -> None:
    """No metric, no commit, no run, no direction: each is an error that says so."""
    finished(tracker, "a", [1.0])
    for ref in ("best:nope:min", "best:nope", "best:loss:lower", "best:loss:min", "run:nope", "run:a", "run:", "best:"):
        with pytest.raises(RefNotFoundError):
            repo.resolve(ref)
    with pytest.raises(UsageError, match="which way"):
        repo.resolve("best:loss")
    with pytest.raises(ExperimentNotFoundError):
        tracker.load_best("nope", "min")


def test_compare(tracker: ExperimentTracker, finished: Finisher) -> None:
    """Basic facts, metric values, and only the parameters that differ."""
    a = finished(tracker, "a", [2.0, 1.0], params={"opt": {"lr": 1, "wd": 0}})
    b = finished(tracker, "b", [3.0], params={"opt": {"lr": 2, "wd": 0}, "x": 1})
    compared = tracker.compare([a.experiment_id, b.experiment_id], metrics=None)
    assert [one["name"] for one in compared["experiments"]] == ["a", "b"]  # type: ignore[attr-defined]
    assert compared["metrics"] == {
        "loss": {
            a.experiment_id: {"latest": 1.0, "min": 1.0, "max": 2.0, "count": 2},
            b.experiment_id: {"latest": 3.0, "min": 3.0, "max": 3.0, "count": 1},
        }
    }
    assert compared["params"] == {
        "opt.lr": {a.experiment_id: 1, b.experiment_id: 2},
        "x": {a.experiment_id: None, b.experiment_id: 1},
    }
    assert compared["params_same"] == {"opt.wd": 0}


def test_resume_opens_a_child_at_the_last_linked_commit(
    repo: Repository, tracker: ExperimentTracker, commit: Committer
) -> None:
    """The child has params, tags and parent; its branch starts at that commit; the shell's HEAD stays."""
    parent = tracker.start("a b!", params={"opt": {"lr": 1, "wd": 2}}, tags=["x"], group="g", labels={"k": "v"})
    made = commit(repo, 1, step=1)
    tracker.fail("stopped")
    commit(repo, 2)
    child = tracker.resume(parent.experiment_id, params={"opt": {"lr": 3}})
    assert child.parent_experiment == parent.experiment_id and child.name == "a b!"
    assert child.params == {"opt": {"lr": 3, "wd": 2}} and child.tags == ["x"] and child.labels == {"k": "v"}
    assert child.start_commit == made.commit_hash and child.branch == f"runs/a-b-{child.experiment_id}"
    assert repo.history.head().branch == "main"
    assert repo.get_all_weights(child.start_commit)["w"][0] == 1.0  # type: ignore[index]
    onward = commit(repo, 3)
    assert onward.parents == (made.commit_hash,)
    child.end()
    assert repo.branch == "main" and repo.branches()[str(child.branch)] == onward.commit_hash
    grandchild = tracker.resume(child.experiment_id)
    grandchild.end()
    family = tracker.lineage(child.experiment_id)
    assert [one.experiment_id for one in family.ancestors] == [parent.experiment_id]
    assert [one.experiment.experiment_id for one in family.descendants] == [grandchild.experiment_id]
    assert str(family).splitlines()[1].strip() == f"{child.experiment_id} a b! (completed) *"


def test_a_running_run_cannot_be_resumed_or_deleted(repo: Repository, tracker: ExperimentTracker) -> None:
    """Not while its process lives."""
    run = tracker.start("a")
    other = ExperimentTracker(repo)
    with pytest.raises(ConflictError):
        other.resume(run.experiment_id)
    with pytest.raises(ConflictError):
        other.delete(run.experiment_id)


def test_delete_moves_to_a_trash_that_restores(
    repo: Repository, tracker: ExperimentTracker, finished: Finisher
) -> None:
    """A deleted run is nowhere, and comes back whole."""
    run = finished(tracker, "a", [1.0, 2.0])
    before = (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_bytes()
    tracker.delete(run.experiment_id)
    assert tracker.list() == [] and tracker.find_best("loss", "min") == []
    with pytest.raises(ExperimentNotFoundError):
        tracker.get(run.experiment_id)
    assert [one.name for one in tracker.trash()] == ["a"]
    restored = tracker.restore(run.experiment_id)
    assert len(restored.metrics) == 2 and len(tracker.list()) == 1 and tracker.trash() == []
    assert (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_bytes() == before
    with pytest.raises(ExperimentNotFoundError):
        tracker.restore(run.experiment_id)


def test_runs_for_a_commit(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """The run that made it, and the run that was ended with it."""
    outside = commit(repo, 0)
    a = tracker.start("a")
    made = commit(repo, 1)
    a.end()
    b = tracker.start("b")
    b.end(commit_hash=made.commit_hash[:10])
    assert {one.name for one in tracker.runs_for(made.commit_hash)} == {"a", "b"}
    assert tracker.runs_for(outside.commit_hash) == []
    assert commit(repo, 5).run_id is None


def test_the_context_manager_ends_truthfully(tracker: ExperimentTracker) -> None:
    """Left normally COMPLETED, by an exception FAILED, by Ctrl-C CANCELLED; ended inside, as it was ended."""
    with tracker.run("a") as a:
        a.log("loss", 1.0)
    with pytest.raises(ZeroDivisionError), tracker.run("b") as b:
        _ = 1 / 0
    with pytest.raises(KeyboardInterrupt), tracker.run("c") as c:
        raise KeyboardInterrupt
    with tracker.run("d") as d:
        d.fail("on purpose")
    with pytest.raises(SystemExit), tracker.run("e") as e:
        raise SystemExit(3)
    assert [one.status for one in (a, b, c, d, e)] == ["completed", "failed", "cancelled", "failed", "failed"]
    assert b.failure == {"kind": "exception", "type": "ZeroDivisionError", "message": "division by zero"}


def test_two_live_runs_never_share_a_branch(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """The second one, from another Repository, gets a branch of its own."""
    commit(repo, 0)
    run = tracker.start("a")
    other_repo = Repository(repo.path)
    other = ExperimentTracker(other_repo).start("b c")
    assert run.branch == "main" and other.branch == f"runs/b-c-{other.experiment_id}"
    mine, its = commit(repo, 1), commit(other_repo, 2)
    assert repo.branches() == {"main": mine.commit_hash, other.branch: its.commit_hash}
    assert (mine.run_id, its.run_id) == (run.experiment_id, other.experiment_id)
    other.end()
    assert other_repo.branch == "main"


def test_results_show_themselves(tracker: ExperimentTracker, finished: Finisher) -> None:
    """As rows, text, HTML (escaped) and a data frame."""
    finished(tracker, "<b>", [1.0, 0.5], params={"opt": {"lr": 0.1}}, tags=["x"])
    runs = tracker.list()
    assert runs.rows()[0]["params.opt.lr"] == 0.1 and runs.rows()[0]["metrics.loss"] == 0.5
    assert "<b>" in runs.table() and "params.opt.lr" in runs.table().splitlines()[0]
    assert "&lt;b&gt;" in runs._repr_html_()
    pytest.importorskip("pandas")
    assert runs.df()["metrics.loss"].tolist() == [0.5]
    assert tracker.find_best("loss", "min").df()["best_value"].tolist() == [0.5]


def test_artifacts(repo: Repository, tracker: ExperimentTracker, tmp_path: Path) -> None:
    """File, text, dict, array, table, figure: kept in the chunk store, listed, and read back."""

    class Figure:
        def savefig(self, file: object, *, format: str) -> None:
            file.write(b"PNG" + format.encode())  # type: ignore[attr-defined]

    (tmp_path / "model.bin").write_bytes(bytes(range(256)) * 300)
    run = tracker.start("a")
    assert tracker.log_artifact(tmp_path / "model.bin").nbytes == 76_800  # type: ignore[union-attr]
    tracker.log_text("hallo ü", "notes.txt")
    tracker.log_artifact_data({"a": np.float32(0.5)}, "config.json")
    tracker.log_numpy_array(np.arange(5), "folder/values")
    tracker.log_dataframe([{"a": 1}, {"a": 2, "b": 3}], "table")
    tracker.log_plot(Figure(), "curve")
    run.log_artifact({"x": 1}, "thing")
    run.log_artifact(b"raw", "raw.bin")
    with pytest.raises(UsageError):
        run.log_text("x", "../up")
    with pytest.raises(UsageError):
        run.log_artifact({"x": 1})
    with pytest.raises(NotFoundError):
        run.log_artifact("no")
    tracker.end()
    kept = tracker.get(run.experiment_id)
    assert [(one.name, one.kind) for one in kept.list_artifacts()] == [
        ("config.json", "dict"), ("curve.png", "figure"), ("folder/values.npy", "array"), ("model.bin", "file"),
        ("notes.txt", "text"), ("raw.bin", "file"), ("table.csv", "table"), ("thing.json", "dict"),
    ]  # fmt: skip
    assert kept.load_artifact("model.bin") == bytes(range(256)) * 300
    assert kept.load_artifact("notes.txt").decode() == "hallo ü"
    assert kept.load_artifact("table.csv") == b"a,b\n1,\n2,3\n" and kept.load_artifact("curve.png") == b"PNGpng"
    assert kept.download_artifact("raw.bin", tmp_path).read_bytes() == b"raw"
    with pytest.raises(ExperimentNotFoundError):
        kept.load_artifact("nope")


def test_histories_are_equal_when_their_points_are(tracker: ExperimentTracker, finished: Finisher) -> None:
    """Those of one run read twice are, and so is a list of the same points; as many other points are not."""
    run = finished(tracker, "a", [0.5, 0.25])
    other = finished(tracker, "b", [0.5, 0.75])
    once, again, theirs = (tracker.get(one.experiment_id) for one in (run, run, other))
    for points in (lambda one: one.metrics, lambda one: one.get_metric_history("loss")):
        assert points(once) == points(again) == list(points(once))
        assert len(points(once)) == len(points(theirs))
        assert points(once) != points(theirs)
        assert points(once) != list(points(theirs))
        assert points(once) != list(points(once))[:1]
        assert points(once) != "ab" and points(once) != 2


def test_the_best_of_a_live_run_has_its_commit(repo: Repository, tracker: ExperimentTracker, commit: Committer) -> None:
    """The commit of the best step is known while the run goes on."""
    tracker.start("a", objective={"loss": "min"})
    made = []
    for step, value in enumerate([3.0, 1.0, 2.0]):
        tracker.log("loss", value, step=step)
        made.append(commit(repo, value, step=step).commit_hash)
    (best,) = ExperimentTracker(Repository(repo.path)).find_best("loss")
    assert (best["status"], best["best_value"], best["commit_hash"], best["link"]) == ("running", 1.0, made[1], "exact")


def test_metadata_is_in_the_json_of_its_point(tracker: ExperimentTracker) -> None:
    """Of a point that was logged with some, and of no other."""
    run = tracker.start("a")
    run.log("loss", 1.0, metadata={"source": "x"})
    run.log("loss", 2.0)
    first, second = json.loads(json.dumps(tracker.end().to_dict(history=True)))["metrics"]
    assert first["metadata"] == {"source": "x"} and "metadata" not in second


def test_no_parameter_ends_a_training(tracker: ExperimentTracker) -> None:
    """What is missing, cannot be shown or looks like another is kept, by whichever door it comes."""

    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    given = {"1": "a", 1: "b", "mute": Mute(), "sizes": {3, 1}, "weights": np.arange(3), "deep": [[1], (2,)]}
    kept = {"1": "a", "1 (int)": "b", "sizes": [1, 3], "weights": [0, 1, 2], "deep": [[1], [2]]}
    run = tracker.start("a", params=given)  # type: ignore[arg-type]
    run.log_params({"more": given})
    run.log("loss", 1.0, metadata=given)  # type: ignore[arg-type]
    run.end()
    tracker.resume("a", name="b", params=given).end()  # type: ignore[arg-type]
    found = tracker.get("a")
    (best,) = tracker.find_best("loss", "min")
    for params in (run.params, found.params, found.params["more"], best["params"], tracker.get("b").params):
        assert isinstance(params, dict) and {key: params[key] for key in kept} == kept
        assert params["mute"]["type"].endswith("Mute")
    assert {key: found.metrics[0].metadata[key] for key in kept} == kept


def test_tags_that_are_key_and_value_are_labels(tracker: ExperimentTracker) -> None:
    """Wherever tags are given, a mapping's values are not lost; where labels have no place it is refused."""
    run = tracker.start("a", tags={"team": "nlp", "seed": 1})
    tracker.add_tags({"stage": "dev"})
    run.add_tags({"seed": 2})
    tracker.add_tags(["plain"])
    labels = {"team": "nlp", "seed": "2", "stage": "dev"}
    for one in (run, tracker.end(), tracker.get("a")):
        assert (one.labels, one.tags) == (labels, ["plain"])
    assert tracker.start("b", tags={"k": "1"}, labels={"k": "2"}).end().labels == {"k": "2"}
    assert [one.name for one in tracker.list(tags={"team": "nlp", "seed": 2})] == ["a"]
    assert tracker.list(tags={"team": "vision"}) == []
    with pytest.raises(UsageError, match="labels"):
        run.remove_tags({"team": "nlp"})


@pytest.mark.parametrize("backend", ["files", "", 0, object(), LocalBackend, {}])
def test_what_is_no_backend_is_refused_at_once(repo: Repository, backend: object) -> None:
    """By the constructor, not by the first call that needs it."""
    with pytest.raises(UsageError, match="no backend"):
        ExperimentTracker(repo, backend=backend)  # type: ignore[arg-type]


def test_a_backend_is_used(repo: Repository) -> None:
    """The one that is given, and none beside it."""
    backend = LocalBackend(Repository(repo.path.parent / "elsewhere", init=True).folder)
    ExperimentTracker(repo, backend=backend).start("a").end()
    assert ExperimentTracker(repo).list() == [] and len(ExperimentTracker(repo, backend=backend).list()) == 1


def test_a_runs_own_commit_stands_in_for_its_best_steps(
    repo: Repository, tracker: ExperimentTracker, commit: Committer, finished: Finisher
) -> None:
    """Where none is linked to that step; it is marked so, and asking for the best weights by metric warns."""
    tracker.start("a", objective={"loss": "min"})
    for value in (0.5, 0.1, 0.3):
        tracker.log("loss", value)
    made = commit(repo, 3)
    for end in (lambda: None, lambda: tracker.end(made.commit_hash)):
        end()
        (best,) = tracker.find_best("loss")
        assert (best["best_value"], best["commit_hash"], best["link"]) == (0.1, made.commit_hash, "run")
    for ask in (lambda: repo.get_all_weights("best:loss"), lambda: tracker.load_best("loss")):
        with pytest.warns(RuntimeWarning, match=f"{made.commit_hash[:10]} is the commit of run"):
            assert np.asarray(ask()["w"])[0] == 3
    finished(tracker, "nothing committed", [0.0])
    assert (tracker.find_best("loss", "min")[0]["commit_hash"], tracker.find_best("loss", "min")[0]["link"]) == (
        None,
        None,
    )


class Untold(Exception):
    """What cannot be told of, of whatever kind."""

    def __str__(self) -> str:
        return None  # type: ignore[return-value]


def test_an_error_that_cannot_be_told_is_still_the_error(tracker: ExperimentTracker) -> None:
    """It ends the run, and comes through; so do labels, notes and messages that are anything."""
    with pytest.raises(Untold), tracker.run("a", notes=Untold(), description=Untold(), tags={"x": Untold()}) as run:  # type: ignore[arg-type]
        run.set_notes(Untold())  # type: ignore[arg-type]
        run.set_labels({"y": Untold()})  # type: ignore[dict-item]
        raise Untold
    assert run.status == "failed" and run.failure and run.failure["type"] == "Untold"
    with pytest.raises(SystemExit), tracker.run("b") as run:
        raise SystemExit(np.zeros(2))
    assert run.status == "failed"
    kept = tracker.get("a")
    assert kept.labels.keys() == {"x", "y"} and kept.notes and kept.description
    for message in (np.ones(2), "x" * 10**7, Untold()):
        failed = tracker.start("c").fail(message)  # type: ignore[arg-type]
        assert failed.failure and 0 < len(str(failed.failure["message"])) < 11_000


def test_an_ending_without_a_run_hides_no_error(tracker: ExperimentTracker) -> None:
    """`fail` in the except of a start that was refused warns; what was refused is what the program hears of."""

    def train() -> None:
        try:
            tracker.start("")
        except UsageError:
            assert tracker.fail("x") is None and tracker.cancel() is None
            raise

    with pytest.warns(match="no run was started"), pytest.raises(UsageError, match="name"):
        train()
    with pytest.raises(ConflictError):
        tracker.end()


def test_what_is_written_can_be_read(tracker: ExperimentTracker) -> None:
    """However much parameters, notes and what follows them hold, the run is read as it was shown, and found."""
    run = tracker.start("big", params={"lr": 1}, notes="n" * 2_000_000)
    tracker.log_params({"text": "y" * 70_000_000})
    for number in range(4):
        tracker.log_params({f"p{number}": ["x" * 255] * 2000, f"q{number}": number})
    tracker.log("loss", 1.0)
    shown = dict(run.params)
    tracker.end()
    child = tracker.resume("big", params={"p0": ["x" * 255] * 1000})
    tracker.end()
    again = ExperimentTracker(tracker.repo)
    kept = again.get(run.experiment_id)
    assert kept.params == shown and [kept.params[f"q{number}"] for number in range(4)] == list(range(4))
    assert kept.to_dict() == run.to_dict() and len(kept.parameter_history) == 6
    assert len(again.find_best("loss", "min")) == 1 and again.get(child.experiment_id).params == child.params


def test_all_changes_of_a_run_together_have_an_end() -> None:
    """Its file holds each, in a line that a reader takes only so much of; what no longer fits in is told of by name."""
    for first in (1, 5):
        run = Experiment("0" * 12, "a")
        for number in range(first):
            Fold(run, MetricColumns()).apply({"e": "p", "t": 1, "v": {f"p{number}": "x" * (10 << 20)}})
        fold = Fold(run, MetricColumns())
        for number in range(first, 20):
            fold.apply({"e": "p", "t": 1, "v": {f"p{number}": "x" * (10 << 20), f"q{number}": number}})
        assert sum(len(json.dumps(change.params)) for change in run.parameter_history) <= MAX_RUN_BYTES
        assert [f"p{number}" in run.params for number in range(20)] == [True] * 20 and run.params["q19"] == 19
        assert run.params["p19"] == {"type": "str", "repr": "<10485771 bytes of JSON>"}


def test_a_run_that_cannot_be_read_is_not_the_best(
    repo: Repository, tracker: ExperimentTracker, finished: Finisher
) -> None:
    """The next one is; a warning names it."""
    bad, good = finished(tracker, "bad", [1.0], params={"lr": 0.25}), finished(tracker, "good", [2.0])
    path = repo.folder.root / "experiments" / f"{bad.experiment_id}.json"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26"))
    with pytest.warns(match=f"{bad.experiment_id} is left out"):
        (best,) = tracker.find_best("loss", "min", limit=1)
    assert best["experiment_id"] == good.experiment_id


def test_snapshots_go_to_other_processes(tracker: ExperimentTracker) -> None:
    """With their points, and with what brings their artifacts; a copy is the same. Those of a run that lives, too."""
    run = tracker.start("a", params={"lr": 1})
    tracker.log("loss", 0.5, step=3)
    tracker.log_artifact(b"abc", "x.bin")
    for ends in (False, True):
        if ends:
            tracker.end()
        one = tracker.get(run.experiment_id)
        for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), dataclasses.replace(one)):
            assert copied.to_dict(history=True) == one.to_dict(history=True)
            assert copied.load_artifact("x.bin") == b"abc"
        assert dataclasses.asdict(one)["metrics"] == one.metrics
        (listed,) = pickle.loads(pickle.dumps(tracker.list()))
        assert listed.metrics == one.metrics
        assert str(pickle.loads(pickle.dumps(tracker.lineage("a")))) == str(tracker.lineage("a"))


def test_what_makes_no_sense_is_said_so(tracker: ExperimentTracker, finished: Finisher) -> None:
    """By coral, wherever an argument is taken, and nothing is started by it; never by an error of Python's own."""
    finished(tracker, "a", [1.0])
    start: Any = tracker.start
    ask: Any = tracker
    modes: list[object] = [5, [], "low", None]
    wrong: list[Callable[[], object]] = [
        *(partial(start, "b", **{name: 5}) for name in ("params", "tags", "group", "labels", "objective")),
        *(partial(start, "b", objective={"loss": mode}) for mode in modes),
        *(partial(ask.list, **{name: 5}) for name in ("status", "tags", "branch", "name", "group", "labels")),
        *(partial(ask.find_best, "loss", **{name: 5}) for name in ("mode", "status", "tags", "branch")),
        *(partial(ask.compare, ids) for ids in (None, 5, "a", [5])),
        lambda: ask.compare(["a"], metrics=[5]),
        lambda: ask.find_best("loss", mode=[]),
        lambda: ask.find_best("loss", "min", limit="x"),
        lambda: ask.list(limit="x"),
        lambda: ask.get_by_name(None),
    ]
    for call in wrong:
        with pytest.raises(UsageError):
            call()
    run: Any = tracker.start("c")
    names = ("log_metrics", "add_tags", "remove_tags", "set_labels", "set_objective", "log_params", "log")
    for name in names:
        for value in (None, 5):
            with pytest.raises(UsageError):
                getattr(run, name)(value)
    for keep in (lambda: run.log_text("a", 5), lambda: run.log_dict({}, None), lambda: run.log_artifact(b"x", 5)):
        with pytest.raises(UsageError):
            keep()
    assert len(tracker.list()) == 2


def test_labels_are_asked_for_alike(tracker: ExperimentTracker, finished: Finisher) -> None:
    """Tags that are key and value find the best run as they find any."""
    for value, team in enumerate("aabb"):
        finished(tracker, f"r{value}", [float(value)], labels={"team": team})
    assert [one["name"] for one in tracker.find_best("loss", "min", tags={"team": "b"}, limit=1)] == ["r2"]
    assert {one.name for one in tracker.list(tags={"team": "b"})} == {"r2", "r3"}


def test_compare_says_which_metric_is_none(tracker: ExperimentTracker, finished: Finisher) -> None:
    """A lone string is one metric; one that none of the runs logged is an error with near misses."""
    finished(tracker, "a", [1.0])
    assert tracker.compare(["a"], metrics="loss") == tracker.compare(["a"], metrics=["loss"])
    with pytest.raises(ExperimentNotFoundError, match="did you mean 'loss'"):
        tracker.compare(["a"], metrics=["los"])
