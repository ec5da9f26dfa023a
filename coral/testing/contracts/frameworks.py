"""What every framework of tensors promises: the bytes of its tensors, and its small values, come back as they were."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

from coral.errors import CoralError, FormatError, UnsupportedValueError
from coral.format.dtypes import BITS, byte_count, item_bytes
from coral.tensors.frameworks import Framework, find_framework, framework_named
from coral.tensors.shapes import packed_shape

_SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (2, 3, 4), (1, 5, 1)]
_WHOLE = [dtype for dtype in BITS if BITS[dtype] >= 8]
_VIEWS: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
    ((4, 6), (6, 1), 0),
    ((6, 4), (1, 6), 0),
    ((2, 3), (12, 2), 1),
    ((3, 4), (0, 1), 5),
    ((2, 3, 2), (12, 2, 6), 0),
    ((), (), 23),
    ((0, 4), (4, 1), 24),
    ((24,), (1,), 0),
]
_ELEMENTS = 24


class FrameworkContract:
    """The promises of :class:`coral.tensors.frameworks.Framework`.

    A subclass has the fixtures ``framework``, and ``values``: tensors that are something besides their bytes, dtypes,
    and small values of the library that are no tensors, each of which compares by ``==`` or by its ``repr``.
    """

    def test_it_is_found(self, framework: Framework) -> None:
        """By its name, and by its tensors; whose metadata is text."""
        tensor, _ = framework.empty("F32", (2,))
        assert framework_named(framework.name) is framework and find_framework(tensor) is framework
        assert framework.accepts(tensor) and framework.weights(tensor) is None
        assert all(isinstance(text, str) for pair in framework.file_metadata.items() for text in pair)

    def test_bytes_come_back(self, framework: Framework) -> None:
        """A tensor of any dtype and shape has its own bytes, whatever they are, and gives any range of them."""
        for dtype, shape in _kinds():
            tensor, data = _filled(framework, dtype, shape)
            source = framework.source("w", tensor)
            own, as_bytes = (dtype, shape), ("U8", packed_shape(dtype, shape))
            is_known = (source.dtype, tuple(source.shape)) in ((own, as_bytes) if BITS[dtype] < 8 else (own,))
            assert source.name == "w" and is_known, f"{dtype}{shape}: another kind"
            assert bytes(source.read(0, len(data))) == bytes(data), f"{dtype}{shape}"
            for start, stop in [(0, 0), (0, len(data) // 3), (len(data) // 3, len(data)), (len(data), len(data))]:
                assert bytes(source.read(start, stop)) == bytes(data[start:stop]), f"{dtype}{shape} from {start}"
            assert framework.not_exact(tensor) is None, f"{dtype}{shape}"

    def test_any_order_of_elements(self, framework: Framework) -> None:
        """A view that is transposed, stepped, repeated or empty gives its elements in C order, in any ranges."""
        for dtype, (shape, stride, offset) in product(_WHOLE, _VIEWS):
            tensor, data = _filled(framework, dtype, (_ELEMENTS,))
            size = item_bytes(dtype)
            wanted = b"".join(data[at * size : (at + 1) * size] for at in _places(shape, stride, offset))
            source = framework.source("v", framework.view(tensor, shape, stride, offset))
            assert (source.dtype, tuple(source.shape)) == (dtype, shape), f"{dtype} {shape}, {stride}"
            middle = len(wanted) // size // 2 * size
            got = bytes(source.read(0, middle)) + bytes(source.read(middle, len(wanted)))
            assert got == wanted == bytes(source.read(0, len(wanted))), f"{dtype} {shape}, {stride}"

    def test_tied_tensors_share_memory(self, framework: Framework) -> None:
        """Two views of one tensor are one memory: what is filled in, is seen by both."""
        for dtype in _WHOLE:
            tensor, data = _filled(framework, dtype, (_ELEMENTS,))
            ties = [framework.view(tensor, (4, 6), stride, 0) for stride in (None, (6, 1))]
            data[:] = bytes(len(data))
            assert all(bytes(framework.source("t", tie).read(0, len(data))) == bytes(data) for tie in ties), dtype

    def test_a_view_never_leaves_its_tensor(self, framework: Framework) -> None:
        """A view of memory that is not the tensor's is refused."""
        tensor, _ = framework.empty("F32", (_ELEMENTS,))
        outside: list[tuple[tuple[int, ...], tuple[int, ...] | None, int]] = [
            ((25,), (1,), 0),
            ((24,), None, 1),
            ((2,), (24,), 0),
            ((2,), (-1,), 5),
            ((-1,), (1,), 0),
            ((1,), (1,), -1),
            ((2, 2), (1,), 0),
            ((0,), (1,), 25),
            ((1 << 40, 1 << 40), (0, 1), 0),
        ]
        for shape, stride, offset in outside:
            _refused(partial(framework.view, tensor, shape, stride, offset), f"{shape}, {stride} at {offset}")

    def test_small_values_come_back(self, framework: Framework, values: Sequence[object]) -> None:
        """What is no tensor, what a tensor is besides its bytes, and a dtype come back of the same type and value."""
        for value in values:
            assert find_framework(value) is framework, repr(value)
            if framework.accepts(value) and framework.encode(value) is None:
                flags = framework.flags(value)
                assert flags, f"{value!r} is nothing besides its bytes"
                assert framework.flags(framework.flagged(framework.empty("F32", (2,))[0], flags)) == flags, repr(value)
                continue
            name, encoded = framework.dtype_name(value), framework.encode(value)
            assert (name is None) != (encoded is None), repr(value)
            again = framework.parse_dtype(name) if name is not None else framework.decode(*(encoded or ("", "")))
            assert type(again) is type(value) and (again == value or repr(again) == repr(value)), repr(value)

    def test_what_is_not_its_own(self, framework: Framework) -> None:
        """Values of others are not taken; names and flags that mean nothing are refused."""
        plain, _ = framework.empty("F32", (2,))
        assert framework.flags(plain) == ()
        for value in (None, 3, 2.5, "text", b"bytes", [1], {"a": 1}, object()):
            assert not framework.accepts(value) and framework.weights(value) is None, repr(value)
            assert framework.encode(value) is None and framework.dtype_name(value) is None, repr(value)
            assert find_framework(value) is None, repr(value)
        for name in ("", "nothing", "__class__", "x" * 9000, "float32]"):
            _refused(partial(framework.parse_dtype, name), name)
            _refused(partial(framework.decode, name, {"hex": "zz"}), name)
            _refused(partial(framework.flagged, plain, (name,)), name)


