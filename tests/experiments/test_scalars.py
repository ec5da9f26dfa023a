"""What may be logged: numbers of every library; nothing else."""

from __future__ import annotations

import decimal
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import UnsupportedValueError, UsageError
from coral.experiments.scalars import checked, flatten, merge, number, plain, shown, whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.1, 0.1),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(7), 7.0),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
        (np.array([0.25]), 0.25),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([3]), 3.0),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (decimal.Decimal("0.5"), 0.5),
        (math.inf, math.inf),
    ],
)
def test_numbers_are_taken(value: object, expected: float) -> None:
    """Python, numpy and torch scalars become the same float."""
    assert number("loss", value) == expected


@pytest.mark.parametrize("value", ["0.5", b"1", None, [1.0], {}, np.zeros(2), torch.zeros(2), 1j, object(), 10**400])
def test_everything_else_is_refused(value: object) -> None:
    """A string, several numbers or no number at all is a programming error that names the metric."""
    with pytest.raises(UnsupportedValueError, match="loss"):
        number("loss", value)


@pytest.mark.parametrize("step", [1.5, "3", 2**63, np.zeros(2), float("nan")])
def test_steps_are_whole_numbers(step: object) -> None:
    """Anything but a whole number of 64 bits is refused."""
    with pytest.raises(UsageError):
        whole(step)
    assert whole(np.int32(3)) == 3
    assert whole(torch.tensor(4)) == 4


def test_parameters_are_kept_whatever_they_are() -> None:
    """Scalars of numpy and torch become numbers, NaN stays NaN, strangers are kept by repr and type."""
    given = {"a": np.float64(1.5), "b": (1, {"c": None}), 3: float("nan"), "d": torch.float32, "t": torch.tensor(2)}
    kept = plain(given)
    assert isinstance(kept, dict)
    assert kept["a"] == 1.5 and kept["b"] == [1, {"c": None}] and kept["t"] == 2
    assert kept["d"] == {"type": "dtype", "repr": "torch.float32"}
    assert math.isnan(shown(kept)["3"])  # type: ignore[arg-type]
    assert plain(shown(kept)) == kept


@pytest.mark.parametrize("value", ["nan", "", 1.5, None, [0.1, 0.2], {"min": 0.1}])
def test_parameters_that_look_like_nan_are_not(value: object) -> None:
    """The user's own ``{"type": "float", "value": ...}``, of a sweep for example, is shown as it was given."""
    given = {"lr": {"type": "float", "value": value}}
    assert shown(plain(given)) == given  # type: ignore[arg-type]


def test_nested_parameters_merge_and_flatten() -> None:
    """Updates go key by key, and comparisons name inner parameters by dotted path."""
    merged = merge({"opt": {"lr": 1, "wd": 2}, "x": 1}, {"opt": {"lr": 3}, "x": {"y": 1}})
    assert merged == {"opt": {"lr": 3, "wd": 2}, "x": {"y": 1}}
    assert flatten(merged) == {"opt.lr": 3, "opt.wd": 2, "x.y": 1}


class Missing(Mapping[object, object]):
    """A configuration that has keys without values, as OmegaConf's ``???``."""

    def __getitem__(self, key: object) -> object:
        raise LookupError(f"missing mandatory value: {key}")

    def __iter__(self) -> Iterator[object]:
        return iter(("lr", 1))

    def __len__(self) -> int:
        return 2


class ListConfig(Sequence[object]):
    """A list that is no ``list``, and lacks its second item."""

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        if index == 1:
            raise LookupError("missing mandatory value")
        return index

    def __len__(self) -> int:
        return 3


