"""Copying chunks from one store to another, as they are encoded and with the bases that they need.

Nothing that is read is believed: each record is decoded and compared with its id before it counts. A base is there
before the first delta that stands on it, in the same pack or an earlier one, and a chunk list comes after all of its
chunks; so whatever ends a copy, what arrived is sound, and the next one goes on from there. A pack is published every
few hundred megabytes, so that this is not from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from coral.errors import CorruptionError
from coral.format import codecs
from coral.format.chunking import CHUNK_LIMIT, spans
from coral.format.pack import MAX_DEPTH, Entry
from coral.ids import ChunkId, chunk_id
from coral.objects.jobs import batched
from coral.objects.scratch import Scratch
from coral.objects.shelf import fit
from coral.objects.writer import StoreWriter

if TYPE_CHECKING:
    from coral.format.manifest import TensorRecord
    from coral.objects.shelf import LocalShelf, Shelf
    from coral.objects.writer import Progress

PUBLISH_BYTES = 256 << 20
_BATCH_BYTES = 4 << 20
_LIST = "b3l:"


class _Node(NamedTuple):
    """A chunk that the target lacks.

    Attributes:
        pack: the pack of the source that holds it.
        entry: where it lies there.
        base: the chunk that it is encoded against; None for one that stands alone, or shall.
        wanted: it is part of a tensor, and not only the base of another chunk.
        alone: it shall be encoded anew, so that it needs no base.
    """

    pack: str
    entry: Entry
    base: ChunkId | None
    wanted: bool
    alone: bool = False


class Plan:
    """What one store lacks of the chunks that tensors are made of, and what of it another store is to give.

    Attributes:
        records: the tensors that were added.
    """

    def __init__(self, source: Shelf, target: Shelf) -> None:
        self.records: list[TensorRecord] = []
        self._source = source
        self._target = target
        self._nodes: dict[ChunkId, _Node] = {}

    def add(self, record: TensorRecord) -> None:
        """Have a tensor's chunks copied where the target lacks them.

        Raises:
            CorruptionError: neither store has all of them; the plan is as it was.
        """
        if record.content.startswith("hex:"):
            return
        found: dict[ChunkId, _Node] = {}
        for chunk, (start, stop) in zip(self.chunk_ids(record), spans(record.dtype, record.shape), strict=True):
            if chunk not in self._target.packs:
                self._want(chunk, stop - start, found)
        self._nodes |= found
        self.records.append(record)

    def chunk_ids(self, record: TensorRecord) -> list[ChunkId]:
        """The ids of a tensor's chunks, by the list of the store that has it. Raises CorruptionError."""
        return (self._target if self._has_list(record) else self._source).chunk_ids(record)

    def missing_lists(self) -> Iterator[TensorRecord]:
        """The tensors whose chunk lists the target lacks."""
        return (found for found in self.records if found.content.startswith(_LIST) and not self._has_list(found))

    def _has_list(self, record: TensorRecord) -> bool:
        return record.content.startswith(_LIST) and list_of(record) in self._target.packs

    def _want(self, chunk: ChunkId, nbytes: int, found: dict[ChunkId, _Node]) -> None:
        """Note a chunk and the bases that the target lacks."""
        if (known := found.get(chunk) or self._nodes.get(chunk)) is not None and known.entry.raw_length == nbytes:
            found[chunk] = known._replace(wanted=True)
            return
        pack, entry = self._source.packs.locate(chunk, nbytes=nbytes)
        base = self._note(chunk, pack.name, entry, found, wanted=True)
        while base is not None and base not in self._target.packs and not (base in found or base in self._nodes):
            self._source.length_of(base)
            pack, entry = self._source.packs.locate(base)
            base = self._note(base, pack.name, entry, found, wanted=False)

    def _note(
        self, chunk: ChunkId, pack: str, entry: Entry, found: dict[ChunkId, _Node], *, wanted: bool
    ) -> ChunkId | None:
        if entry.stored_length > 2 * CHUNK_LIMIT:
            raise CorruptionError(f"the chunk {chunk.hex()} is stored in {entry.stored_length} bytes, which none needs")
        base = self._source.packs.base_of(chunk) if entry.codec in codecs.WITH_BASE else None
        found[chunk] = _Node(pack, entry, base, wanted)
        return base

    def levels(self) -> Iterator[list[tuple[ChunkId, _Node]]]:
        """The chunks to copy, those first that others stand on; each level in the order of the source's packs."""
        nodes = self._settled()
        depths: dict[ChunkId, int] = {}
        for chunk in nodes:
            for other in reversed(_walk(chunk, nodes, until=depths)):
                base = nodes[other].base
                depths[other] = 0 if base is None else depths.get(base, -1) + 1
        levels: list[list[tuple[ChunkId, _Node]]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
        for chunk, depth in depths.items():
            levels[depth].append((chunk, nodes[chunk]))
        for level in levels:
            yield sorted(level, key=lambda item: (item[1].pack, item[1].entry.offset))

    def _settled(self) -> dict[ChunkId, _Node]:
        """The nodes, less the bases that are not wanted for themselves and cost more than to do without them.

        Those who stand on the same base share its cost: they keep it together, or are encoded anew together.
        """
        nodes, groups = self._nodes, self._groups()
        settled = {chunk: node for chunk, node in nodes.items() if node.wanted}
        for members in groups.values():
            helpers = {base for chunk in members for base in self._helpers(chunk)}
            as_it_is = sum(nodes[chunk].entry.stored_length for chunk in (*members, *helpers))
            if self._cost_alone(members) < as_it_is:
                settled |= {chunk: nodes[chunk]._replace(base=None, alone=True) for chunk in members}
            else:
                settled |= {chunk: nodes[chunk] for chunk in helpers}
        return settled

    def _groups(self) -> dict[ChunkId, list[ChunkId]]:
        """The wanted chunks that stand on unwanted ones, by the lowest of those."""
        groups: dict[ChunkId, list[ChunkId]] = {}
        for chunk, node in self._nodes.items():
            if node.wanted and (helpers := self._helpers(chunk)):
                groups.setdefault(helpers[-1], []).append(chunk)
        return groups

    def _helpers(self, chunk: ChunkId) -> list[ChunkId]:
        """The bases right below a chunk that nobody wants for themselves, nearest first."""
        base = self._nodes[chunk].base
        return [] if base is None else _walk(base, self._nodes, until={}, wanted=False)

    def _cost_alone(self, chunks: Iterable[ChunkId]) -> float:
        """About the bytes of chunks that are encoded without a base: as well as the one below them that has none."""
        cost = 0.0
        for chunk in chunks:
            root = self._nodes[_walk(chunk, self._nodes, until={})[-1]]
            share = 1.0 if root.base is not None else root.entry.stored_length / max(root.entry.raw_length, 1)
            cost += share * self._nodes[chunk].entry.raw_length
        return cost


def _walk(
    chunk: ChunkId, nodes: dict[ChunkId, _Node], *, until: dict[ChunkId, int], wanted: bool | None = None
) -> list[ChunkId]:
    """A chunk and its bases in turn, as far as they are nodes, none twice: a hostile store may have them in a ring.

    Args:
        until: stop before one of these.
        wanted: stop before one that is otherwise.
    """
    path: dict[ChunkId, None] = {}
    at: ChunkId | None = chunk
    while at is not None and at in nodes and at not in path and at not in until:
        if wanted is not None and nodes[at].wanted is not wanted:
            break
        path[at] = None
        at = nodes[at].base
    return list(path)


def list_of(record: TensorRecord) -> ChunkId:
    """The id of a tensor's chunk list."""
    return ChunkId(bytes.fromhex(record.content.removeprefix(_LIST)))


class ChunkCopier(StoreWriter):
    """Copies what a plan says. While it lives nothing is collected from either store. Use as a context manager.

    Args:
        near: the store that is quicker to read, where bases are taken from if both have them.

    Attributes:
        plan: what to copy; to be filled before :meth:`copy`.
        chunks: how many were copied.
        nbytes: what the target's packs have grown by.
        lost: the tensors that turned out to be damaged in the source, and how.
    """

    def __init__(self, source: Shelf, target: LocalShelf, *, near: Shelf) -> None:
        super().__init__(target)
        try:
            self._holding.enter_context(source.kept())
        except BaseException:
            self._holding.close()
            raise
        source.packs.refresh()
        target.packs.refresh()
        self.plan = Plan(source, target)
        self.chunks = self.nbytes = 0
        self._source = source
        self._near = near
        self._records = Scratch()
        self.lost: list[tuple[TensorRecord, str]] = []
        self._damaged: dict[ChunkId, str] = {}

    def copy(self, progress: Progress | None = None) -> None:
        """Copy what the plan says, and publish it. A tensor that is damaged in the source gets no chunk list.

        Raises:
            StorageError: the disk refused; what was published before stays, and is not copied again the next time.
        """
        for level in self.plan.levels():
            for part in batched(level, lambda item: item[1].entry.stored_length, PUBLISH_BYTES, most=None):
                batches = batched(part, lambda item: item[1].entry.raw_length, _BATCH_BYTES)
                self._finish((self._store.submit(self._copy_batch, batch) for batch in batches), progress)
                if self._pack is not None and self._pack.size >= PUBLISH_BYTES:
                    self.nbytes += self._publish()
        if self._damaged:
            self.lost = list(self._find_lost())
        # Not by name: tensors of many files may have the same.
        damaged = {record.content for record, _ in self.lost}
        for record in self.plan.missing_lists():
            if record.content not in damaged:
                self._take_list(list_of(record), self._source.read_list(list_of(record)))
        self.nbytes += self.seal()

    def _find_lost(self) -> Iterator[tuple[TensorRecord, str]]:
        for record in self.plan.records:
            damaged = next((chunk for chunk in self.plan.chunk_ids(record) if chunk in self._damaged), None)
            if damaged is not None:
                yield record, self._damaged[damaged]

    def _copy_batch(self, batch: list[tuple[ChunkId, _Node]]) -> int:
        copied = sum(self._claim(chunk) and self._copy_one(chunk, node) for chunk, node in batch)
        self._write_small()
        with self._lock:
            self.chunks += copied
        return sum(node.entry.stored_length for _, node in batch)

    def _copy_one(self, chunk: ChunkId, node: _Node) -> bool:
        try:
            if node.alone or not self._copy_as_it_is(chunk, node.entry.raw_length):
                self._copy_alone(chunk, node.entry)
        except CorruptionError as error:
            self._damaged[chunk] = error.message
            del self._entries[chunk]
            return False
        return True

    def _copy_as_it_is(self, chunk: ChunkId, nbytes: int) -> bool:
        """Copy a chunk's record; False where it cannot be, or had better not."""

        def take(entry: Entry, payload: memoryview) -> bool:
            depth = self._depth_on(codecs.base_of(entry.codec, payload))
            if depth is None or len(payload) > 2 * CHUNK_LIMIT:
                return False
            out = self._decoded.take(entry.raw_length)
            codecs.decode_into(entry.codec, entry.item, payload, out, self._read_base)
            if chunk_id(out) != chunk:
                raise CorruptionError(f"the chunk {chunk.hex()} decodes to other bytes")
            self._append(chunk, payload, entry._replace(depth=depth))
            return True

        try:
            return self._source.packs.read(chunk, self._records, take, nbytes=nbytes)
        except CorruptionError:
            # It may be the base that is damaged, in one of the stores: the bytes may still be had otherwise.
            return False

    def _copy_alone(self, chunk: ChunkId, entry: Entry) -> None:
        data = self._copies.take(self._source.length_of(chunk))
        self._source.read_chunk(chunk, data)
        self._encode(chunk, data, entry.item, None)

    def _depth_on(self, base: ChunkId | None) -> int | None:
        """The depth of a chunk that stands on such a base in the target; None where the base is not there or too deep.

        That it is there before is also what keeps two chunks from standing on one another.
        """
        if base is None:
            return 0
        if base in self._entries:
            entry = self._entries[base] if self._is_sound(base) else None
        else:
            found = self._store.packs.find(base)
            entry = found[1] if found is not None else None
        return entry.depth + 1 if entry is not None and entry.depth < MAX_DEPTH else None

    def _read_base(self, base: ChunkId, into: memoryview) -> memoryview:
        store = self._store if self._near is self._store and base in self._store.packs else self._source
        length = store.length_of(base)
        whole = into if length == len(into) else self._base.take(length)
        store.read_chunk(base, whole)
        if length != len(into):
            fit(whole, into)
        return into
