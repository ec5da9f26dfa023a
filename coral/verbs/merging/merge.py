"""Merging manifests, three-way by tensor: only what both sides changed conflicts.

An unfinished merge is two manifests that are equal wherever it is settled. As text they are one manifest with git's
markers around each difference, so that people read it, and git keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

from coral.errors import FormatError
from coral.format.manifest import SKELETON_NAME, Manifest, Skeleton, TensorRecord

T = TypeVar("T")
_MARKER = re.compile(rb"(<{7,}|\|{7,}|={7,}|>{7,})(?: [^\t]*)?")
_SIDES = {b"<": "ours", b"|": "base", b"=": "theirs", b">": ""}
MARKER_SIZE = 7

Side = Literal["ours", "theirs"]

Read = Callable[[TensorRecord], Iterator[memoryview]]
"""Yields the bytes of a tensor, chunk by chunk."""

Metadata = tuple[tuple[str, str], ...]
_Frame = tuple[str, Skeleton | None, Metadata | None]
"""What a file is besides its tensors; metadata only where a skeleton repeats it."""


class Versions(NamedTuple):
    """A tensor in what both sides come from, and in each of them; None where it is not."""

    base: TensorRecord | None
    ours: TensorRecord | None
    theirs: TensorRecord | None


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge, finished or not.

    Attributes:
        ours, theirs: equal wherever it is settled.
    """

    ours: Manifest
    theirs: Manifest

    @property
    def conflicts(self) -> tuple[str, ...]:
        """The tensors that are not settled, by name; :data:`SKELETON_NAME` for the rest of the file."""
        mine, others = _by_name(self.ours), _by_name(self.theirs)
        names = sorted(name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name))
        return ((SKELETON_NAME,) if self._frames_differ else ()) + tuple(names)

    @property
    def _frames_differ(self) -> bool:
        return _head(self.ours) != _head(self.theirs)

    def versions(self, name: str, base: Manifest | None = None) -> Versions:
        """What each side, and what they come from, says of a tensor."""
        sides = (base, self.ours, self.theirs)
        return Versions(*(one[name] if one is not None and name in one else None for one in sides))

    def take(self, side: Side, names: Iterable[str] | None = None) -> Merge:
        """Settle conflicts for one side.

        Args:
            side: ``ours`` or ``theirs``.
            names: of those in :attr:`conflicts`; None takes all.
        """
        chosen = set(self.conflicts if names is None else names)
        source = self.ours if side == "ours" else self.theirs
        mine, others, wanted = _by_name(self.ours), _by_name(self.theirs), _by_name(source)
        for name in chosen - {SKELETON_NAME}:
            _put(mine, others, name, wanted.get(name))
        merged = self._with(mine, others)
        if SKELETON_NAME not in chosen:
            return merged
        return Merge(_framed(merged.ours, source), _framed(merged.theirs, source))

    def settled_with(self, records: Iterable[TensorRecord]) -> Merge:
        """Settle conflicts with other tensors of the same names."""
        mine, others = _by_name(self.ours), _by_name(self.theirs)
        for record in records:
            mine[record.name] = others[record.name] = record
        return self._with(mine, others)

    def _with(self, mine: Mapping[str, TensorRecord], others: Mapping[str, TensorRecord]) -> Merge:
        return Merge(
            replace(self.ours, records=tuple(mine.values())), replace(self.theirs, records=tuple(others.values()))
        )

    # -- as text

    def to_bytes(self, *, marker_size: int = MARKER_SIZE) -> bytes:
        """The manifest, or one with markers around each conflict."""
        out = []
        for ours, theirs in self._blocks():
            if ours == theirs:
                out.append(ours)
            else:
                start, middle, end = (char * marker_size for char in (b"<", b"=", b">"))
                out.append(b"%s ours\n%s%s\n%s%s theirs\n" % (start, ours, middle, theirs, end))
        return b"".join(out)

    def _blocks(self) -> Iterator[tuple[bytes, bytes]]:
        """Both texts, cut where a conflict may begin or end."""
        (first, head, mine), (_, other_head, others) = _cut(self.ours), _cut(self.theirs)
        yield first, first
        yield head, other_head
        for name in sorted(mine.keys() | others.keys()):
            yield mine.get(name, b""), others.get(name, b"")

    @classmethod
    def from_bytes(cls, data: bytes, *, only_ours: bool = False) -> Merge:
        """Read a manifest with conflict markers in it, or one without.

        Args:
            only_ours: refuse what :meth:`to_bytes` would not have written, such as git's own markers.

        Raises:
            FormatError: it is none.
        """
        sides: dict[str, list[bytes]] = {"ours": [], "base": [], "theirs": []}
        now = ""
        for line in data.splitlines(keepends=True):
            marker = _MARKER.fullmatch(line.rstrip(b"\r\n"))
            if marker is not None:
                now = _next_side(now, marker[1][:1])
            else:
                for side in (now,) if now else ("ours", "theirs"):
                    sides[side].append(line)
        if now:
            raise FormatError("a conflict in a manifest does not end")
        found = cls(Manifest.from_bytes(b"".join(sides["ours"])), Manifest.from_bytes(b"".join(sides["theirs"])))
        if only_ours and found.to_bytes(marker_size=_marker_size(data)) != data:
            raise FormatError("these conflicts are of another make")
        return found


