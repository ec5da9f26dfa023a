"""``coral exp list``: list runs."""

from __future__ import annotations

import click

from coral.cli.complete import complete_branch
from coral.cli.look.output import json_option, print_json
from coral.cli.look.runs import print_runs, run_data
from coral.cli.runs import STATUS, tracker_of
from coral.cli.session import Session, pass_session


@click.command()
@click.option("--status", multiple=True, type=STATUS, help="Only these; again for more.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag; again: with all of them.")
@click.option("--branch", metavar="NAME", shell_complete=complete_branch, help="Only on this branch.")
@click.option("--group", metavar="PATH", help="Only in this group, and those below it.")
@click.option("--name", metavar="NAME", help="Only of this name.")
@click.option("-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most N runs.")
@click.option("--deleted", is_flag=True, help="List the trash instead.")
@json_option
@pass_session
def command(
    session: Session,
    status: tuple[str, ...],
    tags: tuple[str, ...],
    branch: str | None,
    group: str | None,
    name: str | None,
    max_count: int | None,
    deleted: bool,
    as_json: bool,
) -> None:
    """List runs, newest first.

    \b
    Examples:
      coral exp list
      coral exp list --status running
      coral exp list -t nlp --group vision -n 10 --json
    """
    tracker = tracker_of(session)
    if deleted:
        runs = tracker.trash()
    else:
        runs = tracker.list(list(status) or None, list(tags) or None, branch, max_count, name=name, group=group)
    if as_json:
        print_json([run_data(run) for run in runs])
    elif runs:
        print_runs(runs)
    else:
        session.say("no runs")
