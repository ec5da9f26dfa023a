"""The set of packs: thousands of them open and are searched like one, and damage in one of them stays there."""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import CorruptionError, StorageError
from coral.format import codecs
from coral.format.index import PackIndex, build
from coral.format.manifest import TensorRecord
from coral.format.pack import KIND_CHUNK, KIND_LIST, MAGIC, Entry, pack_header
from coral.ids import ChunkId, ContentRef, checksum, chunk_id, list_id, list_ref, single_ref
from coral.objects import packs as module
from coral.objects.packs import PackSet
from coral.objects.recent import Recent
from coral.objects.scratch import Scratch
from coral.objects.table import IdTable
from coral.storage import folder as folder_module
from coral.storage.folder import Folder
from tests.objects.helpers import MIB, Tensor, noise, open_store, packs_of, read, write
from tests.processes import run_python

pytestmark = pytest.mark.usefixtures("no_fsync")


def put(root: Path, number: int, *contents: bytes, **changes: int) -> list[ChunkId]:
    """A pack of raw records, made by hand; its index lies about them where ``changes`` says so."""
    data, entries = MAGIC, {}
    for content in contents:
        entry = Entry(len(data), len(content), len(content), KIND_CHUNK, codecs.RAW, 0, 1)
        data += pack_header(chunk_id(content), entry, checksum(content)) + content
        entries[chunk_id(content)] = entry._replace(**changes)
    (root / "packs").mkdir(exist_ok=True)
    name = f"{number:08d}-{number:016x}"
    (root / "packs" / f"{name}.pack").write_bytes(data)
    (root / "packs" / f"{name}.idx").write_bytes(build(entries.items()))
    return list(entries)


def damage(path: Path, at: int) -> None:
    """Flip a bit of a file."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def open_files(folder: Path) -> list[str]:
    """What this process has open below a folder."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.islink(link)]
    return [name for name in found if name.startswith(f"{folder}/")]


# -- many packs


def test_more_packs_than_descriptors(tmp_path: Path) -> None:
    """A store of 300 packs opens and reads whole in a process that may open 128 files."""
    code = """
    import resource, sys
    from pathlib import Path
    from tests.objects.test_packs import *
    root = Path(sys.argv[1])
    ids = [put(root, number, noise(number, 60)) for number in range(1, 301)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    store = open_store(root)
    for number, (chunk,) in enumerate(ids, 1):
        assert read(store, TensorRecord("t", "U8", (60,), single_ref(chunk))) == noise(number, 60)
    print(len(store.packs.packs))
    """
    assert run_python(code, tmp_path) == "300\n"


def test_opening_reads_no_index(tmp_path: Path) -> None:
    """To open a store costs a listing, whatever it holds; only a search reads indexes, and closes them again."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("NOT PROVED HERE: open files are read from /proc")
    ids = [put(tmp_path, number, noise(number, 60))[0] for number in range(1, 20)]
    for path in (tmp_path / "packs").glob("*.idx"):
        shutil.move(path, tmp_path / path.name)
        path.touch()
    packs = PackSet(Folder(tmp_path / "packs"))
    assert len(packs.packs) == 19
    for path in tmp_path.glob("*.idx"):
        shutil.move(path, tmp_path / "packs" / path.name)
    assert all(chunk in packs for chunk in ids)
    assert open_files(tmp_path) == []


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 30), max_size=6, unique=True), st.integers(0, 9)), max_size=12
    )
)
@settings(max_examples=60)
def test_the_table_is_a_dictionary(turns: list[tuple[bool, list[int], int]]) -> None:
    """Whatever packs come and go, the table knows each place of each id, ids that begin alike told apart by nobody."""
    table, model = IdTable.empty(), dict[int, list[ChunkId]]()
    for number, (comes, names, goes) in enumerate(turns):
        if comes:
            ids = sorted(ChunkId(bytes([name % 5]) * 8 + bytes([name]) * 24) for name in names)
            index = PackIndex(build((chunk, Entry(0, 0, 0, 1, 0, 0, 1)) for chunk in ids), "index")
            model[number] = ids
            table = table.adding([(number, index)])
        else:
            model.pop(goes, None)
            table = table.without(frozenset({goes}) & table.packs)
        assert table.packs == model.keys()
        assert len(table) == sum(map(len, model.values()))
        for name in range(31):
            chunk = ChunkId(bytes([name % 5]) * 8 + bytes([name]) * 24)
            found = table.find(chunk)
            alike = {
                (pack, at) for pack, ids in model.items() for at, other in enumerate(ids) if other[:8] == chunk[:8]
            }
            assert set(found) == alike and len(found) == len(alike)
            assert [pack for pack, _ in found] == sorted((pack for pack, _ in found), reverse=True)


def test_ids_that_begin_alike(tmp_path: Path) -> None:
    """Two ids with the same first eight bytes, in one pack or in two, are never taken for each other."""
    folder = Folder(tmp_path / "packs")
    ids = [ChunkId(b"alike 8 " + bytes([number]) * 24) for number in range(5)]
    for number, inside in ((1, ids[:2]), (2, ids[2:4])):
        entries = [(chunk, Entry(16, number, 0, KIND_CHUNK, 0, 0, 1)) for chunk in inside]
        folder.write(f"{number:08d}-{0:016x}.pack", MAGIC)
        folder.write(f"{number:08d}-{0:016x}.idx", build(entries))
    packs = PackSet(folder)
    found = [packs.find(chunk) for chunk in ids]
    assert [place and place[1].stored_length for place in found] == [1, 1, 2, 2, None]


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes that do not fit are read again when they are needed, also when their packs were merged away meanwhile."""
    monkeypatch.setattr(module, "_INDEX_BYTES", 3000)
    monkeypatch.setattr(module, "_OPEN_FILES", 2)
    store = open_store(tmp_path)
    records = [write(store, Tensor("t", noise(number, 60)))[0] for number in range(8)]
    assert [read(store, record) for record in records] == [noise(number, 60) for number in range(8)]
    assert len(store.packs._kept.indexes) <= 2
    assert len(store.packs._kept.files) == 2
    assert open_store(tmp_path).consolidate() == 7
    assert [read(store, record) for record in records] == [noise(number, 60) for number in range(8)]
    assert len(store.packs.packs) == 1


