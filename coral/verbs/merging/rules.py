"""Merge rules: what becomes of a tensor that both sides changed; a new one is one file, and one line in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from coral.format.manifest import SKELETON_NAME
from coral.verbs.merging.average import Average
from coral.verbs.merging.merge import Merge, Read, Side, Versions
from coral.verbs.merging.sides import OURS, THEIRS

if TYPE_CHECKING:
    from coral.format.manifest import Manifest, TensorRecord
    from coral.format.tensors import TensorSource
    from coral.objects import ChunkStore

LEAVE: Final = "conflict"
"""In place of a rule's name: what both sides changed is left to whoever merges."""


class Rule(Protocol):
    """Settles tensors, one at a time. The same versions always give the same tensor, on any machine."""

    @property
    def name(self) -> str:
        """As git's settings say it, and the option of ``coral resolve``."""
        ...

    @property
    def help(self) -> str:
        """What that option does."""
        ...

    @property
    def why_not(self) -> str:
        """What to say of tensors that it does not settle; empty where it settles all."""
        ...

    @property
    def frame(self) -> Side | None:
        """Whose rest of the file is taken where both changed it; None leaves that."""
        ...

    def settle(self, versions: Versions, read: Read) -> Side | TensorSource | None:
        """Whose version is taken, though it be that the tensor is gone; or a tensor of the same name; None leaves it.

        Args:
            versions: of which ours and theirs differ.
            read: yields a record's bytes, chunk by chunk. The tensor that is returned is read once, from its start,
                in chunks that are as long as those of a record of its dtype and shape; nothing is read before.
        """
        ...


RULES: Final[Mapping[str, Rule]] = MappingProxyType({rule.name: rule for rule in (OURS, THEIRS, Average())})
"""All of them, in the order in which they are offered."""


def settle(
    merge: Merge,
    rule: Rule,
    *,
    store: Callable[[], ChunkStore],
    base: Manifest | None = None,
    names: Iterable[str] | None = None,
) -> Merge:
    """Settle conflicts by a rule; those that it leaves stay.

    Args:
        store: called when something is to be read and stored, which is then durable.
        base: what both sides come from.
        names: of the conflicts; None takes all.

    Raises:
        CorruptionError: a tensor cannot be read.
        StorageError: the disk refused.
    """
    sides: dict[Side, list[str]] = {"ours": [], "theirs": []}
    sources: list[TensorSource] = []

    def read(record: TensorRecord) -> Iterator[memoryview]:
        yield from store().stream([record])

    for name in merge.conflicts if names is None else names:
        found = rule.frame if name == SKELETON_NAME else rule.settle(merge.versions(name, base), read)
        if found == "ours" or found == "theirs":
            sides[found].append(name)
        elif found is not None:
            sources.append(found)
    for side, taken in sides.items():
        if taken:
            merge = merge.take(side, taken)
    if not sources:
        return merge
    with store().writer(keeps_young=True) as writer:
        records = writer.write_tensors(sources)
        writer.seal()
    return merge.settled_with(records)
