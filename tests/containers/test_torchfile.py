"""Odd values in torch's files hide no tensor but their own, and every way that torch writes files is read."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coral.containers import TensorView, begins_with_its_index, parse, parse_file, pickled, views
from coral.containers.file import NotThisError
from coral.containers.source import BytesFile, FileRange
from coral.containers.torchfile import read_pickles
from coral.containers.torchlegacy import is_legacy
from coral.containers.torchlegacy import parse as parse_legacy
from coral.containers.torchzip import parse as parse_zip
from coral.errors import FormatError
from coral.format.manifest import Manifest
from tests.containers.helpers import kept, rebuilt, roundtrip

LEGACY = {"_use_new_zipfile_serialization": False}
GOLDEN = Path(__file__).parents[1] / "data" / "v1-files"


class Colour(enum.Enum):
    RED = 1


class Registry(dict[str, Any]):
    """A mapping of a class of its own."""


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Record:
    w: Any
    lr: float = 0.1


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    """Has a list as its state."""

    w: Any


class Slots:
    __slots__ = ("w",)

    def __init__(self, w: Any) -> None:
        self.w = w


class Stateful:
    """Has one tensor as its state."""

    def __init__(self, w: Any) -> None:
        self.w = w

    def __getstate__(self) -> Any:
        return self.w


class Circle:
    """Holds itself, as a module that knows its trainer does."""

    def __init__(self, w: Any) -> None:
        self.me, self.around, self.w = self, [self], w


class Evil:
    """Would create a file if its pickle were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


def ring() -> dict[str, Any]:
    value: dict[str, Any] = {"in": torch.ones(1)}
    value["self"] = value
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = [torch.ones(1)]
    for _ in range(depth):
        value = [value]
    return value


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(4.0), 0.1, 3, torch.qint8)


