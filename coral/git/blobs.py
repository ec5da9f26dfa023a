"""Single blobs of the user's repository, by the name of what leads to them."""

from __future__ import annotations

from pathlib import Path

from coral.errors import GitCommandError
from coral.git.command import ask, run


def read_blob(folder: Path, revision: str, *, limit: int) -> bytes | None:
    """A blob's bytes; None when there is none, or when it is longer than ``limit``.

    Args:
        folder: in the repository.
        revision: an object id, or ``:0:path`` for what the index holds, or ``HEAD:path``.
    """
    length = (ask(folder, ["cat-file", "-s", revision]) or "").strip()
    if not length.isdigit() or int(length) > limit:
        return None
    try:
        return run(folder, ["cat-file", "blob", revision])
    except GitCommandError:
        return None
