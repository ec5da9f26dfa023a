"""How a run starts: what it is at first, the branch that its commits land on, and what ends it with the process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from coral.errors import CoralError, UsageError
from coral.experiments import branches, endings
from coral.experiments.experiment import Experiment, ExperimentStatus, Owner, ParameterChange, from_ms, now, to_ms
from coral.experiments.logs import as_tags
from coral.experiments.redaction import redact_text
from coral.experiments.run import Run
from coral.experiments.scalars import MAX_NAME, Json, shown, text
from coral.experiments.seams import Query, RunSink, TrackingBackend

if TYPE_CHECKING:
    from coral.repository import Repository


def new_run(name: str, params: dict[str, Json], tags: Iterable[str] | None, owner: Owner) -> Experiment:
    """A run that starts now. Raises UsageError for what is no name, no tags, or no owner."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise UsageError(f"{name!r} is not a run's name", hint="one line of 1 to 200 printable characters")
    if owner not in ("process", "shell"):
        raise UsageError(f"owner {owner!r} is neither 'process' nor 'shell'")
    time, kept = from_ms(to_ms(now())), shown(params)
    return Experiment(
        experiment_id=os.urandom(6).hex(),
        name=redact_text(name, "name"),
        status=ExperimentStatus.RUNNING,
        created_at=time,
        started_at=time,
        params=kept,
        tags=as_tags(tags or ()),
        environment=environment(),
        owner=owner,
        parameter_history=[ParameterChange(time, kept)] if kept else [],
    )


def environment() -> dict[str, Json]:
    """Where this process runs."""
    return {
        "hostname": os.uname().nodename,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "coral": getattr(sys.modules.get("coral"), "__version__", None),
    }


def group_path(group: str | None) -> str | None:
    """A group as it is kept. Raises UsageError for what is no path."""
    if group is None:
        return None
    parts = [part for part in group.split("/") if part] if isinstance(group, str) else []
    if not parts or not group.isprintable() or len(group) > MAX_NAME:
        raise UsageError(f"{text(group, MAX_NAME)!r} is not a group", hint="a path such as vision/resnet")
    return "/".join(parts)


def create(repo: Repository, backend: TrackingBackend, experiment: Experiment, commit_hash: str | None) -> RunSink:
    """Give a run its branch, pin the repository to that, and have the run recorded.

    Args:
        commit_hash: where the branch starts; None goes on with the repository's, if no other run does.
    """
    with branches.one_at_a_time(repo):
        experiment.branch = _claim(repo, backend, experiment, commit_hash)
        experiment.start_commit = commit_hash or _tip(repo)
        experiment.code = asdict(repo.code) if repo.code is not None else None
        return backend.create(experiment)


def see_to_its_end(run: Run, previous: str | None) -> None:
    """Have the process end its run, and the repository go back to the branch before it.

    A run of the shell whose record the disk refuses is let go of at once: nobody would write it later.
    """
    if run.owner == "process":
        endings.watch(run)
        run.at_end(lambda: endings.forget(run))
        if run.branch != previous:
            unpin_at_end(run, previous)
    elif run.degraded:
        run.close()


def unpin_at_end(run: Run, branch: str | None) -> None:
    """Have the repository go back to a branch once the run has ended or was let go of."""

    def unpin() -> None:
        with contextlib.suppress(CoralError):  # the branch was deleted meanwhile
            run.repo.pin(branch)

    run.at_end(unpin)


def _claim(repo: Repository, backend: TrackingBackend, experiment: Experiment, commit_hash: str | None) -> str | None:
    own_name = branches.name_for(experiment.name, experiment.experiment_id)
    if commit_hash is not None:
        return branches.start_at(repo, own_name, commit_hash)
    if experiment.owner == "shell":
        return repo.branch
    if any(isinstance(run, Run) and run.repo is repo for run in endings.live()):
        return repo.branch  # one Repository object commits to one branch
    return branches.claim(repo, own_name, lambda branch: bool(backend.select(_running_on(branch))))


def _tip(repo: Repository) -> str | None:
    try:
        return repo.resolve("HEAD")
    except CoralError:
        return None


def _running_on(branch: str) -> Query:
    return Query(status=frozenset({ExperimentStatus.RUNNING}), branch=branch)
