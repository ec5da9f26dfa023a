"""The seams of the experiments: where runs are kept, and what a run needs of its repository.

A backend promises:

* what :meth:`RunSink.point` and :meth:`RunSink.append` were given survives the death of the process, unless
  ``degraded`` says that the storage refuses it; neither ever raises because of the storage;
* :meth:`TrackingBackend.load` tells the truth about runs whose process died;
* queries show what was logged up to the call, by any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from coral.experiments.columns import MetricColumns, Mode
from coral.experiments.events import Event
from coral.experiments.experiment import Experiment, ExperimentStatus, LinkKind
from coral.experiments.scalars import Json


@dataclass(frozen=True, slots=True)
class Query:
    """Which runs: every condition that is set must hold; ``tags`` are all required; ``group`` takes those below it."""

    status: frozenset[ExperimentStatus] = frozenset()
    tags: frozenset[str] = frozenset()
    branch: str | None = None
    group: str | None = None
    name: str | None = None

    def fits(self, run: Experiment) -> bool:
        """Whether this run is meant."""
        below = None if self.group is None else self.group.rstrip("/") + "/"
        return (
            (not self.status or run.status in self.status)
            and (self.branch is None or run.branch == self.branch)
            and (self.name is None or run.name == self.name)
            and (below is None or ((run.group or "") + "/").startswith(below))
            and self.tags <= set(run.tags)
        )


@dataclass(frozen=True, slots=True)
class Best:
    """A run's best point of a metric, and its commit with how it was found."""

    experiment: Experiment
    value: float
    step: int | None
    commit_hash: str | None
    link: LinkKind | None


@dataclass(slots=True)
class Totals:
    """What there is, in numbers."""

    by_status: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)
    points: int = 0


class RunSink(Protocol):
    """Where one live run's events go."""

    @property
    def degraded(self) -> bool:
        """Whether something logged is only in memory yet."""

    def point(self, name: str, value: float, step: int | None) -> int:
        """Record one metric at the current time; returns that, in milliseconds since 1970."""

    def append(self, event: Mapping[str, Json], *, durable: bool = False, holding: ExitStack | None = None) -> int:
        """Record an event at the current time; returns that, in milliseconds since 1970.

        Args:
            durable: a power cut cannot take it back.
            holding: what is held until others can read the event. Where it waits in memory the sink takes that over,
                until the storage has taken the event, or the sink is closed and it never will.
        """

    def history(self) -> MetricColumns:
        """The points recorded so far."""

    def finish(self, event: Event) -> Experiment:
        """Record the end and close; returns the run as it is kept."""

    def close(self) -> None:
        """Stop recording without ending the run."""


@runtime_checkable
class TrackingBackend(Protocol):
    """Where runs are kept."""

    def create(self, experiment: Experiment) -> RunSink:
        """Record a run that starts now; durable when it returns, or degraded."""

    def attach(self, experiment_id: str) -> tuple[Experiment, RunSink]:
        """Go on recording a run that has no living owner. Raises ConflictError when it has one, or has ended."""

    def resolve(self, experiment_id: str) -> str:
        """The id of the run that an id, the first digits of one, or a name means; see ``lookup.find``.

        Every verb here that takes an id takes these too. Raises ExperimentNotFoundError, UsageError.
        """

    def load(self, experiment_id: str) -> Experiment:
        """A run. Raises ExperimentNotFoundError, UsageError, CorruptionError."""

    def select(self, query: Query) -> list[str]:
        """The ids of runs, newest first."""

    def best(self, metric: str, mode: Mode | None, query: Query, limit: int | None) -> list[Best]:
        """The runs with the best values, best first. Raises UsageError when ``mode`` is None and no objective says."""

    def children(self, experiment_id: str) -> list[str]:
        """The ids of the runs that resumed this one, oldest first."""

    def pinned_to(self, commit_hash: str) -> list[str]:
        """The ids of the runs whose final commit this is."""

    def totals(self) -> Totals:
        """What there is, in numbers."""

    def delete(self, experiment_id: str) -> None:
        """Move a run to the trash. Raises ConflictError while it runs."""

    def restore(self, experiment_id: str) -> str:
        """Take a run back out of the trash; returns its id. Raises ExperimentNotFoundError, AlreadyExistsError."""

    def trash(self) -> list[Experiment]:
        """The runs in the trash."""
