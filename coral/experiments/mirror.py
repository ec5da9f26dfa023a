"""Mirrors: whatever follows a run while it is recorded, such as a dashboard or another tracking tool.

A mirror is told of each event after it is recorded, by a thread of its own. Training never waits for it: events wait in
a queue, where points are left out once it is full, and the end of a run waits for a few seconds at most. A mirror that
raises, whatever it raises, is warned of and told nothing more; so is one that does not come to an end.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

from coral import forks, pool, threads
from coral.errors import UsageError
from coral.experiments import events
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Event, Fold
from coral.experiments.experiment import Experiment, now, to_ms
from coral.experiments.scalars import MAX_NAME, Json, class_name, text
from coral.experiments.seams import RunSink

MOST_WAITING = 100_000
FLUSH_SECONDS = 5.0
_PAUSE_SECONDS = 0.02


@runtime_checkable
class Mirror(Protocol):
    """Something that follows runs.

    A tracker tells it of one event at a time, by a thread that does nothing else, and what one thread logged in the
    order in which it did. It may take its time, and raise; it must not log to the run. In a forked child the parent's
    runs are recorded, and no mirror is told of it.
    """

    def event(self, run: Experiment, event: Event) -> None:
        """Something happened to a run.

        The first event of a run is a ``start``: it began, or is gone on with; then come those of :mod:`events`, of
        which newer versions of coral may have more; the last one of a run that ends is an ``end``. A ``drop`` says how
        many points the mirror was not told of.

        Args:
            run: as it is with this event, its artifacts' bytes at hand, but without its points. The mirror's own copy.
            event: the mirror's own copy.
        """

    def close(self, run: Experiment) -> None:
        """Nothing more of this run comes from here: it has ended, or was let go of."""


class Mirrors:
    """The mirrors of a tracker.

    Raises:
        UsageError: one of them is none.
    """

    def __init__(self, mirrors: Iterable[Mirror]) -> None:
        self._feeds: list[_Feed] = []
        self._feeds.extend(map(_Feed, map(_checked, mirrors)))

    def __del__(self) -> None:
        for feed in self._feeds:
            feed.stop()

    def follow(self, experiment: Experiment, sink: RunSink) -> RunSink:
        """What records a run that has just begun to be recorded by ``sink``, and tells the mirrors of it."""
        feeds = [feed for feed in self._feeds if feed.begin()]
        return MirroredSink(self, sink, [_Told(feed, experiment) for feed in feeds]) if feeds else sink


class MirroredSink:
    """A run's sink whose events mirrors are told of; see ``seams.RunSink`` for the promises."""

    def __init__(self, mirrors: Mirrors, sink: RunSink, followed: list[_Told]) -> None:
        self._mirrors = mirrors  # whose threads live as long
        self._sink = sink
        self._followed = followed
        forks.tell(self)

    def after_fork(self) -> None:
        """The mirrors are the parent's."""
        self._followed = []

    @property
    def degraded(self) -> bool:
        """Whether something logged is only in memory yet."""
        return self._sink.degraded

    def point(self, name: str, value: float, step: int | None) -> int:
        """Record one metric at the current time; returns that."""
        time_ms = self._sink.point(name, value, step)
        self._tell(events.at(events.points({name: value}, step), time_ms))
        return time_ms

    def append(self, event: Mapping[str, Json], *, durable: bool = False, holding: ExitStack | None = None) -> int:
        """Record an event at the current time; returns that."""
        time_ms = self._sink.append(event, durable=durable, holding=holding)
        self._tell(events.at(event, time_ms))
        return time_ms

    def history(self) -> MetricColumns:
        """The points recorded so far."""
        return self._sink.history()

    def finish(self, event: Event) -> Experiment:
        """Record the end and close; returns the run as it is kept."""
        try:
            kept = self._sink.finish(event)
            self._tell(events.at(event, to_ms(kept.ended_at or now())))
            return kept
        finally:
            self._part()

    def close(self) -> None:
        """Stop recording without ending the run."""
        try:
            self._sink.close()
        finally:
            self._part()

    def _tell(self, event: Event) -> None:
        for followed in self._followed:
            followed.put(event)

    def _part(self) -> None:
        """Have the mirrors told of all that waits; those that take too long are left out."""
        parting, self._followed = self._followed, []
        for followed in parting:
            followed.put(None)
        until = time.monotonic() + FLUSH_SECONDS
        for followed in parting:
            followed.wait(until)