def test_a_large_index_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index too large to be read into memory serves as well, and so does its pack when the index is damaged."""
    monkeypatch.setattr(folder_module, "MAP_BYTES", 0)
    (chunk,) = put(tmp_path, 1, noise(1, 60))
    for _ in range(2):
        store = open_store(tmp_path)
        assert isinstance(store.folder.map(store.packs.packs[0].name + ".idx"), mmap.mmap)
        assert read(store, TensorRecord("t", "U8", (60,), single_ref(chunk))) == noise(1, 60)
        damage(tmp_path / "packs" / f"{1:08d}-{1:016x}.idx", 100)


def test_recent_keeps_the_last_used() -> None:
    """What was used last stays, by weight; what fails to be made is not kept; what is dropped is made anew."""
    made: list[int] = []

    def make(weight: int) -> int:
        made.append(weight)
        if weight > 90:
            raise StorageError("no")
        return weight

    kept = Recent[int](limit=10, weigh=lambda value: value)
    for weight in (4, 5, 4, 3, 4, 5, 50, 50, 4):
        assert kept.get(str(weight), lambda weight=weight: make(weight)) == weight  # type: ignore[misc]
    assert made == [4, 5, 3, 5, 50, 4]
    assert len(kept) == 1
    with pytest.raises(StorageError):
        kept.get("99", lambda: make(99))
    kept.drop("4")
    kept.drop("4")
    assert len(kept) == 0


def test_a_pack_that_went_away_before_the_first_search(tmp_path: Path) -> None:
    """A store that listed its packs and did not look into them yet finds what was merged meanwhile."""
    records = [write(open_store(tmp_path), Tensor("t", noise(number, 60)))[0] for number in range(8)]
    stale = open_store(tmp_path)
    assert open_store(tmp_path).consolidate() == 7
    assert all(chunk_id(noise(number, 60)) in stale.packs for number in range(8))
    assert [read(stale, record) for record in records] == [noise(number, 60) for number in range(8)]


def test_an_index_without_its_pack_is_no_pack(tmp_path: Path) -> None:
    """What only an index knows of counts as missing, so that a commit stores it, and a read ends."""
    (chunk,) = put(tmp_path, 1, noise(1, 60))
    (pack,) = (tmp_path / "packs").glob("*.pack")
    pack.unlink()
    assert chunk not in open_store(tmp_path).packs
    pack.symlink_to("nowhere")
    with pytest.raises(CorruptionError, match="missing"):
        read(open_store(tmp_path), TensorRecord("t", "U8", (60,), single_ref(chunk)))


def test_the_last_number_of_a_pack(tmp_path: Path) -> None:
    """After the pack named 99999999 the next one still has a name that is a pack's."""
    (old,) = put(tmp_path, 99_999_999, noise(1, 60))
    store = open_store(tmp_path)
    (new,) = write(store, Tensor("t", noise(2, 60)))
    again = open_store(tmp_path)
    assert len(again.packs.packs) == 2
    assert read(again, new) == noise(2, 60)
    assert read(again, TensorRecord("t", "U8", (60,), single_ref(old))) == noise(1, 60)


