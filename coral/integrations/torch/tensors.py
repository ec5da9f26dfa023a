"""Torch's tensors as bytes, without a copy where they are contiguous, and fresh ones to be filled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from coral.errors import UnsupportedValueError
from coral.format.dtypes import byte_count
from coral.tensors.shapes import contiguous_stride, packed_shape

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coral.format.tensors import TensorSource

_TORCH_NAMES: Final = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
# An older torch lacks the newest of them.
_DTYPES: Final[dict[str, torch.dtype]] = {
    name: getattr(torch, attribute) for name, attribute in _TORCH_NAMES.items() if hasattr(torch, attribute)
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
# Elements are moved about as integers of their size: torch has no copy kernels for the smallest floats.
_CARRIERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_ALIGNMENT: Final = 64
_LARGE: Final = 64 << 10


class TorchTensor:
    """A torch tensor as bytes: a contiguous one on the CPU is not copied, any other a range at a time."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.dtype, self.shape = kind_of(tensor)
        self._tensor = tensor.detach()
        self._bytes: memoryview | None = None
        # Of who hands the tensor in: the thread that reads it has another, which does not wait for what is computed.
        is_cuda = tensor.device.type == "cuda"
        self._stream = torch.cuda.current_stream(tensor.device) if is_cuda else None

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop)."""
        if stop <= start:
            return b""
        if self._bytes is None and is_plain(self._tensor):
            self._bytes = cpu_bytes(self._tensor)
        if self._bytes is not None:
            return self._bytes[start:stop]
        size = self._tensor.element_size()
        first = start // size
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            elements = _carrier(_range(self._tensor, first, -(-stop // size))).cpu()
        return cpu_bytes(elements.contiguous())[start - first * size : stop - first * size]

    def start_copy(self, held: object | None) -> tuple[object, Callable[[], memoryview]] | None:
        """Begin to copy a CUDA tensor into pinned memory; see :class:`coral.tensors.copies.DeviceSource`.

        The copies go through one stream of their own. What the program does to the tensor next waits for its copy, on
        the device; the program itself does not.
        """
        device, current = self._tensor.device, self._stream
        if current is None:
            return None
        whole = _carrier(self._tensor)
        fits = isinstance(held, torch.Tensor) and (held.shape, held.dtype) == (whole.shape, whole.dtype)
        pinned = held if fits else torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
        assert isinstance(pinned, torch.Tensor)
        stream = _copy_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            pinned.copy_(whole, non_blocking=True)
            whole.record_stream(stream)
            done = stream.record_event()
        current.wait_event(done)

        def finish() -> memoryview:
            done.synchronize()
            return cpu_bytes(pinned)

        return pinned, finish


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor's bytes lie in the program's memory in C order, as they are."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in one memory of its own, rather than in other tensors, or nowhere."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not torch.nn.parameter.is_lazy(tensor)
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and not tensor.is_nested
    )


class _Memory:
    """Memory of a tensor, for numpy to look at.

    ``tensor.numpy()`` would do, but forbids the program to resize that memory ever after.
    """

    def __init__(self, tensor: torch.Tensor, address: int, nbytes: int) -> None:
        self._tensor = tensor
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def cpu_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, which it keeps alive."""
    nbytes = tensor.numel() * tensor.element_size()
    return np.asarray(_Memory(tensor, tensor.data_ptr(), nbytes)).data if nbytes else memoryview(bytearray())


