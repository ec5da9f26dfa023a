"""Tensors of any framework are kept by their bytes, and modules are filled in place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral.errors import FormatError, UnsupportedValueError, UsageError
from coral.format.dtypes import BITS, NUMPY_NAMES, byte_count
from coral.integrations.torch import FRAMEWORK, model_to_weights
from coral.integrations.torch.loading import plan_loading
from coral.tensors.frameworks import Framework, framework_named, framework_of
from coral.tensors.numpy import NUMPY


def content(value: object, *, piece: int = 7) -> bytes:
    """A tensor's bytes, read in odd pieces."""
    source = framework_of(value).source("t", value)
    size = byte_count(source.dtype, source.shape)
    return b"".join(bytes(source.read(start, min(start + piece, size))) for start in range(0, size, piece))


def reference(tensor: torch.Tensor) -> bytes:
    """The same by torch's own copy."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


@pytest.mark.parametrize("library", [NUMPY, FRAMEWORK], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_comes_back_bit_for_bit(library: Framework, dtype: str) -> None:
    """Any bytes, NaN payloads among them, go into a fresh tensor and come out of it again."""
    for shape in ((2, 8), (8,), (0, 8), ()):
        if BITS[dtype] < 8 and not shape:
            continue
        tensor, data = library.empty(dtype, shape)
        data[:] = np.random.default_rng(0).integers(0, 256, len(data), np.uint8).data
        assert len(data) == byte_count(dtype, shape) and content(tensor) == bytes(data)
        source = framework_of(tensor).source("t", tensor)
        packed_alone = BITS[dtype] < 8 and (library is NUMPY or dtype != "F4")
        assert packed_alone or (source.dtype, source.shape) == (dtype, shape)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda t: t.transpose(0, 2),
    "strided": lambda t: t[::2, 1:, ::3],
    "expanded": lambda t: t[:1].expand(5, -1, -1),
    "inner": lambda t: t[:, :, 2],
    "offset": lambda t: t[1:],
    "scalar": lambda t: t[1, 2, 3],
    "parameter": lambda t: torch.nn.Parameter(t.t() if t.dim() < 3 else t.permute(1, 0, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_any_layout_is_read_in_c_order(layout: str, piece: int) -> None:
    """Non-contiguous tensors and arrays give the bytes of their contiguous copy, whatever range is asked for."""
    tensor = LAYOUTS[layout](torch.randn(4, 5, 6))
    assert content(tensor, piece=piece) == reference(tensor)
    array = tensor.detach().numpy()
    assert content(array, piece=piece) == np.ascontiguousarray(array).tobytes()
    assert content(array.astype(array.dtype.newbyteorder(">")), piece=piece) == np.ascontiguousarray(array).tobytes()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_any_range_of_any_permutation(shape: list[int], chance: Any) -> None:
    """A range of a permuted tensor is that range of its contiguous copy."""
    order = list(range(len(shape)))
    chance.shuffle(order)
    tensor = torch.randn(shape).permute(order)
    expected = reference(tensor)
    start = chance.randrange(len(expected) + 1)
    stop = chance.randrange(start, len(expected) + 1)
    for value in (tensor, tensor.numpy()):
        assert bytes(framework_of(value).source("t", value).read(start, stop)) == expected[start:stop]


def test_lazy_views_are_resolved() -> None:
    """Conjugate and negative views are kept as what they stand for."""
    base = torch.randn(3, 4, dtype=torch.complex64)
    for view in (base.conj(), base.conj().imag, base.t().conj()):
        assert content(view) == reference(view)


def test_small_floats_need_no_kernels() -> None:
    """Non-contiguous tensors of types that torch can hardly copy are read."""
    for dtype in (torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.uint64, torch.bool):
        base = torch.arange(48, dtype=torch.uint8).view(dtype).reshape(2, 3, -1)
        flat = torch.arange(48, dtype=torch.uint8).reshape(2, 3, -1, base.element_size())
        assert content(base.transpose(0, 1)) == flat.transpose(0, 1).contiguous().numpy().tobytes()


def test_contiguous_memory_is_not_copied() -> None:
    """The bytes of a contiguous CPU tensor or array are its own memory."""
    for value in (torch.zeros(4), np.zeros(4, np.float32), torch.zeros(4, dtype=torch.bfloat16)):
        data = memoryview(framework_of(value).source("t", value).read(0, 8))
        value[0] = 1
        assert bytes(data)[:4] != bytes(4)


class Odd:
    """What numpy sees of a JAX array."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones(2, ml_dtypes.bfloat16)


