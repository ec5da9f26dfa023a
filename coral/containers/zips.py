"""Zip archives as a skeleton plus spans: where stored members lie, and what of the rest follows from their bytes.

A zip repeats the CRC of each member, and torch adds a hash over all of them. Where these are what they should be,
the skeleton holds zeros instead and they are computed again on restore; so it changes only when structure does.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from coral.containers.file import Output, ReadRecord, write_record
from coral.errors import FormatError
from coral.format.manifest import Manifest

if TYPE_CHECKING:
    from typing_extensions import Buffer

SKELETON_LIMIT: Final = 64 << 20
"""Most bytes of an archive that may stand in a skeleton; an archive with more beside its tensors is kept whole."""

_MAGIC = b"coral zip skeleton 1\n"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_MAX_COMMENT = 0xFFFF
_STORED = 0
_ENCRYPTED, _HAS_DESCRIPTOR = 0x1, 0x8
_ID_DIGITS = 20
_WORD = (1 << 64) - 1


class Member(NamedTuple):
    """A stored member: its bytes are [start, stop) of the file; ``crc_fields`` is where its CRC may stand."""

    name: str
    start: int
    stop: int
    crc_fields: tuple[int, ...]


class Span(NamedTuple):
    """A tensor in a member: from ``start`` to the member's end, after ``prefix`` bytes of it that are no tensor."""

    name: str
    start: int
    prefix: int
    member: Member


class NotThisError(Exception):
    """The archive is not of the kind that was looked for; it is kept whole."""


def is_zip(data: memoryview) -> bool:
    """Whether the bytes begin with a zip member."""
    return bytes(data[:4]) == b"PK\3\4"


def stored_members(data: memoryview) -> list[Member]:
    """An archive's stored members, in the file's order. Compressed ones are left out.

    Raises:
        NotThisError: not a zip, a damaged one, or one whose members overlap.
    """
    try:
        members = sorted(_members(data), key=lambda member: (member.start, member.stop))
    except (struct.error, UnicodeDecodeError) as error:
        raise NotThisError(str(error)) from None
    end = 0
    for member in members:
        if member.start < end:
            raise NotThisError("members overlap")
        end = member.stop
    return members


def _members(data: memoryview) -> Iterator[Member]:
    position, end = _directory(data)
    while position < end:
        fields = _CENTRAL.unpack_from(data, position)
        signature, flags, method, stored, size = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, local = fields[10], fields[11], fields[12], fields[16]
        if signature != b"PK\1\2":
            raise NotThisError("a directory entry is malformed")
        name_at = position + _CENTRAL.size
        extra = bytes(data[name_at + name_length : name_at + name_length + extra_length])
        size, stored, local = _widen(extra, size, stored, local)
        if method == _STORED and stored == size and not flags & _ENCRYPTED:
            name = bytes(data[name_at : name_at + name_length]).decode()
            yield _member(data, name, (local, size, flags), position + 16)
        position = name_at + name_length + extra_length + comment_length


def _directory(data: memoryview) -> tuple[int, int]:
    tail_at = max(0, len(data) - _END.size - _MAX_COMMENT)
    end_at = bytes(data[tail_at:]).rfind(b"PK\5\6") + tail_at
    if end_at < tail_at:
        raise NotThisError("no directory")
    *_, size, start, _ = _END.unpack_from(data, end_at)
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at >= 0 and bytes(data[locator_at : locator_at + 4]) == b"PK\6\7":
        end64_at = _END64_LOCATOR.unpack_from(data, locator_at)[2]
        fields = _END64.unpack_from(data, min(end64_at, len(data)))
        if fields[0] != b"PK\6\6":
            raise NotThisError("a 64-bit directory is malformed")
        size, start = fields[8], fields[9]
    if start + size > end_at:
        raise NotThisError("the directory lies outside of the file")
    return start, start + size


def _widen(extra: bytes, *narrow: int) -> list[int]:
    """Sizes and offset, from the 64-bit field where the 32-bit one is full."""
    wide = iter(())
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            body = extra[position + 4 : position + 4 + length]
            wide = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        position += 4 + length
    return [next(wide, value) if value == 0xFFFFFFFF else value for value in narrow]


def _member(data: memoryview, name: str, place: tuple[int, int, int], central_crc: int) -> Member:
    local, size, flags = place
    if local + _LOCAL.size > len(data):
        raise NotThisError("a member lies outside of the file")
    signature, *_, name_length, extra_length = _LOCAL.unpack_from(data, local)
    start = local + _LOCAL.size + name_length + extra_length
    stop = start + size
    if signature != b"PK\3\4" or stop > len(data):
        raise NotThisError("a member lies outside of the file")
    crc_fields = [local + 14, central_crc]
    if flags & _HAS_DESCRIPTOR and bytes(data[stop : stop + 4]) == b"PK\7\x08":
        crc_fields.append(stop + 4)
    return Member(name, start, stop, tuple(sorted(crc_fields)))


