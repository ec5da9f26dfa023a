"""Which code made the weights: the enclosing git repository's state, taken once when the process starts."""

from __future__ import annotations

import threading
from pathlib import Path

from coral.git.enclosing import CodeState, code_state, find_git


class Provenance:
    """Captures the code's state; in the background when asked early, so that opening a repository stays quick."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._state: CodeState | None = None
        self._thread: threading.Thread | None = None
        self._done = False

    def start(self) -> None:
        """Begin to capture: the state that counts is the one now, not that of an hour later."""
        if find_git(self._project) is None:
            self._done = True
            return
        self._thread = threading.Thread(target=self._capture, name="coral-provenance", daemon=True)
        self._thread.start()

    @property
    def state(self) -> CodeState | None:
        """The code's state; None outside of a git repository."""
        if self._thread is not None:
            self._thread.join()
        if not self._done:
            self._capture()
        return self._state

    def _capture(self) -> None:
        self._state = code_state(self._project) if find_git(self._project) is not None else None
        self._done = True