class Mute:
    """An object that cannot be shown, not even by those who ask for its attributes."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __getattr__(self, name: str) -> object:
        raise (AttributeError if name.startswith("_") else RuntimeError)(f"no {name}")


STRANGERS: list[object] = [Mute(), Missing(), ListConfig(), 2**5000, np.arange(3), torch.ones(2), {3, 1}, range(3)]
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=4), st.just("\ud800")),
    st.sampled_from(range(len(STRANGERS))).map(lambda index: STRANGERS[index]),
)
ALIKE = st.sampled_from(["1", "1 (int)", None, "None", "\ud800", "\\ud800", (1,)])
KEYS = st.text(max_size=3) | st.integers(-2, 2) | ALIKE
PARAMETERS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(st.dictionaries(KEYS, PARAMETERS, max_size=5))
def test_no_parameter_is_refused_or_lost(given: dict[object, object]) -> None:
    """Whatever it is, it is JSON afterwards, each key has a name of its own, and kept again it is the same."""
    kept = plain(given)
    assert isinstance(kept, dict) and len(kept) == len(given)
    assert json.loads(json.dumps(kept, allow_nan=False).encode()) == kept
    assert plain(shown(kept)) == kept
    for key, value in given.items():
        if isinstance(key, str) and key.isprintable():
            assert kept[key] == plain(value)


def test_what_a_parameter_holds_may_raise() -> None:
    """A value that is missing is kept as the error that says so; what cannot be shown, by its class."""
    kept = plain({"config": Missing(), "layers": ListConfig(), "mute": Mute()})
    missing = {"type": "LookupError", "repr": "LookupError('missing mandatory value: lr')"}
    assert isinstance(kept, dict)
    assert kept["config"]["lr"] == missing and list(kept["config"]) == ["lr", "1"]  # type: ignore[index, call-overload, arg-type]
    assert [kept["layers"][0], kept["layers"][2]] == [0, 2] and kept["layers"][1]["type"] == "LookupError"  # type: ignore[index, call-overload]
    assert kept["mute"] == {"type": "Mute", "repr": "<Mute that cannot be shown: RuntimeError>"}


def test_keys_that_look_alike_are_told_apart() -> None:
    """A string keeps its name, whichever comes first."""
    assert plain({1: "a", "1": "b"}) == {"1 (int)": "a", "1": "b"}
    assert plain({"1": "b", 1: "a", None: "c", "None": "d"}) == {
        "1": "b",
        "1 (int)": "a",
        "None (NoneType)": "c",
        "None": "d",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({"b", 1, None}, ["b", 1, None]),
        (deque([1, 2]), [1, 2]),
        (np.arange(3), [0, 1, 2]),
        (np.array([[0.5, 1.5]], np.float32), [[0.5, 1.5]]),
        (torch.ones(2, 2, dtype=torch.bfloat16), [[1.0, 1.0], [1.0, 1.0]]),
        (np.array([2]), 2),
        (torch.tensor([2.0]), 2.0),
        (np.array([]), []),
        ({1: 2}.keys(), [1]),
    ],
)
def test_what_is_like_a_list_is_one(value: object, expected: object) -> None:
    """Sets in an order that does not change from process to process; arrays of one element are numbers."""
    assert plain(value) == expected


def test_large_arrays_are_told_of() -> None:
    """Data does not become a parameter: a large array is kept by its repr."""
    kept = plain({"w": np.zeros(10_001), "n": 2**5000})
    assert isinstance(kept, dict) and kept["w"]["type"] == "ndarray" and kept["n"]["repr"].startswith("0x1")  # type: ignore[index, call-overload, union-attr]
    assert len(json.dumps(kept)) < 4000


def test_nesting_is_bounded() -> None:
    """What contains itself, once or in many places, has an end: 50 deep, its repr stands for the rest."""
    loop: dict[str, object] = {"lr": 1}
    loop["again"] = loop
    kept, deep = plain(loop), 0
    while isinstance(kept, dict) and "again" in kept:
        assert kept["lr"] == 1
        kept, deep = kept["again"], deep + 1
    assert deep == 50 and isinstance(kept, dict) and kept["type"] == "dict"
    assert plain(plain(loop)) == plain(loop) == checked(plain(loop))
    with pytest.raises(ValueError, match="nested"):
        checked([plain(loop)])
    loop["and"] = [loop, loop]
    shared: list[object] = []
    for _ in range(80):
        shared = [shared, shared]
    assert all(len(json.dumps(plain(one))) < 10_000_000 for one in (loop, shared))
