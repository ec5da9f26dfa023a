"""What queries return: a list that can show itself as a table, in a terminal, a notebook or a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from coral.errors import UsageError
from coral.experiments.experiment import Experiment
from coral.experiments.query import facts
from coral.experiments.scalars import Json, flatten

if TYPE_CHECKING:
    import pandas

T = TypeVar("T", bound=Experiment | Mapping[str, object])


class Results(list[T]):
    """A list of experiments, or of the dicts that ``find_best`` returns."""

    def rows(self) -> list[dict[str, object]]:
        """One flat dict a result: parameters as ``params.<name>``, an experiment's last metrics as ``metrics.*``."""
        return [_row_of_run(item) if isinstance(item, Experiment) else _row_of_dict(item) for item in self]

    def df(self) -> pandas.DataFrame:
        """The rows as a pandas data frame. Raises UsageError when pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError("a data frame needs pandas", hint="pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def table(self) -> str:
        """The rows as plain text, one a line, under their columns' names."""
        columns, lines = self._cells()
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [columns, *lines]]
        return "\n".join("  ".join(line).rstrip() for line in padded)

    def _repr_html_(self) -> str:
        from html import escape  # for notebooks alone

        columns, lines = self._cells()
        heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        rows = self.rows()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        shown = [name for name in columns if any(row.get(name) not in (None, "", []) for row in rows)]
        return shown, [[_text(row.get(name)) for name in shown] for row in rows]


def _row_of_run(run: Experiment) -> dict[str, object]:
    row = {**facts(run), "created_at": run.created_at}
    row.update(_prefixed("params", run.params))
    history = run.history
    row.update({f"metrics.{name}": series.values[-1] for name, series in sorted(history.series.items())})
    return row


def _row_of_dict(item: Mapping[str, object]) -> dict[str, object]:
    row = {key: value for key, value in item.items() if key != "params"}
    params = item.get("params")
    if isinstance(params, dict):
        row.update(_prefixed("params", params))
    return row


def _prefixed(prefix: str, params: dict[str, Json]) -> dict[str, object]:
    return {f"{prefix}.{name}": value for name, value in flatten(params).items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    isoformat = getattr(value, "isoformat", None)
    text = isoformat(" ", "seconds") if callable(isoformat) else str(value)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
