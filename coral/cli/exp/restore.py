"""``coral exp restore``: bring deleted runs back."""

from __future__ import annotations

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.runs import tracker_of
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="RUN...")
@json_option
@pass_session
def command(session: Session, ids: tuple[str, ...], as_json: bool) -> None:
    """Bring runs back from the trash; 'coral exp list --deleted' lists it.

    \b
    Example:
      coral exp restore 3f2a91c07b44
    """
    tracker = tracker_of(session)
    restored = []
    for one in ids:
        run = tracker.restore(one)
        restored.append(run.experiment_id)
        if not as_json:
            session.say(f"restored {run.name} ({run.experiment_id})")
    if as_json:
        print_json({"restored": restored})
