"""The gate: shared by many, never waiting for itself."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from coral.storage import gate
from coral.storage.gate import Gate


def _drop_one(shared: Gate) -> None:
    """Leave a holder that nobody has any more, to whoever collects Python's garbage next."""
    holding = contextlib.ExitStack()
    holding.enter_context(shared.shared())
    cycle: list[object] = [holding]
    cycle.append(cycle)


def test_a_dropped_holder_is_let_go_at_any_moment(tmp_path: Path) -> None:
    """Python may collect its garbage on any line; a holder among it waits for nobody, and all are accounted for."""
    shared, lines = Gate(tmp_path / "lock"), 0

    def collect(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != gate.__file__:
            return None
        if event == "line":
            lines += 1
            sys.settrace(None)
            _drop_one(shared)
            gc.collect()
            sys.settrace(collect)
        return collect

    def share() -> None:
        sys.settrace(collect)
        with shared.shared():
            pass
        sys.settrace(None)

    thread = threading.Thread(target=share, daemon=True)
    gc.disable()
    gc.freeze()  # what other tests have left in memory is not looked through at each line
    try:
        thread.start()
        thread.join(30)
    finally:
        gc.unfreeze()
        gc.enable()
    assert not thread.is_alive() and lines > 5
    with shared.alone(timeout=0):
        pass


def test_who_shares_it_does_not_queue(tmp_path: Path) -> None:
    """Whoever holds it shares it again, in any thread, while somebody waits to have it alone; others do not."""
    shared, waits = Gate(tmp_path / "lock"), threading.Event()

    def take_alone() -> None:
        waits.set()
        with shared.alone():
            pass

    with shared.shared():
        thread = threading.Thread(target=take_alone)
        thread.start()
        waits.wait()
        for _ in range(50):
            with shared.shared(timeout=5):
                pass
    thread.join()
