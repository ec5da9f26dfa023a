"""Short ways to make commits in tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from coral.history.commit import Commit
from coral.history.history import History
from coral.ids import CommitHash


def commit(
    history: History,
    message: str = "a commit",
    *,
    parents: Sequence[CommitHash] = (),
    parts: dict[str, str] | None = None,
    seconds: int | None = None,
) -> Commit:
    """A commit of parts (path to text) over its first parent; no ref moves."""
    overlay = {path: history.write_blob(text.encode()) for path, text in (parts or {}).items()}
    time = datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
    return history.write_commit(
        base=parents[0] if parents else None, overlay=overlay, parents=parents, message=message, time=time
    )


def commit_on(history: History, branch: str, text: str, *, path: str = "model.safetensors") -> Commit:
    """A commit that a branch moves to."""
    tip = history.branches().get(branch)
    made = commit(history, text, parents=[tip] if tip else [], parts={path: text})
    history.move_branch(branch, made.commit_hash, expected=tip, reason=f"commit: {text}")
    return made


def line_of(history: History, count: int, branch: str = "main") -> list[CommitHash]:
    """A line of commits, one after the other, in as few writes as it takes; returns their hashes, oldest first."""
    blob = history.write_blob(b"weights")
    made: list[CommitHash] = []
    for number in range(count):
        parents = made[-1:]
        base = parents[0] if parents else None
        overlay = {} if parents else {"model.safetensors": blob}
        made.append(
            history.write_commit(base=base, overlay=overlay, parents=parents, message=f"step {number}").commit_hash
        )
    history.create_branch(branch, made[-1])
    return made
