"""What a place must keep of its promises (``coral.storage.place``), as tests for whoever writes one.

::

    class TestBucket(PlaceContract):
        @pytest.fixture
        def place(self) -> Place:
            return Bucket(...)  # empty, and another one for each test

Where the place can be had in other processes as well, ``elsewhere`` gives what opens it there. What no test can tell
from outside, that what is written outlasts a power cut, is for the place's own tests.
"""

from __future__ import annotations

import inspect
import itertools
import multiprocessing
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import TypeVar

import pytest

from coral.errors import AlreadyExistsError, ConflictError, InvalidNameError, LockedError, NotFoundError
from coral.storage.place import LONGEST_KEY, LONGEST_PART, Place, Stamp

if sys.flags.optimize:
    raise RuntimeError("the contract is made of assertions, which python -O leaves out")

T = TypeVar("T")
Opens = Callable[[], Place]
"""Opens the place once more; can be pickled."""

RACERS, ROUNDS = 8, 12
PROCESSES = 3
LARGE = 3 << 20
_BEGIN_SECONDS = 120.0
_others: list[Barrier] = []
"""In a process of a race, what all of them wait at."""
GOOD_KEYS = ["a", "0", "_", "packs/00000001-0123456789abcdef.pack", "refs/heads/main", "a.b-c_d", "a/b/c/d/e/f"]
BAD_KEYS = ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", ".a", "-a", "A", "a b", "a\0", "ä", "a\\b", "a\n"]


