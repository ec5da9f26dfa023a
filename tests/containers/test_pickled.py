"""The pickle of a torch file: bounded in all whatever it says, and the same names in every process."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.containers import parse, pickled
from coral.containers.file import NotThisError
from coral.containers.pickled import PICKLE_LIMIT, RefusedError, describe
from coral.containers.torchfile import read_pickles
from tests.clock import at_most
from tests.containers.helpers import roundtrip

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
    b"0X\3\0\0\0cpuK\1tQK\0)))\x89NtR"
)
NONES = b"(" + b"N" * 100_000
ORDERED = b"ccollections\nOrderedDict\n"
PAIRS = b"(" + b"".join(b"J" + number.to_bytes(4, "little") + b"N\x86" for number in range(50_000))
ITEMS = b"(" + b"".join(b"J" + number.to_bytes(4, "little") + b"N" for number in range(50_000))
MANY_MORE = b"q\x000(" + b"h\0" * 1_000 + b"t"
OBJECT = b"ca\nb\n)\x81"
MODULE = OBJECT + b"q%c}X\x08\0\0\0_modules}(X\1\0\0\0ah%cX\1\0\0\0bh%cusb0"


def meeting(made: bytes, count: int, filled: bytes) -> bytes:
    """So many values, each of which holds all of them."""
    makes = b"".join(made + b"q%c0" % n for n in range(count))
    items = b"".join(b"K%ch%c" % (n, n) for n in range(count))
    return makes + b"".join(b"h%c(" % n + items + filled + b"0" for n in range(count)) + b"h\0"


BOMBS = {
    "build": b"]q\0" + NONES + b"e0}" + b"h\0b" * 1_000_000,
    "additems": b"]q\0" + NONES + b"e0\x8f" + b"(h\0\x90" * 1_000_000,
    "reduce": b"]q\0" + NONES + b"e0" + b"ctorch\nSize\nh\0\x85R0" * 1_000_000,
    "copies": b"]q\0" + PAIRS + b"e\x85q\x010" + ORDERED + b"q\x020" + b"h\2h\1R" * 1_000_000,
    "tuple keys": NONES + b"tq\x000" + b"}h\0Ns0" * 1_000_000 + b"N",
    "huge number": b"\x8b" + (1 << 23).to_bytes(4, "little") + b"\1" * (1 << 23) + b"q\x000" + b"}h\0Ns0" * 100_000,
    "copied dicts": b"}" + ITEMS + b"u\x85q\x010" + ORDERED + b"q\x020" + b"h\2h\1R" * 1_000,
    "long names": b"}X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + TENSOR + MANY_MORE + b"s",
    "names by str": b"]q\0" + b"".join(b"0]q%c(h%ch%ce" % (n + 1, n, n) for n in range(60)) + b"X\1\0\0\0a\x93",
    "objects": b"]q\0" + NONES + b"e0](" + (OBJECT + b"h\0b") * 100_000 + b"e",
    "states": b"]q\0" + NONES + b"e0" + OBJECT + b"h\0b" * 1_000_000,
    "modules": OBJECT + b"q\x000" + b"".join(MODULE % (n + 1, n, n) for n in range(60)) + b"h\x3c",
    "dicts of each other": meeting(b"}", 60, b"u"),
    "empties": b"}" * 20_000_000,
    "memo": b"N" + b"\x94" * 20_000_000,
    "steps": b"N0" * 10_000_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_is_bounded_in_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are cheap one by one, a million of them, are refused when an eighth of the budget is spent."""
    monkeypatch.setattr(pickled, "_BUDGET", pickled._BUDGET // 8)
    pickle = b"\x80\x02" + BOMBS[kind] + b"."
    assert len(pickle) <= PICKLE_LIMIT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_most(5), pytest.raises(RefusedError, match=r"more work than any|is damaged"):
        describe(pickle, "data/")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 256 << 20


@pytest.mark.parametrize("opcode", [b"p", b"g"])
@given(index=st.integers(max_value=-1) | st.integers(min_value=1 << 32))
def test_places_in_the_memo_cannot_be_made_to_collide(opcode: bytes, index: int) -> None:
    """Written as text a place could be any number, of which thousands have one hash; none that no pickler gives is."""
    before = b"" if opcode == b"p" else b"Np0\n"
    with pytest.raises(RefusedError, match="damaged"):
        describe(b"N" + before + opcode + b"%d\n" % index + b".", "")


@given(st.integers(0, (1 << 32) - 1))
def test_any_place_that_the_binary_opcodes_can_name_is_one(index: int) -> None:
    """A place in the memo means the same, written as text or in four bytes."""
    put, got = b"p%d\n" % index, b"j" + index.to_bytes(4, "little")
    assert [path for path, _ in describe(TENSOR + put + b"0" + got + b".", "").tensors] == ["tensor"]


STEPS = [TENSOR, OBJECT, b"(", b")", b"]", b"}", b"N", b"K\1", b"X\1\0\0\0w", b"q\0", b"h\0", b"\x85", b"\x86"]
STEPS += [b"t", b"e", b"a", b"u", b"s", b"b", b"R", b"\x81", b"\x92", b"0", b"1", b"2", b"Q", b"\x8f", b"\x90", b"o"]
STEPS += [b"d", b"l", b"ca\nb\n", b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n", b"ia\nb\n"]


@given(st.lists(st.sampled_from(STEPS), max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_opcodes_are_an_answer(steps: list[bytes]) -> None:
    """Whatever a pickle does in whatever order, it is a description or a refusal."""
    try:
        found = read_pickles(b"\x80\x02(" + b"".join(steps) + b"t.")
    except NotThisError as error:
        assert "pickle" in str(error)
    else:
        assert len({name for name, _ in found.tensors}) == len(found.tensors)


def test_objects_that_hold_each_other_are_walked_once() -> None:
    """Hundreds of objects, each with all of them as attributes, are no more work than what the pickle says."""
    with at_most(5):
        found = describe(b"\x80\x02" + meeting(OBJECT, 250, b"u") + b"(X\1\0\0\0w" + TENSOR + b"u.", "")
    assert [path for path, _ in found.tensors] == ["w"]


def test_tensors_of_one_path_are_numbered_quickly() -> None:
    """A hundred thousand tensors whose dotted paths are all equal is no work squared."""
    # Every way of cutting "a.a.a" into keys is a path of its own.
    pickle = b"\x80\x02" + TENSOR + b"q\x000"
    keys = [b"X" + (2 * n - 1).to_bytes(4, "little") + b".".join([b"a"] * n) for n in range(1, 16)]
    for depth in range(1, 16):
        items = b"".join(keys[n - 1] + b"h%c" % (depth - n) for n in range(1, depth + 1))
        pickle += b"}q%c(" % depth + items + b"u" + b"0"
    with at_most(3):
        names = [name for name, _ in read_pickles(pickle + b"h\x0f.").tensors]
    assert len(names) == len(set(names)) == 1 << 14 and names[1] == names[0] + "~2"


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


NAMELESS: dict[str, Any] = {
    "device": torch.device("cpu"),
    "size": torch.Size([3]),
    "numpy": np.float64(0.5),
    "set": frozenset({"b"}),
    "in a tuple": ("a", torch.device("cpu")),
}


@pytest.mark.parametrize("kind", NAMELESS)
def test_no_name_below_a_key_without_a_name(tmp_path: Path, kind: str) -> None:
    """A key that has no text hides what stands below it, and nothing else; the storages are records all the same."""
    key = NAMELESS[kind]
    plain = {"w": torch.ones(2), "seen": {key: 1, "x": [3]}, "of": {key: {"deep": [2, (3, {})]}}}
    container, found = roundtrip(saved(plain, tmp_path / "x.pt"))
    assert container == "torch" and list(found) == ["w"]
    below = {"a": {key: {"b": [torch.ones(4)]}}, "w": torch.ones(3)}
    assert list(roundtrip(saved(below, tmp_path / "x.pt"))[1]) == ["w"]
    with parse(tmp_path / "x.pt") as parsed:
        assert [(t.name, t.dtype, t.shape) for t in parsed.tensors] == [("data/0", "F32", (4,)), ("w", "F32", (3,))]


def test_names_of_plain_keys(tmp_path: Path) -> None:
    """Numbers, None and flat tuples are their text; keys of one text in one dict are numbered."""
    keys: list[Any] = [1, "1", 2.5, None, False, ("a", 0), -(1 << 63)]
    value = {key: torch.full((1,), float(number)) for number, key in enumerate(keys)}
    names = ["1", "1~2", "2.5", "None", "False", "('a', 0)", str(-(1 << 63))]
    path = saved(value, tmp_path / "x.pt")
    assert list(roundtrip(path)[1]) == names
    code = "import sys, pathlib, coral.containers as c\nwith c.parse(pathlib.Path(sys.argv[1])) as file:\n"
    code += "    print([tensor.name for tensor in file.tensors])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(names)


def test_a_huge_number_as_a_key_is_no_crash(tmp_path: Path) -> None:
    """A key of more digits than Python writes out has no name."""
    path = saved({10**5000: {"w": torch.ones(1)}, "v": torch.ones(2)}, tmp_path / "x.pt")
    assert list(roundtrip(path)[1]) == ["v"]
