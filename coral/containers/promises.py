"""What the suffix of a file's name promises of its content, and the files that plainly break such a promise.

A file is known by its content, so a broken promise never decides how a file is taken apart. It tells that the file is
not what its owner takes it for: cut short, empty, or a pointer in the place of a model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Final, Literal, NamedTuple

from coral.containers import zips
from coral.containers.source import FileRange
from coral.errors import FormatError
from coral.format.manifest import is_manifest


class Promise(NamedTuple):
    """What a suffix says.

    Attributes:
        what: the format, as people call it.
        starts: what a file of it begins with; empty where that tells nothing.
        held: whether files so named begin so: always, so that any other is broken; mostly, because other tools use the
            name too; or sometimes, because it is anybody's name.
        has_tensors: whether coral takes such files apart.
        is_sought: whether files so named are likely to hold weights, and so are looked for in a project.
    """

    what: str
    starts: tuple[bytes, ...] = ()
    held: Literal["always", "mostly", "sometimes"] = "always"
    has_tensors: bool = False
    is_sought: bool = True


_ZIP = zips.MEMBER_SIGNATURE
_ZIP_END = zips.END_SIGNATURE
_ZIP_END_BYTES = 22
_ZIP_TAIL = _ZIP_END_BYTES + 0xFFFF
_PICKLE = b"\x80"
_NPY = b"\x93NUMPY"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEAST_HDF5 = 32
# An HDF5 file may begin with a block of somebody else's.
_HDF5_PLACES = (0, 512, 1024, 2048)
_TORCH = Promise("torch file", (_ZIP, _PICKLE), "mostly", has_tensors=True)

PROMISES: Final[Mapping[str, Promise]] = {
    ".safetensors": Promise("safetensors file", has_tensors=True),
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".bin": _TORCH._replace(held="sometimes"),
    ".npy": Promise("npy file", (_NPY,), has_tensors=True),
    ".npz": Promise("npz archive", (_ZIP, _ZIP_END), has_tensors=True),
    ".gguf": Promise("GGUF file", (b"GGUF",)),
    ".h5": Promise("HDF5 file", (_HDF5,), is_sought=False),
    ".hdf5": Promise("HDF5 file", (_HDF5,), is_sought=False),
    ".keras": Promise("Keras file", (_ZIP, _HDF5)),
    ".onnx": Promise("ONNX file"),
    ".joblib": Promise("joblib file"),
    ".ubj": Promise("UBJSON file"),
    ".distcp": Promise("distributed checkpoint", held="sometimes"),  # of a rank that had nothing to write it is empty
}
"""What each suffix promises; any other promises nothing."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_LFS_POINTER = 1024
_KEEP = "or have 'coral add --opaque' (opaque=True) keep it as it is"
AGAIN: Final = f"save it again, {_KEEP}"
"""What to do about a file that is damaged."""

_LONGEST_REASON = 300
_NPY_HEAD = 1 << 16
_NPY_ARRAY = re.compile(
    rb"\{'descr': '[<>|=]?([a-zA-Z])(\d{1,9})(?:\[\w{1,9}\])?', 'fortran_order': \w+, "
    rb"'shape': \(((?:\d{1,18}, ?){0,64}(?:\d{1,18})?)\)"
)
_NPY_UNICODE_BYTES = 4


def promise_of(name: str) -> Promise | None:
    """What a file's name promises; None when nothing."""
    return PROMISES.get(PurePath(name).suffix.lower())


def is_model_name(name: str) -> bool:
    """Whether a file so named is likely to hold weights."""
    promise = promise_of(name)
    return promise is not None and promise.is_sought


def check(data: FileRange, promise: Promise | None) -> None:
    """Refuse a file that is not what its name promises. A pointer in a file's place is refused under any name.

    Little is read, all of it from the front, and at most some at the end of an archive: what passes need not be whole.

    Raises:
        FormatError: the file is empty, a pointer, cut short, or begins as no file of its format does.
    """
    start = data.read(0, _NPY_HEAD)
    _refuse_pointer(start, "file" if promise is None else promise.what)
    if promise is None:
        return
    if not start and promise.held != "sometimes":
        raise FormatError(f"an empty file is no {promise.what}", hint=AGAIN)
    if promise.held == "always" and promise.starts and not _begins(data, promise.starts):
        raise FormatError(f"it begins as no {promise.what} does", hint=AGAIN)
    if any(start.startswith(known) for known in promise.starts):
        _refuse_cut(data, start)


def why_whole(data: FileRange, promise: Promise | None, why: str) -> str:
    """What to say of a file that is kept whole, given why it could not be taken apart; nothing where none is owed."""
    if promise is None or not promise.has_tensors:
        return ""
    if promise.starts and not _begins(data, promise.starts):
        return "" if promise.held == "sometimes" else f"it begins as no {promise.what} does"
    # It may quote the file.
    return why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"


def _begins(data: FileRange, starts: tuple[bytes, ...]) -> bool:
    return any(
        data.read(at, at + len(known)) == known
        for known in starts
        for at in (_HDF5_PLACES if known == _HDF5 else (0,))
        if at < len(data)
    )


def _refuse_pointer(start: bytes, what: str) -> None:
    is_of_lfs = start.startswith(_LFS_POINTER) and len(start) <= _LONGEST_LFS_POINTER
    command = "git lfs pull" if is_of_lfs else "coral pull"
    if is_of_lfs or is_manifest(start):
        raise FormatError(
            f"this is a pointer to a file, not the {what} itself",
            hint=f"fetch the real file first ({command}), {_KEEP}",
        )


def _refuse_cut(data: FileRange, start: bytes) -> None:
    """Raise FormatError for a file that ends before its format says it does."""
    if start.startswith(_ZIP) and not _has_zip_end(data.read(max(0, len(data) - _ZIP_TAIL), len(data))):
        raise FormatError("the archive is cut short: the directory at its end is missing", hint=AGAIN)
    whole = _npy_bytes(start) if start.startswith(_NPY) else _hdf5_bytes(start) if start.startswith(_HDF5) else 0
    if whole > len(data):
        raise FormatError(f"it is cut short: it has {len(data):,} of {whole:,} bytes", hint=AGAIN)


def _has_zip_end(tail: bytes) -> bool:
    at = tail.find(_ZIP_END)
    while at >= 0:
        comment = int.from_bytes(tail[at + _ZIP_END_BYTES - 2 : at + _ZIP_END_BYTES], "little")
        if at + _ZIP_END_BYTES + comment <= len(tail):
            return True
        at = tail.find(_ZIP_END, at + 1)
    return False


def _npy_bytes(start: bytes) -> int:
    """Bytes of a whole ``.npy`` file, as its header says; 0 where it does not."""
    width = 2 if start[6:7] == b"\1" else 4
    begin = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    array = _NPY_ARRAY.match(start[8 + width : begin])
    if array is None:
        return begin
    item = int(array[2]) * (_NPY_UNICODE_BYTES if array[1] == b"U" else 1)
    return begin + item * math.prod(int(length) for length in array[3].split(b",") if length.strip())


def _hdf5_bytes(start: bytes) -> int:
    """Bytes of a whole HDF5 file, as its superblock says; 0 where it does not."""
    if len(start) < _LEAST_HDF5:
        return _LEAST_HDF5
    width_at, addresses_at = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}.get(start[8], (0, 0))
    width = start[width_at] if width_at else 0
    if width not in (4, 8):
        return 0
    end_at = addresses_at + 2 * width  # after the base address, and another one
    end = start[end_at : end_at + width]
    if len(end) < width:
        return end_at + width
    return 0 if end == b"\xff" * width else int.from_bytes(end, "little")