def _carrier(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same size; conjugate and negative views are resolved first."""
    plain = tensor.resolve_conj().resolve_neg()
    carrier = torch.empty(0, dtype=_CARRIERS[plain.element_size()], device=plain.device)
    return carrier.set_(plain.untyped_storage(), plain.storage_offset(), plain.size(), plain.stride())


def _range(tensor: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Elements [first, last) of a tensor in C order, copying no more than those."""
    if tensor.is_contiguous() or tensor.dim() <= 1:
        return tensor.reshape(-1)[first:last]
    row = tensor[0].numel()
    top, bottom = first // row, (last - 1) // row
    if top == bottom:
        return _range(tensor[top], first - top * row, last - top * row)
    pieces = (
        _range(tensor[top], first - top * row, row),
        tensor[top + 1 : bottom],
        _range(tensor[bottom], 0, last - bottom * row),
    )
    return torch.cat([_carrier(piece).reshape(-1) for piece in pieces])


def kind_of(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """The dtype's name and the shape of a tensor that coral can keep."""
    dtype, shape = _NAMES[tensor.dtype], tuple(tensor.shape)
    # torch counts pairs of four-bit elements, safetensors elements.
    return dtype, (*shape[:-1], shape[-1] * 2) if dtype == "F4" else shape


def source(name: str, value: object) -> TensorSource:
    """A tensor as bytes. Raises UnsupportedValueError for sparse, quantized, meta, distributed and other kinds."""
    if not isinstance(value, torch.Tensor):
        raise UnsupportedValueError(f"{name!r} is a {type(value).__qualname__}, not a tensor")
    problem = problem_of(value)
    if problem is not None:
        what, hint = problem
        raise UnsupportedValueError(f"tensor {name!r} {what}, which coral cannot keep", hint=hint)
    return TorchTensor(name, value)


def empty(dtype: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, memoryview]:
    """A fresh CPU tensor and its bytes; packed types that torch lacks come as unsigned bytes."""
    return _shaped(torch.empty(byte_count(dtype, shape), dtype=torch.uint8, device="cpu"), dtype, shape)


def empty_together(kinds: Iterable[tuple[str, tuple[int, ...]]]) -> list[tuple[torch.Tensor, memoryview]]:
    """As :func:`empty`, of many that are soon let go of: the larger ones lie in one memory, and cannot be resized.

    The first touch of one large memory, which numpy asks the kernel to make of huge pages, takes a fifth of the time.
    """
    kinds = list(kinds)
    ends = [*accumulate((_padded(*kind) for kind in kinds), initial=0)]
    memory = np.empty(ends[-1], np.uint8)
    made = []
    for start, kind in zip(ends, kinds, strict=False):
        part = memory[start : start + byte_count(*kind)]
        made.append(_shaped(torch.from_numpy(part), *kind) if _padded(*kind) else empty(*kind))
    return made


def _padded(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor takes of the one memory."""
    nbytes = byte_count(dtype, shape)
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT if nbytes >= _LARGE else 0


def _shaped(flat: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, memoryview]:
    data = cpu_bytes(flat)
    if dtype in _DTYPES and (dtype != "F4" or (shape and shape[-1] % 2 == 0)):
        tensor = torch.empty(0, dtype=_DTYPES[dtype], device="cpu")
        real = packed_shape(dtype, shape) if dtype == "F4" else shape
        return tensor.set_(flat.untyped_storage(), 0, real, contiguous_stride(real)), data
    return flat.reshape(packed_shape(dtype, shape) if dtype not in _DTYPES or dtype == "F4" else shape), data


def problem_of(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What keeps coral from keeping a tensor, and what to do about it."""
    kind = type(tensor).__qualname__
    if kind in ("DTensor", "ShardedTensor"):
        return f"is a {kind}, a shard of a distributed tensor", "gather it first (full_tensor(), or a full state dict)"
    if torch.nn.parameter.is_lazy(tensor):
        return "is lazy and has no shape yet", "run the model once first"
    if tensor.is_nested:
        return "is a nested tensor", "keep its parts one by one"
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout})", "keep its indices and values, or tensor.to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype})", "keep tensor.int_repr() with its scales and zero points"
    if tensor.device.type == "meta":
        return "is on the meta device and has no data", "materialise it first (to_empty() and load)"
    if tensor.dtype not in _NAMES:
        return f"has dtype {tensor.dtype}", "convert it to one of: " + ", ".join(map(str, _NAMES))
    if _NAMES[tensor.dtype] == "F4" and tensor.dim() == 0:
        return "is a pair of four-bit elements without a shape", "give it a shape of [1]"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"is a {kind}, which wraps other tensors", "keep the tensors inside it"
    return None
