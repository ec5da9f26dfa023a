"""PyTorch: tensors without a copy, modules as named weights, and the state of its random generators.

The only file that imports torch; it is loaded through the entry point group ``coral.frameworks``.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch

from coral.errors import FormatError, UnsupportedValueError, UsageError
from coral.format.dtypes import byte_count
from coral.verbs.frameworks import check_view, contiguous_stride, packed_shape

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coral.containers.source import TensorSource

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
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
_GROUP_BYTES = 32 << 20
_PARAMETER, _REQUIRES_GRAD, _FROZEN = "parameter", "requires_grad", "frozen"


class TorchTensor:
    """A torch tensor as bytes: a contiguous one on the CPU is not copied, any other a range at a time."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.dtype = _NAMES[tensor.dtype]
        self.shape = _logical_shape(tensor)
        self._tensor = tensor.detach()
        self._bytes: memoryview | None = None
        # Of who hands the tensor in: the thread that reads it has another, which does not wait for what is computed.
        is_cuda = tensor.device.type == "cuda"
        self._stream = torch.cuda.current_stream(tensor.device) if is_cuda else None

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop)."""
        if stop <= start:
            return b""
        if self._bytes is None and _is_plain(self._tensor):
            self._bytes = _cpu_bytes(self._tensor)
        if self._bytes is not None:
            return self._bytes[start:stop]
        size = self._tensor.element_size()
        first = start // size
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            elements = _carrier(_range(self._tensor, first, -(-stop // size))).cpu()
        return _cpu_bytes(elements.contiguous())[start - first * size : stop - first * size]

    def start_copy(self, held: object | None) -> tuple[object, Callable[[], memoryview]] | None:
        """Begin to copy a CUDA tensor into pinned memory; see :class:`coral.verbs.copies.DeviceSource`.

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
            return _cpu_bytes(pinned)

        return pinned, finish


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _cpu_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, which it keeps alive."""
    size = tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8)
    flat.set_(tensor.untyped_storage(), tensor.storage_offset() * size, (tensor.numel() * size,), (1,))
    return flat.numpy().data


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


def _logical_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    # torch counts pairs of four-bit elements, safetensors elements.
    return (*shape[:-1], shape[-1] * 2) if _NAMES[tensor.dtype] == "F4" else shape


class TorchFramework:
    """Torch's values as tensors that coral can keep, and back."""

    name = "torch"

    def accepts(self, value: object) -> bool:
        """Whether the value is a tensor."""
        return isinstance(value, torch.Tensor)

    def source(self, name: str, value: object) -> TensorSource:
        """A tensor as bytes. Raises UnsupportedValueError for sparse, quantized, meta, distributed and other kinds."""
        if not isinstance(value, torch.Tensor):
            raise UnsupportedValueError(f"{name!r} is a {type(value).__qualname__}, not a tensor")
        problem = _problem(value)
        if problem is not None:
            what, hint = problem
            raise UnsupportedValueError(f"tensor {name!r} {what}, which coral cannot keep", hint=hint)
        return TorchTensor(name, value)

    def weights(self, value: object) -> Mapping[str, object] | None:
        """A module's named tensors; None for a value that is not a module."""
        return model_to_weights(value) if isinstance(value, torch.nn.Module) else None

    def load_weights(
        self, module: object, tensors: Mapping[str, Described], read_many: ReadMany, *, strict: bool
    ) -> None:
        """Fill a module in place; see :func:`load_weights`."""
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"a {type(module).__qualname__} is not a torch module")
        load_weights(module, tensors, read_many, strict=strict)

    def capture_rng(self) -> dict[str, object]:
        """The state of every random generator; see :func:`capture_rng`."""
        return capture_rng()

    def restore_rng(self, state: Mapping[str, object]) -> None:
        """Put the random generators back; see :func:`restore_rng`."""
        restore_rng(state)

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
        """A fresh CPU tensor and its bytes; packed types that torch lacks come as unsigned bytes."""
        flat = torch.empty(byte_count(dtype, shape), dtype=torch.uint8)
        data = flat.numpy().data
        if dtype in _DTYPES and (dtype != "F4" or (shape and shape[-1] % 2 == 0)):
            target = _DTYPES[dtype]
            tensor = torch.empty(0, dtype=target)
            real = packed_shape(dtype, shape) if dtype == "F4" else shape
            return tensor.set_(flat.untyped_storage(), 0, real, contiguous_stride(real)), data
        return flat.reshape(packed_shape(dtype, shape) if dtype not in _DTYPES or dtype == "F4" else shape), data

    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        """A strided view of a tensor from :meth:`empty`."""
        assert isinstance(tensor, torch.Tensor)
        steps = check_view(tensor.numel(), shape, stride, offset)
        return tensor.as_strided(shape, steps, offset)

    def flags(self, value: object) -> tuple[str, ...]:
        """Whether a tensor is a parameter, and whether it collects gradients."""
        assert isinstance(value, torch.Tensor)
        if isinstance(value, torch.nn.Parameter):
            return (_PARAMETER,) if value.requires_grad else (_PARAMETER, _FROZEN)
        return (_REQUIRES_GRAD,) if value.requires_grad else ()

    def flagged(self, tensor: object, flags: tuple[str, ...]) -> object:
        """A tensor with its :meth:`flags` back."""
        assert isinstance(tensor, torch.Tensor)
        if flags in ((_PARAMETER,), (_PARAMETER, _FROZEN)):
            return torch.nn.Parameter(tensor, requires_grad=flags == (_PARAMETER,))
        if flags == (_REQUIRES_GRAD,):
            return tensor.requires_grad_()
        raise FormatError(f"a torch tensor has no flags {list(flags)}")

    def dtype_name(self, value: object) -> str | None:
        """The name of a ``torch.dtype``, without ``torch.``."""
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None

    def parse_dtype(self, name: str) -> object:
        """The ``torch.dtype`` of a name."""
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise FormatError(f"unknown torch dtype {name[:80]!r}")
        return found

    def encode(self, value: object) -> tuple[str, object] | None:
        """``torch.Size`` and ``torch.device``."""
        if isinstance(value, torch.Size):
            return "Size", list(value)
        if isinstance(value, torch.device):
            return "device", str(value)
        return None

    def decode(self, kind: str, payload: object) -> object:
        """A ``torch.Size`` or ``torch.device`` from its JSON."""
        if kind == "device" and isinstance(payload, str):
            try:
                return torch.device(payload)
            except RuntimeError:
                raise FormatError(f"unknown torch device {payload[:80]!r}") from None
        if kind == "Size" and isinstance(payload, list) and all(type(length) is int for length in payload):
            return torch.Size(payload)
        raise FormatError(f"unknown torch value {kind[:80]!r}")


