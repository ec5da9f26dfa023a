"""Loose git objects, read without libgit2: one zlib stream a file, ``kind size NUL bytes``, verified by its hash."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from typing import Final, Literal, cast

from coral.errors import CorruptionError
from coral.storage.files import translate_errors

Kind = Literal["blob", "tree", "commit", "tag"]
_HEAD = re.compile(rb"(blob|tree|commit|tag) (0|[1-9]\d{0,15})\0", re.ASCII)
_HEAD_BYTES = 32
_MIB = 1 << 20
LIMITS: Final = {"blob": 512 * _MIB, "tree": 64 * _MIB, "commit": 64 * _MIB, "tag": 64 * _MIB}
"""Most bytes of an object that is written or read: a small file may unfold to gigabytes."""
_MOST_STORED = max(LIMITS.values()) + _MIB


def key(oid: str) -> str:
    """Where a loose object lies inside the repository."""
    return f"objects/{oid[:2]}/{oid[2:]}"


def object_hash(kind: Kind, data: bytes) -> str:
    """The hash that names an object."""
    digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


def encode(kind: Kind, data: bytes) -> bytes:
    """An object as its file holds it."""
    return zlib.compress(b"%s %d\0%s" % (kind.encode(), len(data), data), 1)


def read(path: str, oid: str) -> tuple[Kind, bytes] | None:
    """An object's kind and bytes; None when it is not loose.

    Raises:
        CorruptionError: the file is not the object of that hash.
    """
    raw = _bytes(path)
    if raw is None:
        return None
    stream = zlib.decompressobj()
    try:
        head = _HEAD.match(text := stream.decompress(raw, _HEAD_BYTES))
        if head is None or int(head[2]) > LIMITS[head[1].decode()]:
            raise _damaged(oid)
        # One byte more than announced: a stream that goes on is refused without being unpacked.
        rest = max(int(head[2]) - (len(text) - head.end()), 0)
        data = text[head.end() :] + stream.decompress(stream.unconsumed_tail, rest + 1)
    except zlib.error:
        raise _damaged(oid) from None
    kind = cast(Kind, head[1].decode())
    if not stream.eof or stream.unused_data or len(data) != int(head[2]) or object_hash(kind, data) != oid:
        raise _damaged(oid)
    return kind, data


def kind(path: str, oid: str) -> Kind | None:
    """An object's kind, from its head alone; None when it is not loose. Raises CorruptionError."""
    raw = _bytes(path, 4096)
    if raw is None:
        return None
    try:
        head = _HEAD.match(zlib.decompressobj().decompress(raw, _HEAD_BYTES))
    except zlib.error:
        head = None
    if head is None:
        raise _damaged(oid)
    return cast(Kind, head[1].decode())


def _bytes(path: str, limit: int = -1) -> bytes | None:
    try:
        # Found in a pack most of the time, so that a missing file must cost little.
        # A pipe in its place is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        with translate_errors(path):
            raise error
    with open(fd, "rb", buffering=0) as file, translate_errors(path):
        return file.read(min(os.fstat(fd).st_size, _MOST_STORED) if limit < 0 else limit)


def _damaged(oid: str) -> CorruptionError:
    return CorruptionError(f"the git object {oid} is damaged", hint="run coral fsck")
