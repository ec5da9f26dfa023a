"""How commits follow each other: common ancestors, and the order in which a log shows commits: newest first,
and never a commit before one that follows it.

The walk is lazy: along a line of commits it reads one commit for each that it shows. Where lines run side by side it
reads on until they have become one, and sorts what it read. The order is exact as long as no commit is dated before
its parents; coral dates its own so.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping

from coral.history.commit import CommitObject

Read = Callable[[str], CommitObject]


def newest_first(start: str, read: Read, *, also: Iterable[str] = ()) -> Iterator[tuple[str, CommitObject]]:
    """The commits that lead to ``start``, or to one of the others, themselves included, each once."""
    found: dict[str, CommitObject] = {oid: read(oid) for oid in (start, *also)}
    frontier = list(found)
    seen: set[str] = set(found)
    while frontier:
        group, frontier = _group(frontier, found, seen, read)
        for oid in _sorted(group, found):
            yield oid, found[oid]
        for oid in group:
            del found[oid]


def _group(
    frontier: list[str], found: dict[str, CommitObject], seen: set[str], read: Read
) -> tuple[list[str], list[str]]:
    """Read on until one commit is left that all others come before; returns those others, and that one."""
    heap = [(-found[oid].committed, oid) for oid in frontier]
    group: list[str] = []
    oldest = None
    while heap:
        when = -heap[0][0]
        # Of commits made in the same second either may follow the other.
        if len(heap) == 1 and (len(group) == 1 or (oldest is not None and when < oldest)):
            break
        oid = heapq.heappop(heap)[1]
        group.append(oid)
        oldest = when if oldest is None else min(oldest, when)
        for parent in found[oid].parents:
            if parent not in seen:
                seen.add(parent)
                found[parent] = read(parent)
                heapq.heappush(heap, (-found[parent].committed, parent))
    return group, [oid for _, oid in heap]


def _sorted(group: list[str], found: dict[str, CommitObject]) -> Iterator[str]:
    """Children before parents; among those that may come next, the newest first."""
    children = dict.fromkeys(group, 0)
    for oid in group:
        for parent in found[oid].parents:
            if parent in children:
                children[parent] += 1
    ready = [(-found[oid].committed, place, oid) for place, oid in enumerate(group) if not children[oid]]
    places = {oid: place for place, oid in enumerate(group)}
    heapq.heapify(ready)
    while ready:
        oid = heapq.heappop(ready)[2]
        yield oid
        for parent in set(found[oid].parents):
            if parent in children:
                children[parent] -= found[oid].parents.count(parent)
                if not children[parent]:
                    heapq.heappush(ready, (-found[parent].committed, places[parent], parent))


def latest_first(found: Mapping[str, CommitObject], read: Read) -> Iterator[CommitObject]:
    """These commits and all that lead to them, by date, each once; lazier than :func:`newest_first`.

    A commit comes before one that follows it where both are of the same second.
    """
    waiting, seen = dict(found), set(found)
    heap = [(-commit.committed, oid) for oid, commit in found.items()]
    heapq.heapify(heap)
    while heap:
        commit = waiting.pop(heapq.heappop(heap)[1])
        yield commit
        for parent in commit.parents:
            if parent not in seen:
                seen.add(parent)
                waiting[parent] = read(parent)
                heapq.heappush(heap, (-waiting[parent].committed, parent))


def merge_base(one: str, two: str, read: Read) -> str | None:
    """The newest common ancestor of two commits that no other common ancestor follows; None when there is none."""
    of_one, of_two, below = 1, 2, 4
    marks = {one: of_one}
    marks[two] = marks.get(two, 0) | of_two
    heap = [(-read(oid).committed, oid) for oid in marks]
    heapq.heapify(heap)
    common: dict[str, int] = {}
    while any(not marks[oid] & below for _, oid in heap):
        when, oid = heapq.heappop(heap)
        mark = marks[oid]
        if mark & (of_one | of_two) == of_one | of_two:
            if not mark & below:
                common[oid] = -when
            mark |= below
        for parent in read(oid).parents:
            if marks.get(parent, 0) | mark != marks.get(parent, 0):
                marks[parent] = marks.get(parent, 0) | mark
                heapq.heappush(heap, (-read(parent).committed, parent))
    best = [oid for oid in common if not marks[oid] & below]
    return max(best, key=lambda oid: (common[oid], oid), default=None)
