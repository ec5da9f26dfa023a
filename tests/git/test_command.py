"""Git processes that are read and written while they run, and many blobs through them."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from coral.errors import GitCommandError, NotFoundError, RefNotFoundError
from coral.git import index
from coral.git.blobs import write_blob
from coral.git.command import run, stream


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """An empty repository."""
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path / "top"], check=True)
    return tmp_path / "top"


def test_a_stream_is_read_and_written(top: Path) -> None:
    """Answers come while more is asked."""
    blob = write_blob(top, b"data")
    with stream(top, ["cat-file", "--batch-check"]) as talk:
        for _ in range(3):
            talk.tell(f"{blob}\n".encode())
            assert talk.stdout.readline() == f"{blob} blob 4\n".encode()


@pytest.mark.parametrize("ends", ["at once", "while it is written to"])
def test_a_stream_that_fails(top: Path, ends: str) -> None:
    """What git said is what is raised, however much it had been given to read."""
    expected = pytest.raises(GitCommandError, match=r"git fast-import failed: fatal: Unsupported command: nonsense")
    with expected, stream(top, ["fast-import"]) as talk:
        talk.tell(b"nonsense\n", now=False)
        while ends != "at once":
            talk.tell(b"blob\n" * 1000, now=False)


def test_a_stream_that_complains_at_length(top: Path) -> None:
    """A process that says much on its standard error is not stopped by it, and the end of it is told."""
    script = "!for i in $(seq 20000); do echo complaint $i >&2; done; exit 3"
    with pytest.raises(GitCommandError) as caught, stream(top, ["-c", f"alias.loud={script}", "loud"]) as talk:
        assert talk.stdout.read() == b""
    assert caught.value.message.endswith("complaint 20000")
    assert len(caught.value.message) < 1 << 17


def test_an_error_ends_the_process(top: Path) -> None:
    """What goes wrong within the block is raised as it is; the process does not take what it got so far for all."""
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), stream(top, ["fast-import", "--quiet"]) as talk:
        talk.tell(b"commit refs/heads/made\ncommitter n <e> 1 +0000\ndata 0\n\n")
        pid = talk._process.pid
        raise ZeroDivisionError
    assert threading.active_count() == threads
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert run(top, ["for-each-ref"]) == b""


def test_the_index(top: Path) -> None:
    """What is staged is what is listed, with odd names; a tree lists the same."""
    names = ["a b", "d/\u00fc\t\n\"'", "-x", "d/" + os.fsdecode(b"\xff")]
    blob = write_blob(top, b"data")
    entries = [index.Entry(name, "100755", blob) for name in sorted(names, key=os.fsencode)]
    index.stage(top, entries)
    assert index.index_entries(top) == entries
    assert index.staged(top) == set()
    run(top, ["commit", "-q", "-m", "one"])
    assert index.tree_entries(top, "HEAD") == entries
    assert index.staged(top) == set()
    index.write_files(top, names)
    assert index.changed(top) == []
    (top / "a b").write_bytes(b"other")
    (top / "new").write_bytes(b"")
    assert index.changed(top) == ["a b", "new"]
    assert index.changed(top, untracked=False) == ["a b"]
    run(top, ["add", "a b"])
    assert index.changed(top, staged=False) == ["new"]
    assert index.staged(top) == {"a b"}
    assert index.matching(top / "d", ["*"]) == {name for name in names if name.startswith("d/")}
    with pytest.raises(NotFoundError):
        index.matching(top, ["a*", "nothing"])
    for revision in ("nothing", "--all", "HEAD:a b"):
        with pytest.raises(RefNotFoundError):
            index.tree_entries(top, revision)
