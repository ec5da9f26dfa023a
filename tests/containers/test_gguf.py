"""GGUF files are tensors by name; what is not understood, or lies, is kept whole, and what is cut short is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coral.containers import BytesFile, ParsedFile, TensorView, parse_file
from coral.containers.container import HEAD_BYTES
from coral.containers.file import NotThisError
from coral.containers.gguf import Gguf
from coral.containers.source import FileRange
from coral.errors import FormatError
from tests.containers.helpers import gguf, kept, rebuilt, roundtrip, text

FLOATS = (0, (3, 2), struct.pack("<6f", *range(6)))
BLOCKS = (12, (512, 3), bytes(range(144)) * 6)


def _parsed(data: bytes, name: str = "x.gguf") -> ParsedFile:
    return parse_file(BytesFile(data), name=name)


def test_tensors_by_name(tmp_path: Path) -> None:
    """A tensor has its name, type and shape, the outermost axis first; blocks are rows of bytes, and named so."""
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf({"token_embd.weight": FLOATS, "blk.0.q": BLOCKS, "n": (27, (1,), bytes(8))}))
    container, found = roundtrip(path)
    assert container == "gguf"
    assert found == {
        "token_embd.weight": TensorView("token_embd.weight", "token_embd.weight", "F32", (2, 3)),
        "blk.0.q.Q4_K": TensorView("blk.0.q.Q4_K", "blk.0.q.Q4_K", "U8", (3, 288)),
        "n": TensorView("n", "n", "I64", (1,)),
    }


KINDS = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
SIZES = {"F32": 4, "F16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BF16": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_each_type_that_coral_has(kind: int) -> None:
    """Numbers that coral has a type for are tensors of that type, with their own bytes."""
    data = bytes(range(3 * SIZES[KINDS[kind]]))
    (source,) = _parsed(gguf({"w": (kind, (3,), data)})).tensors
    assert (source.name, source.dtype, source.shape, bytes(source.read(0, 99))) == ("w", KINDS[kind], (3,), data)


def test_names_never_clash() -> None:
    """A tensor that is called as another one's blocks keeps its name."""
    names = [source.name for source in _parsed(gguf({"w": BLOCKS, "w.Q4_K": FLOATS})).tensors]
    assert names == ["w.Q4_K~2", "w.Q4_K"]


def test_the_skeleton_changes_only_with_the_structure() -> None:
    """Two files of one structure have one skeleton, and the padding is in it."""
    one = _parsed(gguf({"a": FLOATS, "b": FLOATS}))
    other = _parsed(gguf({"a": (0, (3, 2), b"x" * 24), "b": FLOATS}))
    assert one.skeleton == other.skeleton is not None
    assert _parsed(gguf({"a": FLOATS, "b": FLOATS}, pad=b"\1")).skeleton != one.skeleton


def _pair(kind: int, value: bytes) -> bytes:
    return text("odd") + struct.pack("<I", kind) + value


PLAIN = gguf({"a": FLOATS, "b": BLOCKS})
KEPT_WHOLE = {
    "big-endian": PLAIN[:4] + b"\0\0\0\3" + PLAIN[8:],
    "version 1": gguf({"a": FLOATS}, version=1),
    "no tensors": gguf({}),
    "an unknown type of tensor": gguf({"a": (4, (32,), bytes(20))}),
    "rows that are no whole blocks": gguf({"a": (2, (33,), bytes(18))}),
    "an unknown type of value": gguf({"a": FLOATS}, pairs=[_pair(13, b"")]),
    "arrays of arrays": gguf({"a": FLOATS}, pairs=[_pair(9, struct.pack("<IQ", 9, 0))]),
    "an alignment of 3": gguf({"a": FLOATS}, pairs=[text("general.alignment") + struct.pack("<II", 4, 3)]),
    "an alignment of 0": gguf({"a": FLOATS}, pairs=[text("general.alignment") + struct.pack("<II", 4, 0)]),
    "an alignment that is text": gguf(
        {"a": FLOATS}, pairs=[text("general.alignment") + struct.pack("<I", 8) + text("")]
    ),
    "five dimensions": gguf({"a": (0, (1, 1, 1, 1, 1), bytes(4))}),
    "a name that is no text": PLAIN.replace(text("a"), text(b"\xff")),
    "two of one name": PLAIN.replace(text("b"), text("a")),
    "tensors that overlap": gguf({"a": (0, (16,), bytes(32)), "b": FLOATS}),
    "a place that is not aligned": PLAIN.replace(struct.pack("<IQ", 12, 32), struct.pack("<IQ", 12, 33)),
    "a shape that nothing has": gguf({"a": (0, (0, 1 << 63), b"")}),
    "two billion tensors": PLAIN[:8] + struct.pack("<Q", 1 << 31) + PLAIN[16:],
}


@pytest.mark.parametrize("what", KEPT_WHOLE)
def test_what_is_not_understood_is_kept_whole(what: str) -> None:
    """A file that is another's, or lies, is one span of bytes, and it is said why."""
    data = KEPT_WHOLE[what]
    assert Gguf().recognises(data[:HEAD_BYTES])
    with pytest.raises(NotThisError):
        Gguf().parse(FileRange(BytesFile(data), 0, len(data)))
    parsed = _parsed(data)
    assert parsed.container == "opaque" and parsed.reason
    assert _parsed(data, "").reason == ""


def test_a_file_that_is_cut_short_is_refused() -> None:
    """Wherever a file ends before its tensors do, it is refused under its own name, with what to do."""
    for length in range(4, len(PLAIN)):
        with pytest.raises(FormatError, match="cut short") as caught:
            _parsed(PLAIN[:length])
        assert "--opaque" in (caught.value.hint or "")


def test_a_skeleton_that_is_cut_is_refused() -> None:
    """What stands between tensors is not left out of a file in silence."""
    parsed = _parsed(gguf({"a": FLOATS, "b": FLOATS}, pad=b"\7"))
    manifest, contents = kept(parsed)
    assert parsed.skeleton is not None
    rebuilt(manifest, parsed.skeleton, contents)
    for length in range(len(parsed.skeleton) - 8):  # of which the last 8 stand behind all tensors
        with pytest.raises(FormatError):
            rebuilt(manifest, parsed.skeleton[:length], contents)


def test_padding_at_the_end_may_be_missing() -> None:
    """Some writers leave out the last padding: no tensor misses anything."""
    assert _parsed(gguf({"a": FLOATS})[:-8]).container == "gguf"


def test_counts_are_believed_as_far_as_there_are_bytes() -> None:
    """Lengths and counts in places that nobody checked take neither time nor memory."""
    for at in (8, 16, 24, 120):
        for number in (1 << 20, 1 << 40, (1 << 64) - 1):
            lying = PLAIN[:at] + struct.pack("<Q", number) + PLAIN[at + 8 :]
            try:
                _parsed(lying)
            except FormatError as error:
                assert "cut short" in error.message


def test_an_index_longer_than_the_first_read() -> None:
    """A vocabulary of many words is read as far as it goes, and restores."""
    words = b"".join(text(f"word {n}") for n in range(20_000))
    pairs = [text("words") + struct.pack("<IIQ", 9, 8, 20_000) + words]
    data = gguf({"a": FLOATS}, pairs=pairs)
    assert len(data) > 1 << 18
    parsed = _parsed(data)
    assert parsed.container == "gguf" and len(parsed.skeleton or b"") == len(data) - 24
