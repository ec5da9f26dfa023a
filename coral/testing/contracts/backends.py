"""What every place where runs are kept must pass, and the smallest one that does.

Subclass :class:`BackendContract` and say how to make a backend::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import pytest

from coral.errors import AlreadyExistsError, ConflictError, ExperimentNotFoundError, UsageError
from coral.experiments import events
from coral.experiments.columns import MetricColumns, Mode
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import Experiment, ExperimentStatus, Metrics, Owner, checked_mode, from_ms, now, to_ms
from coral.experiments.links import link_of, own_commit
from coral.experiments.lookup import find
from coral.experiments.scalars import Json
from coral.experiments.seams import Best, Query, RunSink, Totals, TrackingBackend

RUNNING, COMPLETED, FAILED = ExperimentStatus.RUNNING, ExperimentStatus.COMPLETED, ExperimentStatus.FAILED


class MemoryBackend:
    """Keeps runs for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._trash: dict[str, _Kept] = {}

    def create(self, experiment: Experiment) -> MemorySink:
        """Record a run that starts now."""
        self._kept[experiment.experiment_id] = kept = _Kept(experiment)
        return MemorySink(kept)

    def attach(self, experiment_id: str) -> tuple[Experiment, MemorySink]:
        """Go on recording a run of the shell. Raises ConflictError."""
        kept = self._kept[self.resolve(experiment_id)]
        if kept.run.status.is_final or kept.run.owner == "process":
            raise ConflictError(f"run {kept.run.experiment_id} has ended, or a process owns it")
        return kept.shown(), MemorySink(kept)

    def resolve(self, experiment_id: str) -> str:
        """The id of the run that is meant."""
        return find(experiment_id, {run_id: kept.run.name for run_id, kept in self._kept.items()})

    def load(self, experiment_id: str) -> Experiment:
        """A run."""
        return self._kept[self.resolve(experiment_id)].shown()

    def select(self, query: Query) -> list[str]:
        """The ids of runs, newest first."""
        return [run.experiment_id for run in reversed(self._runs()) if query.fits(run)]

    def best(self, metric: str, mode: Mode | None, query: Query, limit: int | None) -> list[Best]:
        """The runs with the best values, best first."""
        runs = [run for run in self._runs() if query.fits(run)]
        declared = {run.objective[metric] for run in runs if metric in run.objective}
        if mode is None and len(declared) > 1:
            raise UsageError(f"some runs want {metric!r} high and some low")
        way = checked_mode(metric, mode or next(iter(declared), None), {})
        found = []
        for run in runs:
            series = run.history.series.get(metric)
            index = series.best(way) if series else None
            if series and index is not None:
                link = link_of(run.history, run.commits, metric, index) or own_commit(run) or (None, None)
                found.append(Best(run, series.values[index], series.steps[index], *link))
        return sorted(found, key=lambda one: one.value if way == "min" else -one.value)[:limit]

    def children(self, experiment_id: str) -> list[str]:
        """The ids of the runs that resumed this one, oldest first."""
        return [run.experiment_id for run in self._runs() if run.parent_experiment == experiment_id]

    def pinned_to(self, commit_hash: str) -> list[str]:
        """The ids of the runs whose final commit this is."""
        return [run.experiment_id for run in self._runs() if run.commit_hash == commit_hash]

    def totals(self) -> Totals:
        """What there is, in numbers."""
        totals = Totals()
        for run in self._runs():
            totals.by_status[str(run.status)] = totals.by_status.get(str(run.status), 0) + 1
            totals.names.add(run.name)
            totals.metrics.update(run.history.series)
            totals.branches.update([run.branch] if run.branch else [])
            totals.points += len(run.history)
        return totals

    def delete(self, experiment_id: str) -> None:
        """Move a run to the trash."""
        run_id = self.resolve(experiment_id)
        run = self._kept[run_id].run
        if not run.status.is_final and run.owner == "process":
            raise ConflictError(f"run {run_id} is running")
        self._trash[run_id] = self._kept.pop(run_id)

    def restore(self, experiment_id: str) -> str:
        """Take a run back out of the trash."""
        run_id = find(experiment_id, {run_id: kept.run.name for run_id, kept in self._trash.items()})
        if run_id in self._kept:
            raise AlreadyExistsError(f"run {run_id} is there already")
        self._kept[run_id] = self._trash.pop(run_id)
        return run_id

    def trash(self) -> list[Experiment]:
        """The runs in the trash."""
        return [kept.shown() for kept in self._trash.values()]

    def _runs(self) -> list[Experiment]:
        return sorted((kept.shown() for kept in self._kept.values()), key=lambda run: run.created_at)