def tagged(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "x"  # type: ignore[attr-defined]
    return tensor


def alone(dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(3, dtype=dtype)


W = torch.arange(3.0)
ODD: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "namespace": (lambda: argparse.Namespace(lr=1, w=W), ["x.w"]),
    "path": (lambda: [Path("a"), W], ["x.1"]),
    "enum": (lambda: {"c": Colour.RED, "w": W}, ["x.w"]),
    "enum as a key": (lambda: {Colour.RED: W, "w": torch.ones(1)}, ["x.w"]),
    "a dict's subclass": (lambda: Registry(w=W), ["x.w"]),
    "partial": (lambda: functools.partial(torch.add, W, alpha=torch.ones(2)), ["x.1.0", "x.2.alpha"]),
    "deque": (lambda: collections.deque([1, W], maxlen=3), ["x.1"]),
    "range": (lambda: {"r": range(3), "s": slice(1), "w": W}, ["x.w"]),
    "named tuple": (lambda: Pair(W, 1), ["x.0"]),
    "dataclass": (lambda: Record(W), ["x.w"]),
    "dataclass with slots": (lambda: Slotted(W), ["x.0"]),
    "slots": (lambda: Slots(W), ["x.w"]),
    "a state of its own": (lambda: Stateful(W), ["x.0"]),
    "circle": (lambda: Circle(W), ["x.w"]),
    "a dict in itself": (ring, ["x.in"]),
    "nested too deep": (lambda: nested(300), []),
    "set of tensors": (lambda: {W}, []),
    "times": (lambda: {"t": datetime.datetime(2020, 1, 1), "w": W}, ["x.w"]),
    "function": (lambda: {"f": nested, "c": Path, "w": W}, ["x.w"]),
    "numpy": (lambda: {"n": np.arange(3), "d": np.dtype("f4"), "r": np.random.RandomState(0), "w": W}, ["x.w"]),
    "bytes": (lambda: {"b": bytearray(b"x"), "c": 1j, "e": ValueError("x"), "w": W}, ["x.w"]),
    "sparse": (lambda: torch.eye(3).to_sparse(), ["x.1.0", "x.1.1"]),
    "quantised": (quantised, []),
    "complex128": (lambda: alone(torch.complex128), []),
    "conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), []),
    "storage": (lambda: torch.ones(4).untyped_storage(), []),
    "typed storage": (lambda: torch.ones(4).storage(), []),
    "frozen set": (lambda: {"s": frozenset({W}), "w": W[:1]}, ["x.w"]),
    "with an attribute": (lambda: tagged(torch.ones(2)), ["x"]),
    "sparse with an attribute": (lambda: tagged(torch.eye(3).to_sparse()), ["x.2.1.0", "x.2.1.1"]),
    "of a class of its own": (lambda: torch.ones(2).as_subclass(Marked), ["x"]),
    "parameters": (lambda: torch.nn.ParameterDict({"a": torch.nn.Parameter(W)}), ["x.a"]),
    "evil": (lambda: Evil(Path("executed")), []),
}


def checkpoint(odd: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model": torch.nn.Linear(2, 3).state_dict(), "x": odd, "last": [torch.ones(5)]}


def shown(path: Path) -> Iterator[tuple[TensorView, torch.Tensor]]:
    """Every tensor that a file shows, and its value."""
    from coral.integrations.torch import FRAMEWORK

    with parse(path) as parsed:
        assert parsed.container == "torch"
        manifest, contents = kept(parsed)
        for name, view in views(manifest, parsed.skeleton).items():
            record = manifest[view.record_name]
            assert (name, view.dtype) == (view.name, record.dtype)
            whole, data = FRAMEWORK.empty(record.dtype, record.shape)
            data[:] = contents[record.name]
            got = FRAMEWORK.view(whole, view.shape, view.stride, view.offset)
            assert isinstance(got, torch.Tensor)
            yield view, got


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, LEGACY], ids=str)
def test_an_odd_value_hides_no_other_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    """Whatever stands beside them, tensors keep their names, and so do those inside that have a path; nothing runs."""
    monkeypatch.chdir(tmp_path)
    make, inside = ODD[kind]
    torch.save(checkpoint(make()), tmp_path / "x.pt", **options)
    container, found = roundtrip(tmp_path / "x.pt")
    assert container == "torch"
    assert list(found) == ["model.weight", "model.bias", *inside, "last.0"]
    for name in ("model.weight", "model.bias", "last.0"):
        assert found[name].record_name == name and found[name].stride is None
    assert not (tmp_path / "executed").exists()


def test_the_first_binary_protocol(tmp_path: Path) -> None:
    """Python's older ways to write lists, dicts and objects are read, too."""
    torch.save(checkpoint([argparse.Namespace(w=W), Circle(W)]), tmp_path / "x.pt", pickle_protocol=1)
    names = ["model.weight", "model.bias", "x.0.w", "x.1.w", "last.0"]
    assert list(roundtrip(tmp_path / "x.pt")[1]) == names


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("complex128", ("data/2", "F64", (6,))),
        ("quantised", ("data/2", "I8", (4,))),
        ("conjugate", ("data/2", "C64", (2,))),
        ("storage", ("data/2", "U8", (16,))),
        ("typed storage", ("data/2", "F32", (4,))),
    ],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_what_cannot_be_shown_is_a_storage(
    tmp_path: Path, kind: str, record: tuple[str, str, tuple[int, ...]], options: dict[str, Any]
) -> None:
    """A tensor of a type that coral lacks is no tensor of its name, and its storage is a record, so that it dedups."""
    torch.save(checkpoint(ODD[kind][0]()), tmp_path / "x.pt", **options)
    with parse(tmp_path / "x.pt") as parsed:
        assert record in [(source.name, source.dtype, source.shape) for source in parsed.tensors]


