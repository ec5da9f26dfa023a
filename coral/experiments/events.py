"""The language of experiments: what can happen to a run, and the one place where events become an Experiment.

An event is JSON: its kind ``e``, its time ``t`` (milliseconds since 1970, UTC), and the fields of its kind. The table
:data:`KINDS` at the end of this file says what each kind has and does; nobody else writes one down. A constructor makes
an event without its time, which whoever records it adds with :func:`at`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coral.experiments.columns import MetricColumns, Mode
from coral.experiments.experiment import (
    MODES,
    Artifact,
    Experiment,
    ExperimentStatus,
    LinkedCommit,
    ParameterChange,
    from_ms,
)
from coral.experiments.scalars import (
    LAST_MS,
    MAX_BYTES,
    MAX_STEP,
    Json,
    bounded,
    checked,
    merge,
    shown,
    stored,
    tagged,
    untagged,
)
from coral.format.names import check_part_name
from coral.ids import is_content_ref

Event = dict[str, Json]

MAX_RUN_BYTES = 2 * MAX_BYTES
"""How many bytes of JSON all changes of a run's parameters may have: its file holds them, and what came of them."""

_POINTS = "m"


def at(event: Mapping[str, Json], time_ms: int) -> Event:
    """An event at its time; one that has a time keeps it."""
    return {"e": event["e"], "t": time_ms, **event}


def is_points(event: Mapping[str, Json]) -> bool:
    """Whether it says points of metrics, of which there are many, and not something that is said once."""
    return event["e"] == _POINTS


# -- one constructor a kind


def start(run: Experiment) -> Event:
    """A run as it is when somebody begins to follow it."""
    return {"e": "start", "v": run.to_dict()}


def points(values: Mapping[str, float], step: int | None, metadata: dict[str, Json] | None = None) -> Event:
    """A point of each metric."""
    event: Event = {"e": _POINTS}
    if step is not None:
        event["s"] = step
    event["v"] = {name: tagged(value) for name, value in values.items()}
    if metadata:
        event["d"] = metadata
    return event


def params(change: dict[str, Json]) -> Event:
    """Parameters, laid over those before."""
    return {"e": "p", "v": change}


def settings(**fields: Json) -> Event:
    """Tags, labels, notes, an objective; see the table."""
    return {"e": "set", "v": fields}


def artifact(name: str, kind: str, nbytes: int, ref: str) -> Event:
    """An artifact whose bytes are stored."""
    return {"e": "a", "v": {"name": name, "kind": kind, "nbytes": nbytes, "ref": ref}}


def commit(commit_hash: str, step: int | None, metrics: Mapping[str, float]) -> Event:
    """A commit that was made."""
    return {"e": "c", "hash": commit_hash, "step": step, "metrics": {n: tagged(value) for n, value in metrics.items()}}


def dropped(count: int) -> Event:
    """Points that could not be kept."""
    return {"e": "drop", "n": count}


def end(status: ExperimentStatus, failure: dict[str, Json] | None = None, commit_hash: str | None = None) -> Event:
    """The end."""
    return {"e": "end", "status": str(status), "failure": failure, "commit": commit_hash}


# -- what they do


