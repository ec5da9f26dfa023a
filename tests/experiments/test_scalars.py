"""What may be logged: numbers of every library; nothing else."""

from __future__ import annotations

import argparse
import dataclasses
import decimal
import json
import math
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import UnsupportedValueError, UsageError
from coral.experiments.redaction import redact_params
from coral.experiments.scalars import (
    MAX_ITEMS,
    bounded,
    checked,
    flatten,
    merge,
    metric_name,
    number,
    plain,
    shown,
    stored,
    text,
    whole,
    whole_data,
)


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


class Panic(BaseException):
    """As what a library in Rust raises."""


class Liar:
    """An object that does not tell its class, its number, nor itself."""

    def __getattribute__(self, name: str) -> object:
        raise Panic(name)

    def __repr__(self) -> str:
        raise Panic

    def __float__(self) -> float:
        raise KeyError("x")


class Odd(type):
    """A class of classes that answer nothing."""

    def __getattribute__(cls, name: str) -> object:
        raise RuntimeError(name)


class OfOdd(metaclass=Odd):
    """An object of such a class."""


class Unequal:
    """A key that cannot be compared."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


class Breaks(list[object]):
    """A list that ends in an error."""

    def __iter__(self) -> Iterator[object]:
        yield 1
        raise RuntimeError("no more")


class Endless(list[object]):
    """A list without an end."""

    def __iter__(self) -> Iterator[object]:
        return iter(count())


class EndlessNames(Mapping[object, object]):
    """A mapping without an end."""

    def __getitem__(self, key: object) -> object:
        return key

    def __iter__(self) -> Iterator[object]:
        return iter(count())

    def __len__(self) -> int:
        return 1


# By name, because pytest asks values what they are.
ODD: dict[str, Callable[[], object]] = {
    "liar": Liar,
    "of an odd class": OfOdd,
    "an odd class": lambda: OfOdd,
    "str": lambda: Mock(spec=str),
    "int": lambda: Mock(spec=int),
    "dict": lambda: Mock(spec=dict),
    "keys": lambda: {Unequal(): 1, "x": 2},
    "breaks": Breaks,
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_costs_no_more_than_itself(name: str) -> None:
    """Its siblings, at every depth, are kept as they are, and all of it is JSON."""
    odd = ODD[name]()
    kept = plain({"lr": 1, "odd": odd, "in": [1, odd, {"a": odd, "b": 2}], "last": "x"})
    assert isinstance(kept, dict) and kept["lr"] == 1 and kept["last"] == "x"
    inner = kept["in"]
    assert isinstance(inner, list) and inner[0] == 1 and isinstance(inner[2], dict) and inner[2]["b"] == 2
    assert checked(json.loads(json.dumps(kept, allow_nan=False))) == kept
    if name == "keys":
        assert isinstance(kept["odd"], dict) and list(kept["odd"].values()) == [1, 2]
    if isinstance(kept["odd"], list):
        assert kept["odd"][0] == 1


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_is_no_number_no_step_and_no_name(name: str) -> None:
    """Whatever it raises, it is refused as anything else is that makes no sense; and every value can be told of."""
    odd = ODD[name]()
    refusals: list[Callable[[], object]] = [lambda: number("loss", odd), lambda: whole(odd), lambda: metric_name(odd)]
    for refuse in refusals:
        with pytest.raises(UsageError):
            refuse()
    assert text(odd).encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_oddity(error: type[BaseException]) -> None:
    """Ctrl-C in the middle of somebody's repr is Ctrl-C."""

    class Interrupted:
        def __repr__(self) -> str:
            raise error

    with pytest.raises(error):
        plain({"a": [Interrupted()]})


def _shared() -> list[object]:
    shared: list[object] = [1]
    for _ in range(26):
        shared = [shared, shared]
    return shared


@pytest.mark.parametrize(
    "make",
    [
        _shared,
        Endless,
        EndlessNames,
        lambda: np.zeros((10**7, 0)),
        lambda: list(range(10**6)),
        lambda: {number: number for number in range(2 * MAX_ITEMS)},
        lambda: "y" * 20_000_000,
        lambda: ["y" * 1_000_000] * 1000,
        lambda: {"y" * 20_000_000: 1},
    ],
)
def test_a_parameter_has_an_end(make: object) -> None:
    """However much there is of it, without an end too: a part is kept, and told of; others have their own room."""
    assert callable(make)
    kept = plain({"big": make(), "small": list(range(1000)), "bigger": make()})
    assert isinstance(kept, dict) and kept["small"] == list(range(1000)) and kept["big"] == kept["bigger"]
    data = json.dumps(kept["big"])
    assert len(data) < 30_000_000 and ("are kept" in data or '"repr"' in data or "..." in data)
    assert len(json.dumps(bounded(kept, 1_000_000))) <= 1_000_000
    top = plain(EndlessNames())
    assert isinstance(top, dict) and len(top) == MAX_ITEMS + 1


def test_many_keys_that_look_alike() -> None:
    """Each has its own name, which does not grow with their number."""
    kept = plain({"a": {float("nan"): number for number in range(2000)}})
    assert isinstance(kept, dict) and isinstance(kept["a"], dict)
    assert list(kept["a"].values()) == list(range(2000)) and max(map(len, kept["a"])) < 30


@dataclasses.dataclass
class Settings:
    """What people pass as parameters."""

    password: str
    lr: float = 0.1
    cache: object = dataclasses.field(default=None, repr=False)


Login = namedtuple("Login", ["user", "password"])
NAMED: list[object] = [
    Settings("hunter2", 0.1, "hunter2"),
    argparse.Namespace(password="hunter2", lr=0.1),
    SimpleNamespace(password="hunter2", lr=0.1),
    {"password": "hunter2", "lr": 0.1},
]


@pytest.mark.filterwarnings("ignore:.*looks like a secret")
@pytest.mark.parametrize("value", NAMED)
def test_what_has_names_is_kept_by_them(value: object) -> None:
    """So that what is secret is found by its name, at whatever depth."""
    kept = plain({"a": value})
    assert kept == {"a": {"password": "hunter2", "lr": 0.1}}
    assert plain(Login("ada", "x")) == {"user": "ada", "password": "x"}
    for depth in [*range(4), *range(40, 60)]:
        deep: object = [value, {"b": value}]
        for _ in range(depth):
            deep = [deep, (value,)]
        kept = plain({"deep": deep})
        assert isinstance(kept, dict) and "hunter2" not in json.dumps(redact_params(kept))
    kept = plain({"many": [value] * 34_000})
    assert isinstance(kept, dict) and "hunter2" not in json.dumps(redact_params(kept))


def test_data_is_kept_whole() -> None:
    """What is kept as an artifact has no such bounds."""
    data = {"a": list(range(2 * MAX_ITEMS)), "t": "x" * 2_000_000}
    assert whole_data(data) == data


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


@given(st.dictionaries(st.text(), PARAMETERS, max_size=5))
def test_what_is_shown_can_be_stored_again(given: dict[object, object]) -> None:
    """What a run shows while it lives is what is read back of it."""
    kept = plain(given)
    assert isinstance(kept, dict) and stored(shown(kept)) == kept
