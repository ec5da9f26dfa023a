"""``coral exp end``: end a run that is done."""

from __future__ import annotations

import click

from coral.cli.complete import complete_ref
from coral.cli.look.output import json_option, print_json
from coral.cli.look.runs import describe_end, run_data
from coral.cli.runs import attach, run_option
from coral.cli.session import Session, pass_session


@click.command()
@click.option("--commit", metavar="REF", shell_complete=complete_ref, help="Its result, if not its last commit.")
@run_option
@json_option
@pass_session
def command(session: Session, commit: str | None, run: str | None, as_json: bool) -> None:
    """End a run: its status is COMPLETED.

    \b
    Examples:
      coral exp end
      coral exp end --commit v1.0 --run 3f2a91c07b44
    """
    ended = attach(session, run).end(commit)
    if as_json:
        print_json(run_data(ended))
    else:
        session.say(describe_end(ended))
