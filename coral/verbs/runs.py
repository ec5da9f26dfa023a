"""What runs name: commits, and the chunks of artifacts, found in the texts of their files.

A run is ``<id>.json``, with ``<id>.jsonl`` beside it while it lives; those of a deleted one lie in the trash, until
it is restored. What a run means is the business of a higher floor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CoralError, NotFoundError
from coral.format.manifest import TensorRecord
from coral.format.names import check_part_name
from coral.ids import RUN_ID, ContentRef, RunId, checksum
from coral.storage.contents import RUNS, TRASH, lock
from coral.storage.locks import file_lock
from coral.verbs.git_manifests import STORED

if TYPE_CHECKING:
    from coral.storage.folder import Folder

DELETED = f"{TRASH}/{RUNS}"
LOCK = lock(RUNS)
"""Who moves a run, or folds it, holds it alone."""

_SECONDS = 15.0
_RUN, _JOURNAL = ".json", ".jsonl"
COMMIT = re.compile(rb"\b[0-9a-f]{40}\b", re.ASCII)
"""Whatever may be the hash of a commit."""
_BRACE_OR_STRING = re.compile(rb'[{}]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MOST_BYTES = (1 << 63) - 1

Seen = dict[str, tuple[float, int]]
"""When a file that was read had last been changed, and its size."""


def run_ids(folder: Folder) -> list[RunId]:
    """The ids of the runs there are, damaged or not, by the names of their files alone."""
    stems = (name.removesuffix(_RUN) for name in folder.names(RUNS) if name.endswith(_RUN))
    return sorted(RunId(stem) for stem in stems if RUN_ID.fullmatch(stem))


class RunText(NamedTuple):
    """One file of a run, by its key in ``.coral``."""

    key: str
    text: bytes

    @property
    def run_id(self) -> RunId:
        """The run's id."""
        return RunId(os.path.basename(self.key).partition(".")[0])

    @property
    def commits(self) -> set[str]:
        """Whatever in it may be the id of a commit."""
        return {found.decode() for found in COMMIT.findall(self.text)}

    @property
    def artifacts(self) -> Iterator[TensorRecord]:
        """The artifacts that it names and the store holds, each as if it were a tensor of bytes."""
        text = _sound_lines(self.text) if self.key.endswith(_JOURNAL) else self.text
        return filter(None, (_artifact(found) for found in _flat_objects(text) if b'"ref"' in found))


def texts_of_runs(folder: Folder, *, seen: Seen | None = None, trash: bool = True) -> Iterator[RunText]:
    """The files of all runs, no run missed that is deleted, restored or ended meanwhile.

    Args:
        folder: ``.coral``.
        seen: files that need not be read again; those that are read now are put into it.
        trash: those of deleted runs as well.

    Raises:
        StorageError: one cannot be read.
        LockedError: somebody moved runs for too long.
    """
    known: Seen = {} if seen is None else seen
    is_complete = False
    while not is_complete:
        is_complete = True
        for key in _keys(folder, trash=trash):
            try:
                stamp = folder.modified(key), folder.size(key)
                if known.get(key) == stamp:
                    continue
                text = folder.read(key)
            except NotFoundError:
                # Moved since it was listed, with what was beside it: it is looked for again.
                is_complete &= folder.path(key).is_symlink()
                continue
            known[key] = stamp
            yield RunText(key, text)


def _keys(folder: Folder, *, trash: bool) -> list[str]:
    """Where the files of runs are, at one moment: a run that moves from one place to the other is seen in one of them.

    The journals come first: one that is gone when it is to be read was folded into the other file, which is read later.
    """
    with contextlib.ExitStack() as stack:
        # Where there is no lock and none can be made, nobody has ever moved a run.
        with contextlib.suppress(NotFoundError):
            stack.enter_context(file_lock(folder.path(LOCK), shared=True, timeout=_SECONDS))
        keys = [f"{place}/{name}" for place in (RUNS, DELETED)[: 1 + trash] for name in folder.names(place)]
    return sorted(
        (key for key in keys if key.endswith((".json", _JOURNAL))), key=lambda key: not key.endswith(_JOURNAL)
    )


def _flat_objects(text: bytes) -> Iterator[bytes]:
    """The JSON objects that hold no other: an artifact is one, however its file was formatted. In linear time."""
    start = None
    for found in _BRACE_OR_STRING.finditer(text):
        token = text[found.start()]
        if token == ord("{"):
            start = found.start()
        elif token == ord("}"):
            if start is not None:
                yield text[start : found.end()]
            start = None


def _artifact(text: bytes) -> TensorRecord | None:
    """The artifact that a JSON object is; None for anything else, and for one that is inline."""
    try:
        data = json.loads(text)
        name, _, nbytes, ref = (data[key] for key in ("name", "kind", "nbytes", "ref"))
        is_stored = STORED.fullmatch(ref.encode()) is not None
        if is_stored and type(nbytes) is int and 0 <= nbytes <= _MOST_BYTES:
            return TensorRecord(check_part_name(name), "U8", (nbytes,), ContentRef(ref))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, CoralError):
        pass
    return None


def _sound_lines(journal: bytes) -> bytes:
    """What of a journal is as it was written; the rest counts for nobody."""
    parts = (line.partition(b" ") for line in journal.split(b"\n"))
    return b"\n".join(body for digits, _, body in parts if digits == b"%016x" % checksum(body))
