"""numpy's arrays, and what offers its values as such (JAX among them), as tensors that coral can keep."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from coral.errors import FormatError, UnsupportedValueError
from coral.format.dtypes import NUMPY_NAMES, byte_count
from coral.tensors.shapes import check_view, packed_shape

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from coral.format.tensors import TensorSource

    Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

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
        # As unsigned integers: numpy does not know the smallest floats by their own name.
        carrier = flat.view(f"u{flat.itemsize}")[offset:]
        return np.lib.stride_tricks.as_strided(carrier, shape, strides).view(flat.dtype)

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


NUMPY = NumpyFramework()
"""The framework that is always there."""