@dataclass(frozen=True)
class _Hash:
    """torch's hash over all members: its digits stand at ``at``, in a member [start, stop) with these CRC fields.

    ``parts`` are the members' CRCs in order; a string is the record whose member's CRC it is.
    """

    at: int
    start: int
    stop: int
    crc_fields: tuple[int, ...]
    parts: tuple[int | str, ...]


class _Place(NamedTuple):
    name: str
    start: int
    prefix: int
    crc_fields: tuple[int, ...]


@dataclass(frozen=True)
class Skeleton:
    """Everything of an archive that is not a tensor.

    Attributes:
        size: bytes of the archive.
        places: where each record's bytes go, in the file's order.
        hash: torch's hash, when it is computed again.
        pickle: where in the archive the pickle lies that names the tensors; (0, 0) for none.
        literal: the bytes between the places, zeros where something is computed.
    """

    size: int
    places: tuple[_Place, ...]
    hash: _Hash | None
    pickle: tuple[int, int]
    literal: bytes

    def to_bytes(self) -> bytes:
        """The skeleton as it is stored."""
        head = {
            "size": self.size,
            "pickle": self.pickle,
            "places": self.places,
            "hash": self.hash and [*vars(self.hash).values()],
        }
        return _MAGIC + json.dumps(head, separators=(",", ":")).encode() + b"\n" + self.literal

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest) -> Skeleton:
        """Read a skeleton back, and check that it fits its manifest. Raises FormatError."""
        try:
            head_end = data.index(b"\n", len(_MAGIC))
            head = json.loads(data[len(_MAGIC) : head_end])
            places = tuple(_Place(str(name), _at(s), _at(p), tuple(map(_at, f))) for name, s, p, f in head["places"])
            start, stop = map(_at, head["pickle"])
            found = cls(_at(head["size"]), places, _read_hash(head["hash"]), (start, stop), data[head_end + 1 :])
            found._check(manifest)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FormatError(f"a zip skeleton is malformed: {error}") from None
        if not data.startswith(_MAGIC):
            raise FormatError("a zip skeleton of an unknown version")
        return found

    def _check(self, manifest: Manifest) -> None:
        if sorted(place.name for place in self.places) != [record.name for record in manifest.records]:
            raise ValueError("it does not list the tensors of its manifest")
        end = 0
        for place in self.places:
            if place.start - place.prefix < end:
                raise ValueError("its tensors overlap")
            end = place.start + manifest[place.name].nbytes
        if self.size != len(self.literal) + manifest.nbytes or end > self.size:
            raise ValueError("its size is not that of its parts")
        fields = [field for place in self.places for field in place.crc_fields]
        if self.hash is not None:
            fields += [*self.hash.crc_fields, self.hash.at, self.hash.at + _ID_DIGITS - 4, self.hash.stop - 4]
        if any(field + 4 > self.size for field in fields):
            raise ValueError("it computes something outside of the file")

    def read_literal(self, start: int, stop: int, manifest: Manifest) -> bytes:
        """Bytes [start, stop) of the archive, which must hold no tensor. Raises FormatError."""
        skipped = 0
        for place in self.places:
            if place.start >= stop:
                break
            if place.start + manifest[place.name].nbytes > start:
                raise FormatError("a zip skeleton reads a tensor as structure")
            skipped += manifest[place.name].nbytes
        return self.literal[start - skipped : stop - skipped]


