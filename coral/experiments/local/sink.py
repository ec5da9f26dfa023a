"""A live run's sink in the folder of runs: its journal, and its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from coral.errors import CoralError, StorageError
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Event
from coral.experiments.experiment import Experiment
from coral.experiments.local.following import Following, RunStart
from coral.experiments.local.writer import JournalWriter
from coral.experiments.scalars import Json


class LocalSink:
    """A run's journal in the folder of runs; see ``seams.RunSink`` for the promises."""

    def __init__(self, following: Following, start: RunStart, journal: JournalWriter, *, shared: bool) -> None:
        self._following = following
        self._start = start
        self._journal = journal
        self._shared = shared
        # The hot path: one call fewer where no other process can end the run.
        self.point: Callable[[str, float, int | None], int] = self._point_of_shell if shared else journal.point

    @property
    def degraded(self) -> bool:
        """Whether something logged is only in memory yet."""
        return self._journal.degraded

    def _point_of_shell(self, name: str, value: float, step: int | None) -> int:
        with self._still_running():
            return self._journal.point(name, value, step)

    def append(
        self, event: Mapping[str, Json], *, durable: bool = False, holding: contextlib.ExitStack | None = None
    ) -> int:
        """Record an event at the current time; returns that."""
        with self._still_running():
            return self._journal.append(event, durable=durable, holding=holding)

    def _still_running(self) -> contextlib.AbstractContextManager[None]:
        # Another process may end a run of the shell at any time: not between this check and the write.
        return self._following.open_for_append(self._start.run_id) if self._shared else contextlib.nullcontext()

    def history(self) -> MetricColumns:
        """The points recorded so far."""
        return self._following.live_history(self._start, self._journal)

    def finish(self, event: Event) -> Experiment:
        """Record the end and fold the journal; what the disk refuses stays in the journal and in memory."""
        self.append(event, durable=True)
        self._journal.close()
        try:
            return self._following.finish(self._start, self._journal)
        finally:
            self._journal.let_go()

    def close(self) -> None:
        """Stop recording without ending the run.

        Raises StorageError when the disk refused some of it, and none of that is written once the run has ended.
        """
        try:
            # Where nothing waits nothing is written, and nobody need be waited for.
            with self._still_running() if self._journal.pending else contextlib.nullcontext():
                self._journal.close()
        except (CoralError, OSError):
            self._journal.close(tries=False)
        self._journal.let_go()
        if self._journal.pending:
            raise StorageError(f"{len(self._journal.pending)} events of run {self._start.run_id} could not be written")
