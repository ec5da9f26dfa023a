"""Runs as files: ``.coral/experiments/<id>.json``, with ``<id>.jsonl`` beside it while the run lives.

The order of writing: the run's lock is taken, its JSON published, its journal opened, then events are appended.
At the end the ``end`` event is made durable, the JSON is published again with everything folded in, the journal
removed, and the lock dropped. A reader that finds a journal beside a running JSON folds it in memory; one that
finds the owner dead and no ``end`` folds it on disk, as lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from coral import forks, threads
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CoralError,
    CorruptionError,
    ExperimentNotFoundError,
    NotFoundError,
    StorageError,
    UsageError,
)
from coral.experiments import events
from coral.experiments.columns import History, Mode
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import (
    ID,
    ArtifactStore,
    Experiment,
    ExperimentStatus,
    Metrics,
    checked_mode,
    to_ms,
)
from coral.experiments.links import link_of, own_commit
from coral.experiments.local import liveness
from coral.experiments.local.index import Index
from coral.experiments.local.journal import JournalReader, decode
from coral.experiments.local.record import SUMMARY, Record, decode_history, encode, head
from coral.experiments.local.record import decode as decode_record
from coral.experiments.local.sink import Sink
from coral.experiments.lookup import find
from coral.experiments.scalars import Json
from coral.experiments.seams import Best, Query, Totals
from coral.format.contents import RUNS
from coral.storage.folder import AppendFile, Folder
from coral.storage.locks import file_lock
from coral.verbs.runs import DELETED, LOCK

_MAX_FILE_BYTES = 2 * 1024**3
_MAX_LINE_BYTES = 256 * 1024**2
_LOCK_SECONDS = 10.0


class _Journaled:
    """A running run as its JSON and the journal read so far say it."""

    def __init__(self, record: Record, journal: Path) -> None:
        self.record = record
        self.history = History()
        self.fold = Fold(record.experiment, self.history)
        self._reader = JournalReader(journal)
        self._lost = 0
        record.experiment.metrics = Metrics(lambda: self.history)

    def refresh(self) -> None:
        """Read what was appended meanwhile. Raises FileNotFoundError when the journal is gone."""
        for block in self._reader.read():
            self.fold.apply_all(block)
        lost = self._reader.damaged - self._lost
        if lost > 0:
            self._lost += lost
            run = self.record.experiment
            run.dropped_points += lost
            threads.warn(
                f"{lost} lines of the journal of run {run.experiment_id} are damaged: what they said is lost",
            )


class RunStart(NamedTuple):
    """A live run: its id, and its file as it is until the end; the disk may not have taken it, or lost it since."""

    run: str
    first: bytes


class LocalSink:
    """A run's journal in the folder of runs; see ``backend.RunSink`` for the promises."""

    def __init__(self, backend: LocalBackend, start: RunStart, sink: Sink, *, shared: bool) -> None:
        self._backend = backend
        self._start = start
        self._sink = sink
        self._shared = shared
        # The hot path: one call fewer where no other process can end the run.
        self.point: Callable[[str, float, int | None], None] = self._point_of_shell if shared else sink.point

    @property
    def degraded(self) -> bool:
        """Whether something logged is only in memory yet."""
        return self._sink.degraded

    def _point_of_shell(self, name: str, value: float, step: int | None) -> None:
        with self._still_running():
            self._sink.point(name, value, step)

    def append(
        self, event: Mapping[str, Json], *, durable: bool = False, holding: contextlib.ExitStack | None = None
    ) -> None:
        """Record an event at the current time."""
        with self._still_running():
            self._sink.append(event, durable=durable, holding=holding)

    def _still_running(self) -> contextlib.AbstractContextManager[None]:
        # Another process may end a run of the shell at any time: not between this check and the write.
        return self._backend.open_for_append(self._start.run) if self._shared else contextlib.nullcontext()

    def history(self) -> History:
        """The points recorded so far."""
        return self._backend.live_history(self._start, self._sink)

    def finish(self, event: Event) -> Experiment:
        """Record the end and fold the journal; what the disk refuses stays in the journal and in memory."""
        self.append(event, durable=True)
        self._sink.close()
        try:
            return self._backend.finish(self._start, self._sink)
        finally:
            self._sink.let_go()

    def close(self) -> None:
        """Stop recording without ending the run.

        Raises StorageError when the disk refused some of it, and none of that is written once the run has ended.
        """
        try:
            # Where nothing waits nothing is written, and nobody need be waited for.
            with self._still_running() if self._sink.pending else contextlib.nullcontext():
                self._sink.close()
        except (CoralError, OSError):
            self._sink.close(tries=False)
        self._sink.let_go()
        if self._sink.pending:
            raise StorageError(f"{len(self._sink.pending)} events of run {self._start.run} could not be written")


