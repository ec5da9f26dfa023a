"""A live run: an Experiment with the methods that log to it, linked to the commits made meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from coral import forks, threads
from coral.errors import ConflictError, CoralError, UsageError
from coral.experiments import artifacts, endings, events
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import (
    Artifact,
    Experiment,
    ExperimentStatus,
    Metrics,
    as_status,
    from_ms,
)
from coral.experiments.logs import Logs
from coral.experiments.redaction import redact_params
from coral.experiments.seams import RunSink
from coral.live import Live
from coral.verbs import signals

if TYPE_CHECKING:
    from coral.history import Commit
    from coral.repository import Repository

_FOLDING_SECONDS = 0.1


class Run(Live, Logs, Experiment):
    """A run that is being recorded; ``start`` and ``attach`` return one.

    Any thread may log to it. Logging never raises because of the disk (see ``degraded``); it raises UsageError for
    what makes no sense, and ConflictError once the run has ended.

    Used as a context manager, a run that this process owns ends with the block: COMPLETED, FAILED for an exception,
    CANCELLED for Ctrl-C. An attached run is only let go of.
    """

    def __init__(self, experiment: Experiment, sink: RunSink, repo: Repository) -> None:
        for one in fields(experiment):
            setattr(self, one.name, getattr(experiment, one.name))
        self.repo = repo
        self.thread_id = threads.caller().ident
        self._pid = os.getpid()
        self._sink: RunSink | None = sink
        self._point: Callable[[str, float, int | None], int] = sink.point
        self._ending = forks.rlock()
        self._is_ending = False
        self._changing = forks.lock()
        self._unfolded: deque[Event] = deque()
        self._at_end: list[Callable[[], None]] = []
        self._fold = Fold(self, MetricColumns())
        self._warned = False
        self.metrics = Metrics(sink.history)
        repo.add_commit_observer(self)

    def at_end(self, action: Callable[[], None]) -> None:
        """Call this once the run has ended or was let go of."""
        self._at_end.append(action)

    @property
    def degraded(self) -> bool:
        """Whether what was logged last is only in memory yet, because the disk refuses it."""
        return self._sink is not None and self._sink.degraded

    @property
    def is_open(self) -> bool:
        """Whether it can be logged to."""
        return self._sink is not None

    # -- logging: what the methods of Logs are made of

    @threads.uninterrupted
    def _keep(self, content: artifacts.Content) -> Artifact | None:
        self._open()
        store = self.artifact_store
        if store is None:
            raise UsageError("this backend keeps no artifacts")
        with contextlib.ExitStack() as holding:
            try:
                # From the first look until the journal names it: garbage collection must not come in between.
                holding.enter_context(store.held())
                ref = store.put_bytes(content.data)
            except (CoralError, OSError) as error:
                threads.warn(f"artifact {content.name} is not kept: {error}")
                return None
            event = events.artifact(content.name, content.kind, len(content.data), ref)
            time_ms = self._record(event, holding=holding)
            return Artifact(content.name, content.kind, len(content.data), ref, from_ms(time_ms))

    # -- ending

    def end(
        self, commit_hash: str | None = None, status: ExperimentStatus | str = ExperimentStatus.COMPLETED
    ) -> Experiment:
        """End the run; one that has ended stays as it ended first.

        So ``end`` may stand in the ``finally`` of a block whose ``except`` calls :meth:`fail`.

        Args:
            commit_hash: the commit to pin as its result, by any ref; None keeps the last one linked.
            status: how it ended.

        A call that is interrupted (Ctrl-C) ends the run all the same; the next one then only returns it.

        Raises:
            ConflictError: it was let go of, or another process owns it or has ended it.
        """
        if not self.is_open:
            return self._end(ExperimentStatus.COMPLETED, None)
        final = as_status(status)
        if not final.is_final:
            raise UsageError(f"a run cannot end as {final}", hint="'completed', 'failed' or 'cancelled'")
        self.repo.flush()
        return self._end(final, None, None if commit_hash is None else self.repo.resolve(commit_hash))

    def fail(self, error_message: str | None = None) -> Experiment:
        """End the run as FAILED, unless it has ended. Raises ConflictError as :meth:`end` does.

        A commit under way is waited for; if it fails, the next one tells, or the exit.
        """
        self.repo.pending_failure()  # not raised: it would hide the error that the program is handling
        failure: endings.Failure = {"kind": "error", "message": _reason(error_message)}
        return self._end(ExperimentStatus.FAILED, failure)

    def cancel(self, reason: str | None = None) -> Experiment:
        """End the run as CANCELLED, unless it has ended. Raises ConflictError as :meth:`end` does."""
        said = _reason(reason)
        return self._end(ExperimentStatus.CANCELLED, {"kind": "cancelled", "message": said} if said else None)

    @threads.uninterrupted
    def close(self) -> None:
        """Let go of the run without ending it; harmless once it has ended.

        Raises:
            StorageError: the disk refused some of what was logged.
        """
        sink = self._sink
        if sink is not None:
            self._let_go()
            sink.close()

    def finish(self, status: ExperimentStatus, failure: endings.Failure | None) -> None:
        """End the run unless it has ended; never raises because of the storage.

        One whose last commit, made beside the program, failed is not COMPLETED.
        """
        lost = self.repo.pending_failure()
        if lost is not None and status == ExperimentStatus.COMPLETED:
            status, failure = endings.describe(lost)
        with contextlib.suppress(ConflictError):
            self._finish(status, failure)
        signals.let_go()

    def _end(self, status: ExperimentStatus, failure: endings.Failure | None, pinned: str | None = None) -> Self:
        if not self._finish(status, failure, pinned):
            signals.stay_if_dying()
            if not self.status.is_final:
                raise self._has_ended()
        signals.let_go()
        return self

    @threads.uninterrupted
    def _finish(self, status: ExperimentStatus, failure: endings.Failure | None, pinned: str | None = None) -> bool:
        """End it; False when it has ended. Whoever comes while it is being ended waits for that."""
        if self.owner == "process" and self._pid != os.getpid():
            raise ConflictError("this run belongs to the parent process", hint="end it there")
        with self._ending:
            sink = self._sink
            if sink is None or self._is_ending:  # by this very thread, below a handler
                return False
            self._is_ending = True
            threads.finish()
            if pinned is not None and all(commit.commit_hash != pinned for commit in self.commits):
                self._link(self.repo.history.commit(pinned))
            failure = redact_params({**failure}) if failure else None
            try:
                kept = sink.finish(events.end(status, failure, pinned))
            finally:
                self._is_ending = False
                self._let_go()
            for one in fields(kept):
                setattr(self, one.name, getattr(kept, one.name))
        return True

    def _let_go(self) -> None:
        self._sink = None
        self._point = self._refuse
        self.repo.remove_commit_observer(self)
        with contextlib.ExitStack() as actions:
            for action in reversed(self._at_end):
                actions.callback(action)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._sink is None:
            return
        if self.owner == "shell":
            self.close()
        elif error is None:
            self.finish(ExperimentStatus.COMPLETED, None)
            self.repo.flush()
        else:
            self.finish(*endings.describe_exit(error))

    # -- what the repository tells

    def trailers(self, *, step: int | None, metrics: Mapping[str, float] | None) -> Mapping[str, str]:
        """What links the next commit to this run, atomically with the commit."""
        return {"Coral-Run": self.experiment_id}

    def committed(self, commit: Commit) -> None:
        """Record a commit that the branch points at now. It has landed, so nothing here may raise."""
        if self._sink is None:
            return
        try:
            self._link(commit)
        except (CoralError, OSError) as error:
            self._warn_unlinked(error)

    def _warn_unlinked(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = f"run {self.experiment_id} does not list its commits for now ({error}); they name the run themselves"
            threads.warn(text)

    def _link(self, commit: Commit) -> None:
        metrics = {name: float(value) for name, value in commit.metrics.items()}
        self._record(events.commit(commit.commit_hash, commit.step, metrics), durable=True)

    # -- inside

    @threads.uninterrupted
    def _record(self, event: Event, *, durable: bool = False, holding: contextlib.ExitStack | None = None) -> int:
        """Record an event; returns its time. What ``holding`` holds is kept until the journal has it."""
        # Not read back: the disk may refuse, and observers of a commit must wait for no query (see `committed`).
        time_ms = self._open().append(event, durable=durable, holding=holding)
        self._unfolded.append(events.at(event, time_ms))
        # Nobody waits for long: who holds it folds this one, too, and may be what this call is on top of.
        while self._unfolded and self._changing.acquire(timeout=_FOLDING_SECONDS):
            try:
                self._fold_waiting()
            finally:
                self._changing.release()
        return time_ms

    def _fold_waiting(self) -> None:
        while self._unfolded:
            self._fold.apply(self._unfolded.popleft())

    def _target(self) -> Run:
        return self

    def _open(self) -> RunSink:
        if self._sink is None:
            raise self._has_ended()
        return self._sink

    def _refuse(self, name: str, value: float, step: int | None) -> NoReturn:
        raise self._has_ended()

    def _has_ended(self) -> ConflictError:
        signals.stay_if_dying()  # it is the signal that has ended it
        if not self.status.is_final:
            return ConflictError(f"run {self.experiment_id} is not open here", hint="attach to it again")
        return ConflictError(
            f"run {self.experiment_id} has ended ({self.status})", hint="start or resume a run to log more"
        )


def _reason(said: object) -> str | None:
    """What somebody says of an end; nothing is None."""
    return (endings.message(said) or None) if said is not None else None
