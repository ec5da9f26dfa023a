"""Reading a training state back from its part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from coral.errors import CorruptionError, PartNotFoundError, UsageError
from coral.tensors.frameworks import framework
from coral.tensors.state import decode_state
from coral.verbs.parts import STATE_KEY, is_state, part_not_found

if TYPE_CHECKING:
    from coral.format.manifest import Manifest, TensorRecord
    from coral.ids import CommitHash
    from coral.objects import ChunkStore
    from coral.verbs.parts import PartReader


def state_of_commit(
    reader: PartReader, store: Callable[[], ChunkStore], commit_hash: CommitHash, name: str | None
) -> object:
    """The training state that a commit holds: the one named, else the only one.

    Raises:
        PartNotFoundError: it holds none, or none of that name.
        UsageError: it holds several, and no name says which is meant.
    """
    states = {part: found for part, found in reader.at(commit_hash).items() if is_state(found)}
    if name is not None and name not in states:
        raise part_not_found(name, states, commit_hash)
    if not states:
        raise PartNotFoundError(f"the commit {commit_hash[:10]} holds no training state")
    if name is None and len(states) > 1:
        raise UsageError(f"the commit {commit_hash[:10]} holds several states", hint=f"name= one of {sorted(states)}")
    return read_state(store(), states[name or next(iter(states))])


def read_state(store: ChunkStore, manifest: Manifest) -> object:
    """The state as it was staged. Raises CorruptionError, FormatError."""
    wanted: list[tuple[TensorRecord, memoryview]] = []

    def allocate(name: str, framework_name: str) -> object:
        if name not in manifest:
            raise CorruptionError(f"a training state refers to a tensor {name!r} that it does not hold")
        record = manifest[name]
        store.check(record)
        tensor, out = framework(framework_name).empty(record.dtype, record.shape)
        wanted.append((record, out))
        return tensor

    state = decode_state(dict(manifest.metadata)[STATE_KEY], allocate)
    # All at once, because an optimizer's state is thousands of small tensors.
    store.read_many(wanted)
    return state
