"""The loops over elements: in C where the kernel was built when coral was installed, else the same in numpy.

Elements are unsigned integers of 1, 2, 4 or 8 bytes. A *difference* is an element less its base's, modulo the width,
plus a bias that gives small differences of either sign the same upper bytes. A *key* is what a base's exponent is when
it is a float: elements of one key change by similar numbers of units in the last place, so they are coded together.

The encoder for skewed bytes is in C only; what it writes is read with any zstd.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Elements = NDArray[np.unsignedinteger[Any]]
    Tally = NDArray[np.uint32]

BIAS = {1: 0x80, 2: 0x80, 4: 0x808080, 8: 0x80808080808080}
LIBRARY = Path(__file__).with_name("_kernel.so")
_VERSION = 4
_WAYS = 4
_WORTH_WAKING = 32768  # bytes: some microseconds of work
_KEY_SHIFT, _KEY_MASK = {1: 3, 2: 7, 4: 23, 8: 52}, {1: 15, 2: 255, 4: 255, 8: 255}


def upper_byte(item: int, number: int) -> int:
    """Byte ``number`` (from 1) of a small difference's element: the bias's own."""
    return BIAS[item] >> (8 * number) & 0xFF


def elements_of(data: memoryview, item: int) -> Elements:
    """Bytes as elements; a view."""
    return np.frombuffer(data, f"<u{item}")


class NumpyKernel:
    """The loops in numpy; what the C kernel must agree with."""

    is_native = False

    def split(self, raw: Elements, base: Elements | None, planes: Bytes) -> None:
        """Byte planes of elements, or of their differences to ``base``: row j of ``planes`` takes the bytes j."""
        values = raw if base is None else raw - base + raw.dtype.type(BIAS[raw.itemsize])
        for number, plane in enumerate(planes):
            np.right_shift(values, 8 * number, out=plane, casting="unsafe")

    def join(self, planes: Sequence[Bytes], base: Elements | None, out: Elements) -> None:
        """Undo :meth:`split`; ``base`` may be ``out``."""
        values = np.zeros_like(out)
        for number, plane in enumerate(planes):
            values |= plane.astype(out.dtype) << (8 * number)
        np.copyto(out, values if base is None else values + base - out.dtype.type(BIAS[out.itemsize]))

    def tally(self, base: Elements) -> Tally:
        """How often each of the 256 keys occurs in each quarter of ``base``, the last of them with the rest."""
        keys, part = _keys(base), base.size // _WAYS
        parts = [keys[way * part : (way + 1) * part] for way in range(_WAYS - 1)] + [keys[(_WAYS - 1) * part :]]
        return np.stack([np.bincount(part, minlength=256) for part in parts]).astype(np.uint32)

    def group(self, raw: Elements, base: Elements, tally: Tally, planes: Bytes) -> None:
        """As :meth:`split` of the differences, in the order of their keys; equal keys stay in their order."""
        order = np.argsort(_keys(base), kind="stable")
        self.split(raw[order], base[order], planes)

    def ungroup(self, planes: Sequence[Bytes], base: Elements, tally: Tally, out: Elements) -> None:
        """Undo :meth:`group`; ``base`` may be ``out``."""
        order = np.argsort(_keys(base), kind="stable")
        values = base[order]
        self.join(planes, values, values)
        out[order] = values

    def same(self, one: memoryview, two: memoryview) -> bool:
        """Whether two buffers of one length hold the same bytes."""
        return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)))

    def narrow(
        self, planes: Bytes, start: int, stop: int, width: int, packed: Bytes, escaped: Bytes, count: int
    ) -> int:
        """Pack the differences [start, stop) into ``width`` bits each.

        What does not fit gets the code of all ones, and its bytes go to the columns of ``escaped`` from ``count`` on;
        returns the count after.
        """
        escape, part = (1 << width) - 1, planes[:, start:stop]
        codes = part[0] - np.uint8(0x80 - (escape >> 1))
        large = codes >= escape
        for number in range(1, len(planes)):
            large |= part[number] != upper_byte(len(planes), number)
        after = count + int(np.count_nonzero(large))
        escaped[:, count:after] = part[:, large]
        codes[large] = escape
        per_byte = 8 // width
        full = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
        full[: codes.size] = codes
        packed[: full.size // per_byte] = _sum_shifted(full.reshape(-1, per_byte), width)
        return after

    def widen(self, packed: Bytes, start: int, stop: int, width: int, escaped: Bytes, count: int, planes: Bytes) -> int:
        """Undo :meth:`narrow`; a count of more than the columns of ``escaped`` says that the data is damaged."""
        escape, per_byte, part = (1 << width) - 1, 8 // width, planes[:, start:stop]
        shifts = np.arange(per_byte, dtype=np.uint8) * width
        codes = ((packed[:, None] >> shifts) & escape).reshape(-1)[: stop - start].astype(np.uint8)
        np.add(codes, 0x80 - (escape >> 1), out=part[0], casting="unsafe")
        for number in range(1, len(planes)):
            part[number] = upper_byte(len(planes), number)
        large = np.flatnonzero(codes == escape)
        after = count + large.size
        held = large[: max(0, escaped.shape[1] - count)]
        part[:, held] = escaped[:, count : count + held.size]
        return after

    def compress(self, data: Bytes) -> bytes | None:
        """A zstd frame of Huffman codes only, for bytes that are skewed but do not repeat.

        None where another way may do better: it would not be smaller, most bytes are the same as the next one, there
        are few, or this kernel has no such encoder.
        """
        return None


def _keys(elements: Elements) -> NDArray[np.uint8]:
    item = elements.itemsize
    return ((elements >> elements.dtype.type(_KEY_SHIFT[item])) & elements.dtype.type(_KEY_MASK[item])).astype(np.uint8)


def _sum_shifted(codes: Bytes, width: int) -> Bytes:
    packed = codes[:, 0].copy()
    for number in range(1, codes.shape[1]):
        packed |= codes[:, number] << (width * number)
    return packed


class _Room(threading.local):
    """Where a thread's frames are made, and its elements sorted: fresh memory would cost more than that."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._start = 0

    def take(self, length: int) -> int:
        """The address of so many bytes, until it is asked for again."""
        if self._bytes.size < length:
            self._bytes = np.empty(length, np.uint8)
            self._start = _address(self._bytes)
        return self._start


