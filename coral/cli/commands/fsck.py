"""``coral fsck``: whether everything that was committed is still there."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from coral.cli.output import json_option, print_json, size
from coral.cli.progress import progress_bar
from coral.cli.session import Session, pass_session
from coral.errors import CorruptionError

if TYPE_CHECKING:
    from coral.verbs.fsck import Damage

_DAMAGED = "copy .coral somewhere safe before anything else; the other commits are as they were"
_MISSING = "'coral pull' brings what a remote has"
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@click.command()
@click.option("--read-data", is_flag=True, help="Read and verify every byte, too.")
@click.option("--git", is_flag=True, help="Check what the git repository around this one reaches, too.")
@json_option
@pass_session
def command(session: Session, read_data: bool, git: bool, as_json: bool) -> None:
    """Check every commit that a branch, a tag or HEAD reaches.

    Without --read-data only that everything is there: commits, manifests and chunks. Nothing is changed. Exits with 5
    when something is damaged, and names the commits, files and tensors that it hurts. With --git also every manifest
    that a branch, a stash, a reflog, an index or a worktree of the git repository reaches.

    \b
    Examples:
      coral fsck
      coral fsck --read-data
      coral fsck --git
    """
    repo = session.open()
    with progress_bar("checking", None, quiet=session.quiet) as progress:
        checked = repo.fsck(read_data=read_data, git=git, progress=progress)
    if as_json:
        print_json(asdict(checked))
    for found in () if as_json else checked.damage:
        click.echo(f"damaged: {_where(found)}: {found.message}")
    if not as_json:
        read = f", {size(checked.nbytes)} read and verified" if read_data else ""
        session.say(f"commits {checked.commits}, manifests {checked.manifests}, tensors {checked.tensors}{read}")
    if checked.damage:
        raise CorruptionError(
            f"the repository is damaged in {len(checked.damage)} places",
            hint=_MISSING if all(found.in_git for found in checked.damage) else _DAMAGED,
        )


def _where(found: Damage) -> str:
    commit = found.commit[:10] if _HASH.fullmatch(found.commit) else found.commit
    return " ".join(filter(None, ("git" if found.in_git else "", commit, found.part, found.tensor)))
