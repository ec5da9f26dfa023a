"""numpy and torch keep the contract of a framework; each fault that is planted in numpy's is found."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from coral.format.tensors import TensorSource
from coral.integrations.torch import FRAMEWORK
from coral.tensors.frameworks import Framework
from coral.tensors.numpy import NUMPY, NumpyArray, NumpyFramework
from coral.testing.contracts.frameworks import FrameworkContract


class TestNumpy(FrameworkContract):
    """The framework that is always there."""

    @pytest.fixture
    def framework(self) -> Framework:
        return NUMPY

    @pytest.fixture
    def values(self) -> Sequence[object]:
        return NUMPY_VALUES


NUMPY_VALUES = [
    *(np.dtype(name) for name in ("float32", "uint8", "bool", "complex64", ">i4", "M8[s]")),
    *(np.float32(0.1), np.float64(-0.0), np.int8(-3), np.bool_(True), np.str_("ü"), np.complex64(1 + 2j)),
    *(np.float32("inf"), np.float16("nan")),
]


class TestTorch(FrameworkContract):
    """Torch's."""

    @pytest.fixture
    def framework(self) -> Framework:
        return FRAMEWORK

    @pytest.fixture
    def values(self) -> Sequence[object]:
        return [
            torch.nn.Parameter(torch.ones(2)),
            torch.nn.Parameter(torch.ones(2), requires_grad=False),
            torch.ones(2, requires_grad=True),
            *(torch.float32, torch.bfloat16, torch.bool, torch.float8_e4m3fn),
            *(torch.Size([2, 3]), torch.Size([]), torch.device("cpu"), torch.device("cuda", 1)),
        ]


class Copies(NumpyFramework):
    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        return np.array(super().view(tensor, shape, stride, offset))


class ForgetsOrder(NumpyFramework):
    def source(self, name: str, value: object) -> TensorSource:
        found = super().source(name, value)
        array = np.asarray(value)
        return NumpyArray(name, found.dtype, array.ravel(order="K").reshape(array.shape))


class Widens(NumpyFramework):
    def source(self, name: str, value: object) -> TensorSource:
        array = np.asarray(value)
        return super().source(name, array.astype("f4") if array.dtype.name == "bfloat16" else array)


class Strays(NumpyFramework):
    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        return np.zeros(3) if offset > 24 else super().view(tensor, shape, stride, offset)


class Rounds(NumpyFramework):
    def encode(self, value: object) -> tuple[str, object] | None:
        return ("float64", float(value)) if isinstance(value, np.float32) else super().encode(value)


class Believes(NumpyFramework):
    def parse_dtype(self, name: str) -> object:
        return np.dtype(name)


class Anonymous(NumpyFramework):
    name = "nothing"
    file_metadata: Mapping[str, str] = {}


FAULTS: list[tuple[type[NumpyFramework], str]] = [
    (Anonymous, "it_is_found"),
    (Widens, "bytes_come_back"),
    (ForgetsOrder, "any_order_of_elements"),
    (Copies, "tied_tensors_share_memory"),
    (Strays, "a_view_never_leaves_its_tensor"),
    (Rounds, "small_values_come_back"),
    (Believes, "what_is_not_its_own"),
]


@pytest.mark.parametrize(("toy", "rule"), FAULTS, ids=lambda one: getattr(one, "__name__", None))
def test_a_planted_fault_is_found(toy: type[NumpyFramework], rule: str) -> None:
    """Each promise of the contract fails a framework that breaks it."""
    test = getattr(FrameworkContract(), f"test_{rule}")
    with pytest.raises(Exception):  # noqa: B017 - a fault may raise anything
        test(toy(), NUMPY_VALUES[6:]) if "values" in inspect.signature(test).parameters else test(toy())


def test_every_promise_has_a_fault() -> None:
    """A promise whose test finds nothing is none."""
    names = [name for name, _ in inspect.getmembers(FrameworkContract) if name.startswith("test_")]
    assert {name.removeprefix("test_") for name in names} == {rule for _, rule in FAULTS}