class PlaceContract:
    """One test a promise. To be inherited by a class of tests, with a fixture ``place``."""

    @pytest.fixture
    def place(self) -> Place:
        """An empty place."""
        raise NotImplementedError("the class of tests says which place")

    @pytest.fixture
    def elsewhere(self) -> Opens | None:
        """What opens ``place`` in another process; None where there is no way."""
        return None

    # -- objects

    def test_what_was_created_is_read(self, place: Place) -> None:
        """All of it, whatever its length."""
        for size in (0, 1, 1000, LARGE):
            data = noise(size)
            place.create(f"o/{size}", data)
            assert place.read(f"o/{size}") == data, f"{size} bytes came back as others"
            assert place.look(f"o/{size}").nbytes == size, f"{size} bytes are said to be others"

    def test_ranges(self, place: Place) -> None:
        """A range is what a slice would be, at and past the end as well."""
        data = noise(1000)
        place.create("a", data)
        place.create("empty", b"")
        for start, stop in itertools.product((0, 1, 500, 999, 1000, 1001, 5000), (None, 0, 1, 500, 999, 1000, 5000)):
            assert place.read("a", start, stop) == data[start:stop], f"bytes {start} to {stop}"
            assert place.read("empty", start, stop) == b"", f"bytes {start} to {stop} of nothing"

    def test_any_memory_is_taken(self, place: Place) -> None:
        """What is handed in may be any buffer, and may change once the call has returned."""
        data = bytearray(noise(1000))
        expected = bytes(data)
        place.create("a", data)
        stamp = place.create("b", memoryview(data)[100:200])
        place.replace("b", memoryview(data)[200:300], expected=stamp)
        data[:] = bytes(len(data))
        assert place.read("a") == expected
        assert place.read("b") == expected[200:300]

    def test_what_is_not_there(self, place: Place) -> None:
        """It can be neither read nor looked at; nor is an object's folder one."""
        place.create("folder/a", b"x")
        for key in ("a", "folder", "folder/b", "folder2/a"):
            _raises(NotFoundError, partial(place.read, key), f"read {key}")
            _raises(NotFoundError, partial(place.read, key, 0, 0), f"read nothing of {key}")
            _raises(NotFoundError, partial(place.look, key), f"look at {key}")

    def test_create_overwrites_nothing(self, place: Place) -> None:
        """A key that is taken is refused, and what it has stays, even where the bytes are the same."""
        stamp = place.create("a", b"first")
        for data in (b"second", b"first", b""):
            _raises(AlreadyExistsError, partial(place.create, "a", data), "create twice")
        assert (place.read("a"), place.look("a").stamp) == (b"first", stamp)

    # -- replacing

    def test_replace(self, place: Place) -> None:
        """Who knows the bytes that are there puts others in their place, time and again."""
        stamp = place.create("a", b"0")
        for number in range(1, 5):
            before = place.look("a")
            assert before.stamp == stamp, "another stamp, though nothing changed"
            stamp = place.replace("a", b"%d" % number * number, expected=stamp)
            after = place.look("a")
            assert (place.read("a"), after.stamp) == (b"%d" % number * number, stamp)
            assert after.nbytes == number
            assert after.modified >= before.modified, "it was changed before it was made"

    def test_replace_nothing_else(self, place: Place) -> None:
        """A stamp that is out of date, or of another key, or of nothing, is refused, and all stays as it is."""
        old = place.create("a", b"first")
        other = place.create("b", b"other!")
        now = place.replace("a", b"2nd!!", expected=old)
        for stamp in (old, other, Stamp("no stamp")):
            _raises(ConflictError, partial(place.replace, "a", b"third", expected=stamp), "replace what has changed")
        assert (place.read("a"), place.look("a").stamp) == (b"2nd!!", now)
        _raises(ConflictError, partial(place.replace, "c", b"new", expected=old), "replace what is not there")
        _raises(NotFoundError, partial(place.look, "c"), "replace made what was not there")

    def test_a_stamp_tells_bytes_apart(self, place: Place) -> None:
        """Bytes that differ never have the same stamp, though they be as long, and be written right after."""
        seen = {place.create("a", b"%04d" % 0)}
        for number in range(1, 50):
            stamp = place.look("a").stamp
            if number % 2:
                seen.add(place.replace("a", b"%04d" % number, expected=stamp))
            else:
                place.remove("a")
                seen.add(place.create("a", b"%04d" % number))
        assert len(seen) == 50, f"50 values had {len(seen)} stamps"

    # -- removing

    def test_remove(self, place: Place) -> None:
        """What is removed is gone for all verbs, others stay, and the key is free."""
        old = place.create("a", b"first")
        place.create("a2", b"stays")
        place.remove("a")
        _raises(NotFoundError, partial(place.read, "a"), "read what was removed")
        _raises(NotFoundError, partial(place.look, "a"), "look at what was removed")
        assert keys(place) == {"a2"}
        _raises(ConflictError, partial(place.replace, "a", b"x", expected=old), "replace what was removed")
        place.create("a", b"again")
        assert place.read("a") == b"again"
        _raises(ConflictError, partial(place.replace, "a", b"x", expected=old), "replace what was made anew")

    def test_remove_nothing(self, place: Place) -> None:
        """What is not there may be removed, and nothing else goes for it."""
        place.remove("a/b")
        place.create("a/b", b"x")
        place.remove("a/c")
        place.remove("a/b2")
        assert keys(place) == {"a/b"}

    # -- listing

    def test_listing(self, place: Place) -> None:
        """A folder's objects are listed, those below it too, each once and as it would be looked at."""
        made = ["a/1", "a/2", "a/b/3", "a2/4", "5", "a.b"]
        for number, key in enumerate(made):
            place.create(key, bytes(number))
        for folder, expected in {"": set(made), "a": {"a/1", "a/2", "a/b/3"}, "a/b": {"a/b/3"}, "no": set()}.items():
            found = list(place.listing(folder))
            assert sorted(one.key for one in found) == sorted(expected), f"listing of {folder!r}"
            for one in found:
                assert one == place.look(one.key), f"{one.key} is listed as what it is not"

    def test_listing_is_up_to_date(self, place: Place) -> None:
        """What was created, replaced or removed is seen by the next listing."""
        for number in range(20):
            stamp = place.create(f"a/{number}", b"x")
            assert f"a/{number}" in keys(place, "a"), "created, and not listed"
            stamp = place.replace(f"a/{number}", b"longer", expected=stamp)
            assert {one.stamp for one in place.listing("a") if one.key == f"a/{number}"} == {stamp}
            if number % 2:
                place.remove(f"a/{number}")
                assert f"a/{number}" not in keys(place, "a"), "removed, and still listed"

    def test_many_are_listed(self, place: Place) -> None:
        """A listing has no end before its last object: more than a page of any server."""
        made = {f"many/{number:05d}" for number in range(1100)}
        with ThreadPoolExecutor(RACERS) as pool:
            list(pool.map(lambda key: place.create(key, b"x"), sorted(made)))
        found = [one.key for one in place.listing("many")]
        assert len(found) == len(made) and set(found) == made

    # -- keys

    def test_good_keys(self, place: Place) -> None:
        """Every key that is allowed can be kept, up to the longest, each apart from the others."""
        longest = "/".join(["x" * LONGEST_PART] * 3) + "/"
        taken = {"a", "0", "_"}  # which would be the folders of others
        made = [f"k/{key}" if key in taken else key for key in GOOD_KEYS if not key.startswith("a/")]
        made += ["k/a.b/c/d/e/f", longest + "y" * (LONGEST_KEY - len(longest))]
        for key in made:
            place.create(key, key.encode())
        assert keys(place) == set(made)
        assert all(place.read(key) == key.encode() for key in made)

    def test_bad_keys(self, place: Place) -> None:
        """A key that not every place could keep is refused by every verb, and touches nothing."""
        for key in [*BAD_KEYS, "x" * (LONGEST_PART + 1), "/".join(["x" * 99] * 9)]:
            verbs: list[Callable[[], object]] = [
                partial(place.look, key),
                partial(place.read, key),
                partial(place.create, key, b"x"),
                partial(place.replace, key, b"x", expected=Stamp("s")),
                partial(place.remove, key),
            ]
            if key:
                verbs.append(lambda folder=key: list(place.listing(folder)))  # type: ignore[misc]
            for number, verb in enumerate(verbs):
                _raises(InvalidNameError, verb, f"verb {number} of {key!r}")
        assert keys(place) == set()

    # -- several at once

    def test_the_first_to_create_wins(self, place: Place) -> None:
        """Of threads that create one key exactly one succeeds, and its bytes are those that are there."""
        _needs_comparing(place)
        for number in range(ROUNDS):
            won = at_once(partial(wins, place, f"race/{number}", racer) for racer in range(RACERS))
            _check_winner(place, f"race/{number}", won)

    def test_the_first_process_to_create_wins(self, place: Place, elsewhere: Opens | None) -> None:
        """As threads do, so do processes."""
        _needs_comparing(place)
        for number, won in enumerate(_in_processes(elsewhere, win_each)):
            _check_winner(place, f"race/{number}", won)

    def test_no_update_is_lost(self, place: Place) -> None:
        """Of threads that count up together each counts."""
        _needs_comparing(place)
        place.create("count", b"0")
        at_once(partial(count_up, place, ROUNDS) for _ in range(RACERS))
        assert place.read("count") == b"%d" % (RACERS * ROUNDS)

    def test_no_process_loses_an_update(self, place: Place, elsewhere: Opens | None) -> None:
        """As threads do, so do processes."""
        _needs_comparing(place)
        place.create("count", b"0")
        _in_processes(elsewhere, count_up_there)
        assert place.read("count") == b"%d" % (PROCESSES * ROUNDS)

    def test_one_of_remove_and_replace(self, place: Place) -> None:
        """What is removed while others replace it stays gone: it was replaced before that, or not at all."""
        _needs_comparing(place)
        for number in range(ROUNDS):
            key = f"gone/{number}"
            stamp = place.create(key, b"old")
            jobs = [partial(replaces, place, key, stamp), partial(place.remove, key)]
            at_once(jobs if number % 2 else reversed(jobs))
            _raises(NotFoundError, partial(place.look, key), "it came back after it was removed")

    def test_nobody_meets_a_part(self, place: Place) -> None:
        """Who reads while others write meets one of their objects, whole, with its own length and stamp."""
        with background(partial(_write_on, place)) as failed:
            for number in range(4 * ROUNDS):
                _check_whole(place, "changing" if number % 2 else "coming")
        assert not failed, f"the writer failed: {failed}"

    def test_a_listing_misses_nothing(self, place: Place) -> None:
        """What is there all the while is listed, once, while others come, change and go."""
        stays = {f"all/{number:02d}" for number in range(20)}
        for key in stays:
            place.create(key, b"x")
        with background(partial(_come_and_go, place)) as failed:
            for _ in range(2 * ROUNDS):
                found = [one.key for one in place.listing("all")]
                assert len(found) == len(set(found)), "listed twice"
                assert stays <= set(found), f"not listed: {sorted(stays - set(found))}"
        assert not failed, f"the writer failed: {failed}"

    def test_threads_read_at_once(self, place: Place) -> None:
        """Each gets its own range."""
        data = noise(LARGE)
        place.create("a", data)
        starts = random.Random(1).sample(range(LARGE - 5000), RACERS * ROUNDS)
        with ThreadPoolExecutor(RACERS) as pool:
            pieces = list(pool.map(lambda start: place.read("a", start, start + 5000), starts))
        assert pieces == [data[start : start + 5000] for start in starts]


