"""Checking a repository: every commit that can be reached, down to the bytes of its tensors, and the artifacts of runs.

Refs and runs lead to commits, commits to manifests, manifests to chunks. What is damaged is named by the commit, part
and tensor that it hurts, or by the run and its artifact. Nothing is changed; :mod:`coral.verbs.care.repair` does that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coral.errors import CoralError, CorruptionError, NotFoundError
from coral.format.manifest import Manifest, TensorRecord
from coral.ids import chunk_id
from coral.objects.jobs import batched, in_order
from coral.objects.salvage import damaged_packs, read_fully
from coral.verbs.git_manifests import contents_in, is_conflicted
from coral.verbs.runs import texts_of_runs

if TYPE_CHECKING:
    from coral.history import History
    from coral.ids import ChunkId, CommitHash, ContentRef, RunId
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.storage.folder import Folder
    from coral.verbs.care.repair import Repaired
    from coral.verbs.care.scrub import Scrub
    from coral.verbs.parts import PartReader
    from coral.verbs.relying import Reliers

_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        commit: the newest commit found to hold it, or the ref that leads nowhere; ``run:ID`` for an artifact.
        part: the part, None when the commit itself is damaged; an artifact's name.
        tensor: the tensor, None when the manifest is damaged.
        message: what is wrong.
        runs: the experiments that name the commit, or the artifact.
        in_git: it is a commit, a ref or an index of the git repository around the project.
    """

    commit: str
    part: str | None
    tensor: str | None
    message: str
    runs: tuple[RunId, ...] = ()
    in_git: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check looked at, and what it found.

    Attributes:
        commits, manifests, tensors: how many different ones were checked.
        nbytes: raw bytes that were read and verified; 0 when only the structure was.
        damage: everything that is wrong; none when the repository is sound.
        damaged_packs: where something was found damaged, also where another pack makes up for it.
        repaired: what was repaired, and is no damage any more.
        artifacts: how many different ones of runs were checked, those of deleted runs included.
    """

    commits: int
    manifests: int
    tensors: int
    nbytes: int
    damage: tuple[Damage, ...]
    damaged_packs: tuple[str, ...] = ()
    repaired: Repaired | None = None
    artifacts: int = 0


class Checker:
    """Walks a repository once, looking at everything once.

    Args:
        read_data: read and verify every tensor's bytes, rather than only that their chunks are there.
        scrub: read and verify these chunks.

    Attributes:
        damaged: the tensors that cannot be read, as far as was looked.
    """

    def __init__(
        self,
        history: History,
        reader: PartReader,
        store: ChunkStore,
        *,
        read_data: bool = False,
        scrub: Scrub | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.damaged: list[tuple[Damage, TensorRecord]] = []
        self._scrub = scrub
        self._to_read: dict[ChunkId, tuple[Damage, TensorRecord]] = {}
        self._history = history
        self._reader = reader
        self._store = store
        self._read_data = read_data
        self._progress = progress
        self._commits: set[CommitHash] = set()
        self._manifests: set[str] = set()
        self._artifacts: dict[tuple[RunId, TensorRecord], None] = {}
        self._verdicts: dict[str, str | None] = {}
        self._nbytes = 0

    def run(self, *, folder: Folder | None = None, git: Reliers | None = None) -> Checked:
        """Check everything that a branch, a tag or HEAD reaches.

        Args:
            folder: ``.coral``, to check what its runs name as well.
            git: the user's git repositories, to check what those reach as well.

        Raises:
            NotFoundError: there are none.
            GitCommandError: git failed.
            LockedError, StorageError: the files of runs cannot be read.
        """
        damage = [Damage(ref, None, None, "the ref is damaged") for ref in self._history.damaged_refs()]
        damage += [found for name, tip in sorted(self._tips().items()) for found in self._check_tip(name, tip)]
        damage += self._check_git(git) if git is not None else ()
        damage += self._check_runs(folder) if folder is not None else ()
        counts = (len(self._commits), len(self._manifests), len(self._verdicts))
        damage += self._check_artifacts()
        damage += self._read_share()
        packs = tuple(pack.name for pack in damaged_packs(self._store))
        return Checked(
            *counts,
            self._nbytes,
            tuple(damage),
            packs,
            artifacts=len({record.content for _, record in self._artifacts}),
        )

    def _read_share(self) -> Iterator[Damage]:
        """Read the chunks whose turn it is."""
        for turn in self._scrub.turns(list(self._to_read)) if self._scrub is not None else ():
            for chunk, error in self._in_order(turn):
                if error is not None:
                    where, record = self._to_read[chunk]
                    found = replace(where, message=error.message)
                    self.damaged.append((found, record))
                    yield found

    def _in_order(self, chunks: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, CorruptionError | None]]:
        """Read chunks on all cores, as they lie on the disk; what is wrong with each."""

        def read(batch: list[ChunkId]) -> list[tuple[ChunkId, int, CorruptionError | None]]:
            return [(chunk, *self._read(chunk)) for chunk in batch]

        batches = batched(sorted(chunks, key=self._place), lambda _: 1, _CHUNKS)
        with contextlib.closing(in_order((self._store.submit(read, b) for b in batches), self._store.window)) as done:
            for found in done:
                for chunk, length, error in found:
                    self._count(length)
                    yield chunk, error

    def _read(self, chunk: ChunkId) -> tuple[int, CorruptionError | None]:
        try:
            return read_fully(self._store, chunk), None
        except CorruptionError as error:
            return 0, error

    def _place(self, chunk: ChunkId) -> tuple[str, int]:
        found = self._store.packs.find(chunk)
        return (found[0].name, found[1].offset) if found is not None else ("", 0)

    def _count(self, nbytes: int) -> None:
        self._nbytes += nbytes
        if self._progress is not None:
            self._progress(nbytes)

    def _tips(self) -> dict[str, CommitHash]:
        head = self._history.head().commit
        tips = {**self._history.tags(), **self._history.branches()}
        return {**tips, "HEAD": head} if head is not None else tips

    def _check_tip(self, name: str, tip: CommitHash) -> Iterator[Damage]:
        try:
            for commit in self._history.log(tip):
                if commit.commit_hash not in self._commits:
                    self._commits.add(commit.commit_hash)
                    yield from self._check_commit(commit.commit_hash)
        except CoralError as error:
            yield Damage(name, None, None, error.message)

    def _check_commit(self, commit_hash: CommitHash) -> Iterator[Damage]:
        try:
            parts = self._history.parts(commit_hash)
        except CoralError as error:
            yield Damage(commit_hash, None, None, error.message)
            return
        for part, oid in parts.items():
            if oid in self._manifests:
                continue
            self._manifests.add(oid)
            try:
                manifest = self._reader.load(oid)
            except CoralError as error:
                yield Damage(commit_hash, part, None, error.message)
                continue
            yield from self._check_manifest(manifest, commit_hash, part)

    def _check_manifest(self, manifest: Manifest, commit_hash: CommitHash, part: str) -> Iterator[Damage]:
        fresh = (record for record in manifest.everything if record.content not in self._verdicts)
        yield from self._check_records(fresh, commit_hash, part)

    def _check_git(self, git: Reliers) -> Iterator[Damage]:
        """Every manifest that is hurt is named, also where another one holds the same tensor."""
        if not git:
            raise NotFoundError(f"there is no git repository around {git.project}")
        for (holder, path), text in git.texts():
            self._manifests.add(chunk_id(text).hex())
            yield from self._check_text(text, holder, path)

    def _check_runs(self, folder: Folder) -> Iterator[Damage]:
        """The commits that runs name, which may be on no branch any more; what artifacts they name is noted."""
        for one in texts_of_runs(folder):
            # Each once: where a run is folded meanwhile both of its files tell of them.
            self._artifacts |= dict.fromkeys((one.run_id, record) for record in one.artifacts)
            for oid in sorted(one.commits - self._commits):
                # The ancestors of the ones before are among them by now.
                if oid not in self._commits and self._history.has(oid):
                    yield from self._check_tip(f"run:{one.run_id}", oid)

    def _check_artifacts(self) -> Iterator[Damage]:
        for run_id, record in self._artifacts:
            yield from self._check(record, Damage(f"run:{run_id}", record.name, None, "", (run_id,)))

    def _check_text(self, text: bytes, holder: str, path: str) -> Iterator[Damage]:
        try:
            manifest = Manifest.from_bytes(text)
        except CoralError as error:
            # Whoever is to finish a merge may still take either side.
            if not is_conflicted(text):
                yield Damage(holder, path, None, error.message, in_git=True)
            for content in contents_in(text) if is_conflicted(text) else ():
                yield from self._check_content(content, holder, path)
        else:
            yield from self._check_records(manifest.everything, holder, path, in_git=True)

    def _check_content(self, content: ContentRef, holder: str, path: str) -> Iterator[Damage]:
        """See that what a manifest in conflict names is there; its shapes may belong to the one side or the other."""
        try:
            for chunk in self._store.chunks_in(content):
                self._store.packs.locate(chunk)
        except CoralError as error:
            yield Damage(holder, path, content, error.message, in_git=True)

    def _check_records(
        self, records: Iterable[TensorRecord], holder: str, part: str, *, in_git: bool = False
    ) -> Iterator[Damage]:
        for record in records:
            yield from self._check(record, Damage(holder, part, record.name, "", in_git=in_git))

    def _check(self, record: TensorRecord, where: Damage) -> Iterator[Damage]:
        """What is wrong with a tensor that is named there, if anything: looked at once, told of everywhere."""
        if record.content not in self._verdicts:
            self._verdicts[record.content] = self._check_record(record, where)
        verdict = self._verdicts[record.content]
        if verdict is not None:
            found = replace(where, message=verdict)
            self.damaged.append((found, record))
            yield found

    def _check_record(self, record: TensorRecord, where: Damage) -> str | None:
        """What is wrong with a tensor, if anything."""
        try:
            self._store.check(record)
            if self._read_data:
                self._read_all(record)
            elif self._scrub is not None:
                chunks = [chunk for chunk in self._store.chunk_ids(record) if chunk in self._scrub]
                self._to_read |= dict.fromkeys(chunks, (where, record))
        except CoralError as error:
            return error.message
        return None

    def _read_all(self, record: TensorRecord) -> None:
        if record.content.startswith("hex:"):
            self._count(record.nbytes)
            return
        for _, error in self._in_order(self._store.chunk_ids(record)):
            if error is not None:
                raise error


def still_damaged(
    store: ChunkStore, damage: Iterable[Damage], damaged: Iterable[tuple[Damage, TensorRecord]]
) -> tuple[Damage, ...]:
    """What is left of the damage, after a repair of these tensors."""
    mended = {found for found, record in damaged if _can_be_read(store, record)}
    return tuple(found for found in damage if found not in mended)


def _can_be_read(store: ChunkStore, record: TensorRecord) -> bool:
    try:
        for _ in store.stream([record]):
            pass
    except CoralError:
        return False
    return True


def with_runs(folder: Folder, damage: Iterable[Damage]) -> tuple[Damage, ...]:
    """Damage, with the experiments that name its commits, the deleted ones included."""
    found = list(damage)
    wanted = {one.commit for one in found}
    runs: dict[str, set[RunId]] = {}
    for text in texts_of_runs(folder) if found else ():
        for oid in text.commits & wanted:
            runs.setdefault(oid, set()).add(text.run_id)
    return tuple(replace(one, runs=tuple(sorted({*one.runs, *runs.get(one.commit, ())}))) for one in found)
