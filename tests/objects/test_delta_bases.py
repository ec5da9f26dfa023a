"""Bases of deltas: none that is damaged, gone, in a circle or too deep is built on, and what stands on one says so."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest

from coral.errors import CorruptionError, StorageError
from coral.format import codecs
from coral.format.codecs import DELTA, RAW
from coral.format.index import build
from coral.format.manifest import TensorRecord
from coral.format.pack import MAX_DEPTH
from coral.ids import ChunkId, chunk_id, single_ref
from coral.objects import ChunkStore, Parent
from coral.objects.scratch import Scratch
from coral.objects.shelf import _DEEPEST
from coral.storage.files import ReadFile
from tests.objects.crafted import Record, delta, put
from tests.objects.helpers import MIB, damage, lose, open_store, read, write
from tests.objects.series import COUNT, bf16, depths, drift, drifting, parent_of, weights

pytestmark = pytest.mark.usefixtures("no_fsync")


# -- bases that cannot be relied on


@pytest.mark.parametrize("hurt", [0, 1, 2])
@pytest.mark.parametrize("how", [damage, lose])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_base_that_is_gone(tmp_path: Path, how: object, hurt: int, is_known: bool) -> None:
    """What builds on a damaged or missing chunk says CorruptionError; the next commit builds on nothing of it."""
    series = drifting(4)
    store, known = open_store(tmp_path), Parent()
    records = [write(store, bf16(data), parent=known)[0] for data in series[:3]]
    assert callable(how)
    how(tmp_path, series[hurt])
    store = open_store(tmp_path)
    if is_known:
        for number, record in enumerate(records):
            if number >= hurt:
                with pytest.raises(CorruptionError):
                    store.read_into(record, memoryview(bytearray(record.nbytes)))
            else:
                assert read(store, record) == series[number]
    (record,) = write(store, bf16(series[3]), parent=parent_of(store, records[-1:]))
    other = open_store(tmp_path)
    assert read(other, record) == series[3]
    assert depths(other, series[3:]) == [0]
    for number in range(hurt, 3):
        with pytest.raises(CorruptionError):
            read(other, records[number])


def test_a_damaged_chain_is_healed(tmp_path: Path) -> None:
    """Once a read has found the damage, committing the same contents again makes every commit readable."""
    series = drifting(5)
    store, known = open_store(tmp_path), Parent()
    records = [write(store, bf16(data), parent=known)[0] for data in series]
    damage(tmp_path, series[1])
    store = open_store(tmp_path)
    for record in records[1:]:
        with pytest.raises(CorruptionError):
            read(store, record)
    known = parent_of(store, records[-1:])
    assert [write(store, bf16(data), parent=known)[0] for data in series] == records
    for reader in (store, open_store(tmp_path)):
        assert [read(reader, record) for record in records] == series


def test_a_base_with_a_sound_record_elsewhere(tmp_path: Path) -> None:
    """Where another pack holds the damaged base, what builds on it reads, and may be built on."""
    series = drifting(3)
    store, known = open_store(tmp_path), Parent()
    records = [write(store, bf16(data), parent=known)[0] for data in series[:2]]
    damage(tmp_path, series[0])
    put(tmp_path, 90, (chunk_id(series[0]), series[0], RAW, 0))
    store = open_store(tmp_path)
    assert [read(store, record) for record in records] == series[:2]
    (record,) = write(store, bf16(series[2]), parent=parent_of(store, records))
    assert read(open_store(tmp_path), record) == series[2]
    assert depths(open_store(tmp_path), series) == [0, 1, 2]


def test_a_disk_that_refuses_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base on a bad sector does not fail the commit: the chunk stands alone."""
    one, two = drifting(2)
    (record,) = write(open_store(tmp_path), bf16(one))
    store = open_store(tmp_path)

    def refuse(file: ReadFile, offset: int, out: memoryview) -> int:
        raise StorageError("input/output error", errno=errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(ReadFile, "read_into", refuse)
        (after,) = write(store, bf16(two), parent=parent_of(store, [record]))
    assert read(open_store(tmp_path), after) == two
    assert depths(store, [two]) == [0]


def test_a_pack_merged_away_under_a_writer(tmp_path: Path) -> None:
    """A writer and a reader that know only packs that another process merged find bases in the new one."""
    series = drifting(10)
    store, known = open_store(tmp_path), Parent()
    records = [write(store, bf16(data), parent=known)[0] for data in series[:8]]
    reader, writer = open_store(tmp_path), open_store(tmp_path)
    assert all(chunk_id(data) in stale.packs for stale in (reader, writer) for data in series[:8])
    assert open_store(tmp_path).consolidate() == 7
    for record, data in zip(records, series, strict=False):
        reader.check(record)
        assert read(reader, record) == data
    with writer.writer() as open_one:
        (after,) = open_one.write_tensors([bf16(series[8])], parent=parent_of(writer, records[-1:]))
        open_one.seal()
    assert read(open_store(tmp_path), after) == series[8]
    assert depths(open_store(tmp_path), series[7:9]) == [3, 4]


# -- hostile packs


def name_of(number: int) -> ChunkId:
    """The id of a chunk that does not exist."""
    return chunk_id(number.to_bytes(8, "little"))


def refuses(store: ChunkStore, chunk: ChunkId, length: int) -> None:
    """Reading, checking and asking for bases all say CorruptionError."""
    record = TensorRecord("t", "BF16", (length // 2,), single_ref(chunk))
    with pytest.raises(CorruptionError):
        store.read_into(record, memoryview(bytearray(length)))
    with pytest.raises(CorruptionError):
        store.check(record)
    with pytest.raises(CorruptionError):
        store.bases_of(chunk)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("depth", [0, 1, 255])
def test_a_circle_of_deltas(tmp_path: Path, length: int, depth: int) -> None:
    """Deltas that need each other, or themselves, whatever depth they claim, are refused and never built on."""
    same = weights()
    ring = [name_of(number) for number in range(length)]
    put(
        tmp_path,
        1,
        *((chunk, delta(same, ring[(at + 1) % length], same), DELTA, depth) for at, chunk in enumerate(ring)),
        length=len(same),
    )
    store = open_store(tmp_path)
    for chunk in ring:
        refuses(store, chunk, len(same))
    known = parent_of(store, [TensorRecord("t", "BF16", (COUNT,), single_ref(ring[0]))])
    (record,) = write(store, bf16(drift(same, 1)), parent=known)
    assert read(open_store(tmp_path), record) == drift(same, 1)
    assert store.bases_of(chunk_id(drift(same, 1))) == []


def test_a_circle_in_many_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many records of each of a row of deltas are not tried in all their combinations."""
    same = weights(count=100)
    ring = [name_of(number) for number in range(3)]
    for number in range(1, 9):
        steps = [ring[1:] + ring[:1], ring[2:] + ring[:2]][number % 2]
        put(
            tmp_path,
            number,
            *((chunk, delta(same, base, same), DELTA, 1) for chunk, base in zip(ring, steps, strict=True)),
            length=len(same),
        )
    decoded = 0
    real = codecs.decode_into

    def count(codec: int, item: int, payload: memoryview, out: memoryview, read_base: codecs.ReadBase) -> None:
        nonlocal decoded
        decoded += 1
        assert decoded <= 2 * 3 * 8 * (_DEEPEST + 1)
        real(codec, item, payload, out, read_base)

    monkeypatch.setattr(codecs, "decode_into", count)
    refuses(open_store(tmp_path), ring[0], len(same))
    assert decoded > 2 * _DEEPEST


def test_a_chain_of_a_thousand(tmp_path: Path) -> None:
    """A chain longer than any writer makes is refused from its far end, and read where it is short enough."""
    data = weights(count=100)
    names = [chunk_id(data), *map(name_of, range(1, 1000))]
    records: list[Record] = [(names[0], data, RAW, 0)]
    records += [(name, delta(data, base, data), DELTA, 1) for base, name in itertools.pairwise(names)]
    put(tmp_path, 1, *records, length=len(data))
    store = open_store(tmp_path)
    for number in (_DEEPEST + 1, 500, 999):
        refuses(store, names[number], len(data))
    assert len(store.bases_of(names[_DEEPEST])) == _DEEPEST
    known = parent_of(store, [TensorRecord("t", "BF16", (100,), single_ref(names[500]))])
    (record,) = write(store, bf16(drift(data, 1)), parent=known)
    assert read(open_store(tmp_path), record) == drift(data, 1)


def test_the_deepest_chain_that_is_read(tmp_path: Path) -> None:
    """Chains of two writers that did not know of each other, up to four times what one makes, are read."""
    series = [weights(count=1000)]
    for number in range(_DEEPEST + 1):
        series.append(drift(series[-1], number))
    records: list[Record] = [(chunk_id(series[0]), series[0], RAW, 0)]
    records += [
        (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1) for base, data in itertools.pairwise(series)
    ]
    put(tmp_path, 1, *records, length=2000)
    store = open_store(tmp_path)
    for data in series[: _DEEPEST + 1]:
        assert read(store, TensorRecord("t", "BF16", (1000,), single_ref(chunk_id(data)))) == data
    refuses(store, chunk_id(series[-1]), 2000)


def test_a_chain_that_is_too_deep_is_not_built_on(tmp_path: Path) -> None:
    """On top of a chain deeper than a writer makes, the next delta goes back to the root."""
    series = [weights()]
    for number in range(MAX_DEPTH + 3):
        series.append(drift(series[-1], number))
    records: list[Record] = [(chunk_id(series[0]), series[0], RAW, 0)]
    records += [
        (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1) for base, data in itertools.pairwise(series[:-1])
    ]
    put(tmp_path, 1, *records, length=len(series[0]))
    store = open_store(tmp_path)
    known = parent_of(store, [TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(series[-2])))])
    (record,) = write(store, bf16(series[-1]), parent=known)
    assert read(open_store(tmp_path), record) == series[-1]
    assert store.bases_of(chunk_id(series[-1])) in ([], [chunk_id(series[0])])


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_length": 0xFFFFFFFF},
        {"raw_length": MIB + 2},
        {"stored_length": 0xF0000000},
        {"offset": 2**63},
        {"offset": 2**64 - 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", [0, 1])
def test_an_index_that_lies_about_a_base(
    tmp_path: Path, which: int, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of a base, or of what builds on it, that no record can have costs no memory and is CorruptionError."""
    base, data = drifting(2)
    put(tmp_path, 1, (chunk_id(base), base, RAW, 0), (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1))
    path = tmp_path / "packs" / f"{1:08d}-{1:016x}.idx"
    entries = dict(open_store(tmp_path).packs.packs[0].index.items())
    lied = chunk_id((base, data)[which])
    entries[lied] = entries[lied]._replace(**changes)
    path.write_bytes(build(entries.items()))
    store = open_store(tmp_path)
    taken: list[int] = []
    real = Scratch.take

    def take(scratch: Scratch, length: int) -> memoryview:
        taken.append(length)
        return real(scratch, length)

    monkeypatch.setattr(Scratch, "take", take)
    record = TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(data)))
    with pytest.raises(CorruptionError):
        read(store, record)
    (after,) = write(store, bf16(drift(data, 5)), parent=parent_of(store, [record]))
    assert read(open_store(tmp_path), after) == drift(data, 5)
    assert max(taken) <= MIB


@pytest.mark.parametrize("payload", [b"", b"short", bytes(31), bytes(32)])
def test_a_delta_without_a_base(tmp_path: Path, payload: bytes) -> None:
    """A record too short to name its base is refused, whatever follows it in the pack."""
    put(tmp_path, 1, (name_of(1), payload, DELTA, 1), (name_of(2), weights(), RAW, 0), length=20_000)
    refuses(open_store(tmp_path), name_of(1), 20_000)


def test_a_base_that_decodes_to_other_bytes(tmp_path: Path) -> None:
    """A base that is sound in itself but not what its id says is found out, and another record of it is taken."""
    base, data = drifting(2)
    put(
        tmp_path, 2, (chunk_id(base), weights(9), RAW, 0), (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1)
    )
    record = TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(data)))
    path = tmp_path / "packs" / f"{2:08d}-{2:016x}.idx"
    entries = dict(open_store(tmp_path).packs.packs[0].index.items())
    assert entries[chunk_id(data)].raw_length != len(data)
    put(tmp_path, 2, (chunk_id(base), weights(9), RAW, 0))
    put(tmp_path, 3, (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1), length=len(data))
    assert path.exists()
    with pytest.raises(CorruptionError, match="other bytes"):
        read(open_store(tmp_path), record)
    put(tmp_path, 1, (chunk_id(base), base, RAW, 0))
    assert read(open_store(tmp_path), record) == data