def _kinds() -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, shape in product(BITS, _SHAPES):
        if BITS[dtype] * math.prod(shape) % 8 == 0:
            yield dtype, shape
    yield from (("F4", (3, 4)), ("F6_E2M3", (2, 4)), ("F6_E3M2", (4, 3)))


def _filled(framework: Framework, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
    """A tensor with bytes of chance in it."""
    tensor, data = framework.empty(dtype, shape)
    assert len(data) == byte_count(dtype, shape), f"{dtype}{shape} has {len(data)} bytes"
    chance = random.Random(f"{dtype}{shape}")
    # A truth value has two that mean something.
    data[:] = bytes(chance.randrange(2) for _ in data) if dtype == "BOOL" else chance.randbytes(len(data))
    return tensor, data


def _places(shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Iterator[int]:
    """Where the elements of a view lie, in C order."""
    for index in product(*map(range, shape)):
        yield offset + sum(at * step for at, step in zip(index, stride, strict=True))


def _refused(attempt: Callable[[], object], what: str) -> None:
    try:
        attempt()
    except FormatError:
        return
    except (CoralError, UnsupportedValueError) as error:
        raise AssertionError(f"{what[:80]} is refused as {type(error).__name__}") from error
    raise AssertionError(f"{what[:80]} is not refused")
