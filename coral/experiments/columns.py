"""A run's metric history in columns: steps as runs, times as millisecond differences, values as they are.

In memory a :class:`MetricColumns` is a sequence of :class:`~coral.experiments.experiment.ExperimentMetric` that builds
them when asked, over one :class:`Series` a metric; in the file it is one readable line a metric.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, repeat
from operator import countOf
from typing import Literal

from coral.experiments.scalars import LAST_MS, MAX_STEP, Json, tagged, untagged

Mode = Literal["min", "max"]
_Run = tuple[int | None, int, int]
_Cycle = tuple[list[int], int]
_MAX_PERIOD = 64


class Series:
    """One metric's points in the order they were logged: equally long columns.

    ``values``; ``steps``; ``times`` in milliseconds since 1970 (UTC); ``metadata`` maps a point's number to what was
    logged with it. Steps and times that come from a file are checked at once, and expanded when asked for.
    """

    __slots__ = ("_gaps", "_runs", "_steps", "_times", "metadata", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self.metadata: dict[int, dict[str, Json]] = {}
        self._steps: list[int | None] = []
        self._times: list[int] = []
        self._runs: list[_Run] = []
        self._gaps: list[int] = []

    @property
    def steps(self) -> list[int | None]:
        """Each point's step."""
        if self._runs:
            self._steps, self._runs = _expand_runs(self._runs), []
        return self._steps

    @property
    def times(self) -> list[int]:
        """Each point's time."""
        if self._gaps:
            self._times, self._gaps = list(accumulate(self._gaps)), []
        return self._times

    def time(self, index: int) -> int:
        """A point's time, by its number; that of the last point, which is asked for most, without the others'."""
        return sum(self._gaps) if self._gaps and index == len(self._gaps) - 1 else self.times[index]

    def __len__(self) -> int:
        return len(self.values)

    def append(self, value: float, step: int | None, time_ms: int, metadata: dict[str, Json] | None = None) -> None:
        """Add a point."""
        if metadata:
            self.metadata[len(self.values)] = metadata
        self.values.append(value)
        self.steps.append(step)
        self.times.append(time_ms)

    def best(self, mode: Mode) -> int | None:
        """The number of the first best point; None when no value is finite."""
        finite = [value for value in self.values if math.isfinite(value)]
        if not finite:
            return None
        return self.values.index(min(finite) if mode == "min" else max(finite))

    def to_json(self) -> dict[str, Json]:
        """The columns as the file keeps them."""
        values: list[Json] = list(self.values)
        if not all(map(math.isfinite, self.values)):
            values = [tagged(value) for value in self.values]
        times = [now - before for before, now in zip([0, *self.times], self.times, strict=False)]
        result: dict[str, Json] = {"steps": _to_runs(self.steps), "times": list(times), "values": values}
        if self.metadata:
            result["metadata"] = {str(index): dict(data) for index, data in self.metadata.items()}
        return result

    @classmethod
    def from_json(cls, data: Json) -> Series:
        """Undo :meth:`to_json`. Raises ValueError; never builds more than the values at hand."""
        if not isinstance(data, dict):
            raise ValueError("a series is not an object")
        series, values, times = cls(), data.get("values"), data.get("times")
        if not isinstance(values, list) or not isinstance(times, list) or len(times) != len(values):
            raise ValueError("a series' columns are not equally long")
        if _are_all(float, values):
            series.values = values  # type: ignore[assignment]
        else:
            series.values = [untagged(value) for value in values]
        series._gaps = _checked_gaps(times)
        series._runs = _checked_runs(data.get("steps"), len(values))
        series.metadata = _point_metadata(data.get("metadata", {}), len(values))
        return series


def _are_all(kind: type, column: list[Json]) -> bool:
    # Twice as fast as a set of the types, which hashes each.
    return countOf(map(type, column), kind) == len(column)


def _checked_gaps(gaps: list[Json]) -> list[int]:
    """Differences between times that are all of the calendar. Raises ValueError."""
    if not _are_all(int, gaps):
        raise ValueError("a time is not a whole number")
    whole: list[int] = gaps  # type: ignore[assignment]
    # A clock that is never set back needs no sum at each point.
    is_rising = min(whole, default=0) >= 0
    if not (sum(whole) <= LAST_MS if is_rising else all(0 <= time <= LAST_MS for time in accumulate(whole))):
        raise ValueError("a time is not one of the calendar")
    return whole


def _point_metadata(data: Json, count: int) -> dict[int, dict[str, Json]]:
    if not isinstance(data, dict):
        raise ValueError("metadata is not an object")
    result = {int(key): value for key, value in data.items() if isinstance(value, dict)}
    if any(not 0 <= index < count for index in result):
        raise ValueError("metadata of a point that is not there")
    return result


def _to_runs(steps: Sequence[int | None]) -> list[Json]:
    """Steps as ``[start, count, stride]`` runs; ``[null, count, 0]`` for points without one."""
    runs: list[Json] = []
    index, total = 0, len(steps)
    while index < total:
        start = steps[index]
        following = steps[index + 1] if index + 1 < total else None
        end = index + 1
        stride = 0
        if start is None:
            while end < total and steps[end] is None:
                end += 1
        elif following is not None:
            stride, expected = following - start, following
            while end < total and steps[end] == expected:
                end, expected = end + 1, expected + stride
        runs.append([start, end - index, stride])
        index = end
    return runs


