"""Consolidation: few packs, and nothing lost, whoever reads, writes, dies or competes meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from coral.errors import CorruptionError, StorageError
from coral.format.manifest import TensorRecord
from coral.format.pack import Entry
from coral.ids import ChunkId, chunk_id
from coral.objects import ChunkStore
from coral.objects import consolidate as module
from coral.objects.packs import Pack
from coral.objects.scratch import Scratch
from coral.storage import disk
from coral.storage.folder import Folder
from coral.testing.disks import Killing, Unsynced
from tests.objects.helpers import Tensor, noise, open_store, packs_of, read, stored_chunks, write
from tests.processes import start_python

pytestmark = pytest.mark.usefixtures("no_fsync")


def fill(root: Path, count: int, start: int = 0, length: int = 2000) -> dict[TensorRecord, bytes]:
    """So many commits of one small tensor each, and one that all of them hold."""
    store = open_store(root)
    stored: dict[TensorRecord, bytes] = {}
    for seed in range(start, start + count):
        data = noise(seed, length)
        record, shared = write(store, Tensor(f"t{seed}", data), Tensor("shared", noise(10**6, 100)))
        stored |= {record: data, shared: noise(10**6, 100)}
    return stored


def damage(path: Path, at: int = 200) -> None:
    """Flip a bit of a file."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def holds(store: ChunkStore, stored: dict[TensorRecord, bytes]) -> bool:
    """Whether every tensor reads back."""
    return all(read(store, record) == data for record, data in stored.items())


def test_many_commits_are_few_files(tmp_path: Path) -> None:
    """However many commits, packs stay few, every chunk reads, and none is stored twice."""
    stored: dict[TensorRecord, bytes] = {}
    for turn in range(9):
        stored |= fill(tmp_path, 8, start=8 * turn)
        open_store(tmp_path).consolidate()
    assert len(packs_of(tmp_path)) <= 2 * 2 * 8
    assert holds(open_store(tmp_path), stored)
    found = stored_chunks(open_store(tmp_path))
    assert len(found) == len(set(found)) == len(stored)
    assert os.listdir(tmp_path / "tmp") == []


def test_put_bytes_consolidates_unasked(tmp_path: Path) -> None:
    """A hundred artifacts are a handful of files."""
    store = open_store(tmp_path)
    contents = [store.put_bytes(noise(seed, 100)) for seed in range(40)]
    assert len(packs_of(tmp_path)) <= 30
    assert [open_store(tmp_path).get_bytes(content, 100) for content in contents] == [noise(n, 100) for n in range(40)]


def test_few_packs_are_left_alone(tmp_path: Path) -> None:
    """Nothing is rewritten before a tier is full."""
    fill(tmp_path, 7)
    before = packs_of(tmp_path)
    assert open_store(tmp_path).consolidate() == 0
    assert packs_of(tmp_path) == before


def test_stale_readers_keep_reading(tmp_path: Path) -> None:
    """A store object that knows only the old packs, opened or not, finds each chunk in the new one."""
    stored = fill(tmp_path, 8)
    stale, opened = open_store(tmp_path), open_store(tmp_path)
    assert holds(opened, stored)
    assert open_store(tmp_path).consolidate() == 7
    assert len(packs_of(tmp_path)) == 2
    assert holds(stale, stored)
    assert holds(opened, stored)
    assert len(stale.packs.packs) == 1


def test_a_read_under_way_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has found a record when the same store object merges its pack away finds it again elsewhere."""
    stored = fill(tmp_path, 8)
    store = open_store(tmp_path)
    merged: list[int] = []

    def consolidate_first(pack: Pack, chunk: ChunkId, entry: Entry, scratch: Scratch) -> memoryview:
        with monkeypatch.context() as patch:
            patch.setattr(Pack, "read_record", real)
            merged.append(store.consolidate())
        return real(pack, chunk, entry, scratch)

    real = Pack.read_record
    monkeypatch.setattr(Pack, "read_record", consolidate_first)
    record = next(iter(stored))
    out = bytearray(record.nbytes)
    store.read_into(record, memoryview(out))
    assert bytes(out) == stored[record]
    assert merged[0] == 7


def in_threads(*works: Callable[[], object]) -> None:
    """Run functions at once; the first error of any of them is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_read_while_it_runs(tmp_path: Path) -> None:
    """Threads that share the store object with the consolidation never read from a file that it closed."""
    stored = fill(tmp_path, 8)
    store = open_store(tmp_path)
    done = threading.Event()

    def keep_reading() -> None:
        while not done.is_set():
            assert holds(store, stored)

    def consolidate() -> None:
        try:
            for turn in range(1, 5):
                fill(tmp_path, 8, start=8 * turn)
                store.packs.refresh()
                store.consolidate()
        finally:
            done.set()

    in_threads(keep_reading, keep_reading, consolidate)
    assert len(packs_of(tmp_path)) < 2 * 12


