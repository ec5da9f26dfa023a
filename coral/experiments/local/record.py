"""``<id>.json``: one run as readable JSON, its summary first so that a query reads only the head.

Line by line (the whole is one JSON object)::

    {"summary": {..., "check": "..."},    what queries filter and sort by; nothing that grows with the run
    "experiment": {...},                  every field, the commits, the artifacts, the links of the best points
    "history": {"order": [...], "series": {
    "loss": {"steps": [[start, count, stride], ...], "times": [differences in ms], "values": [...]},
    ...
    }}}

A run that still runs has an empty history here; its events are in ``<id>.jsonl``. NaN and infinities stand as
the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. The text depends on the run alone, so that the same
run folded twice is the same file, and git merges two people's runs without conflict: one run, one file.

``check`` is three XXH3-64, of the first line up to it, of the second, and of all that follows: whoever reads a part
knows that it is whole. A file without one was written before there were any, and a file that somebody has formatted
anew is taken at its word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from coral.errors import CorruptionError, VersionError
from coral.experiments.columns import MetricColumns, Mode, Series
from coral.experiments.events import read_artifact, read_list, read_object, read_objective
from coral.experiments.experiment import (
    Experiment,
    ExperimentStatus,
    LinkedCommit,
    LinkKind,
    Metrics,
    Owner,
    ParameterChange,
    from_ms,
    to_ms,
)
from coral.experiments.links import Link, link_of
from coral.experiments.scalars import Json, shown, stored, tagged, untagged
from coral.ids import checksum

FORMAT = 1
SUMMARY = b'{"summary": '
_CHECK = b',"check":"'
_SUM_DIGITS = 16
_CHECK_BYTES = len(_CHECK) + 3 * _SUM_DIGITS + len(b'"},')
_DECODER = json.JSONDecoder()
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who runs it, precisely enough to tell whether that process still lives.

    Attributes:
        pid: process id; ``start`` the kernel's start time of it, so that a reused pid is told apart.
        boot: the id of the machine's boot; empty where the system has none.
    """

    owner: Owner
    pid: int
    start: str
    boot: str
    host: str


@dataclass(slots=True)
class Record:
    """A run as its file holds it: the run, who owns it, and the commits of its best points."""

    experiment: Experiment
    identity: Identity
    links: dict[str, dict[str, list[Json]]]

    def link(self, metric: str, mode: Mode) -> Link | None:
        """The commit of the metric's best point, as found when the run was folded."""
        found = self.links.get(metric, {}).get(mode)
        if not found:
            return None
        kind: LinkKind = "exact" if found[1] == "exact" else "inferred" if found[1] == "inferred" else "before"
        return str(found[0]), kind


# -- writing


def encode(record: Record, history: MetricColumns) -> bytes:
    """The file of a run and its history."""
    run = record.experiment
    series = [f"{_text(name)}: {_text(column.to_json())}" for name, column in history.series.items()]
    order = history.order_to_json()
    first = SUMMARY + _text(summary(run, history)).removesuffix("}").encode()
    fields = f'"experiment": {_text(_fields(record, history))},'.encode()
    lines = [f'"history": {{"order": {_text(order)}, "series": {{', *[line + "," for line in series[:-1]]]
    rest = "\n".join([*lines, *series[-1:], "}}}", ""]).encode()
    check = _CHECK + b"".join(map(_sum, (first, fields, rest)))
    return b"\n".join([first + check + b'"},', fields, rest])


def summary(run: Experiment, history: MetricColumns) -> dict[str, Json]:
    """What queries need; ``metrics`` are ``[count, last, its step, min, its step, max, its step]`` by name."""
    return {
        "format": FORMAT,
        "id": run.experiment_id,
        "name": run.name,
        "status": str(run.status),
        "created": to_ms(run.created_at),
        "branch": run.branch,
        "group": run.group,
        "tags": list(run.tags),
        "commit": run.commit_hash,
        "parent": run.parent_experiment,
        "objective": dict(run.objective),
        "points": len(history),
        "metrics": {name: digest(series) for name, series in history.series.items()},
    }


def digest(series: Series) -> list[Json]:
    """A metric in seven values, as :func:`summary` keeps it; null where no value is finite."""
    result: list[Json] = [len(series), tagged(series.values[-1]), series.steps[-1]] if len(series) else [0, None, None]
    for index in (series.best("min"), series.best("max")):
        result += [None, None] if index is None else [series.values[index], series.steps[index]]
    return result


