"""``coral exp compare``: runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from coral.cli.complete import complete_run
from coral.cli.look.output import duration, json_option, number, on_terminal, print_json, print_table, terminal_width
from coral.cli.look.runs import param_text
from coral.cli.runs import tracker_of
from coral.cli.session import Session, pass_session
from coral.errors import UsageError

_FACTS = ("name", "status", "branch", "commit", "took")
_PARTS = ("latest", "min", "max")
_ID = 12
_CELL = 20


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="RUN RUN...", shell_complete=complete_run)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only this metric; again for more.")
@json_option
@pass_session
def command(session: Session, ids: tuple[str, ...], metrics: tuple[str, ...], as_json: bool) -> None:
    """Show runs side by side: the parameters that differ, and each metric's latest, least and greatest value.

    \b
    Examples:
      coral exp compare 3f2a 90bc
      coral exp compare 3f2a 90bc --metric val_loss
    """
    if len(ids) < 2:
        raise UsageError("compare takes two runs or more", hint="'coral exp show RUN' shows one")
    found: dict[str, Any] = tracker_of(session).compare(list(ids), list(metrics) or None)
    if as_json:
        print_json(found)
        return
    runs: Sequence[Mapping[str, Any]] = found["experiments"]
    labels = [*_FACTS, *found["params"], *(f"{metric} {part}" for metric in found["metrics"] for part in _PARTS)]
    room = (terminal_width() - max(map(len, labels))) // (_ID + 2) if on_terminal() else len(runs)
    for start in range(0, len(runs), max(1, room)):
        if start:
            click.echo()
        _print_block(
            labels, [[run["experiment_id"], *_column(run, found)] for run in runs[start : start + max(1, room)]]
        )


def _print_block(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    rows = list(zip(labels, *(column[1:] for column in columns), strict=True))
    print_table(("", *(column[0] for column in columns)), rows)


def _column(run: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """What the table says about one run, from top to bottom."""
    yield from (_shorten(run["name"]), str(run["status"]), run["branch"] or "-", (run["commit_hash"] or "-")[:10])
    yield duration(run["duration"])
    name = run["experiment_id"]
    for values in found["params"].values():
        yield "-" if values.get(name) is None else _shorten(param_text(values[name]))
    for each in found["metrics"].values():
        yield from (number(each.get(name, {}).get(part)) for part in _PARTS)


def _shorten(text: str) -> str:
    """A long text would push the other runs off the terminal."""
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"
