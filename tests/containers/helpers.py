"""A file taken apart and put together again, in memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from coral.containers import TensorView, parse, restore, views
from coral.format.manifest import Manifest
from coral.testing.contracts.containers import Memory, kept, reader

__all__ = ["gguf", "kept", "rebuilt", "roundtrip"]


def rebuilt(manifest: Manifest, skeleton: bytes | None, contents: dict[str, bytes]) -> bytes:
    """The file that restore writes; the manifest goes through its text first."""
    out = Memory()
    restore(Manifest.from_bytes(manifest.to_bytes()), skeleton, reader(contents), out)
    return bytes(out.data)


def roundtrip(path: Path, *, opaque: bool = False) -> tuple[str, dict[str, TensorView]]:
    """Take a file apart and put it together again; its container and views."""
    with parse(path, opaque=opaque) as parsed:
        manifest, contents = kept(parsed)
        assert rebuilt(manifest, parsed.skeleton, contents) == path.read_bytes()
        return parsed.container, dict(views(manifest, parsed.skeleton))


def text(value: str | bytes) -> bytes:
    """A string as GGUF has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


VOCABULARY = b"".join(map(text, ("<s>", "Ġthe", "")))


def gguf(
    tensors: Mapping[str, tuple[int, Sequence[int], bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
    pad: bytes = b"\0",
    pairs: Sequence[bytes] = (),
) -> bytes:
    """A GGUF file of tensors by name: the number of a type, dimensions from the innermost, and bytes.

    Args:
        pad: what the padding is made of.
        pairs: more of keys and values.
    """
    written = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + VOCABULARY,
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.5, -1.0, 0.0),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text("general.quantized") + struct.pack("<I?", 7, True),
        *([text("general.alignment") + struct.pack("<II", 4, alignment)] if alignment != 32 else []),
        *pairs,
    ]
    index, body = b"", b""
    for name, (kind, dimensions, data) in tensors.items():
        shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        index += text(name) + shape + struct.pack("<IQ", kind, len(body))
        body += data + pad * (-len(data) % alignment)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(written)) + b"".join(written) + index
    return head + pad * (-len(head) % alignment) + body
