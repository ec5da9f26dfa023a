"""``coral exp lineage``: the family of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from coral.cli.complete import complete_run
from coral.cli.look.output import json_option, print_json
from coral.cli.look.runs import run_data
from coral.cli.runs import tracker_of
from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from coral.experiments import Lineage


@click.command()
@click.argument("run", shell_complete=complete_run)
@json_option
@pass_session
def command(session: Session, run: str, as_json: bool) -> None:
    """Show the runs that RUN came from, and those that came of it.

    \b
    Example:
      coral exp lineage 3f2a91c07b44
    """
    family = tracker_of(session).lineage(run)
    if as_json:
        print_json(
            {
                "experiment": run_data(family.experiment),
                "ancestors": [run_data(one) for one in family.ancestors],
                "descendants": _tree(family),
            }
        )
        return
    click.echo(str(family))


def _tree(family: Lineage) -> list[dict[str, Any]]:
    return [{"experiment": run_data(child.experiment), "descendants": _tree(child)} for child in family.descendants]
