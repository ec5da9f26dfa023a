"""``coral exp best``: the runs that did best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from coral.cli.complete import complete_branch
from coral.cli.look.output import json_option, number, on_terminal, print_json, print_table
from coral.cli.runs import STATUS, tracker_of
from coral.cli.session import Session, pass_session
from coral.errors import ExperimentNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.experiments.columns import Mode


@click.command()
@click.argument("metric")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which way is better, if the runs do not say.")
@click.option("-n", "--max-count", type=click.IntRange(min=1), default=10, show_default=True, help="At most N runs.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag; again: with all of them.")
@click.option("--branch", metavar="NAME", shell_complete=complete_branch, help="Only on this branch.")
@click.option("--status", multiple=True, type=STATUS, help="Only these; again for more.")
@json_option
@pass_session
def command(
    session: Session,
    metric: str,
    mode: Mode | None,
    max_count: int,
    tags: tuple[str, ...],
    branch: str | None,
    status: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the runs with the best values of METRIC: the value, its step, and that step's commit.

    'link' says how the commit is known: exact (made for that step), inferred (the first one after it), before
    (the last one before it), or run (none of these: the commit that the run came to).

    \b
    Examples:
      coral exp best val_loss --mode min
      coral exp best accuracy --mode max -n 3 --json
    """
    tracker = tracker_of(session)
    try:
        found: list[dict[str, Any]] = tracker.find_best(
            metric, mode, list(status) or None, list(tags) or None, branch, max_count
        )
    except UsageError as error:
        if mode is not None:
            raise
        raise UsageError(error.message, hint="say --mode min or --mode max") from None
    if not found:
        tracker.check_logged(metric)
        such = "such " if status or tags or branch else ""
        raise ExperimentNotFoundError(
            f"no {such}run logged a finite {metric!r}", hint="'coral exp list' lists the runs"
        )
    if as_json:
        print_json(found)
        return
    rows = [
        [
            best["experiment_id"],
            number(best["best_value"]),
            "-" if best["best_step"] is None else str(best["best_step"]),
            (best["commit_hash"] or "-")[:10],
            best["link"] or "-",
            best["name"],
        ]
        for best in found
    ]
    print_table(("id", metric, "step", "commit", "link", "name"), rows, right=(1, 2))
    if on_terminal() and found[0]["commit_hash"]:
        session.advise(f"'coral checkout {found[0]['commit_hash'][:10]}' writes the best one's weights")
