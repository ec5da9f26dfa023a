"""The tracker: starts runs, hands them what is logged, and answers questions about all of them."""

from __future__ import annotations

import builtins
import contextlib
import operator
import os
import platform
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from coral import forks, threads
from coral.errors import ConflictError, CoralError, CorruptionError, ExperimentNotFoundError, UsageError
from coral.experiments import branches, endings
from coral.experiments.columns import Mode
from coral.experiments.events import MAX_RUN_BYTES, read_objective
from coral.experiments.experiment import (
    Artifact,
    Experiment,
    ExperimentStatus,
    Owner,
    ParameterChange,
    as_status,
    from_ms,
    now,
    to_ms,
)
from coral.experiments.local.backend import LocalBackend
from coral.experiments.lookup import near
from coral.experiments.query import Lineage, as_result, compare, lineage
from coral.experiments.redaction import redact_text
from coral.experiments.results import Results
from coral.experiments.run import Run, as_labels, as_objective, as_params, as_tags, as_text
from coral.experiments.scalars import MAX_NAME, Json, bounded, class_name, merge, metric_name, shown, stored, text
from coral.experiments.seams import Query, TrackingBackend
from coral.live import Live
from coral.verbs import signals

if TYPE_CHECKING:
    from pathlib import Path

    from coral.ids import ContentRef
    from coral.objects import ChunkStore
    from coral.repository import Repository
    from coral.verbs.weights import Weights

Status = ExperimentStatus | str | Iterable[ExperimentStatus | str]


