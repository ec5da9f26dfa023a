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
from coral.ids import CommitHash

Read = Callable[[CommitHash], CommitObject]


def newest_first(
    start: CommitHash, read: Read, *, also: Iterable[CommitHash] = ()
) -> Iterator[tuple[CommitHash, CommitObject]]:
    """The commits that lead to ``start``, or to one of the others, themselves included, each once."""
    found: dict[CommitHash, CommitObject] = {commit_hash: read(commit_hash) for commit_hash in (start, *also)}
    frontier = list(found)
    seen: set[CommitHash] = set(found)
    while frontier:
        group, frontier = _group(frontier, found, seen, read)
        for commit_hash in _sorted(group, found):
            yield commit_hash, found[commit_hash]
        for commit_hash in group:
            del found[commit_hash]


def _group(
    frontier: list[CommitHash], found: dict[CommitHash, CommitObject], seen: set[CommitHash], read: Read
) -> tuple[list[CommitHash], list[CommitHash]]:
    """Read on until one commit is left that all others come before; returns those others, and that one."""
    heap = [(-found[commit_hash].committed, commit_hash) for commit_hash in frontier]
    group: list[CommitHash] = []
    oldest = None
    while heap:
        when = -heap[0][0]
        # Of commits made in the same second either may follow the other.
        if len(heap) == 1 and (len(group) == 1 or (oldest is not None and when < oldest)):
            break
        commit_hash = heapq.heappop(heap)[1]
        group.append(commit_hash)
        oldest = when if oldest is None else min(oldest, when)
        for parent in found[commit_hash].parents:
            if parent not in seen:
                seen.add(parent)
                found[parent] = read(parent)
                heapq.heappush(heap, (-found[parent].committed, parent))
    return group, [commit_hash for _, commit_hash in heap]


def _sorted(group: list[CommitHash], found: dict[CommitHash, CommitObject]) -> Iterator[CommitHash]:
    """Children before parents; among those that may come next, the newest first."""
    children = dict.fromkeys(group, 0)
    for commit_hash in group:
        for parent in found[commit_hash].parents:
            if parent in children:
                children[parent] += 1
    ready = [
        (-found[commit_hash].committed, place, commit_hash)
        for place, commit_hash in enumerate(group)
        if not children[commit_hash]
    ]
    places = {commit_hash: place for place, commit_hash in enumerate(group)}
    heapq.heapify(ready)
    while ready:
        commit_hash = heapq.heappop(ready)[2]
        yield commit_hash
        for parent in set(found[commit_hash].parents):
            if parent in children:
                children[parent] -= found[commit_hash].parents.count(parent)
                if not children[parent]:
                    heapq.heappush(ready, (-found[parent].committed, places[parent], parent))


def latest_first(found: Mapping[CommitHash, CommitObject], read: Read) -> Iterator[CommitObject]:
    """These commits and all that lead to them, by date, each once; lazier than :func:`newest_first`.

    A commit comes before one that follows it where both are of the same second.
    """
    waiting, seen = dict(found), set(found)
    heap = [(-commit.committed, commit_hash) for commit_hash, commit in found.items()]
    heapq.heapify(heap)
    while heap:
        commit = waiting.pop(heapq.heappop(heap)[1])
        yield commit
        for parent in commit.parents:
            if parent not in seen:
                seen.add(parent)
                waiting[parent] = read(parent)
                heapq.heappush(heap, (-waiting[parent].committed, parent))


def merge_base(one: CommitHash, two: CommitHash, read: Read) -> CommitHash | None:
    """The newest common ancestor of two commits that no other common ancestor follows; None when there is none."""
    of_one, of_two, below = 1, 2, 4
    marks = {one: of_one}
    marks[two] = marks.get(two, 0) | of_two
    heap = [(-read(commit_hash).committed, commit_hash) for commit_hash in marks]
    heapq.heapify(heap)
    common: dict[CommitHash, int] = {}
    while any(not marks[commit_hash] & below for _, commit_hash in heap):
        when, commit_hash = heapq.heappop(heap)
        mark = marks[commit_hash]
        if mark & (of_one | of_two) == of_one | of_two:
            if not mark & below:
                common[commit_hash] = -when
            mark |= below
        for parent in read(commit_hash).parents:
            if marks.get(parent, 0) | mark != marks.get(parent, 0):
                marks[parent] = marks.get(parent, 0) | mark
                heapq.heappush(heap, (-read(parent).committed, parent))
    best = [commit_hash for commit_hash in common if not marks[commit_hash] & below]
    return max(best, key=lambda commit_hash: (common[commit_hash], commit_hash), default=None)
