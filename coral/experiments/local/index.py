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
from collections.abc import Callable

from coral import threads
from coral.errors import CoralError
from coral.experiments.columns import Mode
from coral.experiments.local.record import SUMMARY, head, summaries
from coral.experiments.local.table import NO_STEP, FileKey, Table, dump, load
from coral.experiments.scalars import LAST_MS, MAX_STEP
from coral.experiments.seams import Query, Totals
from coral.storage.bounded import read_bounded
from coral.storage.contents import CACHE, RUNS
from coral.storage.folder import Folder

CACHE_KEY = f"{CACHE}/experiments.index"
_FILES = re.compile(r"\0([0-9a-f]{12})\.json(?=\0)", re.ASCII)
_BATCH = 32
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HEAD_BYTES = 4096
_MAX_HEAD_BYTES = 64 * 1024 * 1024
_MAX_CACHE_BYTES = 1 << 30
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system we know (FAT)
_MALFORMED = (CoralError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)

_File = tuple[str, FileKey, bytes]


class Index:
    """The summaries of all runs in a folder, kept up to date by :meth:`refresh`.

    Args:
        folder: coral's folder; the runs are under ``experiments``, the cache under ``cache``.
        clock_ns: nanoseconds since 1970.
    """

    def __init__(self, folder: Folder, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._runs = folder.path(RUNS)
        self._clock_ns = clock_ns
        self._table: Table | None = None
        self._told: set[str] = set()

    def refresh(self) -> None:
        """Bring the rows up to date with the files; rewrites the cache when some had changed."""
        is_new = self._table is None
        if self._table is None:
            self._table = self._load() or Table()
        try:
            fd = os.open(self._runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._table = Table()
            return
        try:
            status = os.fstat(fd)
            key = (status.st_mtime_ns, 0, status.st_ino)
            if self._table.folder == key and key[0] < self._table.scanned_ns - _TICK_NS:
                return
            changed = self._scan(fd, self._table, key)
            if len(self._table.text["ids"]) > 64 + 2 * len(self._table.rows):
                self._table = Table()  # mostly replaced rows: afresh from the files
                changed = self._scan(fd, self._table, key)
            if changed:
                self._save()
            if is_new:
                self._tell_of_malformed(self._table)
        finally:
            os.close(fd)

    def _scan(self, fd: int, table: Table, folder: FileKey) -> bool:
        """Look at every file; returns whether a row changed, or the rows became trustworthy."""
        scanned, changed = self._clock_ns(), 0
        # The names in one text, parted by what no name contains: a match each costs a third of a query without index.
        present = set(_FILES.findall("\0".join(["", *os.listdir(fd), ""])))
        for run_id in table.rows.keys() - present:
            table.drop(run_id)
            changed += 1
        stale = [run_id for run_id in present if not self._is_good(fd, table, run_id)]
        for start in range(0, len(stale), _BATCH):
            changed += self._read(fd, table, stale[start : start + _BATCH])
        was_settled = table.folder == folder and folder[0] < table.scanned_ns - _TICK_NS
        settled = folder[0] < scanned - _TICK_NS and not was_settled
        table.folder, table.scanned_ns = folder, scanned
        return bool(changed) or settled

    def _is_good(self, fd: int, table: Table, run_id: str) -> bool:
        row = table.rows.get(run_id)
        if row is None:
            return False
        try:
            key = _key(os.stat(run_id + ".json", dir_fd=fd, follow_symlinks=False))
        except OSError:
            return False
        return key == table.key(row) and key[0] < table.scanned_ns - _TICK_NS

    def _read(self, fd: int, table: Table, runs: list[str]) -> int:
        """Read files anew; returns how many are not what they were."""
        files: list[_File] = []
        changed = 0
        for run_id in runs:
            try:
                key, data = read_head(run_id + ".json", fd)
            except OSError:
                table.drop(run_id)
                changed += 1
                continue
            changed += _is_new(table, run_id, key)
            if len(data) <= _HEAD_BYTES:
                files.append((run_id, key, data))
            else:  # may be long, and many of them together too long for the memory
                self._add(table, [(run_id, key, data)])
        if files:
            self._add(table, files)
        return changed

    def _add(self, table: Table, files: list[_File]) -> None:
        """Add files' rows together; one by one when that shows that not all of them are runs'."""
        runs, keys, heads = zip(*files, strict=True)
        try:
            table.add(runs, keys, summaries(heads) if len(files) > 1 else [head(heads[0], f"{runs[0]}.json")[0]])
        except _MALFORMED as error:
            if len(files) > 1:
                for one in files:
                    self._add(table, [one])
                return
            is_new = _is_new(table, runs[0], keys[0])
            table.add_malformed(runs[0], keys[0])
            if is_new:
                self._told.add(runs[0])
                threads.warn(f"the experiment file {runs[0]}.json is left out: {error}")

    def _tell_of_malformed(self, table: Table) -> None:
        """Warn of what another process found to be malformed: each process is told once."""
        for run_id, row in table.rows.items():
            if not table.text["status"][row] and run_id not in self._told:
                self._told.add(run_id)
                text = f"the experiment file {run_id}.json is left out: it is not the file of a run"
                threads.warn(text)

    def _load(self) -> Table | None:
        try:
            return load(read_bounded(self._folder, CACHE_KEY, _MAX_CACHE_BYTES))
        except (CoralError, OSError, RecursionError, OverflowError):
            return None

    def _save(self) -> None:
        if self._table is not None:
            try:
                self._folder.write(CACHE_KEY, dump(self._table))
            except CoralError:  # a read-only or full file system answers all the same, only slower
                return

    # -- questions; call refresh() first

    @property
    def _rows(self) -> Table:
        return self._table if self._table is not None else Table()

    def names(self) -> dict[str, str]:
        """All runs, in no order: the name of each id; an empty one where the file is malformed."""
        names = self._rows.text["names"]
        return {run_id: names[row] for run_id, row in self._rows.rows.items()}

    def facts(self) -> dict[str, tuple[int, str]]:
        """When each run was created, milliseconds since 1970, and its status; as their files say it."""
        created, status = self._rows.number["created"], self._rows.text["status"]
        return {
            run_id: (created[row], status[row])
            for run_id, row in self._rows.rows.items()
            if 0 <= created[row] <= LAST_MS
        }

    def running(self) -> list[str]:
        """The runs whose file says that they run."""
        table = self._rows
        return [run_id for run_id, row in table.rows.items() if table.text["status"][row] in ("running", "pending")]

    def select(self, query: Query) -> list[tuple[int, str]]:
        """The matching runs' creation time (milliseconds since 1970) and id, in no order."""
        table = self._rows
        created, matches = table.number["created"], _matcher(table, query)
        return [(created[row], run_id) for run_id, row in table.rows.items() if matches(row)]

    def where(self, column: str, text: str) -> list[str]:
        """The runs with this ``commit`` or ``parent``, oldest first."""
        table = self._rows
        cells, created = table.text[column], table.number["created"]
        return [
            run_id
            for _, run_id in sorted((created[row], run_id) for run_id, row in table.rows.items() if cells[row] == text)
        ]

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
        return [(sign * value, when, run_id, None if step == NO_STEP else step) for value, when, run_id, step in chosen]

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
        ids = table.text["ids"]
        totals.metrics = {name for name, column in table.metrics.items() if any(ids[row] for row in column.row)}
        return totals


def read_head(name: str, folder_fd: int) -> tuple[FileKey, bytes]:
    """A file's key and its beginning, at least to the end of the first line. Raises OSError.

    Links are not followed, and what is not a regular file is not waited for.
    """
    fd = os.open(name, _FLAGS, dir_fd=folder_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is not a regular file")
        data = os.read(fd, _HEAD_BYTES)
        end = data.find(b"\n")
        while end < 0 or not data.startswith(SUMMARY):
            more = os.read(fd, 1024 * 1024) if len(data) < _MAX_HEAD_BYTES else b""
            if not more:
                return _key(status), data
            data += more
            end = data.find(b"\n")
        return _key(status), data[: end + 1]
    finally:
        os.close(fd)


def _key(status: os.stat_result) -> FileKey:
    # Some file systems use all 64 bits of an inode's number, and a time may be any.
    time_ns = max(-MAX_STEP, min(status.st_mtime_ns, MAX_STEP))
    return time_ns, status.st_size, status.st_ino & MAX_STEP


def _is_new(table: Table, run_id: str, key: FileKey) -> bool:
    row = table.rows.get(run_id)
    return row is None or table.key(row) != key


def _matcher(table: Table, query: Query) -> Callable[[int], bool]:
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
