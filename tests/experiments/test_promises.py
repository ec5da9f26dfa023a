"""What users were promised of experiments, line by line, in the order in which it was printed.

Each call stands here as it was printed, with what the text left out filled in around it. What else holds of the same
calls is in the other files of this folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coral import Repository, model_to_weights
from coral.experiments import Experiment, ExperimentMetric, ExperimentStatus, ExperimentTracker


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the repository ``my-model``."""
    monkeypatch.chdir(tmp_path)
    Repository("./my-model", init=True)
    return tmp_path


@pytest.fixture
def repo(here: Path) -> Repository:
    """The repository, opened as it was printed."""
    repo = Repository("./my-model")
    repo.stage_weights({"w": np.zeros(4, np.float32)})
    return repo


def run_of(
    tracker: ExperimentTracker, name: str, losses: tuple[float, ...] = (0.5, 0.1, 0.3), **more: Any
) -> Experiment:
    """A run that logged these losses, and their complements as its accuracy, and was completed."""
    tracker.start(name, **more)
    for loss in losses:
        tracker.log_metrics({"loss": loss, "accuracy": 1 - loss})
    return tracker.end()


# -- the key file: the status, the two dataclasses, the methods


def test_where_the_names_are() -> None:
    """The module that was named has them, too."""
    from coral.experiments import experiment

    assert (experiment.Experiment, experiment.ExperimentMetric, experiment.ExperimentStatus) == (
        Experiment,
        ExperimentMetric,
        ExperimentStatus,
    )


def test_the_members_of_the_status() -> None:
    """Five, with these names and values."""
    members = [
        ExperimentStatus.PENDING,
        ExperimentStatus.RUNNING,
        ExperimentStatus.COMPLETED,
        ExperimentStatus.FAILED,
        ExperimentStatus.CANCELLED,
    ]
    assert list(ExperimentStatus) == members
    assert [one.value for one in members] == ["pending", "running", "completed", "failed", "cancelled"]


def test_a_metric_by_keyword() -> None:
    """Each field by its name, and those that may be left out."""
    timestamp = datetime.now()
    full = ExperimentMetric(name="loss", value=0.5, step=3, timestamp=timestamp, metadata={"split": "train"})
    assert (full.name, full.value, full.step, full.timestamp, full.metadata) == (
        *("loss", 0.5, 3, timestamp),
        {"split": "train"},
    )
    bare = ExperimentMetric(name="accuracy", value=0.9)
    assert (bare.step, bare.metadata) == (None, {}) and isinstance(bare.timestamp, datetime)
    assert [one.name for one in dataclasses.fields(ExperimentMetric)] == [
        *("name", "value", "step", "timestamp", "metadata"),
    ]


def test_an_experiment_by_keyword() -> None:
    """Each field by its name; a naive time is local time."""
    created_at = started_at = datetime.now()
    given: dict[str, Any] = {
        "experiment_id": "abc123def456",
        "name": "bert",
        "description": "d",
        "status": ExperimentStatus.RUNNING,
        "created_at": created_at,
        "started_at": started_at,
        "ended_at": None,
        "metrics": [ExperimentMetric("loss", 0.5)],
        "params": {"lr": 0.001},
        "tags": ["nlp"],
        "commit_hash": "a" * 40,
        "branch": "main",
        "parent_experiment": "def456abc123",
        "notes": "n",
    }
    exp = Experiment(**given)
    assert {name: getattr(exp, name) for name in given} == given
    assert exp.duration is not None and 0 <= exp.duration < 60


def test_an_experiments_defaults() -> None:
    """What may be left out, and what it is then; no two share a list or a dict."""
    exp = Experiment(experiment_id="abc123def456", name="bert", created_at=datetime.now())
    other = Experiment(experiment_id="abc123def457", name="bert", created_at=datetime.now())
    defaults: dict[str, object] = {
        "description": None,
        "status": ExperimentStatus.PENDING,
        "started_at": None,
        "ended_at": None,
        "metrics": [],
        "params": {},
        "tags": [],
        "commit_hash": None,
        "branch": None,
        "parent_experiment": None,
        "notes": None,
    }
    assert {name: getattr(exp, name) for name in defaults} == defaults
    assert exp.duration is None
    assert not any(getattr(exp, name) is getattr(other, name) for name in ("metrics", "params", "tags"))


