"""Large files past the page cache: the same bytes as through it, whatever the disk refuses and whoever gives up."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral.errors import StorageError
from coral.storage import direct, disk
from coral.storage.direct import DirectFile
from coral.storage.files import NewFile, Position
from coral.storage.folder import Folder
from coral.testing.disks import Failing, Interposed
from coral.testing.trace import Kind
from tests.processes import run_python

PAGE = 4096
pytestmark = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="NOT TESTED: there is no O_DIRECT here")


@pytest.fixture(autouse=True)
def _short_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "BUFFER_BYTES", PAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "root", temporary=tmp_path / "tmp")


def start(folder: Folder) -> DirectFile:
    """A file that goes past the page cache."""
    file = folder.new_file("x", direct=True)
    assert isinstance(file, DirectFile)
    return file


def is_direct(fd: object) -> bool:
    """Whether what is written to an open file goes past the page cache."""
    assert isinstance(fd, int)
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def noise(nbytes: int) -> bytes:
    return os.urandom(nbytes)


class Slow(Interposed):
    """A disk that takes its time to write.

    Attributes:
        begun: set when a write is under way.
        writing: how many writes are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.writing = 0

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if name != "pwrite":
            return do()
        self.writing += 1
        self.begun.set()
        time.sleep(0.02)
        try:
            return do()
        finally:
            self.writing -= 1


