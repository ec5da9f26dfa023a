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
    tracker = ExperimentTracker(repo)
    try:
        return tracker.best_commit(metric, mode)
    except ExperimentNotFoundError as error:
        raise RefNotFoundError(f"best:{rest}: {error.message}", hint=error.hint) from error
    except UsageError as error:
        if not tracker.find_best(metric, "min", limit=1):
            hint = "'coral exp list' lists the runs; the direction after a second colon is min or max"
            raise RefNotFoundError(f"best:{rest}: no run has a finite value of {metric!r}", hint=hint) from error
        raise UsageError(f"best:{rest}: {error.message}", hint=f"best:{metric}:min or best:{metric}:max") from error


def run(repo: Repository, rest: str) -> str:
    """The last commit of a run.

    Args:
        rest: an id, a unique prefix of one, or a name (then the newest run of that name that has a commit).

    Raises:
        RefNotFoundError: no such run, or it has no commit.
    """
    tracker = ExperimentTracker(repo)
    try:
        found = [tracker.get(rest)]
    except ExperimentNotFoundError as error:
        found = tracker.get_by_name(rest)
        if not found:
            raise RefNotFoundError(f"run:{rest}: no run has this id or name", hint=error.hint) from error
    commits = [one.commit_hash for one in found if one.commit_hash is not None]
    if not commits:
        raise RefNotFoundError(f"run:{rest}: the run has no commit")
    return commits[0]
