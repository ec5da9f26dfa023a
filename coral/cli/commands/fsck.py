"""``coral fsck``: whether everything that was committed is still there."""

from __future__ import annotations

from dataclasses import asdict

import click

from coral.cli.output import json_option, print_json, size
from coral.cli.progress import progress_bar
from coral.cli.session import Session, pass_session
from coral.errors import CorruptionError


@click.command()
@click.option("--read-data", is_flag=True, help="Read and verify every byte, too.")
@json_option
@pass_session
def command(session: Session, read_data: bool, as_json: bool) -> None:
    """Check every commit that a branch, a tag or HEAD reaches.

    Without --read-data only that everything is there: commits, manifests and chunks. Nothing is changed. Exits with 5
    when something is damaged, and names the commits, files and tensors that it hurts.

    \b
    Examples:
      coral fsck
      coral fsck --read-data
    """
    repo = session.open()
    with progress_bar("checking", None, quiet=session.quiet) as progress:
        checked = repo.fsck(read_data=read_data, progress=progress)
    if as_json:
        print_json(asdict(checked))
    for found in () if as_json else checked.damage:
        where = " ".join(filter(None, (found.commit[:10], found.part, found.tensor)))
        click.echo(f"damaged: {where}: {found.message}")
    if not as_json:
        read = f", {size(checked.nbytes)} read and verified" if read_data else ""
        session.say(f"commits {checked.commits}, manifests {checked.manifests}, tensors {checked.tensors}{read}")
    if checked.damage:
        raise CorruptionError(
            f"the repository is damaged in {len(checked.damage)} places",
            hint="copy .coral somewhere safe before anything else; the other commits are as they were",
        )
