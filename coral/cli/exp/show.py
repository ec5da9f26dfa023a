"""``coral exp show``: one run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_run
from coral.cli.look.output import date, duration, json_option, metrics_line, number, print_json, print_table, size
from coral.cli.look.runs import metrics_data, param_text, run_data
from coral.cli.runs import meant
from coral.cli.session import Session, pass_session
from coral.errors import ExperimentNotFoundError

if TYPE_CHECKING:
    from coral.experiments import Experiment

_COMMITS = 10


@click.command()
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--metric", metavar="NAME", help="Print every point of this metric instead.")
@json_option
@pass_session
def command(session: Session, run: str | None, metric: str | None, as_json: bool) -> None:
    """Show a run: parameters, metrics, commits.

    Without RUN the one of CORAL_RUN is shown, else the one that is running, else the last one.

    \b
    Examples:
      coral exp show
      coral exp show 3f2a91c07b44
      coral exp show bert --metric val_loss
    """
    found = meant(session, run)
    if metric is not None:
        _print_points(found, metric, as_json=as_json)
    elif as_json:
        print_json(run_data(found))
    else:
        _print_run(found)


def _print_points(run: Experiment, metric: str, *, as_json: bool) -> None:
    points = run.get_metric_history(metric)
    if not points:
        names = ", ".join(run.metric_names) or "none"
        raise ExperimentNotFoundError(f"run {run.experiment_id} logged no {metric!r}", hint=f"it logged: {names}")
    if as_json:
        print_json([{"step": point.step, "value": point.value, "time": point.timestamp} for point in points])
        return
    rows = [
        ["-" if point.step is None else str(point.step), repr(point.value), point.timestamp.isoformat(" ", "seconds")]
        for point in points
    ]
    print_table(("step", metric, "time"), rows, right=(0,))


def _print_run(run: Experiment) -> None:
    click.secho(f"{run.name}  {run.experiment_id}", bold=True)
    for label, text in _facts(run):
        click.echo(f"  {label + ':':<12} {text}")
    if run.params:
        _heading("parameters")
        print_table(("name", "value"), [[name, param_text(value)] for name, value in run.params.items()])
    if run.metric_names:
        _heading("metrics")
        rows = [[name, *_cells(found)] for name, found in metrics_data(run).items()]
        print_table(("name", "latest", "step", "min", "max", "points"), rows, right=(1, 2, 3, 4, 5))
    if run.commits:
        _heading("commits")
        for commit in run.commits[-_COMMITS:]:
            step = "" if commit.step is None else f"step {commit.step}"
            click.echo(f"{commit.commit_hash[:10]}  {step:<12} {metrics_line(commit.metrics)}".rstrip())
        if len(run.commits) > _COMMITS:
            click.echo(f"... and {len(run.commits) - _COMMITS} before them")
    if run.artifacts:
        _heading("artifacts")
        rows = [[one.name, one.kind, size(one.nbytes)] for one in run.list_artifacts()]
        print_table(("name", "kind", "bytes"), rows, right=(2,))


def _facts(run: Experiment) -> Iterator[tuple[str, str]]:
    yield "status", str(run.status)
    if run.failure:
        yield "failure", ": ".join(str(run.failure[key]) for key in ("kind", "message") if run.failure.get(key))
    optional = {
        "description": run.description,
        "group": run.group,
        "tags": ", ".join(run.tags),
        "labels": ", ".join(f"{key}={value}" for key, value in run.labels.items()),
        "objective": ", ".join(f"{name}:{mode}" for name, mode in run.objective.items()),
        "branch": run.branch,
        "commit": run.commit_hash and run.commit_hash[:10],
        "parent": run.parent_experiment,
        "notes": run.notes,
    }
    yield from ((label, text) for label, text in optional.items() if text)
    if run.started_at is not None:
        yield "started", date(run.started_at)
        yield "took", duration(run.duration)
    if run.dropped_points:
        yield "lost", f"{run.dropped_points} points, to a full disk or damage"


def _cells(found: dict[str, object]) -> list[str]:
    numbers = [value if isinstance(value, float | int) else None for value in found.values()]
    latest, step, low, high, points = numbers
    return [number(latest), "-" if step is None else str(step), number(low), number(high), f"{points:,}"]


def _heading(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)
