"""Experiments and metrics made by hand: whatever numbers, times and statuses they are given."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import UsageError
from coral.experiments import Experiment, ExperimentMetric, ExperimentStatus, ExperimentTracker

ZONES = (None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-9)))
TIMES = st.builds(
    lambda time, zone: time.replace(tzinfo=zone),
    st.datetimes(datetime(2000, 1, 2), datetime(2030, 1, 1)),
    st.sampled_from(ZONES),
)
KINDS = (float, np.float16, np.float64, np.array, torch.tensor, lambda value: torch.tensor([value]), Decimal)


@given(TIMES, TIMES)
def test_a_time_without_a_zone_is_local(start: datetime, end: datetime) -> None:
    """Whichever of them have a zone: the duration is that between the same times with their zones."""
    run = Experiment("abc123def456", "x", started_at=start, ended_at=end, created_at=start)
    assert run.duration == pytest.approx((end.astimezone() - start.astimezone()).total_seconds())
    told = datetime.fromisoformat(str(run.to_dict()["created_at"]))
    assert told.tzinfo is not None and abs(told - start.astimezone()) < timedelta(milliseconds=1)


def test_a_run_without_a_zone_may_still_be_running() -> None:
    """Its duration is until now."""
    begun = datetime.now() - timedelta(seconds=60)
    duration = Experiment("abc123def456", "x", started_at=begun, created_at=begun).duration
    assert duration is not None and 60 <= duration < 120


@given(
    st.floats(width=16, allow_nan=False),
    st.sampled_from(KINDS),
)
def test_a_metric_is_a_float(value: float, kind: object) -> None:
    """Whatever kind of number it is given as; it is formatted as one, and is one to whoever wants one."""
    metric = ExperimentMetric("loss", kind(value))  # type: ignore[operator]
    assert type(metric.value) is float and metric.value == float(metric) == value
    for spec in (".4f", "10.3e", "+g", "%"):
        assert f"{metric:{spec}}" == f"{value:{spec}}"
    assert f"{metric}" == str(metric) == repr(metric)


def test_a_metric_takes_steps_as_log_does() -> None:
    """Whole numbers of any library; what is neither a number nor a step is a UsageError."""
    assert type(ExperimentMetric("loss", 1, np.int64(3)).step) is int  # type: ignore[arg-type]
    assert math.isnan(ExperimentMetric("loss", np.float32("nan")).value)  # type: ignore[arg-type]
    for bad in (lambda: ExperimentMetric("loss", "0.5"), lambda: ExperimentMetric("loss", 0.5, 1.5)):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            bad()


@pytest.mark.parametrize("status", [*ExperimentStatus, *(str(one) for one in ExperimentStatus)])
def test_statuses_in_any_case(tracker: ExperimentTracker, status: str) -> None:
    """Wherever one is taken: as the enum, and by its name in any case."""
    expected = ExperimentStatus(status)
    for given_as in (status, str(status).upper(), str(status).title()):
        assert ExperimentStatus(given_as) is expected
        assert Experiment("abc123def456", "x", status=given_as).status is expected  # type: ignore[arg-type]
        assert tracker.list(status=given_as) == tracker.list(status=[given_as, expected]) == []
        assert tracker.find_best("loss", "min", status=given_as) == []
        if expected.is_final:
            run = tracker.start("a")
            assert run.end(status=given_as).status is expected
            assert json.loads(json.dumps(run.to_dict()))["status"] == expected.value
            tracker.delete("a")


@pytest.mark.parametrize("status", ["glorious", "", None, 5])
def test_what_is_no_status_is_refused(tracker: ExperimentTracker, status: object) -> None:
    """As a UsageError that lists them."""
    with pytest.raises(UsageError, match="completed"):
        Experiment("abc123def456", "x", status=status)  # type: ignore[arg-type]
    if status is not None:
        with pytest.raises(UsageError):
            tracker.list(status=[status])  # type: ignore[list-item]
