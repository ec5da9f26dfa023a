"""The ids of things, and the only place where coral hashes.

BLAKE3-256 names bytes; a collision cannot be made. XXH3 is for speed alone: checksums against bit rot, and
"has this buffer changed since I last looked?" within one process. XXH3 is never an identity, because collisions
of it can be made at will.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NewType

import blake3
import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

ChunkId = NewType("ChunkId", bytes)
"""32 bytes: the BLAKE3 hash of a chunk's raw bytes, or of a chunk list under its own context."""

ContentRef = NewType("ContentRef", str)
"""Where a tensor's bytes are, as a manifest writes it: ``b3:<hex>`` one chunk, ``b3l:<hex>`` a chunk list,
``hex:<hex>`` the bytes themselves (at most :data:`INLINE_LIMIT`; an empty tensor is ``hex:``)."""

CommitHash = NewType("CommitHash", str)
"""40 hexadecimal digits: a commit of coral's history."""

BlobId = NewType("BlobId", str)
"""40 hexadecimal digits: a blob of coral's history, which holds the text of a manifest."""

RunId = NewType("RunId", str)
"""12 hexadecimal digits: a run."""

ID_BYTES = 32
INLINE_LIMIT = 32

_LIST_CONTEXT = "coral 2026 chunk list 1"
_CODE_CONTEXT = "coral 2026 code changes 1"
RUN_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
"""What a :data:`RunId` looks like."""
_CONTENT_REF = re.compile(r"(?:b3|b3l):[0-9a-f]{64}|hex:(?:[0-9a-f]{2}){0,32}", re.ASCII)
# Fingerprints never leave the process; a secret seed keeps crafted collisions useless.
_PROCESS_SEED = int.from_bytes(os.urandom(8), "little")


def chunk_id(data: Buffer) -> ChunkId:
    """The id of a chunk with these raw bytes."""
    return ChunkId(blake3.blake3(data).digest())


def list_id(data: Buffer) -> ChunkId:
    """The id of a chunk list; its own context keeps it apart from a chunk of the same bytes."""
    return ChunkId(blake3.blake3(data, derive_key_context=_LIST_CONTEXT).digest())


def code_hash(data: Buffer) -> str:
    """64 hexadecimal digits for a file of code, or for a list of changes to code; its own context as well."""
    return blake3.blake3(data, derive_key_context=_CODE_CONTEXT).hexdigest()


def checksum(data: Buffer, seed: int = 0) -> int:
    """XXH3-64, against bit rot and torn writes only."""
    return xxhash.xxh3_64_intdigest(data, seed)


def fingerprint(data: Buffer) -> bytes:
    """XXH3-128 under this process's secret seed: equal means unchanged since last looked at, in this process."""
    return xxhash.xxh3_128_digest(data, _PROCESS_SEED)


def is_content_ref(text: str) -> bool:
    """Whether the text is a well-formed :data:`ContentRef`."""
    return _CONTENT_REF.fullmatch(text) is not None


def single_ref(chunk: ChunkId) -> ContentRef:
    """The reference of a tensor that is this one chunk."""
    return ContentRef("b3:" + chunk.hex())


def list_ref(chunk_list: ChunkId) -> ContentRef:
    """The reference of a tensor whose chunks stand in this list."""
    return ContentRef("b3l:" + chunk_list.hex())


def inline_ref(data: Buffer) -> ContentRef:
    """The reference that holds a tensor of at most :data:`INLINE_LIMIT` bytes itself."""
    return ContentRef("hex:" + bytes(data).hex())
