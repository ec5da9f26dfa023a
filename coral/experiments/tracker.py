"""The tracker: starts runs, hands them what is logged, and answers questions about all of them."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from coral import forks, threads
from coral.errors import ConflictError, UsageError
from coral.experiments import endings, starting
from coral.experiments.columns import Mode
from coral.experiments.events import MAX_RUN_BYTES, read_objective
from coral.experiments.experiment import Experiment, ExperimentStatus, Owner
from coral.experiments.local.backend import LocalBackend
from coral.experiments.logs import Logs, as_labels, as_objective, as_params, as_text
from coral.experiments.mirror import Mirror, Mirrors
from coral.experiments.questions import Questions, labels_and_tags
from coral.experiments.results import Results
from coral.experiments.run import Run
from coral.experiments.scalars import bounded, merge, stored
from coral.experiments.seams import TrackingBackend
from coral.experiments.starting import group_path, new_run
from coral.live import Live
from coral.verbs import signals

if TYPE_CHECKING:
    from pathlib import Path

    from coral.ids import ContentRef
    from coral.objects import ChunkStore
    from coral.repository import Repository


class ExperimentTracker(Live, Logs, Questions):
    """Records runs of a repository, and finds them again.

    One tracker has at most one active run; runs at the same time take a tracker and a Repository each.

    Args:
        repo: the repository; its commits are linked to the run that is active when they are made.
        backend: where runs are kept; None takes files in the repository.
        mirrors: what follows the runs that this tracker starts or attaches to; see ``experiments.Mirror``.

    Raises:
        UsageError: the backend, or a mirror, is none.
    """

    def __init__(
        self, repo: Repository, *, backend: TrackingBackend | None = None, mirrors: Iterable[Mirror] = ()
    ) -> None:
        self.repo = repo
        self._backend = LocalBackend(repo.folder, _LazyStore(repo.path, repo)) if backend is None else _checked(backend)
        self._mirrors = Mirrors(mirrors)
        self._run: Run | None = None
        self._starting = forks.lock()

    # -- live runs

    @property
    def active(self) -> Run | None:
        """The run that ``log`` goes to; None when none is active."""
        run = self._run
        return run if run is not None and run.is_open else None

    def start(
        self,
        name: str,
        description: str | None = None,
        params: Mapping[str, object] | None = None,
        tags: Iterable[str] | None = None,
        *,
        group: str | None = None,
        labels: Mapping[str, str] | None = None,
        objective: Mapping[str, Mode] | None = None,
        notes: str | None = None,
        owner: Owner = "process",
    ) -> Run:
        """Start a run. It ends with ``end``, or with the process; ``sys.exit(1)`` leaves it COMPLETED, which a ``with``
        block around the training would not.

        Args:
            params: may be nested; queries name the inner ones by dotted path. Any value will do: what has no place in
                JSON is kept by its repr.
            tags: of a mapping, each key and value is a label.
            group: a path such as ``vision/resnet``.
            objective: which way is better, by metric: ``{"val_loss": "min"}``.
            owner: ``shell`` for a run that outlives this process and stays RUNNING until it is ended.

        Raises:
            ConflictError: this tracker has an active run.
            UsageError: an argument makes no sense.
        """
        labels, tags = labels_and_tags(labels, tags)
        run = new_run(name, {} if params is None else as_params(params), tags, owner)
        run.group = group_path(group)
        run.description, run.notes = as_text(description, "description"), as_text(notes, "notes")
        run.labels = {key: str(value) for key, value in as_labels(labels).items()}
        run.objective = read_objective(as_objective({} if objective is None else objective))
        return self._start(lambda: self._begin(run, None))

    run = start  # reads better in ``with tracker.run("name") as run:``

    def resume(
        self,
        experiment_id: str,
        *,
        name: str | None = None,
        params: Mapping[str, object] | None = None,
        owner: Owner = "process",
    ) -> Run:
        """Start a child of a run that has ended, on a branch of its own at the parent's last linked commit.

        ``repo.load_into(model, run.start_commit, optimizer)`` brings that commit back. HEAD of the shell stays.

        Args:
            name: the parent's by default.
            params: laid over the parent's.
            owner: as for :meth:`start`.

        Raises:
            ConflictError: the parent is still running, or this tracker has an active run.
        """
        parent = self.get(experiment_id)
        if not parent.status.is_final:
            raise ConflictError(f"run {parent.experiment_id} is still running", hint="end it first")
        before = {key: stored(value) for key, value in parent.params.items()}
        changed = merge(before, {} if params is None else as_params(params))
        run = new_run(name or parent.name, bounded(changed, MAX_RUN_BYTES), parent.tags, owner)
        run.description, run.group = parent.description, parent.group
        run.labels, run.objective = dict(parent.labels), dict(parent.objective)
        run.parent_experiment = parent.experiment_id
        return self._start(lambda: self._begin(run, parent.commit_hash))

    def attach(self, experiment_id: str) -> Run:
        """Go on with a run of the shell from this process; ``close()``, or leaving a ``with``, only lets go of it.

        Until then the repository's commits land on the run's branch, and are linked to it.

        Raises:
            ConflictError: it has ended, a process owns it, or this tracker has an active run.
        """
        return self._start(lambda: self._attach(experiment_id))

    def _attach(self, experiment_id: str) -> Run:
        experiment, sink = self._backend.attach(experiment_id)
        run = self._run = Run(experiment, self._mirrors.follow(experiment, sink), self.repo)
        previous = self.repo.branch
        if experiment.branch != previous and experiment.branch in self.repo.branches():
            self.repo.pin(experiment.branch)
            starting.unpin_at_end(run, previous)
        return run

    def end(
        self, commit_hash: str | None = None, status: ExperimentStatus | str = ExperimentStatus.COMPLETED
    ) -> Experiment:
        """End the active run; see :meth:`Run.end`."""
        return self._target().end(commit_hash, status)

    def fail(self, error_message: str | None = None) -> Experiment | None:
        """End the active run as FAILED; see :meth:`Run.fail`.

        Where none was started it warns, and returns None: what kept it from starting is the error to be seen.
        """
        run = self._to_be_ended("failed")
        return None if run is None else run.fail(error_message)

    def cancel(self, reason: str | None = None) -> Experiment | None:
        """End the active run as CANCELLED; where none was started it warns, as :meth:`fail` does."""
        run = self._to_be_ended("cancelled")
        return None if run is None else run.cancel(reason)

    # -- the trash

    def delete(self, experiment_id: str) -> None:
        """Move a run to the trash; ``restore`` brings it back. Raises ConflictError while it runs."""
        self._backend.delete(experiment_id)

    def restore(self, experiment_id: str) -> Experiment:
        """Take a run back out of the trash. Raises ExperimentNotFoundError, AlreadyExistsError."""
        return self.get(self._backend.restore(experiment_id))

    def trash(self) -> Results[Experiment]:
        """The runs in the trash."""
        return Results(self._backend.trash())

    # -- inside

    @property
    def _point(self) -> Callable[[str, float, int | None], int]:
        return (self._run or self._target())._point

    def _target(self) -> Run:
        if self._run is None:
            raise ConflictError("no run is active", hint="start one: tracker.start('name')")
        return self._run

    def _to_be_ended(self, how: str) -> Run | None:
        if self._run is None:
            threads.warn(f"no run was started, so none is {how}")
        return self._run

    def _check_free(self) -> None:
        active = self.active
        if active is not None:
            raise ConflictError(
                f"run {active.name} ({active.experiment_id}) is active",
                hint="end it first, or use another ExperimentTracker (and Repository) for a run at the same time",
            )

    def _start(self, begin: Callable[[], Run]) -> Run:
        """Have a run begin; one whose start is interrupted is not left behind."""
        signals.catch()
        begun: list[Run] = []
        try:
            return threads.undisturbed(lambda: self._start_alone(begin, begun))
        except BaseException as error:
            for run in begun:
                run.close() if run.owner == "shell" else run.finish(*endings.describe(error))
            raise
        finally:
            signals.let_go()

    def _start_alone(self, begin: Callable[[], Run], begun: builtins.list[Run]) -> Run:
        with self._starting:
            self._check_free()
            begun.append(begin())
            return begun[0]

    def _begin(self, experiment: Experiment, commit_hash: str | None) -> Run:
        previous = self.repo.branch
        sink = starting.create(self.repo, self._backend, experiment, commit_hash)
        run = self._run = Run(experiment, self._mirrors.follow(experiment, sink), self.repo)
        starting.see_to_its_end(run, previous)
        return run


def _checked(backend: TrackingBackend) -> TrackingBackend:
    if isinstance(backend, TrackingBackend) and not isinstance(backend, type):
        return backend
    raise UsageError(
        f"{backend!r} is no backend of experiments", hint="an object with the methods of experiments.TrackingBackend"
    )


class _LazyStore(Live):
    """The repository's chunk store, opened when an artifact needs it; in another process, the repository too."""

    def __init__(self, path: Path, repo: Repository | None = None) -> None:
        self._path = path
        self._repo = repo

    @property
    def _store(self) -> ChunkStore:
        if self._repo is None:
            from coral.repository import Repository

            self._repo = Repository(self._path)
        return self._repo.store

    def held(self) -> contextlib.AbstractContextManager[None]:
        return self._store.held()

    def put_bytes(self, data: bytes) -> ContentRef:
        return self._store.put_bytes(data)

    def get_bytes(self, ref: ContentRef, nbytes: int) -> bytes:
        return self._store.get_bytes(ref, nbytes)

    def __reduce__(self) -> tuple[type[_LazyStore], tuple[Path]]:  # type: ignore[override]
        return type(self), (self._path,)
