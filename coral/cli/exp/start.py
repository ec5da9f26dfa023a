"""``coral exp start``: start a run that lives on in the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from coral.cli.look.output import json_option, on_terminal, print_json
from coral.cli.look.runs import run_data
from coral.cli.runs import check_written, tracker_of
from coral.cli.session import Session, pass_session
from coral.cli.values import parse_objective, parse_pairs, parse_params

if TYPE_CHECKING:
    from coral.experiments.columns import Mode


@click.command()
@click.argument("name")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; JSON, else a string.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="TAG", help="A tag.")
@click.option("-d", "--description", metavar="TEXT", help="What it tries.")
@click.option("--group", metavar="PATH", help="Its group, such as vision/resnet.")
@click.option("--objective", multiple=True, metavar="METRIC:min|max", help="Which way a metric is better.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label.")
@json_option
@pass_session
def command(
    session: Session,
    name: str,
    params: tuple[str, ...],
    tags: tuple[str, ...],
    description: str | None,
    group: str | None,
    objective: tuple[str, ...],
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start the run NAME, and print its id and nothing else.

    It has no process of its own: it stays RUNNING until 'coral exp end', 'fail' or 'cancel'.

    \b
    Examples:
      coral exp start baseline
      export CORAL_RUN=$(coral exp start bert -p lr=1e-3 -p layers=4 -t nlp)
      coral exp start resnet --group vision --objective val_loss:min
    """
    directions = cast("dict[str, Mode]", parse_objective(objective))
    run = tracker_of(session).start(
        name,
        description,
        parse_params(params),
        list(tags),
        group=group,
        labels=parse_pairs(labels, "--label", str),
        objective=directions,
        owner="shell",
    )
    check_written(run)
    run.close()
    if as_json:
        print_json(run_data(run))
        return
    click.echo(run.experiment_id)
    if on_terminal():
        session.advise(f"log with 'coral exp log loss 0.5'; 'export CORAL_RUN={run.experiment_id}' if several run")
