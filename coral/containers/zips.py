"""Zip archives as a skeleton plus spans: where stored members lie, and what of the rest follows from their bytes.

A zip repeats the CRC of each member, and torch adds a hash over all of them. Where these are what they should be,
the skeleton holds zeros instead and they are computed again on restore; so it changes only when structure does.
"""

from __future__ import annotations

import json
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from coral.containers.file import NotThisError, Output, ReadRecords, write_record
from coral.containers.promises import Start
from coral.containers.source import FileRange
from coral.errors import FormatError
from coral.format.manifest import Manifest

if TYPE_CHECKING:
    from typing_extensions import Buffer

SKELETON_LIMIT: Final = 64 << 20
"""Most bytes that a skeleton has; an archive with more beside its tensors is kept whole."""

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
NO_PICKLE: Final = (0, 0)
_PIECE = 1 << 20


class Member(NamedTuple):
    """A member: its bytes are [start, stop) of the file; ``crc_fields`` is where its CRC may stand.

    Attributes:
        packed_crc: of one that is compressed or encrypted what the directory says; None of one that is stored.
    """

    name: str
    start: int
    stop: int
    crc_fields: tuple[int, ...]
    packed_crc: int | None = None


class Span(NamedTuple):
    """A tensor in a member: from ``start`` to the member's end, after ``prefix`` bytes of it that are no tensor."""

    name: str
    start: int
    prefix: int
    member: Member


MEMBER_SIGNATURE: Final = b"PK\3\4"
"""What a zip archive begins with."""

END_SIGNATURE: Final = b"PK\5\6"
"""What the end of its directory begins with, which is all of an empty one."""


def why_cut(data: FileRange) -> str:
    """What is missing of an archive that ends before its directory; empty for one that seems whole."""
    tail = data.read(max(0, len(data) - _END.size - _MAX_COMMENT), len(data))
    at = tail.find(END_SIGNATURE)
    while at >= 0:
        comment = int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")
        if at + _END.size + comment <= len(tail):
            return ""
        at = tail.find(END_SIGNATURE, at + 1)
    return "the archive is cut short: the directory at its end is missing"


START: Final = Start(MEMBER_SIGNATURE, why_cut)
"""How an archive with something in it begins."""


def members_of(data: FileRange) -> list[Member]:
    """An archive's members, in the file's order.

    Raises:
        NotThisError: not a zip, a damaged one, or one whose stored members overlap.
    """
    try:
        members = sorted(_members(data), key=lambda member: (member.start, member.stop))
    except (struct.error, UnicodeDecodeError):
        raise NotThisError("its zip directory is damaged") from None
    end = 0
    for member in stored(members):
        if member.start < end:
            raise NotThisError("the members of its archive overlap")
        end = member.stop
    return members


def stored(members: Sequence[Member]) -> list[Member]:
    """Those of the members that are neither compressed nor encrypted."""
    return [member for member in members if member.packed_crc is None]


def _members(data: FileRange) -> Iterator[Member]:
    start, stop = _directory(data)
    directory = data.read(start, stop)
    position = 0
    while position < len(directory):
        fields = _CENTRAL.unpack_from(directory, position)
        signature, flags, method, stored, size = fields[0], fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, local = fields[10], fields[11], fields[12], fields[16]
        if signature != b"PK\1\2":
            raise NotThisError("its zip directory is damaged")
        name_at = position + _CENTRAL.size
        extra_at = name_at + name_length
        extra = directory[extra_at : extra_at + extra_length]
        size, stored, local = _widen(extra, size, stored, local)
        name = directory[name_at:extra_at].decode()
        member = _member(data, name, (local, stored, flags), start + position + 16)
        is_packed = method != _STORED or stored != size or flags & _ENCRYPTED
        yield member._replace(packed_crc=fields[7]) if is_packed else member
        position = extra_at + extra_length + comment_length


