"""Attacks by name: whatever a file or a pack from elsewhere holds, it runs nothing, writes nothing outside, and ends.

Others of their kind stand where what they attack is tested: hostile trees in ``tests/repository``, headers and archives
in ``tests/containers``, packs, rings and chains of deltas in ``tests/objects``, codecs and names in ``tests/format``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from coral import Repository
from coral.errors import CoralError, CorruptionError, FormatError
from coral.format.index import build
from coral.format.manifest import Manifest, TensorRecord
from coral.format.pack import KIND_CHUNK, KIND_LIST, MAGIC, Entry, pack_header
from coral.ids import ChunkId, checksum, chunk_id, list_ref, single_ref
from coral.tensors.state import decode_state
from tests.repository.helpers import commit, git, raw, read, weights
from tests.torture.hostile import FILE, attempt, nested, use_everything, watched

# -- pickles


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def torch_zip(data_pkl: bytes) -> bytes:
    """An archive as torch makes it, around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in (
            ("data.pkl", data_pkl),
            ("byteorder", b"little"),
            ("data/0", bytes(64)),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def pickles(target: Path) -> dict[str, tuple[str, bytes]]:
    """Files that run code when somebody unpickles them, by what they are."""
    bomb = pickle.dumps(Bomb(target), 2)
    objects, nested_zip = io.BytesIO(), io.BytesIO()
    np.savez(objects, a=np.array([Bomb(target)], dtype=object), b=np.arange(9.0))
    with zipfile.ZipFile(nested_zip, "w") as archive:
        archive.writestr("inner.pt", torch_zip(bomb))
        archive.writestr("a.npy", objects.getvalue())
    inner = pickle.dumps(bomb, 2)[2:-1]  # the bytes of a pickle, as a value
    loader = b"\x80\x02ctorch.storage\n_load_from_bytes\n" + inner + b"\x85R."
    before = b"".join(pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001, 0))
    state = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00xcos\nmkdir\n" + pickle.dumps(str(target))[2:-1]
    return {
        "a zip of torch's": ("x.pt", torch_zip(bomb)),
        "objects in an archive of arrays": ("x.npz", objects.getvalue()),
        "an archive in an archive": ("x.npz", nested_zip.getvalue()),
        "a pickle in a pickle": ("x.bin", torch_zip(loader)),
        "in an attribute": ("x.pth", torch_zip(state + b"\x85Rsb.")),
        "by another spelling": ("x.pt", torch_zip(bomb.replace(b"cposix\nmkdir\n", b"c__builtin__\ngetattr\n"))),
        "as it is": ("x.pkl", pickle.dumps(Bomb(target), 4)),
        "before archives": ("x.pt", before + bomb + pickle.dumps([], 2)),
        "in a list of keys": ("x.pt", before + pickle.dumps({}, 2) + bomb),
        "by a stack of names": ("x.ckpt", torch_zip(pickle.dumps(Bomb(target), 4))),
    }


@pytest.mark.parametrize("kind", pickles(Path("x")))
def test_a_pickle_is_not_run(repo: Repository, outside: Path, kind: str) -> None:
    """Adding, showing, loading, comparing and writing a file back runs nothing of it, and gives the same file."""
    name, data = pickles(outside / "pwned")[kind]
    (repo.path / name).write_bytes(data)
    with watched(outside, seconds=5):
        repo.stage_file(repo.path / name)
        repo.commit("trojan")
        repo.show(), repo.status(), repo.diff("HEAD~1")
        attempt(lambda: repo.get_all_weights("HEAD", name))
        attempt(lambda: repo.load_state("HEAD", name) if hasattr(repo, "load_state") else None)
        (repo.path / name).unlink()
        repo.checkout("main")
    assert (repo.path / name).read_bytes() == data


# -- archives that are more than they seem


def local(name: bytes, size: int, data: bytes = b"") -> bytes:
    """A member's own header."""
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), size, size, len(name), 0) + name + data


