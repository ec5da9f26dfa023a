"""``coral exp fail``: end a run that failed."""

from __future__ import annotations

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.look.runs import describe_end, run_data
from coral.cli.runs import attach, run_option
from coral.cli.session import Session, pass_session


@click.command()
@click.option("-m", "--message", metavar="TEXT", help="What went wrong.")
@run_option
@json_option
@pass_session
def command(session: Session, message: str | None, run: str | None, as_json: bool) -> None:
    """End a run: its status is FAILED.

    \b
    Examples:
      coral exp fail
      coral exp fail -m "the loss is NaN"
    """
    ended = attach(session, run).fail(message)
    if as_json:
        print_json(run_data(ended))
    else:
        session.say(describe_end(ended))
