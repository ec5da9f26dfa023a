"""Places: each keeps the contract, and the contract finds each promise that a place breaks."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from coral.errors import AlreadyExistsError, ConflictError, InvalidNameError, NotFoundError, StorageError
from coral.storage import disk
from coral.storage.folder_place import FolderPlace
from coral.storage.memory_place import MemoryPlace
from coral.storage.place import Found, Place, Stamp
from coral.testing import crash
from coral.testing.contracts.places import Opens, PlaceContract, broken_promises
from coral.testing.disks import Failing, Killing, Recording, Unsynced
from coral.testing.processes import Note, Warm

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TestMemoryPlace(PlaceContract):
    """The toy keeps the contract."""

    @pytest.fixture
    def place(self) -> Place:
        return MemoryPlace()


class TestFolderPlace(PlaceContract):
    """So does a folder."""

    @pytest.fixture(autouse=True)
    def no_fsync(self) -> Iterable[None]:
        """What is durable is another test's matter."""
        with disk.use(Unsynced()):
            yield

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FolderPlace(tmp_path / "place")

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Opens:
        return partial(FolderPlace, tmp_path / "place")


# -- what the contract finds


class Overwrites(MemoryPlace):
    def create(self, key: str, data: Buffer) -> Stamp:
        self.remove(key)
        return super().create(key, data)


class OverwritesWhatIsEqual(MemoryPlace):
    def create(self, key: str, data: Buffer) -> Stamp:
        try:
            if self.read(key) == bytes(data):
                return self.look(key).stamp
        except NotFoundError:
            pass
        return super().create(key, data)


class LooksBeforeItCreates(MemoryPlace):
    def create(self, key: str, data: Buffer) -> Stamp:
        if any(found.key == key for found in self.listing()):
            raise AlreadyExistsError(key)
        time.sleep(0.001)
        self.remove(key)
        return super().create(key, data)


class LooksBeforeItReplaces(MemoryPlace):
    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        try:
            if self.look(key).stamp != expected:
                raise ConflictError(key)
            time.sleep(0.001)
            return super().replace(key, data, expected=self.look(key).stamp)
        except NotFoundError:
            raise ConflictError(key) from None


class BringsBack(MemoryPlace):
    """What is removed between the look and the write of a replace is there again."""

    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        stamp = super().replace(key, data, expected=expected)
        time.sleep(0.001)
        if all(found.key != key for found in self.listing()):
            return self.create(key, data)
        return stamp


class ReplacesWhatever(MemoryPlace):
    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        try:
            return super().replace(key, data, expected=self.look(key).stamp)
        except NotFoundError:
            raise ConflictError(key) from None


class ReplacesNothing(MemoryPlace):
    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        try:
            return super().replace(key, data, expected=expected)
        except ConflictError:
            return self.create(key, data)


class StampsLengths(MemoryPlace):
    """As a folder would whose clock ticks slowly."""

    def _put(self, key: str, data: Buffer) -> Stamp:
        super()._put(key, data)
        kept = self._kept[key]
        stamp = Stamp(str(kept.found.nbytes))
        self._kept[key] = kept._replace(found=kept.found._replace(stamp=stamp))
        return stamp


class CountsEachKey(MemoryPlace):
    """A stamp comes again once its object was removed."""

    def _put(self, key: str, data: Buffer) -> Stamp:
        before = self._kept.get(key)
        super()._put(key, data)
        kept, stamp = self._kept[key], Stamp(str(1 if before is None else int(before.found.stamp) + 1))
        self._kept[key] = kept._replace(found=kept.found._replace(stamp=stamp))
        return stamp


class NewStampEachLook(MemoryPlace):
    def look(self, key: str) -> Found:
        found = super().look(key)
        return found._replace(stamp=Stamp(f"{found.stamp}-{time.perf_counter_ns()}"))


class ReadsAll(MemoryPlace):
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return super().read(key)


class ReadsOneTooMany(MemoryPlace):
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return super().read(key, start, None if stop is None else stop + 1)


