"""``coral exp summary``: what there is, in numbers."""

from __future__ import annotations

from typing import Any

import click

from coral.cli.look.output import json_option, print_json
from coral.cli.runs import tracker_of
from coral.cli.session import Session, pass_session


@click.command()
@json_option
@pass_session
def command(session: Session, as_json: bool) -> None:
    """Count runs by status, and points.

    \b
    Example:
      coral exp summary
    """
    found: dict[str, Any] = tracker_of(session).get_summary()
    if as_json:
        print_json(found)
        return
    statuses = ", ".join(f"{many:,} {status}" for status, many in found["by_status"].items() if many)
    click.echo(f"runs:     {found['total_experiments']:,}" + (f" ({statuses})" if statuses else ""))
    click.echo(f"names:    {found['unique_names']:,}")
    click.echo(f"branches: {', '.join(found['branches']) or '-'}")
    click.echo(f"points:   {found['total_metrics_logged']:,}")
