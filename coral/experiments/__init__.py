"""Experiments: runs with their parameters, metrics and artifacts, linked to the commits that came of them."""

from __future__ import annotations

from coral.experiments.experiment import Experiment, ExperimentMetric, ExperimentStatus
from coral.experiments.mirror import Mirror
from coral.experiments.query import Lineage
from coral.experiments.results import Results
from coral.experiments.run import Run
from coral.experiments.seams import TrackingBackend
from coral.experiments.tracker import ExperimentTracker

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