# -- damage


def record_of(chunk: ChunkId, length: int) -> TensorRecord:
    """A tensor of one chunk."""
    return TensorRecord("t", "U8", (length,), single_ref(chunk))


def test_a_pack_damaged_together_with_its_index(tmp_path: Path) -> None:
    """The records before the damage read, those after it are named when asked for, and everything else goes on."""
    contents = [noise(number, 100) for number in range(3)]
    first, second, third = put(tmp_path, 1, *contents)
    (other,) = put(tmp_path, 2, noise(9, 100))
    damage(tmp_path / "packs" / f"{1:08d}-{1:016x}.idx", 40)
    damage(tmp_path / "packs" / f"{1:08d}-{1:016x}.pack", 16 + 164 + 5)
    store = open_store(tmp_path)
    assert read(store, record_of(other, 100)) == noise(9, 100)
    assert read(store, record_of(first, 100)) == contents[0]
    for chunk in (second, third):
        with pytest.raises(CorruptionError, match=f"{chunk.hex()}.*{1:08d}-{1:016x}"):
            read(store, record_of(chunk, 100))
    (new,) = write(store, Tensor("new", noise(10, 100)))
    (healed,) = write(store, Tensor("again", contents[1]))
    assert read(open_store(tmp_path), new) == noise(10, 100)
    assert read(open_store(tmp_path), healed) == contents[1]
    for number in range(20, 28):
        write(store, Tensor("t", noise(number, 100)))
    assert store.consolidate() > 0
    assert (tmp_path / "packs" / f"{1:08d}-{1:016x}.pack").exists(), "what lost records is left for fsck"
    assert read(open_store(tmp_path), record_of(first, 100)) == contents[0]


def test_a_damaged_chunk_is_healed_by_the_next_commit(tmp_path: Path) -> None:
    """Bytes that a read found damaged are stored anew when they are committed again; then every reader has them."""
    tensor = Tensor("t", noise(1, 2 * MIB + 5))
    (record,) = write(open_store(tmp_path), tensor)
    (path,) = (tmp_path / "packs").glob("*.pack")
    damage(path, 2 * MIB)
    store, stale = open_store(tmp_path), open_store(tmp_path)
    with pytest.raises(CorruptionError):
        read(stale, record)
    for _ in range(2):
        with pytest.raises(CorruptionError, match=path.stem):
            read(store, record)
    assert write(store, tensor) == [record]
    assert read(store, record) == read(stale, record) == read(open_store(tmp_path), record) == tensor.data
    before = packs_of(tmp_path)
    assert write(store, tensor) == [record]
    assert packs_of(tmp_path) == before, "healed once, it is stored"
    newest = max((tmp_path / "packs").glob("*.pack"))
    assert newest.stat().st_size < 2 * MIB, "only what was damaged is stored again"


def test_a_damaged_list_is_healed(tmp_path: Path) -> None:
    """A chunk list is a record like any other."""
    tensor = Tensor("t", noise(1, 2 * MIB))
    (record,) = write(open_store(tmp_path), tensor)
    (path,) = (tmp_path / "packs").glob("*.pack")
    damage(path, path.stat().st_size - 1)
    store = open_store(tmp_path)
    with pytest.raises(CorruptionError):
        read(store, record)
    write(store, tensor)
    assert read(open_store(tmp_path), record) == tensor.data


def test_a_record_that_is_sound_in_itself_but_wrong(tmp_path: Path) -> None:
    """A record whose checksums are right and whose bytes are not its id's is passed over for one that is right."""
    wanted = noise(2, 100)
    entry = Entry(len(MAGIC), 100, 100, KIND_CHUNK, codecs.RAW, 0, 1)
    folder = Folder(tmp_path / "packs")
    name = f"{5:08d}-{0:016x}"
    wrong = noise(1, 100)
    folder.write(name + ".pack", MAGIC + pack_header(chunk_id(wanted), entry, checksum(wrong)) + wrong)
    folder.write(name + ".idx", build([(chunk_id(wanted), entry)]))
    store = open_store(tmp_path)
    with pytest.raises(CorruptionError, match="other bytes"):
        read(store, record_of(chunk_id(wanted), 100))
    write(store, Tensor("t", wanted))
    assert read(open_store(tmp_path), record_of(chunk_id(wanted), 100)) == wanted