def test_another_process_reads_while_it_runs(tmp_path: Path) -> None:
    """A process with a stale list of packs reads on, through many consolidations."""
    stored = fill(tmp_path, 8)
    code = """
    import sys
    from pathlib import Path
    from coral.format.manifest import Manifest
    from tests.objects.helpers import open_store, noise, read
    store = open_store(Path(sys.argv[1]))
    records = Manifest.from_bytes(Path(sys.argv[1], "manifest").read_bytes()).records
    print("ready", flush=True)
    turns = 0
    while not Path(sys.argv[1], "stop").exists():
        for record in records:
            if record.name != "shared":
                assert read(store, record) == noise(int(record.name[1:]), 2000)
        turns += 1
    print(turns)
    """
    from coral.format.manifest import Manifest

    (tmp_path / "manifest").write_bytes(Manifest("safetensors", tuple(stored)).to_bytes())
    reader = start_python(code, tmp_path)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    for turn in range(1, 5):
        fill(tmp_path, 8, start=8 * turn)
        open_store(tmp_path).consolidate()
    (tmp_path / "stop").touch()
    out, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert int(out) > 0


def consolidate_and_die(root: Path, count: int) -> bool:
    """Consolidate in a child that is killed at its so manieth write; False when it came to its end before."""
    child = os.fork()
    if not child:
        store = open_store(root, threads=1)
        with disk.use(Killing(count, below=Unsynced())):
            store.consolidate()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_kill_at_every_write_loses_nothing(tmp_path: Path) -> None:
    """Killed before any of its writes, a consolidation loses no chunk, and the next one completes."""
    stored = fill(tmp_path / "origin", 8)
    count = 0
    while True:
        root = tmp_path / str(count)
        shutil.copytree(tmp_path / "origin", root)
        died = consolidate_and_die(root, count)
        assert holds(open_store(root, threads=1), stored), f"killed at write {count}"
        survivor = open_store(root, threads=1)
        survivor.consolidate()
        assert holds(survivor, stored)
        assert len(stored_chunks(survivor)) >= len(stored)
        shutil.rmtree(root)
        if not died:
            break
        count += 1
    assert count > 30, "the consolidation of eight packs has more writes than that"


def test_two_at_once(tmp_path: Path) -> None:
    """Of two that consolidate at once one does nothing; both end, and nothing is lost or doubled."""
    stored = fill(tmp_path, 24)
    stores = [open_store(tmp_path), open_store(tmp_path)]
    in_threads(*(store.consolidate for store in stores))
    stores[0].consolidate()
    found = stored_chunks(open_store(tmp_path))
    assert len(found) == len(set(found)) == len(stored)
    assert all(holds(store, stored) for store in stores)


def test_a_writer_beside_it(tmp_path: Path) -> None:
    """Chunks that an open writer relies on outlive the packs they were in."""
    stored = fill(tmp_path, 8)
    with open_store(tmp_path).writer() as writer:
        record, _ = writer.write_tensors([Tensor("again", noise(3, 2000)), Tensor("new", noise(99, 500))])
        assert open_store(tmp_path).consolidate() == 7
        writer.seal()
    assert read(open_store(tmp_path), record) == noise(3, 2000)
    assert holds(open_store(tmp_path), stored)


def test_a_damaged_pack_is_left_alone(tmp_path: Path) -> None:
    """Consolidation merges the sound packs, keeps the damaged one for fsck, and does not fail the commit."""
    stored = fill(tmp_path, 9)
    path = sorted((tmp_path / "packs").glob("*.pack"))[4]
    damage(path)
    store = open_store(tmp_path)
    assert store.consolidate() > 0
    assert path.exists()
    damaged = []
    for record, expected in stored.items():
        try:
            assert read(open_store(tmp_path), record) == expected
        except CorruptionError as error:
            assert path.stem in str(error)
            damaged.append(record.name)
    assert damaged == ["t4"]
    assert store.consolidate() == 0
    write(store, Tensor("t4", noise(4, 2000)))
    assert holds(open_store(tmp_path), stored), "what consolidation found damaged, the next commit of it heals"


