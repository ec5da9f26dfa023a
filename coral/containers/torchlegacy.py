"""Files of torch.save from before 1.6: five pickles, then each storage after the number of its elements.

The pickles are a magic number, a version, what machine it was, what was saved, and the keys of the storages in order.
The tar archives of still older versions are kept whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from coral.containers import zips
from coral.containers.file import CutShortError, NotThisError, Parsed
from coral.containers.pickled import PICKLE_LIMIT, EndsEarlyError, RefusedError, Storage, describe, length, plain_list
from coral.containers.source import FileRange
from coral.containers.torchfile import STORAGES, contents_of, name_storages
from coral.containers.zips import Member, Span

_MAGIC = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_COUNT_BYTES: Final = 8


def is_legacy(head: bytes) -> bool:
    """Whether these are the first bytes of such a file."""
    return _MAGIC.match(head) is not None


def parse(data: FileRange) -> Parsed:
    """Take such a file apart. Raises NotThisError when it is not a sound one, CutShortError when it is not whole."""
    head = data.read(0, PICKLE_LIMIT)
    start = 0
    try:
        for _ in range(3):
            start += length(head[start:])
        contents = contents_of(describe(head[start:], STORAGES))
        stop = start + contents.nbytes
        keys, nbytes = plain_list(head[stop:])
    except RefusedError as error:
        if isinstance(error, EndsEarlyError) and len(data) <= PICKLE_LIMIT:
            raise CutShortError("it is cut short: it ends within a pickle") from None
        # Of a longer pickle the end was not read.
        large = f", or has over {PICKLE_LIMIT >> 20} MiB of values that are no tensors"
        raise NotThisError(str(error) + large * (len(data) > PICKLE_LIMIT)) from None
    members = list(_members(data, _in_order(keys, contents.storages), stop + nbytes))
    sources = name_storages({member.name: data.part(member.start, member.stop) for member in members}, contents)
    spans = [Span(sources[member.name].name, member.start, 0, member) for member in members]
    skeleton = zips.make_skeleton(data, spans, pickles=((start, stop), (0, 0)))
    return Parsed("torch", skeleton, (), [sources[member.name] for member in members])


def _in_order(keys: Sequence[str], storages: Sequence[tuple[str, Storage]]) -> list[Storage]:
    known = dict(storages)
    if len(set(keys)) != len(keys) or not known.keys() >= set(keys):
        raise NotThisError("its list of storages is not that of its pickle")
    return [known[key] for key in keys]


def _members(data: FileRange, storages: Sequence[Storage], at: int) -> Iterator[Member]:
    """Where the storages lie, which begin at ``at``; nothing is computed from them, as it is in an archive."""
    for storage in storages:
        count = int.from_bytes(data.read(at, at + _COUNT_BYTES), "little")
        start, stop = at + _COUNT_BYTES, at + _COUNT_BYTES + storage.nbytes
        if stop > len(data):
            raise CutShortError(f"it is cut short: it has {len(data):,} of at least {stop:,} bytes")
        # The elements may be counted as bytes: those of a storage that was saved before a tensor of it was.
        if count not in (storage.nbytes // storage.kind.item, storage.nbytes):
            raise NotThisError("a storage is not as long as its pickle says")
        yield Member(storage.name, start, stop, ())
        at = stop
