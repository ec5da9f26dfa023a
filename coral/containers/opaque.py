"""Files that are kept whole, as one span of bytes: whatever is not understood, and formats that coral knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from coral.containers import zips
from coral.containers.file import (
    Output,
    Parsed,
    ReadRecords,
    TensorView,
    Traits,
    only_record,
    plain_views,
    write_record,
)
from coral.containers.promises import FRONT_BYTES, Promise, Start, shorter_than
from coral.containers.source import FileRange, FileSource
from coral.format.manifest import Manifest

RECORD_NAME: Final = "data"
"""The name of an opaque file's one record."""

_LEAST_HDF5 = 32
# An HDF5 file may begin with a block of somebody else's.
_HDF5_PLACES = (0, 512, 1024, 2048)


def _why_hdf5_is_cut(data: FileRange) -> str:
    return shorter_than(data, _hdf5_bytes(data.read(0, FRONT_BYTES)))


def _hdf5_bytes(front: bytes) -> int:
    """Bytes of a whole HDF5 file, as its superblock says; 0 where it does not."""
    if len(front) < _LEAST_HDF5:
        return _LEAST_HDF5
    width_at, addresses_at = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}.get(front[8], (0, 0))
    width = front[width_at] if width_at else 0
    if width not in (4, 8):
        return 0
    end_at = addresses_at + 2 * width  # after the base address, and another one
    end = front[end_at : end_at + width]
    if len(end) < width:
        return end_at + width
    return 0 if end == b"\xff" * width else int.from_bytes(end, "little")


_HDF5 = Start(b"\x89HDF\r\n\x1a\n", _why_hdf5_is_cut, _HDF5_PLACES)


class Opaque:
    """Any file; the last member of the table, which takes what no other does."""

    name = "opaque"
    traits = Traits(skeleton_limit=0, flows=True)
    promises: Mapping[str, Promise] = {
        ".h5": Promise("HDF5 file", (_HDF5,), has_tensors=False, is_sought=False),
        ".hdf5": Promise("HDF5 file", (_HDF5,), has_tensors=False, is_sought=False),
        ".keras": Promise("Keras file", (zips.START, _HDF5), has_tensors=False),
        ".onnx": Promise("ONNX file", has_tensors=False),
        ".joblib": Promise("joblib file", has_tensors=False),
        ".ubj": Promise("UBJSON file", has_tensors=False),
        # Of a rank that had nothing to write it is empty.
        ".distcp": Promise("distributed checkpoint", held="sometimes", has_tensors=False),
    }

    def recognises(self, head: bytes) -> bool:
        """Whatever it is."""
        return True

    def parse(self, data: FileRange) -> Parsed:
        """The file as one record."""
        return Parsed(self.name, None, (), [FileSource(RECORD_NAME, "U8", (len(data),), data)])

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write the one record."""
        record = only_record(manifest, "an opaque file's")
        write_record(record, read(manifest.records), out.write)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The one record, as bytes."""
        return plain_views(manifest)
