"""The one module that writes: atomic, durable, exclusive, and never outside of its folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coral.errors import AlreadyExistsError, InvalidNameError, NotFoundError, StorageError
from coral.storage import disk
from coral.storage.disk import Disk
from coral.storage.files import Position
from coral.storage.folder import Folder
from coral.testing.disks import Failing, Interposed
from coral.testing.trace import Kind
from tests.processes import run_python, start_python

ROOT = Path(__file__).parents[2]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["beside", "apart"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder whose temporary files lie beside their targets, or in a place of their own."""
    return Folder(tmp_path / "root", temporary=tmp_path / "tmp" if request.param == "apart" else None)


def test_write_and_read(folder: Folder, tmp_path: Path) -> None:
    """What is written is read, whole, in ranges and mapped; writing again replaces; nothing else is left."""
    folder.write("a/b/c", b"first")
    folder.write("a/b/c", b"second")
    folder.write("a/empty", b"")
    assert folder.read("a/b/c") == bytes(folder.map("a/b/c")) == b"second"
    assert bytes(folder.map("a/empty")) == b""
    assert folder.size("a/b/c") == 6
    file = folder.open("a/b/c")
    out = bytearray(10)
    assert file.read_into(2, memoryview(out)) == 4
    assert out[:4] == b"cond"
    file.close()
    assert folder.names("a") == ["b", "empty"]
    assert folder.names("nothing") == []
    assert sorted(everything(tmp_path)) == ["root/a/b/c", "root/a/empty"]


def test_missing_files(folder: Folder) -> None:
    """Reading what is not there is a NotFoundError; removing it is fine."""
    for read in (folder.read, folder.map, folder.open, folder.size):
        with pytest.raises(NotFoundError):
            read("no/such")
    folder.remove("no/such")
    assert not folder.exists("no/such")


def test_long_names(folder: Folder) -> None:
    """Any file name that the file system takes can be written, in any script."""
    for name in ("x" * 255, "é" * 127, "漢" * 85, "🪸" * 63):
        folder.write(name, b"data")
        assert folder.read(name) == b"data"