def test_a_pack_that_is_whole_again_is_believed_again(tmp_path: Path) -> None:
    """Damage that is mended under a store, from a backup for example, is not held against the record."""
    (chunk,) = put(tmp_path, 1, noise(1, 100))
    (path,) = (tmp_path / "packs").glob("*.pack")
    damage(path, 100)
    store = open_store(tmp_path)
    with pytest.raises(CorruptionError):
        read(store, record_of(chunk, 100))
    assert chunk not in store.packs
    damage(path, 100)
    assert read(store, record_of(chunk, 100)) == noise(1, 100)
    assert chunk in store.packs


def test_a_wrong_question_condemns_nothing(tmp_path: Path) -> None:
    """A manifest that asks for a chunk in another size does not make the store doubt the chunk."""
    store = open_store(tmp_path)
    (record,) = write(store, Tensor("t", noise(1, 100)))
    with pytest.raises(CorruptionError, match="100 bytes, not 99"):
        read(store, record._replace(shape=(99,)))
    assert chunk_id(noise(1, 100)) in store.packs


# -- hostile


@pytest.mark.parametrize(
    "changes",
    [{"stored_length": 0xF0000000}, {"stored_length": 200 << 20}, {"offset": 2**63}, {"offset": 2**63 - 10}],
    ids=str,
)
def test_an_index_that_points_outside(tmp_path: Path, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry whose record would not lie in the pack is refused before anything is allocated for it."""
    (chunk,) = put(tmp_path, 1, noise(1, 100), **changes)
    store = open_store(tmp_path)
    taken: list[int] = []
    monkeypatch.setattr(Scratch, "take", lambda scratch, length: taken.append(length))
    with pytest.raises(CorruptionError, match=chunk.hex()):
        store.read_into(record_of(chunk, 100), memoryview(bytearray(100)))
    assert taken == []


def test_check_before_allocating(tmp_path: Path) -> None:
    """A record that the store cannot fulfil is refused at once, whatever size it claims; a sound one passes."""
    store = open_store(tmp_path)
    sound = write(store, *(Tensor(str(size), noise(size, size)) for size in (0, 20, 100, 3 * MIB + 1)))
    for record in sound:
        store.check(record)
    _, short, single, listed = sound
    nowhere = "ab" * 32
    for wrong in (
        short._replace(shape=(1 << 40,)),
        single._replace(shape=(101,)),
        single._replace(shape=(1 << 62,)),
        listed._replace(shape=(3 * MIB + 2,)),
        listed._replace(shape=(1 << 62,)),
        listed._replace(content=ContentRef("b3:" + listed.content[4:])),
        single._replace(content=ContentRef("b3l:" + single.content[3:])),
        TensorRecord("t", "F32", (1 << 59,), ContentRef("b3:" + nowhere)),
        TensorRecord("t", "F32", (1 << 36,), ContentRef("b3l:" + nowhere)),
        TensorRecord("t", "F32", (1 << 62, 0, 1 << 62, 1 << 62), ContentRef("hex:")),
    ):
        with pytest.raises(CorruptionError):
            store.check(wrong)
    with pytest.raises(CorruptionError):
        store.get_bytes(single.content, 10**17)


def test_check_finds_a_missing_chunk(tmp_path: Path) -> None:
    """A list of chunks one of which is nowhere does not pass."""
    store = open_store(tmp_path)
    present, absent = noise(1, MIB), noise(2, MIB)
    write(store, Tensor("t", present))
    listing = chunk_id(present) + chunk_id(absent)
    entry = Entry(len(MAGIC), 64, 64, KIND_LIST, codecs.RAW, 0, 1)
    name = f"{5:08d}-{0:016x}"
    store.folder.write(name + ".pack", MAGIC + pack_header(list_id(listing), entry, checksum(listing)) + listing)
    store.folder.write(name + ".idx", build([(list_id(listing), entry)]))
    with pytest.raises(CorruptionError, match=chunk_id(absent).hex()):
        store.check(TensorRecord("t", "U8", (2 * MIB,), list_ref(list_id(listing))))


@pytest.mark.parametrize("first", [1, 2])
def test_a_damaged_record_is_not_found(tmp_path: Path, first: int) -> None:
    """Of two records the sound one is found, be it the older or the newer; where both are damaged, none is."""
    (chunk,) = put(tmp_path, 1, noise(1, 100))
    put(tmp_path, 2, noise(1, 100))
    packs = open_store(tmp_path).packs
    for number in (first, 3 - first):
        (pack,) = [pack for pack in packs.packs if pack.name == f"{number:08d}-{number:016x}"]
        damage(tmp_path / "packs" / f"{pack.name}.pack", 100)
        with pytest.raises(CorruptionError):
            pack.read_record(chunk, pack.index.entry(0), Scratch())
        found = packs.find(chunk)
        if number == first:
            assert found is not None and found[0] is not pack and chunk in packs
    assert found is None and chunk not in packs
