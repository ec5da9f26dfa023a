"""What is logged to a run and to its tracker is one thing."""

from __future__ import annotations

import inspect

import pytest

from coral.errors import ConflictError
from coral.experiments import ExperimentTracker, Run
from coral.experiments.logs import Logs

METHODS = [name for name in vars(Logs) if not name.startswith("_")]


class Figure:
    """Something that draws itself."""

    def savefig(self, file: object, *, format: str) -> None:
        """Draw nothing."""


ARGUMENTS: dict[str, tuple[object, ...]] = {
    "log": ("loss", 0.5),
    "log_metrics": ({"loss": 0.5},),
    "log_params": ({"lr": 0.1},),
    "add_tags": ("a",),
    "remove_tags": ("a",),
    "set_labels": ({"a": "b"},),
    "set_notes": ("n",),
    "set_objective": ({"loss": "min"},),
    "log_artifact": (b"abc", "name"),
    "log_text": ("abc", "name"),
    **dict.fromkeys(("log_dict", "log_artifact_data"), ({"a": 1}, "name")),
    **dict.fromkeys(("log_table", "log_dataframe"), ([[1]], "name")),
    **dict.fromkeys(("log_figure", "log_plot"), (Figure(), "name")),
    "log_numpy_array": ([1.0], "name"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_log_method_is_said_once(name: str) -> None:
    """A run and a tracker have the very same method, and it says what it does."""
    assert getattr(Run, name) is getattr(ExperimentTracker, name)
    assert inspect.getdoc(getattr(Run, name))


@pytest.mark.parametrize("name", METHODS)
def test_without_a_run_there_is_nothing_to_log_to(tracker: ExperimentTracker, name: str) -> None:
    """Each of them asks for a run before it looks at what it was given; and so it does once that has ended."""
    arguments = ARGUMENTS[name]
    with pytest.raises(ConflictError, match="no run is active"):
        getattr(tracker, name)(*arguments)
    tracker.start("a").end()
    with pytest.raises(ConflictError, match="has ended"):
        getattr(tracker, name)(*arguments)
