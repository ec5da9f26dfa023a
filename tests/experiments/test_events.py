"""Events are one language: a table of kinds, a constructor for each, and nobody else who writes one down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.experiments import ExperimentStatus, events
from coral.experiments.columns import MetricColumns
from coral.experiments.events import KINDS, Event, Fold
from coral.experiments.experiment import Experiment
from coral.experiments.local.journal import encode
from coral.experiments.local.writer import JournalWriter
from coral.experiments.scalars import MAX_NAME, MAX_STEP
from coral.storage.folder import Folder

PACKAGE = Path(events.__file__).parent.parent
EXAMPLES = [
    events.start(Experiment("a" * 12, "x")),
    events.points({"loss": 0.5, "acc": float("nan")}, 3, {"split": "val"}),
    events.params({"lr": 0.1}),
    events.settings(add_tags=["a", "b"], remove_tags=["b"], labels={"k": "v"}, objective={"loss": "min"}, notes="n"),
    events.artifact("a.txt", "text", 3, "hex:616263"),
    events.commit("c" * 40, 3, {"loss": 0.25}),
    events.dropped(2),
    events.end(ExperimentStatus.FAILED, {"kind": "error", "message": "x"}, "d" * 40),
]


class Journal:
    """A journal whose clock is set by hand."""

    def __init__(self, folder: Folder) -> None:
        self.now = 1.0
        self.path = folder.path("j")
        self.sink = JournalWriter(lambda: folder.append("j"), "run", clock=lambda: self.now)

    def line(self, name: str, value: float, step: int | None) -> bytes:
        """What a point appends."""
        before = self.path.stat().st_size
        self.sink.point(name, value, step)
        return self.path.read_bytes()[before:]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    """An open journal."""
    journal = Journal(Folder(tmp_path_factory.mktemp("journal")))
    yield journal
    journal.sink.close()


@given(
    name=st.text(min_size=1, max_size=MAX_NAME),
    value=st.floats(),
    step=st.none() | st.integers(-MAX_STEP, MAX_STEP),
    time=st.floats(0, 4e9),
)
def test_the_line_built_by_hand_is_that_of_the_event(
    journal: Journal, name: str, value: float, step: int | None, time: float
) -> None:
    """The journal builds the line of one point by itself, for speed: the very bytes of the event, encoded."""
    journal.now = time
    event = events.at(events.points({name: value}, step), int(time * 1000))
    assert journal.line(name, value, step) == encode(event)


def test_each_kind_has_its_constructor() -> None:
    """The table names every kind that can be made, with all the fields that it may have."""
    assert [event["e"] for event in EXAMPLES] == list(KINDS)
    for event in EXAMPLES:
        assert event.keys() - {"e"} == KINDS[str(event["e"])].fields.keys()


def test_each_kind_does_what_it_tells() -> None:
    """What was constructed is folded into the run."""
    run, history = Experiment("a" * 12, "x"), MetricColumns()
    fold = Fold(run, history)
    for time, event in enumerate(EXAMPLES):
        fold.apply(events.at(event, time))
    assert history.series["loss"].values == [0.5, 0.25] and history.series["loss"].metadata == {0: {"split": "val"}}
    assert (run.params, run.tags, run.labels, run.notes) == ({"lr": 0.1}, ["a"], {"k": "v"}, "n")
    assert (run.objective, run.dropped_points, run.commit_hash) == ({"loss": "min"}, 2, "d" * 40)
    assert [one.name for one in run.artifacts] == ["a.txt"] and [one.commit_hash for one in run.commits] == ["c" * 40]
    assert (run.status, run.failure) == (ExperimentStatus.FAILED, {"kind": "error", "message": "x"})
    assert fold.ended and fold.last_ms == len(EXAMPLES) - 1


def test_an_event_keeps_its_time() -> None:
    """What happened at a time is recorded at that time; what has none, at the recorder's."""
    event: Event = events.dropped(1)
    assert events.at(event, 5)["t"] == 5
    assert events.at(events.at(event, 5), 7)["t"] == 5


def test_nobody_else_writes_an_event_down() -> None:
    """A dict with a kind is built in events.py alone (what forges events is testing), so its table is the language."""
    strays = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value == "e" for key in node.keys)
        and path != Path(events.__file__)
        and not path.is_relative_to(PACKAGE / "testing")
    ]
    assert not strays
