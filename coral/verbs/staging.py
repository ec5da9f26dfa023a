"""Staging: what the next commit will change, laid over the branch's tip as git's index is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from coral.errors import CoralError, CorruptionError, NotFoundError
from coral.format.names import check_part_name
from coral.history.commit import is_hash
from coral.ids import checksum
from coral.storage.bounded import read_bounded
from coral.storage.locks import file_lock
from coral.verbs.parts import PartReader

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.history import History
    from coral.ids import BlobId, CommitHash
    from coral.storage.folder import Folder

INDEX = "index.json"
"""What is staged, in the shell's staging area."""
_LIMIT = 256 << 20


@dataclass(slots=True)
class Overlay:
    """Changes laid over a commit.

    Attributes:
        base: the commit that they were laid over, or None before the first commit.
        parts: name to new manifest, or to None for a part that is removed.
        stager: the thread that staged them, in memory; None where it is not known.
        under: the overlay that this one is a copy of.
        is_apart: whether what is staged from now on stands whatever another commit makes of it meanwhile.
        standing: the parts that do.
    """

    base: CommitHash | None = None
    parts: dict[str, Manifest | None] = field(default_factory=dict)
    stager: Thread | None = None
    under: Overlay | None = None
    is_apart: bool = False
    standing: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Forget what is staged; of a copy, what it was copied from too."""
        self.base = self.stager = None
        self.parts = {}
        if self.under is not None:
            self.under.clear()

    def copy(self) -> Overlay:
        """An overlay that begins with the same, and whose commit is that of both."""
        return Overlay(self.base, dict(self.parts), self.stager, self)

    def rebase(self, base: CommitHash | None) -> None:
        """Lie over another commit; of a copy, what it was copied from too."""
        self.base = base
        if self.under is not None:
            self.under.rebase(base)

    def put(self, name: str, manifest: Manifest) -> None:
        """Have the next commit hold this as a part."""
        self.parts[name] = manifest
        if self.is_apart:
            self.standing.add(name)

    def stager_beside(self, thread: Thread) -> Thread | None:
        """Another thread than this one, that staged what is here and may yet commit it."""
        other = self.stager if self.parts else None
        return other if other is not None and other is not thread and other.is_alive() else None


class Staging(Protocol):
    """Where an overlay is kept between calls."""

    def open(self) -> AbstractContextManager[Overlay]:
        """A context in which to read and change the overlay; changes are kept when it ends without an error."""

    def peek(self) -> Overlay:
        """The overlay as it is now, to be read only; never waits."""

    def drop_unsealed(self) -> None:
        """Forget what is staged and was not made durable when it was."""


class PrivateStaging:
    """An overlay of one :class:`Repository` object, in memory: training processes do not disturb each other."""

    def __init__(self) -> None:
        self._overlay = Overlay()
        self._pid = os.getpid()

    @contextmanager
    def open(self) -> Iterator[Overlay]:
        yield self.peek()

    def peek(self) -> Overlay:
        if self._pid != os.getpid():
            # A forked child has none of the chunks that its parent staged.
            self._overlay, self._pid = Overlay(), os.getpid()
        return self._overlay

    def drop_unsealed(self) -> None:
        self.peek().clear()


class ShellStaging:
    """The overlay that the shell's commands share, in ``.coral/staging`` under a lock."""

    def __init__(self, folder: Folder, history: History, reader: PartReader) -> None:
        self._folder = folder
        self._history = history
        self._reader = reader

    @contextmanager
    def open(self) -> Iterator[Overlay]:
        with file_lock(self._folder.root / "lock"):
            overlay = self.peek()
            before = (overlay.base, dict(overlay.parts))
            yield overlay
            if (overlay.base, overlay.parts) != before:
                self._save(overlay)

    def peek(self) -> Overlay:
        if not self._folder.exists(INDEX):
            return Overlay()
        try:
            data = json.loads(read_bounded(self._folder, INDEX, _LIMIT))
            base: CommitHash | None = data["base"]
            parts: dict[str, BlobId | None] = data["parts"]
            if not all(oid is None or is_hash(oid) for oid in (base, *parts.values())):
                raise ValueError("what should be a hash is none")
            if data.get("check", check := _check(base, parts)) != check:
                raise ValueError("its checksum is wrong")
            blobs = {check_part_name(name): oid for name, oid in parts.items()}
        except NotFoundError:  # somebody has committed it in this moment
            return Overlay()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptionError(
                f"{self._folder.path(INDEX)} is damaged: {error}", hint="remove it and add the files again"
            ) from None
        return Overlay(base, {name: self._reader.load(oid) if oid else None for name, oid in blobs.items()})

    def drop_unsealed(self) -> None:
        """Nothing: each part was made durable before it was staged."""

    def _save(self, overlay: Overlay) -> None:
        if not overlay.parts:
            self._folder.remove(INDEX)
            return
        parts = {
            name: None if manifest is None else self._history.write_blob(manifest.to_bytes())
            for name, manifest in sorted(overlay.parts.items())
        }
        data = {"base": overlay.base, "parts": parts, "check": _check(overlay.base, parts)}
        self._folder.write(INDEX, json.dumps(data, indent=1).encode())


def _check(base: CommitHash | None, parts: Mapping[str, BlobId | None]) -> str:
    """A checksum: a flipped letter of a name would be another name, and no error. Older files have none."""
    return f"{checksum(json.dumps([base, sorted(parts.items())]).encode()):016x}"


@dataclass(frozen=True, slots=True)
class StagedChange:
    """One staged part: ``kind`` is added, changed or removed; ``nbytes`` are its raw bytes (0 when removed)."""

    name: str
    kind: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class StagedFiles:
    """What came of staging files, by part.

    Attributes:
        parts: those that are staged.
        failed: those that could not be kept.
        reasons: why a part is kept whole, where the file's name promises tensors.
    """

    parts: Mapping[str, Manifest]
    failed: Mapping[str, CoralError]
    reasons: Mapping[str, str]


def staged_changes(overlay: Mapping[str, Manifest | None], tip: Callable[[str], Manifest | None]) -> list[StagedChange]:
    """What an overlay changes against a tip; staging what the tip already holds changes nothing."""
    changes = []
    for name, manifest in sorted(overlay.items()):
        old = tip(name)
        if manifest is None and old is not None:
            changes.append(StagedChange(name, "removed", 0))
        elif manifest is not None and manifest != old:
            changes.append(StagedChange(name, "added" if old is None else "changed", manifest.nbytes))
    return changes
