"""Whether what is recorded of runs can still be read, all of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CoralError, ExperimentNotFoundError
from coral.experiments.index import ID
from coral.experiments.tracker import ExperimentTracker

if TYPE_CHECKING:
    from coral.repository import Repository

_RUNS = "experiments"


class DamagedRun(NamedTuple):
    """A run of which something is lost, and what."""

    experiment_id: str
    message: str


def run_ids(repo: Repository) -> list[str]:
    """The ids of all runs that have a file, damaged or not."""
    names = (name.partition(".") for name in repo.storage.names(_RUNS))
    return sorted(stem for stem, _, kind in names if kind == "json" and ID.fullmatch(stem))


def damaged_runs(repo: Repository) -> Iterator[DamagedRun]:
    """The runs whose fields, points, journal or artifacts cannot be read, or not all of them."""
    tracker = ExperimentTracker(repo)
    for run in run_ids(repo):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                _read_all(tracker, run)
            except ExperimentNotFoundError:
                continue  # deleted meanwhile
            except CoralError as error:
                yield DamagedRun(run, error.message)
                continue
        yield from (DamagedRun(run, str(one.message)) for one in told)


def _read_all(tracker: ExperimentTracker, run: str) -> None:
    found = tracker.get(run)
    len(found.metrics)
    for artifact in found.list_artifacts():
        found.load_artifact(artifact.name)
