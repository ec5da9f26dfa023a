"""Whether what is recorded of runs can still be read, all of it but the bytes of their artifacts.

Those are chunks as others are, and are checked with them (:mod:`coral.verbs.care.fsck`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CoralError, ExperimentNotFoundError
from coral.experiments.local.backend import LocalBackend
from coral.verbs.runs import run_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from coral.experiments.experiment import Experiment
    from coral.repository import Repository


class DamagedRun(NamedTuple):
    """A run of which something is lost, and what."""

    experiment_id: str
    message: str


def damaged_runs(repo: Repository) -> Iterator[DamagedRun]:
    """The runs whose fields, points or journal cannot be read, or not all of them; those in the trash come last."""
    backend = LocalBackend(repo.folder)
    for run_id in run_ids(repo.folder):
        yield from _damage(run_id, backend.load)
    for trashed in backend.trashed():
        yield from _damage(trashed, backend.load_trashed)


def _damage(run_id: str, load: Callable[[str], Experiment]) -> Iterator[DamagedRun]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            len(load(run_id).metrics)
        except ExperimentNotFoundError:
            return  # deleted or restored meanwhile
        except CoralError as error:
            yield DamagedRun(run_id, error.message)
            return
    yield from (DamagedRun(run_id, str(one.message)) for one in told)
