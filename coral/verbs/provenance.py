"""Which code made the weights: the enclosing git repository's state, taken once when the process starts.

And the way back: which weights a commit of the code made.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

from coral import pool
from coral.errors import RefNotFoundError
from coral.git.enclosing import CodeState, code_commit, code_state, find_git, identity
from coral.history import Commit, History

_HASH = re.compile(r"[0-9a-f]{4,64}", re.ASCII)


class Provenance:
    """Captures the code's state; in the background when asked early, so that opening a repository stays quick."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._state: CodeState | None = None
        self._thread: threading.Thread | None = None
        self._done = False
        self._author: list[str | None] = []

    def start(self) -> None:
        """Begin to capture: the state that counts is the one now, not that of an hour later."""
        if find_git(self._project) is None:
            self._done = True
            return
        thread = threading.Thread(target=self._capture, name="coral-provenance", daemon=True)
        try:
            pool.start(thread)
        except RuntimeError:  # the process may have no more threads
            self._capture()
        else:
            self._thread = thread

    @property
    def state(self) -> CodeState | None:
        """The code's state; None outside of a git repository."""
        if self._thread is not None:
            self._thread.join()
        if not self._done:
            self._capture()
        return self._state

    @property
    def author(self) -> str | None:
        """Who commits code there; None outside of a git repository, or when git does not know."""
        # Under no lock, which a child that is forked meanwhile would wait for: two that ask at once hear the same.
        if not self._author:
            self._author = [identity(self._project) if find_git(self._project) is not None else None]
        return self._author[0]

    def _capture(self) -> None:
        self._state = code_state(self._project) if find_git(self._project) is not None else None
        self._done = True


def made_by(
    history: History, project: Path, code: str, *, max_count: int | None = None, path: str | None = None
) -> Iterator[Commit]:
    """The commits of weights that a commit of the code made, on all branches and tags, newest first.

    Args:
        code: what the git repository around the project resolves; or the start of a hash that is in the history, which
            outlives that repository.

    Raises:
        RefNotFoundError: it is neither.
    """
    known = code_commit(project, code)
    start = known or (code.lower() if _HASH.fullmatch(code.lower()) else None)

    def is_meant(commit: Commit) -> bool:
        return start is not None and (commit.code_commit or "").startswith(start)

    if known is None and not any(history.log_everywhere(is_meant, max_count=1)):
        raise RefNotFoundError(
            f"{code!r} names no commit of the code",
            hint="name a branch, a tag or a commit of the git repository that the code is in",
        )
    return history.log_everywhere(is_meant, max_count=max_count, path=path)
