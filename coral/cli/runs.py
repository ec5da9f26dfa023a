"""Which run a command means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_run
from coral.cli.session import Session
from coral.errors import ConflictError, ExperimentNotFoundError, StorageError, UsageError

if TYPE_CHECKING:
    from coral.experiments import Experiment, ExperimentTracker, Run

STATUS = click.Choice(("pending", "running", "completed", "failed", "cancelled"), case_sensitive=False)

run_option = click.option("--run", metavar="RUN", shell_complete=complete_run, help="The run, if not CORAL_RUN.")


def tracker_of(session: Session) -> ExperimentTracker:
    """The experiments of the repository that the working folder is in."""
    from coral.experiments import ExperimentTracker

    return ExperimentTracker(session.open())


def named(session: Session, given: str | None) -> str | None:
    """The run that is named: the one given, else CORAL_RUN's. Raises UsageError for a name that is empty."""
    if given is not None and not given.strip():
        raise UsageError(
            "the run's name is empty", hint="a variable that is not set, maybe; 'coral exp list' lists runs"
        )
    return given or session.run


def attach(session: Session, given: str | None) -> Run:
    """Open the run that is meant, to log to it or to end it.

    Raises:
        ExperimentNotFoundError: there is none.
        ConflictError: it has ended, a process owns it, or nothing says which of several is meant.
        UsageError: what says so could be several.
    """
    tracker = tracker_of(session)
    wanted = named(session, given)
    if wanted is not None:
        return tracker.attach(wanted)
    running = [run for run in tracker.running() if run.owner == "shell"]
    if not running:
        raise ExperimentNotFoundError("no run is open in this repository", hint="start one: 'coral exp start NAME'")
    if len(running) > 1:
        listed = ", ".join(f"{run.experiment_id} ({run.name})" for run in running[:5])
        raise ConflictError(
            f"{len(running)} runs are open: {listed}", hint="say which with --run RUN, or export CORAL_RUN"
        )
    return tracker.attach(running[0].experiment_id)


def meant(session: Session, given: str | None) -> Experiment:
    """The run to look at: the one given, else CORAL_RUN's, else the newest one running, else the newest.

    Raises ExperimentNotFoundError, UsageError.
    """
    tracker = tracker_of(session)
    wanted = named(session, given)
    if wanted is not None:
        return tracker.get(wanted)
    found = tracker.running()[:1] or tracker.list(limit=1)
    if not found:
        raise ExperimentNotFoundError("there is no run in this repository", hint="start one: 'coral exp start NAME'")
    return found[0]


def check_written(run: Run) -> None:
    """Raise StorageError when a run that was just started is on no disk: the process that remembers it ends now."""
    if run.degraded or not run.is_open:
        raise StorageError(f"the run {run.name} could not be written")
