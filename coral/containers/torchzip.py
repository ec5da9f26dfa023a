"""Archives of torch.save, and of torch.jit.save: pickles, and each storage as a member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coral.containers import zips
from coral.containers.file import NotThisError, Parsed
from coral.containers.pickled import PICKLE_LIMIT
from coral.containers.source import FileRange
from coral.containers.torchfile import CONSTANTS, STORAGES, name_storages, read_pickles
from coral.containers.zips import Member, Span

_PICKLE, _CONSTANTS = "data.pkl", "constants.pkl"
_BYTE_ORDER = "byteorder"


def is_torch(members: Sequence[Member]) -> bool:
    """Whether an archive has the pickle that torch's archives have."""
    stored = zips.stored(members)
    return any(member.name == _folder(stored) + _PICKLE for member in stored)


def parse(data: FileRange) -> Parsed | None:
    """Take a torch archive apart; None for any other archive.

    Raises:
        NotThisError: it is big-endian, or its pickle and storages are not sound.
    """
    members = zips.members_of(data)
    if not is_torch(members):
        return None
    by_name = _strip_folder(zips.stored(members))
    order = by_name.get(_BYTE_ORDER)
    if order is not None and data.read(order.start, min(order.stop, order.start + 8)) != b"little":
        raise NotThisError("it was saved on a big-endian machine")
    contents = read_pickles(_read(data, by_name, _PICKLE), _read(data, by_name, _CONSTANTS))
    storages = {name: member for name, member in by_name.items() if name.startswith((STORAGES, CONSTANTS))}
    ranges = {name: data.part(member.start, member.stop) for name, member in storages.items()}
    sources = name_storages(ranges, contents)
    spans = [Span(sources[name].name, member.start, 0, member) for name, member in storages.items()]
    places = [_place(by_name, name) for name in (_PICKLE, _CONSTANTS)]
    skeleton = zips.make_skeleton(data, spans, members=members, pickles=(places[0], places[1]))
    return Parsed("torch", skeleton, (), list(sources.values()))


def _place(members: Mapping[str, Member], name: str) -> tuple[int, int]:
    return (members[name].start, members[name].stop) if name in members else (0, 0)


def _read(data: FileRange, members: Mapping[str, Member], name: str) -> bytes:
    start, stop = _place(members, name)
    # The length comes from the file: no more is read than could be meant.
    return data.read(start, min(stop, start + PICKLE_LIMIT + 1))


def _strip_folder(members: Sequence[Member]) -> dict[str, Member]:
    """Members by their name within the archive's one folder."""
    folder = _folder(members)
    if len({member.name for member in members}) != len(members):
        raise NotThisError("a member stands in it twice")
    return {member.name.removeprefix(folder): member for member in members if member.name.startswith(folder)}


def _folder(members: Sequence[Member]) -> str:
    return members[0].name.partition("/")[0] + "/" if members else "/"
