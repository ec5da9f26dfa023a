"""Disks that record, fail and kill, in Python and at the system calls: both see the same."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from coral.errors import StorageError
from coral.storage import disk
from coral.storage.files import Position
from coral.storage.folder import Folder
from coral.testing import crash, processes, syscalls
from coral.testing.disks import Failing, Killing, Recording, When
from coral.testing.processes import Note, Warm
from coral.testing.syscalls import Plan
from coral.testing.trace import parse

ROOT = Path(__file__).parents[2]


def act(root: Path) -> None:
    """One of each kind of change."""
    folder = Folder(root / "f", temporary=root / "t")
    folder.write("x", b"one", mode=0o600)
    folder.create("y", b"two")
    folder.move("x", "d/x")
    folder.link("d/x", "z")
    folder.remove("z")
    with folder.new_file("w") as file:
        file.write_at([b"ab", b"cd"])
        file.patch(1, b"B")
        file.go_back(Position(3))
        file.publish("w")
    folder.write("e/x", b"three")
    folder.remove("e/x")
    folder.remove_folder("e")
    log = folder.append("log")
    log.write_line(b"line")
    log.sync()
    log.close()


def act_and_record(note: Note, root: Path, log: Path) -> None:
    """As :func:`act`, watched."""
    syscalls.watch(root, log=os.open(log, os.O_WRONLY | os.O_CREAT))
    act(root)


def act_and_die(note: Note, root: Path, plan: Plan) -> None:
    """As :func:`act`, with a plan against it."""
    syscalls.watch(root)
    syscalls.arm(plan)
    act(root)


def fall(note: Note, number: int) -> None:
    """Say something, and come to a bad end."""
    note(1)
    os.kill(os.getpid(), number)


def leave(note: Note, status: int) -> None:
    """Say something, and leave without a word."""
    note(1)
    os._exit(status)


def test_a_warm_process_says_how_a_job_ended() -> None:
    """What it said before, whether it came to its end, and what ended it if not: neither a crash nor one that left by
    itself is taken for a kill, and the warm process is there for the next."""
    ends = {("fall", signal.SIGSEGV): "SIGSEGV", ("leave", 0): "exit 0", ("leave", 3): "exit 3"}
    ends |= {("fall", signal.SIGRTMIN + 1): f"signal {signal.SIGRTMIN + 1}"}
    with Warm(None, [__name__], folder=ROOT) as warm:
        for (job, argument), end in ends.items():
            ended = warm.run(f"{__name__}:{job}", int(argument))
            assert (ended.notes, ended.finished, ended.signal) == ([1], False, end)


def hang(note: Note) -> None:
    """Say something, and then no more."""
    note(1)
    time.sleep(1000)


def test_a_job_that_hangs_says_where(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It is killed, and what it said last and where it was are told."""
    monkeypatch.setattr(processes, "_HANGS_SECONDS", 0.5)
    ended = processes._fork(f"{__name__}:hang", ())
    assert ended.error == "it said nothing for 0.5 s after [1]"
    assert "in hang" in capfd.readouterr().err


@pytest.mark.skipif(syscalls.compiler() is None, reason="NOT TESTED: no C compiler, or not Linux")
def test_python_and_the_system_calls_agree(tmp_path: Path) -> None:
    """What the disk in Python records is what the process did."""
    root = tmp_path / "root"
    root.mkdir()
    with Warm(syscalls.build(tmp_path), [__name__], folder=ROOT) as warm:
        ended = warm.run(f"{__name__}:act_and_record", root, tmp_path / "log")
        assert ended.finished and ended.error is None, ended.error
        died = warm.run(f"{__name__}:act_and_die", tmp_path / "other", Plan("kill before", 3))
        assert not died.finished
    seen = [one for one in parse((tmp_path / "log").read_bytes()) if one.kind != "chmod"]
    shutil.rmtree(root)
    root.mkdir()
    recording = Recording()
    with disk.use(recording):
        act(root)
    recorded = [one for one in recording.operations if one.kind != "chmod"]
    assert [(one.kind, one.offset, one.data) for one in seen] == [(one.kind, one.offset, one.data) for one in recorded]
    assert len(seen) > 30


@pytest.mark.skipif(syscalls.compiler() is None, reason="NOT TESTED: no C compiler, or not Linux")
def test_other_programs_are_watched(tmp_path: Path) -> None:
    """A program that is started so is seen, and what it starts, whatever folder they are in: replayed, it is the same.

    What git writes through a stream of the C library is not: the message that it would have us edit.
    """
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / "file").write_bytes(b"one")
    before = crash.scan(root)
    with (tmp_path / "log").open("wb", buffering=0) as log:
        names = {f"GIT_{role}_{what}": "n" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        watched = syscalls.environment(syscalls.build(tmp_path), root, log.fileno())
        settings = {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", **names, **watched}
        script = "git add . && git commit -qm one && echo two >file && git commit -qam two"
        subprocess.run(["sh", "-c", script], cwd=root, env=os.environ | settings, pass_fds=[log.fileno()], check=True)
    replayed = crash.Disk(root, *before)
    for operation in parse((tmp_path / "log").read_bytes()):
        replayed.apply(operation)
    left = replayed.left("nothing", random.Random(0))
    files, folders = crash.scan(root)
    assert left.folders == frozenset(folders) and left.files.keys() == files.keys()
    differ = {name for name, data in files.items() if left.files[name] != data}
    assert differ == {".git/COMMIT_EDITMSG"} and len(files) > 10


def test_a_failing_disk_fails_once_or_from_then_on(tmp_path: Path) -> None:
    """At the operation that was chosen; nothing of it is left behind."""
    for forever in (False, True):
        folder = Folder(tmp_path / str(forever))
        folder.write("x", b"one")
        with disk.use(Failing(2, errno.ENOSPC, forever=forever)):
            with pytest.raises(StorageError) as caught:
                folder.write("x", b"two")
            assert caught.value.errno == errno.ENOSPC
            if not forever:
                folder.write("x", b"two")
        assert folder.read("x") == (b"one" if forever else b"two")


@pytest.mark.parametrize(("when", "left"), [("before", b""), ("half", b"12"), ("after", b"1234")])
def test_a_killing_disk_kills(tmp_path: Path, when: When, left: bytes) -> None:
    """Just before, half-way through or just after the operation that was chosen."""
    child = os.fork()
    if not child:
        with disk.use(Killing(1, when, kinds=["create", "write"])):
            Folder(tmp_path / "f").append("x").write(b"1234")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "f" / "x").read_bytes() == left