def best_links(run: Experiment, history: MetricColumns) -> dict[str, dict[str, list[Json]]]:
    """The commits of each metric's best points, both ways."""
    links: dict[str, dict[str, list[Json]]] = {}
    modes: tuple[Mode, Mode] = ("min", "max")
    for name, series in history.series.items() if run.commits else ():
        for mode in modes:
            index = series.best(mode)
            link = link_of(history, run.commits, name, index) if index is not None else None
            if link:
                links.setdefault(name, {})[mode] = list(link)
    return links


def _fields(record: Record, history: MetricColumns) -> dict[str, Json]:
    run, who = record.experiment, record.identity
    links = best_links(run, history) or record.links
    return {
        **run.to_dict(),
        "artifacts": [
            {"name": one.name, "kind": one.kind, "nbytes": one.nbytes, "ref": one.ref, "t": to_ms(one.timestamp)}
            for one in run.artifacts
        ],
        "commits": [_commit_to_json(commit) for commit in run.commits],
        "identity": {"owner": who.owner, "pid": who.pid, "start": who.start, "boot": who.boot, "host": who.host},
        "parameter_history": [
            {"t": to_ms(one.timestamp), "params": stored(one.params)} for one in run.parameter_history
        ],
        "links": {name: dict(both) for name, both in links.items()},
    }


def _commit_to_json(commit: LinkedCommit) -> Json:
    return {
        "hash": commit.commit_hash,
        "step": commit.step,
        "metrics": {name: tagged(value) for name, value in commit.metrics.items()},
        "t": to_ms(commit.timestamp),
        "after": commit.after,
    }


def _text(data: Json) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _sum(data: bytes) -> bytes:
    return b"%016x" % checksum(data)


# -- reading


def _sums(first: bytes) -> list[bytes] | None:
    """The three checksums that a first line without its end gives, the first of them checked; None for none.

    Raises ValueError when the line is not what was written.
    """
    check = first[-_CHECK_BYTES:]
    if not check.startswith(_CHECK):
        return None
    digits = check[len(_CHECK) : -len(b'"},')]
    sums = [digits[at : at + _SUM_DIGITS] for at in range(0, len(digits), _SUM_DIGITS)]
    if sums[0] != _sum(first[:-_CHECK_BYTES]):
        raise ValueError("its summary is damaged")
    return sums


def head(data: bytes, path: object) -> tuple[dict[str, Json], dict[str, Json] | None]:
    """The summary and, where ``data`` reaches that far, the experiment's fields.

    Args:
        data: the beginning of the file: at least its first line, or all of a file that someone reformatted.

    Raises:
        CorruptionError: not the file of a run. VersionError: written by a newer coral.
    """
    try:
        first, _, rest = data.partition(b"\n")
        second, end, _ = rest.partition(b"\n")
        if first.startswith(SUMMARY) and first.endswith(b","):
            sums = _sums(first)
            if sums is not None and end and sums[1] != _sum(second):
                raise ValueError("its fields are damaged")
            summary_data = _DECODER.decode(first[len(SUMMARY) : -1].decode())
            has_fields = end and second.startswith(b'"experiment": ') and second.endswith(b",")
            fields = json.loads(second[len(b'"experiment": ') : -1]) if has_fields else None
        else:
            whole = json.loads(data)
            summary_data, fields = whole["summary"], whole["experiment"]
        _check_version(summary_data, path)
        return summary_data, fields
    except _MALFORMED as error:
        raise CorruptionError(f"{path} is not the file of a run: {error}") from error


def summaries(heads: Sequence[bytes]) -> list[dict[str, Json]]:
    """The summaries of many files, from their first lines, parsed at once.

    Raises:
        CorruptionError: not all of them are the line that :func:`encode` writes; :func:`head` tells which.
        VersionError: one was written by a newer coral.
    """
    # Between the lines stands what nobody can have written into them: found between the values, it proves that each
    # line is one value, and no two lines pass for two only together.
    mark = os.urandom(16).hex()
    if not all(line.startswith(SUMMARY) and line.endswith(b",\n") for line in heads):
        raise CorruptionError("not all of these are files of runs")
    try:
        for line in heads:
            _sums(line[:-1])
        lines = f',"{mark}",'.encode().join([line[len(SUMMARY) : -2] for line in heads])
        parsed = _DECODER.decode(f"[{lines.decode()}]")
        found: list[dict[str, Json]] = parsed[::2]
        if len(found) != len(heads) or parsed[1::2] != [mark] * (len(heads) - 1):
            raise CorruptionError("not all of these are files of runs")
        for one in found:
            _check_version(one, "a run's file")
    except _MALFORMED as error:
        raise CorruptionError(f"not all of these are files of runs: {error}") from error
    return found