def central(name: bytes, size: int, at: int, extra: bytes = b"") -> bytes:
    """A member's entry in the directory."""
    fields = (20, 20, 0, 0, 0, 0, 0, size, size, len(name), len(extra), 0, 0, 0, 0, at)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name + extra


def end(count: int, size: int, at: int) -> bytes:
    """The end of an archive."""
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, size, at, 0)


def archives() -> dict[str, bytes]:
    """Archives that would take more than they are, in memory or time."""
    one = local(b"a/data.pkl", 4, b"\x80\x02N.")
    wide = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    huge = central(b"a/data/0", 0xFFFFFFFF, 0, wide)
    same = central(b"a/data/0", 4, 0) * 20_000
    many = b"".join(central(b"a/%07d" % number, 4, 0) for number in range(20_000))
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    endless = struct.pack("<HH", 1, 0xFFFF)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, (1 << 63) - 1, 1)
    return {
        "a member of exabytes": one + huge + end(1, len(huge), len(one)),
        "one member twenty thousand times": one + same + end(20_000, len(same), len(one)),
        "twenty thousand members in one place": one + many + end(20_000, len(many), len(one)),
        "a directory beyond the end": one + end(1, 0xFFFFFFF0, 5),
        "a directory before the beginning": one + locator + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        "a deflated member of 64 MB": deflated.getvalue(),
        "a directory within a member": local(b"a", 60, end(1, 40, 0)) + end(1, 46, 10),
        "an endless field beside a name": one + central(b"a", 4, 0, endless) + end(1, 51, len(one)),
    }


@pytest.mark.parametrize("kind", archives())
def test_an_archive_that_is_more_than_it_seems(repo: Repository, outside: Path, kind: str) -> None:
    """It is kept whole, restores byte for byte, and costs what its bytes cost."""
    data = archives()[kind]
    for name in ("x.pt", "x.npz"):
        (repo.path / name).write_bytes(data)
        with watched(outside):
            assert repo.stage_file(repo.path / name).container == "opaque"
        repo.commit(name)
        (repo.path / name).unlink()
        repo.checkout("main", name)
        assert (repo.path / name).read_bytes() == data


HEADERS = {
    "depth below metadata": b'{"__metadata__":{"a":%s}}' % nested(5000).encode(),
    "a hundred thousand empty tensors": b"{"
    + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(20_000))
    + b"}",
    "one name, spelled twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    b'"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "a name of a megabyte": b'{"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' % (b"x" * (1 << 20)),
    "a shape of zeros and exabytes": b'{"a":{"dtype":"F64","shape":[0,9223372036854775807],"data_offsets":[0,0]}}',
    "an exponent": b'{"a":{"dtype":"U8","shape":[1e308],"data_offsets":[0,0]}}',
    "a number of a million digits": b'{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % (b"9" * 1_000_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_costs_more_than_it_holds(repo: Repository, outside: Path, kind: str) -> None:
    """A header is refused, or kept and restored byte for byte, in bounded time."""
    data = len(HEADERS[kind]).to_bytes(8, "little") + HEADERS[kind]
    (repo.path / FILE).write_bytes(data)
    with watched(outside, seconds=3):
        staged = attempt(lambda: repo.stage_file(repo.path / FILE))
    if isinstance(staged, Manifest):
        repo.commit("odd")
        (repo.path / FILE).unlink()
        repo.checkout("main", FILE)
        assert (repo.path / FILE).read_bytes() == data
    else:
        assert isinstance(staged, FormatError)


# -- packs


