"""numpy's archives (``.npz``): each array a member, as a ``.npy`` file; compressed members stay in the skeleton."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from coral.containers import torchzip, zips
from coral.containers.file import NotThisError, Output, Parsed, ReadRecords, TensorView, Traits, needed, numbered
from coral.containers.npy import MAGIC, Array, own_arrays, read_header
from coral.containers.promises import Promise, Start
from coral.containers.source import FileRange, FileSource
from coral.containers.zips import Member, Skeleton, Span
from coral.format.manifest import Manifest

_SUFFIX = ".npy"


class Npz:
    """Archives of numpy.savez."""

    name = "npz"
    traits = Traits(zips.SKELETON_LIMIT, flows=False)
    promises: Mapping[str, Promise] = {".npz": Promise("npz archive", (zips.START, Start(zips.END_SIGNATURE)))}

    def recognises(self, head: bytes) -> bool:
        """Whether a file begins as an archive."""
        return head.startswith((zips.MEMBER_SIGNATURE, zips.END_SIGNATURE))

    def parse(self, data: FileRange) -> Parsed | None:
        """Take an archive apart; None for one of torch's. Raises NotThisError."""
        if data.read(0, len(zips.END_SIGNATURE)) == zips.END_SIGNATURE:
            raise NotThisError("it holds no tensors")
        members = zips.members_of(data)
        return None if torchzip.is_torch(members) else _parse(data, members)

    def restore(self, manifest: Manifest, skeleton: bytes | None, read: ReadRecords, out: Output) -> None:
        """Write an archive back, and the CRCs of its arrays."""
        zips.restore(manifest, needed(skeleton), read, out)

    def views(self, manifest: Manifest, skeleton: bytes | None) -> Mapping[str, TensorView]:
        """The arrays, by their own names and in their own order."""
        return own_arrays(manifest, _headers(manifest, needed(skeleton)))


def _parse(data: FileRange, members: Sequence[Member]) -> Parsed:
    arrays: dict[str, tuple[Member, FileRange, Array]] = {}
    for member in zips.stored(members):
        content = data.part(member.start, member.stop)
        if not member.name.endswith(_SUFFIX) or content.read(0, len(MAGIC)) != MAGIC:
            continue
        if member.name in arrays:
            raise NotThisError("a member stands in it twice")
        arrays[member.name] = member, content, read_header(content)
    if not arrays:
        raise NotThisError(_why_none(members))
    names = _record_names({name: array.suffix for name, (_, _, array) in arrays.items()})
    spans, sources = [], []
    for own, (member, content, (_, dtype, shape, start)) in arrays.items():
        spans.append(Span(names[own], member.start + start, start, member))
        sources.append(FileSource(names[own], dtype, shape, content.part(start, len(content))))
    return Parsed(Npz.name, zips.make_skeleton(data, spans), (), sources)


def _record_names(suffixes: Mapping[str, str]) -> dict[str, str]:
    """What the records of an archive's arrays are called, by their members; arrays that keep their name come first."""
    order = sorted(suffixes, key=lambda member: suffixes[member] != "")
    wanted = ((member.removesuffix(_SUFFIX) + suffixes[member], member) for member in order)
    return {member: name for name, member in numbered(wanted)}


def _why_none(members: Sequence[Member]) -> str:
    """Why an archive has no array that could be taken out of it, and no pickle of torch's."""
    if any(member.packed_crc is not None and member.name.endswith((_SUFFIX, "/data.pkl")) for member in members):
        return "its members are compressed, or encrypted"
    return "its archive is laid out neither as torch.save's nor as numpy's"


def _headers(manifest: Manifest, skeleton: bytes) -> Iterator[tuple[str, bytes]]:
    parts = Skeleton.from_bytes(skeleton, zips.lengths(manifest))
    for name, start, prefix, _ in parts.places:
        yield name, parts.read_literal(start - prefix, start)
