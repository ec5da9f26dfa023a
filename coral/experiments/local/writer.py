"""Where a live run's events go: a journal that never kills the training it records.

``point`` is the hot path: one line built by hand, one unbuffered write. When the disk refuses, lines wait in a
bounded buffer, one warning is given, and the disk is tried again about every second until it takes them.

A power cut takes what was logged in the last five seconds at most: a thread syncs what nobody else has.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coral import forks, pool, threads
from coral.errors import ConflictError, CoralError
from coral.experiments import events
from coral.experiments.local.journal import encode, line, quote
from coral.experiments.scalars import Json, metric_name, tagged
from coral.verbs import signals

if TYPE_CHECKING:
    from coral.storage.files import AppendFile

SYNC_SECONDS = 5.0
IDLE_SECONDS = 4.0  # and then the sync itself
RETRY_SECONDS = 1.0
MAX_PENDING = 100_000
_REFUSED = (CoralError, OSError)


class JournalWriter:
    """An open journal.

    Args:
        connect: opens the journal, and does whatever must be on disk before it; called again after a failure.
        label: the run, as warnings name it.
        renew: puts a new file in the place of a journal whose fsync failed; None where others write to it as well,
            and what is logged is then safe from a kill, but not from a power cut.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        connect: Callable[[], AppendFile],
        label: str,
        *,
        renew: Callable[[AppendFile], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connect = connect
        self._renew = renew
        self._label = label
        self._clock = clock
        self._lock = forks.rlock()  # a signal handler may come in the middle of an append
        self._file: AppendFile | None = None
        self._refusing = False
        self._pending: deque[tuple[bool, bytes]] = deque()
        self._holding = contextlib.ExitStack()
        self._dropped = 0
        self._warned = False
        self._closed = False
        self._names: dict[str, str] = {}
        self._write: Callable[[bytes], None] = self._wait
        self._sync_at = self._retry_at = 0.0
        self._synced_bytes = 0
        self._over = threading.Event()
        with self._lock:
            self._reconnect(clock())
        with contextlib.suppress(RuntimeError):  # no thread to be had: whoever logs on syncs what was before
            pool.start(threading.Thread(target=_sync_now_and_then, args=(weakref.ref(self), self._over), daemon=True))

    def __del__(self) -> None:
        # The thread finds out by itself: whom Python's garbage collector calls must not wait for a lock.
        # Not earlier: another thread may be about to write, and a closed descriptor's number is soon another file's.
        if self._file is not None:
            self._file.close()

    @property
    def degraded(self) -> bool:
        """Whether lines wait in memory because the disk refuses them."""
        return self._refusing

    @property
    def pending(self) -> list[bytes]:
        """The lines that wait."""
        with self._lock:
            return [data for _, data in self._pending]

    @property
    def readable(self) -> Path | None:
        """Where what was written can be read, even when the journal has lost its name; None before it was opened."""
        if self._file is None:
            return None
        # The kernel keeps a file for as long as it is open, and Linux tells where.
        kept = Path(f"/proc/self/fd/{self._file.fileno()}")
        return kept if kept.exists() else self._file.path

    def point(self, name: str, value: float, step: int | None) -> int:
        """Record one metric at the current time; returns that."""
        now = self._clock()
        time_ms = int(now * 1000)
        key = self._names.get(name) or self._quoted(name)
        shown = repr(value) if math.isfinite(value) else f'"{tagged(value)}"'
        if step is None:
            data = line(f'{{"e":"m","t":{time_ms},"v":{{{key}{shown}}}}}'.encode())
        else:
            data = line(f'{{"e":"m","t":{time_ms},"s":{step},"v":{{{key}{shown}}}}}'.encode())
        try:
            self._write(data)
        except _REFUSED as error:
            self._refused(error, True, data)
        if now >= self._sync_at:
            self._sync(now)
        return time_ms

    def append(
        self, event: Mapping[str, Json], *, durable: bool = False, holding: contextlib.ExitStack | None = None
    ) -> int:
        """Record an event at the current time; see ``seams.RunSink``."""
        now = self._clock()
        time_ms = int(now * 1000)
        data = encode(events.at(event, time_ms))
        try:
            self._write(data)
        except _REFUSED as error:
            self._refused(error, events.is_points(event), data, holding)
        if durable or now >= self._sync_at:
            self._sync(now)
        return time_ms

    def close(self, *, tries: bool = True) -> None:
        """Try once more to write what waits, then close; to be followed by :meth:`let_go`."""
        with self._lock:
            if self._pending and tries:
                self._reconnect(self._clock())
            self._closed = True
            self._over.set()
            self._write = self._after_close
            if self._file is not None:
                with contextlib.suppress(*_REFUSED):
                    self._file.sync()

    def let_go(self) -> None:
        """Let go of what is held for events that wait: they can be read now, or never will be."""
        with self._lock:
            self._holding.close()

    def _quoted(self, name: str) -> str:
        self._names[name] = quoted = quote(metric_name(name)) + ":"
        return quoted

    def _sync(self, now: float) -> None:
        self._sync_at = now + SYNC_SECONDS
        if self._file is not None and not self._refusing:
            try:
                self._file.sync()
            except _REFUSED as error:
                self._refused(error)

    def sync_if_grown(self) -> None:
        """Sync what was written since this was last called, or write what waits; whoever logs on does, too, but nobody
        may log on."""
        if self._refusing and self._renew is not None:  # of a run of the shell nobody knows here whether it has ended
            with self._lock:
                if not self._closed:
                    self._reconnect(self._clock())
        file = self._file
        if file is None or self._refusing or self._closed:
            return
        size = os.fstat(file.fileno()).st_size
        if size != self._synced_bytes:
            self._sync(self._clock())
            self._synced_bytes = size

    # -- when the disk refuses

    def _wait(self, data: bytes) -> None:
        raise CoralError("the journal is waiting for the disk")

    def _after_close(self, data: bytes) -> None:
        signals.stay_if_dying()  # it is the signal that has ended the run
        raise ConflictError(f"{self._label} has ended, so nothing more can be logged to it")

    def _refused(
        self,
        error: Exception,
        is_point: bool = False,
        data: bytes = b"",
        holding: contextlib.ExitStack | None = None,
    ) -> None:
        with self._lock:
            if self._closed:
                raise error
            now = self._clock()
            if not self._refusing:
                self._give_up(error, now)
            if data:
                self._hold(is_point, data)
            if holding is not None:
                self._holding.enter_context(holding.pop_all())
            if now >= self._retry_at:
                self._reconnect(now)

    def _give_up(self, error: Exception, now: float) -> None:
        self._refusing, self._write = True, self._wait
        self._retry_at = now + RETRY_SECONDS
        if not self._warned:
            self._warned = True
            threads.warn(
                f"{self._label} cannot be written for now ({error}); training goes on, what is logged waits in memory"
            )

    def _hold(self, is_point: bool, data: bytes) -> None:
        self._pending.append((is_point, data))
        if len(self._pending) > MAX_PENDING:
            # The oldest point goes; parameters, commits and the end are few, and stay.
            kept = [self._pending.popleft()]
            while not kept[-1][0] and self._pending:
                kept.append(self._pending.popleft())
            if kept[-1][0]:
                self._dropped += 1
                kept.pop()
            self._pending.extendleft(reversed(kept))

    def _reconnect(self, now: float) -> None:
        try:
            if self._file is None:
                self._file = self._connect()
            if self._file.doubtful and self._renew is not None:
                self._renew(self._file)
            while self._pending:
                self._file.write(self._pending[0][1])
                self._pending.popleft()
            self._holding.close()
            if self._dropped:
                self._file.write(encode(events.at(events.dropped(self._dropped), int(now * 1000))))
                self._dropped = 0
            self._file.sync()
        except _REFUSED as error:
            self._give_up(error, now)
            return
        self._refusing, self._write = False, self._file.write_line
        self._sync_at = now + SYNC_SECONDS


def _sync_now_and_then(known: weakref.ref[JournalWriter], over: threading.Event) -> None:
    """Keep a journal synced until it is closed, or nobody knows it any more."""
    while not over.wait(IDLE_SECONDS):
        writer = known()
        if writer is None:
            return
        with contextlib.suppress(*_REFUSED):
            writer.sync_if_grown()
        del writer
