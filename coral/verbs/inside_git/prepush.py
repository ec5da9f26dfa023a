"""What git is about to push: the manifests in it that the git remote does not have yet, as far as is known here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from coral.errors import UsageError
from coral.format.manifest import Manifest
from coral.git.objects import Where, existing
from coral.verbs.git_manifests import manifests_since

_NULL = re.compile(r"0+")
_PATTERN = re.compile(r"[*?\[\\]")


class Update(NamedTuple):
    """One ref that git is about to change, as its hook is told: ids of zeros stand for nothing."""

    local_ref: str
    local: str
    remote_ref: str
    remote: str


def parse_updates(text: str) -> list[Update]:
    """The lines that git writes to a pre-push hook. Raises UsageError."""
    updates = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) != 4:
            raise UsageError(f"not a line of a pre-push hook: {line[:80]!r}", hint="git calls this command by itself")
        updates.append(Update(*words))
    return updates


def pushed_manifests(
    folder: Path, updates: Iterable[Update], *, remote: str, url: str
) -> Iterator[tuple[Where, Manifest]]:
    """The manifests of the commits to be pushed, less those that the remote's refs reached when last seen.

    Args:
        remote: git's name for where it pushes to; its url where it has none.

    Raises:
        GitCommandError: git failed.
        VersionError: a manifest was written by a newer coral.
    """
    changes = [update for update in updates if not _NULL.fullmatch(update.local)]
    if not changes:
        return
    there = existing(folder, {update.remote for update in changes if not _NULL.fullmatch(update.remote)})
    # git takes the name for a pattern; what is pushed to a mere url has no refs here.
    named = remote != url and not _PATTERN.search(remote)
    yield from manifests_since(
        folder, [update.local for update in changes], known=there, remote=remote if named else None
    )