class _Kept:
    """A run, and all that happened to it."""

    def __init__(self, experiment: Experiment) -> None:
        self.first = copy.deepcopy(replace(experiment, metrics=[], artifact_store=None))
        self.events: list[Event] = []

    @property
    def run(self) -> Experiment:
        """The run as it is now."""
        return self.shown()

    def shown(self) -> Experiment:
        """A snapshot."""
        run, columns = copy.deepcopy(self.first), MetricColumns()
        Fold(run, columns).apply_all(copy.deepcopy(self.events))
        run.metrics = Metrics(lambda: columns)
        return run


class MemorySink:
    """A live run's events, in a list."""

    degraded = False

    def __init__(self, kept: _Kept) -> None:
        self._kept = kept
        self._is_open = True

    def point(self, name: str, value: float, step: int | None) -> int:
        """Record one metric."""
        return self.append(events.points({name: value}, step))

    def append(self, event: Mapping[str, Json], *, durable: bool = False, holding: ExitStack | None = None) -> int:
        """Record an event."""
        if not self._is_open or self._kept.run.status.is_final:
            raise ConflictError("the run has ended")
        time_ms = to_ms(now())
        self._kept.events.append(copy.deepcopy(events.at(event, time_ms)))
        return time_ms

    def history(self) -> MetricColumns:
        """The points recorded so far."""
        return self._kept.shown().history

    def finish(self, event: Event) -> Experiment:
        """Record the end."""
        self.append(event)
        self._is_open = False
        return self._kept.shown()

    def close(self) -> None:
        """Stop recording."""
        self._is_open = False


