"""``coral exp params``: show or set a run's parameters."""

from __future__ import annotations

import click

from coral.cli.look.output import json_option, print_json, print_table
from coral.cli.look.runs import param_text
from coral.cli.runs import attach, run_option
from coral.cli.session import Session, pass_session
from coral.cli.values import parse_params


@click.command()
@click.argument("pairs", nargs=-1, metavar="[NAME=VALUE...]")
@run_option
@json_option
@pass_session
def command(session: Session, pairs: tuple[str, ...], run: str | None, as_json: bool) -> None:
    """Show a running run's parameters, or set some; what they were before is remembered.

    Values that are JSON are parsed, all others are strings.

    \b
    Examples:
      coral exp params
      coral exp params lr=1e-4 scheduler=cosine 'optimizer={"name": "adam"}'
    """
    params = parse_params(pairs)
    with attach(session, run) as live:
        if params:
            live.log_params(params)
        if as_json:
            print_json(live.params)
        elif not params:
            print_table(("param", "value"), [[name, param_text(value)] for name, value in live.params.items()])
