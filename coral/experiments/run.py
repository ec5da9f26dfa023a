"""A live run: an Experiment with the methods that log to it, linked to the commits made meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Self

from coral import forks, threads
from coral.errors import ConflictError, CoralError, UsageError
from coral.experiments import artifacts, endings, events
from coral.experiments.columns import MetricColumns, Mode
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import (
    Artifact,
    Experiment,
    ExperimentStatus,
    Metrics,
    as_status,
    checked_mode,
    from_ms,
    now,
    to_ms,
)
from coral.experiments.redaction import redact_params, redact_text
from coral.experiments.scalars import (
    MAX_NAME,
    MAX_STEP,
    Json,
    bounded,
    class_name,
    metric_name,
    named,
    number,
    plain,
    text,
    whole,
)
from coral.experiments.seams import RunSink
from coral.live import Live
from coral.verbs import signals

if TYPE_CHECKING:
    from coral.history import Commit
    from coral.repository import Repository

_FOLDING_SECONDS = 0.1
_MAX_LABEL = 10_000


class Run(Live, Experiment):
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
        self._point: Callable[[str, float, int | None], None] = sink.point
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

    # -- logging

    def log(
        self,
        metric: str | Mapping[str, object],
        value: object = None,
        step: int | None = None,
        *,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Log one metric, or several given as a mapping.

        Args:
            value: a Python or numpy number, or a one-element tensor; NaN and infinities are kept, and never best.
            step: any whole number, in any order, as often as you like.
            metadata: JSON to keep with the point.

        Raises:
            UsageError: not a number, or a step that is not a whole number.
            ConflictError: the run has ended.
        """
        if (
            value.__class__ is float
            and metadata is None
            and metric.__class__ is str
            and (step is None or (step.__class__ is int and -MAX_STEP <= step <= MAX_STEP))
        ):
            self._point(metric, value, step)
        elif isinstance(metric, Mapping):
            if value is not None:
                raise UsageError("a mapping of metrics holds its values; the step is log(metrics, step=...)")
            self.log_metrics(metric, step, metadata=metadata)
        elif metadata:
            self.log_metrics({metric: value}, step, metadata=metadata)
        else:
            self._point(metric, number(metric, value), whole(step))

    def log_metrics(
        self,
        metrics: Mapping[str, object],
        step: int | None = None,
        *,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Log several metrics at once; see :meth:`log`."""
        at = whole(step)
        if not isinstance(metrics, Mapping):
            raise UsageError(f"metrics are a mapping of names to numbers, not {class_name(metrics)}")
        values = {metric_name(name): number(name, value) for name, value in metrics.items()}
        event = events.points(values, at, as_params(metadata) if metadata else None)
        if values:
            self._open().append(event)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Lay parameters over those there are; nested ones key by key. Each change is remembered."""
        self._record(events.params(as_params(params)))

    def add_tags(self, tags: Iterable[str]) -> None:
        """Add tags; of a mapping, each key and value is a label, as by :meth:`set_labels`."""
        if isinstance(tags, Mapping):
            self.set_labels(tags)
        else:
            self._set("add_tags", list(as_tags(tags)))

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags; those that are not there are ignored."""
        self._set("remove_tags", list(as_tags(tags)))

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """Set key-value labels; None removes one."""
        self._set("labels", as_labels(labels))

    def set_notes(self, notes: str | None) -> None:
        """Replace the notes."""
        self._set("notes", as_text(notes, "notes"))

    def set_objective(self, objective: Mapping[str, Mode]) -> None:
        """Declare which way is better, by metric. Raises UsageError for what is neither ``min`` nor ``max``."""
        self._set("objective", as_objective(objective))

    # -- artifacts

    def log_artifact(self, path_or_object: object, name: str | None = None) -> Artifact | None:
        """Keep a file, or an object by what it is: bytes, dict, array, tensor, data frame or figure.

        What is returned is there for as long as the run is, whoever collects garbage: the store is held until the
        run's journal names it, and longer while the disk refuses that (see ``degraded``).

        Returns None when the disk refused it; a warning says so. Raises NotFoundError, UsageError, and ConflictError
        once the run has ended.
        """
        return self._keep(artifacts.of_anything(path_or_object, name))

    def log_text(self, text: str, name: str) -> Artifact | None:
        """Keep a text."""
        return self._keep(artifacts.of_text(text, name))

    def log_dict(self, data: object, name: str) -> Artifact | None:
        """Keep JSON-able data; ``.json`` is added to a name without a suffix."""
        return self._keep(artifacts.of_dict(data, name))

    def log_numpy_array(self, array: object, name: str) -> Artifact | None:
        """Keep an array or a tensor, as ``.npy``."""
        return self._keep(artifacts.of_array(array, name))

    def log_table(self, table: object, name: str) -> Artifact | None:
        """Keep a data frame, a mapping of columns or a list of rows, as CSV."""
        return self._keep(artifacts.of_table(table, name))

    def log_figure(self, figure: object, name: str) -> Artifact | None:
        """Keep a figure: whatever has ``savefig``."""
        return self._keep(artifacts.of_figure(figure, name))

    log_artifact_data = log_dict
    log_dataframe = log_table
    log_plot = log_figure

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

    def _set(self, name: str, value: Json) -> None:
        self._record(events.settings(**{name: value}))

    @threads.uninterrupted
    def _record(self, event: Event, *, durable: bool = False, holding: contextlib.ExitStack | None = None) -> int:
        """Record an event; returns its time. What ``holding`` holds is kept until the journal has it."""
        # Not read back: the disk may refuse, and observers of a commit must wait for no query (see `committed`).
        self._open().append(event, durable=durable, holding=holding)
        time_ms = to_ms(now())
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

    def _open(self) -> RunSink:
        if self._sink is None:
            raise self._has_ended()
        return self._sink

    def _refuse(self, name: str, value: float, step: int | None) -> None:
        raise self._has_ended()

    def _has_ended(self) -> ConflictError:
        signals.stay_if_dying()  # it is the signal that has ended it
        if not self.status.is_final:
            return ConflictError(f"run {self.experiment_id} is not open here", hint="attach to it again")
        return ConflictError(
            f"run {self.experiment_id} has ended ({self.status})", hint="start or resume a run to log more"
        )


def as_params(params: object) -> dict[str, Json]:
    """Parameters as they are kept, without secrets. Raises UsageError for what holds nothing by name."""
    given = named(params)
    kept = plain(given) if given is not None else None
    if not isinstance(kept, dict):
        raise UsageError(f"parameters are a mapping, not {class_name(params)}")
    return bounded(redact_params(kept))


def as_labels(labels: Mapping[str, object]) -> dict[str, Json]:
    """Labels as they are kept, without secrets. Raises UsageError for what is not a mapping."""
    if not isinstance(labels, Mapping):
        raise UsageError(f"labels are a mapping, not {class_name(labels)}")
    kept: dict[str, Json] = {}
    for key, value in labels.items():
        kept[text(key, MAX_NAME)] = None if value is None else text(value, _MAX_LABEL)
    return redact_params(kept)


def as_text(said: object, what: str) -> str | None:
    """A text as it is kept, without secrets; ``what`` names it in the warning."""
    return None if said is None else redact_text(text(said), what)


def _reason(said: object) -> str | None:
    """What somebody says of an end; nothing is None."""
    return (endings.message(said) or None) if said is not None else None


def as_tags(tags: Iterable[str]) -> list[str]:
    """Tags as they are kept; a lone string is one tag. Raises UsageError."""
    if isinstance(tags, Mapping):
        raise UsageError("a mapping is no tags, but labels", hint="set_labels() and labels= take key and value")
    given = [tags] if isinstance(tags, str) else list(tags) if isinstance(tags, Iterable) else [tags]
    for tag in given:
        if not issubclass(type(tag), str) or not 0 < len(tag) <= MAX_NAME or "\n" in tag:
            raise UsageError(
                f"{text(tag, MAX_NAME)!r} is not a tag",
                hint=f"a tag is one line of 1 to {MAX_NAME} characters; labels are key and value",
            )
    return list(dict.fromkeys(map(text, given)))


def as_objective(objective: Mapping[str, Mode]) -> dict[str, Json]:
    """A declared objective as it is kept. Raises UsageError."""
    if not isinstance(objective, Mapping):
        raise UsageError(f"an objective is a mapping of metrics to 'min' or 'max', not {class_name(objective)}")
    return {metric_name(name): checked_mode(name, mode, {}) for name, mode in objective.items()}
