"""The rows of the query index: what every run's summary says, in columns, and the bytes that keep them in a file."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import itemgetter

from coral.errors import CorruptionError
from coral.experiments.scalars import MAX_STEP, Json
from coral.ids import checksum

NO_STEP = -MAX_STEP - 1
_MAGIC = b"coral experiments index 1"
_TEXTS = ("ids", "names", "status", "branch", "group", "tags", "commit", "parent", "objective")
_NUMBERS = ("mtime", "size", "inode", "created", "points")
_DIGEST = ("row", "min_step", "max_step")
_PLAIN = ("name", "status", "branch", "group", "commit", "parent")
_PARTS = itemgetter("id", *_PLAIN, "tags", "objective", "created", "points", "metrics")
_NAN = float("nan")
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)

FileKey = tuple[int, int, int]
"""What tells a file's versions apart: its mtime in nanoseconds, its size, its inode."""

_Extremes = tuple[Sequence[int], "array[float]", "array[int]", "array[float]", "array[int]"]


class Column:
    """One metric over all runs: the row of each run that logged it, its best values (NaN: none) and their steps."""

    def __init__(self) -> None:
        self.row, self.min_step, self.max_step = array("q"), array("q"), array("q")
        self.min, self.max = array("d"), array("d")

    def extend(self, first: int, extremes: _Extremes) -> None:
        """Add runs' best values; their rows count from ``first``."""
        places, low, low_step, high, high_step = extremes
        self.row.extend([first + place for place in places])
        self.min.extend(low)
        self.min_step.extend(low_step)
        self.max.extend(high)
        self.max_step.extend(high_step)

    def arrays(self) -> tuple[array[int] | array[float], ...]:
        """All columns, in the order of the file."""
        return self.row, self.min_step, self.max_step, self.min, self.max


class Table:
    """The rows: equally long columns of texts and numbers; a replaced row's id is empty."""

    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self.number: dict[str, array[int]] = {name: array("q") for name in _NUMBERS}
        self.metrics: dict[str, Column] = {}
        self.rows: dict[str, int] = {}
        self.folder: FileKey = (0, 0, 0)
        self.scanned_ns = 0

    def key(self, row: int) -> FileKey:
        """What the row's file was like when it was read."""
        return self.number["mtime"][row], self.number["size"][row], self.number["inode"][row]

    def drop(self, run_id: str) -> None:
        """Forget a run."""
        row = self.rows.pop(run_id, None)
        if row is not None:
            self.text["ids"][row] = ""

    def add(self, runs: Sequence[str], keys: Sequence[FileKey], summaries: Iterable[dict[str, Json]]) -> None:
        """Add runs: all of them, or none. Raises ValueError, TypeError, KeyError, OverflowError for a malformed one."""
        *columns, created, points, metrics = zip(*map(_PARTS, summaries), strict=True)
        texts, extremes = _texts(runs, columns), _extremes(metrics)
        first = self._extend(runs, texts, [*zip(*keys, strict=True), _wholes(created), _wholes(points)])
        for name, best in extremes:
            metric = self.metrics.get(name)
            if metric is None:
                metric = self.metrics[name] = Column()
            metric.extend(first, best)

    def add_malformed(self, run_id: str, key: FileKey) -> None:
        """Add a file that is not a run's, so that it is not read again and again."""
        self._extend([run_id], [[run_id], *[[""]] * (len(_TEXTS) - 1)], [[number] for number in (*key, 0, 0)])

    def _extend(self, runs: Sequence[str], texts: Iterable[Sequence[str]], numbers: Iterable[Iterable[int]]) -> int:
        for run_id in runs:
            self.drop(run_id)
        first = len(self.text["ids"])
        for cells, more in zip(self.text.values(), texts, strict=True):
            cells.extend(more)
        for column, added in zip(self.number.values(), numbers, strict=True):
            column.extend(added)
        self.rows.update(zip(runs, range(first, first + len(runs)), strict=True))
        return first


# -- summaries, checked by the column: a column of one type is taken as it is, without a look at each of its cells


def _texts(runs: Sequence[str], columns: Sequence[Sequence[Json]]) -> list[Sequence[str]]:
    """The columns in the order of ``_TEXTS``, from those in the order of ``_PARTS``."""
    ids, *plain, tags, objectives = columns
    if list(ids) != list(runs):
        raise ValueError(f"it says to be run {ids[0]!r}")
    names, status, branch, group, commit, parent = ([str(cell or "") for cell in column] for column in plain)
    if not all(isinstance(cell, list) for cell in tags):
        raise ValueError("its tags are not a list")
    if not all(isinstance(cell, dict) for cell in objectives):
        raise ValueError("its objective is not an object")
    tags_text = ["\n".join(map(str, cell)) for cell in tags if isinstance(cell, list)]
    declared = [json.dumps(cell) if cell else "" for cell in objectives]
    return [runs, names, status, branch, group, tags_text, commit, parent, declared]


