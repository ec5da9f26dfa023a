"""What git-LFS leaves in a repository: pointers in place of files, their bytes below ``.git``, lines of attributes.

Nothing here runs git-LFS, which need not be there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from coral.errors import NotFoundError
from coral.git.command import ask

ATTRIBUTES = ".gitattributes"
POINTER_LIMIT = 1024
"""Bytes of the longest pointer, by git-LFS's specification."""
ATTRIBUTES_LIMIT = 1 << 20

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (0|[1-9][0-9]{0,18})\n?"
)
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")
_PATTERN = re.compile(rb'[ \t\r]*(?:"(?:[^"\\\n]|\\[^\n])*"|[^ \t\r\n]+)')
_WORDS = re.compile(rb"[ \t\r]*[^ \t\r\n]+")
_BOM = b"\xef\xbb\xbf"
_SAID_BY_A_MACRO = b"binary"


class Pointer(NamedTuple):
    """What git-LFS keeps in git for a file: the SHA-256 of its bytes, in hexadecimal, and how many they are."""

    sha256: str
    size: int


def parse_pointer(data: bytes) -> Pointer | None:
    """The pointer that a blob is; None for anything else, such as one that names extensions."""
    match = _POINTER.fullmatch(data) if len(data) <= POINTER_LIMIT else None
    return Pointer(match[1].decode(), int(match[2])) if match is not None else None


class LfsObjects:
    """The files whose pointers git keeps, as git-LFS has them on this machine.

    Args:
        root: the folder of the objects.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def of(cls, folder: Path) -> LfsObjects:
        """Those of the repository that a folder is in. Raises NotFoundError when it is in none."""
        common = _answer(ask(folder, ["rev-parse", "--git-common-dir"]))
        if not common:
            raise NotFoundError(f"{folder} is in no git repository")
        storage = _answer(ask(folder, ["config", "--type=path", "--get", "lfs.storage"], nothing_found=1))
        return cls(Path(os.path.normpath(folder / common / (storage or "lfs") / "objects")))

    def path(self, pointer: Pointer) -> Path:
        """Where the bytes are, if they are here."""
        name = pointer.sha256
        return self._root / name[:2] / name[2:4] / name


def _answer(text: str | None) -> str:
    return (text or "").removesuffix("\n")


# -- lines of attributes


class _Line(NamedTuple):
    """A line that gives a pattern attributes: the pattern, each word with the blanks before it, and what is left."""

    start: bytes
    words: tuple[bytes, ...]
    end: bytes

    @property
    def pattern(self) -> str:
        return self.start.strip(b" \t\r").removeprefix(_BOM).decode(errors="replace")

    @property
    def uses_lfs(self) -> bool:
        filters = [word for word in map(_bare, self.words) if _attribute(word) == b"filter"]
        return filters[-1:] == [b"filter=lfs"]

    def with_coral(self) -> bytes:
        words = [word.removesuffix(b"lfs") + b"coral" if _is_of_lfs(word) else word for word in self.words]
        bare = [_bare(word) for word in words]
        said = {_attribute(word): word for word in bare}
        if _SAID_BY_A_MACRO not in said:
            words += [b" %s=coral" % name for name in (b"diff", b"merge") if name not in said]
            # Line breaks that git changed would be none of a manifest's.
            words += [b" -text"] if said.get(b"text") != b"-text" else []
        return self.start + b"".join(words) + self.end


def lfs_lines(text: bytes) -> dict[int, str]:
    """The lines of a ``.gitattributes`` that hand files to git-LFS: their numbers, from 0, and their patterns."""
    return {number: line.pattern for number, line in _parsed(text) if line.uses_lfs}


def with_coral(text: bytes, numbers: Collection[int] | None = None) -> bytes:
    """The text with lines of git-LFS's made coral's, and every other byte as it was.

    Args:
        numbers: of those in :func:`lfs_lines`; None takes all.
    """
    return _edited(text, lambda number, line: line.with_coral() if numbers is None or number in numbers else None)


def with_marks(text: bytes, marks: Mapping[int, str]) -> bytes:
    """The text with another filter in lines of git-LFS's, so that git can be asked which of them stands for a file.

    Args:
        marks: the filters' names by the lines' numbers.
    """
    return _edited(text, lambda number, line: line.start + f" filter={marks[number]}\n".encode())


def _edited(text: bytes, edit: Callable[[int, _Line], bytes | None]) -> bytes:
    lines = _LINES.findall(text)
    for number, line in _parsed(text):
        edited = edit(number, line) if line.uses_lfs else None
        if edited is not None:
            lines[number] = edited
    return b"".join(lines)


def _parsed(text: bytes) -> Iterator[tuple[int, _Line]]:
    for number, line in enumerate(_LINES.findall(text)):
        pattern = _PATTERN.match(line)
        if pattern is None or pattern[0].strip(b" \t\r").removeprefix(_BOM).startswith(b"#"):
            continue
        words = _WORDS.findall(line, pattern.end())
        yield number, _Line(pattern[0], tuple(words), line[pattern.end() + sum(map(len, words)) :])


def _bare(word: bytes) -> bytes:
    return word.lstrip(b" \t\r")


def _attribute(word: bytes) -> bytes:
    return word.lstrip(b"-!").partition(b"=")[0]


def _is_of_lfs(word: bytes) -> bool:
    return _bare(word) in (b"filter=lfs", b"diff=lfs", b"merge=lfs")
