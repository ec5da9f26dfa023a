"""Bounds on time that no busy machine breaks."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail when the block takes more of the processor's time than this, which is to tell minutes from moments.

    What other tests have left in memory is not looked through by Python's garbage collector meanwhile.
    """
    gc.freeze()
    started = time.process_time()
    try:
        yield
    finally:
        gc.unfreeze()
    spent = time.process_time() - started
    assert spent <= seconds, f"{spent:.2f} s"
