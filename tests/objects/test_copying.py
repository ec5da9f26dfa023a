"""Copying between stores: all that is needed and nothing else, verified, and sound whatever ends it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from coral.errors import CorruptionError, LockedError, StorageError
from coral.format.codecs import RAW, WITH_BASE
from coral.format.index import build
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, MAGIC, MAX_DEPTH, Entry, pack_header
from coral.ids import ChunkId, checksum, chunk_id, single_ref
from coral.objects import ChunkStore, shelf
from coral.objects import copying as module
from coral.objects.copying import ChunkCopier
from coral.storage import disk
from coral.storage.locks import file_lock
from coral.testing.disks import Killing
from coral.testing.processes import Note, Warm
from tests.objects.helpers import MIB, Tensor, damage, lose, noise, open_store, read, stored_chunks, write
from tests.objects.series import bf16, committed, depths, drift, drifting, entry_of, parent_of, weights

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def here(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path / "there")


def copy(
    source: ChunkStore, target: ChunkStore, records: Iterable[TensorRecord], *, near: str = "source"
) -> ChunkCopier:
    """Copy tensors; returns who did it."""
    with ChunkCopier(source, target, near=source if near == "source" else target) as copier:
        for record in records:
            copier.plan.add(record)
        copier.copy()
    return copier


def payload_of(store: ChunkStore, data: bytes) -> bytes:
    """How a chunk is encoded."""
    pack, entry = store.packs.locate(chunk_id(data))
    path = store.folder.path(f"{pack.name}.pack")
    return path.read_bytes()[entry.offset + 64 : entry.offset + 64 + entry.stored_length]


def forge(root: Path, name: str, *records: tuple[ChunkId, int, bytes, int]) -> None:
    """A pack that a hostile program wrote: of each record the id, the codec, the payload and the raw length."""
    folder, body, entries = root / "packs", bytearray(MAGIC), []
    folder.mkdir(parents=True, exist_ok=True)
    for chunk, codec, payload, length in records:
        entry = Entry(len(body), len(payload), length, KIND_CHUNK, codec, 1 if codec in WITH_BASE else 0, 2)
        body += pack_header(chunk, entry, checksum(payload)) + payload
        entries.append((chunk, entry))
    (folder / f"{name}.pack").write_bytes(body)
    (folder / f"{name}.idx").write_bytes(build(entries))


# -- what is copied


def test_all_that_tensors_need(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """Small, large and inline tensors come over and read back; others stay; a second copy finds nothing to do."""
    tensors = [
        Tensor("tiny", b"x" * 20),
        Tensor("small", noise(1, 1000)),
        Tensor("large", noise(2, 5 * MIB + 7)),
        Tensor("many", noise(3, 3 * MIB), "F32", (3 * 2**18,)),
        Tensor("empty", b"", "F32", (0,)),
    ]
    records = write(here, *tensors)
    write(here, Tensor("other", noise(4, MIB)))
    copier = copy(here, there, records)
    fresh = open_store(tmp_path / "there")
    assert [read(fresh, record) for record in records] == [bytes(tensor.data) for tensor in tensors]
    assert set(stored_chunks(fresh)) == set(stored_chunks(here)) - {chunk_id(noise(4, MIB))}
    # Two chunk lists are no chunks.
    assert copier.chunks == len(stored_chunks(fresh)) - 2
    assert copier.nbytes == sum(path.stat().st_size for path in (tmp_path / "there/packs").glob("*.pack"))
    again = copy(here, there, records)
    assert (again.chunks, again.nbytes) == (0, 0)


def test_a_tensor_that_grew(here: ChunkStore, there: ChunkStore) -> None:
    """Of a tensor whose list is new only the chunks that are new are copied; of one whose list is there, the others."""
    data = noise(1, 4 * MIB)
    (short,) = write(here, Tensor("t", data[: 3 * MIB]))
    (long,) = write(here, Tensor("t", data))
    assert copy(here, there, [short]).chunks == 3
    assert copy(here, there, [long]).chunks == 1
    assert read(there, long) == data


def test_what_the_target_has_need_not_be_in_the_source(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """Who fetched only part of a history may send all of it to where it came from: lists and chunks are looked up."""
    records = write(here, Tensor("a", noise(1, 2 * MIB)))
    fresh = write(here, Tensor("b", noise(2, 3 * MIB)))
    copy(here, there, records)
    empty = open_store(tmp_path / "empty")
    copy(here, empty, fresh)
    assert copy(empty, there, [*records, *fresh]).chunks == 3
    assert read(there, fresh[0]) == noise(2, 3 * MIB)


def test_an_interrupted_copy_has_chunks_missing_below_a_list(here: ChunkStore, there: ChunkStore) -> None:
    """A list in the target says nothing of its chunks, which may have been lost since: each is looked for."""
    (record,) = write(here, Tensor("t", noise(1, 4 * MIB)))
    with ChunkCopier(here, there, near=here) as copier:
        ident = module.list_of(record)
        copier._take_list(ident, here.read_list(ident))
        copier.seal()
    assert copy(here, there, [record]).chunks == 4
    assert read(there, record) == noise(1, 4 * MIB)


# -- deltas


def test_deltas_stay_what_they_are(here: ChunkStore, there: ChunkStore) -> None:
    """A whole series goes over with each record encoded as it was, and as deep."""
    data = drifting(7)
    records = committed(here, data)
    before = depths(here, data)
    copy(here, there, records)
    assert depths(there, data) == before and max(before) > 1
    assert [payload_of(there, one) for one in data] == [payload_of(here, one) for one in data]
    assert [read(there, record) for record in records] == data


def test_a_delta_finds_its_base_in_the_target(here: ChunkStore, there: ChunkStore) -> None:
    """What the target has of the bases is not sent again."""
    data = drifting(3)
    records = committed(here, data)
    copy(here, there, records[:2])
    copier = copy(here, there, records[2:])
    assert copier.chunks == 1
    assert payload_of(there, data[2]) == payload_of(here, data[2])
    assert read(there, records[2]) == data[2]


def test_one_delta_goes_alone(here: ChunkStore, there: ChunkStore) -> None:
    """A base that only one delta wants would cost more than to encode the chunk without it."""
    data = drifting(4)
    records = committed(here, data)
    assert depths(here, data) == [0, 1, 2, 3]
    copier = copy(here, there, records[3:])
    assert copier.chunks == 1
    assert depths(there, data[3:]) == [0]
    assert read(there, records[3]) == data[3]
    assert copier.nbytes < sum(entry_of(here, one).stored_length for one in data)


def test_many_deltas_bring_their_base(here: ChunkStore, there: ChunkStore) -> None:
    """A base that many small deltas share is sent for their sake."""
    base = weights()
    (first,) = write(here, bf16(base))
    changed = []
    for number in range(12):
        data = bytearray(base)
        data[2000 * number : 2000 * number + 400] = noise(number, 400)
        changed.append(bytes(data))
    records = [write(here, bf16(data), parent=parent_of(here, [first]))[0] for data in changed]
    assert copy(here, there, records).chunks == 13
    assert depths(there, [base, *changed]) == [0] + [1] * 12
    assert [read(there, record) for record in records] == changed


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_a_base_that_is_wanted_costs_nothing(here: ChunkStore, there: ChunkStore, order: tuple[int, ...]) -> None:
    """A chunk in between is sent where that is less than to encode the last one anew, whichever is asked for first."""
    data = drifting(3)
    records = committed(here, data)
    copier = copy(here, there, [records[place] for place in order])
    assert copier.chunks == 3
    assert depths(there, data) == [0, 1, 2]
    assert [read(there, records[place]) for place in order] == [data[place] for place in order]


def test_chains_do_not_grow_past_the_bound(here: ChunkStore, there: ChunkStore) -> None:
    """Where the target holds a base deeper than the source does, what would lie too deep is encoded anew."""
    data = drifting(MAX_DEPTH + 3)
    records = committed(there, data[: MAX_DEPTH + 1])
    assert depths(there, data[MAX_DEPTH : MAX_DEPTH + 1]) == [MAX_DEPTH]
    committed(here, data[MAX_DEPTH:])
    assert depths(here, data[MAX_DEPTH:]) == [0, 1, 2]
    later = committed(here, data[MAX_DEPTH:])[1:]
    copy(here, there, later)
    assert max(depths(there, data)) <= MAX_DEPTH
    assert [read(there, record) for record in records + later] == data


def test_bases_of_another_length(here: ChunkStore, there: ChunkStore) -> None:
    """A delta against a longer or a shorter chunk is verified like any other."""
    long, short = weights(0, 20_000), weights(0, 20_000)[:30_000]
    (first,) = write(here, bf16(long))
    (second,) = write(here, bf16(drift(short, 1)), parent=parent_of(here, [first]))
    (third,) = write(here, bf16(drift(long, 2)), parent=parent_of(here, [second]))
    found = [long, drift(short, 1), drift(long, 2)]
    assert len(set(depths(here, found))) > 1
    copy(here, there, [first, second, third])
    assert [read(there, record) for record in (first, second, third)] == found


# -- what is damaged


def lost_names(copier: ChunkCopier) -> set[str]:
    """The tensors that turned out to be damaged."""
    return {record.name for record, _ in copier.lost}


def test_missing_chunks_are_named(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """A tensor that the source lacks cannot be planned; what was planned before is not touched by that."""
    (lost,) = write(here, Tensor("lost", noise(1, 2000)))
    (kept,) = write(here, Tensor("kept", noise(2, 2000)))
    lose(tmp_path / "here", noise(1, 2000))
    source = open_store(tmp_path / "here")
    with ChunkCopier(source, there, near=source) as copier:
        copier.plan.add(kept)
        with pytest.raises(CorruptionError, match="missing"):
            copier.plan.add(lost)
        copier.copy()
    assert (copier.chunks, copier.lost) == (1, [])
    assert read(there, kept) == noise(2, 2000)


def test_damaged_chunks_do_not_arrive(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """Of a tensor with a damaged chunk no list arrives; other tensors do; mended, the next copy brings the rest."""
    data = noise(1, 4 * MIB)
    torn, small, sound = write(
        here, Tensor("torn", data), Tensor("small", noise(2, 3000)), Tensor("sound", noise(3, 2 * MIB))
    )
    shutil.copytree(tmp_path / "here", tmp_path / "mended")
    damage(tmp_path / "here", data[MIB : 2 * MIB])
    damage(tmp_path / "here", noise(2, 3000))
    copier = copy(open_store(tmp_path / "here"), there, [torn, small, sound])
    assert lost_names(copier) == {"torn", "small"}
    fresh = open_store(tmp_path / "there")
    assert read(fresh, sound) == noise(3, 2 * MIB)
    assert module.list_of(torn) not in fresh.packs
    assert chunk_id(data[MIB : 2 * MIB]) not in fresh.packs
    assert copy(open_store(tmp_path / "mended"), fresh, [torn, small]).chunks == 2
    assert read(fresh, torn) == data


def test_tensors_of_one_name(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """That a tensor is damaged says nothing of another file's tensor of the same name."""
    (torn,) = write(here, Tensor("weight", noise(1, 3000)))
    (sound,) = write(here, Tensor("weight", noise(2, 2 * MIB)))
    damage(tmp_path / "here", noise(1, 3000))
    copier = copy(open_store(tmp_path / "here"), there, [torn, sound])
    assert [record for record, _ in copier.lost] == [torn]
    assert read(open_store(tmp_path / "there"), sound) == noise(2, 2 * MIB)


