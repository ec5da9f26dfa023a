"""What a process knows of what it stored last: right after every failure, and within the limit of memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from coral.format.manifest import TensorRecord
from coral.ids import ChunkId, chunk_id
from coral.objects import ChunkStore, Memory, Parent
from coral.objects import parent as parent_module
from coral.objects import writer as writer_module
from tests.objects.helpers import MIB, Tensor, noise, open_store, read, stored_chunks, write
from tests.objects.series import (
    BAD,
    COUNT,
    bf16,
    depths,
    drift,
    drifting,
    failing,
    plenty,
    weights,
)

pytestmark = pytest.mark.usefixtures("no_fsync")


# -- failures in the middle


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("count", [COUNT, 3 * MIB // 2])
def test_a_failed_call_leaves_the_parent_usable(tmp_path: Path, memory: int, count: int) -> None:
    """A call that fails in the middle changes nothing: not the pack, not what the next delta builds on."""
    series = [weights(5, count)]
    for number in range(4):
        series.append(drift(series[-1], number))
    store, known = open_store(tmp_path), Parent(memory=Memory(lambda: memory))
    records = []
    for number, data in enumerate(series):
        with store.writer() as writer:
            with failing():
                writer.write_tensors([bf16(drift(data, 1000 + number)), BAD], parent=known)
            records += writer.write_tensors([bf16(data), bf16(drift(data, 50), "other")], parent=known)
            with failing():
                writer.write_tensors([bf16(drift(data, 2000 + number)), bf16(data, "other"), BAD], parent=known)
            writer.seal()
    other = open_store(tmp_path)
    assert [read(other, record) for record in records[::2]] == series
    assert [read(other, record) for record in records[1::2]] == [drift(data, 50) for data in series]
    chunks = {chunk for record in records for chunk in other.chunk_ids(record)}
    lists = len(records) if count > COUNT else 0
    assert len(stored_chunks(other)) == len(chunks) + lists, "nothing of the calls that failed was stored"
    for pack in other.packs.packs:
        assert pack.nbytes == 16 + sum(64 + entry.stored_length for _, entry in pack.index.items())
    assert [len(other.bases_of(other.chunk_ids(record)[0])) for record in records[::2]] == [0, 1, 2, 3, 4]


def test_small_records_of_a_failed_call_are_not_written_later(store: ChunkStore, tmp_path: Path) -> None:
    """What a failed call had ready to be written is not written by the next one, together with its own."""
    lost = [Tensor(f"lost {number}", noise(number, 2000)) for number in range(3)]
    with store.writer() as writer:
        with failing():
            writer.write_tensors([*lost, BAD])
        (record,) = writer.write_tensors([Tensor("big", noise(50, 3 * MIB))])
        writer.seal()
    other = open_store(tmp_path)
    assert read(other, record) == noise(50, 3 * MIB)
    assert not {chunk_id(bytes(tensor.data)) for tensor in lost} & set(stored_chunks(other))


def test_a_failed_call_leaves_no_depth_behind(store: ChunkStore, tmp_path: Path) -> None:
    """A chunk that was a delta in a call that failed, and then is stored by itself, is as deep as it is."""
    one, two, three = drifting(3)
    known, other = Parent(memory=plenty()), Parent(memory=plenty())
    with store.writer() as writer:
        writer.write_tensors([bf16(one)], parent=known)
        with failing():
            writer.write_tensors([bf16(two), BAD], parent=known)
        writer.write_tensors([bf16(two)], parent=other)
        (record,) = writer.write_tensors([bf16(three)], parent=other)
        writer.seal()
    assert read(open_store(tmp_path), record) == three
    assert depths(store, [one, two, three]) == [0, 0, 1]


def test_a_discarded_writer_leaves_no_base(tmp_path: Path) -> None:
    """Chunks that were thrown away before they were sealed are not built on, in memory though they may be."""
    series = drifting(3)
    store, known = open_store(tmp_path), Parent(memory=plenty())
    with store.writer() as writer:
        writer.write_tensors([bf16(series[0])], parent=known)
        writer.write_tensors([bf16(series[1])], parent=known)
    (record,) = write(store, bf16(series[2]), parent=known)
    assert read(open_store(tmp_path), record) == series[2]
    assert depths(store, series[2:]) == [0]


# -- what is kept in memory


def kept(known: Parent) -> dict[str, int]:
    """Bytes that a parent keeps of each tensor."""
    return {name: copy.nbytes for name, (_, _, copy) in known._copies.items()}


def test_the_limit_of_memory_is_kept(tmp_path: Path) -> None:
    """Copies are kept as far as they fit, of the first tensors first; the others are deltas all the same."""
    series = drifting(3)
    for room in (0, 2 * COUNT - 1, 2 * COUNT, 4 * COUNT + 100, 1 << 30):
        store, known = open_store(tmp_path / str(room)), Parent(memory=Memory(lambda room=room: room))  # type: ignore[misc]
        for data in series:
            records = write(store, *(bf16(drift(data, n), f"t{n}") for n in range(4)), parent=known)
            assert list(kept(known)) == [f"t{n}" for n in range(min(4, room // (2 * COUNT)))]
            assert sum(kept(known).values()) <= room
        assert [read(store, record) for record in records] == [drift(series[-1], n) for n in range(4)]
        assert depths(store, [drift(data, 2) for data in series]) == [0, 1, 2]


def test_memory_is_given_back(store: ChunkStore) -> None:
    """The copy of a tensor that takes another shape makes room for its new one."""
    known = Parent(memory=Memory(lambda: 3 * COUNT))
    for count in (COUNT, COUNT // 2, COUNT + 1000, 2 * COUNT, 1000):
        write(store, bf16(weights(1, count)), parent=known)
        assert kept(known) == ({"t": 2 * count} if 2 * count <= 3 * COUNT else {})


def test_one_limit_for_all_parts(store: ChunkStore) -> None:
    """Parents that share a memory share its limit, which is measured once."""
    asked: list[int] = []

    def measure() -> int:
        asked.append(1)
        return 3 * COUNT

    memory = Memory(measure)
    parents = [Parent(memory=memory) for _ in range(3)]
    for known in parents:
        write(store, bf16(weights()), parent=known)
    assert [len(kept(known)) for known in parents] == [1, 0, 0]
    assert asked == [1]


def test_less_memory_than_there_seemed_to_be(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that cannot be had for a copy does not fail the commit."""

    def refuse(dtype: str, shape: tuple[int, ...]) -> None:
        raise MemoryError

    known = Parent(memory=plenty())
    monkeypatch.setattr(parent_module, "Copy", refuse)
    records = [write(store, bf16(data), parent=known)[0] for data in drifting(3)]
    assert [read(store, record) for record in records] == drifting(3)
    assert kept(known) == {}