def _problem(tensor: torch.Tensor) -> tuple[str, str] | None:
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


FRAMEWORK = TorchFramework()
"""What the entry point names."""


def model_to_weights(model: object) -> dict[str, torch.Tensor]:
    """A module's parameters and persistent buffers by name, detached and sharing its memory.

    The prefixes that wrappers add (``module.``, ``_orig_mod.``) are stripped wherever they stand; where that would
    give two tensors one name, names stay as they are.

    Raises:
        UnsupportedValueError: not a module, or its state holds something that is not a tensor.
    """
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedValueError(f"{type(model).__qualname__} is not a torch module")
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedValueError(
                f"{name!r} in the model's state is a {type(value).__qualname__}, not a tensor",
                hint="keep such extra state beside the weights: save(model, extra=…)",
            )
    stripped = {_WRAPPERS.sub("", name): tensor.detach() for name, tensor in state.items()}
    return stripped if len(stripped) == len(state) else {name: tensor.detach() for name, tensor in state.items()}


class Described(Protocol):
    """What :func:`load_weights` needs to know of a tensor before it is read; a TensorView or TensorRecord fits."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


ReadMany = Callable[[Iterable[tuple[str, memoryview]]], None]
"""Fills memory with the bytes of tensors, each given by its name and exactly as long."""


def load_weights(
    model: torch.nn.Module, tensors: Mapping[str, Described], read_many: ReadMany, *, strict: bool = True
) -> None:
    """Fill a module's parameters and buffers in place, without a second copy of the model.

    Args:
        model: wrapped (DDP, compiled) or not.
        tensors: what is there to be loaded, by name.
        read_many: reads some of them.
        strict: every tensor of the module must be there, and nothing else.

    Raises:
        UsageError: names, shapes or dtypes do not fit; all of them are named, and nothing was loaded.
    """
    targets = model_to_weights(model)
    _check_fit(targets, tensors, strict=strict)
    wanted = {name: target for name, target in targets.items() if name in tensors and target.numel()}
    # Of tied tensors the last one counts, as when torch copies them one after another.
    plain = {target.data_ptr(): (name, target) for name, target in wanted.items() if _is_plain(target)}
    read_many((name, _cpu_bytes(target)) for name, target in plain.values())
    # Other memory, a GPU's above all, is reached through copies of a few tensors at a time.
    rest = ((name, target) for name, target in wanted.items() if not _is_plain(target))
    for group in _groups(rest):
        _fill(group, tensors, read_many)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    detached = {name: target for name, target in wanted.items() if target.untyped_storage().data_ptr() not in own}
    if detached:
        _load_detached(model, detached)


def _groups(targets: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    group: dict[str, torch.Tensor] = {}
    nbytes = 0
    for name, target in targets:
        group[name] = target
        nbytes += target.numel() * target.element_size()
        if nbytes >= _GROUP_BYTES:
            yield group
            group, nbytes = {}, 0
    if group:
        yield group


def _fill(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described], read_many: ReadMany) -> None:
    fresh = {name: FRAMEWORK.empty(tensors[name].dtype, tensors[name].shape) for name in targets}
    read_many((name, data) for name, (_, data) in fresh.items())
    with torch.no_grad():
        for name, target in targets.items():
            tensor = fresh[name][0]
            assert isinstance(tensor, torch.Tensor)
            target.copy_(tensor)


def _load_detached(model: torch.nn.Module, filled: Mapping[str, torch.Tensor]) -> None:
    """Hand copies that the module's own hooks made back through those hooks."""
    originals = {_WRAPPERS.sub("", name): name for name in model.state_dict()}
    model.load_state_dict({originals.get(name, name): tensor for name, tensor in filled.items()}, strict=False)


