"""What is asked about runs: which there are, how they compare, which is the best and what led to it."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from coral import threads
from coral.errors import CoralError, CorruptionError, ExperimentNotFoundError, UsageError
from coral.experiments.columns import Mode
from coral.experiments.experiment import Experiment, ExperimentStatus, as_status
from coral.experiments.logs import as_tags
from coral.experiments.lookup import near
from coral.experiments.query import Lineage, as_result, compare, lineage
from coral.experiments.results import Results
from coral.experiments.scalars import MAX_NAME, class_name, metric_name, text
from coral.experiments.seams import Query, TrackingBackend

if TYPE_CHECKING:
    from coral.repository import Repository
    from coral.verbs.weights import Weights

Status = ExperimentStatus | str | Iterable[ExperimentStatus | str]


class Questions:
    """The methods that look at runs, and change nothing.

    Attributes:
        repo: the repository whose runs they are.
    """

    repo: Repository
    _backend: TrackingBackend

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
        labels, tags = labels_and_tags(labels, tags)
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
        labels, tags = labels_and_tags(None, tags)
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
        commit_hash, link, run_id, step = (
            best[0][key] for key in ("commit_hash", "link", "experiment_id", "best_step")
        )
        if commit_hash is None:
            raise ExperimentNotFoundError(
                f"no commit is linked to the best {metric!r}: run {run_id}, step {step}",
                hint="commit(step=...) or save(step=...) while the run is active links the weights to the step",
            )
        if link == "run":
            threads.warn(
                f"{str(commit_hash)[:10]} is the commit of run {run_id} as a whole: "
                f"none is linked to its best {metric!r}" + ("" if step is None else f", at step {step}")
            )
        return str(commit_hash)

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

    def running(self) -> Results[Experiment]:
        """The runs that are running now, newest first."""
        return self.list(status=ExperimentStatus.RUNNING)

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


def labels_and_tags(
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
