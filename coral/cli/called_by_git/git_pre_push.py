"""``coral git-pre-push``: git's pre-push hook, which sends the tensors before git sends what names them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, size
from coral.cli.look.progress import progress_bar
from coral.cli.remotes import remote_for
from coral.cli.session import Session, pass_session
from coral.errors import CoralError, RepositoryNotFoundError

if TYPE_CHECKING:
    from coral.format.manifest import Manifest

SKIP = "CORAL_SKIP_PUSH"


@click.command()
@click.argument("remote")
@click.argument("url", required=False, default="")
@pass_session
def command(session: Session, remote: str, url: str) -> None:
    """Send the tensors of the commits that git is about to push; git's pre-push hook calls this.

    They go to the coral remote of the same name, else to 'origin', else to the only one. What cannot be sent keeps git
    from pushing, because a clone would lack it. CORAL_SKIP_PUSH=1, or git push --no-verify, pushes nevertheless.

    \b
    Example of a hook:
      coral git-pre-push "$@"
    """
    if os.environ.get(SKIP):
        return
    from coral.verbs.inside_git.prepush import parse_updates, pushed_manifests

    updates = parse_updates(sys.stdin.read())
    manifests = (manifest for _, manifest in pushed_manifests(Path.cwd(), updates, remote=remote, url=url or remote))
    first = next(manifests, None)
    if first is None:
        return
    try:
        _send(session, remote, chain([first], manifests))
    except CoralError:
        click.echo("coral: the tensors of what is pushed were not all sent, so nothing is pushed", err=True)
        click.echo(f"coral: 'git push --no-verify', or {SKIP}=1, pushes without them", err=True)
        raise


def _send(session: Session, like: str, manifests: Iterator[Manifest]) -> None:
    from coral.repository import Repository

    try:
        repo = Repository.discover(".", shell_staging=True)
    except RepositoryNotFoundError as error:
        raise RepositoryNotFoundError(
            f"{error.message}, which would hold the tensors", hint="'coral install' makes one"
        ) from None
    name = remote_for(repo, like=like)
    with progress_bar("sending tensors", None, quiet=session.quiet) as progress:
        sent = repo.remotes.send(manifests, name, progress=progress)
    if sent.chunks and not session.quiet:
        click.echo(f"coral: sent {count(sent.chunks, 'chunk')}, {size(sent.nbytes)} to '{name}'", err=True)
