"""The filter as git's own processes use it: with the index's blobs to compare with, and the remote to fetch from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coral.format.manifest import TEXT_LIMIT
from coral.git.blobs import read_blob
from coral.verbs.filter import GitFilter

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.objects import ChunkStore


def open_filter(top: Path) -> GitFilter:
    """The filter of the working tree whose top this is."""

    def previous(name: str) -> bytes | None:
        return read_blob(top, f":0:{name}", limit=TEXT_LIMIT)

    def fetch(store: ChunkStore, manifests: list[Manifest]) -> None:
        """Not yet."""

    return GitFilter(top, previous=previous, fetch=fetch)
