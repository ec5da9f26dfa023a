"""What is promised to be on the disk is: seen at the system calls."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coral.history import history as history_module

_ROOT = Path(history_module.__file__).parents[2]
_PROGRAM = """
import itertools, os, sys
from pathlib import Path
from coral.history.history import History
from coral.history.loose import object_hash

def mark(name):
    try: os.stat("/mark/" + name)
    except OSError: pass

def shares_a_folder(oid):
    # A blob that is stored in the folder of another object, so that no folder is made for it.
    for number in itertools.count():
        data = b"%d" % number
        if object_hash("blob", data)[:2] == oid[:2]:
            return data

mark("create")
history = History.create(Path(sys.argv[1]))
mark("commit")
blob = history.write_blob(b"weights")
made = history.write_commit(overlay={"a/model": blob}, message="m").commit_hash
mark("branch")
history.move_branch("runs/nested/x", made, expected=None, reason="r")
mark("again")
next = history.write_commit(base=made, overlay={}, parents=[made], message="n").commit_hash
history.move_branch("runs/nested/x", next, expected=made, reason="r")
mark("same")
history.write_blob(shares_a_folder(blob))
mark("head")
history.set_head(branch="runs/nested/x")
mark("rename")
history.rename_branch("runs/nested/x", "trunk")
mark("tag")
history.create_tag("v1", made, message="t")
mark("delete")
history.delete_tag("v1")
mark("end")
"""
_CALLS = (
    "openat,open,close,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "mkdir,mkdirat,unlink,unlinkat,rmdir,write,pwrite64,stat,newfstatat"
)
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")


class _Disk:
    """Follows the system calls and knows which names and bytes a power cut could still take."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._open: dict[str, str] = {}
        self.unsynced: set[str] = set()

    def call(self, name: str, arguments: str, result: str) -> None:
        found = (path.rstrip("/") for path in re.findall(r'"([^"]*)"', arguments))
        paths = [path for path in found if path.startswith(self._root)]
        if int(result) < 0:
            return
        if name in ("open", "openat"):
            self._open[result] = paths[0] if paths else ""
            if paths and "O_CREAT" in arguments:
                self._name(paths[0])
        elif name in ("write", "pwrite64"):
            self._add(self._open.get(arguments.split(",")[0], ""))
        elif name in ("fsync", "fdatasync"):
            self.unsynced.discard(self._open.get(arguments.strip(), ""))
        elif name == "close":
            self._open.pop(arguments.strip(), None)
        elif name.startswith(("rename", "link")) and paths:
            if paths[0] in self.unsynced:
                self.unsynced.add(paths[1])
            for path in paths:
                self._name(path)
        elif name.startswith(("mkdir", "unlink", "rmdir")) and paths:
            if not name.startswith("mkdir"):
                self.unsynced.discard(paths[0])
            self._name(paths[0])

    def _name(self, path: str) -> None:
        """A name in a folder came or went; what becomes of a temporary one is nothing."""
        if _matters(path, self._root):
            self._add(str(Path(path).parent))

    def _add(self, path: str) -> None:
        if path.startswith(self._root):
            self.unsynced.add(path)


def _matters(path: str, root: str) -> bool:
    # The lock files are empty, a leftover temporary name is nothing, and the log of operations is only advisory.
    name = Path(path).name
    if path.endswith(".coral/operations"):
        return False
    return not ("/locks" in path or "tmp_object" in name or name.endswith((".lock", ".coral-tmp")) or path == root)


@pytest.mark.skipif(shutil.which("strace") is None, reason="NOT TESTED: strace is not installed")
def test_everything_is_synced(tmp_path: Path) -> None:
    """When a call returns, every byte and every name that it wrote has been synced."""
    root, trace = tmp_path / "disk", tmp_path / "trace"
    root.mkdir()
    command = ["strace", "-f", "-e", f"trace={_CALLS}", "-o", str(trace)]
    done = subprocess.run(
        [*command, sys.executable, "-c", _PROGRAM, str(root / ".coral" / ".git")],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"NOT TESTED: strace may not trace here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    disk, stage, marks, synced = _Disk(str(root)), "start", [], 0
    left: dict[str, set[str]] = {}
    for line in trace.read_text(errors="replace").splitlines():
        if mark := re.search(r'"/mark/(\w+)"', line):
            left[stage] = {path for path in disk.unsynced if _matters(path, str(root))}
            disk.unsynced.clear()
            stage = mark[1]
            marks.append(stage)
        elif match := _LINE.search(line):
            disk.call(*match.groups())
            synced += match[1] in ("fsync", "fdatasync")
    assert marks == ["create", "commit", "branch", "again", "same", "head", "rename", "tag", "delete", "end"]
    assert synced > 30
    assert {stage: paths for stage, paths in left.items() if paths} == {}
