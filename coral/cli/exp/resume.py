"""``coral exp resume``: go on where a run stopped."""

from __future__ import annotations

import click

from coral.cli.complete import complete_run
from coral.cli.look.output import json_option, print_json
from coral.cli.look.runs import run_data
from coral.cli.runs import check_written, tracker_of
from coral.cli.session import Session, pass_session
from coral.cli.values import parse_params


@click.command()
@click.argument("parent", metavar="RUN", shell_complete=complete_run)
@click.option("--name", metavar="NAME", help="Another name than the parent's.")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter that differs.")
@json_option
@pass_session
def command(session: Session, parent: str, name: str | None, params: tuple[str, ...], as_json: bool) -> None:
    """Start a child of RUN, with its parameters and tags, and print the child's id and nothing else.

    The child's branch starts at the parent's last commit; HEAD stays where it is.

    \b
    Examples:
      coral exp resume 3f2a91c07b44
      export CORAL_RUN=$(coral exp resume 3f2a -p lr=1e-4)
    """
    run = tracker_of(session).resume(parent, name=name, params=parse_params(params) or None, owner="shell")
    check_written(run)
    run.close()
    if as_json:
        print_json(run_data(run))
        return
    click.echo(run.experiment_id)
    if run.start_commit is None:
        session.advise(f"run {run.parent_experiment} made no commit, so there are no weights to go on from")
    elif run.branch is not None:
        session.advise(f"branch {run.branch} starts at {run.start_commit[:10]}: 'coral checkout {run.branch}'")
