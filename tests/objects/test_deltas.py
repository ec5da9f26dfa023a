"""Deltas: however tensors change, every commit reads back, and no chain grows, loops or stands on damage."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral.errors import CorruptionError, StorageError
from coral.format import codecs
from coral.format.codecs import DELTA, RAW, WITH_BASE, planes
from coral.format.codecs.kernel import elements_of
from coral.format.index import build
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, MAGIC, MAX_DEPTH, Entry, pack_header
from coral.ids import ChunkId, checksum, chunk_id, single_ref
from coral.objects import ChunkStore, Memory, Parent
from coral.objects import parent as parent_module
from coral.objects import writer as writer_module
from coral.objects.scratch import Scratch
from coral.objects.store import _DEEPEST
from coral.storage import disk
from coral.storage.folder import ReadFile
from coral.testing.disks import Unsynced
from tests.objects.helpers import MIB, Tensor, damage, lose, noise, open_store, read, stored_chunks, write
from tests.objects.series import COUNT, bf16, depths, drift, drifting, entry_of, parent_of, plenty, weights
from tests.processes import run_python


@pytest.fixture(autouse=True)
def no_fsync() -> Iterator[None]:
    """What is durable is another test's matter."""
    with disk.use(Unsynced()):
        yield


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    """An empty store."""
    return open_store(tmp_path)


# -- a series of commits


@pytest.mark.parametrize("how", ["with copies", "without", "a new process each time"])
def test_a_series_reads_back(tmp_path: Path, how: str) -> None:
    """Commits of weights that move a little are deltas, and every one of them reads back from another store object."""
    series = drifting(12)
    store = open_store(tmp_path)
    known = Parent(memory=plenty() if how == "with copies" else None)
    records: list[TensorRecord] = []
    for data in series:
        if how == "a new process each time":
            store = open_store(tmp_path)
            known = parent_of(store, records[-1:])
        records += write(store, bf16(data), parent=known)
    other = open_store(tmp_path)
    assert [read(other, record) for record in reversed(records)] == series[::-1]
    assert depths(other, series) == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]
    assert other.bases_of(chunk_id(series[5])) == [chunk_id(series[0])], "the fifth delta begins from the root again"
    assert {entry_of(other, data).codec for data in series[1:]} <= WITH_BASE
    assert all(entry_of(other, data).stored_length < 0.5 * len(data) for data in series[1:])
    for record in records:
        other.check(record)


def test_another_process_goes_on(tmp_path: Path) -> None:
    """A chain that several processes write, each from the records of the one before, is read by yet another one."""
    code = """
    import sys
    from pathlib import Path
    from coral.format.manifest import Manifest
    from coral.ids import single_ref
    from tests.objects.helpers import open_store, write
    from tests.objects.series import bf16, drifting, parent_of
    root, turn = Path(sys.argv[1]), int(sys.argv[2])
    store, manifest = open_store(root), root / "manifest"
    records = Manifest.from_bytes(manifest.read_bytes()).records if turn else ()
    written = write(store, bf16(drifting(turn + 1)[-1]), parent=parent_of(store, records))
    manifest.write_bytes(Manifest("safetensors", tuple(written)).to_bytes())
    print(written[0].content, store.packs.locate(store.chunk_ids(written[0])[0])[1].depth)
    """
    for turn, data in enumerate(drifting(3)):
        content, depth = run_python(code, tmp_path, turn).split()
        assert int(depth) == turn
        assert read(open_store(tmp_path), TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(data)))) == data
        assert content == single_ref(chunk_id(data))


def test_copies_change_nothing_but_the_time(tmp_path: Path) -> None:
    """The records are the same to the byte whether the base is at hand in memory or read back from its pack."""
    made = []
    for name, memory in (("with", plenty()), ("none", Memory(lambda: 0)), ("never", None)):
        store = open_store(tmp_path / name, threads=1)
        known = Parent(memory=memory)
        for data in drifting(7):
            write(store, bf16(data), bf16(data[::-1], "reversed"), parent=known)
        paths = sorted((tmp_path / name / "packs").glob("*.pack"))
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 7


