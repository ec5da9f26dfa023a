"""What goes into a commit's trailers and what is refused, and landing a commit on a branch among many."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from coral.errors import UnsupportedValueError, UsageError
from coral.history import Commit, History
from coral.history.commit import MAX_STEP
from coral.ids import CommitHash
from coral.verbs.commit import Draft, build_trailers, land
from coral.verbs.staging import Overlay
from tests.history.helpers import commit_on


def trailers(
    *, step: int | None = None, metrics: Mapping[str, float] | None = None, metadata: Mapping[str, object] | None = None
) -> dict[str, str]:
    return build_trailers(step=step, metrics=metrics, metadata=metadata, code=None)


def read_back(trailers: Mapping[str, str]) -> Commit:
    return Commit(CommitHash("a" * 40), (), "m", "coral", datetime.now(UTC), trailers)


def nested(levels: int, *, folder: bool = False) -> object:
    """Lists in lists, or dicts in dicts."""
    value: object = 1
    for _ in range(levels):
        value = {"a": value} if folder else [value]
    return value


def refuse(constant: str) -> float:
    raise AssertionError(constant)


def test_metrics_are_json_that_anybody_reads() -> None:
    """NaN and infinities come back as floats, and the trailer is valid JSON all the same."""
    given = {"loss": 0.1, "up": math.inf, "down": -math.inf, "nan": math.nan}
    made = trailers(metrics=given)
    assert json.loads(made["Coral-Metrics"], parse_constant=refuse)["nan"] == "NaN"
    found = read_back(made).metrics
    assert math.isnan(found.pop("nan"))
    assert found == {"loss": 0.1, "up": math.inf, "down": -math.inf}


@pytest.mark.parametrize("folder", [False, True])
def test_metadata_that_json_cannot_hold(folder: bool) -> None:
    """What would come back as something else, or not at all, is refused as a value, never with a bare error."""
    circle: list[object] = []
    circle.append(circle)
    deep = [nested(levels, folder=folder) for levels in (100, 900, 100_000)]
    for value in (math.nan, math.inf, [-math.inf], "\ud800", {"\ud800": 1}, b"x", {1}, circle, *deep):
        with pytest.raises(UnsupportedValueError, match="metadata"):
            trailers(metadata={"a": value})
    kept = {"a": nested(99, folder=folder), "text": "NaN", "ü": None}
    assert read_back(trailers(metadata=kept)).metadata == kept


@pytest.mark.parametrize("step", [2**63, -(2**63), 10**30])
def test_a_step_beyond_63_bits_is_refused(step: int) -> None:
    """A step that would not read back is not written."""
    with pytest.raises(UsageError, match="step"):
        trailers(step=step)


@pytest.mark.parametrize("step", [0, -5, 10**18, MAX_STEP, -MAX_STEP])
def test_a_step_reads_back(step: int) -> None:
    """Every step that is accepted comes back."""
    assert read_back(trailers(step=step)).step == step


def test_landing_lists_no_branches(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit looks at its own branch alone, so that thousands of others cost it nothing."""
    first = commit_on(history, "main", "one").commit_hash
    history.create_branch("runs/a", first)
    monkeypatch.setattr(history._handle, "refs", None)
    for branch in ("main", "runs/a"):
        made = land(history, Overlay(first, {"model.safetensors": None}), Draft("gone", "coral"), branch=branch)
        assert history.branch_tip(branch) == made.commit_hash
