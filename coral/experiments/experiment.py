"""What a run is: its status, its metrics, and everything else that is remembered of it."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol, overload

from coral.errors import ExperimentNotFoundError, UsageError
from coral.experiments.columns import MetricColumns, Mode, Series
from coral.experiments.scalars import Json, number, stored, tagged, whole
from coral.ids import ContentRef
from coral.storage.folder import Folder

MODES: dict[str, Mode] = {"min": "min", "max": "max"}
LinkKind = Literal["exact", "inferred", "before", "run"]
Owner = Literal["process", "shell"]


class ExperimentStatus(enum.StrEnum):
    """Where a run stands; by name in any case: ``ExperimentStatus("Completed")``."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @classmethod
    def _missing_(cls, value: object) -> ExperimentStatus | None:
        name = value.lower() if isinstance(value, str) else None
        return next((one for one in cls if one.value == name), None)

    @property
    def is_final(self) -> bool:
        """Whether a run with this status has ended."""
        return self not in (ExperimentStatus.PENDING, ExperimentStatus.RUNNING)


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def aware(time: datetime) -> datetime:
    """A time with its zone; one without is local time."""
    return time.astimezone() if time.utcoffset() is None else time


def from_ms(milliseconds: int) -> datetime:
    """A time from milliseconds since 1970. Raises ValueError for one outside of the calendar."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{milliseconds} ms is outside of the calendar") from error


def to_ms(time: datetime) -> int:
    """Milliseconds since 1970 of a time; one without a zone is local time."""
    return round(time.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class ExperimentMetric:
    """One measurement, which is formatted as its value is: ``f"{metric:.4f}"``.

    Attributes:
        value: as a float, whatever number it was given as; it may be NaN or infinite.
        step: None when none was given.
        timestamp: one without a zone is local time.

    Raises:
        UsageError: what was given is not a number, or the step is not a whole one.
    """

    name: str
    value: float
    step: int | None = None
    timestamp: datetime = field(default_factory=now)
    metadata: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value.__class__ is not float:
            object.__setattr__(self, "value", number(self.name, self.value))
        if self.step is not None and self.step.__class__ is not int:
            object.__setattr__(self, "step", whole(self.step))

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)


@dataclass(frozen=True, slots=True)
class LinkedCommit:
    """A commit made while the run was active.

    Attributes:
        step: the step it was made for, when that was said.
        metrics: what was said about it when it was made.
        after: how many of the run's points had been logged before it. A live :class:`~coral.experiments.run.Run`
            counts only those that came with its commits; ``tracker.get`` counts all.
    """

    commit_hash: str
    step: int | None
    metrics: dict[str, float]
    timestamp: datetime
    after: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or object kept with a run: its bytes are ``nbytes`` in the chunk store, under ``ref``."""

    name: str
    kind: str
    nbytes: int
    ref: str
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class ParameterChange:
    """One ``log_params`` call."""

    timestamp: datetime
    params: dict[str, Json]


class Metrics(Sequence[ExperimentMetric]):
    """A run's points in logged order, built when asked for from its :class:`~coral.experiments.columns.MetricColumns`.

    ``load`` is called at each access, so that a live run shows what was logged meanwhile.
    """

    def __init__(self, load: Callable[[], MetricColumns]) -> None:
        self._load = load

    @property
    def history(self) -> MetricColumns:
        """The columns."""
        return self._load()

    def __reduce__(self) -> tuple[Callable[[MetricColumns], Metrics], tuple[MetricColumns]]:
        # Another process, and a copy, have the points that there are now.
        return _metrics_of, (self._load(),)

    def __len__(self) -> int:
        return len(self._load())

    @overload
    def __getitem__(self, index: int) -> ExperimentMetric: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExperimentMetric]: ...
    def __getitem__(self, index: int | slice) -> ExperimentMetric | list[ExperimentMetric]:
        if isinstance(index, slice):
            return list(self)[index]
        history = self._load()
        place = range(len(history))[index]
        number = history.order[place]
        return _point(history, list(history.series)[number], history.order[:place].count(number))

    def __iter__(self) -> Iterator[ExperimentMetric]:
        history = self._load()
        for name, index in history.points():
            yield _point(history, name, index)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} points>"


def _metrics_of(history: MetricColumns) -> Metrics:
    return Metrics(lambda: history)


