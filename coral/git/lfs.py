"""What git-LFS leaves in a repository: pointers in place of files.

Nothing here runs git-LFS, which need not be there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

POINTER_LIMIT = 1024
"""Bytes of the longest pointer, by git-LFS's specification."""

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (0|[1-9][0-9]{0,18})\n?"
)


class Pointer(NamedTuple):
    """What git-LFS keeps in git for a file: the SHA-256 of its bytes, in hexadecimal, and how many they are."""

    sha256: str
    size: int


def parse_pointer(data: bytes) -> Pointer | None:
    """The pointer that a blob is; None for anything else, such as one that names extensions."""
    match = _POINTER.fullmatch(data) if len(data) <= POINTER_LIMIT else None
    return Pointer(match[1].decode(), int(match[2])) if match is not None else None
