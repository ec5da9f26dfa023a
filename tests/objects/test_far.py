"""Chunks of a place: found, read in ranges and verified, whatever others do there meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from coral.errors import CorruptionError, LockedError, StorageError
from coral.format.manifest import TensorRecord
from coral.objects import ChunkStore, reading
from coral.objects.copying import ChunkCopier
from coral.objects.far import FarShelf
from coral.storage import disk
from coral.storage.folder_place import FolderPlace
from coral.storage.locks import file_lock
from coral.storage.memory_place import MemoryPlace
from coral.storage.place import Place
from coral.testing.disks import Unsynced
from tests.objects.helpers import MIB, Tensor, noise, open_store, read, stored_chunks, write
from tests.objects.series import committed, depths, drifting


@pytest.fixture(autouse=True)
def no_fsync() -> Iterable[None]:
    """What is durable is another test's matter."""
    with disk.use(Unsynced()):
        yield


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return open_store(tmp_path / "there")


def in_memory(store: ChunkStore) -> MemoryPlace:
    """A place that has what the store has."""
    place = MemoryPlace()
    for name in store.folder.names():
        place.create(f"packs/{name}", store.folder.read(name))
    return place


def in_its_folder(store: ChunkStore) -> FolderPlace:
    """The folder that the store lies in, as a place."""
    return FolderPlace(store.folder.root.parent)


def read_far(shelf: FarShelf, record: TensorRecord) -> bytes:
    out = bytearray(record.nbytes)
    reading.read_many(shelf, [(record, memoryview(out))])
    assert b"".join(map(bytes, reading.stream(shelf, [record]))) == bytes(out)
    return bytes(out)


@pytest.mark.parametrize("view", [in_memory, in_its_folder])
def test_what_is_there_is_read(view: Callable[[ChunkStore], Place], store: ChunkStore) -> None:
    """Inline, small and large tensors, and deltas on deltas, are the same as in the store itself."""
    data = [b"x" * 20, noise(1, 1000), noise(2, 5 * MIB + 7), b""]
    records = write(store, *(Tensor(f"t{number}", one) for number, one in enumerate(data)))
    drifted = drifting(4)
    records += committed(store, drifted)
    assert max(depths(store, drifted)) > 1
    shelf = FarShelf(view(store), "packs", threads=2)
    for record, expected in zip(records, [*data, *drifted], strict=True):
        shelf.check(record)
        assert read_far(shelf, record) == expected == read(store, record)


def pack_names(store: ChunkStore) -> list[str]:
    """The names of its packs, less the suffix."""
    return [pack.name for pack in store.packs.packs]