class Fold:
    """A run and its history, brought up to date event by event.

    Attributes:
        last_ms: the time of the last event, milliseconds since 1970; None before the first.
        ended: whether an ``end`` event was seen.
    """

    def __init__(self, experiment: Experiment, history: MetricColumns) -> None:
        self.experiment = experiment
        self.history = history
        self.last_ms: int | None = None
        self.ended = False
        self._left: int | None = None

    def apply_all(self, events: Iterable[Event]) -> None:
        """Apply events; one that makes no sense (a forged or newer one) is left out whole."""
        for event in events:
            try:
                self.apply(event)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                continue

    def apply(self, event: Event) -> None:
        """Apply one event. Raises ValueError, TypeError, KeyError or AttributeError, having changed nothing."""
        time_ms = event["t"]
        if not isinstance(time_ms, int) or not 0 <= time_ms <= LAST_MS:
            raise ValueError("an event's time is not one of the calendar")
        kind = event["e"]
        if kind == _POINTS:  # nearly all of them
            self._points(event, time_ms)
        elif kind in KINDS:
            KINDS[str(kind)].apply(self, event, time_ms)
        self.last_ms = time_ms

    def _points(self, event: Event, time_ms: int) -> None:
        step, metadata = event.get("s"), event.get("d")
        if step.__class__ is not int or abs(step) > MAX_STEP:
            step = _step(step)
        extra = read_object(stored(checked(metadata))) if metadata else None
        values = read_object(event["v"]).items()
        points = [(name, value if value.__class__ is float else untagged(value)) for name, value in values]
        for name, value in points:
            self.history.append(name, value, step, time_ms, extra)

    def _start(self, event: Event, time_ms: int) -> None:
        """The fold has the run."""

    def _params(self, event: Event, time_ms: int) -> None:
        change = shown(self._that_fits(read_object(stored(checked(event["v"])))))
        self.experiment.params = merge(self.experiment.params, change)
        self.experiment.parameter_history.append(ParameterChange(from_ms(time_ms), change))

    def _that_fits(self, change: dict[str, Json]) -> dict[str, Json]:
        """A change as it is remembered: what there are of them must fit into a line that is read."""
        if self._left is None:
            self._left = MAX_RUN_BYTES - sum(map(_size, self.experiment.parameter_history))
        kept = bounded(change, max(0, self._left))
        self._left -= len(json.dumps(kept))
        return kept

    def _set(self, event: Event, time_ms: int) -> None:
        run, fields = self.experiment, read_object(event["v"])
        gone = set(map(str, read_list(fields.get("remove_tags", []))))
        added = map(str, read_list(fields.get("add_tags", [])))
        labels = {**run.labels, **read_object(fields.get("labels", {}))}
        declared = read_objective(fields.get("objective", {}))
        run.tags = [tag for tag in dict.fromkeys([*run.tags, *added]) if tag not in gone]
        run.labels = {key: str(value) for key, value in labels.items() if value is not None}
        run.objective = {**run.objective, **declared}
        if "notes" in fields:
            run.notes = None if fields["notes"] is None else str(fields["notes"])

    def _artifact(self, event: Event, time_ms: int) -> None:
        self.experiment.artifacts.append(read_artifact({**read_object(event["v"]), "t": time_ms}))

    def _commit(self, event: Event, time_ms: int) -> None:
        commit_hash = str(event["hash"])
        metrics = {name: untagged(value) for name, value in read_object(event.get("metrics") or {}).items()}
        step = _step(event.get("step"))
        for name, value in metrics.items():
            self._metric_of_commit(name, value, step, time_ms)
        linked = LinkedCommit(commit_hash, step, metrics, from_ms(time_ms), len(self.history))
        self.experiment.commits.append(linked)
        self.experiment.commit_hash = commit_hash

    def _metric_of_commit(self, name: str, value: float, step: int | None, time_ms: int) -> None:
        # commit(metrics=...) logs them, unless the loop has just done so itself.
        series = self.history.series.get(name)
        if series is None or (series.steps[-1], series.values[-1]) != (step, value):
            self.history.append(name, value, step, time_ms)

    def _dropped(self, event: Event, time_ms: int) -> None:
        count = event["n"]
        if not isinstance(count, int):
            raise ValueError("a count is not a whole number")
        self.experiment.dropped_points += count

    def _end(self, event: Event, time_ms: int) -> None:
        status, failure, run = ExperimentStatus(str(event["status"])), event.get("failure"), self.experiment
        failure = read_object(stored(checked(failure))) if failure else None
        run.status, run.failure, run.ended_at = status, failure, from_ms(time_ms)
        if event.get("commit"):
            run.commit_hash = str(event["commit"])
        self.ended = True


def _size(change: ParameterChange) -> int:
    return len(json.dumps(change.params))


def read_objective(data: Json) -> dict[str, Mode]:
    """A declared objective. Raises ValueError, KeyError for a direction that is neither ``min`` nor ``max``."""
    result: dict[str, Mode] = {}
    for name, mode in read_object(data).items():
        result[name] = MODES[str(mode)]
    return result


def read_artifact(data: dict[str, Json]) -> Artifact:
    """An artifact from its fields. Raises ValueError, among others for a name that leads out of a folder; KeyError."""
    nbytes, time_ms, name = data["nbytes"], data["t"], check_part_name(str(data["name"]))
    if type(nbytes) is not int or nbytes < 0 or type(time_ms) is not int or not is_content_ref(str(data["ref"])):
        raise ValueError("an artifact's fields are malformed")
    return Artifact(name, str(data["kind"]), nbytes, str(data["ref"]), from_ms(time_ms))


def read_object(data: Json) -> dict[str, Json]:
    """A JSON object. Raises ValueError for anything else."""
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return data


def read_list(data: Json) -> list[Json]:
    """A JSON array. Raises ValueError for anything else."""
    if not isinstance(data, list):
        raise ValueError("not a list")
    return data


def _step(data: Json) -> int | None:
    if data is not None and (not isinstance(data, int) or abs(data) > MAX_STEP):
        raise ValueError("a step is not a whole number of 64 bits")
    return data


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: what it tells, what each of its fields says, and what it does to a run."""

    tells: str
    fields: Mapping[str, str]
    apply: Callable[[Fold, Event, int], None]


KINDS: dict[str, Kind] = {
    "start": Kind(
        "what a mirror is told first: a run began, or is gone on with; it stands in no journal",
        {"v": "the run, as ``to_dict`` says it"},
        Fold._start,
    ),
    _POINTS: Kind(
        "points of metrics",
        {"v": "name to value, NaN and infinities by name", "s": "step (absent: none)", "d": "metadata (absent: none)"},
        Fold._points,
    ),
    "p": Kind("parameters", {"v": "what is laid over those before"}, Fold._params),
    "set": Kind(
        "what is said of the run",
        {"v": "any of add_tags, remove_tags, labels (laid over; null removes one), objective (laid over), notes"},
        Fold._set,
    ),
    "a": Kind("an artifact", {"v": "name, kind, nbytes, ref"}, Fold._artifact),
    "c": Kind(
        "a commit",
        {
            "hash": "the commit",
            "step": "what it was made for (null: unsaid)",
            "metrics": "what was said of it, as in m",
        },
        Fold._commit,
    ),
    "drop": Kind("points that a full disk made coral drop", {"n": "how many"}, Fold._dropped),
    "end": Kind(
        "the end",
        {"status": "how", "failure": "why, where it failed", "commit": "the commit it came to (null: the last one)"},
        Fold._end,
    ),
}
