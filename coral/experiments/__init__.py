"""Experiments: runs with their parameters, metrics and artifacts, linked to the commits that came of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coral.experiments.experiment import Experiment, ExperimentMetric, ExperimentStatus
    from coral.experiments.mirror import Mirror
    from coral.experiments.query import Lineage
    from coral.experiments.results import Results
    from coral.experiments.run import Run
    from coral.experiments.seams import TrackingBackend
    from coral.experiments.tracker import ExperimentTracker

# Imported at first use: whoever asks for one name need not wait for all of them.
_HOMES = {
    "Experiment": "coral.experiments.experiment",
    "ExperimentMetric": "coral.experiments.experiment",
    "ExperimentStatus": "coral.experiments.experiment",
    "ExperimentTracker": "coral.experiments.tracker",
    "Lineage": "coral.experiments.query",
    "Mirror": "coral.experiments.mirror",
    "Results": "coral.experiments.results",
    "Run": "coral.experiments.run",
    "TrackingBackend": "coral.experiments.seams",
}

__all__ = [
    "Experiment",
    "ExperimentMetric",
    "ExperimentStatus",
    "ExperimentTracker",
    "Lineage",
    "Mirror",
    "Results",
    "Run",
    "TrackingBackend",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'coral.experiments' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