class Tied(torch.nn.Module):
    """Modules in modules, one of them in two places, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        self.head = self.body[0]
        self.parent = [self]
        self.register_buffer("mean", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.mean, torch.Tensor)
        found: torch.Tensor = self.head(self.body(x))
        return found + self.mean * torch.tensor([2.0, 3.0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_pickled_module_has_the_names_of_its_state_dict(tmp_path: Path, options: dict[str, Any]) -> None:
    """A whole module shows what its state_dict holds, by the same names, ties included."""
    module = Tied()
    torch.save(module, tmp_path / "x.pt", **options)
    found = {view.name: value for view, value in shown(tmp_path / "x.pt")}
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named_tensors(tmp_path: Path) -> None:
    """A traced module shows its parameters by attribute, and its constants; one skeleton for one structure."""
    skeletons = []
    path = tmp_path / "x.pt"
    traced = torch.jit.trace(Tied().eval(), torch.ones(1, 2))
    for _ in range(2):
        with torch.no_grad():
            traced.mean.add_(1)
        torch.jit.save(traced, path)
        roundtrip(path)
        found = {view.name: value for view, value in shown(path)}
        expected = traced.state_dict()
        assert found.keys() == {*expected, "constants.0"}
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert found["constants.0"].tolist() == [2.0, 3.0]
        with parse(path) as parsed:
            skeletons.append(parsed.skeleton)
    assert skeletons[0] == skeletons[1]


@pytest.mark.filterwarnings("ignore")
def test_frozen_torchscript_is_its_constants(tmp_path: Path) -> None:
    """A frozen module has its weights in its constants alone."""
    frozen = torch.jit.freeze(torch.jit.trace(Tied().eval(), torch.ones(1, 2)))
    torch.jit.save(frozen, tmp_path / "x.pt")
    container, found = roundtrip(tmp_path / "x.pt")
    assert container == "torch" and found and all(name.startswith("constants.") for name in found)


def test_a_legacy_file_shows_what_was_saved(tmp_path: Path) -> None:
    """Views, ties, scalars, bf16 and unsigned: what is shown is what was saved, by place, in every protocol."""
    base = torch.randn(4, 6)
    value = {
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "tied": [base, base],
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "u16": torch.ones(3, dtype=torch.uint16),
    }
    for protocol in (2, 3, 4, 5):
        torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol, **LEGACY)
        roundtrip(tmp_path / "x.pt")
        found = {view.name: tensor for view, tensor in shown(tmp_path / "x.pt")}
        assert found.keys() == {"view", "transposed", "tied.0", "tied.1", "scalar", "empty", "bf16", "u16"}
        for name, tensor in found.items():
            expected: Any = value
            for key in name.split("."):
                expected = expected[int(key) if key.isdigit() else key]
            assert torch.equal(tensor, expected), name


leaves = st.builds(torch.full, st.lists(st.integers(0, 3), max_size=3).map(tuple), st.integers(0, 9).map(float))
wrappers = (Record, Slotted, Slots, Stateful, Circle, lambda w: argparse.Namespace(w=w), lambda w: Pair(1, w))
values = st.recursive(
    st.one_of(leaves, st.sampled_from([1, None, Path("a"), Colour.RED, Path, {1}, "text"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3),
        st.builds(lambda make, value: make(value), st.sampled_from(wrappers), inner),
        st.builds(collections.deque, st.lists(inner, max_size=2)),
        st.dictionaries(st.text("ab", max_size=1), inner, max_size=2).map(Registry),
    ),
    max_leaves=8,
)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, in the order in which they stand."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple | collections.deque):
        inner = list(value)
    else:
        inner = [value.w] if hasattr(value, "w") else []
    return [tensor for item in inner for tensor in tensors_in(item)]


@given(values, st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_tensor_of_any_value_is_shown(tmp_path_factory: pytest.TempPathFactory, value: Any, legacy: bool) -> None:
    """Tensors in whatever values have names that are all different, hold what was saved, and restore."""
    path = tmp_path_factory.getbasetemp() / "any.pt"
    expected = tensors_in(value)
    torch.save(value, path, **(LEGACY if legacy else {}))
    container, _ = roundtrip(path)
    if not expected:
        assert container == "opaque"
        return
    found = [(view.name, tensor) for view, tensor in shown(path)]
    if len({id(tensor) for tensor in expected}) == len(expected):
        assert len(found) == len(expected)
        assert all(torch.equal(got, wanted) for (_, got), wanted in zip(found, expected, strict=True))
    # The same structure has the same names, whatever stands in it.
    for tensor in expected:
        tensor += 1
    torch.save(value, path, **(LEGACY if legacy else {}))
    assert [view.name for view, _ in shown(path)] == [name for name, _ in found]


def test_storages_of_a_legacy_file_keep_their_names(tmp_path: Path) -> None:
    """The keys of such a file are addresses; records are called by their place instead."""
    names = []
    for fill in range(3):
        base, held = torch.full((4,), float(fill)), [torch.zeros(fill + 1) for _ in range(9)]
        torch.save({"a": base[1:], "b": torch.ones(2)[:1], "held": held[:0]}, tmp_path / "x.pt", **LEGACY)
        with parse(tmp_path / "x.pt") as parsed:
            names.append(sorted(source.name for source in parsed.tensors))
    assert names == [["data/0", "data/1"]] * 3


@dataclasses.dataclass(frozen=True)
class Stored:
    """A storage as a pickle names it."""

    kind: Any
    length: int
    key: str = "0"
    more: tuple[Any, ...] = ()


class Rebuilt:
    """A tensor that a pickle says is made of a storage, as it likes."""

    def __init__(self, storage: Stored, *layout: Any, dtype: torch.dtype | None = None) -> None:
        self.arguments = (storage, *layout, False, collections.OrderedDict())
        self.dtype = dtype

    def __reduce__(self) -> Any:
        if self.dtype is None:
            return torch._utils._rebuild_tensor_v2, self.arguments
        return torch._utils._rebuild_tensor_v3, (*self.arguments, self.dtype)


class Crafting(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, value: object) -> Any:
        if not isinstance(value, Stored):
            return None
        return ("storage", value.kind, value.key, "cpu", value.length, *value.more)


def crafted(value: object) -> bytes:
    out = io.BytesIO()
    Crafting(out, 2).dump(value)
    return out.getvalue()


FOUR = Stored(torch.FloatStorage, 4)
UNSHOWN: dict[str, Any] = {
    "past its end": Rebuilt(FOUR, 1, (4,), (1,)),
    "past its end by steps": Rebuilt(FOUR, 0, (2, 2), (3, 1)),
    "before its start": Rebuilt(FOUR, -1, (1,), (1,)),
    "of steps back": Rebuilt(FOUR, 3, (2,), (-1,)),
    "of a shape without steps": Rebuilt(FOUR, 0, (2, 2), (1,)),
    "of no storage": Rebuilt("x", 0, (1,), (1,)),  # type: ignore[arg-type]
    "of another type": Rebuilt(FOUR, 0, (4,), (1,), dtype=torch.int32),
    "of a type that coral lacks": Rebuilt(FOUR, 0, (2,), (1,), dtype=torch.complex32),
    "of a storage of another type": Rebuilt(Stored(torch.IntStorage, 4), 0, (4,), (1,)),
    "of half bytes, in part": Rebuilt(
        Stored(torch.UntypedStorage, 4, "1"), 0, (2,), (1,), dtype=torch.float4_e2m1fn_x2
    ),
}


@pytest.mark.parametrize("kind", UNSHOWN)
def test_a_tensor_that_is_not_what_it_seems_is_not_shown(kind: str) -> None:
    """A tensor that leaves its storage, or takes it for another type, has no name; those beside it have theirs."""
    whole = Rebuilt(FOUR, 0, (4,), (1,))
    contents = read_pickles(crafted({"w": whole, "odd": UNSHOWN[kind], "v": Rebuilt(FOUR, 1, (2,), (2,))}))
    assert [name for name, _ in contents.tensors] == ["w", "v"]
    assert {storage.name: storage.nbytes for _, storage in contents.storages}["data/0"] == 16


def test_a_part_of_a_storage_is_not_shown() -> None:
    """What torch once called a view of a storage begins somewhere in it; the storage is known all the same."""
    whole, part = (Stored(torch.FloatStorage, 4, "94", (view,)) for view in (None, ("95", 2, 2)))
    contents = read_pickles(crafted({"part": Rebuilt(part, 0, (2,), (1,)), "w": Rebuilt(whole, 0, (4,), (1,))}))
    assert [name for name, _ in contents.tensors] == ["w"]
    assert [(key, storage.name) for key, storage in contents.storages] == [("94", "data/0")]


@pytest.mark.parametrize(
    ("other", "why"),
    [(Stored(torch.FloatStorage, 5), "two lengths"), (Stored(torch.FloatStorage, 4, "1", (None,)), "in two ways")],
)
def test_storages_that_contradict_each_other(other: Stored, why: str) -> None:
    """A pickle that says two things of its storages is refused for that."""
    with pytest.raises(NotThisError, match=why):
        read_pickles(crafted([Rebuilt(FOUR, 0, (4,), (1,)), Rebuilt(other, 0, (4,), (1,))]))


def test_a_path_that_is_no_text_is_no_name() -> None:
    """A key that cannot be written as UTF-8 hides what stands below it alone."""
    contents = read_pickles(crafted({"\ud800": [Rebuilt(FOUR, 0, (4,), (1,))], "w": Rebuilt(FOUR, 0, (1,), (1,))}))
    assert [name for name, _ in contents.tensors] == ["w"]


def test_a_key_that_stands_twice_is_the_last_one() -> None:
    """As Python reads it, the later value counts."""
    first, last = crafted(Rebuilt(FOUR, 0, (1,), (1,)))[2:-1], crafted(Rebuilt(FOUR, 2, (1,), (1,)))[2:-1]
    ((name, tensor),) = read_pickles(b"\x80\x02}(X\1\0\0\0w" + first + b"X\1\0\0\0w" + last + b"u.").tensors
    assert (name, tensor.offset) == ("w", 2)


def file_of(data: bytes) -> FileRange:
    return FileRange(BytesFile(data), 0, len(data))


def as_zip(value: object, change: Callable[[str, bytes], bytes | None] = lambda _, data: data) -> bytes:
    """An archive of torch's, its members changed; None leaves one out."""
    stream, out = io.BytesIO(), io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(out, "w") as sink:
        for info in source.infolist():
            data = change(info.filename.partition("/")[2], source.read(info))
            if data is not None:
                sink.writestr(info.filename, data)
    return out.getvalue()


