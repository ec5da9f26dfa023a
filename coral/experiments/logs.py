"""What a training loop logs: each method said once, for a run and for the tracker whose active run it goes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from coral.errors import UsageError
from coral.experiments import artifacts, events
from coral.experiments.columns import Mode
from coral.experiments.events import Event
from coral.experiments.experiment import Artifact, checked_mode
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

_MAX_LABEL = 10_000


class Target(Protocol):
    """The run that something is logged to."""

    def _open(self) -> RunSink:
        """Where its events go. Raises ConflictError once it has ended."""

    def _record(self, event: Event, *, durable: bool = False, holding: ExitStack | None = None) -> int:
        """Record an event, which the run then shows; returns its time. Raises ConflictError once it has ended."""

    def _keep(self, content: artifacts.Content) -> Artifact | None:
        """Keep an artifact; None when the disk refused it. Raises ConflictError once it has ended."""


class Logs:
    """The methods that log to a run; those of a tracker, to the active one.

    What makes no sense raises UsageError; where no run is active, or it has ended, ConflictError is raised.
    """

    if TYPE_CHECKING:  # a run has an attribute: a call fewer on the hot path

        @property
        def _point(self) -> Callable[[str, float, int | None], int]:
            """Records one metric; returns its time."""

    def _target(self) -> Target:
        """The run that is meant. Raises ConflictError when none is active."""
        raise NotImplementedError

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
        target = self._target()
        at = whole(step)
        if not isinstance(metrics, Mapping):
            raise UsageError(f"metrics are a mapping of names to numbers, not {class_name(metrics)}")
        values = {metric_name(name): number(name, value) for name, value in metrics.items()}
        event = events.points(values, at, as_params(metadata) if metadata else None)
        if values:
            target._open().append(event)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Lay parameters over those there are; nested ones key by key. Each change is remembered."""
        self._target()._record(events.params(as_params(params)))

    def add_tags(self, tags: Iterable[str]) -> None:
        """Add tags; of a mapping, each key and value is a label, as by :meth:`set_labels`."""
        if isinstance(tags, Mapping):
            self.set_labels(tags)
        else:
            self._target()._record(events.settings(add_tags=list(as_tags(tags))))

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags; those that are not there are ignored."""
        self._target()._record(events.settings(remove_tags=list(as_tags(tags))))

    def set_labels(self, labels: Mapping[str, str | None]) -> None:
        """Set key-value labels; None removes one."""
        self._target()._record(events.settings(labels=as_labels(labels)))

    def set_notes(self, notes: str | None) -> None:
        """Replace the notes."""
        self._target()._record(events.settings(notes=as_text(notes, "notes")))

    def set_objective(self, objective: Mapping[str, Mode]) -> None:
        """Declare which way is better, by metric. Raises UsageError for what is neither ``min`` nor ``max``."""
        self._target()._record(events.settings(objective=as_objective(objective)))

    # -- artifacts

    def log_artifact(self, path_or_object: object, name: str | None = None) -> Artifact | None:
        """Keep a file, or an object by what it is: bytes, dict, array, tensor, data frame or figure.

        What is returned is there for as long as the run is, whoever collects garbage: the store is held until the
        run's journal names it, and longer while the disk refuses that (see ``degraded``).

        Returns None when the disk refused it; a warning says so. Raises NotFoundError, UsageError, and ConflictError
        once the run has ended.
        """
        return self._target()._keep(artifacts.of_anything(path_or_object, name))

    def log_text(self, text: str, name: str) -> Artifact | None:
        """Keep a text."""
        return self._target()._keep(artifacts.of_text(text, name))

    def log_dict(self, data: object, name: str) -> Artifact | None:
        """Keep JSON-able data; ``.json`` is added to a name without a suffix."""
        return self._target()._keep(artifacts.of_dict(data, name))

    def log_numpy_array(self, array: object, name: str) -> Artifact | None:
        """Keep an array or a tensor, as ``.npy``."""
        return self._target()._keep(artifacts.of_array(array, name))

    def log_table(self, table: object, name: str) -> Artifact | None:
        """Keep a data frame, a mapping of columns or a list of rows, as CSV."""
        return self._target()._keep(artifacts.of_table(table, name))

    def log_figure(self, figure: object, name: str) -> Artifact | None:
        """Keep a figure: whatever has ``savefig``."""
        return self._target()._keep(artifacts.of_figure(figure, name))

    log_artifact_data = log_dict
    log_dataframe = log_table
    log_plot = log_figure


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
