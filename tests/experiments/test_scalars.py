"""What may be logged: numbers of every library; nothing else."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pytest
import torch

from coral.errors import UnsupportedValueError, UsageError
from coral.experiments.scalars import flatten, merge, number, plain, shown, whole


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


def test_nesting_is_bounded() -> None:
    """A structure that contains itself is refused rather than followed for ever."""
    loop: dict[str, object] = {}
    loop["again"] = loop
    with pytest.raises(UsageError):
        plain(loop)