class _Told:
    """A run as one mirror knows it.

    Attributes:
        hurries: whether its points are left out, so that a mirror that has fallen behind hears of the end.
    """

    def __init__(self, feed: _Feed, experiment: Experiment) -> None:
        self._feed = feed
        self.run = copy.deepcopy(replace(experiment, metrics=[], artifact_store=None))
        self.run.artifact_store = experiment.artifact_store
        self.hurries = False
        self._fold = Fold(self.run, MetricColumns())
        self._counting = forks.rlock()
        self._left_out = 0
        self._is_over = threading.Event()
        self.put(events.at(events.start(experiment), to_ms(now())))

    def put(self, event: Event | None) -> None:
        """Have the mirror told of an event; None closes."""
        if event is not None and events.is_points(event) and self._feed.is_full():
            self._leave_out()
        else:
            self._feed.put(self, event)

    def _leave_out(self) -> None:
        with self._counting:
            self._left_out += 1

    def tell(self, mirror: Mirror, event: Event | None) -> None:
        """Tell a mirror now. Raises what it raises."""
        if event is None:
            mirror.close(self.run)
        elif self.hurries and events.is_points(event):
            self._leave_out()
        elif not self._fold.ended:  # threads may log what comes too late
            if self._left_out:
                with self._counting:
                    left_out, self._left_out = self._left_out, 0
                self._tell(mirror, events.at(events.dropped(left_out), to_ms(now())))
            self._tell(mirror, event)

    def _tell(self, mirror: Mirror, event: Event) -> None:
        if events.is_points(event):
            own = copy.deepcopy(event) if "d" in event else {**event, "v": {**event["v"]}}  # type: ignore[dict-item]
        else:
            own = copy.deepcopy(event)
            self._fold.apply_all([event])
        mirror.event(self.run, own)

    def over(self) -> None:
        """The mirror was told of all."""
        self._is_over.set()

    def wait(self, until: float) -> None:
        """Wait until the mirror was told of all; points that keep it from that are left out, and at last it is."""
        if not self._is_over.wait(max(0.0, until - FLUSH_SECONDS / 2 - time.monotonic())):
            self.hurries = True
            if not self._is_over.wait(max(0.0, until - time.monotonic())):
                self._feed.leave_out("it is slow, and was not told of all of a run")


class _Feed:
    """A mirror, what waits to be told to it, and the thread that does."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._is_left_out = False
        self.after_fork()
        forks.tell(self)

    def after_fork(self) -> None:
        """A child has no thread yet, and its parent's events are not its own."""
        self._has_thread = False
        self._waiting: SimpleQueue[tuple[_Told, Event | None] | None] = SimpleQueue()

    def begin(self) -> bool:
        """Be ready to be told of a run; False for a mirror that is left out."""
        if not self._has_thread and not self._is_left_out:
            try:
                pool.start(threading.Thread(target=self._work, name="coral-mirror", daemon=True))
                self._has_thread = True
            except RuntimeError as error:  # the process may have no more threads, and training must not wait
                self.leave_out(str(error))
        return not self._is_left_out

    def stop(self) -> None:
        """Let the thread end once it has told what waits."""
        # Python's garbage collector may be who calls: there is no lock in this.
        self._waiting.put(None)

    def is_full(self) -> bool:
        """Whether too much waits."""
        return self._waiting.qsize() >= MOST_WAITING

    def put(self, followed: _Told, event: Event | None) -> None:
        """Have it told; one call, which no interrupt parts."""
        self._waiting.put((followed, event))

    def _work(self) -> None:
        while self._tell_next():
            for _ in range(self._waiting.qsize()):
                if not self._tell_next():
                    return
            time.sleep(_PAUSE_SECONDS)  # one that is always at it costs the training more, which needs the interpreter

    def _tell_next(self) -> bool:
        """Tell the mirror what has waited longest, or wait for it; False when there is no more to come."""
        told = self._waiting.get()
        if told is None:
            return False
        followed, event = told
        try:
            if not self._is_left_out:
                followed.tell(self._mirror, event)
        except BaseException as error:  # of any kind: it is another's code, and this thread has no other work
            self.leave_out(f"it raised {_shown(error)}")
        if event is None:
            followed.over()
        return True

    def leave_out(self, why: str) -> None:
        """Tell the mirror nothing more; warn of it, once."""
        if not self._is_left_out:
            self._is_left_out = True
            with contextlib.suppress(Exception):  # of a program that makes errors of warnings
                threads.warn(f"the mirror {class_name(self._mirror)} is left out from now on: {why}")


def _shown(error: BaseException) -> str:
    try:
        return f"{class_name(error)}: {text(error, MAX_NAME)}"
    except BaseException:  # of an error that is asked what it says
        return class_name(error)


def _checked(mirror: Mirror) -> Mirror:
    if isinstance(mirror, Mirror) and not isinstance(mirror, type):
        return mirror
    raise UsageError(f"{mirror!r} is no mirror", hint="an object with the methods of experiments.Mirror")