def test_several_versions_in_one_writer(store: ChunkStore, tmp_path: Path) -> None:
    """What is staged again before the commit builds on what is not sealed yet, and all of it reads afterwards."""
    series = drifting(8)
    known = Parent(memory=plenty())
    with store.writer() as writer:
        records = [writer.write_tensors([bf16(data)], parent=known)[0] for data in series]
        writer.seal()
    other = open_store(tmp_path)
    assert [read(other, record) for record in records] == series
    assert max(depths(other, series)) == MAX_DEPTH


def test_noise_stands_alone(store: ChunkStore) -> None:
    """What has nothing to do with what stood there before is stored as if there had been nothing."""
    known = Parent(memory=plenty())
    for seed in range(3):
        write(store, Tensor("t", noise(seed, 50_000)), parent=known)
    assert depths(store, [noise(seed, 50_000) for seed in range(3)]) == [0, 0, 0]


# -- contents that come back and change places


def test_two_tensors_change_places(store: ChunkStore, tmp_path: Path) -> None:
    """Two tensors that swap their contents, and swap and drift, read back, and a swap stores nothing."""
    one, two = weights(1), weights(2)
    known = Parent(memory=plenty())
    written = []
    for turn in range(6):
        written.append((write(store, bf16(one, "a"), bf16(two, "b"), parent=known), one, two))
        before = stored_chunks(store)
        written.append((write(store, bf16(two, "a"), bf16(one, "b"), parent=known), two, one))
        assert stored_chunks(store) == before
        one, two = drift(two, turn), drift(one, turn + 100)
    other = open_store(tmp_path)
    for (a, b), first, second in written:
        assert (read(other, a), read(other, b)) == (first, second)
    depths(other, [first for _, first, _ in written])


def test_a_content_that_comes_back(store: ChunkStore, tmp_path: Path) -> None:
    """A chunk that is what it was some commits ago is not stored again, and what follows it builds on it."""
    series = drifting(4)
    known = Parent(memory=plenty())
    records = [write(store, bf16(data), parent=known)[0] for data in series]
    before = stored_chunks(store)
    assert write(store, bf16(series[1]), parent=known) == records[1:2]
    assert stored_chunks(store) == before
    after = drift(series[1], 99)
    (record,) = write(store, bf16(after), parent=known)
    assert store.bases_of(chunk_id(after)) == [chunk_id(series[1]), chunk_id(series[0])]
    assert read(open_store(tmp_path), record) == after


