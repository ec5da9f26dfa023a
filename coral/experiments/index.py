"""The query cache: what every run's summary says, in columns, in memory and in one file that may be deleted anytime.

The truth is the runs' files. A run's row is good while its file's (mtime, size, inode) are what they were; files
are looked at again whenever their folder has changed (coral and git replace files, which changes the folder), and
as long as the last change was too recent for the clock of the file system to show a further one.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import stat
import time
import warnings
from array import array
from collections.abc import Callable

from coral.errors import CoralError, CorruptionError
from coral.experiments.backend import Query, Totals
from coral.experiments.columns import Mode
from coral.experiments.record import head
from coral.experiments.scalars import MAX_STEP, Json
from coral.ids import checksum
from coral.storage.folder import Folder

CACHE_KEY = "cache/experiments.index"
ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_FILE = re.compile(r"([0-9a-f]{12})\.json", re.ASCII)
_MAGIC = b"coral experiments index 1"
_HEAD_BYTES = 4096
_MAX_HEAD_BYTES = 64 * 1024 * 1024
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system we know (FAT)
_NO_STEP = -MAX_STEP - 1
_TEXTS = ("ids", "names", "status", "branch", "group", "tags", "commit", "parent", "objective")
_NUMBERS = ("mtime", "size", "inode", "created", "points")
_DIGEST = ("row", "min_step", "max_step")

_NAN = float("nan")

FileKey = tuple[int, int, int]
_Extremes = tuple[float, int, float, int]


class _Column:
    """One metric over all runs: the row of each run that logged it, its best values (NaN: none) and their steps."""

    def __init__(self) -> None:
        self.row, self.min_step, self.max_step = array("q"), array("q"), array("q")
        self.min, self.max = array("d"), array("d")

    def add(self, row: int, extremes: _Extremes) -> None:
        """Add a run's best values."""
        low, low_step, high, high_step = extremes
        self.row.append(row)
        self.min.append(low)
        self.min_step.append(low_step)
        self.max.append(high)
        self.max_step.append(high_step)

    def arrays(self) -> tuple[array[int] | array[float], ...]:
        """All columns, in the order of the file."""
        return self.row, self.min_step, self.max_step, self.min, self.max


class _Table:
    """The rows: equally long columns of texts and numbers; a replaced row's id is empty."""

    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self.number: dict[str, array[int]] = {name: array("q") for name in _NUMBERS}
        self.metrics: dict[str, _Column] = {}
        self.rows: dict[str, int] = {}
        self.folder: FileKey = (0, 0, 0)
        self.scanned_ns = 0

    def key(self, row: int) -> FileKey:
        """What the row's file was like when it was read."""
        return self.number["mtime"][row], self.number["size"][row], self.number["inode"][row]

    def drop(self, run: str) -> None:
        """Forget a run."""
        row = self.rows.pop(run, None)
        if row is not None:
            self.text["ids"][row] = ""

    def add(self, run: str, key: FileKey, summary: dict[str, Json] | None) -> None:
        """Add a run; ``summary`` None for a file that is not a run's, so that it is not read again and again."""
        self.drop(run)
        row = len(self.text["ids"])
        texts, numbers, extremes = _cells(run, summary)
        for cells, text in zip(self.text.values(), texts, strict=True):
            cells.append(text)
        for column, number in zip(self.number.values(), key + numbers, strict=True):
            column.append(number)
        for name, best in extremes:
            metric = self.metrics.get(name)
            if metric is None:
                metric = self.metrics[name] = _Column()
            metric.add(row, best)
        self.rows[run] = row


def _cells(run: str, summary: dict[str, Json] | None) -> tuple[list[str], tuple[int, int], list[tuple[str, _Extremes]]]:
    """A row's texts, numbers and metrics. Raises ValueError, TypeError, KeyError, AttributeError when malformed."""
    if summary is None:
        return [run] + [""] * (len(_TEXTS) - 1), (0, 0), []
    if summary["id"] != run:
        raise ValueError(f"it says to be run {summary['id']!r}")
    tags, created, points, digests = (summary[name] for name in ("tags", "created", "points", "metrics"))
    if not isinstance(tags, list) or not isinstance(digests, dict):
        raise ValueError("its summary is malformed")
    objective = json.dumps(summary["objective"]) if summary["objective"] else ""
    texts = [run, *[str(summary[name] or "") for name in ("name", "status", "branch", "group")]]
    texts += ["\n".join(map(str, tags)), str(summary["commit"] or ""), str(summary["parent"] or ""), objective]
    extremes = [(name, _extremes(digest)) for name, digest in digests.items()]
    return texts, (_whole(created), _whole(points)), extremes


