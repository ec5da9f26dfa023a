"""Values of any framework as tensors that coral can keep, and back: numpy here, others through entry points.

A framework is found by the entry point group ``coral.frameworks``, under the name of its own root module, so that
no framework is imported to recognise its values.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from coral.errors import FormatError, UnsupportedValueError, UsageError
from coral.format.dtypes import BITS, NUMPY_NAMES, byte_count

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from coral.containers.source import TensorSource

    Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

GROUP = "coral.frameworks"
"""The entry point group under which frameworks are found."""


class Framework(Protocol):
    """What coral needs to know of a library of tensors."""

    @property
    def name(self) -> str:
        """The library's root module, such as ``torch``."""
        ...

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """What the library's own safetensors files say of themselves."""
        ...

    def accepts(self, value: object) -> bool:
        """Whether the value is a tensor of this library."""
        ...

    def source(self, name: str, value: object) -> TensorSource:
        """A tensor as bytes. Raises UnsupportedValueError, naming ``name``, for what cannot be kept."""
        ...

    def weights(self, value: object) -> Mapping[str, object] | None:
        """A module's named tensors, sharing its memory; None for a value that is not a module."""
        ...

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
        """A fresh tensor on the CPU, and its bytes to be filled in.

        A packed type (F4, F6) that the library does not have comes as its bytes, unsigned.
        """
        ...

    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        """A strided view, in elements, of a tensor from :meth:`empty`. Raises FormatError when it leaves it."""
        ...

    def not_exact(self, value: object) -> str | None:
        """What of a tensor would not come back as it is, its type for one; None when all of it would."""
        ...

    def flags(self, value: object) -> tuple[str, ...]:
        """What a tensor is besides its bytes, such as ``parameter``."""
        ...

    def flagged(self, tensor: object, flags: tuple[str, ...]) -> object:
        """A tensor from :meth:`empty` with its :meth:`flags` back. Raises FormatError for an unknown flag."""
        ...

    def dtype_name(self, value: object) -> str | None:
        """The name of one of the library's dtype objects; None for any other value."""
        ...

    def parse_dtype(self, name: str) -> object:
        """The dtype object of a name. Raises FormatError."""
        ...

    def encode(self, value: object) -> tuple[str, object] | None:
        """A small value of the library that is no tensor, as a kind and JSON; None for any other value."""
        ...

    def decode(self, kind: str, payload: object) -> object:
        """Undo :meth:`encode`. Raises FormatError."""
        ...


def framework_of(value: object) -> Framework:
    """The framework that a value (a tensor, a module, a dtype) belongs to.

    Raises:
        UnsupportedValueError: no known framework has such values.
    """
    found = find_framework(value)
    if found is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UnsupportedValueError(
            f"a value of type {kind} is not a tensor of any known framework",
            hint="hand in numpy arrays, torch tensors, JAX arrays, or a mapping of names to them",
        )
    return found


def find_framework(value: object) -> Framework | None:
    """The framework that a value belongs to, or None."""
    known = _entry_points()
    for base in type(value).__mro__:
        root = base.__module__.partition(".")[0]
        if root in known:
            return framework(root)
    return NUMPY if NUMPY.accepts(value) or type(value).__module__.partition(".")[0] == "numpy" else None


def framework(name: str) -> Framework:
    """A framework by name. Raises UsageError for an unknown one, or one that is not installed."""
    if name == NUMPY.name:
        return NUMPY
    if name not in _entry_points():
        known = ", ".join(sorted({NUMPY.name, *_entry_points()}))
        raise UsageError(f"unknown framework {name!r}", hint=f"known frameworks: {known}")
    return _load(name)


