"""A file taken apart and put together again, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coral.containers import ParsedFile, TensorView, parse, restore, views
from coral.format.manifest import Manifest, Skeleton, TensorRecord
from coral.ids import ContentRef, inline_ref


class Memory:
    """An output that keeps the file in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any) -> None:
        self.data += data

    def patch(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= len(self.data) - len(data)
        self.data[offset : offset + len(data)] = data


def kept(parsed: ParsedFile) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest of the file, and each record's bytes, read in pieces."""
    records, contents = [], {}
    for source in parsed.tensors:
        record = TensorRecord(source.name, source.dtype, source.shape, inline_ref(b""))
        half = record.nbytes // 2
        contents[source.name] = bytes(source.read(0, half)) + bytes(source.read(half, record.nbytes))
        records.append(record)
    ref = ContentRef("b3:" + "0" * 64)
    skeleton = None if parsed.skeleton is None else Skeleton(ref, len(parsed.skeleton))
    return Manifest(parsed.container, tuple(records), skeleton, parsed.metadata), contents


def rebuilt(manifest: Manifest, skeleton: bytes | None, contents: dict[str, bytes]) -> bytes:
    """The file that restore writes; the manifest goes through its text first."""

    def read(records: Iterable[TensorRecord]) -> Iterator[bytes]:
        for data in (contents[record.name] for record in records):
            yield from filter(None, (data[:7], data[7:]))

    out = Memory()
    restore(Manifest.from_bytes(manifest.to_bytes()), skeleton, read, out)
    return bytes(out.data)


def roundtrip(path: Path, *, opaque: bool = False) -> tuple[str, dict[str, TensorView]]:
    """Take a file apart and put it together again; its container and views."""
    with parse(path, opaque=opaque) as parsed:
        manifest, contents = kept(parsed)
        assert rebuilt(manifest, parsed.skeleton, contents) == path.read_bytes()
        return parsed.container, dict(views(manifest, parsed.skeleton))