def _extremes(metrics: Sequence[Json]) -> list[tuple[str, _Extremes]]:
    """By metric, the part of ``record.digest`` that queries need, and the places of the runs that logged it."""
    found: defaultdict[str, list[tuple[int, Json]]] = defaultdict(list)
    for place, digests in enumerate(metrics):
        if not isinstance(digests, dict):
            raise ValueError("its metrics are not an object")
        for name, digest in digests.items():
            found[name].append((place, digest))
    return [(name, _best(*zip(*pairs, strict=True))) for name, pairs in found.items()]


def _best(places: Sequence[int], digests: Sequence[Json]) -> _Extremes:
    rows = [digest for digest in digests if isinstance(digest, list) and len(digest) == 7]
    if len(rows) != len(digests):
        raise ValueError("a metric's digest is malformed")
    _, _, _, low, low_step, high, high_step = zip(*rows, strict=True)
    return places, _values(low), _steps(low_step), _values(high), _steps(high_step)


def _values(cells: Sequence[Json]) -> array[float]:
    """Best values; NaN where none was finite."""
    return array("d", cells if set(map(type, cells)) == {float} else map(_value, cells))  # type: ignore[arg-type]


def _value(cell: Json) -> float:
    if cell is None:
        return _NAN
    if type(cell) is not float and type(cell) is not int:
        raise ValueError("a metric's value is not a number")
    return float(cell)


def _steps(cells: Sequence[Json]) -> array[int]:
    """Steps; ``NO_STEP`` where there was none."""
    return (
        _wholes(cells)
        if None not in cells
        else array("q", [NO_STEP if cell is None else _whole(cell) for cell in cells])
    )


def _wholes(cells: Sequence[Json]) -> array[int]:
    if set(map(type, cells)) != {int} or not -MAX_STEP <= min(cells) <= max(cells) <= MAX_STEP:  # type: ignore[type-var, operator]
        raise ValueError("a number is not a whole one of 64 bits")
    return array("q", cells)  # type: ignore[arg-type]


def _whole(cell: Json) -> int:
    return _wholes([cell])[0]


# -- the cache's file: magic, checksum; a JSON line of texts and lengths; the number columns as they are in memory


def dump(table: Table) -> bytes:
    """The bytes of the cache's file."""
    live = {name: list(texts) for name, texts in table.text.items()}
    header = json.dumps(
        {
            "texts": live,
            "folder": list(table.folder),
            "scanned": table.scanned_ns,
            "metrics": {name: len(column.row) for name, column in table.metrics.items()},
        },
        separators=(",", ":"),
    ).encode()
    arrays = [table.number[name] for name in _NUMBERS]
    blobs = [one.tobytes() for one in arrays]
    for column in table.metrics.values():
        blobs += [one.tobytes() for one in column.arrays()]
    body = b"\n".join([header, b"".join(blobs)])
    return b"%b %016x\n%b" % (_MAGIC, checksum(body), body)


def load(data: bytes) -> Table | None:
    """The table of a cache's file; None when it is not whole."""
    first, _, body = data.partition(b"\n")
    if first != b"%b %016x" % (_MAGIC, checksum(body)):
        return None
    header, _, blob = body.partition(b"\n")
    try:
        return _parse(json.loads(header), _Blob(blob))
    except (CorruptionError, *_MALFORMED):
        return None


class _Blob:
    """Takes arrays from the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def ints(self, count: int) -> array[int]:
        result = array("q")
        result.frombytes(self._take(count))
        return result

    def floats(self, count: int) -> array[float]:
        result = array("d")
        result.frombytes(self._take(count))
        return result

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + 8 * count
        if self._at > len(self._data):
            raise CorruptionError("the index is cut short")
        return self._data[start : self._at]


def _parse(header: dict[str, dict[str, list[str]]], blob: _Blob) -> Table:
    table = Table()
    table.text = {name: header["texts"][name] for name in _TEXTS}
    count = len(table.text["ids"])
    if any(len(cells) != count or set(map(type, cells)) - {str} for cells in table.text.values()):
        raise ValueError("a column of texts is malformed")
    table.number = {name: blob.ints(count) for name in _NUMBERS}
    for name, length in header["metrics"].items():
        column = table.metrics[name] = Column()
        size = int(length)  # type: ignore[call-overload]
        column.row, column.min_step, column.max_step = (blob.ints(size) for _ in _DIGEST)
        column.min, column.max = blob.floats(size), blob.floats(size)
        if size and not 0 <= min(column.row) <= max(column.row) < count:
            raise ValueError("a metric of a run that is not there")
    table.rows = {run_id: row for row, run_id in enumerate(table.text["ids"]) if run_id}
    folder = [int(number) for number in header["folder"]]
    table.folder, table.scanned_ns = (folder[0], folder[1], folder[2]), int(header["scanned"])  # type: ignore[call-overload]
    return table
