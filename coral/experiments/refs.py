"""``best:METRIC[:min|max]`` and ``run:ID``: names for commits that the repository asks the experiments about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coral.errors import ExperimentNotFoundError, RefNotFoundError, UsageError
from coral.experiments.experiment import MODES
from coral.experiments.tracker import ExperimentTracker

if TYPE_CHECKING:
    from coral.repository import Repository


def best(repo: Repository, rest: str) -> str:
    """The commit of the best step of the best run.

    Args:
        rest: ``val_loss``, or ``val_loss:min``; without a direction the runs' declared objective counts.

    Raises:
        RefNotFoundError: no run logged the metric, or no commit is linked to its best step.
        UsageError: nothing says which way is better.
    """
    metric, _, direction = rest.rpartition(":")
    mode = MODES.get(direction) if metric else None
    if mode is None:
        metric = rest
    try:
        return ExperimentTracker(repo).best_commit(metric, mode)
    except ExperimentNotFoundError as error:
        raise RefNotFoundError(f"best:{rest}: {error.message}", hint=error.hint) from error
    except UsageError as error:
        raise UsageError(f"best:{rest}: {error.message}", hint=f"best:{metric}:min or best:{metric}:max") from error


def run(repo: Repository, rest: str) -> str:
    """The last commit of a run.

    Args:
        rest: an id, the first digits of one, or a name that one run has.

    Raises:
        RefNotFoundError: no such run, or it has no commit.
        UsageError: it could be several runs.
    """
    try:
        found = ExperimentTracker(repo).get(rest)
    except ExperimentNotFoundError as error:
        raise RefNotFoundError(f"run:{rest}: {error.message}", hint=error.hint) from error
    if found.commit_hash is None:
        raise RefNotFoundError(f"run:{rest}: the run has no commit")
    return found.commit_hash