def test_the_methods_of_an_experiment(tracker: ExperimentTracker) -> None:
    """The same of a run that lives, that has ended, that was looked up, and that was made by hand."""
    live = tracker.start("bert")
    for loss in (0.5, 0.1, 0.3):
        tracker.log_metrics({"loss": loss, "accuracy": 1 - loss})
    by_hand = Experiment("abc123def456", "x", metrics=list(live.metrics), started_at=live.started_at)
    for exp in (live, tracker.get(live.experiment_id), by_hand, tracker.end(), tracker.get("bert")):
        history = exp.get_metric_history("loss")
        assert [point.value for point in history] == [0.5, 0.1, 0.3]
        latest = exp.get_latest_metric("accuracy")
        assert latest is not None and latest.value == 0.7
        best = exp.get_best_metric("loss", mode="min")
        assert best is not None and best.value == 0.1
        assert (f"{latest:.2f}", f"{best:.4f}") == ("0.70", "0.1000")
        assert re.fullmatch(r"Duration: \d+s", f"Duration: {exp.duration:.0f}s")
        assert exp.metric_names == ["accuracy", "loss"]


# -- the basic workflow


def test_starting_and_ending(repo: Repository, tracker: ExperimentTracker) -> None:
    """All of it as it was printed: its best has the commit that it was ended with."""
    exp = tracker.start(
        name="bert-finetuning",
        description="Fine-tuning BERT on custom dataset",
        params={"lr": 0.001, "batch_size": 32, "epochs": 10},
        tags=["bert", "classification"],
    )
    dataloader = [torch.tensor([0.5, 0.1, 0.3])] * 2
    for epoch in range(2):
        for step, batch in enumerate(dataloader):
            loss, acc = batch.mean() - epoch / 10, batch.max()
            tracker.log("loss", loss, step=step)
            tracker.log("accuracy", acc, step=step)
        val_loss, val_acc = np.float32(0.25), 0.5
        tracker.log_metrics({"val_loss": val_loss, "val_acc": val_acc})
    commit = repo.commit("Training complete")
    tracker.end(commit_hash=commit.commit_hash)

    found = tracker.get(exp.experiment_id)
    assert (found.name, found.description) == ("bert-finetuning", "Fine-tuning BERT on custom dataset")
    assert found.params == {"lr": 0.001, "batch_size": 32, "epochs": 10}
    assert found.tags == ["bert", "classification"]
    assert (found.status, found.commit_hash) == (ExperimentStatus.COMPLETED, commit.commit_hash)
    assert len(found.get_metric_history("loss")) == 4 and len(found.get_metric_history("val_loss")) == 2
    for metric in found.metric_names:
        best = tracker.find_best(metric, mode="min")[0]
        assert best["commit_hash"] == commit.commit_hash
        assert np.asarray(repo.get_all_weights(str(best["commit_hash"]))["w"]).tolist() == [0, 0, 0, 0]


def test_logging(tracker: ExperimentTracker) -> None:
    """One metric, several, parameters, tags, notes."""
    exp = tracker.start("bert", params={"lr": 0.1, "epochs": 10}, tags=["bert"])
    tracker.log("loss", 0.5, step=100)
    tracker.log_metrics({"loss": 0.5, "accuracy": 0.85}, step=100)
    tracker.log_params({"epochs": 20, "scheduler": "cosine"})
    tracker.add_tags(["production", "v2"])
    tracker.set_notes("Trying new learning rate schedule")
    for one in (exp, tracker.get("bert"), tracker.end(), tracker.get("bert")):
        assert [(point.name, point.value, point.step) for point in one.metrics] == [
            *(("loss", 0.5, 100), ("loss", 0.5, 100), ("accuracy", 0.85, 100)),
        ]
        assert one.params == {"lr": 0.1, "epochs": 20, "scheduler": "cosine"}
        assert one.tags == ["bert", "production", "v2"] and one.notes == "Trying new learning rate schedule"


def test_handling_failures(tracker: ExperimentTracker) -> None:
    """The run says why, and the program sees its own error."""
    tracker.start("bert")

    def train() -> None:
        try:
            raise RuntimeError("CUDA out of memory")
        except Exception as e:
            tracker.fail(error_message=str(e))
            raise

    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        train()
    found = tracker.get("bert")
    assert found.status is ExperimentStatus.FAILED
    assert found.failure is not None and found.failure["message"] == "CUDA out of memory"


# -- queries


