"""A file taken apart and put together again, in memory."""

from __future__ import annotations

from pathlib import Path

from coral.containers import TensorView, parse, restore, views
from coral.format.manifest import Manifest
from coral.testing.contracts.containers import Memory, kept, reader

__all__ = ["kept", "rebuilt", "roundtrip"]


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
