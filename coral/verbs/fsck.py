"""Checking a repository: every commit that can be reached, down to the bytes of its tensors.

Refs lead to commits, commits to manifests, manifests to chunks. What is damaged is named by the commit, part and tensor
that it hurts. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coral.errors import CoralError
from coral.format.manifest import Manifest, TensorRecord

if TYPE_CHECKING:
    from coral.history import History
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.verbs.parts import PartReader


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        commit: the newest commit found to hold it, or the ref that leads nowhere.
        part: the part, None when the commit itself is damaged.
        tensor: the tensor, None when the manifest is damaged.
        message: what is wrong.
    """

    commit: str
    part: str | None
    tensor: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check looked at, and what it found.

    Attributes:
        commits, manifests, tensors: how many different ones were checked.
        nbytes: raw bytes that were read and verified; 0 when only the structure was.
        damage: everything that is wrong; none when the repository is sound.
    """

    commits: int
    manifests: int
    tensors: int
    nbytes: int
    damage: tuple[Damage, ...]


class Checker:
    """Walks a repository once, looking at everything once.

    Args:
        read_data: read and verify every tensor's bytes, rather than only that their chunks are there.
    """

    def __init__(
        self,
        history: History,
        reader: PartReader,
        store: ChunkStore,
        *,
        read_data: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._history = history
        self._reader = reader
        self._store = store
        self._read_data = read_data
        self._progress = progress
        self._commits: set[str] = set()
        self._manifests: set[str] = set()
        self._contents: set[str] = set()
        self._nbytes = 0

    def run(self) -> Checked:
        """Check everything that a branch, a tag or HEAD reaches."""
        damage = [found for name, tip in sorted(self._tips().items()) for found in self._check_tip(name, tip)]
        counts = (len(self._commits), len(self._manifests), len(self._contents))
        return Checked(*counts, self._nbytes, tuple(damage))

    def _tips(self) -> dict[str, str]:
        head = self._history.head().commit
        tips = {**self._history.tags(), **self._history.branches()}
        return {**tips, "HEAD": head} if head is not None else tips

    def _check_tip(self, name: str, tip: str) -> Iterator[Damage]:
        try:
            for commit in self._history.log(tip):
                if commit.commit_hash not in self._commits:
                    self._commits.add(commit.commit_hash)
                    yield from self._check_commit(commit.commit_hash)
        except CoralError as error:
            yield Damage(name, None, None, error.message)

    def _check_commit(self, commit: str) -> Iterator[Damage]:
        try:
            parts = self._history.parts(commit)
        except CoralError as error:
            yield Damage(commit, None, None, error.message)
            return
        for part, oid in parts.items():
            if oid in self._manifests:
                continue
            self._manifests.add(oid)
            try:
                manifest = self._reader.load(oid)
            except CoralError as error:
                yield Damage(commit, part, None, error.message)
                continue
            yield from (Damage(commit, part, tensor, message) for tensor, message in self._check_manifest(manifest))

    def _check_manifest(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        for record in manifest.everything:
            if record.content in self._contents:
                continue
            self._contents.add(record.content)
            try:
                self._check_record(record)
            except CoralError as error:
                yield record.name, error.message

    def _check_record(self, record: TensorRecord) -> None:
        if not self._read_data:
            self._store.check(record)
            return
        for piece in self._store.stream([record]):
            length = len(piece)
            self._nbytes += length
            if self._progress is not None:
                self._progress(length)