def test_listing(tracker: ExperimentTracker) -> None:
    """All, by status, by tags, by branch, and so many."""
    run_of(tracker, "one", tags=["bert", "x"])
    run_of(tracker, "two")
    tracker.start("three", tags=["bert"])
    experiments = tracker.list()
    assert isinstance(experiments, list) and all(isinstance(one, Experiment) for one in experiments)
    running = tracker.list(status=ExperimentStatus.RUNNING)
    completed = tracker.list(status=ExperimentStatus.COMPLETED)
    bert_exps = tracker.list(tags=["bert"])
    main_exps = tracker.list(branch="main")
    recent = tracker.list(limit=10)

    def names(found: list[Experiment]) -> set[str]:
        return {one.name for one in found}

    assert names(experiments) == names(main_exps) == names(recent) == {"one", "two", "three"}
    assert (names(running), names(completed), names(bert_exps)) == ({"three"}, {"one", "two"}, {"one", "three"})


def test_getting_one(tracker: ExperimentTracker) -> None:
    """By id, and all of a name; the id that was printed is the name of a run here."""
    first, second = run_of(tracker, "bert-finetuning"), run_of(tracker, "bert-finetuning")
    named = run_of(tracker, "abc123def456")
    exp = tracker.get("abc123def456")
    assert exp.experiment_id == named.experiment_id
    assert tracker.get(first.experiment_id).experiment_id == first.experiment_id
    exps = tracker.get_by_name("bert-finetuning")
    assert {one.experiment_id for one in exps} == {first.experiment_id, second.experiment_id}
    assert tracker.get_by_name("nobody") == []


def test_comparing(tracker: ExperimentTracker) -> None:
    """Three keys: basic info, metric values, parameter differences; named by name or by id."""
    runs = [run_of(tracker, f"exp{number}", params={"lr": number, "seed": 0}) for number in (1, 2, 3)]
    comparison: Any = tracker.compare(
        experiment_ids=["exp1", "exp2", "exp3"],
        metrics=["loss", "accuracy"],
    )
    ids = [run.experiment_id for run in runs]
    assert [one["experiment_id"] for one in comparison["experiments"]] == ids
    assert [one["name"] for one in comparison["experiments"]] == ["exp1", "exp2", "exp3"]
    assert list(comparison["metrics"]) == ["loss", "accuracy"]
    assert all(comparison["metrics"]["loss"][run]["min"] == 0.1 for run in ids)
    assert comparison["params"] == {"lr": dict(zip(ids, (1, 2, 3), strict=True))}
    assert tracker.compare(experiment_ids=ids, metrics=None) == tracker.compare(ids, metrics=["accuracy", "loss"])


def test_finding_the_best(repo: Repository, tracker: ExperimentTracker, capsys: pytest.CaptureFixture[str]) -> None:
    """Lowest and highest, with the keys that were printed."""
    run_of(tracker, "worse", (0.9, 0.4), params={"lr": 1})
    tracker.start("better", params={"lr": 2})
    for loss in (0.5, 0.1, 0.3):
        tracker.log_metrics({"loss": loss, "accuracy": 1 - loss})
    commit = repo.commit("Training complete")
    tracker.end(commit_hash=commit.commit_hash)
    best_loss = tracker.find_best(
        metric="loss",
        mode="min",
        status=ExperimentStatus.COMPLETED,
        limit=5,
    )
    for result in best_loss:
        print(f"{result['name']}: loss={result['best_value']:.4f}")
        print(f"  Commit: {result['commit_hash']}")
        print(f"  Params: {result['params']}")
    assert capsys.readouterr().out.splitlines() == [
        "better: loss=0.1000",
        f"  Commit: {commit.commit_hash}",
        "  Params: {'lr': 2}",
        "worse: loss=0.4000",
        "  Commit: None",
        "  Params: {'lr': 1}",
    ]
    best_acc = tracker.find_best(metric="accuracy", mode="max")
    assert [one["name"] for one in best_acc] == ["better", "worse"]


# -- resume, delete, summary


def test_resuming(tracker: ExperimentTracker) -> None:
    """A new experiment with the same parameters, and its parent."""
    original = run_of(tracker, "original_experiment_id", params={"lr": 0.1})
    new_exp = tracker.resume("original_experiment_id")
    assert new_exp.experiment_id != original.experiment_id and new_exp.status is ExperimentStatus.RUNNING
    assert (new_exp.params, new_exp.parent_experiment) == ({"lr": 0.1}, original.experiment_id)


def test_deleting(tracker: ExperimentTracker) -> None:
    """It is gone from every list."""
    run_of(tracker, "experiment_id")
    tracker.delete("experiment_id")
    assert tracker.list() == [] == tracker.get_by_name("experiment_id")


