"""The filter as git's own processes use it: with the index's blobs to compare with, and the remote to fetch from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import printable
from coral.errors import CoralError, CorruptionError, NotFoundError
from coral.format.manifest import TEXT_LIMIT
from coral.git.blobs import read_blob
from coral.verbs import layout
from coral.verbs.config import Config
from coral.verbs.inside_git.filter import GitFilter

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.objects import ChunkStore


def open_filter(top: Path) -> GitFilter:
    """The filter of the working tree whose top this is."""

    def previous(name: str) -> bytes | None:
        return read_blob(top, f":0:{name}", limit=TEXT_LIMIT)

    def fetch(store: ChunkStore, manifests: list[Manifest]) -> None:
        _fetch(top, store, manifests)

    def warn(name: str, reason: str) -> None:
        click.echo(f"coral: {printable(name)}: kept as it is: {reason}", err=True)

    named = os.environ.get("GIT_DIR")
    git_dir = Path.cwd() / named if named else None
    return GitFilter(top, previous=previous, fetch=fetch, git_dir=git_dir, warn=warn)


def _fetch(top: Path, store: ChunkStore, manifests: list[Manifest]) -> None:
    """Fetch what a remote has; whoever asked looks again, and says what is not there."""
    from coral.verbs.sharing.remotes import open_remote
    from coral.verbs.sharing.transfer import fetch_missing

    try:
        config = Config.load(layout.open_folder(top))
        if not config.remotes:
            return
        fetch_missing(store, open_remote(top, config), manifests)
    except CorruptionError as error:
        click.echo(f"coral: from the remote {error}", err=True)
    except NotFoundError as error:
        click.echo(f"coral: {error}", err=True)
    except CoralError as error:
        click.echo(f"coral: nothing was fetched: {error}", err=True)