class Unwilling(Interposed):
    """A disk that wants nothing to do with O_DIRECT, and says so only when it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        if name == "pwrite" and is_direct(arguments[0]):
            self.refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return do()


steps = st.lists(
    st.one_of(st.lists(st.binary(max_size=3 * PAGE), max_size=4), st.sampled_from(["mark", "go back", "settle"])),
    max_size=12,
)


@given(steps=steps)
def test_it_is_as_any_other_file(tmp_path_factory: pytest.TempPathFactory, steps: list[list[bytes] | str]) -> None:
    """Whatever is written, marked and taken back, in pieces of any length: size, offsets and bytes are the same."""
    folder = Folder(tmp_path_factory.mktemp("direct"))
    files: list[NewFile] = [folder.new_file("a"), folder.new_file("b", direct=True)]
    for file, key in zip(files, "ab", strict=True):
        marks: list[Position] = []
        offsets = []
        for step in steps:
            if isinstance(step, list):
                offsets.append(file.write_at(step))
            elif step == "mark":
                marks.append(file.mark())
            elif step == "go back" and marks:
                file.go_back(marks.pop())
            else:
                file.settle()
            offsets.append(file.size)
        file.publish(key)
        folder.write(f"{key} offsets", repr(offsets).encode())
    assert folder.read("a") == folder.read("b")
    assert folder.read("a offsets") == folder.read("b offsets")


def test_most_of_it_goes_past_the_cache(folder: Folder) -> None:
    """Whole buffers are written with O_DIRECT where there is such a thing, and the rest without, before the fsync."""
    seen: list[tuple[str, int, bool]] = []

    class Watching(Interposed):
        def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
            if kind in ("write", "sync"):
                length = len(arguments[1]) if kind == "write" else 0  # type: ignore[arg-type]
                seen.append((kind, length, is_direct(arguments[0])))
            return do()

    data = noise(3 * PAGE + 100)
    folder.write("there", b"")
    with disk.use(Watching()), start(folder) as file:
        file.write(data)
        file.publish("x")
    assert folder.read("x") == data
    supported = seen[0][2]
    assert seen[:5] == [("write", PAGE, supported)] * 3 + [("write", 100, False), ("sync", 0, False)]


def test_threads_fill_it_together(folder: Folder) -> None:
    """Each record is where its writer was told."""
    with disk.use(Slow()), start(folder) as file:
        told: dict[int, bytes] = {}

        def write(number: int) -> None:
            for turn in range(20):
                data = bytes([number, turn]) * (300 + 37 * number)
                told[file.write_at([data[:5], data[5:]])] = data

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.publish("x")
    whole = folder.read("x")
    assert sum(map(len, told.values())) == len(whole)
    for offset, data in told.items():
        assert whole[offset : offset + len(data)] == data


@pytest.mark.parametrize("at", range(4))
def test_what_the_disk_refuses_is_told_once_and_forgotten(folder: Folder, at: int) -> None:
    """At the latest when it is settled; what was marked before stays, and the same file can be gone on with."""
    first, later = noise(2 * PAGE + 700), noise(5 * PAGE)
    with start(folder) as file:
        file.write(first)
        mark = file.mark()
        with disk.use(Failing(at, errno.ENOSPC, kinds={"write"})), pytest.raises(StorageError) as error:
            file.write(later)
            file.settle()
        assert error.value.errno == errno.ENOSPC
        file.go_back(mark)
        assert file.size == len(first)
        file.settle()
        file.write(b"again")
        file.publish("x")
    assert folder.read("x") == first + b"again"


@pytest.mark.parametrize("at", range(4))
def test_a_disk_that_refuses_to_go_back(folder: Folder, at: int) -> None:
    """While it cannot go back nothing is published; when it can, it is as if it had gone back at once."""
    first, later = noise(2 * PAGE + 700), noise(5 * PAGE)
    with start(folder) as file:
        file.write(first)
        mark = file.mark()
        with disk.use(Failing(at, errno.EROFS, forever=True, kinds={"write", "truncate", "sync"})):
            with pytest.raises(StorageError):
                file.write(later)
                file.settle()
            for attempt in (lambda: file.go_back(mark), file.settle, file.mark):
                with pytest.raises(StorageError):
                    attempt()
        assert file.mark() == mark
        file.write(b"again")
        file.publish("x")
    assert folder.read("x") == first + b"again"


def test_nothing_is_published_that_was_not_written(folder: Folder) -> None:
    """Whoever does not settle gets the error when the file is published, and no file."""
    for at in range(3):
        with disk.use(Failing(at, kinds={"write"})), start(folder) as file, pytest.raises(StorageError):
            file.write(noise(2 * PAGE + 1))
            file.publish("x")
        assert not folder.exists("x")
    assert os.listdir(folder.root.parent / "tmp") == []


def test_a_disk_that_cannot(folder: Folder) -> None:
    """Where O_DIRECT is refused, at once or when it is used, the bytes go through the cache."""
    data, unwilling = noise(4 * PAGE + 9), Unwilling()
    with disk.use(unwilling), start(folder) as file:
        file.write(data)
        file.publish("x")
    assert folder.read("x") == data


def test_giving_up_waits_for_what_is_being_written(folder: Folder, tmp_path: Path) -> None:
    """A discarded file's number may be another file's at once: nothing may be written to it any more."""
    slow = Slow()
    with disk.use(slow):
        file = start(folder)
        file.write(noise(3 * PAGE))
        assert slow.begun.wait(30)
        file.discard()
        assert slow.writing == 0
    assert os.listdir(tmp_path / "tmp") == []


@pytest.fixture
def writing(folder: Folder) -> Iterator[DirectFile]:
    """A file of which some is being written."""
    with disk.use(Slow()):
        file = start(folder)
        file.write(noise(3 * PAGE + 5))
        yield file
        file.discard()


def test_a_forked_child_leaves_it_to_its_parent(writing: DirectFile, folder: Folder) -> None:
    """The child has no such thread to wait for; it lets go, and the parent goes on."""
    child = os.fork()
    if not child:
        writing.discard()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writing.publish("x")
    assert len(folder.read("x")) == 3 * PAGE + 5


def test_a_settled_file_is_in_the_kernel(folder: Folder, tmp_path: Path) -> None:
    """However little it is: so that a disk that is full says so to whoever writes, and not to who publishes."""
    with start(folder) as file:
        for nbytes in (10, PAGE, 2 * PAGE + 7, 1):
            file.write(noise(nbytes))
            file.settle()
            (path,) = (tmp_path / "tmp").iterdir()
            assert path.stat().st_size == file.size
        before = path.read_bytes()
        file.publish("x")
    assert folder.read("x") == before


def test_at_the_end_of_the_process(tmp_path: Path) -> None:
    """A thread that Python waits for at its end still writes, though no other thread starts any more."""
    program = """
        import sys, threading, time
        from pathlib import Path
        from coral.storage import direct
        from coral.storage.folder import Folder
        direct.BUFFER_BYTES = 4096
        def late():
            threading.main_thread().join()
            time.sleep(0.2)
            with Folder(Path(sys.argv[1])).new_file("x", direct=True) as file:
                file.write(bytes(range(256)) * 100)
                file.publish("x")
        threading.Thread(target=late).start()
    """
    run_python(program, tmp_path)
    assert (tmp_path / "x").read_bytes() == bytes(range(256)) * 100


def test_no_thread_is_left(folder: Folder) -> None:
    """Published, discarded or dropped: the thread that wrote ends."""
    before = threading.active_count()
    for end in ("publish", "discard", "drop"):
        file = start(folder)
        file.write(noise(3 * PAGE))
        if end == "publish":
            file.publish("x")
        elif end == "discard":
            file.discard()
        del file
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