W_ONLY = {"w": torch.ones(2)}
REFUSED: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "big-endian": (lambda name, data: b"big" if name == "byteorder" else data, "saved on a big-endian machine"),
    "cut": (lambda name, data: data[:20] if name == "data.pkl" else data, "its pickle is damaged"),
    "short": (lambda name, data: data[:4] if name == "data/0" else data, "the storage of 'w' has 4 bytes, not 8"),
    "missing": (lambda name, data: None if name == "data/0" else data, "the storage of 'w' is missing"),
    "elsewhere": (lambda name, data: b"\x80\x05\x97." if name == "data.pkl" else data, "not in the file"),
    "large": (
        lambda name, data: data + bytes(pickled.PICKLE_LIMIT) if name == "data.pkl" else data,
        "over 32 MiB of values that are no tensors",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_kept_whole_says_why(kind: str) -> None:
    """What is wrong with a file is said in words that follow "kept whole: "."""
    change, why = REFUSED[kind]
    data = file_of(as_zip(W_ONLY, change))
    with pytest.raises(NotThisError, match=why):
        parse_zip(data)


def test_an_archive_without_tensors_says_so() -> None:
    """A file of no tensors is kept whole for that reason."""
    data = file_of(as_zip({"a": 1}))
    with pytest.raises(NotThisError, match="no tensors"):
        parse_zip(data)


def legacy(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **LEGACY)
    return stream.getvalue()


def test_a_damaged_legacy_file_is_kept_whole(tmp_path: Path) -> None:
    """Cut at any byte, or with a length that is wrong, such a file is no container, says why, and restores."""
    data = legacy({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int64)})
    for stop in range(len(data)):
        if is_legacy(data[:stop]):
            with pytest.raises(NotThisError, match=r"is damaged|cut short|not as long"):
                parse_legacy(file_of(data[:stop]))
    count = data.rindex(b"\x03" + bytes(7))
    for number in (b"\x02", b"\x04", b"\xff"):
        with pytest.raises(NotThisError, match="not as long"):
            parse_legacy(file_of(data[:count] + number + data[count + 1 :]))
    (tmp_path / "x.pt").write_bytes(data + b"what follows")
    assert roundtrip(tmp_path / "x.pt")[0] == "torch"
    keys = data.rindex(b"(X")
    for crafted in (data[:keys] + data[keys:].replace(b"X", b"V", 1), data.replace(b"FloatStorage", b"CloatStorage")):
        with pytest.raises(NotThisError):
            parse_legacy(file_of(crafted))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_legacy_file_that_is_cut_short_is_refused(protocol: int) -> None:
    """Within its pickles or its storages, under each name that promises such a file; damage is another matter."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": [1.5, "text"]}, stream, pickle_protocol=protocol, **LEGACY)
    data = stream.getvalue()
    cut = [data[:stop] for stop in range(len(data)) if is_legacy(data[:stop])]
    assert len(cut) > len(data) - 40
    for part in cut:
        for name in ("x.pt", "x.bin"):
            with pytest.raises(FormatError, match="it is cut short") as caught:
                parse_file(BytesFile(part), name=name)
            assert "--opaque" in (caught.value.hint or "")
        for name in ("", "x.txt"):
            assert (parse_file(BytesFile(part), name=name).container, parsed_reason(part, name)) == ("opaque", "")
        assert "cut short" in parse_file(BytesFile(part), name="x.pt", keeps_broken=True).reason
    for damaged in (data.replace(b"FloatStorage", b"CloatStorage"), data.replace(b"}", b"\xff", 1)):
        assert re.search("not that of its pickle|is damaged", parsed_reason(damaged, "x.pt"))


def parsed_reason(data: bytes, name: str) -> str:
    return parse_file(BytesFile(data), name=name).reason


ALIKE = ("data/0", "data/1", "data/2", "data/0~2", "data/1~2", "x")


@given(st.dictionaries(st.sampled_from(ALIKE), st.integers(0, 2), min_size=1), st.booleans())
@example({"data/1": 0, "y": 1}, False)
@settings(max_examples=60, deadline=None)
def test_a_tensor_may_be_called_as_a_storage_is(lengths: dict[str, int], is_legacy: bool) -> None:
    """It keeps its name, and the record of the storage that no tensor covers is numbered."""
    value = {name: torch.arange(6.0)[less:] for name, less in lengths.items()}
    stream = io.BytesIO()
    torch.save(value, stream, **(LEGACY if is_legacy else {}))
    with parse_file(BytesFile(stream.getvalue()), name="x.pt") as parsed:
        manifest, contents = kept(parsed)
        assert parsed.container == "torch"
        assert rebuilt(manifest, parsed.skeleton, contents) == stream.getvalue()
        found = views(manifest, parsed.skeleton)
    assert found.keys() == value.keys()
    for name, view in found.items():
        storage = torch.frombuffer(bytearray(contents[view.record_name]), dtype=torch.float32)
        stride = view.stride or value[name].stride()
        assert torch.equal(torch.as_strided(storage, view.shape, stride, view.offset), value[name])
        assert view.record_name == name or lengths[name]


def deflated(value: object, is_packed: Callable[[str], bool]) -> bytes:
    """An archive of torch's of which some members are compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(as_zip(value))) as source, zipfile.ZipFile(out, "w") as sink:
        for info in source.infolist():
            method = zipfile.ZIP_DEFLATED if is_packed(info.filename) else zipfile.ZIP_STORED
            sink.writestr(info.filename, source.read(info), method)
    return out.getvalue()


