"""``coral exp delete``: move runs to the trash."""

from __future__ import annotations

import click

from coral.cli.complete import complete_run
from coral.cli.look.output import json_option, print_json
from coral.cli.runs import tracker_of
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_run)
@json_option
@pass_session
def command(session: Session, ids: tuple[str, ...], as_json: bool) -> None:
    """Move runs to the trash; their commits and artifacts stay. 'coral exp restore RUN' brings one back.

    \b
    Example:
      coral exp delete 3f2a91c07b44
    """
    tracker = tracker_of(session)
    runs = [tracker.get(one) for one in ids]
    for run in runs:
        tracker.delete(run.experiment_id)
        if not as_json:
            session.say(f"deleted {run.name} ({run.experiment_id})")
    if as_json:
        print_json({"deleted": [run.experiment_id for run in runs]})
