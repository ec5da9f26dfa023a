"""How things look: JSON for machines, plain stable lines for pipes, tables and colours for terminals."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from coral.format.manifest import TensorRecord
    from coral.verbs.diff import Diff

Row = Sequence[str]
T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    """JSON knows neither NaN nor infinities: they are printed by name, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def printable(name: str) -> str:
    """A file's name as it is, or quoted where it would break a line or a terminal."""
    return name if name.isprintable() else repr(name)


def size(nbytes: int) -> str:
    """Bytes for people: ``999 B``, ``1.2 MB``."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share of 0 to 1 for people; what is not zero does not look like zero, nor what is not all like all."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    """A metric for people: six digits."""
    return "-" if value is None else f"{value:.6g}"


def duration(seconds: float | None) -> str:
    """A length of time for people."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def age(time: datetime | None) -> str:
    """How long ago a time was."""
    if time is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - time).total_seconds())
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "now"


def date(time: datetime) -> str:
    """A time as git's log writes it."""
    return time.strftime("%a %b %d %H:%M:%S %Y %z")


def shape(sizes: Sequence[int]) -> str:
    """A tensor's shape as manifests write it."""
    return f"[{', '.join(map(str, sizes))}]"


def count(how_many: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``, ``2 branches``."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else 'es' if noun.endswith('ch') else 's'}"


def print_table(headers: Row, rows: Sequence[Row], *, right: Sequence[int] = (), spare: int | None = None) -> None:
    """Print rows in columns; nothing is cut, so long names belong into the last column.

    Args:
        right: columns of numbers, flush right.
        spare: a column right of those, left out on a terminal that is too narrow for all.
    """
    widths = [max(map(_width, column)) for column in zip(headers, *rows, strict=True)]
    if spare is not None and on_terminal() and sum(widths) + 2 * (len(widths) - 1) > terminal_width():
        headers, widths = _without(spare, headers), _without(spare, widths)
        rows = [_without(spare, row) for row in rows]
    _print_row(headers, widths, right, style=lambda cell: click.style(cell, bold=True))
    for row in rows:
        _print_row(row, widths, right, style=_style_word)


def _without(place: int, cells: Sequence[T]) -> list[T]:
    return [*cells[:place], *cells[place + 1 :]]


def _print_row(row: Row, widths: Sequence[int], right: Sequence[int], *, style: Callable[[str], str]) -> None:
    cells = []
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        blank = " " * (width - _width(cell))
        last = place == len(row) - 1
        cells.append(f"{blank}{style(cell)}" if place in right else f"{style(cell)}{'' if last else blank}")
    click.echo("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Columns that a text takes on a terminal: Chinese, Japanese and Korean characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _style_word(cell: str) -> str:
    return click.style(cell, fg=_STYLES[cell]) if cell in _STYLES else cell


_STYLES = {
    "added": "green",
    "removed": "red",
    "changed": "yellow",
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
}


def record_data(record: TensorRecord) -> dict[str, Any]:
    """A tensor's record for JSON."""
    return {"name": record.name, "dtype": record.dtype, "shape": list(record.shape), "bytes": record.nbytes}


def diff_data(diff: Diff) -> dict[str, Any]:
    """A difference for JSON."""
    return {
        "old": diff.old,
        "new": diff.new,
        "changed_bytes": diff.changed_bytes,
        "total_bytes": diff.total_bytes,
        "structure": list(diff.structure),
        "tensors": [
            {
                "part": change.part,
                "name": change.name,
                "kind": change.kind,
                "old": None if change.old is None else record_data(change.old),
                "new": None if change.new is None else record_data(change.new),
                "changed_bytes": change.changed_bytes,
                "total_bytes": change.total_bytes,
            }
            for change in diff.tensors
        ],
    }


def metrics_line(metrics: Mapping[str, float]) -> str:
    """``loss=0.5 acc=0.9``."""
    return " ".join(f"{name}={number(value)}" for name, value in metrics.items())