class RefusesPastTheEnd(MemoryPlace):
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        data = super().read(key)
        if start > len(data):
            raise StorageError("InvalidRange")
        return data[start:stop]


class ReadsNothingOfNothing(MemoryPlace):
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            return super().read(key, start, stop)
        except NotFoundError:
            return b""


class HasFolders(MemoryPlace):
    def look(self, key: str) -> Found:
        if any(found.key.startswith(f"{key}/") for found in self.listing()):
            return Found(key, 0, Stamp("folder"), 0.0)
        return super().look(key)


class Tears(MemoryPlace):
    """An object can be seen while it comes."""

    def _put(self, key: str, data: Buffer) -> Stamp:
        whole = bytes(data)
        super()._put(key, whole[: len(whole) // 2])
        time.sleep(0.001)
        return super()._put(key, whole)


class GoesFirst(MemoryPlace):
    """What is replaced is away for a moment."""

    def replace(self, key: str, data: Buffer, *, expected: Stamp) -> Stamp:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.found.stamp != expected:
                raise ConflictError(key)
            del self._kept[key]
        time.sleep(0.001)
        with self._lock:
            return self._put(key, data)


class KeepsTheBuffer(MemoryPlace):
    """What is handed in is read when somebody wants it."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, memoryview] = {}

    def _put(self, key: str, data: Buffer) -> Stamp:
        self._buffers[key] = memoryview(data)
        return super()._put(key, data)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        super().read(key)
        return bytes(self._buffers[key])[start:stop]


class TakesBytesAlone(MemoryPlace):
    def _put(self, key: str, data: Buffer) -> Stamp:
        if not isinstance(data, bytes):
            raise TypeError("bytes, please")
        return super()._put(key, data)


class RemovesNothing(MemoryPlace):
    def remove(self, key: str) -> None:
        pass


class RemovesWhatBeginsSo(MemoryPlace):
    def remove(self, key: str) -> None:
        for found in list(self.listing()):
            if found.key.startswith(key):
                super().remove(found.key)


class MissesWhatItRemoves(MemoryPlace):
    def remove(self, key: str) -> None:
        self.look(key)
        super().remove(key)


class ListsPrefixes(MemoryPlace):
    def listing(self, folder: str = "") -> Iterable[Found]:
        return [found for found in super().listing() if found.key.startswith(folder)]


class ListsOneLevel(MemoryPlace):
    def listing(self, folder: str = "") -> Iterable[Found]:
        depth = len(folder.split("/")) if folder else 0
        return [found for found in super().listing(folder) if found.key.count("/") == depth]


class ListsAPage(MemoryPlace):
    def listing(self, folder: str = "") -> Iterable[Found]:
        return itertools.islice(super().listing(folder), 1000)


class ListsTwice(MemoryPlace):
    def listing(self, folder: str = "") -> Iterable[Found]:
        return [*super().listing(folder)] * 2


class ListsLate(MemoryPlace):
    """What was just written is not listed yet."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def _put(self, key: str, data: Buffer) -> Stamp:
        self._last = key
        return super()._put(key, data)

    def listing(self, folder: str = "") -> Iterable[Found]:
        last, self._last = self._last, ""
        return [found for found in super().listing(folder) if found.key != last]


class ListsOldStamps(MemoryPlace):
    def listing(self, folder: str = "") -> Iterable[Found]:
        return [found._replace(stamp=Stamp("listed")) for found in super().listing(folder)]


class SaysWrongLengths(MemoryPlace):
    def look(self, key: str) -> Found:
        found = super().look(key)
        return found._replace(nbytes=found.nbytes + found.nbytes % 2)


class TakesAnyKey(MemoryPlace):
    def create(self, key: str, data: Buffer) -> Stamp:
        with self._lock:
            if key in self._kept:
                raise AlreadyExistsError(key)
            return self._put(key, data)


class RefusesLongKeys(MemoryPlace):
    def create(self, key: str, data: Buffer) -> Stamp:
        if len(key) > 255:
            raise InvalidNameError(key)
        return super().create(key, data)


class ForgetsFolders(MemoryPlace):
    """Keys are told apart by their last parts."""

    def create(self, key: str, data: Buffer) -> Stamp:
        return super().create(key.rpartition("/")[2], data)


class SharesABuffer(MemoryPlace):
    """Of threads that read at once each gets what the last one wanted."""

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        self._shared = super().read(key, start, stop)
        time.sleep(0.0001)
        return self._shared


class OlderWithEachWrite(MemoryPlace):
    def _put(self, key: str, data: Buffer) -> Stamp:
        stamp = super()._put(key, data)
        kept = self._kept[key]
        self._kept[key] = kept._replace(found=kept.found._replace(modified=-float(self._written)))
        return stamp


PLANTED: list[Callable[[], Place]] = [
    kind for kind in list(globals().values()) if isinstance(kind, type) and kind.__mro__[1:2] == (MemoryPlace,)
]


def test_a_broken_promise_is_found() -> None:
    """The contract says no to each place that breaks a promise, and each of its tests is there because of one."""
    assert len(PLANTED) >= 25
    found = {kind.__name__: broken_promises(kind) for kind in PLANTED}
    assert [name for name, broken in found.items() if not broken] == []
    own = {name for name in vars(PlaceContract) if name.startswith("test_") and "process" not in name}
    assert own <= {name for broken in found.values() for name in broken}


def test_who_does_not_compare_says_so() -> None:
    """Where a place admits that it does not compare, the races are left out, and nothing else is."""

    class Admits(LooksBeforeItCreates):
        compares = False

    assert broken_promises(Admits) == []


def test_a_good_place_breaks_none() -> None:
    """What is asked for can be kept."""
    assert broken_promises(MemoryPlace) == []


class Unlocked(FolderPlace):
    """Others may write between its look and its write."""

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _write(self, key: str, data: Buffer, *, modified: float, first: bool) -> Stamp:
        time.sleep(0.002)
        return super()._write(key, data, modified=modified, first=first)


class RenamesFirst(Unlocked):
    """As a folder does where names are taken by rename."""

    def create(self, key: str, data: Buffer) -> Stamp:
        if self._path(key).exists():
            raise AlreadyExistsError(key)
        return self._write(key, data, modified=time.time(), first=False)


def test_a_race_of_processes_is_found(tmp_path: Path) -> None:
    """What goes wrong between processes alone is found by those tests that have some."""
    contract = PlaceContract()
    with pytest.raises(AssertionError):
        contract.test_no_process_loses_an_update(Unlocked(tmp_path / "a"), partial(Unlocked, tmp_path / "a"))
    with pytest.raises(AssertionError):
        contract.test_the_first_process_to_create_wins(
            RenamesFirst(tmp_path / "b"), partial(RenamesFirst, tmp_path / "b")
        )


# -- any order of calls

KEYS = st.sampled_from(["a", "b/c", "b/d", "b/e/f"])
BYTES = st.binary(max_size=40)


class AnyOrder(RuleBasedStateMachine):
    """A place beside a dictionary of what was put there."""

    opens: Opens

    def __init__(self) -> None:
        super().__init__()
        self.place = self.opens()
        self.model: dict[str, bytes] = {}
        self.stamps: dict[str, Stamp] = {}
        self.old: list[Stamp] = [Stamp("none")]

    @rule(key=KEYS, data=BYTES)
    def create(self, key: str, data: bytes) -> None:
        if key in self.model:
            with pytest.raises(AlreadyExistsError):
                self.place.create(key, data)
        else:
            self.stamps[key] = self.place.create(key, data)
            self.model[key] = data

    @rule(key=KEYS, data=BYTES)
    def replace(self, key: str, data: bytes) -> None:
        if key in self.model:
            self.old.append(self.stamps[key])
            self.stamps[key] = self.place.replace(key, data, expected=self.stamps[key])
            self.model[key] = data
        else:
            with pytest.raises(ConflictError):
                self.place.replace(key, data, expected=self.old[-1])

    @rule(key=KEYS, data=BYTES, chosen=st.integers(0))
    def replace_what_has_changed(self, key: str, data: bytes, chosen: int) -> None:
        with pytest.raises(ConflictError):
            self.place.replace(key, data, expected=self.old[chosen % len(self.old)])

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        self.place.remove(key)
        if self.model.pop(key, None) is not None:
            self.old.append(self.stamps.pop(key))

    @rule(key=KEYS, start=st.integers(0, 50), stop=st.none() | st.integers(0, 50))
    def read(self, key: str, start: int, stop: int | None) -> None:
        if key in self.model:
            assert self.place.read(key, start, stop) == self.model[key][start:stop]
        else:
            with pytest.raises(NotFoundError):
                self.place.read(key, start, stop)

    @invariant()
    def all_is_as_it_was_put(self) -> None:
        for folder in ("", "b", "b/e", "nothing"):
            expected = {key for key in self.model if key.startswith(f"{folder}/" if folder else "")}
            found = list(self.place.listing(folder))
            assert sorted(one.key for one in found) == sorted(expected)
        for key, data in self.model.items():
            found_now = self.place.look(key)
            assert (found_now.nbytes, found_now.stamp) == (len(data), self.stamps[key])
            assert self.place.read(key) == data


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_any_order_of_calls(kind: str, tmp_path: Path) -> None:
    """Whatever is created, replaced and removed in whatever order, all verbs agree on what is there."""
    count = itertools.count()

    class Machine(AnyOrder):
        @staticmethod
        def opens() -> Place:
            return MemoryPlace() if kind == "memory" else FolderPlace(tmp_path / str(next(count)))

    with disk.use(Unsynced()):
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


@given(st.text(max_size=12) | st.text("ab/._-", max_size=8))
def test_the_places_agree_on_keys(key: str) -> None:
    """A key that one takes every other one takes as well, but for those in which a folder keeps its own."""
    memory, folder = MemoryPlace(), FolderPlace(Path("/nonexistent/place"))

    def is_refused(place: Place) -> bool:
        try:
            place.look(key)
        except InvalidNameError:
            return True
        except (NotFoundError, StorageError):
            return False
        raise AssertionError("it is there")

    assert is_refused(memory) == is_refused(folder)


# -- a folder


def test_what_the_folder_needs_itself_is_no_object(tmp_path: Path) -> None:
    """Locks, and what is on its way, are neither listed nor read nor overwritten; nor is what others left there."""
    place = FolderPlace(tmp_path)
    stamp = place.create("a", b"1")
    place.replace("a", b"2", expected=stamp)
    (tmp_path / "tmp" / "left").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "Read Me").mkdir()
    assert {path.name for path in tmp_path.iterdir()} >= {"tmp", "locks", ".DS_Store", "Read Me", "a"}
    assert [found.key for found in place.listing()] == ["a"]
    for key in ("tmp", "tmp/left", "locks/place"):
        for verb in (place.look, place.read, place.remove, place.listing, partial(place.create, data=b"x")):
            with pytest.raises(InvalidNameError):
                verb(key)
    assert place.create("b/tmp", b"x") and place.read("b/tmp") == b"x"


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """Nothing is written or removed through a link that somebody put there, and a folder behind one is not listed."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_bytes(b"x")
    place = FolderPlace(tmp_path / "place")
    place.create("a", b"1")
    (tmp_path / "place" / "link").symlink_to(tmp_path / "other")
    assert [found.key for found in place.listing()] == ["a"]
    with pytest.raises(StorageError):
        place.create("link/new", b"x")
    with pytest.raises(StorageError):
        place.remove("link/precious")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]


def test_a_pipe_is_no_object(tmp_path: Path) -> None:
    """Nor is it waited for."""
    place = FolderPlace(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for verb in (place.look, place.read):
        with pytest.raises(NotFoundError):
            verb("pipe")
    assert list(place.listing()) == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """A minute later the next who writes removes it; what is being written stays."""
    place = FolderPlace(tmp_path)
    place.create("a", b"1")
    left, busy = (tmp_path / "tmp" / f"a.{digit * 16}" for digit in "12")
    for path in (left, busy):
        path.write_bytes(b"x")
    os.utime(left, (1, 1))
    place.create("b", b"2")
    assert not left.exists() and busy.exists()


STORY = ["create a", "create b", "replace a", "remove b", "create b", "replace a"]


def tell(place: FolderPlace, note: Callable[[str], object]) -> None:
    """A story of an object that changes and one that goes and comes; each step is noted when it has returned."""
    stamps: dict[str, Stamp] = {}
    for number, step in enumerate(STORY):
        verb, key = step.split()
        data = b"%d" % number * 3000
        if verb == "create":
            stamps[key] = place.create(key, data)
        elif verb == "replace":
            stamps[key] = place.replace(key, data, expected=stamps[key])
        else:
            place.remove(key)
        note(f"step {number}")


def after(steps: int) -> dict[str, bytes]:
    """What is there after so many steps of the story."""
    there: dict[str, bytes] = {}
    for number, step in enumerate(STORY[:steps]):
        verb, key = step.split()
        there.pop(key, None)
        if verb != "remove":
            there[key] = b"%d" % number * 3000
    return there


def check_left(root: Path, returned: int) -> None:
    """The place is as it was after the last step that returned, or after the next; and can be used."""
    place = FolderPlace(root)
    there = {found.key: place.read(found.key) for found in place.listing()}
    assert there in (after(returned), after(returned + 1))
    for found in place.listing():
        place.replace(found.key, b"new", expected=found.stamp)
    place.create("c", b"new")


def tell_until(note: Note, root: Path, limit: int) -> int:
    """Tell the story, and be killed at the call of this number that changes something; returns how many there are."""
    killing = Killing(limit)
    with disk.use(killing):
        tell(FolderPlace(root), note)
    return killing.count


def test_killed_at_any_call(tmp_path: Path) -> None:
    """Whenever a writer is killed, every object is there whole or not at all, and what had returned stays."""
    job = f"{__name__}:tell_until"
    with Warm(None, [__name__], folder=Path(__file__).parents[2]) as warm:
        calls = warm.run(job, tmp_path / "all", -1).result
        assert isinstance(calls, int) and calls > 30
        for limit in range(calls):
            ended = warm.run(job, tmp_path / str(limit), limit)
            assert (ended.finished, ended.signal) == (False, "SIGKILL")
            check_left(tmp_path / str(limit), len(ended.notes))


def test_a_power_cut_takes_nothing_back(tmp_path: Path) -> None:
    """Whatever a power cut may leave, every object is there whole or not at all, and what had returned stays."""
    root = tmp_path / "place"
    root.mkdir()
    recording = Recording()
    returned: list[int] = []
    with disk.use(recording):
        tell(FolderPlace(root), lambda note: returned.append(len(recording.operations)))
    states = crash.states(root, ({}, []), recording.operations, limit=200, seed=1)
    assert len(states) > 100
    for number, state in enumerate(states):
        folder = tmp_path / "left" / str(number)
        crash.materialise(state, folder)
        check_left(folder, sum(count <= state.cut for count in returned))


def test_a_disk_that_refuses_breaks_nothing(tmp_path: Path) -> None:
    """Wherever the disk refuses the call fails, and every object is there whole or not at all."""
    for number in range(1000):
        returned: list[str] = []
        failing = Failing(number)
        root = tmp_path / str(number)
        try:
            with disk.use(failing):
                tell(FolderPlace(root), returned.append)
        except StorageError:
            pass
        if failing.count <= number:
            break
        check_left(root, len(returned))
    assert number > 30