def packed_arrays() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.ones(9))
    return out.getvalue()


def of_torch_package(path: Path) -> bytes:
    from torch.package.package_exporter import PackageExporter

    with PackageExporter(str(path)) as exporter:
        exporter.save_pickle("model", "data.pkl", W_ONLY)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_an_archive_that_holds_tensors_is_not_said_to_hold_none(tmp_path: Path) -> None:
    """Compressed, or another program's layout: what is said of it is so."""
    compressed, elsewhere = "compressed", "laid out neither as torch.save's nor as numpy's"
    for name, data, why in (
        ("x.npz", packed_arrays(), compressed),
        ("x.pt", deflated(W_ONLY, lambda _: True), compressed),
        ("x.pt", deflated(W_ONLY, lambda name: name.endswith("data.pkl")), compressed),
        ("x.pt", deflated(W_ONLY, lambda name: name.endswith("data/0")), compressed),
        ("x.pt", of_torch_package(tmp_path / "x.pt"), elsewhere),
        ("x.pt", as_zip({"a": 1}), "it holds no tensors"),
        ("x.npz", b"PK\5\6" + bytes(18), "it holds no tensors"),
    ):
        assert why in parsed_reason(data, name)


def test_a_legacy_file_is_read_whole_before_it_is_taken_apart() -> None:
    """Where its storages are is found by going from one to the next; as a stream all that was passed would be kept."""
    for protocol in (2, 5):
        stream = io.BytesIO()
        torch.save(W_ONLY, stream, pickle_protocol=protocol, **LEGACY)
        assert not begins_with_its_index(stream.getvalue())


