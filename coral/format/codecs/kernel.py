"""The loops over elements and streams: in C where the kernel was built when coral was installed, else in numpy.

Elements are unsigned integers of 1, 2, 4 or 8 bytes. A *difference* is an element less its base's, modulo the width,
plus a bias that gives small differences of either sign the same upper bytes. A *key* is what a base's exponent is when
it is a float: elements of one key change by similar numbers of units in the last place, so they are coded together.

What the kernels write may differ: numpy's leaves all compression to zstd. What they read may not.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Elements = NDArray[np.unsignedinteger[Any]]
    Numbers = NDArray[np.uint64]
    Tally = NDArray[np.uint32]

BIAS = {1: 0x80, 2: 0x80, 4: 0x808080, 8: 0x80808080808080}
LIBRARY = Path(__file__).with_name("_kernel.so")
_VERSION = 5
_WAYS = 4
_SEGMENT = 16384
_SEGMENTS_MOST = 256
_WORTH_WAKING = 32768  # bytes: some microseconds of work
_KEY_SHIFT, _KEY_MASK = {1: 3, 2: 7, 4: 23, 8: 52}, {1: 15, 2: 255, 4: 255, 8: 255}


PLAIN, SKEWED, REPEATING = 0, 1, 2
"""How a stream may be stored: as it is, in Huffman codes, or after a search for repetitions."""
START, LENGTH, WAY, SIZE = range(4)
"""The columns of the rows that say what the streams of a payload are: where each lies among the bytes of all, how long
it is, how it is to be stored; and, once it is, its size, as the payload says it."""
COMPRESSED = 1 << 31
"""Set in the size of a stream that is a zstd frame."""
PLANES_MODE = 0
"""The mode of a segment whose planes are kept; others are the bits of a packed difference."""


class Keys(NamedTuple):
    """How a base's keys cut its elements into segments.

    Attributes:
        tally: how often each of the 256 keys occurs in each quarter of the base, the last of them with the rest.
        stops: where each segment ends, in the order of the keys.
    """

    tally: Tally
    stops: Numbers


class Groups(NamedTuple):
    """Differences in the order of their keys, coded segment by segment.

    Attributes:
        data: the bytes of all streams.
        rows: the streams; those of the escaped elements are the last.
        modes: of each segment.
        escaped: how many elements are.
    """

    data: Bytes
    rows: Numbers
    modes: bytes
    escaped: int


class Streams(NamedTuple):
    """Streams as they were read.

    Attributes:
        payload: what they were read from, and some of them still are in.
        room: where the others are.
        places: of each stream in the payload, or, from its length on, in the room.
        lengths: of each stream.
    """

    payload: Bytes
    room: Bytes
    places: Numbers
    lengths: Numbers

    def get(self, number: int) -> Bytes:
        """The bytes of one stream; a view."""
        start, length = int(self.places[number]), int(self.lengths[number])
        inside = start - self.payload.size
        return self.payload[start : start + length] if inside < 0 else self.room[inside : inside + length]


def upper_byte(item: int, number: int) -> int:
    """Byte ``number`` (from 1) of a small difference's element: the bias's own."""
    return BIAS[item] >> (8 * number) & 0xFF


def elements_of(data: memoryview, item: int) -> Elements:
    """Bytes as elements; a view."""
    return np.frombuffer(data, f"<u{item}")


class NumpyKernel:
    """The loops in numpy; what the C kernel must agree with."""

    is_native = False

    def survey(self, raw: Elements, base: Elements | None, length: int) -> list[int] | None:
        """About how many bytes each plane of two samples takes as a stream; None where that must be tried.

        The samples are ``length`` elements, or differences, from the start and as many from the middle.
        """
        return None

    def split(self, raw: Elements, base: Elements | None, planes: Bytes) -> None:
        """Byte planes of elements, or of their differences to ``base``: row j of ``planes`` takes the bytes j."""
        values = raw if base is None else raw - base + raw.dtype.type(BIAS[raw.itemsize])
        for number, plane in enumerate(planes):
            np.right_shift(values, 8 * number, out=plane, casting="unsafe")

    def join(self, planes: Streams, base: Elements | None, out: Elements) -> None:
        """Undo :meth:`split`; ``base`` may be ``out``."""
        _join([planes.get(number) for number in range(out.itemsize)], base, out)

    def count(self, base: Elements) -> Keys:
        """Which keys there are, and the segments that they make."""
        keys, part = _keys(base), base.size // _WAYS
        parts = [keys[way * part : (way + 1) * part] for way in range(_WAYS - 1)] + [keys[(_WAYS - 1) * part :]]
        tally = np.stack([np.bincount(part, minlength=256) for part in parts]).astype(np.uint32)
        stops, start, stop = [], 0, 0
        for number in tally.sum(axis=0).tolist():
            stop += number
            if stop - start >= _SEGMENT:
                stops.append(stop)
                start = stop
        return Keys(tally, np.array(stops + [stop] * (stop > start), np.uint64))

    def group(self, raw: Elements, base: Elements, take: Callable[[int], Bytes]) -> Groups:
        """Sort the differences by their keys, stably, and code each segment in the mode that takes least.

        This kernel knows of one mode only.

        Args:
            take: gives memory, which the groups then lie in.
        """
        stops = self.count(base).stops.tolist()
        order = np.argsort(_keys(base), kind="stable")
        data = take(raw.nbytes)
        self.split(raw[order], base[order], data.reshape(raw.itemsize, raw.size))
        rows = [
            (plane * raw.size + start, stop - start, SKEWED, 0)
            for start, stop in itertools.pairwise([0, *stops])
            for plane in range(raw.itemsize)
        ]
        none = [(0, 0, SKEWED, 0)] * raw.itemsize
        return Groups(data, np.array(rows + none, np.uint64), bytes(len(stops)), 0)

    def ungroup(
        self, streams: Streams, modes: bytes, escaped: int, keys: Keys, base: Elements, out: Elements, room: Bytes
    ) -> bool:
        """Undo :meth:`group`; False where the streams do not fit together.

        ``base`` may be ``out``; ``room`` is twice as large.
        """
        item = out.itemsize
        planes, start, number, done = room[: out.nbytes].reshape(item, out.size), 0, 0, 0
        last = streams.lengths.size - item
        large = np.stack([streams.get(last + plane) for plane in range(item)])
        for stop, mode in zip(keys.stops.tolist(), modes, strict=True):
            if mode != PLANES_MODE:
                done = _widen(streams.get(number), mode, large, done, planes[:, start:stop])
                number += 1
            else:
                for plane in planes:
                    plane[start:stop] = streams.get(number)
                    number += 1
            start = stop
        if done != escaped:
            return False
        order = np.argsort(_keys(base), kind="stable")
        values = base[order]
        _join(list(planes), values, values)
        out[order] = values
        return True

    def same(self, one: memoryview, two: memoryview) -> bool:
        """Whether two buffers of one length hold the same bytes."""
        return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)))

    def pack(self, data: Bytes, rows: Numbers, first: int, place: Bytes) -> int:
        """Store the streams from ``first`` on behind those before; returns the number of one that is left to zstd.

        That is the number of streams when there is none; else its row's size is where it is to go.
        """
        if first < len(rows):
            rows[first, SIZE] = (rows[:first, SIZE] & np.uint64(COMPRESSED - 1)).sum()
        return first

    def pack_planes(self, raw: Elements, base: Elements | None, data: Bytes, rows: Numbers, place: Bytes) -> int:
        """:meth:`split` and :meth:`pack`; fills in where the rows' streams are in ``data``."""
        self.split(raw, base, data.reshape(raw.itemsize, raw.size))
        rows[:, START], rows[:, LENGTH] = np.arange(raw.itemsize) * raw.size, raw.size
        return self.pack(data, rows, 0, place)

    def unpack(self, streams: Streams, first: int) -> int:
        """Read the streams from ``first`` on, and fill in their places; returns as :meth:`pack`."""
        return first