def _checked_runs(data: Json, count: int) -> list[_Run]:
    """Runs of steps that are whole, and ``count`` steps together. Raises ValueError."""
    runs: list[_Run] = []
    for run in data if isinstance(data, list) else [None]:
        start, length, stride = run if isinstance(run, list) and len(run) == 3 else (None, 0, 0)
        if type(length) is not int or type(stride) is not int or not 0 < length <= count:
            raise ValueError("a run of steps is not [start, count, stride]")
        if start is not None and (
            type(start) is not int or max(abs(start), abs(start + (length - 1) * stride)) > MAX_STEP
        ):
            raise ValueError("a step is not a whole number of 64 bits")
        runs.append((start, length, stride))
        count -= length
    if count:
        raise ValueError("steps and values are not equally many")
    return runs


def _expand_runs(runs: Sequence[_Run]) -> list[int | None]:
    steps: list[int | None] = []
    for start, length, stride in runs:
        if start is None or stride == 0:
            steps.extend(repeat(start, length))
        else:
            steps.extend(range(start, start + length * stride, stride))
    return steps


class MetricColumns:
    """All points of a run: its series, and the order in which the points of different series were logged.

    ``order`` holds one number a point, the position of its series in ``series``.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self._order: list[int] = []
        self._cycles: list[_Cycle] = []
        self._numbers: dict[str, int] = {}

    @property
    def order(self) -> list[int]:
        """The series of each point, by number."""
        if self._cycles:
            self._order = list(chain.from_iterable(pattern * repeats for pattern, repeats in self._cycles))
            self._cycles = []
        return self._order

    def __len__(self) -> int:
        return sum(map(len, self.series.values()))

    def append(
        self, name: str, value: float, step: int | None, time_ms: int, metadata: dict[str, Json] | None = None
    ) -> None:
        """Add a point."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.series)
            self.series[name] = Series()
        self.series[name].append(value, step, time_ms, metadata)
        self.order.append(number)

    def points(self) -> Iterator[tuple[str, int]]:
        """Every point in logged order: its metric, and its number within the metric's series."""
        names = list(self.series)
        counts = [0] * len(names)
        for number in self.order:
            yield names[number], counts[number]
            counts[number] += 1

    def position(self, name: str, index: int) -> int:
        """The place in ``order`` of a series' point."""
        number, place = self._numbers[name], -1
        for _ in range(index + 1):
            place = self.order.index(number, place + 1)
        return place

    def order_to_json(self) -> list[Json]:
        """The order as the file keeps it, beside the series."""
        return _to_cycles(self.order)

    @classmethod
    def from_json(cls, data: Json) -> MetricColumns:
        """A history from ``{"order": ..., "series": {name: ...}}``. Raises ValueError."""
        history = cls()
        if not isinstance(data, dict) or not isinstance(all_series := data.get("series"), dict):
            raise ValueError("the history is not an object of series")
        for name, series in all_series.items():
            history._numbers[name] = len(history.series)
            history.series[name] = Series.from_json(series)
        counts = {number: len(series) for number, series in enumerate(history.series.values()) if len(series)}
        history._cycles = _checked_cycles(data.get("order"), counts)
        return history


def _to_cycles(order: Sequence[int]) -> list[Json]:
    """A sequence as ``[pattern, repeats]`` pairs: ``0 1 0 1 2`` is ``[[[0, 1], 2], [[2], 1]]``."""
    cycles: list[Json] = []
    literal: list[Json] = []
    index, total = 0, len(order)
    while index < total:
        period, repeats = _cycle_at(order, index)
        if repeats == 1:
            literal.append(order[index])
            index += 1
            continue
        if literal:
            cycles.append([literal, 1])
            literal = []
        cycles.append([list(order[index : index + period]), repeats])
        index += period * repeats
    if literal:
        cycles.append([literal, 1])
    return cycles


def _cycle_at(order: Sequence[int], index: int) -> tuple[int, int]:
    """The shortest period that repeats at once from ``index`` on, and how often; (1, 1) when there is none worth it."""
    limit = min(index + _MAX_PERIOD + 1, len(order))
    for period in (place - index for place in range(index + 1, limit) if order[place] == order[index]):
        pattern, repeats, place = order[index : index + period], 1, index + period
        while order[place : place + period] == pattern:
            repeats, place = repeats + 1, place + period
        # Below this a cycle's brackets cost more than the numbers they save.
        if repeats > 1 and period * repeats >= 8:
            return period, repeats
    return 1, 1


def _checked_cycles(data: Json, counts: dict[int, int]) -> list[_Cycle]:
    """Cycles that name each series as often as it has points. Raises ValueError."""
    cycles: list[_Cycle] = []
    found: Counter[int] = Counter()
    for cycle in data if isinstance(data, list) else [None]:
        pattern, repeats = cycle if isinstance(cycle, list) and len(cycle) == 2 else (None, None)
        if not isinstance(pattern, list) or type(repeats) is not int or repeats < 1:
            raise ValueError("a cycle of the order is not [pattern, repeats]")
        for number, times in Counter(map(_series_number, pattern)).items():
            found[number] += times * repeats
        cycles.append((pattern, repeats))  # type: ignore[arg-type]
    if found != counts:
        raise ValueError("the order does not name each point once")
    return cycles


def _series_number(data: Json) -> int:
    if type(data) is not int:
        raise ValueError("a series' number is not a whole number")
    return data
