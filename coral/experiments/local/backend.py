"""Runs as files: ``.coral/experiments/<id>.json``, with ``<id>.jsonl`` beside it while the run lives.

The order of writing: the run's lock is taken, its JSON published, its journal opened, then events are appended.
At the end the ``end`` event is made durable, the JSON is published again with everything folded in, the journal
removed, and the lock dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from itertools import islice

from coral import threads
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptionError,
    ExperimentNotFoundError,
    NotFoundError,
    StorageError,
    UsageError,
)
from coral.experiments.columns import MetricColumns, Mode
from coral.experiments.experiment import (
    ArtifactStore,
    Experiment,
    checked_mode,
    to_ms,
)
from coral.experiments.links import link_of, own_commit
from coral.experiments.local import liveness
from coral.experiments.local.following import Followed, Following, RunStart
from coral.experiments.local.index import Index
from coral.experiments.local.record import Record, encode
from coral.experiments.local.sink import LocalSink
from coral.experiments.local.writer import JournalWriter
from coral.experiments.lookup import find
from coral.experiments.seams import Best, Query, Totals
from coral.ids import RUN_ID
from coral.storage.contents import RUNS
from coral.storage.files import AppendFile
from coral.storage.folder import Folder
from coral.verbs.runs import DELETED


class LocalBackend:
    """The folder of runs; see ``seams.TrackingBackend`` for the promises.

    Args:
        folder: coral's folder (``.coral``).
        artifacts: where artifacts' bytes are.
    """

    def __init__(self, folder: Folder, artifacts: ArtifactStore | None = None) -> None:
        self._folder = folder
        self._runs = folder.sub(RUNS)
        self._artifacts = artifacts
        self._index = Index(folder)
        self._following = Following(folder, self._index, artifacts)

    # -- live runs

    def create(self, experiment: Experiment) -> LocalSink:
        """Record a run that starts now; durable when it returns, or degraded."""
        run_id, lock = experiment.experiment_id, self._following.lock_path(experiment.experiment_id)
        first = encode(Record(experiment, liveness.myself(experiment.owner), {}), MetricColumns())

        def connect() -> AppendFile:
            if experiment.owner == "process":
                with contextlib.suppress(StorageError):  # a file system without locks: the pid stands in
                    liveness.hold(lock)
            if not self._runs.exists(f"{run_id}.json"):
                self._runs.write(f"{run_id}.json", first)
            return self._runs.append(f"{run_id}.jsonl")

        experiment.artifact_store = self._artifacts
        label = f"run {experiment.name} ({run_id})"
        shared = experiment.owner == "shell"
        journal = JournalWriter(connect, label, renew=None if shared else partial(self._runs.renew, f"{run_id}.jsonl"))
        return LocalSink(self._following, RunStart(run_id, first), journal, shared=shared)

    def attach(self, experiment_id: str) -> tuple[Experiment, LocalSink]:
        """Go on recording a run of the shell. Raises ConflictError when a process owns it, or it has ended."""
        run_id = self.resolve(experiment_id)
        experiment = self.load(run_id)
        if experiment.status.is_final:
            raise ConflictError(f"run {run_id} has ended ({experiment.status})", hint="resume it as a child run")
        if experiment.owner != "shell":
            raise ConflictError(f"run {run_id} belongs to a living process", hint="log to it from that process")

        def connect() -> AppendFile:
            with self._following.open_for_append(run_id):
                return self._runs.append(f"{run_id}.jsonl")

        # Here too, because it may have ended since: a sink waits for what refuses, but an ended run never comes back.
        with self._following.open_for_append(run_id):
            start = RunStart(run_id, self._runs.read(f"{run_id}.json"))
            journal = JournalWriter(connect, f"run {experiment.name} ({run_id})")
        return experiment, LocalSink(self._following, start, journal, shared=True)

    # -- reading

    def resolve(self, experiment_id: str) -> str:
        """The id of the run that is meant. Raises ExperimentNotFoundError, UsageError."""
        # A whole id, which is what is given most, needs no list of all runs.
        is_whole = isinstance(experiment_id, str) and RUN_ID.fullmatch(experiment_id)
        if is_whole and self._runs.exists(f"{experiment_id}.json"):
            return experiment_id
        with self._following.mutex:
            self._index.refresh()
            return find(experiment_id, self._index.names(), facts=self._index.facts())

    def load(self, experiment_id: str) -> Experiment:
        """A run. Raises ExperimentNotFoundError, UsageError, CorruptionError."""
        return self._following.record(self.resolve(experiment_id)).experiment

    def select(self, query: Query) -> list[str]:
        """The ids of runs, newest first."""
        with self._following.mutex:
            live = self._following.live()
            found = [pair for pair in self._index.select(query) if pair[1] not in live]
            found += [
                (to_ms(one.record.experiment.created_at), run_id)
                for run_id, one in live.items()
                if query.fits(one.record.experiment)
            ]
        return [run_id for _, run_id in sorted(found, reverse=True)]

    def best(self, metric: str, mode: Mode | None, query: Query, limit: int | None) -> list[Best]:
        """The runs with the best values, best first. Raises UsageError when ``mode`` is None and no objective says."""
        with self._following.mutex:
            live = {run_id: one for run_id, one in self._following.live().items() if query.fits(one.record.experiment)}
            chosen = mode if mode is not None else self._declared(metric, query, live)
            checked_mode(metric, chosen, {})
            direction: Mode = "min" if chosen == "min" else "max"
            # Of those that cannot be read others take the place.
            found = self._index.best(metric, direction, query, None)
            for run_id, one in live.items():
                series = one.history.series.get(metric)
                index = series.best(direction) if series else None
                if series and index is not None:
                    created = to_ms(one.record.experiment.created_at)
                    found.append((series.values[index], created, run_id, series.steps[index]))
        sign = 1 if direction == "min" else -1
        found.sort(key=lambda row: (sign * row[0], row[1], row[2]))
        read = (self._best(run_id, metric, direction, value, step) for value, _, run_id, step in found)
        return list(islice((one for one in read if one is not None), limit))

    def children(self, experiment_id: str) -> list[str]:
        """The ids of the runs that resumed this one, oldest first."""
        with self._following.mutex:
            self._index.refresh()
            return self._index.where("parent", experiment_id)

    def pinned_to(self, commit_hash: str) -> list[str]:
        """The ids of the runs whose final commit this is."""
        with self._following.mutex:
            live = self._following.live()
            ended = [run_id for run_id in self._index.where("commit", commit_hash) if run_id not in live]
        return ended + [run_id for run_id, one in live.items() if one.record.experiment.commit_hash == commit_hash]

    def totals(self) -> Totals:
        """What there is, in numbers."""
        with self._following.mutex:
            live = self._following.live()
            totals = self._index.totals()
        for one in live.values():
            # Their files still say what they were at the start: running, and no points.
            totals.points += len(one.history)
            totals.metrics.update(one.history.series)
            status = str(one.record.experiment.status)
            if status != "running":
                totals.by_status["running"] -= 1
                totals.by_status[status] = totals.by_status.get(status, 0) + 1
        totals.by_status = {status: count for status, count in totals.by_status.items() if count}
        return totals

    # -- the trash

    def delete(self, experiment_id: str) -> None:
        """Move a run to the trash. Raises ConflictError while a living process runs it."""
        run_id = self.resolve(experiment_id)
        with contextlib.suppress(CorruptionError):  # a damaged file may be thrown away too
            experiment = self.load(run_id)
            if not experiment.status.is_final and experiment.owner == "process":
                raise ConflictError(f"run {run_id} is running", hint="end it first, or stop its process")
        with self._following.locked():
            self._folder.move(f"{RUNS}/{run_id}.json", f"{DELETED}/{run_id}.json")
            if self._runs.exists(f"{run_id}.jsonl"):
                self._folder.move(f"{RUNS}/{run_id}.jsonl", f"{DELETED}/{run_id}.jsonl")
        self._following.forget(run_id)

    def restore(self, experiment_id: str) -> str:
        """Take a run back out of the trash; returns its id. Raises ExperimentNotFoundError, AlreadyExistsError."""
        trash = self.trash()
        names = {**dict.fromkeys(self.trashed(), ""), **{one.experiment_id: one.name for one in trash}}
        facts = {one.experiment_id: (to_ms(one.created_at), str(one.status)) for one in trash}
        run_id = find(experiment_id, names, facts=facts, listing="coral exp list --deleted")
        with self._following.locked():
            if self._runs.exists(f"{run_id}.json"):
                raise AlreadyExistsError(f"run {run_id} is there already")
            if self._folder.exists(f"{DELETED}/{run_id}.jsonl"):
                self._folder.move(f"{DELETED}/{run_id}.jsonl", f"{RUNS}/{run_id}.jsonl")
            self._folder.move(f"{DELETED}/{run_id}.json", f"{RUNS}/{run_id}.json")
        return run_id

    def trash(self) -> list[Experiment]:
        """The runs in the trash that can be read."""
        runs = []
        for run_id in self.trashed():
            with contextlib.suppress(CorruptionError, NotFoundError):
                runs.append(self.load_trashed(run_id))
        return runs

    def load_trashed(self, run_id: str) -> Experiment:
        """A run in the trash; one that had not ended also from its journal.

        Raises ExperimentNotFoundError, CorruptionError.
        """
        folder = self._folder.sub(DELETED)
        record = self._following.read(run_id, folder)
        if not record.experiment.status.is_final:
            with contextlib.suppress(FileNotFoundError):
                Followed(record, folder.path(f"{run_id}.jsonl")).refresh()
        return record.experiment

    def trashed(self) -> list[str]:
        """The ids of the runs in the trash, damaged or not."""
        return [
            name[:12] for name in self._folder.names(DELETED) if name.endswith(".json") and RUN_ID.fullmatch(name[:-5])
        ]

    # -- inside

    def _declared(self, metric: str, query: Query, live: Mapping[str, Followed]) -> str | None:
        declared = self._index.objectives(metric, query)
        declared |= {one.record.experiment.objective.get(metric, "") for one in live.values()} - {""}
        if len(declared) > 1:
            raise UsageError(f"some runs want {metric!r} high and some low", hint="say mode='min' or mode='max'")
        return next(iter(declared), None)

    def _best(self, run_id: str, metric: str, mode: Mode, value: float, step: int | None) -> Best | None:
        """A run's best; None for one that cannot be read, which is told of, or is gone."""
        try:
            return self._best_of(self._following.record(run_id), metric, mode, value, step)
        except CorruptionError as error:
            threads.warn(f"the run {run_id} is left out: {error.message}")
        except ExperimentNotFoundError:
            pass
        return None

    @staticmethod
    def _best_of(record: Record, metric: str, mode: Mode, value: float, step: int | None) -> Best:
        if record.experiment.status.is_final and record.links:
            link = record.link(metric, mode)
        else:
            history = record.experiment.history
            series = history.series.get(metric)
            index = series.best(mode) if series else None
            link = link_of(history, record.experiment.commits, metric, index) if index is not None else None
        commit_hash, kind = link or own_commit(record.experiment) or (None, None)
        return Best(record.experiment, value, step, commit_hash, kind)