def test_the_constants_of_a_skeleton_are_checked(tmp_path: Path) -> None:
    """A file without constants has the skeleton that it always had; the place of a second pickle cannot be a tensor."""
    torch.save(W_ONLY, tmp_path / "x.pt")
    with parse(tmp_path / "x.pt") as parsed:
        manifest, _ = kept(parsed)
        assert parsed.skeleton is not None and b"constants" not in parsed.skeleton
        magic, head, literal = parsed.skeleton.split(b"\n", 2)
    fields = json.loads(head)
    start = fields["places"][0][1]
    for place in ([start, start + 4], [0, fields["size"] + 1], [4, 2], [1], "x"):
        fields["constants"] = place
        with pytest.raises(FormatError, match="malformed"):
            views(manifest, b"\n".join([magic, json.dumps(fields).encode(), literal]))


@pytest.mark.parametrize("name", ["checkpoint.pt", "plain.npy", "fortran.npy", "arrays.npz"])
def test_files_kept_by_version_1_restore_and_show_the_same(name: str) -> None:
    """What the first coral made of a file restores to it, and shows the tensors that it showed.

    ``tests/data/v1-files`` holds a file, and beside it the manifest, the skeleton and the views of that coral; never
    to be made again.
    """
    manifest = Manifest.from_bytes((GOLDEN / f"{name}.manifest").read_bytes())
    skeleton = (GOLDEN / f"{name}.skeleton").read_bytes()
    contents = {record.name: bytes.fromhex(record.content.removeprefix("hex:")) for record in manifest.records}
    assert rebuilt(manifest, skeleton, contents) == (GOLDEN / name).read_bytes()
    expected = json.loads((GOLDEN / f"{name}.views").read_text())
    found = views(manifest, skeleton)
    assert [json.loads(json.dumps(view)) for view in found.values()] == expected


@pytest.mark.parametrize("name", ["checkpoint.pt", "plain.npy"])
def test_files_are_taken_apart_as_by_version_1(name: str) -> None:
    """What was understood then gets the same manifest and the same skeleton today."""
    with parse(GOLDEN / name) as parsed:
        manifest, _ = kept(parsed)
        assert parsed.skeleton == (GOLDEN / f"{name}.skeleton").read_bytes()
    golden = Manifest.from_bytes((GOLDEN / f"{name}.manifest").read_bytes())
    assert [record[:3] for record in manifest.records] == [record[:3] for record in golden.records]