@functools.cache
def _entry_points() -> Mapping[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


@functools.cache
def _load(name: str) -> Framework:
    point = next(iter(entry_points(group=GROUP, name=name)))
    try:
        loaded: Framework = point.load()
    except ImportError as error:
        raise UsageError(f"framework {name!r} cannot be loaded: {error}", hint=f"pip install {name}") from error
    return loaded


_DTYPES = {name: dtype for dtype, name in NUMPY_NAMES.items()}
_SCALAR_NAMES = frozenset(_DTYPES) | {"complex128"}
_DTYPE_NAME = re.compile(r"[<>|]?[A-Za-z][A-Za-z0-9_]{0,31}(?:\[\d{0,4}[a-zA-Z]{1,2}\])?", re.ASCII)


@functools.cache
def _safetensors_name(dtype: np.dtype[np.generic]) -> str | None:
    return _DTYPES.get(dtype.name)


class NumpyArray:
    """A numpy array as a tensor; an array that is not C-ordered and little-endian is copied a range at a time."""

    def __init__(self, name: str, dtype: str, array: Array) -> None:
        import numpy as np

        self.name = name
        self.dtype = dtype
        self.shape = tuple(array.shape)
        self._array = array
        direct = array.flags.c_contiguous and array.dtype == array.dtype.newbyteorder("<")
        self._bytes = array.reshape(-1).view(np.uint8).data if direct and array.size else None

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes [start, stop)."""
        import numpy as np

        if self._bytes is not None:
            return self._bytes[start:stop]
        if stop <= start:
            return b""
        size = self._array.itemsize
        first = start // size
        elements = _range(self._array, first, -(-stop // size))
        little = np.ascontiguousarray(elements.astype(elements.dtype.newbyteorder("<"), copy=False))
        return little.view(np.uint8).data[start - first * size : stop - first * size]


def _range(array: Array, first: int, last: int) -> Array:
    """Elements [first, last) of an array in C order, copying no more than those."""
    import numpy as np

    if array.ndim <= 1:
        return array.reshape(-1)[first:last]
    row = array[0].size
    top, bottom = first // row, (last - 1) // row
    if top == bottom:
        return _range(array[top], first - top * row, last - top * row)
    pieces = [
        _range(array[top], first - top * row, row),
        np.ascontiguousarray(array[top + 1 : bottom]).reshape(-1),
        _range(array[bottom], 0, last - bottom * row),
    ]
    return np.concatenate(pieces)


class NumpyFramework:
    """numpy, and whatever offers its values as numpy arrays (JAX among them)."""

    name = "numpy"
    file_metadata: Mapping[str, str] = MappingProxyType({})

    def accepts(self, value: object) -> bool:
        """Whether the value has ``__array__``."""
        return hasattr(type(value), "__array__")

    def source(self, name: str, value: object) -> TensorSource:
        """An array as bytes. Raises UnsupportedValueError for object, string, masked and other unknown arrays."""
        import numpy as np

        array = np.asarray(value)
        dtype = _safetensors_name(array.dtype)
        if dtype is None or np.ma.isMaskedArray(value):
            kind = "a masked array" if dtype else f"numpy dtype {array.dtype}"
            raise UnsupportedValueError(
                f"tensor {name!r} has {kind}, which coral cannot keep without loss",
                hint="convert it to one of: " + ", ".join(_DTYPES),
            )
        return NumpyArray(name, dtype, array)

    def weights(self, value: object) -> Mapping[str, object] | None:
        """None: numpy has no modules."""
        return None

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
        """A fresh array and its bytes; packed types come as unsigned bytes."""
        import numpy as np

        nbytes = byte_count(dtype, shape)
        flat = np.empty(nbytes, np.uint8)
        data = flat.data
        if dtype not in NUMPY_NAMES:
            return flat.reshape(packed_shape(dtype, shape)), data
        return flat.view(numpy_dtype(NUMPY_NAMES[dtype])).reshape(shape), data

    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        """A strided view of an array from :meth:`empty`."""
        import numpy as np

        assert isinstance(tensor, np.ndarray)
        flat = tensor.reshape(-1)
        steps = check_view(flat.size, shape, stride, offset)
        strides = tuple(step * flat.itemsize for step in steps)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides)

    def not_exact(self, value: object) -> str | None:
        """Of what is no plain array, or has its bytes in the other order, what it would come back as."""
        import numpy as np

        if type(value) is not np.ndarray:
            return f"is a {type(value).__module__}.{type(value).__qualname__}, which would come back as a plain array"
        if value.dtype != value.dtype.newbyteorder("<"):
            return f"has its bytes in the order {value.dtype.str}, and would come back in the other"
        return None

    def flags(self, value: object) -> tuple[str, ...]:
        """None: an array is its bytes."""
        return ()

    def flagged(self, tensor: object, flags: tuple[str, ...]) -> object:
        """The array itself."""
        if flags:
            raise FormatError(f"a numpy array has no flags {list(flags)}")
        return tensor

    def dtype_name(self, value: object) -> str | None:
        """The name of a ``numpy.dtype``; None for structured dtypes and other values."""
        import numpy as np

        if not isinstance(value, np.dtype) or value.hasobject or value.names or value.shape or value.metadata:
            return None
        with contextlib.suppress(TypeError):  # bytes, text and raw memory have names that mean nothing
            if numpy_dtype(value.name) == value:
                return value.name
        return value.str

    def parse_dtype(self, name: str) -> object:
        """The ``numpy.dtype`` of a name."""
        if not _DTYPE_NAME.fullmatch(name):
            raise FormatError(f"unknown numpy dtype {name[:80]!r}")
        try:
            dtype = numpy_dtype(name)
        except TypeError:
            raise FormatError(f"unknown numpy dtype {name!r}") from None
        if dtype.hasobject:
            raise FormatError(f"unknown numpy dtype {name!r}")
        return dtype

    def encode(self, value: object) -> tuple[str, object] | None:
        """numpy's scalars: readable where that is exact, else their bytes in hex."""
        import numpy as np

        if type(value) is np.str_:
            # numpy's own conversion leaves out zeros at the end; half of a pair of surrogates has no bytes.
            plain = str(value)
            is_exact = np.str_(plain) == value and plain == plain.encode(errors="replace").decode()
            return ("str", plain) if is_exact else None
        if not isinstance(value, np.generic) or value.dtype.name not in _SCALAR_NAMES:
            return None
        if type(value) is not numpy_dtype(value.dtype.name).type:
            return None
        raw = value.tobytes()
        single = value.item()
        if isinstance(single, bool | int | float) and single - single == 0 and _scalar(value.dtype, single) == raw:
            return value.dtype.name, single
        return value.dtype.name, {"hex": raw.hex()}

    def decode(self, kind: str, payload: object) -> object:
        """A numpy scalar from its kind and JSON."""
        import numpy as np

        if kind == "str" and isinstance(payload, str):
            return np.str_(payload)
        if kind not in _SCALAR_NAMES:
            raise FormatError(f"unknown numpy scalar {kind[:80]!r}")
        dtype = numpy_dtype(kind)
        try:
            if isinstance(payload, dict):
                raw = bytes.fromhex(payload["hex"])
            else:
                raw = _scalar(dtype, payload)
            (value,) = np.frombuffer(raw, dtype)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FormatError(f"malformed numpy scalar of dtype {kind}") from None
        return value


def _scalar(dtype: np.dtype[np.generic], plain: object) -> bytes:
    import numpy as np

    return np.array(plain, dtype).tobytes()


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of a numpy (or ml_dtypes) name."""
    import numpy as np

    if "float8" in name or name == "bfloat16":
        import ml_dtypes

        found: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, name, name))
        return found
    return np.dtype(name)


def packed_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a packed tensor's bytes: the last axis packed where that comes out even, else one axis."""
    if shape and BITS[dtype] * shape[-1] % 8 == 0:
        return (*shape[:-1], BITS[dtype] * shape[-1] // 8)
    return (byte_count(dtype, shape),)


def check_view(size: int, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> tuple[int, ...]:
    """The strides of a view, checked to stay within ``size`` elements. Raises FormatError."""
    steps = stride if stride is not None else contiguous_stride(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=False))
    if len(steps) != len(shape) or min((offset, *steps, *shape)) < 0 or (0 not in shape and last >= size):
        raise FormatError(f"a view of shape {list(shape)} at {offset} leaves its tensor of {size} elements")
    if offset > size:
        raise FormatError(f"a view at {offset} leaves its tensor of {size} elements")
    return steps


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Elements between neighbours along each axis of a C-ordered tensor."""
    steps = []
    step = 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))


NUMPY = NumpyFramework()
"""The framework that is always there."""