@pytest.mark.parametrize("reads", [1, 2])
def test_two_chunks_never_need_each_other(tmp_path: Path, reads: int) -> None:
    """A chunk that was lost and comes back is not stored as a delta of its own delta."""
    one, two = drifting(2)
    store = open_store(tmp_path)
    known = Parent()
    (first,) = write(store, bf16(one), parent=known)
    (second,) = write(store, bf16(two), parent=known)
    damage(tmp_path, one)
    finder = open_store(tmp_path)
    for record in (first, second)[:reads]:
        with pytest.raises(CorruptionError):
            read(finder, record)
    write(finder, bf16(one), parent=parent_of(finder, [second]))
    other = open_store(tmp_path)
    assert (read(other, first), read(other, second)) == (one, two), "and what was built on it is healed as well"


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_rows_come_and_go(tmp_path: Path, memory: int) -> None:
    """Whatever number of rows a tensor grows or shrinks to, over chunks' borders too, it reads back, chained or not."""
    data, row = weights(3, 3 * MIB // 2), 512
    store, known = open_store(tmp_path), Parent(memory=Memory(lambda: memory))
    written = []
    for turn, rows in enumerate((1024, 1000, 1030, 2048, 2050, 3000, 700, 1, 17, 3072, 1024)):
        data = drift(data, turn)
        part = data[: 2 * row * rows]
        written.append((write(store, bf16(part, row=row), parent=known)[0], part))
    other = open_store(tmp_path)
    for record, part in written:
        out = bytearray(b"\xaa" * len(part))
        other.read_into(record, memoryview(out))
        assert out == part
    longer, shorter = (chunk_id(written[turn][1][:MIB]) for turn in (2, 1))
    assert other.bases_of(longer)[0] == shorter, "a base that is shorter goes on with zeros"
    assert len(other.bases_of(chunk_id(written[1][1]))) == 1, "a longer one is cut"


@pytest.mark.parametrize("change", ["dtype", "row"])
def test_another_kind_of_tensor_is_no_base(store: ChunkStore, change: str) -> None:
    """A tensor that changes its type or the shape of its rows begins anew."""
    one, two = drifting(2)
    known = Parent(memory=plenty())
    write(store, bf16(one, row=10), parent=known)
    tensor = Tensor("t", two, "F16", (1000, 10)) if change == "dtype" else bf16(two, row=20)
    (record,) = write(store, tensor, parent=known)
    assert read(store, record) == two
    assert depths(store, [two]) == [0]


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

Record = tuple[ChunkId, bytes, int, int]
"""A chunk, its payload, codec and depth."""


def put(root: Path, number: int, *records: Record, length: int | None = None) -> None:
    """A pack of such records, made by hand."""
    data, entries = MAGIC, []
    for chunk, payload, codec, depth in records:
        raw = len(payload) if length is None else length
        entry = Entry(len(data), len(payload), raw, KIND_CHUNK, codec, depth, 2)
        data += pack_header(chunk, entry, checksum(payload)) + payload
        entries.append((chunk, entry))
    (root / "packs").mkdir(exist_ok=True, parents=True)
    name = f"{number:08d}-{number:016x}"
    (root / "packs" / f"{name}.pack").write_bytes(data)
    (root / "packs" / f"{name}.idx").write_bytes(build(entries))


def delta(data: bytes, base: ChunkId, over: bytes) -> bytes:
    """The payload of some bytes over others."""
    elements, others = elements_of(memoryview(data), 2), elements_of(memoryview(over), 2)
    return bytes(planes.encode(elements, planes.survey(elements, others), base=others, head=base))


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


# -- consolidation


def fill(root: Path, count: int, start: int = 0) -> None:
    """So many small packs."""
    for seed in range(start, start + count):
        write(open_store(root), Tensor("filler", noise(seed, 3000)))


def test_consolidation_keeps_deltas(tmp_path: Path) -> None:
    """Merged or not, every commit of a chain reads, as deep as it was."""
    series = drifting(20)
    store, known = open_store(tmp_path), Parent()
    records = []
    for data in series:
        records += write(store, bf16(data), parent=known)
        store.consolidate()
    assert len(open_store(tmp_path).packs.packs) < 8
    other = open_store(tmp_path)
    assert [read(other, record) for record in records] == series
    assert depths(other, series)[:10] == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1]


def delta_and_whole(root: Path, order: str) -> tuple[bytes, bytes]:
    """A chunk, stored as a delta and by itself, and its base; ``order`` says which of the two records is older."""
    base, data = drifting(2)
    as_delta: Record = (chunk_id(data), delta(data, chunk_id(base), base), DELTA, 1)
    whole: Record = (chunk_id(data), data, RAW, 0)
    put(root, 1, (chunk_id(base), base, RAW, 0))
    for number, record in enumerate((as_delta, whole) if order == "delta first" else (whole, as_delta), 2):
        put(root, number, record, length=len(data))
    fill(root, 5)
    return base, data


@pytest.mark.parametrize("order", ["delta first", "whole first"])
def test_the_shallowest_record_counts(tmp_path: Path, order: str) -> None:
    """Of a chunk's records the one that needs the fewest others is read, and is the one that consolidation keeps."""
    base, data = delta_and_whole(tmp_path, order)
    assert entry_of(open_store(tmp_path), data).codec == RAW
    assert open_store(tmp_path).consolidate() == 7
    other = open_store(tmp_path)
    assert stored_chunks(other).count(chunk_id(data)) == 1
    assert entry_of(other, data).codec == RAW
    for content in (base, data):
        assert read(other, TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(content)))) == content