def broken_promises(make: Callable[[], Place]) -> list[str]:
    """The tests of the contract that a place fails in this process, by their names; each is given a new one."""
    contract, failed = PlaceContract(), []
    for name, test in inspect.getmembers(contract, inspect.ismethod):
        if name.startswith("test_") and "elsewhere" not in inspect.signature(test).parameters:
            try:
                test(make())
            except Exception:
                failed.append(name)
            except pytest.skip.Exception:
                pass
    return failed


# -- what the tests are made of


def noise(length: int) -> bytes:
    """Bytes without order."""
    return random.Random(length).randbytes(length)


def keys(place: Place, folder: str = "") -> set[str]:
    """What is listed."""
    return {found.key for found in place.listing(folder)}


def at_once(jobs: Iterable[Callable[[], T]]) -> list[T]:
    """What jobs return that threads begin at the same moment."""
    todo = list(jobs)
    barrier = threading.Barrier(len(todo))

    def begin(job: Callable[[], T]) -> T:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(todo)) as pool:
        return list(pool.map(begin, todo))


@contextmanager
def background(step: Callable[[int], object]) -> Iterator[list[BaseException]]:
    """Do steps, by their numbers, in a thread for as long as the block lasts; what failed is in the list then."""
    failed: list[BaseException] = []
    stop = threading.Event()

    def go_on() -> None:
        try:
            for number in itertools.count():
                step(number)
                if stop.is_set():
                    return
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        thread.join()