def _check_version(summary_data: dict[str, Json], path: object) -> None:
    version = summary_data["format"]
    if type(version) is int and version > FORMAT:
        raise VersionError(f"{path} has format {version}; this coral reads up to {FORMAT}", hint="upgrade coral")


def decode(fields: dict[str, Json], load: Callable[[], MetricColumns], path: object) -> Record:
    """A run from its file's fields; ``load`` gives its history when it is asked for. Raises CorruptionError."""
    try:
        return _decode(fields, load)
    except _MALFORMED as error:
        raise CorruptionError(f"{path} is not the file of a run: {error}") from error


def decode_history(data: bytes, path: object) -> MetricColumns:
    """The history of a whole file. Raises CorruptionError."""
    try:
        _check_history(data)
        return MetricColumns.from_json(json.loads(data)["history"])
    except _MALFORMED as error:
        raise CorruptionError(f"the history in {path} is damaged: {error}") from error


def _check_history(data: bytes) -> None:
    """Raise ValueError when a file, other than one that was formatted anew, is not what was written."""
    first, _, rest = data.partition(b"\n")
    sums = _sums(first) if first.startswith(SUMMARY) else None
    if sums is None:
        return
    second, _, rest = rest.partition(b"\n")
    if sums[1:] != [_sum(second), _sum(rest)]:
        raise ValueError("a checksum is wrong")


def _decode(data: dict[str, Json], load: Callable[[], MetricColumns]) -> Record:
    who = read_object(data["identity"])
    owner: Owner = "shell" if who["owner"] == "shell" else "process"
    run = Experiment(
        experiment_id=str(data["experiment_id"]),
        name=str(data["name"]),
        description=_string(data["description"]),
        status=ExperimentStatus(str(data["status"])),
        created_at=_time(data["created_at"]) or from_ms(0),
        started_at=_time(data["started_at"]),
        ended_at=_time(data["ended_at"]),
        metrics=Metrics(load),
        params=shown(read_object(data["params"])),
        tags=[str(tag) for tag in read_list(data["tags"])],
        commit_hash=_string(data["commit_hash"]),
        branch=_string(data["branch"]),
        parent_experiment=_string(data["parent_experiment"]),
        notes=_string(data["notes"]),
        group=_string(data["group"]),
        labels={key: str(value) for key, value in read_object(data["labels"]).items()},
        objective=read_objective(data["objective"]),
        failure=read_object(data["failure"]) if data["failure"] is not None else None,
        artifacts=[read_artifact(read_object(one)) for one in read_list(data["artifacts"])],
        commits=[_commit_from_json(read_object(one)) for one in read_list(data["commits"])],
        start_commit=_string(data["start_commit"]),
        code=read_object(data["code"]) if data["code"] is not None else None,
        environment=read_object(data["environment"]),
        owner=owner,
        parameter_history=[_change(read_object(one)) for one in read_list(data["parameter_history"])],
        dropped_points=_int(data["dropped_points"]),
    )
    identity = Identity(owner, _int(who["pid"]), str(who["start"]), str(who["boot"]), str(who["host"]))
    links = {
        name: {mode: read_list(link) for mode, link in read_object(both).items()}
        for name, both in read_object(data["links"]).items()
    }
    return Record(run, identity, links)


def _change(data: dict[str, Json]) -> ParameterChange:
    return ParameterChange(from_ms(_int(data["t"])), shown(read_object(data["params"])))


def _commit_from_json(data: dict[str, Json]) -> LinkedCommit:
    step = None if data["step"] is None else _int(data["step"])
    metrics = {name: untagged(value) for name, value in read_object(data["metrics"]).items()}
    return LinkedCommit(str(data["hash"]), step, metrics, from_ms(_int(data["t"])), _int(data["after"]))


def _time(data: Json) -> datetime | None:
    if data is None:
        return None
    time = datetime.fromisoformat(str(data))
    if time.tzinfo is None:
        raise ValueError(f"{data} has no time zone")
    return time


def _string(data: Json) -> str | None:
    return None if data is None else str(data)


def _int(data: Json) -> int:
    if type(data) is not int:
        raise ValueError(f"{data!r} is not a whole number")
    return data