@pytest.mark.parametrize("order", ["delta first", "whole first"])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_damaged_shallow_record_does_not_count(tmp_path: Path, order: str, is_known: bool) -> None:
    """Where the record that stands alone is damaged the delta is read, and kept by consolidation."""
    base, data = delta_and_whole(tmp_path, order)
    number = 3 if order == "delta first" else 2
    with (tmp_path / "packs" / f"{number:08d}-{number:016x}.pack").open("r+b") as file:
        file.seek(16 + 64 + 1000)
        file.write(bytes(50))
    record = TensorRecord("t", "BF16", (COUNT,), single_ref(chunk_id(data)))
    store = open_store(tmp_path)
    if is_known:
        assert read(store, record) == data
    assert store.consolidate() > 0
    for reader in (store, open_store(tmp_path)):
        assert read(reader, record) == data
    assert entry_of(open_store(tmp_path), data).codec == DELTA
    assert read(open_store(tmp_path), record._replace(content=single_ref(chunk_id(base)))) == base


# -- failures in the middle


BAD = Tensor("bad", b"bad" * 100)


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Have a call fail when it comes to the tensor that is bad, after those before it were encoded."""

    def fail(data: memoryview) -> ChunkId:
        if data == BAD.data:
            raise StorageError("the disk refused", errno=errno.EIO)
        return chunk_id(data)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(writer_module, "chunk_id", fail)
        yield


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


# -- anything at all

steps = st.tuples(
    st.sampled_from(["drift", "drift", "drift", "noise", "zero", "grow", "shrink", "back", "swap", "same", "fail"]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 1 << 20),
    st.sampled_from(["go on", "go on", "new process", "consolidate", "discard"]),
)


def after(step: str, data: bytes, seed: int, past: list[bytes]) -> bytes:
    """What becomes of a tensor."""
    return {
        "noise": lambda: noise(seed, len(data)),
        "zero": lambda: bytes(len(data)),
        "grow": lambda: data + weights(seed, 1 + seed % 3000),
        "shrink": lambda: data[: max(40, len(data) // 4 * 2)],
        "back": lambda: past[seed % len(past)] if past else data,
        "same": lambda: data,
    }.get(step, lambda: drift(data, seed))()


@given(st.lists(steps, min_size=3, max_size=18), st.sampled_from([0, 30_000, 1 << 30]))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_reads_back(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, str, int, str]], memory: int
) -> None:
    """Whatever happens to two tensors and to the processes that store them, every commit reads back bit for bit."""
    root = tmp_path_factory.mktemp("store")
    store, known = open_store(root), Parent(memory=Memory(lambda: memory))
    now, commits, past = {"a": weights(1, 9000), "b": weights(2, 9000)}, [], list[bytes]()
    for step, name, seed, then in history:
        if step == "swap":
            now = {"a": now["b"], "b": now["a"]}
        else:
            now[name] = after(step, now[name], seed, past)
        past.append(now[name])
        tensors = [bf16(data, other) for other, data in now.items()]
        with store.writer() as writer:
            if step == "fail":
                with failing():
                    writer.write_tensors([*(bf16(drift(data, seed), n) for n, data in now.items()), BAD], parent=known)
            records = writer.write_tensors(tensors, parent=known)
            if then != "discard":
                writer.seal()
                commits.append((records, dict(now)))
        if then == "consolidate":
            store.consolidate()
        if then == "new process":
            store = open_store(root)
            known = parent_of(store, commits[-1][0] if commits else [], Memory(lambda: memory))
    other = open_store(root)
    for records, contents in commits:
        assert {record.name: read(other, record) for record in records} == contents
    for chunk in stored_chunks(other):
        assert len(other.bases_of(ChunkId(chunk))) <= MAX_DEPTH