class BackendContract:
    """The promises of :class:`coral.experiments.TrackingBackend`."""

    @pytest.fixture
    def backend(self) -> TrackingBackend:
        """The backend under test, empty; to be overridden."""
        raise NotImplementedError

    def elsewhere(self, backend: TrackingBackend) -> TrackingBackend:
        """The same runs as another process sees them; to be overridden where there can be one."""
        return backend

    # -- what the tests are made of

    def _begin(self, backend: TrackingBackend, number: int, *, owner: Owner = "process", **given: object) -> RunSink:
        """Start run ``number``, created that many seconds after 2023-11-14."""
        time = from_ms(1_700_000_000_000 + 1000 * number)
        run = Experiment(_id(number), f"run-{number}", None, RUNNING, time, time, owner=owner)
        return backend.create(replace(run, **given))  # type: ignore[arg-type]

    def _ended(self, backend: TrackingBackend, number: int, losses: list[float], **given: object) -> Experiment:
        """A run that logged these and completed."""
        sink = self._begin(backend, number, **given)  # type: ignore[arg-type]
        for step, loss in enumerate(losses):
            sink.point("loss", loss, step)
        return sink.finish(events.end(COMPLETED))

    # -- recording

    def test_is_a_backend(self, backend: TrackingBackend) -> None:
        """It has every verb."""
        assert isinstance(backend, TrackingBackend)

    @pytest.mark.parametrize("owner", ["process", "shell"])
    def test_what_is_recorded_is_there(self, backend: TrackingBackend, owner: Owner) -> None:
        """What was logged shows at once, at its time, wherever it is asked for, and stays when the run has ended."""
        sink = self._begin(backend, 1, owner=owner)
        run, columns = Experiment(_id(1), "run-1"), MetricColumns()
        fold = Fold(run, columns)
        for event in _everything():
            fold.apply(events.at(event, sink.append(event, durable=not events.is_points(event))))
        for step, value in ((5, 0.125), (None, float("nan")), (-1, float("inf"))):
            time_ms = sink.point("loss", value, step)
            fold.apply(events.at(events.points({"loss": value}, step), time_ms))
        assert not sink.degraded
        assert _told(sink.history()) == _told(columns)
        _check_same(self.elsewhere(backend).load(_id(1)), run, columns, RUNNING)
        fold.apply(events.at(end := events.end(FAILED, {"kind": "error", "message": "x"}, "d" * 40), time_ms))
        _check_same(sink.finish(end), run, columns, FAILED)
        _check_same(self.elsewhere(backend).load(_id(1)), run, columns, FAILED)

    def test_a_run_that_has_ended_takes_nothing_more(self, backend: TrackingBackend) -> None:
        """What comes too late raises ConflictError, and changes nothing."""
        sink = self._begin(backend, 1)
        sink.finish(events.end(COMPLETED))
        with pytest.raises(ConflictError):
            sink.point("loss", 0.5, 1)
        with pytest.raises(ConflictError):
            sink.append(events.params({"a": 1}))
        assert len(backend.load(_id(1)).metrics) == 0 and backend.load(_id(1)).params == {}

    def test_what_is_held_is_let_go_of_by_its_holder(self, backend: TrackingBackend) -> None:
        """Once others can read an event, nothing is held for it: its stack is left to whoever made it."""
        sink, let_go = self._begin(backend, 1), list[bool]()
        with ExitStack() as holding:
            holding.callback(let_go.append, True)
            sink.append(events.artifact("a", "text", 3, "hex:616263"), holding=holding)
            assert not sink.degraded and not let_go
        assert let_go
        sink.finish(events.end(COMPLETED))

    def test_a_run_of_the_shell_is_gone_on_with(self, backend: TrackingBackend) -> None:
        """It has no living owner: whoever attaches records more of it, and may end it."""
        sink = self._begin(backend, 1, owner="shell")
        sink.point("loss", 0.5, 1)
        sink.close()
        run, sink = self.elsewhere(backend).attach(_id(1))
        assert (run.experiment_id, run.status) == (_id(1), RUNNING)
        sink.point("loss", 0.25, 2)
        sink.finish(events.end(COMPLETED))
        assert [one.value for one in backend.load(_id(1)).metrics] == [0.5, 0.25]
        with pytest.raises(ConflictError):
            backend.attach(_id(1))

    def test_a_run_of_a_process_is_its_own(self, backend: TrackingBackend) -> None:
        """While it lives nobody else records it, and nobody deletes it."""
        sink = self._begin(backend, 1)
        with pytest.raises(ConflictError):
            backend.attach(_id(1))
        with pytest.raises(ConflictError):
            backend.delete(_id(1))
        sink.finish(events.end(COMPLETED))

    # -- finding

    def test_a_run_is_named_by_its_id_its_beginning_or_its_name(self, backend: TrackingBackend) -> None:
        """Whichever is given; what means no run, or several, is refused."""
        self._ended(backend, 1, [])
        self._ended(backend, 2, [], name="twice")
        self._ended(backend, 3, [], name="twice")
        assert backend.resolve(_id(1)) == backend.resolve(_id(1)[:6]) == backend.resolve("run-1") == _id(1)
        assert backend.load("run-1").experiment_id == _id(1)
        with pytest.raises(ExperimentNotFoundError):
            backend.load("nobody")
        with pytest.raises(UsageError):
            backend.load("twice")

    def test_queries(self, backend: TrackingBackend) -> None:
        """Every condition must hold; the newest comes first."""
        self._ended(backend, 1, [], tags=["a", "b"], branch="main", group="vision/small")
        self._ended(backend, 2, [], tags=["a"], branch="dev", group="visions")
        sink = self._begin(backend, 3, tags=["b"], branch="main", group="vision")
        for query, numbers in (
            (Query(), [3, 2, 1]),
            (Query(status=frozenset({COMPLETED})), [2, 1]),
            (Query(status=frozenset({RUNNING, FAILED})), [3]),
            (Query(tags=frozenset({"a"})), [2, 1]),
            (Query(tags=frozenset({"a", "b"})), [1]),
            (Query(branch="main"), [3, 1]),
            (Query(group="vision"), [3, 1]),
            (Query(name="run-2"), [2]),
            (Query(branch="main", tags=frozenset({"a"})), [1]),
            (Query(name="nobody"), []),
        ):
            assert self.elsewhere(backend).select(query) == [*map(_id, numbers)], query
        sink.append(events.settings(add_tags=["late"]))
        assert backend.select(Query(tags=frozenset({"late"}))) == [_id(3)]
        sink.finish(events.end(COMPLETED))

    def test_the_best(self, backend: TrackingBackend) -> None:
        """By their best finite value, running ones too, with its step and the commit that was made for it."""
        self._ended(backend, 1, [0.5, 0.25, 0.75])
        self._ended(backend, 2, [float("nan"), float("-inf")])
        sink = self._begin(backend, 3)
        sink.point("loss", 0.125, 7)
        sink.append(events.commit("c" * 40, 7, {}))
        low, high = (self.elsewhere(backend).best("loss", mode, Query(), None) for mode in ("min", "max"))
        assert [(one.experiment.experiment_id, one.value, one.step) for one in low] == [
            (_id(3), 0.125, 7),
            (_id(1), 0.25, 1),
        ]
        assert [(one.commit_hash, one.link) for one in low] == [("c" * 40, "exact"), (None, None)]
        assert [one.value for one in high] == [0.75, 0.125]
        assert len(backend.best("loss", "min", Query(), 1)) == 1
        assert backend.best("loss", "min", Query(name="run-2"), None) == backend.best("no", "min", Query(), None) == []
        with pytest.raises(UsageError):
            backend.best("loss", None, Query(), None)
        sink.append(events.settings(objective={"loss": "max"}))
        assert [one.value for one in backend.best("loss", None, Query(), None)] == [0.75, 0.125]
        sink.finish(events.end(COMPLETED))

    def test_families_and_commits(self, backend: TrackingBackend) -> None:
        """Who resumed whom, oldest first; and whose result a commit is."""
        self._ended(backend, 1, [])
        for number in (2, 3):
            sink = self._begin(backend, number, parent_experiment=_id(1))
            sink.finish(events.end(COMPLETED, None, "c" * 40))
        assert backend.children(_id(1)) == [_id(2), _id(3)] and backend.children(_id(2)) == []
        assert sorted(backend.pinned_to("c" * 40)) == [_id(2), _id(3)] and backend.pinned_to("d" * 40) == []

    def test_totals(self, backend: TrackingBackend) -> None:
        """Running ones count as those that have ended do."""
        self._ended(backend, 1, [0.5, 0.25], branch="main")
        sink = self._begin(backend, 2, branch="dev", name="run-1")
        sink.point("acc", 0.5, 1)
        totals = self.elsewhere(backend).totals()
        assert (totals.by_status, totals.points) == ({"completed": 1, "running": 1}, 3)
        assert (totals.names, totals.metrics, totals.branches) == ({"run-1"}, {"loss", "acc"}, {"main", "dev"})
        sink.finish(events.end(COMPLETED))

    def test_the_trash(self, backend: TrackingBackend) -> None:
        """A deleted run is not found, and comes back whole."""
        self._ended(backend, 1, [0.5])
        backend.delete("run-1")
        assert backend.select(Query()) == [] and [one.experiment_id for one in backend.trash()] == [_id(1)]
        with pytest.raises(ExperimentNotFoundError):
            backend.load(_id(1))
        assert backend.restore("run-1") == _id(1) and backend.trash() == []
        assert [one.value for one in backend.load(_id(1)).metrics] == [0.5]
        with pytest.raises(ExperimentNotFoundError):
            backend.restore(_id(1))