BAD_KEYS = ["", "/", "/etc/x", "..", "../x", "a/../../x", "a//b", "a/", "./a", ".", "a\0b"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_stay_inside(folder: Folder, tmp_path: Path, key: str) -> None:
    """No key leads out of the folder, whatever is done with it."""
    folder.write("good", b"data")
    actions = (
        lambda: folder.write(key, b"x"),
        lambda: folder.create(key, b"x"),
        lambda: folder.append(key),
        lambda: folder.remove(key),
        lambda: folder.move("good", key),
        lambda: folder.move(key, "other"),
        lambda: folder.read(key),
        lambda: folder.sub(key),
    )
    for action in actions:
        with pytest.raises(InvalidNameError):
            action()
    assert everything(tmp_path) == {"root/good": b"data"}


def test_symbolic_links_are_not_followed(folder: Folder, tmp_path: Path) -> None:
    """A link planted in the folder cannot make a write, a removal or a move reach outside."""
    folder.write("good", b"data")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (folder.root / "link").symlink_to(outside)
    (folder.root / "file").symlink_to(outside / "precious")
    actions = (
        lambda: folder.write("link/new", b"x"),
        lambda: folder.write("link/sub/new", b"x"),
        lambda: folder.create("link/new", b"x"),
        lambda: folder.append("link/precious"),
        lambda: folder.append("file"),
        lambda: folder.remove("link/precious"),
        lambda: folder.move("link/precious", "stolen"),
        lambda: folder.move("good", "link/good"),
        lambda: folder.make_folder("link/sub"),
        lambda: folder.remove_tree("link"),
        lambda: folder.remove_tree("link/sub"),
    )
    for action in actions:
        with pytest.raises(StorageError):
            action()
    folder.write("file", b"replaced")
    assert everything(outside) == {"precious": b"precious"}
    assert (folder.root / "file").read_bytes() == b"replaced"


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    """A user may put the whole folder on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    Folder(tmp_path / "root").write("a/b", b"data")
    assert everything(tmp_path / "disk") == {"a/b": b"data"}


def test_create_is_exclusive(folder: Folder, tmp_path: Path) -> None:
    """Of many that create one file at once exactly one succeeds, and its bytes are the ones that stay."""
    winners: list[int] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        try:
            folder.create("a/once", str(number).encode())
            winners.append(number)
        except AlreadyExistsError:
            pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert everything(tmp_path) == {"root/a/once": str(winners[0]).encode()}


def test_move(folder: Folder) -> None:
    """A file moves between folders with its bytes."""
    folder.write("a/x", b"data")
    folder.move("a/x", "b/c/y")
    assert folder.read("b/c/y") == b"data"
    assert not folder.exists("a/x")


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o664])
def test_a_written_file_has_the_mode_asked_for(folder: Folder, mode: int) -> None:
    """A mode is taken whole, whatever the umask, also by a file that replaces one of another mode."""
    folder.write("x", b"old")
    folder.write("x", b"new", mode=mode)
    assert folder.read("x") == b"new"
    assert folder.path("x").stat().st_mode & 0o7777 == mode


def test_a_link_is_a_second_name(folder: Folder) -> None:
    """A file has two names and one content; a name that is taken is refused and stays what it was."""
    folder.write("a/x", b"data")
    folder.write("b/taken", b"other")
    folder.link("a/x", "b/c/y")
    assert folder.path("a/x").samefile(folder.path("b/c/y"))
    with pytest.raises(AlreadyExistsError, match="taken"):
        folder.link("a/x", "b/taken")
    assert folder.read("b/taken") == b"other"
    with pytest.raises(NotFoundError):
        folder.link("a/missing", "b/z")


def test_the_second_name_of_a_symbolic_link_is_a_link(folder: Folder) -> None:
    """What a symbolic link leads to is not what gets the second name."""
    folder.write("target", b"data")
    folder.path("here").symlink_to("target")
    folder.link("here", "there")
    assert folder.path("there").is_symlink() and folder.read("there") == b"data"


def test_remove_tree(folder: Folder, tmp_path: Path) -> None:
    """All that is in a folder goes with it, but not what links in it lead to; a missing one is fine."""
    folder.write("stays", b"data")
    folder.write("old/deep/er", b"data")
    (folder.root / "old/link").symlink_to(folder.root)
    folder.remove_tree("old")
    folder.remove_tree("old")
    assert everything(tmp_path) == {"root/stays": b"data"}


def test_append(folder: Folder) -> None:
    """An appended file grows by exactly what is written, also by two who have it open."""
    one, two = folder.append("log/x"), folder.append("log/x")
    one.write(b"a")
    two.write_line(b"b\n")
    one.write_line(b"c\n")
    one.sync()
    one.close()
    one.close()
    two.close()
    assert folder.read("log/x") == b"ab\nc\n"


def test_a_new_file_is_invisible_until_published(folder: Folder, tmp_path: Path) -> None:
    """Written, patched and cut bytes get their name all at once; what is not published leaves nothing."""
    folder.write("x", b"old")
    with folder.new_file("x") as file:
        file.write(b"0123456789")
        file.patch(2, b"ab")
        file.go_back(Position(8))
        with pytest.raises(ValueError, match="outside"):
            file.patch(7, b"cd")
        assert folder.read("x") == b"old"
        file.publish("x", mode=0o444)
    assert folder.read("x") == b"01ab4567"
    assert (folder.root / "x").stat().st_mode & 0o777 == 0o444
    with folder.new_file("y") as file:
        file.write(b"never")
    with pytest.raises(InvalidNameError), folder.new_file("y") as file:
        file.publish("../y")
    assert everything(tmp_path) == {"root/x": b"01ab4567"}


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after a microsecond, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_write_disjoint_regions(folder: Folder) -> None:
    """Eight threads that write into one file at once each get a region of their own."""
    offsets: dict[int, bytes] = {}
    with folder.new_file("x") as file:

        def work(number: int) -> None:
            for turn in range(50):
                data = bytes([number]) * (1 + (number * 977 + turn * 131) % 5000)
                offsets[file.write_at([data[:1], b"", data[1:]])] = data

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.publish("x")
    assert folder.read("x") == b"".join(data for _, data in sorted(offsets.items()))


class Nibbling(Interposed):
    """A disk that takes half of what it is given."""

    def call(self, kind: Kind, name: str, arguments: tuple[object, ...], do: Callable[[], object]) -> object:
        return self.half(name, arguments) if kind == "write" else do()


def test_the_kernel_may_take_less(folder: Folder) -> None:
    """A write that the kernel takes in small bites is complete and in order."""
    with disk.use(Nibbling()):
        with folder.new_file("x") as file:
            file.write_at([b"ab", b"", b"cdefg", b"h"])
            file.publish("x")
        log = folder.append("log")
        log.write_line(b"0123456")
        log.write(b"89")
        log.close()
    assert folder.read("x") == b"abcdefgh"
    assert folder.read("log") == b"012345689"


# -- durability


def system_calls(tmp_path: Path, code: str) -> list[str]:
    """The system calls that matter, in order, of a Python that runs this code on a Folder named ``folder``."""
    if shutil.which("strace") is None:
        pytest.skip("NOT PROVED HERE: strace is missing, so the order of fsync and rename was not looked at")
    setup = f"""
from pathlib import Path
from coral.storage.folder import Folder
folder = Folder(Path({str(tmp_path)!r}) / "root", temporary=Path({str(tmp_path)!r}) / "tmp")
folder.write("warm", b"")
Path("/START").exists()
"""
    trace = tmp_path / "trace"
    names = "/^(f(data)?sync|rename.*|link(at)?|unlink(at)?|open(at)?|stat|newfstatat|mkdir(at)?)$"
    under = ("strace", "-f", "-y", "-e", f"trace={names}", "-o", str(trace))
    process = start_python(setup + code, under=under)
    _, errors = process.communicate(timeout=60)
    if "ptrace" in errors.lower() and process.returncode != 0:
        pytest.skip(f"NOT PROVED HERE: strace may not trace: {errors.splitlines()[0]}")
    assert process.returncode == 0, errors
    lines = trace.read_text().split("/START", 1)[1].splitlines()[1:]
    return [line.split(maxsplit=1)[1] for line in lines if str(tmp_path) in line and "= -1" not in line]


def order_of(calls: list[str], *patterns: str) -> list[int]:
    """Where each pattern first matches, each after the one before."""
    found, start = [], 0
    for pattern in patterns:
        at = next((n for n in range(start, len(calls)) if re.search(pattern, calls[n])), None)
        assert at is not None, f"no {pattern} after call {start} of:\n" + "\n".join(calls)
        found.append(at)
        start = at + 1
    return found


def test_a_write_is_durable(tmp_path: Path) -> None:
    """A write returns only after: the file's fsync, then the rename, then the fsync of the folder that got the name."""
    calls = system_calls(tmp_path, 'folder.write("x", b"data")')
    order_of(calls, r"open.*tmp/x\.", r"fsync\(\d+<.*/tmp/x\.", r"rename.*/root/x", r"fsync\(\d+<.*/root>\)")


def test_a_new_folder_is_durable(tmp_path: Path) -> None:
    """A folder made on the way is durable in the one above it before the file gets its name."""
    calls = system_calls(tmp_path, 'folder.write("new/x", b"data")')
    order_of(calls, r"mkdir.*root/new", r"fsync\(\d+<.*/root>\)", r"rename.*/root/new/x", r"fsync\(\d+<.*/root/new>\)")


def test_an_exclusive_creation_is_durable(tmp_path: Path) -> None:
    """As for a write, with a link in place of the rename."""
    calls = system_calls(tmp_path, 'folder.create("x", b"data")')
    order_of(calls, r"fsync\(\d+<.*/tmp/x\.", r"link.*/root/x", r"fsync\(\d+<.*/root>\)", r"unlink.*/tmp/x\.")


def test_moves_and_removals_are_durable(tmp_path: Path) -> None:
    """A name that came or went is made durable in its folder."""
    calls = system_calls(tmp_path, 'folder.move("warm", "new/y"); folder.remove("new/y"); folder.append("log").sync()')
    order_of(
        calls,
        r"rename.*/root/new/y",
        r"fsync\(\d+<.*/root/new>\)",
        r"fsync\(\d+<.*/root>\)",
        r"unlink.*/root/new/y",
        r"fsync\(\d+<.*/root/new>\)",
        r"open.*/root/log",
        r"fsync\(\d+<.*/root>\)",
        r"fsync\(\d+<.*/root/log>\)",
    )


def test_a_link_is_durable(tmp_path: Path) -> None:
    """The folder that got the second name is synced after it."""
    calls = system_calls(tmp_path, 'folder.link("warm", "new/y")')
    order_of(calls, r"mkdir.*root/new", r"link.*/root/new/y", r"fsync\(\d+<.*/root/new>\)")


def test_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """A writer that is killed at any moment leaves one whole version under the name."""
    code = """
    import sys
    from pathlib import Path
    from coral.storage.folder import Folder
    folder = Folder(Path(sys.argv[1]) / "root", temporary=Path(sys.argv[1]) / "tmp")
    number = 0
    while True:
        number = (number + 1) % 250
        folder.write("x", bytes([number]) * 300_000)
        print(number, flush=True)
    """
    for pause in (0.0, 0.013, 0.031):
        process = start_python(code, tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        process.kill()
        process.communicate()
        data = (tmp_path / "root" / "x").read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
        assert os.listdir(tmp_path / "root") == ["x"]


# -- a disk that refuses


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A write that the system refuses raises StorageError with its number and a hint, and the old bytes stay."""
    code = """
    import resource, sys
    from pathlib import Path
    from coral.errors import StorageError
    from coral.storage.folder import Folder
    folder = Folder(Path(sys.argv[1]) / "root", temporary=Path(sys.argv[1]) / "tmp")
    folder.write("x", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for action in (folder.write, folder.create):
        try:
            action("x" if action == folder.write else "y", bytes(200_000))
        except StorageError as error:
            print(error.errno, bool(error.hint))
    folder.write("z", b"fits")
    """
    assert run_python(code, tmp_path).split() == [str(errno.EFBIG), "True"] * 2
    assert everything(tmp_path) == {"root/x": b"old", "root/z": b"fits"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    where = tmp_path / "disk"
    where.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("NOT PROVED HERE: no small file system could be mounted, so a full disk was not tried")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    """On a full disk the old bytes stay, the error says what to do, and the same call works once there is space."""
    folder = Folder(small_disk / "root", temporary=small_disk / "tmp")
    folder.write("x", b"old")
    folder.write("ballast", bytes(150_000))
    with pytest.raises(StorageError) as caught:
        folder.write("x", bytes(150_000))
    assert caught.value.errno == errno.ENOSPC
    assert "free some space" in str(caught.value)
    assert sorted(everything(small_disk)) == ["root/ballast", "root/x"]
    assert folder.read("x") == b"old"
    folder.remove("ballast")
    folder.write("x", bytes(150_000))
    assert folder.size("x") == 150_000


@pytest.mark.parametrize("failing", ["sync", "rename"])
def test_a_failing_call_leaves_nothing(folder: Folder, tmp_path: Path, failing: Kind) -> None:
    """An fsync or rename that fails is fatal for the new bytes, and is not tried again on them."""
    folder.write("x", b"old")
    refusing = Failing(0, errno.EIO, forever=True, kinds=[failing])
    with disk.use(refusing), pytest.raises(StorageError) as caught:
        folder.write("x", b"new")
    assert caught.value.errno == errno.EIO
    assert refusing.count == 1
    assert everything(tmp_path) == {"root/x": b"old"}


def test_an_fsync_that_failed_is_not_tried_again(folder: Folder) -> None:
    """Of an appended file too: it is doubtful from then on, whatever the kernel would say the next time."""
    file = folder.append("log")
    file.write(b"one")
    refusing = Failing(0, errno.EIO, kinds=["sync"])
    with disk.use(refusing):
        for _ in range(3):
            with pytest.raises(StorageError) as caught:
                file.sync()
            assert caught.value.errno == errno.EIO
    assert refusing.count == 1 and file.doubtful


class Interrupting(Disk):
    """A disk that lets another thread write a line at the last moment before a file is replaced."""

    def dup2(self, fd: int, fd2: int, inheritable: bool = True) -> int:
        os.write(fd2, b"late")
        return os.dup2(fd, fd2, inheritable)


def test_a_doubtful_file_is_replaced(folder: Folder, tmp_path: Path) -> None:
    """A new file, with all that can be read of the old one, takes its place, and is what is appended to."""
    file = folder.append("log")
    file.write(b"one")
    with disk.use(Failing(0, errno.EIO, kinds=["sync"])), pytest.raises(StorageError):
        file.sync()
    before = os.stat(tmp_path / "root" / "log").st_ino
    with disk.use(Interrupting()):
        folder.renew("log", file)
    file.write(b"two")
    file.sync()
    assert os.stat(tmp_path / "root" / "log").st_ino != before
    assert folder.read("log") == b"onelatetwo"
    file.close()


# -- temporary files


def abandon(tmp_path: Path, *, kill: bool) -> subprocess.Popen[str]:
    """A process with a half-written file, killed or waiting."""
    code = """
    import os, signal, sys
    from pathlib import Path
    from coral.storage.folder import Folder
    file = Folder(Path(sys.argv[1]) / "root", temporary=Path(sys.argv[1]) / "tmp").new_file("x")
    file.write(b"half")
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "True" else sys.stdin.read()
    """
    process = start_python(code, tmp_path, kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_cannot_be_looked_at_is_a_storage_error(tmp_path: Path) -> None:
    """A stat that is refused is told as every other refusal is, and never as "it is not there"."""
    long = "x" * 300
    with pytest.raises(StorageError, match="too long"):
        Folder(tmp_path).exists(long)
    with pytest.raises(StorageError, match="too long"):
        Folder(tmp_path, temporary=tmp_path / long).sweep_temporary()


def test_sweeping_temporary_files(tmp_path: Path) -> None:
    """What a killed process left is removed after a while; what a living one is writing never is."""
    folder = Folder(tmp_path / "root", temporary=tmp_path / "tmp")
    assert folder.sweep_temporary() == 0
    killed = abandon(tmp_path, kill=True)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert folder.sweep_temporary() == 0, "a fresh file may be one that is not locked yet"
    living = abandon(tmp_path, kill=False)
    try:
        assert len(os.listdir(tmp_path / "tmp")) == 2
        for name in os.listdir(tmp_path / "tmp"):
            os.utime(tmp_path / "tmp" / name, (1, 1))
        (tmp_path / "tmp" / "folder").mkdir()
        os.utime(tmp_path / "tmp" / "folder", (1, 1))
        assert folder.sweep_temporary() == 1
        assert folder.sweep_temporary() == 0
        assert len(os.listdir(tmp_path / "tmp")) == 2
    finally:
        living.kill()
        living.communicate()
    assert folder.sweep_temporary() == 1


def test_leftovers_beside_a_target_are_swept(tmp_path: Path) -> None:
    """Writing a file removes what a killed writer of it left; a living writer's stays, and so do other files."""
    folder = Folder(tmp_path)
    old = time.time() - 3600
    left, other = tmp_path / ".model.bin.0123456789abcdef.coral-tmp", tmp_path / ".other.bin.0123456789abcdef.coral-tmp"
    for path in (left, other):
        path.write_bytes(b"half")
        os.utime(path, (old, old))
    with folder.new_file("model.bin") as living:
        living.write(b"whole")
        (alive,) = (path for path in tmp_path.iterdir() if path not in (left, other))
        os.utime(alive, (old, old))
        folder.write("model.bin", b"another")
        assert not left.exists()
        assert other.exists()
        living.publish("model.bin")
    assert (tmp_path / "model.bin").read_bytes() == b"whole"


def test_a_folder_below_is_no_link(tmp_path: Path) -> None:
    """A link in place of a folder's own folder, or of the one for temporary files, is not written through."""
    outside = tmp_path / "outside"
    outside.mkdir()
    old = outside / "precious.0123456789abcdef"
    for path in (old, outside / "precious"):
        path.write_bytes(b"precious")
        os.utime(path, (1, 1))
    root = tmp_path / "root"
    root.mkdir()
    (root / "packs").symlink_to(outside)
    packs = Folder(root).sub("packs")
    actions = (
        lambda: packs.write("new", b"x"),
        lambda: packs.create("new", b"x"),
        lambda: packs.append("new"),
        lambda: packs.remove("precious"),
        lambda: packs.remove_all(["precious"]),
        lambda: packs.move("precious", "stolen"),
        lambda: packs.sub("deeper").write("new", b"x"),
    )
    for action in actions:
        with pytest.raises(StorageError):
            action()
    (root / "tmp").symlink_to(outside)
    folder = Folder(root, temporary=root / "tmp")
    with pytest.raises(StorageError):
        folder.write("new", b"x")
    assert folder.sweep_temporary() == 0
    assert everything(outside) == {"precious": b"precious", old.name: b"precious"}


def test_only_temporary_files_are_swept(tmp_path: Path) -> None:
    """What somebody else put among the temporary files stays, however old it is."""
    folder = Folder(tmp_path, temporary=tmp_path / "tmp")
    folder.write("x", b"data")
    for name in ("notes.txt", "x.0123456789abcdef"):
        (tmp_path / "tmp" / name).write_bytes(b"data")
        os.utime(tmp_path / "tmp" / name, (1, 1))
    assert folder.sweep_temporary() == 1
    assert everything(tmp_path / "tmp") == {"notes.txt": b"data"}