class LocalBackend:
    """The folder of runs; see ``backend.TrackingBackend`` for the promises.

    Args:
        storage: coral's folder (``.coral``).
        artifacts: where artifacts' bytes are.
    """

    def __init__(self, storage: Folder, artifacts: ArtifactStore | None = None) -> None:
        self._storage = storage
        self._folder = storage.sub(RUNS)
        self._artifacts = artifacts
        self._index = Index(storage)
        self._followed: dict[str, _Journaled] = {}
        self._mutex = forks.rlock()

    # -- live runs

    def create(self, experiment: Experiment) -> LocalSink:
        """Record a run that starts now; durable when it returns, or degraded."""
        run, lock = experiment.experiment_id, self._lock_path(experiment.experiment_id)
        first = encode(Record(experiment, liveness.myself(experiment.owner), {}), History())

        def connect() -> AppendFile:
            if experiment.owner == "process":
                with contextlib.suppress(StorageError):  # a file system without locks: the pid stands in
                    liveness.hold(lock)
            if not self._folder.exists(f"{run}.json"):
                self._folder.write(f"{run}.json", first)
            return self._folder.append(f"{run}.jsonl")

        experiment.artifact_store = self._artifacts
        label = f"run {experiment.name} ({run})"
        shared = experiment.owner == "shell"
        sink = Sink(connect, label, renew=None if shared else partial(self._folder.renew, f"{run}.jsonl"))
        return LocalSink(self, RunStart(run, first), sink, shared=shared)

    def attach(self, experiment_id: str) -> tuple[Experiment, LocalSink]:
        """Go on recording a run of the shell. Raises ConflictError when a process owns it, or it has ended."""
        run = self.resolve(experiment_id)
        experiment = self.load(run)
        if experiment.status.is_final:
            raise ConflictError(f"run {run} has ended ({experiment.status})", hint="resume it as a child run")
        if experiment.owner != "shell":
            raise ConflictError(f"run {run} belongs to a living process", hint="log to it from that process")

        def connect() -> AppendFile:
            with self.open_for_append(run):
                return self._folder.append(f"{run}.jsonl")

        # Here too, because it may have ended since: a sink waits for what refuses, but an ended run never comes back.
        with self.open_for_append(run):
            start = RunStart(run, self._folder.read(f"{run}.json"))
            sink = Sink(connect, f"run {experiment.name} ({run})")
        return experiment, LocalSink(self, start, sink, shared=True)

    @contextlib.contextmanager
    def open_for_append(self, run: str) -> Iterator[None]:
        """Keep other processes from ending a run of the shell meanwhile. Raises ConflictError when it has ended."""
        with self._locked(shared=True):
            if not self._folder.exists(f"{run}.jsonl"):
                raise ConflictError(f"run {run} has ended, or its journal is gone: nothing more can be logged to it")
            yield

    def live_history(self, start: RunStart, sink: Sink) -> History:
        """A live run's points as its journal and the lines that wait say it."""
        if not sink.pending:
            with self._mutex, contextlib.suppress(FileNotFoundError, CoralError):
                return self._follow(start.run).history
        return self._read_waiting(start, sink).history

    def finish(self, start: RunStart, sink: Sink) -> Experiment:
        """Fold a run that has ended into its JSON; never raises because of the disk."""
        try:
            with self._locked():
                return self._fold(self._read_waiting(start, sink))
        except (CoralError, OSError) as error:
            threads.warn(f"run {start.run} has ended but is not folded yet: {error}")
            return self._read_waiting(start, sink).record.experiment

    # -- reading

    def resolve(self, experiment_id: str) -> str:
        """The id of the run that is meant. Raises ExperimentNotFoundError, UsageError."""
        # A whole id, which is what is given most, needs no list of all runs.
        is_whole = isinstance(experiment_id, str) and ID.fullmatch(experiment_id)
        if is_whole and self._folder.exists(f"{experiment_id}.json"):
            return experiment_id
        with self._mutex:
            self._index.refresh()
            return find(experiment_id, self._index.names(), facts=self._index.facts())

    def load(self, experiment_id: str) -> Experiment:
        """A run. Raises ExperimentNotFoundError, UsageError, CorruptionError."""
        return self._record(self.resolve(experiment_id)).experiment

    def select(self, query: Query) -> list[str]:
        """The ids of runs, newest first."""
        with self._mutex:
            live = self._live()
            found = [pair for pair in self._index.select(query) if pair[1] not in live]
            found += [
                (to_ms(one.record.experiment.created_at), run)
                for run, one in live.items()
                if _fits(query, one.record.experiment)
            ]
        return [run for _, run in sorted(found, reverse=True)]

    def best(self, metric: str, mode: Mode | None, query: Query, limit: int | None) -> list[Best]:
        """The runs with the best values, best first. Raises UsageError when ``mode`` is None and no objective says."""
        with self._mutex:
            live = {run: one for run, one in self._live().items() if _fits(query, one.record.experiment)}
            chosen = mode if mode is not None else self._declared(metric, query, live)
            checked_mode(metric, chosen, {})
            direction: Mode = "min" if chosen == "min" else "max"
            # Of those that cannot be read others take the place.
            found = self._index.best(metric, direction, query, None)
            for run, one in live.items():
                series = one.history.series.get(metric)
                index = series.best(direction) if series else None
                if series and index is not None:
                    created = to_ms(one.record.experiment.created_at)
                    found.append((series.values[index], created, run, series.steps[index]))
        sign = 1 if direction == "min" else -1
        found.sort(key=lambda row: (sign * row[0], row[1], row[2]))
        read = (self._best(run, metric, direction, value, step) for value, _, run, step in found)
        return list(islice((one for one in read if one is not None), limit))

    def children(self, experiment_id: str) -> list[str]:
        """The ids of the runs that resumed this one, oldest first."""
        with self._mutex:
            self._index.refresh()
            return self._index.where("parent", experiment_id)

    def pinned_to(self, commit_hash: str) -> list[str]:
        """The ids of the runs whose final commit this is."""
        with self._mutex:
            live = self._live()
            ended = [run for run in self._index.where("commit", commit_hash) if run not in live]
        return ended + [run for run, one in live.items() if one.record.experiment.commit_hash == commit_hash]

    def totals(self) -> Totals:
        """What there is, in numbers."""
        with self._mutex:
            live = self._live()
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
        run = self.resolve(experiment_id)
        with contextlib.suppress(CorruptionError):  # a damaged file may be thrown away too
            experiment = self.load(run)
            if not experiment.status.is_final and experiment.owner == "process":
                raise ConflictError(f"run {run} is running", hint="end it first, or stop its process")
        with self._locked():
            self._storage.move(f"{RUNS}/{run}.json", f"{DELETED}/{run}.json")
            if self._folder.exists(f"{run}.jsonl"):
                self._storage.move(f"{RUNS}/{run}.jsonl", f"{DELETED}/{run}.jsonl")
        self._followed.pop(run, None)

    def restore(self, experiment_id: str) -> str:
        """Take a run back out of the trash; returns its id. Raises ExperimentNotFoundError, AlreadyExistsError."""
        trash = self.trash()
        names = {**dict.fromkeys(self.trashed(), ""), **{one.experiment_id: one.name for one in trash}}
        facts = {one.experiment_id: (to_ms(one.created_at), str(one.status)) for one in trash}
        run = find(experiment_id, names, facts=facts, listing="coral exp list --deleted")
        with self._locked():
            if self._folder.exists(f"{run}.json"):
                raise AlreadyExistsError(f"run {run} is there already")
            if self._storage.exists(f"{DELETED}/{run}.jsonl"):
                self._storage.move(f"{DELETED}/{run}.jsonl", f"{RUNS}/{run}.jsonl")
            self._storage.move(f"{DELETED}/{run}.json", f"{RUNS}/{run}.json")
        return run

    def trash(self) -> list[Experiment]:
        """The runs in the trash that can be read."""
        runs = []
        for run in self.trashed():
            with contextlib.suppress(CorruptionError, NotFoundError):
                runs.append(self.load_trashed(run))
        return runs

    def load_trashed(self, run: str) -> Experiment:
        """A run in the trash; one that had not ended also from its journal.

        Raises ExperimentNotFoundError, CorruptionError.
        """
        folder = self._storage.sub(DELETED)
        record = self._read(run, folder)
        if not record.experiment.status.is_final:
            with contextlib.suppress(FileNotFoundError):
                _Journaled(record, folder.path(f"{run}.jsonl")).refresh()
        return record.experiment

    def trashed(self) -> list[str]:
        """The ids of the runs in the trash, damaged or not."""
        return [
            name[:12] for name in self._storage.names(DELETED) if name.endswith(".json") and ID.fullmatch(name[:-5])
        ]

    # -- inside

    def _lock_path(self, run: str) -> Path:
        return self._storage.path(f"locks/runs/{run}")

    def _locked(self, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        return file_lock(self._storage.path(LOCK), shared=shared, timeout=_LOCK_SECONDS)

    def _read(self, run: str, folder: Folder | None = None) -> Record:
        """A run's JSON; the history is read when it is asked for."""
        where = folder or self._folder
        path = where.path(f"{run}.json")
        try:
            summary, fields = _read_fields(path)
        except (OSError, NotFoundError) as error:
            raise ExperimentNotFoundError(f"no experiment {run!r} ({error})") from error
        if fields is None or summary.get("id") != run or fields.get("experiment_id") != run:
            raise CorruptionError(f"{path} is not the file of run {run}")
        record = decode_record(fields, _once(lambda: self._read_history(where, run)), path)
        record.experiment.artifact_store = self._artifacts
        return record

    def _read_history(self, folder: Folder, run: str) -> History:
        path = folder.path(f"{run}.json")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptionError(f"{path} is larger than any run's file")
        return decode_history(folder.read(f"{run}.json"), path)

    def _record(self, run: str) -> Record:
        """A run as it is now: from its JSON, and while it lives from its journal too."""
        for _ in range(3):
            record = self._read(run)
            if record.experiment.status.is_final:
                return record
            try:
                live = self._read_live(run)
            except FileNotFoundError:
                continue  # it has just ended; its JSON says more now
            if not self._settled(run, live):
                return live.record
        return self._orphan(run)

    def _orphan(self, run: str) -> Record:
        """A run whose file says that it runs, without a journal here: of another machine, or killed while starting."""
        record = self._read(run)
        if liveness.is_alive(record.identity, self._lock_path(run)):
            return record
        live = _Journaled(record, self._folder.path(f"{run}.jsonl"))
        self._lose(live)
        return live.record

    def _read_live(self, run: str) -> _Journaled:
        """A running run from its files. Raises FileNotFoundError when it has just ended."""
        live = _Journaled(self._read(run), self._folder.path(f"{run}.jsonl"))
        live.refresh()
        return live

    def _read_waiting(self, start: RunStart, sink: Sink) -> _Journaled:
        """A live run of this process, from what it has written and the lines that wait for the disk."""
        path = self._folder.path(f"{start.run}.json")
        record = decode_record(head(start.first, path)[1] or {}, History, path)
        record.experiment.artifact_store = self._artifacts
        live = _Journaled(record, sink.journal or path.with_suffix(".jsonl"))
        with contextlib.suppress(FileNotFoundError):
            live.refresh()
        live.fold.apply_all(decode(b"".join(sink.pending))[0])
        return live

    def _follow(self, run: str) -> _Journaled:
        """A running run, kept from the query before and brought up to date. Raises FileNotFoundError."""
        live = self._followed.get(run) or _Journaled(self._read(run), self._folder.path(f"{run}.jsonl"))
        self._followed[run] = live
        try:
            live.refresh()
        except FileNotFoundError:
            del self._followed[run]
            raise
        return live

    def _live(self) -> dict[str, _Journaled]:
        """Every run whose file says that it runs, up to date; those that have died are settled first."""
        for _ in range(3):
            self._index.refresh()
            live, ended = {}, False
            for run in self._index.running():
                try:
                    one = self._follow(run)
                except FileNotFoundError:
                    one = _Journaled(self._orphan(run), self._folder.path(f"{run}.jsonl"))
                except (CoralError, OSError) as error:
                    if isinstance(error, CorruptionError):
                        text = f"the run {run} is left out: {error.message}"
                        threads.warn(text)
                    continue
                live[run] = one
                ended |= self._settled(run, one)
            if not ended:
                break
        return live

    def _settled(self, run: str, live: _Journaled) -> bool:
        """Whether a run that looked live had ended or died, and has been folded on disk for it."""
        alive = liveness.is_alive(live.record.identity, self._lock_path(run))
        if alive and not (live.fold.ended and live.record.identity.owner == "shell"):
            return False
        if live.record.experiment.status.is_final and not live.fold.ended:
            return False
        try:
            with self._locked():
                fresh = self._read_live(run)
                if not fresh.fold.ended:
                    self._lose(fresh)
                self._fold(fresh)
        except FileNotFoundError:
            pass  # someone else has just done it
        except (CoralError, OSError):  # a read-only file system: say it without writing it
            if not live.fold.ended:
                self._lose(live)
            return False
        self._followed.pop(run, None)
        return True

    @staticmethod
    def _lose(live: _Journaled) -> None:
        """Mark a run whose process died without a word; it ended when it was last heard of."""
        run = live.record.experiment
        last = live.fold.last_ms or to_ms(run.created_at)
        failure: dict[str, Json] = {"kind": "lost", "message": "its process died without ending it"}
        live.fold.apply(events.at(events.end(ExperimentStatus.FAILED, failure), last))

    def _fold(self, live: _Journaled) -> Experiment:
        """Publish a run that has ended, and drop its journal and lock. Call it under the lock."""
        run = live.record.experiment.experiment_id
        if not live.fold.ended:
            raise ConflictError(f"run {run} has not ended")
        self._folder.write(f"{run}.json", encode(live.record, live.history))
        self._folder.remove(f"{run}.jsonl")
        self._storage.remove(f"locks/runs/{run}")
        liveness.release(self._lock_path(run))
        self._followed.pop(run, None)
        return live.record.experiment

    def _declared(self, metric: str, query: Query, live: Mapping[str, _Journaled]) -> str | None:
        declared = self._index.objectives(metric, query)
        declared |= {one.record.experiment.objective.get(metric, "") for one in live.values()} - {""}
        if len(declared) > 1:
            raise UsageError(f"some runs want {metric!r} high and some low", hint="say mode='min' or mode='max'")
        return next(iter(declared), None)

    def _best(self, run: str, metric: str, mode: Mode, value: float, step: int | None) -> Best | None:
        """A run's best; None for one that cannot be read, which is told of, or is gone."""
        try:
            return self._best_of(self._record(run), metric, mode, value, step)
        except CorruptionError as error:
            threads.warn(f"the run {run} is left out: {error.message}")
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
        commit, kind = link or own_commit(record.experiment) or (None, None)
        return Best(record.experiment, value, step, commit, kind)


def _read_fields(path: Path) -> tuple[dict[str, Json], dict[str, Json] | None]:
    """The first two lines of a run's file; all of it when someone has reformatted it."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.readline(_MAX_LINE_BYTES) + file.readline(_MAX_LINE_BYTES)
        if not data.startswith(SUMMARY):
            data += file.read(
                min(_MAX_FILE_BYTES, os.fstat(fd).st_size)
            )  # memory is taken for as many as are asked for
        return head(data, path)


def _once(load: Callable[[], History]) -> Callable[[], History]:
    """``load``, called once."""
    kept: list[History] = []

    def loaded() -> History:
        if not kept:
            kept.append(load())
        return kept[0]

    return loaded


def _fits(query: Query, run: Experiment) -> bool:
    below = None if query.group is None else query.group.rstrip("/") + "/"
    return (
        (not query.status or run.status in query.status)
        and (query.branch is None or run.branch == query.branch)
        and (query.name is None or run.name == query.name)
        and (below is None or ((run.group or "") + "/").startswith(below))
        and query.tags <= set(run.tags)
    )