def plant(repo: Repository, *records: tuple[ChunkId, bytes, Entry]) -> None:
    """A pack and its index with right checksums, whatever they say; offset and stored length are filled in."""
    data, entries = MAGIC, []
    for chunk, payload, entry in records:
        where = entry._replace(offset=len(data), stored_length=len(payload))
        data += pack_header(chunk, where, checksum(payload)) + payload
        entries.append((chunk, where))
    name = "00000009-0123456789abcdef"
    (repo.folder.root / "packs" / f"{name}.pack").write_bytes(data)
    (repo.folder.root / "packs" / f"{name}.idx").write_bytes(build(entries))


def plain(length: int, *, kind: int = KIND_CHUNK, codec: int = 0, depth: int = 0, item: int = 1) -> Entry:
    """An entry of so many raw bytes."""
    return Entry(0, 0, length, kind, codec, depth, item)


SOME = chunk_id(b"some")
PACKED = {
    "a chunk of 256 MiB in 4 bytes": (single_ref(SOME), 1 << 28, plain(1 << 28), b"\0\0\0\0"),
    "an unknown codec": (single_ref(SOME), 100, plain(100, codec=99), bytes(100)),
    "an unknown kind": (single_ref(SOME), 100, plain(100, kind=7), bytes(100)),
    "an element of no bytes": (single_ref(SOME), 100, plain(100, codec=1, item=0), bytes(100)),
    "an element of 255 bytes": (single_ref(SOME), 100, plain(100, codec=2, item=255), bytes(100)),
    "a list that names itself": (list_ref(SOME), 2 << 20, plain(64, kind=KIND_LIST), bytes(SOME) * 2),
    "a list that is a chunk": (list_ref(chunk_id(b"x" * 64)), 2 << 20, plain(64), b"x" * 64),
    "a list that is cut": (list_ref(SOME), 2 << 20, plain(33, kind=KIND_LIST), bytes(33)),
    "a list of other bytes": (list_ref(SOME), 2 << 20, plain(64, kind=KIND_LIST), b"y" * 64),
    "a delta over itself": (single_ref(SOME), 100, plain(100, codec=3, depth=1, item=4), bytes(SOME) + bytes(68)),
    "other bytes under the name": (single_ref(SOME), 100, plain(100), b"z" * 100),
    "frames of other lengths": (single_ref(SOME), 100, plain(100, codec=1, item=4), b"\xff" * 16),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_record_that_lies(repo: Repository, outside: Path, kind: str) -> None:
    """What a pack says under a right checksum is never returned under a wrong name, nor believed as a length."""
    content, nbytes, entry, payload = PACKED[kind]
    chunk = ChunkId(bytes.fromhex(content.partition(":")[2]))
    plant(repo, (chunk, payload, entry))
    manifest = Manifest("safetensors", (TensorRecord("w", "U8", (nbytes,), content),))
    oid = repo.history.write_blob(manifest.to_bytes())
    made = repo.history.write_commit(overlay={FILE: oid}, message="lies")
    repo.history.create_branch("lies", made.commit_hash)
    fresh = Repository(repo.path)
    with watched(outside):
        assert isinstance(attempt(lambda: read(fresh, "lies")), CorruptionError)
        assert isinstance(attempt(lambda: fresh.checkout("lies", FILE)), CorruptionError)
        assert fresh.maintenance.fsck(read_data=True).damage
        assert read(fresh, "main") == raw(weights(1))


INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "a count of 2**60": lambda body: body[:16] + (1 << 60).to_bytes(8, "little") + body[24:],
    "a table that falls": lambda body: body[:24] + b"\xff" * 512 + bytes(512) + body[24 + 1024 :],
    "a table beyond the ids": lambda body: body[:24] + b"\xff" * 1024 + body[24 + 1024 :],
    "ids in no order": lambda body: body[: 24 + 1024] + body[24 + 1024 :][32:64] + body[24 + 1024 :][:32] + body[1112:],
    "entries of other records": lambda body: body[:-24] + body[-48:-24],
    "nothing": lambda body: b"",
    "one magic": lambda body: body[:16],
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_lies(repo: Repository, outside: Path, kind: str) -> None:
    """Weights come back right or not at all, whatever an index with a right checksum says."""
    (index,) = (repo.folder.root / "packs").glob("*.idx")
    index.chmod(0o644)
    body = INDEXES[kind](index.read_bytes()[:-8])
    index.write_bytes(body + checksum(body).to_bytes(8, "little"))
    fresh = Repository(repo.path)
    with watched(outside):
        found = attempt(lambda: read(fresh))
        assert isinstance(found, CorruptionError) or found == raw(weights(1))
        commit(fresh, 2)
        assert read(fresh) == raw(weights(2))


# -- settings, staging and states

TEXTS = {
    "deep": "x = " + nested(2000),
    "deep tables": "x = " + nested(2000, "{a=", "}"),
    "long": "#" * 100_000,
    "dots": "a." * 7_000 + "b = 1",
    "digits": "x = " + "9" * 20_000,
    "a remote that is a list": "[[remotes]]\nurl = 1",
    "a remote without a place": "[remotes.a]",
    "a thousand tables of one name": "[a]\n" * 1000,
    "no text": "\udcff",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_settings_that_are_none(repo: Repository, outside: Path, kind: str) -> None:
    """A settings file that would take the stack, the time or the memory is one clear error, own or offered."""
    git(repo.path, "init", "-q")
    offers, own = repo.path / ".coralconfig", repo.folder.root / "config.toml"
    sound, text = own.read_bytes(), TEXTS[kind].encode("utf-8", "surrogateescape")
    from coral.verbs.sharing.remotes import adopt_remotes, offered_remotes

    with watched(outside, seconds=3):
        own.write_bytes(sound + text)
        found = attempt(lambda: Repository(repo.path))
        assert isinstance(found, CorruptionError) and "config.toml" in str(found)
        own.write_bytes(sound)
        offers.write_bytes(text)
        for call in (offered_remotes, adopt_remotes):
            refused = attempt(lambda call=call: call(repo.path, repo.folder))  # type: ignore[misc]
            assert isinstance(refused, CoralError)


STAGED = {
    "deep": nested(100_000),
    "deep parts": '{"base": null, "parts": ' + nested(900, '{"a":', "}") + "}",
    "a hash that is a path": '{"base": null, "parts": {"x": "../../outside/precious"}}',
    "a hash that is an option": '{"base": "--all", "parts": {}}',
    "a hash that is a number": '{"base": null, "parts": {"x": 1e400}}',
    "a huge number": '{"base": null, "parts": {"x": %s}}' % ("9" * 5000),
    "another checksum": '{"base": null, "parts": {}, "check": "0000000000000000"}',
    "a checksum that is none": '{"base": null, "parts": {}, "check": [1]}',
    "a lone surrogate": '{"base": null, "parts": {"\\ud800": null}}',
}


@pytest.mark.parametrize("kind", STAGED)
def test_staging_that_is_none(repo: Repository, outside: Path, kind: str) -> None:
    """A hostile index of the staging area is damage that is named; the commits are read as ever."""
    (repo.folder.root / "staging/index.json").write_text(STAGED[kind])
    with watched(outside):
        for call in (Repository(repo.path, shell_staging=True).status, lambda: use_everything(repo)[0]):
            assert isinstance(error := attempt(call), CorruptionError) and "index.json" in str(error)
        assert read(repo) == raw(weights(1))


def test_a_flipped_letter_of_what_is_staged(repo: Repository) -> None:
    """A name that damage made another name is not committed."""
    shell = Repository(repo.path, shell_staging=True)
    shell.stage_weights(weights(2), "model")
    index = repo.folder.root / "staging/index.json"
    text = index.read_text()
    index.write_text(text.replace('"model"', '"mndel"'))
    with pytest.raises(CorruptionError, match="checksum"):
        shell.commit("x")
    data = json.loads(text)
    del data["check"]
    index.write_text(json.dumps(data))  # of an older coral
    shell.commit("x")
    assert read(repo, name="model") == raw(weights(2))


STATES = {
    "deep": nested(5000),
    "deep in pairs": nested(400, '{"$dict":[[1,', "]]}"),
    "a number of a hundred thousand digits": "9" * 100_000,
    "another one, in words": '{"$int": "%s"}' % ("9" * 100_000),
    "a million empty lists": "[" + "[]," * 300_000 + "[]]",
    "a tensor that is a path": '{"$tensor": ["torch", "../../outside/precious"]}',
    "a framework that is a module": '{"$tensor": ["os", "system", "x"]}',
    "a kind that is a module": '{"$subprocess.run": ["touch", "x"]}',
    "a constant": '{"a": NaN}',
    "keys that are lists": '{"$dict": [[{"$tuple": [[]]}, 1]]}',
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_is_none(outside: Path, kind: str) -> None:
    """The JSON of a training state is checked; nothing in it names code, and its depth and digits are bounded."""

    def load(name: str, owner: str) -> object:
        raise CorruptionError(f"no tensor {name!r}")

    with watched(outside, seconds=2):
        found = attempt(lambda: decode_state(STATES[kind], load))
    assert isinstance(found, CoralError) or kind in ("a million empty lists", "another one, in words")


# -- collisions

# The secret of XXH3, of which the hash of 33 to 64 bytes takes these bytes for the second of four halves.
_SECRET = bytes.fromhex("cb79e64eccc0e578825ad07dccff7221")


def colliding(seed: int = 0) -> tuple[bytes, bytes]:
    """Two contents of 64 bytes with one XXH3-128.

    Bytes 16 to 32 are two words; each is XORed with the secret and the seed, and the two are multiplied. Where the one
    is zero the other does not count, except in a sum of both: so either may be, as long as the sum is the same.
    """
    wrap = (1 << 64) - 1
    low = (int.from_bytes(_SECRET[:8], "little") + seed) & wrap
    high = (int.from_bytes(_SECRET[8:], "little") - seed) & wrap
    free = 0x0123456789ABCDEF
    one = struct.pack("<QQ", low, free)
    two = struct.pack("<QQ", (low + free - high) & wrap, high)
    return bytes(16) + one + bytes(32), bytes(16) + two + bytes(32)


@pytest.mark.parametrize("ways", ["one commit", "one after the other", "in other processes"])
def test_tensors_whose_xxh3_is_equal(repo: Repository, ways: str) -> None:
    """A pair made to collide: both come back as they were, because no XXH3 is anybody's name."""
    one, two = colliding()
    assert one != two and xxhash.xxh3_128_digest(one) == xxhash.xxh3_128_digest(two)
    first, second = ({"w": np.frombuffer(data, "f4"), "fill": np.arange(99)} for data in (one, two))
    if ways == "one commit":
        repo.stage_weights({"one": first["w"], "two": second["w"]})
        repo.commit("both")
        assert read(Repository(repo.path)) == {"one": one, "two": two}
        return
    repo.stage_weights(first)
    made = repo.commit("first")
    writer = repo if ways == "one after the other" else Repository(repo.path)
    writer.stage_weights(second)
    writer.commit("second")
    fresh = Repository(repo.path)
    assert read(fresh, made.commit_hash)["w"] == one and read(fresh)["w"] == two


def test_a_known_seed_is_what_it_would_take(repo: Repository) -> None:
    """The fingerprint's seed is secret and another one in each process: a pair made for one is none in the next."""
    code = "from coral.ids import fingerprint; import sys; d = bytes.fromhex(sys.argv[1]); print(fingerprint(d).hex())"
    one, two = colliding()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    prints = [
        subprocess.run(
            [sys.executable, "-c", code, data.hex()], env=environment, capture_output=True, check=True
        ).stdout
        for data in (one, one, two)
    ]
    assert len(set(prints)) == 3
