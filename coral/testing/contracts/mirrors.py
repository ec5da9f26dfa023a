"""What every mirror of runs must pass, and the smallest one that does.

Subclass :class:`MirrorContract`, say how to make a mirror, and, where it keeps points, what it has of a run::

    class TestMine(MirrorContract):
        @pytest.fixture
        def mirror(self, tmp_path):
            return MyMirror(tmp_path)
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable

import pytest

from coral.experiments import events
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import Experiment, ExperimentStatus
from coral.experiments.mirror import Mirror

Points = dict[str, list[tuple[int | None, float]]]


class ListMirror:
    """Keeps what it was told, in lists.

    Attributes:
        told: each event, with the id of its run.
        closed: the ids of the runs of which nothing more comes.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, Event]] = []
        self.closed: list[str] = []

    def event(self, run: Experiment, event: Event) -> None:
        """Keep it."""
        self.told.append((run.experiment_id, event))

    def close(self, run: Experiment) -> None:
        """Keep that."""
        self.closed.append(run.experiment_id)

    def events(self, run_id: str) -> list[Event]:
        """What was told of a run."""
        return [event for run, event in self.told if run == run_id]

    def points(self, run_id: str) -> Points:
        """The points of a run."""
        columns = MetricColumns()
        Fold(Experiment(run_id, "any"), columns).apply_all(self.events(run_id))
        return points_of(columns)


def points_of(columns: MetricColumns) -> Points:
    """Each metric's steps and values, in logged order."""
    return {name: list(zip(series.steps, series.values, strict=True)) for name, series in columns.series.items()}


class _Told:
    """A run, as the mirror under test is told of it."""

    def __init__(self, mirror: Mirror, seconds: float, name: str = "run") -> None:
        self.run = Experiment(f"{abs(hash(name)) % 16**12:012x}", name, status=ExperimentStatus.RUNNING)
        self._mirror, self._seconds, self._time_ms = mirror, seconds, 1_700_000_000_000
        self._columns = MetricColumns()
        self._fold = Fold(self.run, self._columns)
        self.tell(events.start(self.run))

    @property
    def points(self) -> Points:
        """What was logged."""
        return points_of(self._columns)

    def tell(self, event: Event) -> None:
        """An event happens."""
        self._time_ms += 1
        event = events.at(event, self._time_ms)
        self._fold.apply_all([event])
        self._call(lambda: self._mirror.event(self.run, copy.deepcopy(event)))

    def close(self) -> None:
        """Nothing more comes."""
        self._call(lambda: self._mirror.close(self.run))

    def _call(self, job: Callable[[], None]) -> None:
        """Call the mirror as coral does, from another thread; it must come back, and raise nothing."""
        raised: list[BaseException] = []

        def call() -> None:
            try:
                job()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(self._seconds)
        assert not thread.is_alive(), f"the mirror takes longer than {self._seconds} s"
        assert not raised, f"the mirror raised {raised[0]!r}"


class MirrorContract:
    """The promises of :class:`coral.experiments.Mirror`, seen from coral.

    Attributes:
        seconds: how long one event may take.
    """

    seconds = 5.0

    @pytest.fixture
    def mirror(self) -> Mirror:
        """The mirror under test, fresh; to be overridden."""
        raise NotImplementedError

    def points(self, mirror: Mirror, run_id: str) -> Points | None:
        """What the mirror has of a run's points; None when it keeps none that could be read back."""
        return None

    def _check_points(self, mirror: Mirror, told: _Told) -> None:
        found = self.points(mirror, told.run.experiment_id)
        if found is not None:
            assert _shown(found) == _shown(told.points)

    def test_is_a_mirror(self, mirror: Mirror) -> None:
        """It has both verbs."""
        assert isinstance(mirror, Mirror)

    def test_every_kind_of_event(self, mirror: Mirror) -> None:
        """A run from its start to its end, with all that may happen in it."""
        told = _Told(mirror, self.seconds)
        for event in (
            events.params({"opt": {"lr": 0.1}, "layers": [1, 2], "none": None}),
            events.settings(add_tags=["a"], labels={"k": "v"}, objective={"loss": "min"}, notes="n"),
            events.settings(remove_tags=["a"], labels={"k": None}, notes=None),
            events.points({"loss": 0.5, "acc": 0.25}, 1),
            events.points({"loss": 0.25}, None, {"split": "val"}),
            events.artifact("folder/a.txt", "text", 3, "hex:616263"),
            events.commit("c" * 40, 1, {"loss": 0.5}),
            events.dropped(3),
            events.end(ExperimentStatus.FAILED, {"kind": "error", "message": "x"}),
        ):
            told.tell(event)
        told.close()
        self._check_points(mirror, told)

    def test_odd_values(self, mirror: Mirror) -> None:
        """NaN and infinities, steps that go back or come twice, and names of any characters are data like others."""
        told = _Told(mirror, self.seconds)
        for value, step in ((math.nan, 3), (math.inf, 3), (-math.inf, -1), (0.0, None), (1e308, 2**62), (5.0, 0)):
            told.tell(events.points({"train/loss ü\n\N{SNOWMAN}": value}, step))
        told.tell(events.end(ExperimentStatus.COMPLETED))
        told.close()
        self._check_points(mirror, told)

    def test_what_a_newer_coral_tells(self, mirror: Mirror) -> None:
        """Kinds and fields that it does not know are no error."""
        told = _Told(mirror, self.seconds)
        told.tell({"e": "unheard-of", "v": {"x": [1]}})
        told.tell({**events.points({"loss": 0.5}, 1), "more": True})
        told.close()
        self._check_points(mirror, told)

    def test_a_run_that_is_gone_on_with(self, mirror: Mirror) -> None:
        """One that was let go of starts again, and ends later; what there was of it stays."""
        told = _Told(mirror, self.seconds)
        told.tell(events.points({"loss": 0.5}, 1))
        told.close()
        told.tell(events.start(told.run))
        told.tell(events.points({"loss": 0.25}, 2))
        told.tell(events.end(ExperimentStatus.COMPLETED))
        told.close()
        self._check_points(mirror, told)

    def test_one_run_after_the_other(self, mirror: Mirror) -> None:
        """A mirror follows as many runs as a tracker starts, and keeps them apart."""
        runs = [_Told(mirror, self.seconds, name) for name in ("first", "second")]
        for number, told in enumerate(runs):
            told.tell(events.points({"loss": number / 2}, number))
        for told in runs:
            told.tell(events.end(ExperimentStatus.COMPLETED))
            told.close()
        for told in runs:
            self._check_points(mirror, told)

    def test_many_points(self, mirror: Mirror) -> None:
        """None of them is lost, and none is there twice."""
        told = _Told(mirror, self.seconds)
        for step in range(500):
            told.tell(events.points({("loss", "acc")[step % 2]: step / 7}, step))
        told.close()
        self._check_points(mirror, told)


def _shown(points: Points) -> dict[str, str]:
    return {name: repr(column) for name, column in points.items()}  # in which NaN is equal to itself