class MetricHistory(Sequence[ExperimentMetric]):
    """One metric's points in logged order, as columns that build an ExperimentMetric when asked.

    ``steps``, ``values`` and ``times`` (milliseconds since 1970) give the columns themselves.
    """

    def __init__(self, history: MetricColumns, name: str) -> None:
        self._history, self._name = history, name
        self._series = history.series.get(name, Series())
        self.steps: Sequence[int | None] = self._series.steps
        self.values: Sequence[float] = self._series.values

    @property
    def times(self) -> Sequence[int]:
        """Each point's time."""
        return self._series.times

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> ExperimentMetric: ...
    @overload
    def __getitem__(self, index: slice) -> list[ExperimentMetric]: ...
    def __getitem__(self, index: int | slice) -> ExperimentMetric | list[ExperimentMetric]:
        places = range(len(self))[index]
        if isinstance(places, int):
            return _point(self._history, self._name, places)
        return [_point(self._history, self._name, place) for place in places]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} points of {self._name}>"


def _point(history: MetricColumns, name: str, index: int) -> ExperimentMetric:
    series = history.series[name]
    metadata = dict(series.metadata.get(index, {}))
    return ExperimentMetric(name, series.values[index], series.steps[index], from_ms(series.time(index)), metadata)


class ArtifactStore(Protocol):
    """Where artifacts' bytes are: what a run needs of the repository's chunk store."""

    def held(self) -> AbstractContextManager[None]:
        """Keep what is stored meanwhile from being collected: to be held until something on the disk names it."""

    def put_bytes(self, data: bytes) -> ContentRef:
        """Keep bytes, durably; returns their reference."""

    def get_bytes(self, ref: ContentRef, nbytes: int) -> bytes:
        """The bytes of a reference, verified. Raises CorruptionError, NotFoundError."""


