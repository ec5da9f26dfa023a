"""Reading a training state back from its part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coral.errors import CorruptionError
from coral.tensors.frameworks import framework
from coral.tensors.state import decode_state
from coral.verbs.parts import STATE_KEY

if TYPE_CHECKING:
    from coral.format.manifest import Manifest, TensorRecord
    from coral.objects import ChunkStore


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
