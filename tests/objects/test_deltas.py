"""Deltas: however tensors change, every commit reads back, and no chain grows too long."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral.errors import CorruptionError
from coral.format.codecs import DELTA, RAW, WITH_BASE
from coral.format.manifest import TensorRecord
from coral.format.pack import MAX_DEPTH
from coral.ids import ChunkId, chunk_id, single_ref
from coral.objects import ChunkStore, Memory, Parent
from tests.objects.crafted import Record, delta, put
from tests.objects.helpers import MIB, Tensor, damage, noise, open_store, read, stored_chunks, write
from tests.objects.series import (
    BAD,
    COUNT,
    bf16,
    depths,
    drift,
    drifting,
    entry_of,
    failing,
    parent_of,
    plenty,
    weights,
)
from tests.processes import run_python

pytestmark = pytest.mark.usefixtures("no_fsync")


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