def wins(place: Place, key: str, racer: int) -> bytes | None:
    """Create an object; its bytes where nobody else was first."""
    data = b"%d " % racer * 1000
    try:
        place.create(key, data)
    except AlreadyExistsError:
        return None
    return data


def replaces(place: Place, key: str, stamp: Stamp) -> None:
    """Replace an object, if it is still there."""
    try:
        place.replace(key, b"new", expected=stamp)
    except ConflictError:
        pass


def count_up(place: Place, times: int) -> None:
    """Add one to a number so many times, whoever else does."""
    # Whoever is refused was overtaken, and there are not more to overtake than count.
    tries = 2 * RACERS * ROUNDS
    done = 0
    while done < times:
        found = place.look("count")
        try:
            place.replace("count", b"%d" % (int(place.read("count")) + 1), expected=found.stamp)
            done += 1
        except LockedError:
            raise
        except ConflictError:
            tries -= 1
            assert tries, "refused more often than others replaced it"


def win_each(opens: Opens, racer: int) -> list[bytes | None]:
    """Take part in each round of a race, in a process of one's own."""
    place = opens()
    won = []
    for number in range(ROUNDS):
        _others[0].wait(_BEGIN_SECONDS)
        won.append(wins(place, f"race/{number}", racer))
    return won


def count_up_there(opens: Opens, racer: int) -> list[None]:
    """Count, in a process of one's own."""
    place = opens()
    _others[0].wait(_BEGIN_SECONDS)
    count_up(place, ROUNDS)
    return [None]


def _meet(barrier: Barrier) -> None:
    _others.append(barrier)


def _in_processes(elsewhere: Opens | None, job: Callable[[Opens, int], list[T]]) -> list[list[T]]:
    """By round, what each of some processes came to."""
    if elsewhere is None:
        pytest.skip("NOT TESTED: other processes; this place is in this one alone")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_meet, initargs=(barrier,)) as pool:
        done = [pool.submit(job, elsewhere, racer) for racer in range(PROCESSES)]
        return [list(round_) for round_ in zip(*(one.result() for one in done), strict=True)]


def _check_winner(place: Place, key: str, won: list[bytes | None]) -> None:
    winners = [data for data in won if data is not None]
    assert len(winners) == 1, f"{len(winners)} created {key}"
    assert place.read(key) == winners[0], f"{key} has the bytes of one who lost"


def _write_on(place: Place, number: int) -> None:
    """Replace an object that is always there, and have another one come and go; each tells which one it is."""
    if number:
        place.replace("changing", _telling("changing", number), expected=place.look("changing").stamp)
    else:
        place.create("changing", _telling("changing", number))
    place.remove("coming")
    place.create("coming", _telling("coming", number))


def _telling(key: str, number: int) -> bytes:
    """No two of them are alike, and each is known by any eight bytes from where eight begin."""
    length = (1000 if key == "changing" else LARGE // 4) + 7 * (number % 100)
    return (b"%08d" % number * (length // 8 + 1))[:length]


def _check_whole(place: Place, key: str) -> None:
    with suppress(NotFoundError):
        data = place.read(key)
        assert data == _telling(key, int(data[:8])), f"a part of {key} was read"
        part = place.read(key, 8, 900)
        assert part == _telling(key, int(part[:8]))[8:900], f"parts of several {key} were read"
        before, data, after = place.look(key), place.read(key), place.look(key)
        if before.stamp == after.stamp:
            assert len(data) == before.nbytes, f"{key} is said to be {before.nbytes} bytes long, not {len(data)}"


def _come_and_go(place: Place, number: int) -> None:
    key = f"all/{number % 7}-comes"
    place.create(key, b"x")
    changed = f"all/{number % 20:02d}"
    place.replace(changed, b"%d" % number, expected=place.look(changed).stamp)
    place.remove(key)


def _needs_comparing(place: Place) -> None:
    if not place.compares:
        pytest.skip("NOT PROMISED: this place does not compare")


def _raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    """See that a call is refused as it should be. A lock that others hold for too long is no lost race."""
    try:
        call()
    except error as raised:
        assert not isinstance(raised, LockedError), f"{what}: {raised}"
    except Exception as raised:
        raise AssertionError(f"{what}: not {error.__name__} but {raised!r}") from raised
    else:
        raise AssertionError(f"{what}: no {error.__name__}")
