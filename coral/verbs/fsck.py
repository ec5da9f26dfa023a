"""Checking a repository: every commit that can be reached, down to the bytes of its tensors.

Refs lead to commits, commits to manifests, manifests to chunks; and the git repository around it leads to manifests
of its own. What is damaged is named by the commit, part and tensor that it hurts. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import CoralError, NotFoundError
from coral.format.manifest import Manifest
from coral.git.enclosing import find_git
from coral.ids import chunk_id
from coral.verbs.reachable import contents_in, is_conflicted, texts_of_git

if TYPE_CHECKING:
    from coral.format.manifest import TensorRecord
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
        in_git: the commit is one of the git repository around the project, or what else holds objects there.
    """

    commit: str
    part: str | None
    tensor: str | None
    message: str
    in_git: bool = False


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
        self._verdicts: dict[str, str | None] = {}
        self._nbytes = 0

    def run(self, *, git: Path | None = None) -> Checked:
        """Check everything that a branch, a tag or HEAD reaches.

        Args:
            git: a project; what the git repository around it reaches is checked as well.

        Raises:
            NotFoundError: there is no git repository.
            GitCommandError: git failed.
        """
        damage = [found for name, tip in sorted(self._tips().items()) for found in self._check_tip(name, tip)]
        if git is not None:
            damage += self._check_git(git)
        counts = (len(self._commits), len(self._manifests), len(self._verdicts))
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
            fresh = (record for record in manifest.everything if record.content not in self._verdicts)
            yield from (Damage(commit, part, tensor, message) for tensor, message in self._check_records(fresh))

    def _check_git(self, project: Path) -> Iterator[Damage]:
        """Every manifest that is hurt is named, also where another one holds the same tensor."""
        if find_git(project) is None:
            raise NotFoundError(f"there is no git repository around {project}")
        for (commit, path), text in texts_of_git(project):
            self._manifests.add(chunk_id(text).hex())
            yield from (Damage(commit, path, tensor, why, in_git=True) for tensor, why in self._check_text(text))

    def _check_text(self, text: bytes) -> Iterator[tuple[str | None, str]]:
        try:
            manifest = Manifest.from_bytes(text)
        except CoralError as error:
            # Whoever is to finish a merge may still take either side.
            yield from self._check_contents(text) if is_conflicted(text) else [(None, error.message)]
        else:
            yield from self._check_records(manifest.everything)

    def _check_contents(self, text: bytes) -> Iterator[tuple[str, str]]:
        """See that what a manifest in conflict names is there; its shapes may belong to the one side or the other."""
        for content in contents_in(text):
            try:
                for chunk in self._store.chunks_in(content):
                    self._store.packs.locate(chunk)
            except CoralError as error:
                yield content, error.message

    def _check_records(self, records: Iterable[TensorRecord]) -> Iterator[tuple[str, str]]:
        for record in records:
            if record.content not in self._verdicts:
                self._verdicts[record.content] = self._check_record(record)
            verdict = self._verdicts[record.content]
            if verdict is not None:
                yield record.name, verdict

    def _check_record(self, record: TensorRecord) -> str | None:
        """What is wrong with a tensor, if anything."""
        try:
            if self._read_data:
                self._read(record)
            else:
                self._store.check(record)
        except CoralError as error:
            return error.message
        return None

    def _read(self, record: TensorRecord) -> None:
        for piece in self._store.stream([record]):
            length = len(piece)
            self._nbytes += length
            if self._progress is not None:
                self._progress(length)