def _check_fit(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described], *, strict: bool) -> None:
    problems = list(_mismatches(targets, tensors))
    if strict:
        problems += [f"missing: {name}" for name in targets if name not in tensors]
        problems += [f"unexpected: {name}" for name in tensors if name not in targets]
    if not problems:
        return
    shown = problems[:50] + ([f"and {len(problems) - 50} more"] if len(problems) > 50 else [])
    raise UsageError(
        "the weights do not fit the model:\n  " + "\n  ".join(shown),
        hint="build the model as it was when they were committed, or load with strict=False to ignore names",
    )


def _mismatches(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described]) -> Iterator[str]:
    for name, target in targets.items():
        source = FRAMEWORK.source(name, target)
        if name not in tensors:
            continue
        stored = tensors[name]
        if (stored.dtype, tuple(stored.shape)) != (source.dtype, source.shape):
            yield (
                f"{name}: {stored.dtype} {list(stored.shape)} in the weights, "
                f"{source.dtype} {list(source.shape)} in the model"
            )


def capture_rng() -> dict[str, object]:
    """The state of every random generator that training draws from: Python's, numpy's, torch's, each CUDA device's."""
    version, words, gauss = random.getstate()
    state: dict[str, object] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: object) -> None:
    """Put back what :func:`capture_rng` took; states of CUDA devices that are not here are left out.

    Raises:
        FormatError: not such a state.
    """
    try:
        _restore_rng(state)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"the state of the random generators is malformed: {error}") from error


def _restore_rng(state: object) -> None:
    if not isinstance(state, dict):
        raise TypeError("not a mapping")
    python = state["python"]
    random.setstate((python["version"], tuple(np.asarray(python["words"]).tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, words in enumerate(state.get("cuda", [])[:devices]):
        torch.cuda.set_rng_state(words, index)