def _id(number: int) -> str:
    return f"{number:x}".ljust(12, "a")


def _everything() -> list[Event]:
    """One event of each kind but the end."""
    return [
        events.points({"loss": 0.5, "acc": 0.25}, 1, {"split": "val"}),
        events.params({"opt": {"lr": 0.1}, "layers": [1, 2]}),
        events.params({"opt": {"beta": 0.9}}),
        events.settings(add_tags=["a", "b"], labels={"k": "v", "x": "y"}, objective={"loss": "min"}, notes="n"),
        events.settings(remove_tags=["b"], labels={"x": None}),
        events.artifact("folder/a.txt", "text", 3, "hex:616263"),
        events.points({"loss": 0.25}, 2),
        events.commit("c" * 40, 2, {"loss": 0.25}),
        events.dropped(3),
    ]


def _told(columns: MetricColumns) -> str:
    return repr([(name, one.steps, one.values, one.times, one.metadata) for name, one in columns.series.items()])


def _check_same(found: Experiment, run: Experiment, columns: MetricColumns, status: ExperimentStatus) -> None:
    """Whether a run is what its events make of it."""
    assert found.status == status
    assert _told(found.history) == _told(columns) and found.history.order == columns.order
    for name in ("params", "tags", "labels", "objective", "notes", "artifacts", "failure", "commit_hash"):
        assert getattr(found, name) == getattr(run, name), name
    assert found.commits == run.commits and found.dropped_points == run.dropped_points
