"""Format version 1 stays readable: a manifest, a pack and an index that were written once and are kept.

``tests/data/v1`` was made by :func:`make_golden`, called once as ``make_golden(Path("tests/data/v1"))``. It must never
be made again under the same name: a new format version gets a folder of its own beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from blake3 import blake3

from coral.format.codecs import PLANES, RAW
from coral.format.manifest import Manifest, Skeleton
from coral.format.pack import KIND_CHUNK, KIND_LIST
from coral.objects import BytesSource, ChunkStore
from coral.storage.folder import Folder

GOLDEN = Path(__file__).parents[1] / "data" / "v1"


class Tensor:
    """A tensor of given bytes."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.name, self.dtype, self.shape, self.data = name, dtype, shape, data

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


def noise(seed: str, length: int) -> bytes:
    """Bytes that no codec shrinks, the same everywhere."""
    return blake3(seed.encode()).digest(length)


def floats(count: int) -> bytes:
    """32-bit elements of noise under two bytes that repeat, as trained weights are."""
    parts = noise("mantissa", 2 * count)
    return b"".join(parts[2 * n : 2 * n + 2] + bytes([n % 3, 0xBC]) for n in range(count))


def tensors() -> list[Tensor]:
    """One tensor of each way of being stored: planes, raw, matches, inline, empty, a list of chunks, packed."""
    return [
        Tensor("bf16.%\n\té", "BF16", (64, 8), b"".join(noise(str(n), 1) + b"\x3c" for n in range(512))),
        Tensor("big", "U8", (3, 600_000), bytes(1_800_000)),
        Tensor("empty", "F32", (0, 5), b""),
        Tensor("packed", "F4", (3, 64), noise("f4", 96)),
        Tensor("planes", "F32", (32, 16), floats(512)),
        Tensor("raw", "I64", (40,), noise("raw", 320)),
        Tensor("step", "I64", (), (7).to_bytes(8, "little")),
        Tensor("text", "U8", (900,), b"bytes have ids; " * 56 + b"1234"),
    ]


def make_golden(folder: Path) -> None:
    """Write the golden files of the format as it is now."""
    store = ChunkStore(Folder(folder / "packs"), folder / "lock")
    with store.writer() as writer:
        records = writer.write_tensors(tensors())
        (skeleton,) = writer.write_tensors([BytesSource("skeleton", noise("skeleton", 50))])
        writer.seal()
    metadata = (("format", "pt"), ("a key", "a\nvalue % é"), ("", ""))
    manifest = Manifest("torch", tuple(records), Skeleton(skeleton.content, 50), metadata)
    (folder / "torch.manifest").write_bytes(manifest.to_bytes())
    (folder / "canonical.manifest").write_bytes(Manifest("safetensors", tuple(records)).to_bytes())
    (folder / "lock").unlink()


def test_manifests_of_version_1() -> None:
    """The golden manifests read, say what was written, and are written the same today."""
    data = (GOLDEN / "torch.manifest").read_bytes()
    manifest = Manifest.from_bytes(data)
    assert manifest.to_bytes() == data
    assert manifest.container == "torch"
    assert manifest.metadata == (("format", "pt"), ("a key", "a\nvalue % é"), ("", ""))
    assert [record[:3] for record in manifest.records] == [(t.name, t.dtype, t.shape) for t in tensors()]
    plain = Manifest.from_bytes((GOLDEN / "canonical.manifest").read_bytes())
    assert (plain.container, plain.skeleton, plain.metadata) == ("safetensors", None, ())
    assert plain.records == manifest.records


def read_all(packs: Path, lock: Path) -> dict[str, bytes]:
    """Every tensor of the golden manifest, read from these packs."""
    store = ChunkStore(Folder(packs), lock)
    manifest = Manifest.from_bytes((GOLDEN / "torch.manifest").read_bytes())
    assert manifest.skeleton is not None
    assert store.get_bytes(*manifest.skeleton) == noise("skeleton", 50)
    return {record.name: b"".join(map(bytes, store.stream([record]))) for record in manifest.records}


def test_packs_of_version_1(tmp_path: Path) -> None:
    """The golden pack reads through its index, and without a sound one."""
    expected = {tensor.name: tensor.data for tensor in tensors()}
    assert read_all(GOLDEN / "packs", tmp_path / "lock") == expected
    shutil.copytree(GOLDEN / "packs", tmp_path / "packs")
    (index,) = (tmp_path / "packs").glob("*.idx")
    index.chmod(0o644)
    index.write_bytes(b"CORAL INDEX 000\n")
    assert read_all(tmp_path / "packs", tmp_path / "lock") == expected


def test_the_golden_pack_holds_every_kind(tmp_path: Path) -> None:
    """The golden pack is worth its name: raw, planes and a chunk list are all in it."""
    (pack,) = ChunkStore(Folder(GOLDEN / "packs"), tmp_path / "lock").packs.packs
    kinds = {(entry.kind, entry.codec) for _, entry in pack.index.items()}
    assert kinds == {(KIND_CHUNK, RAW), (KIND_CHUNK, PLANES), (KIND_LIST, RAW)}


def test_ids_of_version_1(tmp_path: Path) -> None:
    """The same tensors get the same ids today: cuts, hashes and lists are part of the format."""
    store = ChunkStore(Folder(tmp_path / "packs"), tmp_path / "lock")
    with store.writer() as writer:
        records = writer.write_tensors(tensors())
    assert tuple(records) == Manifest.from_bytes((GOLDEN / "torch.manifest").read_bytes()).records
