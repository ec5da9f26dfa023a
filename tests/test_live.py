"""What this process alone has stays one, however what holds it is copied, and does not leave the process."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from coral import Repository
from coral.errors import UnsupportedValueError
from coral.experiments import ExperimentTracker


def test_a_model_that_holds_them_can_be_copied(tmp_path: Path) -> None:
    """The copy has weights of its own, and the same run, tracker, repository and commit on its way."""
    repo = Repository(tmp_path, init=True)
    tracker = ExperimentTracker(repo)
    model = torch.nn.Linear(2, 1)
    with tracker.run("a") as run:
        model.repo, model.tracker, model.run = repo, tracker, run  # type: ignore[assignment]
        model.pending = repo.save(model, wait=False)  # type: ignore[assignment]
        ema = copy.deepcopy(model)
        assert ema.weight is not model.weight
        for name in ("repo", "tracker", "run", "pending"):
            assert getattr(ema, name) is getattr(model, name) is copy.copy(getattr(model, name))
        tracker.log("loss", 0.5)
        repo.save(ema)
    found = tracker.get("a")
    assert len(found.metrics) == 1 and len(found.commits) == 2
    assert copy.deepcopy(run) is run


def test_what_was_read_of_them_can_be_copied(tmp_path: Path) -> None:
    """Runs that were looked up, and weights that are read when asked for, answer as before."""
    repo = Repository(tmp_path, init=True)
    with ExperimentTracker(repo).run("a") as run:
        run.log("loss", 0.5)
        run.log_text("x", "notes.txt")
        repo.save({"w": np.ones(3)})
    snapshot, weights = copy.deepcopy((ExperimentTracker(repo).get("a"), repo.get_all_weights()))
    assert snapshot.metrics == run.metrics and snapshot.load_artifact("notes.txt") == b"x"
    assert np.asarray(weights["w"]).tolist() == [1, 1, 1]


def test_they_are_not_pickled(tmp_path: Path) -> None:
    """The error says so, and what to hand over; alone, and in a model that is saved whole."""
    repo = Repository(tmp_path, init=True)
    tracker = ExperimentTracker(repo)
    run = tracker.start("a")
    for one in (repo, repo.store, tracker, run, repo.save({"w": np.ones(3)}, wait=False), run.end()):
        model = torch.nn.Linear(2, 1)
        model.held = one  # type: ignore[assignment]
        for dump in (lambda: pickle.dumps(one), lambda: torch.save(model, io.BytesIO())):  # noqa: B023
            with pytest.raises(UnsupportedValueError, match="cannot be pickled") as caught:
                dump()
            assert "experiment_id" in str(caught.value)