def test_a_lie_does_not_arrive(tmp_path: Path, there: ChunkStore) -> None:
    """A record with sound checksums that decodes to other bytes than its id says is no better than none."""
    wanted, other = noise(1, 5000), noise(2, 5000)
    forge(tmp_path / "liar", f"{1:08d}-{1:016x}", (chunk_id(wanted), RAW, other, 5000))
    record = TensorRecord("t", "U8", (5000,), single_ref(chunk_id(wanted)))
    assert lost_names(copy(open_store(tmp_path / "liar"), there, [record], near="target")) == {"t"}
    assert stored_chunks(there) == []
    # Where another pack tells the truth, that counts.
    forge(tmp_path / "liar", f"{0:08d}-{1:016x}", (chunk_id(wanted), RAW, wanted, 5000))
    assert copy(open_store(tmp_path / "liar"), there, [record], near="target").lost == []
    assert read(there, record) == wanted


def test_a_damaged_base_in_the_target(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """What is fetched is not made to stand on a base that has rotted here: it can be read whatever becomes of that."""
    data = drifting(2)
    records = committed(here, data)
    copy(here, there, records[:1])
    damage(tmp_path / "there", data[0])
    target = open_store(tmp_path / "there")
    assert copy(here, target, records[1:], near="target").chunks == 1
    assert read(open_store(tmp_path / "there"), records[1]) == data[1]


def test_a_damaged_base_in_the_source(here: ChunkStore, there: ChunkStore, tmp_path: Path) -> None:
    """What stands on a damaged base is lost with it, and is not sent; what does not is."""
    data = drifting(3)
    records = committed(here, data)
    (sound,) = write(here, Tensor("sound", noise(9, 5000)))
    damage(tmp_path / "here", data[0])
    copier = copy(open_store(tmp_path / "here"), there, [*records, sound])
    assert lost_names(copier) == {"t"}
    assert stored_chunks(there) == [chunk_id(noise(9, 5000))]


def test_chunks_in_a_ring(tmp_path: Path, there: ChunkStore) -> None:
    """Records that each need the other end the copy of their tensors, and nothing else."""
    one, two = weights(1), weights(2)
    pair = [
        (chunk_id(one), 2, chunk_id(two) + b"x" * 50, len(one)),
        (chunk_id(two), 2, chunk_id(one) + b"x" * 50, len(two)),
    ]
    forge(tmp_path / "liar", f"{1:08d}-{1:016x}", *pair, (chunk_id(noise(3, 500)), RAW, noise(3, 500), 500))
    records = [
        TensorRecord(str(n), "U8", (len(data),), single_ref(chunk_id(data))) for n, data in enumerate([one, two])
    ]
    sound = TensorRecord("sound", "U8", (500,), single_ref(chunk_id(noise(3, 500))))
    for wanted in (records, records[:1]):
        copier = copy(open_store(tmp_path / "liar"), there, [*wanted, sound], near="target")
        assert lost_names(copier) == {record.name for record in wanted}
    assert stored_chunks(there) == [chunk_id(noise(3, 500))]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([(chunk_id(b"x"), 1, bytes(3 * MIB), 50)], "which none needs"),
        ([(chunk_id(b"x"), 2, chunk_id(b"y") + b"z", 50), (chunk_id(b"y"), 1, b"z", 3 * MIB)], "at most"),
        ([(chunk_id(b"x"), 2, chunk_id(b"y") + b"z", 50)], "missing"),
        ([(chunk_id(b"x"), 2, b"z", 50)], "too short"),
        ([(chunk_id(b"x"), 1, b"z", 51)], "holds 51 bytes"),
    ],
)
def test_an_absurd_record(
    tmp_path: Path, there: ChunkStore, records: list[tuple[ChunkId, int, bytes, int]], message: str
) -> None:
    """What no writer would have written is found out before anything is read."""
    forge(tmp_path / "liar", f"{1:08d}-{1:016x}", *records)
    record = TensorRecord("t", "U8", (50,), single_ref(chunk_id(b"x")))
    source = open_store(tmp_path / "liar")
    with ChunkCopier(source, there, near=there) as copier, pytest.raises(CorruptionError, match=message):
        copier.plan.add(record)