def test_a_damaged_pack_is_not_copied_again_and_again(tmp_path: Path) -> None:
    """However often the tier of a damaged pack fills, its sound records are not stored another time."""
    fill(tmp_path, 1, length=2000)
    write(open_store(tmp_path), Tensor("sound", noise(50, 3000)), Tensor("hurt", noise(51, 3000)))
    damage(max((tmp_path / "packs").glob("*.pack")), at=4000)
    for turn in range(1, 5):
        fill(tmp_path, 7, start=7 * turn)
        assert open_store(tmp_path).consolidate() > 0
    found = stored_chunks(open_store(tmp_path))
    assert found.count(chunk_id(noise(50, 3000))) == 1


def test_a_healed_record_is_left_behind(tmp_path: Path) -> None:
    """Once a damaged chunk was committed again, consolidation merges its old pack without it, and all reads."""
    stored = fill(tmp_path, 6)
    records = write(open_store(tmp_path), Tensor("sound", noise(50, 3000)), Tensor("hurt", noise(51, 3000)))
    hurt = max((tmp_path / "packs").glob("*.pack"))
    damage(hurt, at=4000)
    healer = open_store(tmp_path)
    with pytest.raises(CorruptionError):
        read(healer, records[1])
    write(healer, Tensor("hurt", noise(51, 3000)))
    assert open_store(tmp_path).consolidate() == 7
    assert not hurt.exists()
    assert len(packs_of(tmp_path)) == 2
    assert holds(open_store(tmp_path), stored | dict(zip(records, (noise(50, 3000), noise(51, 3000)), strict=True)))


def test_a_pack_that_goes_away_meanwhile_does_not_fail_the_commit(tmp_path: Path) -> None:
    """Nothing that consolidation meets is told to a commit that has landed, not even a missing file."""
    fill(tmp_path, 8)
    for path in (tmp_path / "packs").iterdir():
        stale = open_store(tmp_path)
        path.rename(tmp_path / path.name)
        assert stale.consolidate() == 0
        (tmp_path / path.name).rename(path)


def test_a_merge_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit waits for the copying of so many bytes at most; the next ones go on with what is left."""
    assert module._MERGED_BYTES == 256 << 20
    monkeypatch.setattr(module, "_MERGED_BYTES", 5 * 2300)
    stored = fill(tmp_path, 30)
    assert open_store(tmp_path).consolidate() == 4
    turns = 0
    while open_store(tmp_path).consolidate():
        turns += 1
    assert turns > 2
    assert len(packs_of(tmp_path)) < 2 * 8
    assert holds(open_store(tmp_path), stored)
    monkeypatch.setattr(module, "_LARGEST_BYTES", 1000)
    fill(tmp_path, 9, start=30)
    assert open_store(tmp_path).consolidate() == 0, "packs that are large enough stay as they are"


class Full(Folder):
    """A folder on a disk that is full."""

    def new_file(self, key: str) -> object:  # type: ignore[override]
        raise StorageError("no space", errno=errno.ENOSPC)


def test_a_full_disk_does_not_fail_the_commit(tmp_path: Path) -> None:
    """Merging waits for another day when there is no space for it."""
    stored = fill(tmp_path, 8)
    before = packs_of(tmp_path)
    store = ChunkStore(Full(tmp_path / "packs", temporary=tmp_path / "tmp"), tmp_path / "lock")
    assert store.consolidate() == 0
    assert packs_of(tmp_path) == before
    assert holds(store, stored)


def test_a_torn_listing_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder listed in the middle of a consolidation may show neither the old packs nor the new one."""
    stored = fill(tmp_path, 3)
    store = open_store(tmp_path)
    record = next(iter(stored))
    for pack in store.packs.packs:
        store.packs.forget(pack)
    real = Folder.names
    listings = [real(store.folder)[-2:]]
    monkeypatch.setattr(Folder, "names", lambda folder, key="": listings.pop() if listings else real(folder, key))
    assert read(store, record) == stored[record]
