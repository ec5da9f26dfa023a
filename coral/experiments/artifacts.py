"""Files and objects kept with a run: turned into bytes here, kept by the chunk store."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from coral.errors import NotFoundError, UnsupportedValueError, UsageError
from coral.experiments.scalars import MAX_NAME, text, whole_data
from coral.format.names import check_part_name


class Content(NamedTuple):
    """An artifact before it is kept. ``kind`` is ``file``, ``text``, ``dict``, ``array``, ``table`` or ``figure``."""

    name: str
    kind: str
    data: bytes


class Figure(Protocol):
    """A matplotlib figure, or ``pyplot`` itself."""

    def savefig(self, file: io.BytesIO, /, *, format: str) -> object:
        """Draw into a file."""


class DataFrame(Protocol):
    """A pandas or polars table."""

    def to_csv(self) -> str | None:
        """The table as text."""


def of_anything(value: object, name: str | None) -> Content:
    """A path's file, or an object by what it is. Raises UnsupportedValueError, NotFoundError, UsageError."""
    if isinstance(value, (str, os.PathLike)):
        return of_file(value, name)
    if name is None:
        raise UsageError("an object needs a name to be kept under", hint="log_artifact(value, 'name.json')")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Content(_checked(name), "file", bytes(value))
    if isinstance(value, (dict, list, tuple)):
        return of_dict(value, name)
    if hasattr(value, "savefig"):
        return of_figure(value, name)
    if hasattr(value, "to_csv") or hasattr(value, "write_csv"):
        return of_table(value, name)
    return of_array(value, name)


def of_file(path: str | os.PathLike[str], name: str | None) -> Content:
    """A file's bytes, under its own name by default."""
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"{file} is a folder", hint="log its files one by one")
    try:
        return Content(_checked(name or file.name), "file", file.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"no file {file} to keep with the run") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def of_text(text: str, name: str) -> Content:
    """A text as UTF-8."""
    if not isinstance(text, str):
        raise UnsupportedValueError(f"artifact {name!r}: {type(text).__name__} is not text")
    return Content(_checked(name), "text", text.encode("utf-8", "surrogatepass"))


def of_dict(data: object, name: str) -> Content:
    """JSON-able data, indented; values are kept as parameters are."""
    return Content(_checked(_with_suffix(name, ".json")), "dict", json.dumps(whole_data(data), indent=2).encode())


def of_array(array: object, name: str) -> Content:
    """A numpy array, a tensor or nested numbers, as ``.npy``."""
    import numpy

    detach = getattr(array, "detach", None)
    value = detach().cpu() if callable(detach) else array
    try:
        converted = numpy.asarray(value)
        file = io.BytesIO()
        numpy.save(file, converted, allow_pickle=False)
    except (TypeError, ValueError) as error:
        raise UnsupportedValueError(f"artifact {name!r}: {type(array).__name__} is not an array") from error
    return Content(_checked(_with_suffix(name, ".npy")), "array", file.getvalue())


def of_table(table: object, name: str) -> Content:
    """A data frame, a mapping of columns, or a list of rows, as CSV."""
    to_csv = getattr(table, "to_csv", None) or getattr(table, "write_csv", None)
    if callable(to_csv):
        text = to_csv()
        if isinstance(text, str):
            return Content(_checked(_with_suffix(name, ".csv")), "table", text.encode())
    return Content(_checked(_with_suffix(name, ".csv")), "table", _csv(_rows(table, name)).encode())


def of_figure(figure: object, name: str) -> Content:
    """Whatever has ``savefig``, drawn as the name's suffix says; PNG by default."""
    draw = getattr(figure, "savefig", None)
    if not callable(draw):
        raise UnsupportedValueError(f"artifact {name!r}: {type(figure).__name__} has no savefig")
    target = _with_suffix(name, ".png")
    file = io.BytesIO()
    draw(file, format=Path(target).suffix[1:].lower())
    return Content(_checked(target), "figure", file.getvalue())


def _rows(table: object, name: str) -> list[list[object]]:
    if isinstance(table, Mapping):
        columns = [list(column) for column in table.values()]
        if len({len(column) for column in columns}) <= 1:
            return [list(table), *map(list, zip(*columns, strict=True))]
    elif isinstance(table, Sequence) and not isinstance(table, (str, bytes)):
        if all(isinstance(row, Mapping) for row in table):
            keys = list(dict.fromkeys(key for row in table for key in row))
            return [list(keys), *[[row.get(key, "") for key in keys] for row in table]]
        if all(isinstance(row, Sequence) and not isinstance(row, str) for row in table):
            return [list(row) for row in table]
    raise UnsupportedValueError(f"artifact {name!r}: {type(table).__name__} is not a table")


def _csv(rows: list[list[object]]) -> str:
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _with_suffix(name: str, suffix: str) -> str:
    return name if not isinstance(name, str) or Path(name).suffix else name + suffix


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{text(name, MAX_NAME)!r} is not an artifact's name")
    return check_part_name(name)