class _Functions:
    """The functions of the library, as one way to call them has them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        sized, address, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        pointers = ctypes.POINTER(address)
        self.narrow, self.widen, self.huffman = library.coral_narrow, library.coral_widen, library.coral_huffman
        self.narrow.restype = self.widen.restype = self.huffman.restype = sized
        self.narrow.argtypes = [address, sized, sized, sized, number, number, *[address] * 3, sized, sized]
        self.widen.argtypes = [address, sized, sized, sized, number, number, address, sized, sized, address]
        self.huffman.argtypes = [address, sized, address, sized]
        self.same = library.coral_same
        self.same.argtypes, self.same.restype = [address, address, sized], number
        arguments = {
            "split": [address, address, sized, address],
            "join": [pointers, address, sized, address],
            "count": [address, sized, address],
            "group": [address, address, sized, address, address, address],
            "ungroup": [pointers, address, sized, address, address, address],
        }
        self.loops = {}
        for name, types in arguments.items():
            for item in (1, 2, 4, 8):
                loop = getattr(library, f"coral_{name}_{item}")
                loop.argtypes, loop.restype = types, None
                self.loops[name, item] = loop


class NativeKernel(NumpyKernel):
    """The loops in C. The planes that are written must be rows of one array."""

    is_native = True

    def __init__(self, path: Path) -> None:
        self._parallel, self._brief = _Functions(ctypes.CDLL(str(path))), _Functions(ctypes.PyDLL(str(path)))
        self._room = _Room()

    def _for(self, nbytes: int) -> _Functions:
        """Whose calls let go of the GIL only where that is worth waking another thread."""
        return self._parallel if nbytes >= _WORTH_WAKING else self._brief

    def split(self, raw: Elements, base: Elements | None, planes: Bytes) -> None:
        self._for(raw.nbytes).loops["split", raw.itemsize](
            _address(raw), None if base is None else _address(base), raw.size, _address(planes)
        )

    def join(self, planes: Sequence[Bytes], base: Elements | None, out: Elements) -> None:
        self._for(out.nbytes).loops["join", out.itemsize](
            _addresses(planes), None if base is None else _address(base), out.size, _address(out)
        )

    def tally(self, base: Elements) -> Tally:
        counts = np.empty((_WAYS, 256), np.uint32)
        self._for(base.nbytes).loops["count", base.itemsize](_address(base), base.size, _address(counts))
        return counts

    def group(self, raw: Elements, base: Elements, tally: Tally, planes: Bytes) -> None:
        places = _places(tally)
        values = self._room.take(raw.nbytes)
        self._for(raw.nbytes).loops["group", raw.itemsize](
            _address(raw), _address(base), raw.size, _address(places), values, _address(planes)
        )

    def ungroup(self, planes: Sequence[Bytes], base: Elements, tally: Tally, out: Elements) -> None:
        places = _places(tally)
        values = self._room.take(out.nbytes)
        self._for(out.nbytes).loops["ungroup", out.itemsize](
            _addresses(planes), _address(base), out.size, _address(places), values, _address(out)
        )

    def same(self, one: memoryview, two: memoryview) -> bool:
        length = min(len(one), len(two))
        first, second = np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8)
        return len(one) == len(two) and bool(self._for(length).same(_address(first), _address(second), length))

    def narrow(
        self, planes: Bytes, start: int, stop: int, width: int, packed: Bytes, escaped: Bytes, count: int
    ) -> int:
        codes = self._room.take(stop - start + 8)
        item, length = planes.shape
        found: int = self._for(stop - start).narrow(
            _address(planes), length, start, stop, item, width,
            codes, _address(packed), _address(escaped), escaped.shape[1], count,
        )  # fmt: skip
        return found

    def widen(self, packed: Bytes, start: int, stop: int, width: int, escaped: Bytes, count: int, planes: Bytes) -> int:
        item, length = planes.shape
        found: int = self._for(stop - start).widen(
            _address(packed), length, start, stop, item, width,
            _address(escaped), escaped.shape[1], count, _address(planes),
        )  # fmt: skip
        return found

    def compress(self, data: Bytes) -> bytes | None:
        room = self._room.take(data.size)
        length = self._for(data.size).huffman(_address(data), data.size, room, data.size)
        return ctypes.string_at(room, length) if length else None


def _address(array: NDArray[Any]) -> int:
    # A third of the time of array.ctypes.data.
    address: int = array.__array_interface__["data"][0]
    return address


def _addresses(planes: Sequence[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(planes))(*map(_address, planes))


def _places(tally: Tally) -> Tally:
    """Where the first element of each key goes, for each quarter."""
    before = np.cumsum(tally, axis=0, dtype=np.uint32)
    starts = np.zeros(256, np.uint32)
    np.cumsum(before[-1, :-1], out=starts[1:])
    places = starts + before
    places -= tally
    return places


def _load() -> NumpyKernel:
    try:
        if ctypes.CDLL(str(LIBRARY)).coral_kernel_version() == _VERSION and sys.byteorder == "little":
            return NativeKernel(LIBRARY)
    except (OSError, AttributeError):
        pass  # not built, or for another machine
    return NumpyKernel()


kernel = _load()
"""What this process uses."""