def _extremes(digest: Json) -> _Extremes:
    """The part of ``record.digest`` that queries need. Raises ValueError, TypeError."""
    if not isinstance(digest, list) or len(digest) != 7:
        raise ValueError("a metric's digest is malformed")
    low, low_step, high, high_step = digest[3:]
    return _value(low), _step(low_step), _value(high), _step(high_step)


def _value(data: Json) -> float:
    if data.__class__ is float:
        return data
    if data is not None and type(data) is not int:
        raise ValueError("a metric's value is not a number")
    return _NAN if data is None else float(data)


def _step(data: Json) -> int:
    return _NO_STEP if data is None else _whole(data)


def _whole(data: Json) -> int:
    if data.__class__ is not int or not -MAX_STEP <= data <= MAX_STEP:
        raise ValueError("a number is not a whole one of 64 bits")
    return data


class Index:
    """The summaries of all runs in a folder, kept up to date by :meth:`refresh`.

    Args:
        storage: coral's folder; the runs are under ``experiments``, the cache under ``cache``.
        clock_ns: nanoseconds since 1970.
    """

    def __init__(self, storage: Folder, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._storage = storage
        self._folder = storage.path("experiments")
        self._clock_ns = clock_ns
        self._table: _Table | None = None

    def refresh(self) -> None:
        """Bring the rows up to date with the files; rewrites the cache when some had changed."""
        if self._table is None:
            self._table = _load(self._storage) or _Table()
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._table = _Table()
            return
        try:
            status = os.fstat(fd)
            key = (status.st_mtime_ns, 0, status.st_ino)
            if self._table.folder == key and key[0] < self._table.scanned_ns - _TICK_NS:
                return
            if self._scan(fd, self._table, key):
                self._save()
        finally:
            os.close(fd)

    def _scan(self, fd: int, table: _Table, folder: FileKey) -> bool:
        """Look at every file; returns whether a row changed, or the rows became trustworthy."""
        scanned, changed = self._clock_ns(), 0
        present = {name[:12] for name in os.listdir(fd) if _FILE.fullmatch(name)}
        for run in set(table.rows) - present:
            table.drop(run)
            changed += 1
        for run in present:
            row = table.rows.get(run)
            if row is None or not self._is_good(fd, table, run, row):
                changed += self._read(fd, table, run)
        was_settled = table.folder == folder and folder[0] < table.scanned_ns - _TICK_NS
        settled = folder[0] < scanned - _TICK_NS and not was_settled
        table.folder, table.scanned_ns = folder, scanned
        if len(table.text["ids"]) > 64 + 2 * len(table.rows):
            self._table = None  # mostly replaced rows: start afresh from the files
            self._storage.remove(CACHE_KEY)
        return bool(changed) or settled

    def _is_good(self, fd: int, table: _Table, run: str, row: int) -> bool:
        try:
            status = os.stat(run + ".json", dir_fd=fd, follow_symlinks=False)
        except OSError:
            return False
        key = status.st_mtime_ns, status.st_size, status.st_ino
        return key == table.key(row) and key[0] < table.scanned_ns - _TICK_NS

    def _read(self, fd: int, table: _Table, run: str) -> int:
        try:
            key, data = read_head(f"{run}.json", fd)
        except OSError:
            table.drop(run)
            return 1
        row = table.rows.get(run)
        fresh = row is None or table.key(row) != key
        try:
            summary, _ = head(data, f"{run}.json")
            table.add(run, key, summary)
        except (CoralError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            table.add(run, key, None)
            if fresh:
                warnings.warn(f"the experiment file {run}.json is left out: {error}", RuntimeWarning, stacklevel=2)
        return int(fresh)

    def _save(self) -> None:
        if self._table is not None:
            try:
                self._storage.write(CACHE_KEY, _dump(self._table))
            except CoralError:  # a read-only or full file system answers all the same, only slower
                return

    # -- questions; call refresh() first

    @property
    def _rows(self) -> _Table:
        return self._table if self._table is not None else _Table()

    def ids(self) -> list[str]:
        """All runs, in no order."""
        return list(self._rows.rows)

    def running(self) -> list[str]:
        """The runs whose file says that they run."""
        table = self._rows
        return [run for run, row in table.rows.items() if table.text["status"][row] in ("running", "pending")]

    def select(self, query: Query) -> list[tuple[int, str]]:
        """The matching runs' creation time (milliseconds since 1970) and id, in no order."""
        table = self._rows
        created, matches = table.number["created"], _matcher(table, query)
        return [(created[row], run) for run, row in table.rows.items() if matches(row)]

    def where(self, column: str, text: str) -> list[str]:
        """The runs with this ``commit`` or ``parent``, oldest first."""
        table = self._rows
        cells, created = table.text[column], table.number["created"]
        return [run for _, run in sorted((created[row], run) for run, row in table.rows.items() if cells[row] == text)]

    def objectives(self, metric: str, query: Query) -> set[str]:
        """The directions that the matching runs declared for a metric."""
        table, found = self._rows, set()
        matches, texts = _matcher(table, query), table.text["objective"]
        for text in {texts[row] for row in table.rows.values() if texts[row] and matches(row)}:
            found.add(json.loads(text).get(metric))
        return {str(mode) for mode in found if mode is not None}

    def best(
        self, metric: str, mode: Mode, query: Query, limit: int | None
    ) -> list[tuple[float, int, str, int | None]]:
        """(value, created, id, step) of the best runs, best first; of equal ones the older first."""
        table = self._rows
        column = table.metrics.get(metric)
        if column is None:
            return []
        values, steps = (column.min, column.min_step) if mode == "min" else (column.max, column.max_step)
        sign = 1 if mode == "min" else -1
        matches, ids, created = _matcher(table, query), table.text["ids"], table.number["created"]
        found = (
            (sign * value, created[row], ids[row], step)
            for value, row, step in zip(values, column.row, steps, strict=True)
            if value == value and ids[row] and matches(row)
        )
        chosen = sorted(found) if limit is None else heapq.nsmallest(limit, found)
        return [(sign * value, when, run, None if step == _NO_STEP else step) for value, when, run, step in chosen]

    def totals(self) -> Totals:
        """What there is, in numbers."""
        table, totals = self._rows, Totals()
        for row in table.rows.values():
            status = table.text["status"][row]
            if status:
                totals.by_status[status] = totals.by_status.get(status, 0) + 1
                totals.names.add(table.text["names"][row])
                totals.branches.update(filter(None, [table.text["branch"][row]]))
                totals.points += table.number["points"][row]
        return totals


def read_head(name: str, folder_fd: int) -> tuple[FileKey, bytes]:
    """A file's key and its beginning, at least to the end of the first line. Raises OSError.

    Links are not followed, and what is not a regular file is not waited for.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is not a regular file")
        data = os.read(fd, _HEAD_BYTES)
        while not (data.startswith(b'{"summary": ') and b"\n" in data) and len(data) < _MAX_HEAD_BYTES:
            more = os.read(fd, 1024 * 1024)
            if not more:
                break
            data += more
        end = data.find(b"\n") if data.startswith(b'{"summary": ') else -1
        return (status.st_mtime_ns, status.st_size, status.st_ino), data[: end + 1] if end >= 0 else data
    finally:
        os.close(fd)


def _matcher(table: _Table, query: Query) -> Callable[[int], bool]:
    status, branch, names = table.text["status"], table.text["branch"], table.text["names"]
    groups, tags = table.text["group"], table.text["tags"]
    wanted = frozenset(map(str, query.status))
    below = None if query.group is None else query.group.rstrip("/") + "/"

    def matches(row: int) -> bool:
        if not status[row] or (wanted and status[row] not in wanted):
            return False
        if query.branch is not None and branch[row] != query.branch:
            return False
        if query.name is not None and names[row] != query.name:
            return False
        if below is not None and not (groups[row] + "/").startswith(below):
            return False
        return not query.tags or query.tags <= set(tags[row].split("\n"))

    return matches


# -- the cache's file: magic, checksum; a JSON line of texts and lengths; the number columns as they are in memory


def _dump(table: _Table) -> bytes:
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


def _load(storage: Folder) -> _Table | None:
    """The cached table; None when it is missing or not whole."""
    try:
        first, _, body = storage.read(CACHE_KEY).partition(b"\n")
        if first != b"%b %016x" % (_MAGIC, checksum(body)):
            return None
        header, _, blob = body.partition(b"\n")
        return _parse(json.loads(header), _Blob(blob))
    except (CoralError, OSError, ValueError, KeyError, TypeError):
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


def _parse(header: dict[str, dict[str, list[str]]], blob: _Blob) -> _Table:
    table = _Table()
    table.text = {name: header["texts"][name] for name in _TEXTS}
    count = len(table.text["ids"])
    table.number = {name: blob.ints(count) for name in _NUMBERS}
    for name, length in header["metrics"].items():
        column = table.metrics[name] = _Column()
        size = int(length)  # type: ignore[call-overload]
        column.row, column.min_step, column.max_step = (blob.ints(size) for _ in _DIGEST)
        column.min, column.max = blob.floats(size), blob.floats(size)
    table.rows = {run: row for row, run in enumerate(table.text["ids"]) if run}
    folder = [int(number) for number in header["folder"]]
    table.folder, table.scanned_ns = (folder[0], folder[1], folder[2]), int(header["scanned"])  # type: ignore[call-overload]
    return table
