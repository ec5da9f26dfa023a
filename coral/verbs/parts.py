"""Parts: the manifests that a commit, or the staging area, names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from coral.errors import ConflictError, CorruptionError, FormatError, PartNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.history import History
    from coral.ids import BlobId, CommitHash

STATE_KEY = "coral.state"


def is_state(manifest: Manifest) -> bool:
    """Whether a part holds training state (:meth:`Repository.stage_state`) rather than weights or a file."""
    return any(key == STATE_KEY for key, _ in manifest.metadata)


def is_weights(manifest: Manifest) -> bool:
    """Whether a part holds named tensors of a model."""
    return manifest.container != "opaque" and not is_state(manifest)


class PartNames:
    """The names of a commit's parts, of which none can be a file and a folder at once."""

    def __init__(self, names: Iterable[str]) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}
        for name in names:
            self._put(name)

    def add(self, name: str) -> None:
        """Take one more. Raises ConflictError where it wants another one's place."""
        file = next((folder for folder in _folders(name) if folder in self._files), None)
        if file is not None:
            raise _both(f"{name!r} would lie in {file!r}, which is a file in the next commit", file)
        if name in self._folders:
            inside = self._folders[name]
            raise _both(f"{name!r} would be a file, and is the folder of {inside!r} in the next commit", inside)
        self._put(name)

    def _put(self, name: str) -> None:
        self._files.add(name)
        for folder in _folders(name):
            self._folders.setdefault(folder, name)


def _folders(name: str) -> Iterator[str]:
    """Every folder that a part lies in, the innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _both(message: str, other: str) -> ConflictError:
    return ConflictError(message, hint=f"take that one out of it first: coral rm --cached {shlex.quote(other)}")


class PartReader:
    """Reads manifests from the history, and remembers the last few."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._load = lru_cache(maxsize=16)(self._parse)

    def load(self, oid: BlobId) -> Manifest:
        """The manifest in this git blob. Raises CorruptionError."""
        return self._load(oid)

    def at(self, commit_hash: CommitHash) -> dict[str, Manifest]:
        """Every part of a commit, by name."""
        parts = self._history.parts(commit_hash)
        # Each manifest once: a small commit may name a large one a million times.
        manifests = {oid: self._load(oid) for oid in dict.fromkeys(parts.values())}
        return {name: manifests[oid] for name, oid in parts.items()}

    def one(self, commit_hash: CommitHash, name: str) -> Manifest:
        """One part of a commit. Raises PartNotFoundError."""
        oid = self._history.part(commit_hash, name)
        if oid is None:
            raise part_not_found(name, self._history.parts(commit_hash), commit_hash)
        return self._load(oid)

    def _parse(self, oid: BlobId) -> Manifest:
        from coral.format.manifest import Manifest  # parsed by who looks into parts: a log does not

        try:
            return Manifest.from_bytes(self._history.read_blob(oid))
        except FormatError as error:
            raise CorruptionError(f"the manifest {oid} is damaged: {error.message}", hint="run coral fsck") from None


def part_not_found(name: str, parts: Mapping[str, object], commit_hash: CommitHash) -> PartNotFoundError:
    """The error for a name that a commit does not hold."""
    known = ", ".join(sorted(parts)[:8]) or "nothing"
    return PartNotFoundError(f"the commit {commit_hash[:10]} holds no {name!r}", hint=f"it holds {known}")


def check_updatable(name: str, old: Manifest) -> Manifest:
    """A part whose tensors can be replaced one by one; returns it. Raises UsageError."""
    if old.container != "safetensors" or is_state(old):
        kind = "training state" if is_state(old) else f"file of kind {old.container}"
        raise UsageError(
            f"{name!r} is a {kind}, whose tensors cannot be replaced one by one",
            hint="stage it whole, without update",
        )
    return old


def laid_over(old: Manifest, fresh: Manifest) -> Manifest:
    """A part's tensors, and its metadata, with those of another laid over them."""
    from coral.format.manifest import Manifest

    kept = tuple(record for record in old.records if record.name not in fresh)
    metadata = {**dict(old.metadata), **dict(fresh.metadata)}
    return Manifest("safetensors", fresh.records + kept, None, tuple(metadata.items()))
