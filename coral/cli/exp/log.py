"""``coral exp log``: log metrics to a run."""

from __future__ import annotations

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.runs import attach, run_option
from coral.cli.session import Session, pass_session
from coral.cli.values import parse_metrics, parse_number
from coral.errors import UsageError


# A negative value looks like an option: what is none of ours is an argument.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("values", nargs=-1, required=True, metavar="METRIC VALUE | METRIC=VALUE...")
@click.option("--step", type=int, metavar="N", help="The training step.")
@run_option
@json_option
@pass_session
def command(session: Session, values: tuple[str, ...], step: int | None, run: str | None, as_json: bool) -> None:
    """Log one metric, or several.

    \b
    Examples:
      coral exp log loss 0.5 --step 3
      coral exp log loss=0.5 acc=0.9 --step 3
    """
    metrics = _metrics(values)
    with attach(session, run) as live:
        live.log_metrics(metrics, step)
        if as_json:
            print_json({"experiment_id": live.experiment_id, "step": step, "metrics": metrics})


def _metrics(values: tuple[str, ...]) -> dict[str, float]:
    option = next((value for value in values if value.startswith("--")), None)
    if option is not None:
        raise UsageError(f"no such option: {option}", hint="see 'coral exp log --help'")
    if len(values) == 2 and "=" not in values[1]:
        return {values[0]: parse_number(values[1])}
    return parse_metrics(values)