# -- what ends it


def test_a_full_disk_keeps_what_was_published(
    here: ChunkStore, there: ChunkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of much is published piece by piece; when the disk refuses, the next copy goes on from the last one."""
    monkeypatch.setattr(module, "PUBLISH_BYTES", 2 * MIB)
    data = noise(1, 9 * MIB)
    (record,) = write(here, Tensor("t", data))
    real, written = os.pwrite, 0

    def full(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 6 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(disk.current, "pwrite", full)
        with pytest.raises(StorageError):
            copy(here, there, [record])
    assert len(stored_chunks(open_store(tmp_path / "there"))) == 4
    assert os.listdir(tmp_path / "there" / "tmp") == []
    assert copy(here, open_store(tmp_path / "there"), [record]).chunks == 5
    assert read(open_store(tmp_path / "there"), record) == data


def copy_until(note: Note, root: Path, limit: int) -> int:
    """Copy all, and be killed at the call of this number that changes something; returns how many there are."""
    module.PUBLISH_BYTES = 1 << 20
    killing = Killing(limit - 1, kinds=("write", "rename", "unlink"))
    with disk.use(killing):
        here, there = open_store(root / "here", threads=1), open_store(root / "there", threads=1)
        copy(here, there, wanted(here))
    return killing.count


def wanted(store: ChunkStore) -> list[TensorRecord]:
    """A series of deltas, and a tensor of several chunks: the same in each process, stored or not."""
    return [*committed(store, drifting(4)), *write(store, Tensor("large", noise(1, 4 * MIB)))]


def sound(store: ChunkStore) -> bool:
    """Whether every chunk that a store holds can be read."""
    for chunk in map(ChunkId, stored_chunks(store)):
        _, entry = store.packs.copies(chunk)[0]
        if entry.kind == KIND_CHUNK:
            store.read_chunk(chunk, memoryview(bytearray(entry.raw_length)))
        else:
            store.read_list(chunk)
    return True


def test_killed_at_any_write(tmp_path: Path) -> None:
    """Whenever it is killed, all that the target shows can be read; the next copy brings what lacks."""
    records, job = wanted(open_store(tmp_path / "here")), f"{__name__}:copy_until"
    with Warm(None, [__name__], folder=Path(__file__).parents[2]) as warm:
        calls = warm.run(job, tmp_path, 0).result
        assert isinstance(calls, int) and calls > 10
        expected = set(stored_chunks(open_store(tmp_path / "there")))
        for limit in range(1, calls + 1):
            shutil.rmtree(tmp_path / "there")
            ended = warm.run(job, tmp_path, limit)
            assert (ended.finished, ended.signal) == (False, "SIGKILL")
            _check_what_a_kill_left(tmp_path, records, expected)


def _check_what_a_kill_left(root: Path, records: list[TensorRecord], expected: set[bytes]) -> None:
    there = open_store(root / "there")
    assert sound(there)
    copy(open_store(root / "here"), there, records)
    assert set(stored_chunks(open_store(root / "there"))) == expected
    assert sound(open_store(root / "there"))


def test_both_stores_are_locked(here: ChunkStore, there: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While chunks are copied nobody collects garbage in either store; whoever collects keeps a copy from starting."""
    for store in (here, there):
        with ChunkCopier(here, there, near=here), pytest.raises(LockedError), file_lock(store.lock, timeout=0):
            pass
        with file_lock(store.lock, timeout=0):
            pass
    monkeypatch.setattr(shelf, "file_lock", lambda path, shared: file_lock(path, shared=shared, timeout=0))
    with file_lock(here.lock), pytest.raises(LockedError):
        ChunkCopier(here, there, near=here)
    with file_lock(there.lock, timeout=0):
        pass