def test_the_summary(tracker: ExperimentTracker, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that was printed prints."""
    run_of(tracker, "one", (0.5,))
    run_of(tracker, "one", (0.5, 0.25))
    tracker.start("two").fail()
    summary = tracker.get_summary()
    print(f"Total: {summary['total_experiments']}")
    print(f"By status: {summary['by_status']}")
    print(f"Unique names: {summary['unique_names']}")
    print(f"Branches: {summary['branches']}")
    print(f"Metrics logged: {summary['total_metrics_logged']}")
    assert capsys.readouterr().out.splitlines() == [
        "Total: 3",
        "By status: {'pending': 0, 'running': 0, 'completed': 2, 'failed': 1, 'cancelled': 0}",
        "Unique names: 2",
        "Branches: ['main']",
        "Metrics logged: 6",
    ]


# -- storage


def test_the_storage(here: Path, tracker: ExperimentTracker) -> None:
    """One JSON file an experiment, under its id, with all that is known of it and every point."""
    runs = [run_of(tracker, name, params={"lr": 0.1}, tags=["x"]) for name in ("one", "two")]
    folder = here / "my-model" / ".coral" / "experiments"
    assert {path.name for path in folder.iterdir()} == {f"{run.experiment_id}.json" for run in runs}
    for run in runs:
        kept = json.loads((folder / f"{run.experiment_id}.json").read_text())
        fields = kept["experiment"]
        assert (fields["name"], fields["params"], fields["tags"]) == (run.name, {"lr": 0.1}, ["x"])
        assert kept["history"]["series"]["loss"]["values"] == [0.5, 0.1, 0.3]


# -- the complete example


def test_the_complete_example(here: Path) -> None:
    """A real little model, as it was printed; then the best across experiments, and its weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs = torch.randn(32, 3)
    targets = inputs.sum(1, keepdim=True)
    train_loader, val_loader = [(inputs[:16], targets[:16])], [(inputs[16:], targets[16:])]

    def train_epoch(model: torch.nn.Module, loader: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        for batch, wanted in loader:
            loss = torch.nn.functional.mse_loss(model(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    def validate(
        model: torch.nn.Module, loader: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            batch, wanted = loader[0]
            difference = model(batch) - wanted
            return difference.square().mean(), (difference.abs() < 0.5).float().mean()

    best_state: dict[str, torch.Tensor] = {}

    repo = Repository("./checkpoints", init=True)
    tracker = ExperimentTracker(repo)

    exp = tracker.start(
        name="resnet-training",
        params={"lr": 0.01, "momentum": 0.9},
    )

    try:
        best_val_loss: torch.Tensor | float = float("inf")

        for epoch in range(100):
            train_loss = train_epoch(model, train_loader)
            val_loss, val_acc = validate(model, val_loader)

            tracker.log_metrics({"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_acc}, step=epoch)

            if val_loss < best_val_loss:
                best_val_loss = val_loss
                weights = model_to_weights(model)
                repo.stage_weights(weights)
                commit = repo.commit(f"Epoch {epoch}: val_loss={val_loss:.4f}")
                best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

        tracker.end(commit_hash=commit.commit_hash)

    except Exception as e:
        tracker.fail(str(e))
        raise

    assert tracker.get(exp.experiment_id).commit_hash == commit.commit_hash
    assert len(tracker.get(exp.experiment_id).get_metric_history("val_loss")) == 100
    best = tracker.find_best("val_loss", mode="min")[0]
    assert best["best_value"] == float(best_val_loss)
    kept: dict[str, Any] = dict(repo.get_all_weights(str(best["commit_hash"]), framework="torch"))
    assert set(kept) == set(best_state)
    assert all(torch.equal(kept[name], best_state[name]) for name in best_state)


def test_the_best_model_across_experiments(repo: Repository, tracker: ExperimentTracker) -> None:
    """The top three of those with a tag, and the best one's weights."""
    for number in range(1, 6):
        tracker.start(f"run {number}", tags=["production-ready"] if number < 5 else [])
        tracker.log("val_accuracy", number / 10)
        repo.stage_weights({"w": np.full(4, number, np.float32)})
        tracker.end(commit_hash=repo.commit(f"run {number}").commit_hash)
    results = tracker.find_best(
        metric="val_accuracy",
        mode="max",
        tags=["production-ready"],
        limit=3,
    )
    assert [one["name"] for one in results] == ["run 4", "run 3", "run 2"]
    best = results[0]
    weights = repo.get_all_weights(best["commit_hash"])  # type: ignore[arg-type]
    assert np.asarray(weights["w"]).tolist() == [4, 4, 4, 4]