class ExperimentTracker(Live):
    """Records runs of a repository, and finds them again.

    One tracker has at most one active run; runs at the same time take a tracker and a Repository each.

    Args:
        repo: the repository; its commits are linked to the run that is active when they are made.
        backend: where runs are kept; None takes files in the repository.

    Raises:
        UsageError: the backend is none.
    """

    def __init__(self, repo: Repository, *, backend: TrackingBackend | None = None) -> None:
        self.repo = repo
        self._backend = LocalBackend(repo.folder, _LazyStore(repo.path, repo)) if backend is None else _checked(backend)
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
        labels, tags = _labels_and_tags(labels, tags)
        run = _new_run(name, {} if params is None else as_params(params), tags, owner)
        run.group = _group(group)
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
        run = _new_run(name or parent.name, bounded(changed, MAX_RUN_BYTES), parent.tags, owner)
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
        run = self._run = Run(experiment, sink, self.repo)
        previous = self.repo.branch
        if experiment.branch != previous and experiment.branch in self.repo.branches():
            self.repo.pin(experiment.branch)
            run.at_end(lambda: self._unpin(previous))
        return run

    def running(self) -> Results[Experiment]:
        """The runs that are running now, newest first."""
        return self.list(status=ExperimentStatus.RUNNING)

    # -- logging to the active run; see Run

    def log(
        self,
        metric: str | Mapping[str, object],
        value: object = None,
        step: int | None = None,
        *,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Log one metric, or several given as a mapping, to the active run; see :meth:`Run.log`."""
        (self._run or self._active()).log(metric, value, step, metadata=metadata)

    def log_metrics(
        self, metrics: Mapping[str, object], step: int | None = None, *, metadata: Mapping[str, object] | None = None
    ) -> None:
        """Log several metrics at once to the active run."""
        self._active().log_metrics(metrics, step, metadata=metadata)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Lay parameters over those of the active run."""
        self._active().log_params(params)

    def add_tags(self, tags: Iterable[str]) -> None:
        """Add tags to the active run; of a mapping, each key and value is a label."""
        self._active().add_tags(tags)

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags from the active run."""
        self._active().remove_tags(tags)

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """Set key-value labels of the active run; None removes one."""
        self._active().set_labels(labels)

    def set_notes(self, notes: str | None) -> None:
        """Replace the notes of the active run."""
        self._active().set_notes(notes)

    def set_objective(self, objective: Mapping[str, Mode]) -> None:
        """Declare which way is better, by metric, for the active run."""
        self._active().set_objective(objective)

    def log_artifact(self, path_or_object: object, name: str | None = None) -> Artifact | None:
        """Keep a file or an object with the active run; see :meth:`Run.log_artifact`."""
        return self._active().log_artifact(path_or_object, name)

    def log_text(self, text: str, name: str) -> Artifact | None:
        """Keep a text with the active run."""
        return self._active().log_text(text, name)

    def log_dict(self, data: object, name: str) -> Artifact | None:
        """Keep JSON-able data with the active run."""
        return self._active().log_dict(data, name)

    def log_numpy_array(self, array: object, name: str) -> Artifact | None:
        """Keep an array or a tensor with the active run."""
        return self._active().log_numpy_array(array, name)

    def log_table(self, table: object, name: str) -> Artifact | None:
        """Keep a table with the active run."""
        return self._active().log_table(table, name)

    def log_figure(self, figure: object, name: str) -> Artifact | None:
        """Keep a figure with the active run."""
        return self._active().log_figure(figure, name)

    log_artifact_data = log_dict
    log_dataframe = log_table
    log_plot = log_figure

    def end(
        self, commit_hash: str | None = None, status: ExperimentStatus | str = ExperimentStatus.COMPLETED
    ) -> Experiment:
        """End the active run; see :meth:`Run.end`."""
        return self._active().end(commit_hash, status)

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

    # -- questions

    def get(self, experiment_id: str) -> Experiment:
        """A run by its id, by the first digits of it (four or more), or by its name, if no other run is called so.

        So are runs named wherever an id is taken. Raises ExperimentNotFoundError; UsageError when it could be several.
        """
        return self._backend.load(experiment_id)

    def get_by_name(self, name: str) -> Results[Experiment]:
        """All runs of a name, newest first. Raises UsageError for what is no text."""
        if not isinstance(name, str):
            raise UsageError(f"{text(name, MAX_NAME)!r} is not a run's name")
        return self.list(name=name)

    def list(
        self,
        status: Status | None = None,
        tags: Iterable[str] | None = None,
        branch: str | None = None,
        limit: int | None = None,
        *,
        name: str | None = None,
        group: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Results[Experiment]:
        """The runs for which every condition holds, newest first.

        Args:
            status: one, or several.
            tags: all of them; of a mapping, each key and value is a label.
            group: the group's own and those of the groups below it.
            labels: each with this value.
        """
        labels, tags = _labels_and_tags(labels, tags)
        ids = self._backend.select(_query(status, tags, branch, group, name))
        most = _limit(limit)
        return Results(islice((run for run in self._loaded(ids) if _is_labelled(run, labels)), most))

    def compare(self, experiment_ids: Sequence[str], metrics: Sequence[str] | None = None) -> dict[str, object]:
        """Runs side by side: ``experiments``, ``metrics``, and the ``params`` that differ; see ``query.compare``.

        Args:
            metrics: None takes all of them; a lone string is one.

        Raises:
            ExperimentNotFoundError: no such run, or none of these logged one of the metrics; the hint has near misses.
        """
        if isinstance(experiment_ids, str) or not isinstance(experiment_ids, Iterable):
            raise UsageError("compare() takes several ids")
        if metrics is not None:
            metrics = [metrics] if isinstance(metrics, str) or not isinstance(metrics, Iterable) else [*metrics]
            metrics = [*map(metric_name, metrics)]
        runs = [self.get(one) for one in experiment_ids]
        known = {name for run in runs for name in run.history.series}
        for name in metrics or ():
            if name not in known:
                raise _unlogged("none of these runs", name, known)
        return compare(runs, metrics)

    def find_best(
        self,
        metric: str,
        mode: Mode | None = None,
        status: Status | None = None,
        tags: Iterable[str] | None = None,
        branch: str | None = None,
        limit: int | None = 10,
        *,
        group: str | None = None,
        name: str | None = None,
    ) -> Results[dict[str, object]]:
        """The runs with the best values of a metric, best first, each with the commit of its best step.

        Args:
            mode: ``min`` or ``max``; None takes what the runs declared as their objective.
            status: None takes all of them, failed and running ones too.
            tags: all of them; of a mapping, each key and value is a label.

        Returns:
            dicts of ``experiment_id``, ``name``, ``best_value``, ``best_step``, ``commit_hash``, ``link`` (``exact``,
            ``inferred``, ``before``; ``run`` for the run's own commit, when none is linked to that step; None without
            a commit), ``params``, ``tags``, ``branch``, ``status``.

        Raises:
            ExperimentNotFoundError: ``mode`` is None and no run logged the metric; the hint has near misses.
            UsageError: ``mode`` is None and no run declared an objective.
        """
        labels, tags = _labels_and_tags(None, tags)
        query, most = _query(status, tags, branch, group, name), _limit(limit)
        try:
            best = self._backend.best(metric, mode, query, None if labels else most)
            return Results(map(as_result, islice((one for one in best if _is_labelled(one.experiment, labels)), most)))
        except UsageError:
            if mode is None:  # which way a metric is better is no question when nobody logged it
                self.check_logged(metric)
            raise

    def check_logged(self, metric: str) -> None:
        """Raise ExperimentNotFoundError, with near misses, when no run has logged a metric."""
        known = self._backend.totals().metrics
        if metric not in known:
            raise _unlogged("no run", metric, known)

    def load_best(
        self,
        metric: str,
        mode: Mode | None = None,
        *,
        framework: str = "numpy",
        status: Status | None = None,
        tags: Iterable[str] | None = None,
        branch: str | None = None,
    ) -> Weights:
        """The weights of the best step of the best run.

        Raises:
            ExperimentNotFoundError: no run logged the metric, or the best one made no commit.
        """
        return self.repo.get_all_weights(self.best_commit(metric, mode, status, tags, branch), framework=framework)

    def best_commit(
        self,
        metric: str,
        mode: Mode | None = None,
        status: Status | None = None,
        tags: Iterable[str] | None = None,
        branch: str | None = None,
    ) -> str:
        """The commit of the best step of the best run; warns when none is linked to that step, and the run's own stands
        in for it. Raises ExperimentNotFoundError."""
        best = self.find_best(metric, mode, status, tags, branch, limit=1)
        if not best:
            self.check_logged(metric)
            raise ExperimentNotFoundError(f"no run has a finite value of {metric!r}", hint="coral exp list")
        commit, link, run, step = (best[0][key] for key in ("commit_hash", "link", "experiment_id", "best_step"))
        if commit is None:
            raise ExperimentNotFoundError(
                f"no commit is linked to the best {metric!r}: run {run}, step {step}",
                hint="commit(step=...) or save(step=...) while the run is active links the weights to the step",
            )
        if link == "run":
            threads.warn(
                f"{str(commit)[:10]} is the commit of run {run} as a whole: none is linked to its best {metric!r}"
                + ("" if step is None else f", at step {step}")
            )
        return str(commit)

    def runs_for(self, commit: str) -> Results[Experiment]:
        """The runs that a commit came of: the one that made it, and those that were ended with it."""
        commit_hash = self.repo.resolve(commit)
        maker = self.repo.history.commit(commit_hash).run_id
        ids = dict.fromkeys([*([maker] if maker else []), *self._backend.pinned_to(commit_hash)])
        return Results(self._loaded(ids))

    def lineage(self, experiment_id: str) -> Lineage:
        """A run's family: whom it resumed, and who resumed it. ``str()`` draws it."""
        family = lineage(self._backend.resolve(experiment_id), self._load, self._backend.children)
        if family is None:
            raise ExperimentNotFoundError(f"run {experiment_id!r} cannot be read")
        return family

    def get_summary(self) -> dict[str, object]:
        """``total_experiments``, ``by_status``, ``unique_names``, ``branches``, ``total_metrics_logged``."""
        totals = self._backend.totals()
        return {
            "total_experiments": sum(totals.by_status.values()),
            "by_status": {str(status): totals.by_status.get(str(status), 0) for status in ExperimentStatus},
            "unique_names": len(totals.names),
            "branches": sorted(totals.branches),
            "total_metrics_logged": totals.points,
        }

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

    def _active(self) -> Run:
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

    def _begin(self, experiment: Experiment, commit: str | None) -> Run:
        previous = self.repo.branch
        with branches.one_at_a_time(self.repo):
            experiment.branch = self._claim(experiment, commit)
            experiment.start_commit = commit or self._tip()
            experiment.code = asdict(self.repo.code) if self.repo.code is not None else None
            sink = self._backend.create(experiment)
        run = self._run = Run(experiment, sink, self.repo)
        if experiment.owner == "process":
            endings.watch(run)
            run.at_end(lambda: endings.forget(run))
            if experiment.branch != previous:
                run.at_end(lambda: self._unpin(previous))
        elif sink.degraded:
            run.close()
        return run

    def _claim(self, experiment: Experiment, commit: str | None) -> str | None:
        own_name = branches.name_for(experiment.name, experiment.experiment_id)
        if commit is not None:
            return branches.start_at(self.repo, own_name, commit)
        if experiment.owner == "shell":
            return self.repo.branch
        if any(isinstance(run, Run) and run.repo is self.repo for run in endings.live()):
            return self.repo.branch  # one Repository object commits to one branch
        return branches.claim(self.repo, own_name, lambda branch: bool(self._backend.select(_running_on(branch))))

    def _tip(self) -> str | None:
        try:
            return self.repo.resolve("HEAD")
        except CoralError:
            return None

    def _unpin(self, branch: str | None) -> None:
        with contextlib.suppress(CoralError):  # the branch was deleted meanwhile
            self.repo.pin(branch)

    def _load(self, experiment_id: str) -> Experiment | None:
        try:
            return self._backend.load(experiment_id)
        except CorruptionError as error:
            threads.warn(f"the run {experiment_id} is left out: {error.message}")
            return None
        except CoralError:
            return None

    def _loaded(self, ids: Iterable[str]) -> Iterator[Experiment]:
        """The runs that can be read; a damaged file costs only itself, and is told of."""
        return (run for one in ids if (run := self._load(one)) is not None)


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


def _new_run(name: str, params: dict[str, Json], tags: Iterable[str] | None, owner: Owner) -> Experiment:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise UsageError(f"{name!r} is not a run's name", hint="one line of 1 to 200 printable characters")
    if owner not in ("process", "shell"):
        raise UsageError(f"owner {owner!r} is neither 'process' nor 'shell'")
    time, kept = from_ms(to_ms(now())), shown(params)
    return Experiment(
        experiment_id=secrets.token_hex(6),
        name=redact_text(name, "name"),
        status=ExperimentStatus.RUNNING,
        created_at=time,
        started_at=time,
        params=kept,
        tags=as_tags(tags or ()),
        environment=_environment(),
        owner=owner,
        parameter_history=[ParameterChange(time, kept)] if kept else [],
    )


def _labels_and_tags(
    labels: Mapping[str, object] | None, tags: Iterable[str] | None
) -> tuple[dict[str, str], Iterable[str]]:
    """Labels, among them the tags that are key and value; and the tags that are not."""
    if labels is not None and not isinstance(labels, Mapping):
        raise UsageError(f"labels are a mapping, not {class_name(labels)}")
    pairs = dict[object, object](tags if isinstance(tags, Mapping) else {})
    pairs.update(labels or {})
    kept = {text(key): text(value) for key, value in pairs.items()}
    return kept, () if tags is None or isinstance(tags, Mapping) else tags


def _is_labelled(run: Experiment, labels: Mapping[str, str]) -> bool:
    return all(run.labels.get(key) == value for key, value in labels.items())


def _limit(limit: object) -> int | None:
    """How many at most. Raises UsageError for what is no number."""
    try:
        return None if limit is None else max(0, operator.index(limit))  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"limit {text(limit, MAX_NAME)!r} is not a whole number") from None