@dataclass(eq=False, repr=False)
class Experiment:
    """One run. What :meth:`ExperimentTracker.get` returns is a snapshot; what ``start`` returns is live.

    Times without a zone are local time.

    Attributes:
        experiment_id: 12 hex digits.
        params: nested; as last set (``parameter_history`` has each change).
        commit_hash: the commit pinned by ``end``, else the last one linked.
        branch: the branch its commits land on; None when the repository's HEAD was detached.
        parent_experiment: the id of the run that this one resumes.
        group: a path such as ``vision/resnet``.
        objective: which way is better, by metric: ``{"val_loss": "min"}``.
        failure: why it failed: ``kind`` (``exception``, ``error``, ``signal``, ``interrupt``, ``lost``), ``message``.
        commits: the commits made while it was active, oldest first.
        start_commit: the commit its branch was at when it started.
        code: the enclosing git repository's ``commit``, ``branch`` and ``dirty`` when it started.
        owner: ``process``, or ``shell`` for a run that has no living owner and stays RUNNING until ended.
        dropped_points: points lost to a full disk that stayed full for longer than the buffer, and lines of the
            journal lost to damage.
    """

    experiment_id: str
    name: str
    description: str | None = None
    status: ExperimentStatus = ExperimentStatus.PENDING
    created_at: datetime = field(default_factory=now)
    started_at: datetime | None = None
    ended_at: datetime | None = None
    metrics: Sequence[ExperimentMetric] = field(default_factory=list)
    params: dict[str, Json] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    commit_hash: str | None = None
    branch: str | None = None
    parent_experiment: str | None = None
    notes: str | None = None
    group: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    objective: dict[str, Mode] = field(default_factory=dict)
    failure: dict[str, Json] | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    commits: list[LinkedCommit] = field(default_factory=list)
    start_commit: str | None = None
    code: dict[str, Json] | None = None
    environment: dict[str, Json] = field(default_factory=dict)
    owner: Owner = "process"
    parameter_history: list[ParameterChange] = field(default_factory=list)
    dropped_points: int = 0
    artifact_store: ArtifactStore | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.status = as_status(self.status)

    @property
    def degraded(self) -> bool:
        """Whether what was logged last is only in memory yet, because the disk refuses it; False for a snapshot."""
        return False

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, or to now while it runs; None when it has not started."""
        if self.started_at is None:
            return None
        return (aware(self.ended_at or now()) - aware(self.started_at)).total_seconds()

    @property
    def metric_names(self) -> list[str]:
        """The names of all metrics logged, sorted."""
        return sorted(self.history.series)

    @property
    def history(self) -> MetricColumns:
        """All points, in columns."""
        if isinstance(self.metrics, Metrics):
            return self.metrics.history
        history = MetricColumns()
        for point in self.metrics:
            time_ms = to_ms(point.timestamp)
            history.append(point.name, point.value, point.step, time_ms, point.metadata)
        return history

    def get_metric_history(self, name: str) -> MetricHistory:
        """One metric's points in logged order; empty when it was never logged."""
        return MetricHistory(self.history, name)

    def get_latest_metric(self, name: str) -> ExperimentMetric | None:
        """The point logged last; None when there is none."""
        points = self.get_metric_history(name)
        return points[-1] if points else None

    def get_best_metric(self, name: str, mode: Mode | None = None) -> ExperimentMetric | None:
        """The first best point; NaN and infinities are never best. None when there is none.

        Args:
            mode: ``min`` or ``max``; None takes the run's objective.
        """
        series = self.history.series.get(name)
        index = series.best(checked_mode(name, mode, self.objective)) if series else None
        return None if index is None else self.get_metric_history(name)[index]

    def list_artifacts(self) -> list[Artifact]:
        """The artifacts kept, by name; one that was logged again is listed once, as it is now."""
        return sorted({artifact.name: artifact for artifact in self.artifacts}.values(), key=lambda one: one.name)

    def load_artifact(self, name: str) -> bytes:
        """An artifact's bytes, verified. Raises ExperimentNotFoundError when the run has none of this name."""
        found = {artifact.name: artifact for artifact in self.artifacts}.get(name)
        if found is None or self.artifact_store is None:
            names = ", ".join(artifact.name for artifact in self.list_artifacts()) or "none"
            raise ExperimentNotFoundError(f"run {self.experiment_id} has no artifact {name!r}", hint=f"it has: {names}")
        return self.artifact_store.get_bytes(ContentRef(found.ref), found.nbytes)

    def download_artifact(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Write an artifact's bytes to a file, atomically; into a folder, under its own name. Returns the file."""
        given = Path(path)
        folder, key = (Folder(given), name) if given.is_dir() else (Folder(given.parent), given.name)
        folder.write(key, self.load_artifact(name))
        return folder.path(key)

    def to_dict(self, *, history: bool = False) -> dict[str, Json]:
        """The run as JSON-able data; with ``history``, every point too."""
        result: dict[str, Json] = {
            "experiment_id": self.experiment_id,
            "name": self.name,
            "description": self.description,
            "status": str(self.status),
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "ended_at": _iso(self.ended_at),
            "params": stored(self.params),
            "tags": list(self.tags),
            "commit_hash": self.commit_hash,
            "branch": self.branch,
            "parent_experiment": self.parent_experiment,
            "notes": self.notes,
            "group": self.group,
            "labels": dict(self.labels),
            "objective": dict(self.objective),
            "failure": self.failure,
            "artifacts": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "nbytes": one.nbytes,
                    "ref": one.ref,
                    "timestamp": _iso(one.timestamp),
                }
                for one in self.artifacts
            ],
            "commits": [
                {
                    "commit_hash": one.commit_hash,
                    "step": one.step,
                    "metrics": {name: tagged(value) for name, value in one.metrics.items()},
                    "timestamp": _iso(one.timestamp),
                    "after": one.after,
                }
                for one in self.commits
            ],
            "start_commit": self.start_commit,
            "code": self.code,
            "environment": dict(self.environment),
            "dropped_points": self.dropped_points,
        }
        if history:
            result["metrics"] = [_point_to_json(point) for point in self.metrics]
        return result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.experiment_id} {self.name!r} {self.status}>"


def as_status(status: ExperimentStatus | str) -> ExperimentStatus:
    """A status by its name, in any case. Raises UsageError."""
    try:
        return ExperimentStatus(status)
    except (ValueError, TypeError):
        names = ", ".join(ExperimentStatus)
        raise UsageError(f"{status!r} is not a status", hint=f"one of {names}") from None


def checked_mode(metric: str, mode: str | None, objective: Mapping[str, Mode]) -> Mode:
    """``mode``, or the objective's. Raises UsageError when neither says which way is better."""
    chosen = mode if mode is not None else objective.get(metric)
    if isinstance(chosen, str) and chosen in MODES:
        return MODES[chosen]
    if chosen is None:
        raise UsageError(
            f"which way is {metric!r} better?",
            hint=f"say mode='min' or mode='max', or declare it: start(objective={{{metric!r}: 'min'}})",
        )
    raise UsageError(f"mode {chosen!r} is neither 'min' nor 'max'")


def _point_to_json(point: ExperimentMetric) -> Json:
    data: dict[str, Json] = {"name": point.name, "value": tagged(point.value), "step": point.step}
    data["timestamp"] = _iso(point.timestamp)
    return {**data, "metadata": dict(point.metadata)} if point.metadata else data


def _iso(time: datetime | None) -> str | None:
    return None if time is None else aware(time).isoformat(timespec="milliseconds")