def _at(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a position that is none")
    return value


def _read_hash(value: object) -> _Hash | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError("a hash that is none")
    at, start, stop, crc_fields, parts = value
    checked = tuple(part if isinstance(part, str) else _at(part) for part in parts)
    return _Hash(_at(at), _at(start), _at(stop), tuple(map(_at, crc_fields)), checked)


def make_skeleton(
    data: memoryview, spans: Sequence[Span], *, members: Sequence[Member] = (), pickle: tuple[int, int] = (0, 0)
) -> bytes:
    """The skeleton of an archive.

    Args:
        data: the archive.
        spans: its tensors, in the file's order.
        members: all stored members of a torch archive, in order; empty for any other archive.
        pickle: where the pickle lies that names the tensors.

    Raises:
        NotThisError: there are no tensors, or too much beside them.
    """
    kept = len(data) - sum(span.member.stop - span.start for span in spans)
    if not spans or kept > SKELETON_LIMIT:
        raise NotThisError("no tensors, or little else than other things")
    crcs = {member.name: zlib.crc32(data[member.start : member.stop]) for member in members}
    places, holes = [], []
    for name, start, prefix, member in spans:
        crc = crcs[member.name] if member.name in crcs else zlib.crc32(data[member.start : member.stop])
        fields = _matching(data, member, crc)
        places.append(_Place(name, start, prefix, fields))
        holes += [(field, 4) for field in fields]
    found = _find_hash(data, spans, members, crcs)
    if found is not None:
        holes += [(field, 4) for field in found.crc_fields] + [(found.at, _ID_DIGITS)]
    literal = _literal(data, spans, holes)
    return Skeleton(len(data), tuple(places), found, pickle, literal).to_bytes()


def _matching(data: memoryview, member: Member, crc: int) -> tuple[int, ...]:
    wanted = crc.to_bytes(4, "little")
    return tuple(field for field in member.crc_fields if bytes(data[field : field + 4]) == wanted)


def _literal(data: memoryview, spans: Sequence[Span], holes: list[tuple[int, int]]) -> bytes:
    pieces = []
    end = 0
    holes.sort()
    pending = iter(holes)
    hole = next(pending, None)
    for start, stop in [*((span.start, span.member.stop) for span in spans), (len(data), len(data))]:
        piece = bytearray(data[end:start])
        while hole is not None and hole[0] < start:
            at, length = hole
            piece[at - end : at - end + length] = bytes(length)
            hole = next(pending, None)
        pieces.append(piece)
        end = stop
    return b"".join(pieces)


def _find_hash(
    data: memoryview, spans: Sequence[Span], members: Sequence[Member], crcs: dict[str, int]
) -> _Hash | None:
    """torch's ``serialization_id`` where it is what torch would compute: 20 digits of names, 20 of contents."""
    if not members or not members[-1].name.endswith("/.data/serialization_id"):
        return None
    own = members[-1]
    # torch takes the CRCs from data descriptors, and an empty member has none.
    summed = [member.name for member in members[:-1] if member.stop > member.start]
    combined = _combine(crcs[name] for name in summed)
    if bytes(data[own.start + _ID_DIGITS : own.stop]) != _digits(combined):
        return None
    names = {span.member.name: span.name for span in spans}
    parts = tuple(names.get(name, crcs[name]) for name in summed)
    fields = _matching(data, own, crcs[own.name])
    return _Hash(own.start + _ID_DIGITS, own.start, own.stop, fields, parts)


def _combine(crcs: Iterator[int]) -> int:
    combined = 0
    for crc in crcs:
        combined ^= (crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & _WORD
    return combined


def _digits(number: int) -> bytes:
    return b"%0*d" % (_ID_DIGITS, number)


def restore(manifest: Manifest, skeleton: bytes, read: ReadRecord, out: Output) -> None:
    """Write the archive back byte for byte.

    Raises:
        FormatError: a skeleton that does not fit its manifest.
        CorruptionError: a record's bytes are not as many as they should be.
    """
    parts = Skeleton.from_bytes(skeleton, manifest)
    literal = memoryview(parts.literal)
    patches: list[tuple[int, bytes]] = []
    crcs: dict[str, int] = {}
    used = skipped = 0
    for name, start, prefix, crc_fields in parts.places:
        before = start - skipped
        out.write(literal[used:before])
        writer = _Summing(out, zlib.crc32(literal[before - prefix : before]))
        write_record(manifest[name], read, writer.write)
        crcs[name] = writer.crc
        patches += [(field, writer.crc.to_bytes(4, "little")) for field in crc_fields]
        used = before
        skipped += manifest[name].nbytes
    out.write(literal[used:])
    if parts.hash is not None:
        patches += _hash_patches(parts, parts.hash, crcs, manifest)
    for field, value in patches:
        out.patch(field, value)


class _Summing:
    """Passes bytes on, and keeps the CRC of all that passed."""

    def __init__(self, out: Output, crc: int) -> None:
        self._out = out
        self.crc = crc

    def write(self, data: Buffer) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self._out.write(data)


def _hash_patches(
    parts: Skeleton, found: _Hash, crcs: dict[str, int], manifest: Manifest
) -> Iterator[tuple[int, bytes]]:
    try:
        combined = _combine(crcs[part] if isinstance(part, str) else part for part in found.parts)
    except KeyError as error:
        raise FormatError(f"a zip skeleton hashes the tensor {error}, which it does not list") from None
    digits = _digits(combined)
    names = parts.read_literal(found.start, found.at, manifest)
    own = zlib.crc32(names + digits).to_bytes(4, "little")
    yield found.at, digits
    for field in found.crc_fields:
        yield field, own