def _unlogged(who: str, metric: str, known: Iterable[str]) -> ExperimentNotFoundError:
    names = sorted(known)
    hint = near(str(metric), names) or f"logged are: {', '.join(names[:8])}"
    return ExperimentNotFoundError(f"{who} logged {metric!r}", hint=hint if names else "coral exp list")


def _environment() -> dict[str, Json]:
    return {
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "platform": sys.platform,
        "coral": getattr(sys.modules.get("coral"), "__version__", None),
    }


def _group(group: str | None) -> str | None:
    if group is None:
        return None
    parts = [part for part in group.split("/") if part] if isinstance(group, str) else []
    if not parts or not group.isprintable() or len(group) > MAX_NAME:
        raise UsageError(f"{text(group, MAX_NAME)!r} is not a group", hint="a path such as vision/resnet")
    return "/".join(parts)


def _query(
    status: Status | None, tags: Iterable[str] | None, branch: str | None, group: str | None, name: str | None
) -> Query:
    wanted: builtins.list[ExperimentStatus | str] = []
    if status is not None:
        wanted = [status] if isinstance(status, str) or not isinstance(status, Iterable) else builtins.list(status)
    for one in (branch, group, name):
        if one is not None and not isinstance(one, str):
            raise UsageError(f"{text(one, MAX_NAME)!r} is not the name of a branch, a group or a run")
    return Query(
        frozenset(map(as_status, wanted)), frozenset(as_tags(() if tags is None else tags)), branch, group, name
    )


def _running_on(branch: str) -> Query:
    return Query(status=frozenset({ExperimentStatus.RUNNING}), branch=branch)