class Counting(MemoryPlace):
    """Notes which bytes are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = super().read(key, start, stop)
        self.asked.append((key.rpartition(".")[2], len(data)))
        return data


def test_only_what_is_wanted_is_read(store: ChunkStore) -> None:
    """Of packs nothing but the records of the chunks that are wanted; each index once, and only when one is."""
    records = write(store, *(Tensor(f"t{number}", noise(number, MIB)) for number in range(8)))
    write(store, Tensor("other", noise(9, MIB)))
    place = Counting()
    for name in store.folder.names():
        place.create(f"packs/{name}", store.folder.read(name))
    shelf = FarShelf(place, "packs")
    assert place.asked == []
    assert read_far(shelf, records[3]) == noise(3, MIB)
    assert sorted(place.asked) == sorted(
        [*(("idx", store.folder.size(f"{name}.idx")) for name in pack_names(store)), *[("pack", MIB + 64)] * 2]
    )


def test_small_ones_are_read_together(store: ChunkStore) -> None:
    """A thousand tensors of some hundred bytes are not a thousand requests."""
    data = [noise(number, 300) for number in range(1000)]
    records = write(store, *(Tensor(f"t{number}", one) for number, one in enumerate(data)))
    place = Counting()
    for name in store.folder.names():
        place.create(f"packs/{name}", store.folder.read(name))
    shelf = FarShelf(place, "packs")
    assert [bytes(piece) for piece in reading.stream(shelf, records)] == data
    assert len(place.asked) < 50


def test_damage_is_found(store: ChunkStore) -> None:
    """A bit that is wrong anywhere in a record is told of, and its bytes are never handed out."""
    (record,) = write(store, Tensor("t", noise(1, 3000)))
    (name,) = pack_names(store)
    whole = store.folder.read(f"{name}.pack")
    for at in (*range(16, 80, 7), 1000, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        place = MemoryPlace()
        place.create(f"packs/{name}.pack", damaged)
        place.create(f"packs/{name}.idx", store.folder.read(f"{name}.idx"))
        with pytest.raises(CorruptionError):
            read_far(FarShelf(place, "packs"), record)
    cut = MemoryPlace()
    cut.create(f"packs/{name}.pack", whole[:-10])
    cut.create(f"packs/{name}.idx", store.folder.read(f"{name}.idx"))
    with pytest.raises(CorruptionError):
        read_far(FarShelf(cut, "packs"), record)


def test_a_damaged_copy_is_passed_over(store: ChunkStore) -> None:
    """Where another pack has the chunk as well, it is had from there."""
    (record,) = write(store, Tensor("t", noise(1, 3000)))
    (name,) = pack_names(store)
    place = in_memory(store)
    damaged = bytearray(store.folder.read(f"{name}.pack"))
    damaged[-1] ^= 1
    place.create("packs/99999999-0123456789abcdef.pack", damaged)
    place.create("packs/99999999-0123456789abcdef.idx", store.folder.read(f"{name}.idx"))
    assert read_far(FarShelf(place, "packs"), record) == noise(1, 3000)


def test_a_damaged_index_is_made_anew(store: ChunkStore) -> None:
    """From its pack."""
    (record,) = write(store, Tensor("t", noise(1, 3000)))
    (name,) = pack_names(store)
    place = in_memory(store)
    place.remove(f"packs/{name}.idx")
    place.create(f"packs/{name}.idx", b"no index")
    assert read_far(FarShelf(place, "packs"), record) == noise(1, 3000)


def test_what_was_merged_away_is_looked_for_again(store: ChunkStore) -> None:
    """Others may merge packs between the listing and the reading; what comes later is seen as well."""
    records = [write(store, Tensor("t", noise(number, 3000)))[0] for number in range(8)]
    shelf = FarShelf(in_its_folder(store), "packs")
    assert read_far(shelf, records[0]) == noise(0, 3000)
    assert store.consolidate() == 7
    (later,) = write(store, Tensor("t", noise(8, 3000)))
    for number, record in enumerate([*records, later]):
        assert read_far(shelf, record) == noise(number, 3000)


def test_what_is_not_there(store: ChunkStore) -> None:
    """A chunk that no pack holds is missing; of an empty place, every one."""
    (record,) = write(store, Tensor("t", noise(1, 3000)))
    with pytest.raises(CorruptionError, match="missing"):
        read_far(FarShelf(MemoryPlace(), "packs"), record)


def test_a_place_that_refuses(store: ChunkStore) -> None:
    """That it is not to be had is no damage: the error says so, and the same call works later."""
    (record,) = write(store, Tensor("t", noise(1, 3000)))

    class Refusing(MemoryPlace):
        refuses = False

        def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
            if self.refuses and key.endswith(".pack"):
                raise StorageError("not to be had")
            return super().read(key, start, stop)

    place = Refusing()
    for name in store.folder.names():
        place.create(f"packs/{name}", store.folder.read(name))
    shelf = FarShelf(place, "packs")
    place.refuses = True
    with pytest.raises(StorageError):
        read_far(shelf, record)
    place.refuses = False
    assert read_far(shelf, record) == noise(1, 3000)


@pytest.mark.parametrize("view", [in_memory, in_its_folder])
def test_a_copy_of_it(view: Callable[[ChunkStore], Place], store: ChunkStore, tmp_path: Path) -> None:
    """What is copied from a place is what would be copied from its store, deltas as deltas."""
    drifted = drifting(4)
    records = [*committed(store, drifted), *write(store, Tensor("large", noise(1, 4 * MIB)))]
    here, near = open_store(tmp_path / "here"), open_store(tmp_path / "near")
    for source, target in ((FarShelf(view(store), "packs"), here), (store, near)):
        with ChunkCopier(source, target, near=target) as copier:
            for record in records:
                copier.plan.add(record)
            copier.copy()
        assert copier.lost == []
    assert stored_chunks(here) == stored_chunks(near)
    assert max(depths(here, drifted)) > 1
    assert [read(here, record) for record in records] == [read(store, record) for record in records]


def test_nothing_is_collected_while_it_is_copied(store: ChunkStore, tmp_path: Path) -> None:
    """Where the place has a lock, it is held as long as the copy takes."""
    shelf = FarShelf(in_its_folder(store), "packs", guard=lambda: file_lock(store.lock, shared=True))
    with ChunkCopier(shelf, open_store(tmp_path / "here"), near=shelf), pytest.raises(LockedError):
        file_lock(store.lock, timeout=0).__enter__()
    with file_lock(store.lock, timeout=0):
        pass


_LOOKING = """
import resource, sys
from pathlib import Path
from coral.ids import ChunkId
from coral.objects.far import FarShelf
from coral.storage.folder_place import FolderPlace
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert ChunkId(bytes(32)) not in FarShelf(FolderPlace(Path(sys.argv[1])), "packs").packs
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_a_damaged_place_takes_no_memory(tmp_path: Path) -> None:
    """An index and a pack of 700 MiB of nothing, which cost whoever put them there no disk, are not read into it."""
    name = "99999999-0123456789abcdef"
    for suffix in (".pack", ".idx"):
        path = tmp_path / "packs" / f"{name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, 700 << 20)
    done = subprocess.run([sys.executable, "-c", _LOOKING, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100
