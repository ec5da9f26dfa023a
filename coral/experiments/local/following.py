"""Runs as their files say them: read whole, followed while they live, settled when they have ended or died.

A reader that finds a journal beside a running JSON folds it in memory; one that finds the owner dead and no ``end``
folds it on disk, as lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from coral import forks, threads
from coral.errors import ConflictError, CoralError, CorruptionError, ExperimentNotFoundError, NotFoundError
from coral.experiments import events
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Fold
from coral.experiments.experiment import ArtifactStore, Experiment, ExperimentStatus, Metrics, to_ms
from coral.experiments.local import liveness
from coral.experiments.local.index import Index
from coral.experiments.local.journal import JournalReader, decode
from coral.experiments.local.record import SUMMARY, Record, decode_history, encode, head
from coral.experiments.local.record import decode as decode_record
from coral.experiments.local.writer import JournalWriter
from coral.experiments.scalars import Json
from coral.storage.contents import RUNS, lock
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.verbs.runs import LOCK

_MAX_FILE_BYTES = 2 * 1024**3
_MAX_LINE_BYTES = 256 * 1024**2
_LOCK_SECONDS = 10.0


class Followed:
    """A running run as its JSON and the journal read so far say it."""

    def __init__(self, record: Record, journal: Path) -> None:
        self.record = record
        self.history = MetricColumns()
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

    run_id: str
    first: bytes


class Following:
    """The runs in the folder, kept in mind while they live.

    Args:
        folder: coral's folder (``.coral``).
        index: of the same runs; :attr:`mutex` is held by who uses it.
        artifacts: where artifacts' bytes are.
    """

    def __init__(self, folder: Folder, index: Index, artifacts: ArtifactStore | None) -> None:
        self._folder = folder
        self._runs = folder.sub(RUNS)
        self._artifacts = artifacts
        self._index = index
        self.mutex = forks.rlock()
        self._followed: dict[str, Followed] = {}

    def lock_path(self, run_id: str) -> Path:
        """The file whose lock says that a run's process lives."""
        return self._folder.path(lock(f"runs/{run_id}"))

    def locked(self, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Nobody else moves, folds or (unless it is shared) adds to a run meanwhile. Raises LockedError."""
        return file_lock(self._folder.path(LOCK), shared=shared, timeout=_LOCK_SECONDS)

    def read(self, run_id: str, folder: Folder | None = None) -> Record:
        """A run's JSON; the history is read when it is asked for."""
        where = folder or self._runs
        path = where.path(f"{run_id}.json")
        try:
            summary, fields = _read_fields(path)
        except (OSError, NotFoundError) as error:
            raise ExperimentNotFoundError(f"no experiment {run_id!r} ({error})") from error
        if fields is None or summary.get("id") != run_id or fields.get("experiment_id") != run_id:
            raise CorruptionError(f"{path} is not the file of run {run_id}")
        record = decode_record(fields, _once(lambda: self._read_history(where, run_id)), path)
        record.experiment.artifact_store = self._artifacts
        return record

    def _read_history(self, folder: Folder, run_id: str) -> MetricColumns:
        path = folder.path(f"{run_id}.json")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptionError(f"{path} is larger than any run's file")
        return decode_history(folder.read(f"{run_id}.json"), path)

    def record(self, run_id: str) -> Record:
        """A run as it is now: from its JSON, and while it lives from its journal too."""
        for _ in range(3):
            record = self.read(run_id)
            if record.experiment.status.is_final:
                return record
            try:
                live = self._read_live(run_id)
            except FileNotFoundError:
                continue  # it has just ended; its JSON says more now
            if not self._settled(run_id, live):
                return live.record
        return self._orphan(run_id)

    def _orphan(self, run_id: str) -> Record:
        """A run whose file says that it runs, without a journal here: of another machine, or killed while starting."""
        record = self.read(run_id)
        if liveness.is_alive(record.identity, self.lock_path(run_id)):
            return record
        live = Followed(record, self._runs.path(f"{run_id}.jsonl"))
        self._lose(live)
        return live.record

    def _read_live(self, run_id: str) -> Followed:
        """A running run from its files. Raises FileNotFoundError when it has just ended."""
        live = Followed(self.read(run_id), self._runs.path(f"{run_id}.jsonl"))
        live.refresh()
        return live

    def _read_waiting(self, start: RunStart, journal: JournalWriter) -> Followed:
        """A live run of this process, from what it has written and the lines that wait for the disk."""
        path = self._runs.path(f"{start.run_id}.json")
        record = decode_record(head(start.first, path)[1] or {}, MetricColumns, path)
        record.experiment.artifact_store = self._artifacts
        live = Followed(record, journal.readable or path.with_suffix(".jsonl"))
        with contextlib.suppress(FileNotFoundError):
            live.refresh()
        live.fold.apply_all(decode(b"".join(journal.pending))[0])
        return live

    def _follow(self, run_id: str) -> Followed:
        """A running run, kept from the query before and brought up to date. Raises FileNotFoundError."""
        live = self._followed.get(run_id) or Followed(self.read(run_id), self._runs.path(f"{run_id}.jsonl"))
        self._followed[run_id] = live
        try:
            live.refresh()
        except FileNotFoundError:
            del self._followed[run_id]
            raise
        return live

    def forget(self, run_id: str) -> None:
        """Read a run anew, should it be there again."""
        self._followed.pop(run_id, None)

    def live(self) -> dict[str, Followed]:
        """Every run whose file says that it runs, up to date; those that have died are settled first."""
        for _ in range(3):
            self._index.refresh()
            live, ended = {}, False
            for run_id in self._index.running():
                try:
                    one = self._follow(run_id)
                except FileNotFoundError:
                    one = Followed(self._orphan(run_id), self._runs.path(f"{run_id}.jsonl"))
                except (CoralError, OSError) as error:
                    if isinstance(error, CorruptionError):
                        text = f"the run {run_id} is left out: {error.message}"
                        threads.warn(text)
                    continue
                live[run_id] = one
                ended |= self._settled(run_id, one)
            if not ended:
                break
        return live

    def _settled(self, run_id: str, live: Followed) -> bool:
        """Whether a run that looked live had ended or died, and has been folded on disk for it."""
        alive = liveness.is_alive(live.record.identity, self.lock_path(run_id))
        if alive and not (live.fold.ended and live.record.identity.owner == "shell"):
            return False
        if live.record.experiment.status.is_final and not live.fold.ended:
            return False
        try:
            with self.locked():
                fresh = self._read_live(run_id)
                if not fresh.fold.ended:
                    self._lose(fresh)
                self._fold(fresh)
        except FileNotFoundError:
            pass  # someone else has just done it
        except (CoralError, OSError):  # a read-only file system: say it without writing it
            if not live.fold.ended:
                self._lose(live)
            return False
        self.forget(run_id)
        return True

    @staticmethod
    def _lose(live: Followed) -> None:
        """Mark a run whose process died without a word; it ended when it was last heard of."""
        run = live.record.experiment
        last = live.fold.last_ms or to_ms(run.created_at)
        failure: dict[str, Json] = {"kind": "lost", "message": "its process died without ending it"}
        live.fold.apply(events.at(events.end(ExperimentStatus.FAILED, failure), last))

    def _fold(self, live: Followed) -> Experiment:
        """Publish a run that has ended, and drop its journal and lock. Call it under the lock."""
        run_id = live.record.experiment.experiment_id
        if not live.fold.ended:
            raise ConflictError(f"run {run_id} has not ended")
        self._runs.write(f"{run_id}.json", encode(live.record, live.history))
        self._runs.remove(f"{run_id}.jsonl")
        self._folder.remove(lock(f"runs/{run_id}"))
        liveness.release(self.lock_path(run_id))
        self.forget(run_id)
        return live.record.experiment

    @contextlib.contextmanager
    def open_for_append(self, run_id: str) -> Iterator[None]:
        """Keep other processes from ending a run of the shell meanwhile. Raises ConflictError when it has ended."""
        with self.locked(shared=True):
            if not self._runs.exists(f"{run_id}.jsonl"):
                raise ConflictError(f"run {run_id} has ended, or its journal is gone: nothing more can be logged to it")
            yield

    def live_history(self, start: RunStart, journal: JournalWriter) -> MetricColumns:
        """A live run's points as its journal and the lines that wait say it."""
        if not journal.pending:
            with self.mutex, contextlib.suppress(FileNotFoundError, CoralError):
                return self._follow(start.run_id).history
        return self._read_waiting(start, journal).history

    def finish(self, start: RunStart, journal: JournalWriter) -> Experiment:
        """Fold a run that has ended into its JSON; never raises because of the disk."""
        try:
            with self.locked():
                return self._fold(self._read_waiting(start, journal))
        except (CoralError, OSError) as error:
            threads.warn(f"run {start.run_id} has ended but is not folded yet: {error}")
            return self._read_waiting(start, journal).record.experiment


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


def _once(load: Callable[[], MetricColumns]) -> Callable[[], MetricColumns]:
    """``load``, called once."""
    kept: list[MetricColumns] = []

    def loaded() -> MetricColumns:
        if not kept:
            kept.append(load())
        return kept[0]

    return loaded
