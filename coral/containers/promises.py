"""What the suffix of a file's name promises of its content, and the files that plainly break such a promise.

A file is known by its content, so a broken promise never decides how a file is taken apart. It tells that the file is
not what its owner takes it for: cut short, empty, or a pointer in the place of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from coral.containers.source import FileRange
from coral.errors import FormatError
from coral.format.manifest import is_manifest


def _seems_whole(_: FileRange) -> str:
    return ""


class Start(NamedTuple):
    """A way in which the files of a format begin.

    Attributes:
        magic: the bytes.
        why_cut: what is missing of a file that begins so, as far as its first 64 KiB and its end tell; empty for
            nothing.
        places: where they may stand.
    """

    magic: bytes
    why_cut: Callable[[FileRange], str] = _seems_whole
    places: tuple[int, ...] = (0,)


class Promise(NamedTuple):
    """What a suffix says.

    Attributes:
        what: the format, as people call it.
        starts: how a file of it begins; empty where that tells nothing.
        held: whether files so named begin so: always, so that any other is broken; mostly, because other tools use the
            name too; or sometimes, because it is anybody's name.
        has_tensors: whether coral takes such files apart.
        is_sought: whether files so named are likely to hold weights, and so are looked for in a project.
        refuses_malformed: whether one that begins right and is malformed is broken too, rather than kept whole. An
            archive is one under any name.
    """

    what: str
    starts: tuple[Start, ...] = ()
    held: Literal["always", "mostly", "sometimes"] = "always"
    has_tensors: bool = True
    is_sought: bool = True
    refuses_malformed: bool = False


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_LFS_POINTER = 1024
_KEEP = "or have 'coral add --opaque' (opaque=True) keep it as it is"
AGAIN: Final = f"save it again, {_KEEP}"
"""What to do about a file that is damaged."""

FRONT_BYTES: Final = 1 << 16
"""What is read of a file's front to judge it by its name."""

_LONGEST_REASON = 300


def check(data: FileRange, promise: Promise | None) -> None:
    """Refuse a file that is not what its name promises. A pointer in a file's place is refused under any name.

    Little is read, all of it from the front, and at most some at the end of an archive: what passes need not be whole.

    Raises:
        FormatError: the file is empty, a pointer, cut short, or begins as no file of its format does.
    """
    front = data.read(0, FRONT_BYTES)
    _refuse_pointer(front, "file" if promise is None else promise.what)
    if promise is None:
        return
    if not front and promise.held != "sometimes":
        raise FormatError(f"an empty file is no {promise.what}", hint=AGAIN)
    if promise.held == "always" and promise.starts and not _begins(data, promise.starts):
        raise FormatError(f"it begins as no {promise.what} does", hint=AGAIN)
    for start in promise.starts:
        why = start.why_cut(data) if front.startswith(start.magic) else ""
        if why:
            raise FormatError(why, hint=AGAIN)


def why_whole(data: FileRange, promise: Promise | None, why: str) -> str:
    """What to say of a file that is kept whole, given why it could not be taken apart; nothing where none is owed."""
    if promise is None or not promise.has_tensors:
        return ""
    if promise.starts and not _begins(data, promise.starts):
        return "" if promise.held == "sometimes" else f"it begins as no {promise.what} does"
    # It may quote the file.
    return why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"


def shorter_than(data: FileRange, whole: int) -> str:
    """What is missing of a file that should have so many bytes; empty for nothing."""
    return f"it is cut short: it has {len(data):,} of {whole:,} bytes" if whole > len(data) else ""


def _begins(data: FileRange, starts: tuple[Start, ...]) -> bool:
    return any(
        data.read(at, at + len(start.magic)) == start.magic for start in starts for at in start.places if at < len(data)
    )


def _refuse_pointer(front: bytes, what: str) -> None:
    is_of_lfs = front.startswith(_LFS_POINTER) and len(front) <= _LONGEST_LFS_POINTER
    command = "git lfs pull" if is_of_lfs else "coral pull"
    if is_of_lfs or is_manifest(front):
        raise FormatError(
            f"this is a pointer to a file, not the {what} itself",
            hint=f"fetch the real file first ({command}), {_KEEP}",
        )