def test_changes_between_calls_stay_out_of_the_copy(store: ChunkStore, tmp_path: Path) -> None:
    """The tensor in memory may change at any time, between calls and during them: a copy is what was stored."""
    known = Parent(memory=plenty())
    tensor = bf16(weights(7, 3 * MIB // 2))
    written: list[tuple[TensorRecord, bytes]] = []

    def hash_then_change(data: memoryview) -> ChunkId:
        tensor.data[: len(data) // 3] = random.Random(len(written)).randbytes(len(data) // 3)
        return chunk_id(data)

    for turn in range(6):
        with pytest.MonkeyPatch.context() as patch:
            if turn % 2:
                patch.setattr(writer_module, "chunk_id", hash_then_change)
            (record,) = write(store, tensor, parent=known)
        stored = read(open_store(tmp_path), record)
        assert turn % 2 or stored == tensor.data
        written.append((record, stored))
        ((_, _, copy),) = known._copies.values()
        for number, chunk in enumerate(store.chunk_ids(record)):
            held = copy.get(number, chunk)
            assert held is not None and chunk_id(held) == chunk
        tensor.data[:] = drift(tensor.data, turn)
        tensor.data[MIB - 10 : MIB + 10] = bytes(20)
    other = open_store(tmp_path)
    for record, stored in written:
        assert read(other, record) == stored
