"""Archives made so that their parts overlap: restored byte for byte all the same."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from coral.containers import parse, restore
from coral.errors import FormatError
from coral.testing.contracts.containers import Memory
from tests.containers.helpers import kept, rebuilt, roundtrip

CRC_AT = 14


def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def local(name: bytes, data: bytes, extra: int = 0) -> bytes:
    """A stored member's header; ``extra`` bytes are said to follow its name."""
    sizes = len(data), len(data), len(name), extra
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), *sizes) + name


def archive(body: bytes, members: list[tuple[bytes, bytes, int]], flags: int = 0) -> bytes:
    """An archive of these members: name, bytes, and where the header is."""
    directory = b""
    for name, data, at in members:
        sizes = len(data), len(data), len(name)
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, flags, 0, 0, 0, zlib.crc32(data), *sizes, 0, 0, 0, 0, 0, at
        )
        directory += name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


@pytest.mark.parametrize("inside", range(36))
def test_a_header_inside_of_a_member(tmp_path: Path, inside: int) -> None:
    """A member's header that begins in the tensor before it: what is computed never lands in a tensor."""
    second = npy(np.arange(64, dtype="u1"))
    header = local(b"b.npy", second)
    base = np.zeros(100, "u1")
    base[100 - inside :] = np.frombuffer(header[:inside], "u1")
    first = npy(base)
    body = local(b"a.npy", first) + first + header[inside:] + second
    at = len(local(b"a.npy", first)) + len(first) - inside
    path = tmp_path / "x.npz"
    path.write_bytes(archive(body, [(b"a.npy", first, 0), (b"b.npy", second, at)]))
    assert roundtrip(path)[0] == ("npz" if inside <= CRC_AT else "opaque")


def test_a_header_inside_of_a_tensors_head(tmp_path: Path) -> None:
    """A member's header in what stands before the tensor of another: its CRC is part of what the other's is made of."""
    second = npy(np.arange(64, dtype="u1"))
    tensor = b"x" * 50
    header = local(b"b.npy", second, extra=len(tensor))
    first = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + tensor
    start = local(b"a.npy", first)
    path = tmp_path / "x.npz"
    members = [(b"a.npy", first, 0), (b"b.npy", second, len(start) + 10)]
    path.write_bytes(archive(start + first + second, members))
    assert roundtrip(path)[0] == "opaque"


def test_what_is_computed_from_what_is_computed(tmp_path: Path) -> None:
    """torch's own hash in whose names the CRC of a tensor stands: neither can be made again without the other."""
    stream = io.BytesIO()
    torch.save({"w": torch.arange(9.0)}, stream)
    with zipfile.ZipFile(stream) as source:
        pickle, data = (source.read(f"archive/{name}") for name in ("data.pkl", "data/0"))
    tensor = local(b"archive/data/0", data) + data
    combined = 0
    for crc in (zlib.crc32(pickle), zlib.crc32(data)):
        combined ^= (crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & 0xFFFFFFFFFFFFFFFF
    for names in (b"0" * 20, b"PK\7\x08" + zlib.crc32(data).to_bytes(4, "little") + b"0" * 12):
        own = names + b"%020d" % combined
        # The tensor lies between the header and the bytes of the member that holds the hash.
        last = local(b"archive/.data/serialization_id", own, extra=len(tensor))
        first = local(b"archive/data.pkl", pickle) + pickle
        members = [
            (b"archive/data.pkl", pickle, 0),
            (b"archive/.data/serialization_id", own, len(first)),
            (b"archive/data/0", data, len(first) + len(last)),
        ]
        path = tmp_path / "x.pt"
        path.write_bytes(archive(first + last + tensor + own, members, flags=8))
        assert roundtrip(path)[0] == ("torch" if names.isdigit() else "opaque")


def stored(tmp_path: Path) -> Path:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(5), b=np.ones((2, 2), np.float32))
    return path


def test_a_skeleton_that_computes_inside_of_a_tensor(tmp_path: Path) -> None:
    """A skeleton from elsewhere must not change what the manifest says the tensors are."""
    with parse(stored(tmp_path)) as parsed:
        manifest, contents = kept(parsed)
        assert parsed.skeleton is not None
        magic, head, literal = parsed.skeleton.split(b"\n", 2)
        fields = json.loads(head)
        name, start, prefix, _ = fields["places"][0]
        for field in (start, start - 3, start + 37, fields["size"] - 3):
            fields["places"][0] = [name, start, prefix, [field]]
            with pytest.raises(FormatError, match="zip skeleton"):
                rebuilt(manifest, b"\n".join([magic, json.dumps(fields).encode(), literal]), contents)


def test_the_version_of_a_skeleton_comes_first(tmp_path: Path) -> None:
    """A skeleton of another version is called that, whatever follows, and none of it is read."""
    with parse(stored(tmp_path)) as parsed:
        manifest, _ = kept(parsed)
        for skeleton in (b"coral zip skeleton 2\nrubbish", b"rubbish"):
            with pytest.raises(FormatError, match="unknown version"):
                restore(manifest, skeleton, lambda _: iter(()), Memory())


def test_archives_with_much_beside_their_tensors_are_opaque(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No skeleton is longer than the limit that a reader holds it to."""
    path = stored(tmp_path)
    with parse(path) as parsed:
        assert parsed.skeleton is not None
        length = len(parsed.skeleton)
    monkeypatch.setattr("coral.containers.zips.SKELETON_LIMIT", length)
    assert roundtrip(path)[0] == "npz"
    monkeypatch.setattr("coral.containers.zips.SKELETON_LIMIT", length - 1)
    assert roundtrip(path)[0] == "opaque"