def _join(planes: Sequence[Bytes], base: Elements | None, out: Elements) -> None:
    values = np.zeros_like(out)
    for number, plane in enumerate(planes):
        values |= plane.astype(out.dtype) << (8 * number)
    np.copyto(out, values if base is None else values + base - out.dtype.type(BIAS[out.itemsize]))


def packed_length(elements: int, width: int) -> int:
    """Bytes of so many differences of ``width`` bits."""
    return -(-elements * width // 8)


def _keys(elements: Elements) -> NDArray[np.uint8]:
    item = elements.itemsize
    return ((elements >> elements.dtype.type(_KEY_SHIFT[item])) & elements.dtype.type(_KEY_MASK[item])).astype(np.uint8)


def _widen(packed: Bytes, width: int, escaped: Bytes, count: int, planes: Bytes) -> int:
    """The planes of packed differences. Of the codes of all ones, ``count`` came before; returns how many there are."""
    escape, per_byte = (1 << width) - 1, 8 // width
    shifts = np.arange(per_byte, dtype=np.uint8) * width
    codes = ((packed[:, None] >> shifts) & escape).reshape(-1)[: planes.shape[1]].astype(np.uint8)
    np.add(codes, 0x80 - (escape >> 1), out=planes[0], casting="unsafe")
    for number in range(1, len(planes)):
        planes[number] = upper_byte(len(planes), number)
    large = np.flatnonzero(codes == escape)
    held = large[: max(0, escaped.shape[1] - count)]
    planes[:, held] = escaped[:, count : count + held.size]
    return count + large.size


class _Functions:
    """The functions of the library, as one way to call them has them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        size, at, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        self.survey = _declare(library.coral_survey, None, at, at, size, number, size, at)
        self.join = _declare(library.coral_join, None, at, at, size, number, at)
        self.count = _declare(library.coral_count, size, at, size, number, at, at)
        self.group_room = _declare(library.coral_group_room, size, size, number)
        self.group = _declare(library.coral_group, size, at, at, size, number, at, at, at, at)
        self.ungroup = _declare(library.coral_ungroup, number, at, at, at, size, size, at, at, size, number, at, at)
        self.same = _declare(library.coral_same, number, at, at, size)
        self.pack = _declare(library.coral_pack, size, at, at, size, size, at)
        self.pack_planes = _declare(library.coral_pack_planes, size, at, at, size, number, at, at, at)
        self.unpack = _declare(library.coral_unpack, size, at, size, at, size, size, at, at)


def _declare(function: Any, result: Any, *arguments: Any) -> Callable[..., int]:
    function.restype, function.argtypes = result, arguments
    declared: Callable[..., int] = function
    return declared


class NativeKernel(NumpyKernel):
    """The loops in C. Arrays must be contiguous."""

    is_native = True

    def __init__(self, path: Path) -> None:
        self._parallel, self._brief = _Functions(ctypes.CDLL(str(path))), _Functions(ctypes.PyDLL(str(path)))

    def _for(self, nbytes: int) -> _Functions:
        """Whose calls let go of the GIL only where that is worth waking another thread."""
        return self._parallel if nbytes >= _WORTH_WAKING else self._brief

    def survey(self, raw: Elements, base: Elements | None, length: int) -> list[int] | None:
        sizes = (ctypes.c_uint32 * raw.itemsize)()
        self._brief.survey(_address(raw), _address_or_none(base), raw.size, raw.itemsize, length, sizes)
        return list(sizes)

    def join(self, planes: Streams, base: Elements | None, out: Elements) -> None:
        self._for(out.nbytes).join(_described(planes), _address_or_none(base), out.size, out.itemsize, _address(out))

    def count(self, base: Elements) -> Keys:
        tally, stops = np.empty((_WAYS, 256), np.uint32), np.empty(_SEGMENTS_MOST, np.uint64)
        found = self._for(base.nbytes).count(_address(base), base.size, base.itemsize, _address(tally), _address(stops))
        return Keys(tally, stops[:found])

    def group(self, raw: Elements, base: Elements, take: Callable[[int], Bytes]) -> Groups:
        item, functions = raw.itemsize, self._for(raw.nbytes)
        segments = min(_SEGMENTS_MOST, raw.size // _SEGMENT + 1)
        data = take(functions.group_room(raw.size, item))
        rows, modes = np.empty((item * (segments + 1), SIZE + 1), np.uint64), np.empty(segments, np.uint8)
        found = (ctypes.c_uint64 * 2)()
        used = functions.group(
            _address(raw), _address(base), raw.size, item, _address(data), _address(modes), _address(rows), found
        )
        return Groups(data, rows[: found[0]], modes[:used].tobytes(), found[1])

    def ungroup(
        self, streams: Streams, modes: bytes, escaped: int, keys: Keys, base: Elements, out: Elements, room: Bytes
    ) -> bool:
        return bool(
            self._for(out.nbytes).ungroup(
                _described(streams), modes, _address(keys.stops), len(modes), escaped,
                _address(keys.tally), _address(base), out.size, out.itemsize, _address(room), _address(out),
            )
        )  # fmt: skip

    def same(self, one: memoryview, two: memoryview) -> bool:
        length = min(len(one), len(two))
        first, second = np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)
        return len(one) == len(two) and bool(self._for(length).same(_address(first), _address(second), length))

    def pack(self, data: Bytes, rows: Numbers, first: int, place: Bytes) -> int:
        return self._for(place.size).pack(_address(data), _address(rows), first, len(rows), _address(place))

    def pack_planes(self, raw: Elements, base: Elements | None, data: Bytes, rows: Numbers, place: Bytes) -> int:
        return self._for(raw.nbytes).pack_planes(
            _address(raw), _address_or_none(base), raw.size, raw.itemsize,
            _address(data), _address(rows), _address(place),
        )  # fmt: skip

    def unpack(self, streams: Streams, first: int) -> int:
        payload, room, places, lengths = streams
        return self._for(room.size).unpack(
            _address(payload), payload.size, _address(lengths), first, lengths.size, _address(room), _address(places)
        )


def _described(streams: Streams) -> ctypes.Array[ctypes.c_uint64]:
    payload, room, places, lengths = streams
    return (ctypes.c_uint64 * 6)(
        _address(payload), payload.size, _address(room), _address(places), _address(lengths), lengths.size
    )


def _address(array: NDArray[Any]) -> int:
    # A third of the time of array.ctypes.data.
    address: int = array.__array_interface__["data"][0]
    return address


def _address_or_none(array: NDArray[Any] | None) -> int | None:
    return None if array is None else _address(array)


def _load() -> NumpyKernel:
    try:
        if ctypes.CDLL(str(LIBRARY)).coral_kernel_version() == _VERSION and sys.byteorder == "little":
            return NativeKernel(LIBRARY)
    except (OSError, AttributeError):
        pass  # not built, or for another machine
    return NumpyKernel()


kernel = _load()
"""What this process uses."""