def _directory(data: FileRange) -> tuple[int, int]:
    """Where the directory is; it stands in the skeleton, so a longer one need not be read."""
    tail_at = max(0, len(data) - _END.size - _MAX_COMMENT)
    tail = data.read(tail_at, len(data))
    found_at = tail.rfind(END_SIGNATURE)
    if found_at < 0:
        raise NotThisError("its zip directory is missing, as in a file that is cut short")
    *_, size, start, _ = _END.unpack_from(tail, found_at)
    end_at = tail_at + found_at
    locator = data.read(max(0, end_at - _END64_LOCATOR.size), end_at)
    if locator.startswith(b"PK\6\7"):
        end64_at = _END64_LOCATOR.unpack(locator)[2]
        fields = _END64.unpack(data.read(end64_at, end64_at + _END64.size))
        if fields[0] != b"PK\6\6":
            raise NotThisError("its zip directory is damaged")
        size, start = fields[8], fields[9]
    if start + size > end_at or size > SKELETON_LIMIT:
        raise NotThisError("its zip directory is damaged, or too large")
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


def _member(data: FileRange, name: str, place: tuple[int, int, int], central_crc: int) -> Member:
    local, size, flags = place
    signature, *_, name_length, extra_length = _LOCAL.unpack(data.read(local, local + _LOCAL.size))
    start = local + _LOCAL.size + name_length + extra_length
    stop = start + size
    if signature != MEMBER_SIGNATURE or stop > len(data):
        raise NotThisError("a member of its archive lies outside of the file")
    crc_fields = [local + 14, central_crc]
    if flags & _HAS_DESCRIPTOR and data.read(stop, stop + 4) == b"PK\7\x08":
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
        lengths: bytes of each place's record; not stored, because the manifest knows them.
        constants: as ``pickle``, of that of TorchScript's constants.
    """

    size: int
    places: tuple[_Place, ...]
    hash: _Hash | None
    pickle: tuple[int, int]
    literal: bytes
    lengths: tuple[int, ...]
    constants: tuple[int, int] = NO_PICKLE
    _bounds: tuple[list[int], list[int], list[int]] = field(init=False, repr=False, compare=False)
    """Where the tensors begin, where they end, and how many bytes of tensors stand before each, and in all."""

    def __post_init__(self) -> None:
        starts = [place.start for place in self.places]
        stops = [start + length for start, length in zip(starts, self.lengths, strict=True)]
        object.__setattr__(self, "_bounds", (starts, stops, [0, *accumulate(self.lengths)]))

    def to_bytes(self) -> bytes:
        """The skeleton as it is stored."""
        head = {
            "size": self.size,
            "pickle": self.pickle,
            "places": self.places,
            "hash": self.hash and [*vars(self.hash).values()],
        }
        if self.constants != NO_PICKLE:
            head["constants"] = self.constants
        return _MAGIC + json.dumps(head, separators=(",", ":")).encode() + b"\n" + self.literal

    @classmethod
    def from_bytes(cls, data: bytes, lengths: Mapping[str, int]) -> Skeleton:
        """Read a skeleton back, and check that it fits its records, given by name and length. Raises FormatError."""
        if not data.startswith(_MAGIC):
            raise FormatError("a zip skeleton of an unknown version")
        try:
            head_end = data.index(b"\n", len(_MAGIC))
            head = json.loads(data[len(_MAGIC) : head_end])
            places = tuple(_Place(str(name), _at(s), _at(p), tuple(map(_at, f))) for name, s, p, f in head["places"])
            if len(places) != len(lengths) or {place.name for place in places} != lengths.keys():
                raise ValueError("it does not list the tensors of its manifest")
            pickle, constants = _range(head["pickle"]), _range(head.get("constants", NO_PICKLE))
            theirs = tuple(lengths[place.name] for place in places)
            literal = data[head_end + 1 :]
            found = cls(_at(head["size"]), places, _read_hash(head["hash"]), pickle, literal, theirs, constants)
            found._check()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FormatError(f"a zip skeleton is malformed: {error}") from None
        return found

    def _check(self) -> None:
        end = 0
        for place, length in zip(self.places, self.lengths, strict=True):
            if place.start - place.prefix < end:
                raise ValueError("its tensors overlap")
            end = place.start + length
        if self.size != len(self.literal) + sum(self.lengths) or end > self.size:
            raise ValueError("its size is not that of its parts")
        if self.hash is not None and self.hash.at + _ID_DIGITS != self.hash.stop:
            raise ValueError("its hash is not as long as a hash")
        pickles = self.pickle, self.constants
        for at, stop in [*self.holes(), *pickles, *([(self.hash.start, self.hash.at)] if self.hash else ())]:
            self.find(at, stop)

    def find(self, start: int, stop: int) -> int:
        """Where the bytes [start, stop) of the archive stand in the literal. Raises ValueError: a tensor's, or none."""
        starts, stops, skipped = self._bounds
        before = bisect_left(starts, stop)
        if not start <= stop <= self.size or (before and stops[before - 1] > start):
            raise ValueError("it reads or computes something in a tensor or outside of the file")
        return start - skipped[before]

    def holes(self) -> list[tuple[int, int]]:
        """The bytes [start, stop) of the archive that are computed."""
        fields = [field for place in self.places for field in place.crc_fields]
        if self.hash is None:
            return [(field, field + 4) for field in fields]
        fields += self.hash.crc_fields
        return [*((field, field + 4) for field in fields), (self.hash.at, self.hash.at + _ID_DIGITS)]

    def read_literal(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the archive, which must hold no tensor. Raises FormatError."""
        try:
            at = self.find(start, stop)
        except ValueError as error:
            raise FormatError(f"a zip skeleton is malformed: {error}") from None
        return self.literal[at : at + stop - start]

    def patches(self, crcs: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
        """What is computed from the CRCs of the records' members, and where. Raises FormatError."""
        for place in self.places:
            for at in place.crc_fields:
                yield at, crcs[place.name].to_bytes(4, "little")
        if self.hash is None:
            return
        try:
            combined = _combine(crcs[part] if isinstance(part, str) else part for part in self.hash.parts)
        except KeyError as error:
            raise FormatError(f"a zip skeleton hashes the tensor {error}, which it does not list") from None
        digits = _digits(combined)
        yield self.hash.at, digits
        own = zlib.crc32(self.read_literal(self.hash.start, self.hash.at) + digits)
        for at in self.hash.crc_fields:
            yield at, own.to_bytes(4, "little")


def lengths(manifest: Manifest) -> dict[str, int]:
    """The bytes of each record of a manifest, by name."""
    return {record.name: record.nbytes for record in manifest.records}


def _at(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a position that is none")
    return value


def _range(value: Iterable[object]) -> tuple[int, int]:
    start, stop = map(_at, value)
    return start, stop


def _read_hash(value: object) -> _Hash | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError("a hash that is none")
    at, start, stop, crc_fields, parts = value
    checked = tuple(part if isinstance(part, str) else _at(part) for part in parts)
    return _Hash(_at(at), _at(start), _at(stop), tuple(map(_at, crc_fields)), checked)


def make_skeleton(
    data: FileRange,
    spans: Sequence[Span],
    *,
    members: Sequence[Member] = (),
    pickles: tuple[tuple[int, int], tuple[int, int]] = (NO_PICKLE, NO_PICKLE),
) -> bytes:
    """The skeleton of an archive, or of any file that is tensors with something between them.

    Args:
        data: the archive.
        spans: its tensors, in the file's order.
        members: all members of a torch archive, in order; empty for any other archive.
        pickles: where the pickle lies that names the tensors, and that of TorchScript's constants.

    Raises:
        NotThisError: there are no tensors, or too much beside them.
    """
    bounds = [0, *(at for span in spans for at in (span.start, span.member.stop)), len(data)]
    gaps = list(zip(bounds[::2], bounds[1::2], strict=True))
    if not spans or sum(stop - start for start, stop in gaps) > SKELETON_LIMIT:
        raise NotThisError("it holds too much beside its tensors" if spans else "it holds no tensors")
    crcs = {member.name: _crc_of(data, member) for member in members or [span.member for span in spans]}
    places = [
        _Place(name, at, prefix, _matching(data, member, crcs[member.name])) for name, at, prefix, member in spans
    ]
    found = _find_hash(data, spans, members, crcs)
    original = b"".join(data.read(start, stop) for start, stop in gaps)
    nbytes = tuple(span.member.stop - span.start for span in spans)
    whole = Skeleton(len(data), tuple(places), found, pickles[0], original, nbytes, pickles[1])
    try:
        stored = _blank(whole).to_bytes()
        if len(stored) > SKELETON_LIMIT:
            raise NotThisError("it holds too much beside its tensors")
        read_back = Skeleton.from_bytes(stored, {span.name: length for span, length in zip(spans, nbytes, strict=True)})
        _check_restores(read_back, original, {span.name: crcs[span.member.name] for span in spans})
    except (ValueError, FormatError) as error:
        raise NotThisError(f"its archive cannot be put together again: {error}") from None
    return stored


def _crc_of(data: FileRange, member: Member) -> int:
    if member.packed_crc is not None or not member.crc_fields:
        return member.packed_crc or 0
    crc = 0
    for start in range(member.start, member.stop, _PIECE):
        crc = zlib.crc32(data.read(start, min(start + _PIECE, member.stop)), crc)
    return crc


def _matching(data: FileRange, member: Member, crc: int) -> tuple[int, ...]:
    wanted = crc.to_bytes(4, "little")
    return tuple(field for field in member.crc_fields if data.read(field, field + 4) == wanted)


def _blank(whole: Skeleton) -> Skeleton:
    """The skeleton with zeros where something is computed. Raises ValueError: that is a tensor's."""
    literal = bytearray(whole.literal)
    for start, stop in whole.holes():
        at = whole.find(start, stop)
        literal[at : at + stop - start] = bytes(stop - start)
    return replace(whole, literal=bytes(literal))


def _check_restores(skeleton: Skeleton, original: bytes, crcs: Mapping[str, int]) -> None:
    """Restore the archive but for its tensors, and compare. Raises ValueError, FormatError.

    An archive may be made so that what is computed in one place is what another place is computed from.
    """
    restored = bytearray(skeleton.literal)
    for start, value in skeleton.patches(crcs):
        at = skeleton.find(start, start + len(value))
        restored[at : at + len(value)] = value
    if restored != original:
        raise ValueError("what is computed is not what stands in the file")
    for place in skeleton.places:
        at = skeleton.find(place.start - place.prefix, place.start)
        # On restore a member's CRC is taken of the literal, in which nothing is computed yet.
        if skeleton.literal[at : at + place.prefix] != original[at : at + place.prefix]:
            raise ValueError("something is computed in the head of a tensor")


def _find_hash(
    data: FileRange, spans: Sequence[Span], members: Sequence[Member], crcs: Mapping[str, int]
) -> _Hash | None:
    """torch's ``serialization_id`` where it is what torch would compute: 20 digits of names, 20 of contents."""
    if not members or not members[-1].name.endswith("/.data/serialization_id"):
        return None
    own = members[-1]
    # torch takes the CRCs from data descriptors, and an empty member has none.
    summed = [member.name for member in members[:-1] if member.stop > member.start]
    combined = _combine(crcs[name] for name in summed)
    if own.stop - own.start != 2 * _ID_DIGITS or data.read(own.start + _ID_DIGITS, own.stop) != _digits(combined):
        return None
    names = {span.member.name: span.name for span in spans}
    parts = tuple(names.get(name, crcs[name]) for name in summed)
    fields = _matching(data, own, crcs[own.name])
    return _Hash(own.start + _ID_DIGITS, own.start, own.stop, fields, parts)


def _combine(crcs: Iterable[int]) -> int:
    combined = 0
    for crc in crcs:
        combined ^= (crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & _WORD
    return combined


def _digits(number: int) -> bytes:
    return b"%0*d" % (_ID_DIGITS, number)


def restore(manifest: Manifest, skeleton: bytes, read: ReadRecords, out: Output) -> None:
    """Write the archive back byte for byte.

    Raises:
        FormatError: a skeleton that does not fit its manifest.
        CorruptionError: a record's bytes are not as many as they should be.
    """
    parts = Skeleton.from_bytes(skeleton, lengths(manifest))
    literal = memoryview(parts.literal)
    crcs: dict[str, int] = {}
    used = 0
    pieces = read([manifest[place.name] for place in parts.places])
    for name, start, prefix, _ in parts.places:
        before = parts.find(start, start)
        out.write(literal[used:before])
        writer = _Summing(out, zlib.crc32(literal[before - prefix : before]))
        write_record(manifest[name], pieces, writer.write)
        crcs[name] = writer.crc
        used = before
    out.write(literal[used:])
    for at, value in parts.patches(crcs):
        out.patch(at, value)


class _Summing:
    """Passes bytes on, and keeps the CRC of all that passed."""

    def __init__(self, out: Output, crc: int) -> None:
        self._out = out
        self.crc = crc

    def write(self, data: Buffer) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self._out.write(data)
