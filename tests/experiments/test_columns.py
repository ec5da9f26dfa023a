"""The columns: every history comes back as it was, small, and no forged one is believed."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.experiments.columns import MetricColumns, Series
from coral.experiments.scalars import MAX_STEP, Json

POINTS = st.lists(
    st.tuples(
        st.sampled_from(["loss", "acc", "ü"]),
        st.floats(),
        st.one_of(st.none(), st.integers(-MAX_STEP, MAX_STEP), st.integers(0, 5)),
        st.integers(0, 253_402_300_799_000),
        st.one_of(st.none(), st.just({"k": 1})),
    )
)


def rebuilt(history: MetricColumns) -> MetricColumns:
    """The history after a trip through JSON text."""
    data = {
        "order": history.order_to_json(),
        "series": {name: series.to_json() for name, series in history.series.items()},
    }
    loaded = json.loads(json.dumps(data, allow_nan=False))
    return MetricColumns.from_json(loaded)


def points(history: MetricColumns) -> list[tuple[object, ...]]:
    """Every point in logged order, NaN as text."""
    rows: list[tuple[object, ...]] = []
    for name, index in history.points():
        one = history.series[name]
        rows.append((name, repr(one.values[index]), one.steps[index], one.times[index], one.metadata.get(index)))
    return rows


@given(POINTS)
def test_every_history_comes_back(logged: list[tuple[str, float, int | None, int, dict[str, Json] | None]]) -> None:
    """Values bit for bit, steps in any order or repeated or absent, times, metadata, and the order among metrics."""
    history = MetricColumns()
    for name, value, step, time, metadata in logged:
        history.append(name, value, step, time, metadata)
    again = rebuilt(history)
    assert points(again) == points(history)
    assert len(again) == len(logged)
    assert [again.position(name, index) for name, index in again.points()] == list(range(len(logged)))


@given(st.lists(st.integers(0, 3), max_size=200))
def test_the_order_comes_back(order: list[int]) -> None:
    """Whatever the interleaving of metrics, cycles or none."""
    history = MetricColumns()
    for number in order:
        history.append(f"m{number}", 1.0, None, 0)
    assert rebuilt(history).order == history.order


def test_a_point_takes_at_most_25_bytes() -> None:
    """100,000 full-precision values of two metrics, with steps and times: 25 bytes a point, the bar."""
    history, time, rng = MetricColumns(), 1_700_000_000_000, random.Random(1)
    for step in range(50_000):
        time += rng.randrange(1000)
        history.append("loss", rng.random(), step, time)
        history.append("acc", rng.random(), step, time)
    text = json.dumps(
        [history.order_to_json(), *(one.to_json() for one in history.series.values())], separators=(",", ":")
    )
    assert len(text) / 100_000 <= 25


def test_nan_and_infinities_are_kept_and_never_best() -> None:
    """min and max look at finite values only; without one there is no best."""
    series = Series()
    for value in (math.nan, -math.inf, 2.0, 1.0, 1.0, math.inf):
        series.append(value, None, 0)
    assert series.best("min") == 3
    assert series.best("max") == 2
    hopeless = Series()
    hopeless.append(math.nan, 0, 0)
    assert hopeless.best("min") is None


def test_the_last_time_is_known_before_the_others() -> None:
    """What ``time`` says of each point is what ``times`` says, asked in any order."""
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        series = Series.from_json({"values": [1.0, 2.0, 3.0], "times": [100, 0, 7], "steps": [[0, 3, 1]]})
        assert {index: series.time(index) for index in order} == {0: 100, 1: 100, 2: 107}
        assert series.times == [100, 100, 107]


def test_a_clock_may_be_set_back() -> None:
    """Times that fall are kept, as long as each is one of the calendar."""
    series = Series.from_json({"values": [1.0, 2.0, 3.0], "times": [100, -60, 7], "steps": [[0, 3, 1]]})
    assert series.times == [100, 40, 47]
    outside: list[list[Json]] = [[100, -101, 7], [1, 10**30, -(10**30)]]
    for times in outside:
        with pytest.raises(ValueError):
            Series.from_json({"values": [1.0, 2.0, 3.0], "times": times, "steps": [[0, 3, 1]]})


FORGED: list[Json] = [
    None,
    [],
    {},
    {"values": [1.0], "times": [], "steps": []},
    {"values": [1.0], "times": [1.5], "steps": [[0, 1, 0]]},
    {"values": [1.0], "times": [1], "steps": [[0, 10**15, 1]]},
    {"values": [1.0], "times": [1], "steps": [[0, 1]]},
    {"values": [1.0], "times": [1], "steps": [["x", 1, 0]]},
    {"values": [1.0], "times": [1], "steps": [[10**30, 1, 0]]},
    {"values": [1.0], "times": [1], "steps": []},
    {"values": ["loud"], "times": [1], "steps": [[0, 1, 0]]},
    {"values": [10**400], "times": [1], "steps": [[0, 1, 0]]},
    {"values": [1.0], "times": [True], "steps": [[0, 1, 0]]},
    {"values": [1.0], "times": [10**30], "steps": [[0, 1, 0]]},
    {"values": [True], "times": [1], "steps": [[0, 1, 0]]},
    {"values": [1.0], "times": [1], "steps": [[0, 1, 0]], "metadata": {"7": {}}},
]


@pytest.mark.parametrize("data", FORGED)
def test_forged_series_are_refused(data: Json) -> None:
    """A column that lies about its length or its types is a ValueError, at once and without building it."""
    with pytest.raises(ValueError):
        MetricColumns.from_json({"order": [[[0], 1]], "series": {"a": data}})


@pytest.mark.parametrize(
    "order", [None, [1], [[[0], 10**15]], [[[0, 0], 1]], [[[1], 1]], [[["x"], 1]], [[[0], 0]], [[[-1], 1]], []]
)
def test_forged_orders_are_refused(order: Json) -> None:
    """An order that does not name each point once is refused without expanding it."""
    with pytest.raises(ValueError):
        MetricColumns.from_json(
            {"order": order, "series": {"a": {"values": [1.0], "times": [1], "steps": [[0, 1, 0]]}}}
        )
