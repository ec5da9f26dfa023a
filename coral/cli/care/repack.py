"""``coral repack``: commits that are read often, made quick to read."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_ref
from coral.cli.look.output import json_option, print_json, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from coral import Repository


@click.command()
@click.argument("refs", metavar="[REF]...", nargs=-1, shell_complete=complete_ref)
@json_option
@pass_session
def command(session: Session, refs: tuple[str, ...], as_json: bool) -> None:
    """Store commits whole that were stored as differences.

    Most commits are kept as differences to earlier ones, which takes little space and some time to read. Without
    REFs, the tips of all branches, all tags, and the best step by each objective that a run declared are stored whole.

    \b
    Examples:
      coral repack
      coral repack v1.0 best:val_loss:min
    """
    repo = session.open()
    names = refs or (*repo.history.branches().values(), *repo.history.tags().values(), *_best(repo))
    with progress_bar("repacking", None, quiet=session.quiet) as progress:
        done = repo.maintenance.repack(*names, progress=progress)
    if as_json:
        print_json(asdict(done))
        return
    if not done.chunks:
        session.say(f"commits {done.commits}: all are stored whole already")
        return
    session.say(
        f"commits {done.commits}: {size(done.raw_bytes)} stored whole, with {size(done.stored_bytes)} more on the disk"
    )


def _best(repo: Repository) -> set[str]:
    """The commits of the best steps, by the objectives that runs declared."""
    from coral.experiments import ExperimentTracker

    tracker = ExperimentTracker(repo)
    metrics = {metric for run in tracker.list() for metric in run.objective}
    found = [tracker.find_best(metric, limit=1) for metric in metrics]
    return {str(one["commit_hash"]) for best in found for one in best if one["commit_hash"]}