def test_anything_with_an_array_is_taken() -> None:
    """A value that offers itself as a numpy array is a tensor, ml_dtypes included."""
    assert framework_of(Odd()).source("t", Odd()).dtype == "BF16"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.eye(2).to_sparse_csr(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.nn.UninitializedParameter(), "lazy"),
        (np.array([None]), "object"),
        (np.array(["x"]), "<U1"),
        (np.array(["2020"], "datetime64[Y]"), "datetime64"),
        (np.ones(2, np.longdouble), "float128"),
        (np.zeros(2, "f4,i2"), "f0"),
        (np.ma.masked_array([1, 2], [True, False]), "masked"),
        (np.ones(2, ml_dtypes.float4_e2m1fn), "float4"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(value: object, word: str) -> None:
    """Refusals name the tensor and what is wrong with it."""
    with pytest.raises(UnsupportedValueError, match=r"layer\.weight") as caught:
        framework_of(value).source("layer.weight", value)
    assert word in str(caught.value)


@pytest.mark.parametrize("value", [[1.0], 3, "x", object()])
def test_other_values_have_no_framework(value: object) -> None:
    """Lists and numbers are not silently made into arrays."""
    with pytest.raises(UnsupportedValueError, match="not a tensor"):
        framework_of(value)
    with pytest.raises(UsageError, match="unknown framework"):
        framework_named("tensorflow")


@pytest.mark.parametrize("library", [NUMPY, FRAMEWORK], ids=["numpy", "torch"])
def test_views_stay_inside(library: Framework) -> None:
    """A strided view shares memory; one that would leave its tensor is a FormatError."""
    tensor, data = library.empty("U8", (12,))
    data[:] = bytes(range(12))
    assert content(library.view(tensor, (2, 3), (6, 2), 1)) == bytes([1, 3, 5, 7, 9, 11])
    assert content(library.view(tensor, (4, 3), None, 0)) == bytes(range(12))
    assert content(library.view(tensor, (0, 3), (3, 1), 12)) == b""
    for shape, stride, offset in [
        ((13,), None, 0),
        ((2,), (12,), 0),
        ((2,), (-1,), 3),
        ((1,), (1, 1), 0),
        ((1,), None, 12),
    ]:
        with pytest.raises(FormatError):
            library.view(tensor, shape, stride, offset)


def test_dtypes_have_names() -> None:
    """Every dtype object has a name that gives it back."""
    for dtype in NUMPY_NAMES:
        for library in (NUMPY, FRAMEWORK):
            kind = getattr(library.empty(dtype, (1,))[0], "dtype")  # noqa: B009
            name = library.dtype_name(kind)
            assert name is not None and library.parse_dtype(name) == kind
    assert NUMPY.parse_dtype(NUMPY.dtype_name(np.dtype(">i2")) or "") == np.dtype(">i2")


class Facts(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


def load_weights(model: torch.nn.Module, facts: Any, read_many: Any, *, strict: bool = True) -> None:
    """Fill a module, if the weights fit."""
    plan_loading(model, facts, strict=strict).fill(read_many)


class Net(torch.nn.Module):
    """Parameters, tied ones, a transposed one, buffers, and one that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(4, 3)
        self.head = torch.nn.Linear(3, 4)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(3)
        self.turned = torch.nn.Parameter(torch.randn(3, 2).t())
        self.low = torch.nn.Parameter(torch.randn(3).bfloat16(), requires_grad=False)
        self.register_buffer("scratch", torch.ones(2), persistent=False)


def stored(model: torch.nn.Module) -> tuple[dict[str, Facts], dict[str, bytes]]:
    weights = model_to_weights(model)
    sources = {name: FRAMEWORK.source(name, tensor) for name, tensor in weights.items()}
    return {n: Facts(s.dtype, s.shape) for n, s in sources.items()}, {n: content(t) for n, t in weights.items()}


def reader(contents: dict[str, bytes]) -> Callable[[Iterable[tuple[str, memoryview]]], None]:
    def read_many(wanted: Iterable[tuple[str, memoryview]]) -> None:
        for name, data in wanted:
            assert len(data) == len(contents[name])
            data[:] = contents[name]

    return read_many


def test_a_model_is_filled_in_place() -> None:
    """Every parameter and buffer gets its bytes; memory, ties and requires_grad stay."""
    facts, contents = stored(Net())
    model = Net()
    before = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    load_weights(model, facts, reader(contents))
    assert stored(model)[1] == contents
    assert before == [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    assert model.head.weight is model.embed.weight and not model.low.requires_grad
    assert set(contents) == set(model.state_dict())


def test_model_to_weights_shares_memory_and_strips_wrappers() -> None:
    """Wrappers' prefixes vanish, those of a model's own attributes do not, and nothing is copied."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    wrapped: Any = torch.nn.DataParallel(torch.compile(model))
    weights = model_to_weights(wrapped)
    assert list(weights) == ["0.weight", "0.bias"]
    assert (
        weights["0.weight"].data_ptr() == next(model.parameters()).data_ptr() and not weights["0.weight"].requires_grad
    )
    own = torch.nn.Module()
    own.module, own._orig_mod, own.weight = model, torch.nn.Linear(1, 1, bias=False), torch.nn.Parameter(torch.ones(1))
    assert set(model_to_weights(own)) == {"weight", "module.0.weight", "module.0.bias", "_orig_mod.weight"}
    inside = torch.nn.Sequential(wrapped)
    assert list(model_to_weights(inside)) == ["0.0.weight", "0.0.bias"]
    facts, contents = stored(model)
    load_weights(wrapped, facts, reader(contents))


def test_all_mismatches_are_reported_at_once_and_nothing_is_loaded() -> None:
    """Missing, unexpected, wrong shape and wrong dtype stand in one error; strict=False forgives names only."""
    facts, contents = stored(Net())
    del facts["head.bias"]
    facts["extra"] = Facts("F32", (1,))
    facts["norm.weight"] = Facts("F32", (7,))
    facts["low"] = Facts("F16", (3,))
    model = Net()
    before = stored(model)[1]
    for strict in (True, False):
        with pytest.raises(UsageError) as caught:
            load_weights(model, facts, reader(contents), strict=strict)
        words = ["norm.weight: F32 [7]", "low: F16 [3] in the weights, BF16 [3]"]
        words += ["missing: head.bias", "unexpected: extra"] if strict else []
        assert all(word in caught.value.message for word in words)
    assert stored(model)[1] == before
    with pytest.warns(UserWarning, match="the weights lack"):
        load_weights(model, {"head.bias": Facts("F32", (4,))}, reader(contents), strict=False)
    assert stored(model)[1]["head.bias"] == contents["head.bias"]


def _copy_state(module: torch.nn.Module, state: dict[str, torch.Tensor], *_: object) -> None:
    state.update({name: tensor.clone() for name, tensor in state.items()})


class Hooked(torch.nn.Module):
    """A module whose state dict holds copies, as hooks that gather or convert make them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3))
        self.register_state_dict_post_hook(_copy_state)


def test_a_module_that_hands_out_copies_is_loaded_too() -> None:
    """Where the state dict is a copy, its tensors go back through load_state_dict."""
    source, target = Hooked(), Hooked()
    load_weights(target, *_split(stored(source)))
    assert torch.equal(source.weight, target.weight)


def _split(pair: tuple[dict[str, Facts], dict[str, bytes]]) -> tuple[dict[str, Facts], Callable[..., None]]:
    return pair[0], reader(pair[1])


def test_extra_state_is_refused_by_name() -> None:
    """What a module keeps besides tensors is not dropped silently."""

    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> object:
            return {"scale": 1}

    with pytest.raises(UnsupportedValueError, match="_extra_state"):
        model_to_weights(Extra(1, 1))
    with pytest.raises(UnsupportedValueError, match="module"):
        model_to_weights({"w": torch.ones(1)})


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Containers, states and frameworks load neither numpy nor torch; a state of plain values needs neither."""
    code = (
        "import sys, coral.containers, coral.tensors.state as state\n"
        "text, _ = state.encode_state({'a': (1, 2.5), 'b': [b'x', {3}]})\n"
        "state.decode_state(text, lambda *_: None)\n"
        "assert not {'numpy', 'torch'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tensor_is_read_by_ranges() -> None:
    """Tensors on a GPU, in any layout, give the bytes of their CPU copy, and are filled in place."""
    tensor = torch.randn(4, 5, 6)
    for view in (tensor, tensor.transpose(0, 2), tensor[::2, 1:]):
        on_gpu = tensor.cuda().as_strided(view.shape, view.stride(), view.storage_offset())
        assert content(on_gpu) == reference(view)
    facts, contents = stored(Net())
    model = Net().cuda()
    load_weights(model, facts, reader(contents))
    assert stored(model)[1] == contents