def merge(base: Manifest | None, ours: Manifest, theirs: Manifest) -> Merge:
    """Merge two manifests that come from one; None when they come from none.

    A file of another structure on both sides is a conflict as a whole, and so is one whose tensors, merged, would not
    fit the rest of it.
    """
    frames = [None if one is None else _frame(one) for one in (base, ours, theirs)]
    frame, other_frame = _three_way(*frames)
    before = _by_name(base) if base is not None else {}
    mine, others = _by_name(ours), _by_name(theirs)
    settled = {
        name: _three_way(before.get(name), mine.get(name), others.get(name)) for name in mine.keys() | others.keys()
    }
    left, right = _three_way_metadata(base, ours, theirs)
    merged = Merge(
        _build(frame, [one for one, _ in settled.values()], left),
        _build(other_frame, [other for _, other in settled.values()], right),
    )
    return merged if _fits(merged, ours, theirs) else Merge(ours, theirs)


def common(base: Merge) -> Manifest:
    """What both sides of an unfinished merge agree on: the base of a merge whose own base is one with conflicts."""
    theirs = set(base.theirs.records)
    agreed = [record for record in base.ours.records if record in theirs]
    return replace(base.ours, records=tuple(agreed))


def _three_way(base: T, ours: T, theirs: T) -> tuple[T, T]:
    """Both sides of the outcome, equal unless both changed."""
    if theirs == base:
        return ours, ours
    if ours == base:
        return theirs, theirs
    return ours, theirs


def _three_way_metadata(base: Manifest | None, ours: Manifest, theirs: Manifest) -> tuple[Metadata, Metadata]:
    """By key, in our order and then theirs."""
    before, mine, others = ({} if one is None else dict(one.metadata) for one in (base, ours, theirs))
    keys = dict.fromkeys([*mine, *others])
    pairs = {key: _three_way(before.get(key), mine.get(key), others.get(key)) for key in keys}
    left, right = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    return _present(left), _present(right)


def _present(metadata: Mapping[str, str | None]) -> Metadata:
    return tuple((key, value) for key, value in metadata.items() if value is not None)


def _frame(manifest: Manifest) -> _Frame:
    return manifest.container, manifest.skeleton, None if manifest.skeleton is None else manifest.metadata


def _build(frame: _Frame | None, records: Iterable[TensorRecord | None], metadata: Metadata) -> Manifest:
    assert frame is not None  # only a base may be absent
    container, skeleton, literal = frame
    present = tuple(record for record in records if record is not None)
    return Manifest(container, present, skeleton, metadata if literal is None else literal)


def _fits(merged: Merge, *sources: Manifest) -> bool:
    """Whether the tensors of each outcome are those that its skeleton speaks of."""
    return all(
        outcome.skeleton is None
        or any(source.skeleton == outcome.skeleton and _shapes(source) == _shapes(outcome) for source in sources)
        for outcome in (merged.ours, merged.theirs)
    )


def _shapes(manifest: Manifest) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(record.name, record.dtype, record.shape) for record in manifest.records}


def _by_name(manifest: Manifest) -> dict[str, TensorRecord]:
    return {record.name: record for record in manifest.records}


def _put(
    mine: dict[str, TensorRecord], others: dict[str, TensorRecord], name: str, record: TensorRecord | None
) -> None:
    for side in (mine, others):
        if record is None:
            side.pop(name, None)
        else:
            side[name] = record


def _head(manifest: Manifest) -> tuple[str, Skeleton | None, Metadata]:
    return manifest.container, manifest.skeleton, manifest.metadata


def _framed(manifest: Manifest, source: Manifest) -> Manifest:
    return Manifest(source.container, manifest.records, source.skeleton, source.metadata)


def _cut(manifest: Manifest) -> tuple[bytes, bytes, dict[str, bytes]]:
    """A manifest's text: its first line, the rest of its head, and each tensor's lines."""
    first, *lines = manifest.to_bytes().splitlines(keepends=True)
    start = len(lines) - 2 * len(manifest.records)
    texts = (b"".join(lines[at : at + 2]) for at in range(start, len(lines), 2))
    return first, b"".join(lines[:start]), {r.name: text for r, text in zip(manifest.records, texts, strict=True)}


def _marker_size(data: bytes) -> int:
    found = re.search(rb"^(<{7,}) ours$", data, re.MULTILINE)
    return len(found[1]) if found else MARKER_SIZE


def _next_side(now: str, mark: bytes) -> str:
    allowed = {"": b"<", "ours": b"|=", "base": b"=", "theirs": b">"}[now]
    if mark not in allowed:
        raise FormatError("the conflict markers of a manifest are not in order")
    return _SIDES[mark]
