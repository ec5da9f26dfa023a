"""Interrupts at a chosen step: what a signal handler that raises does, at every line where Python may run it."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

_RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST", "YIELD_VALUE") if name in dis.opmap}
_PACKAGE = f"{Path(__file__).parents[1]}/"


class Steps:
    """Counts the lines and returns of coral's own code in this thread, and raises KeyboardInterrupt at one of them.

    Args:
        at: at which, counted from 1; 0 for none.

    Attributes:
        count: how many there were.
        place: where it was raised; empty where it was not.
        during: the error that was on its way, and that its trace shows.
    """

    def __init__(self, at: int = 0) -> None:
        self.count = 0
        self.place = ""
        self.during: BaseException | None = None
        self._at = at

    def run(self, call: Callable[[], object]) -> bool:
        """Make a call; whether it was interrupted."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        except KeyboardInterrupt as interrupt:
            if not self.place:
                raise
            self.during = interrupt.__context__
            return True
        finally:
            sys.settrace(before)
        return False

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        return self._step if file.startswith(_PACKAGE) or file.endswith("contextlib.py") else None

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        # A frame that an exception leaves is left in one step.
        if event == "line" or (event == "return" and frame.f_code.co_code[frame.f_lasti] in _RETURNS):
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                self.place = f"{frame.f_code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt
        return self._step
