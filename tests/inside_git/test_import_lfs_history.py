"""Taking over all of a history that git-lfs kept: each commit is what it was, with manifests for pointers."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coral.errors import ConflictError
from coral.format.manifest import Manifest
from coral.git.rewriting import Moved, move, transform
from tests.inside_git.helpers import Project, safe, tensors
from tests.inside_git.lfs import LINE, both, complaint, keep_in_lfs, lfs, pointer_of, refused

if TYPE_CHECKING:
    from typing_extensions import Buffer


def hash_object(project: Project, kind: str, data: bytes) -> str:
    done = subprocess.run(
        ["git", "hash-object", "-w", "-t", kind, "--stdin"],
        cwd=project.folder,
        input=data,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


ODD_MESSAGE = b"""na\xefve, and no newline at the end

M 100644 %s model.safetensors
data 5
commit refs/heads/main
from :1
\x01\xff"""


def odd_commit(project: Project) -> str:
    """Make a commit, and have HEAD's branch lead to it, as no one would write it: its author, dates and message."""
    tree, parent = project.git("rev-parse", "HEAD^{tree}"), project.git("rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor  <> 1 -7000\ncommitter \u00e4 b <x y> 99999999999 +1400\n".encode()
    blob = project.git("rev-parse", "HEAD:model.safetensors").encode()
    made = hash_object(project, "commit", text + b"encoding ISO-8859-1\n\n" + ODD_MESSAGE % blob)
    project.git("reset", "-q", "--hard", made)
    return made


def old_history(project: Project) -> None:
    """Branches, tags, merges, and every kind of entry that a tree can have."""
    versions = [safe(tensors(seed)) for seed in range(4)]
    lfs(project, f"*.safetensors {LINE}\n", "one", model=versions[0])
    odd_commit(project)
    project.git("checkout", "-q", "-b", "side/branch")
    for name in ("dir with space/\u00fc\"quote'.safetensors", "dir with space/tab\there.safetensors"):
        project.write(name, pointer_of(versions[1])).chmod(0o755)
    keep_in_lfs(project, versions[1])
    project.write("dir with space/.gitattributes", f"*.bin {LINE}\n".encode())
    project.write("template", f"*.safetensors {LINE}\n".encode())
    (project.folder / "link").symlink_to("model.safetensors")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{project.git('rev-parse', 'HEAD')},sub")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "two\n\nwith a body\n")
    project.git("tag", "light")
    project.git("checkout", "-q", "main")
    lfs(project, f"*.safetensors {LINE}\n# more\n", "three", model=versions[2], other=versions[3])
    project.git("tag", "-a", "-m", "annotated\n\ntag v1\ndata 7", "v1")
    project.git("merge", "-q", "-m", "merged", "side/branch")
    project.git("rm", "-q", "other.safetensors")
    project.git("commit", "-q", "-m", "gone")
    project.git("commit", "-q", "--allow-empty", "--allow-empty-message", "-m", "")
    project.git("tag", "-a", "-m", "of a tag", "v2", "v1")
    project.git("tag", "blob", "HEAD:model.safetensors")
    project.git("symbolic-ref", "refs/heads/symbolic", "refs/heads/main")
    project.git("notes", "add", "-m", "a note")


def described(project: Project, ref: str) -> list[tuple[bytes, list[str]]]:
    """Of each commit, oldest first, what is not a hash that must differ, and its files with blobs that may not."""
    found = []
    for commit in project.git("rev-list", "--topo-order", "--reverse", ref).splitlines():
        raw = project.run("git", "cat-file", "commit", commit).stdout
        head, _, message = raw.partition(b"\n\n")
        kept = [line for line in head.split(b"\n") if not line.startswith((b"tree ", b"parent "))]
        kept.append(b"%d parents" % head.count(b"\nparent "))
        files = []
        for line in project.git("ls-tree", "-r", commit).splitlines():
            state, name = line.split("\t")
            is_changed = name.strip('"').endswith((".safetensors", ".gitattributes"))
            files.append(f"{state.split()[0] if is_changed else state} {name}")
        found.append((b"\n".join([*kept, message]), files))
    return found


def refs(project: Project) -> dict[str, str]:
    listed = project.git("for-each-ref", "--format=%(refname) %(objectname)")
    return dict(line.split() for line in listed.splitlines())


@both
def test_a_whole_history(project: Project) -> None:
    """Every pointer of every commit becomes a manifest; whatever else commits and tags say stays, to the byte."""
    old_history(project)
    names = ("main", "side/branch", "light", "v1", "v2")
    before = {name: described(project, name) for name in names}
    tags = {name: project.run("git", "cat-file", "tag", name).stdout.partition(b"\n") for name in ("v1", "v2")}
    project.coral("import-lfs", "--history")
    project.git("fsck", "--strict")
    assert {name: described(project, name) for name in names} == before
    for name, (head, _, rest) in tags.items():
        new = project.run("git", "cat-file", "tag", name).stdout.partition(b"\n")
        assert new[2] == rest
        assert new[0] != head
    for commit in project.git("rev-list", "--branches", "--tags").splitlines():
        for line in project.git("ls-tree", "-r", commit).splitlines():
            state, _, name = line.partition("\t")
            _, kind, blob = state.split()
            data = project.run("git", "cat-file", kind, blob).stdout if kind == "blob" else b""
            if name.strip('"').endswith(".safetensors"):
                Manifest.from_bytes(data)
            elif name.strip('"').endswith(".gitattributes"):
                assert b"lfs" not in data
            elif name == "template":
                assert b"filter=lfs" in data


def test_old_refs_and_the_working_tree(project: Project) -> None:
    """What moved is kept and named; what has no commits stays; HEAD's files are the models; all of it only once."""
    old_history(project)
    old, working = refs(project), project.git("rev-parse", "HEAD")
    said = project.coral("import-lfs", "--history")
    now = refs(project)
    kept = {name: now.pop(name) for name in list(now) if name.startswith("refs/coral/")}
    stay = {"refs/tags/blob", "refs/notes/commits"}
    assert {name for name in old if old[name] == now[name]} == stay
    moved = old.keys() - stay - {"refs/heads/symbolic"}
    assert kept == {name.replace("refs/", "refs/coral/before-import-lfs/"): old[name] for name in moved}
    assert all(f"{name}: {old[name][:10]} -> {now[name][:10]}" in said for name in moved)
    assert project.git("symbolic-ref", "refs/heads/symbolic") == "refs/heads/main"
    assert project.git("rev-parse", "HEAD") == now["refs/heads/main"] != working
    assert project.status() == ""
    assert project.read("model.safetensors") == safe(tensors(2))
    assert project.read("dir with space/tab\there.safetensors") == safe(tensors(1))
    shutil.rmtree(project.folder / ".git/lfs")
    project.git("checkout", "-q", "v1~2")
    assert project.read("model.safetensors") == safe(tensors(0))
    assert project.status() == ""
    project.git("checkout", "-q", "main")
    assert "no commit changed" in project.coral("import-lfs", "--history")
    assert not (project.folder / ".coral/tmp/import-lfs").exists()


def test_named_refs(project: Project) -> None:
    """Only the branches and tags named are rewritten; a second import keeps what the first one put aside."""
    lfs(project, model=safe(tensors(1)))
    project.git("branch", "other")
    project.git("tag", "v1")
    before = refs(project)
    project.coral("import-lfs", "--history", "other", "v1")
    now = refs(project)
    assert now["refs/heads/main"] == before["refs/heads/main"]
    assert now["refs/heads/other"] == now["refs/tags/v1"] != before["refs/tags/v1"]
    assert project.status() == ""
    assert project.read("model.safetensors") == pointer_of(safe(tensors(1)))
    lfs(project, message="more", model=safe(tensors(2)))
    project.git("branch", "-f", "other", "main")
    project.coral("import-lfs", "--history")
    last = refs(project)
    assert last["refs/coral/before-import-lfs/heads/other"] == before["refs/heads/other"]
    assert last["refs/coral/before-import-lfs-2/heads/other"] == project.git("rev-parse", "main@{1}")
    assert project.read("model.safetensors") == safe(tensors(2))
    for name in ("HEAD", "main~1", "nothing", before["refs/heads/main"]):
        code, said = complaint(project, "import-lfs", "--history", name)
        assert (code, name in said) == ((0, False) if name == "HEAD" else (3, True))


def test_history_with_missing_bytes(project: Project) -> None:
    """Nothing is rewritten when bytes are nowhere; with --skip-missing their pointers stay where they were."""
    lfs(project, model=safe(tensors(1)))
    lfs(project, message="two", model=safe(tensors(2)))
    keep_in_lfs(project, safe(tensors(1))).unlink()
    before = refs(project)
    code, said = complaint(project, "import-lfs", "--history")
    assert code == 3
    assert "git lfs fetch --all" in said
    assert refs(project) == before
    assert not list((project.folder / ".coral/packs").iterdir())
    assert "still a pointer: model.safetensors" in project.coral("import-lfs", "--history", "--skip-missing")
    assert project.blob("model.safetensors", "HEAD~1") == pointer_of(safe(tensors(1)))
    assert project.read("model.safetensors") == safe(tensors(2))
    project.git("checkout", "-q", "HEAD~1")
    assert project.read("model.safetensors") == pointer_of(safe(tensors(1)))
    (project.folder / "model.safetensors").touch()
    assert project.status() == ""


def test_histories_that_are_refused(project: Project, tmp_path: Path) -> None:
    """Changes, a merge under way, another worktree on a branch, a history that is not all here."""
    lfs(project, model=safe(tensors(1)))
    project.write("model.safetensors", b"changed")
    assert "not committed" in refused(project, "--history")
    project.git("add", "-A")
    assert "not committed" in refused(project, "--history")
    project.git("reset", "-q", "--hard")
    project.git("bisect", "start")
    assert "under way" in refused(project, "--history")
    project.git("bisect", "reset")
    project.git("worktree", "add", "-q", "-b", "elsewhere", "../linked")
    assert "refs/heads/elsewhere" in refused(project, "--history")
    project.git("worktree", "remove", "../linked")
    lfs(project, message="two", model=safe(tensors(2)))
    subprocess.run(["git", "clone", "-q", "--depth=1", f"file://{project.folder}", tmp_path / "clone"], check=True)
    clone = Project(tmp_path / "clone")
    clone.configure()
    assert "--unshallow" in refused(clone, "--history")
    project.coral("import-lfs", "--history")


def test_a_branch_that_moves_meanwhile(project: Project) -> None:
    """What somebody else commits during a rewrite is not lost: then nothing moves."""
    first = lfs(project, model=safe(tensors(1)))
    second = lfs(project, message="two", model=safe(tensors(2)))
    project.git("branch", "other", first)
    before = refs(project)
    stale = [Moved("refs/heads/other", first, second), Moved("refs/heads/main", first, second)]
    with pytest.raises(ConflictError, match="refs/heads/main"):
        move(project.folder, stale)
    assert refs(project) == before


_COLLECTING = """#!/bin/sh
case " $* " in *" update-ref "*)
    (cd {project} && PATH={path} timeout 5 {python} -m coral gc --prune-now) > {log} 2>&1
    echo "$?" >> {log}
esac
exec {git} "$@"
"""


def test_what_is_stored_is_held_until_the_branches_move(project: Project, tmp_path: Path) -> None:
    """A collection that comes when all is stored, and git names none of it yet, has to wait."""
    lfs(project, model=safe(tensors(1)))
    path, log, wrapper = os.environ["PATH"], tmp_path / "log", tmp_path / "bin/git"
    wrapper.parent.mkdir()
    places = {"project": project.folder, "path": path, "log": log}
    wrapper.write_text(_COLLECTING.format(python=sys.executable, git=shutil.which("git"), **places))
    wrapper.chmod(0o755)
    project.coral("import-lfs", "--history", PATH=f"{wrapper.parent}:{path}")
    assert log.read_text() == "124\n"
    project.coral("gc", "--prune-now")
    project.coral("fsck", "--git")


def test_a_signature_is_left_out(project: Project) -> None:
    """A signed tag would be wrong with another commit in it: its signature goes, its message stays."""
    commit = lfs(project, model=safe(tensors(1)))
    text = f"object {commit}\ntype commit\ntag v1\ntagger n <e> 1 +0000\n\nmessage\n-----BEGIN PGP SIGNATURE-----\n"
    project.git("update-ref", "refs/tags/v1", hash_object(project, "tag", text.encode() + b"xx\n"))
    project.coral("import-lfs", "--history")
    new = project.git("rev-parse", "HEAD")
    assert project.git("cat-file", "tag", "v1") == text.replace(commit, new).partition("\n-----BEGIN")[0]


def test_what_git_cannot_write(project: Project) -> None:
    """A commit that fast-import refuses stops the import before anything moves, and git's reason is told."""
    lfs(project, model=safe(tensors(1)))
    tree = project.git("rev-parse", "HEAD^{tree}")
    text = f"tree {tree}\nauthor nobody\ncommitter n <e> 1 +0000\n\nbad\n"
    done = subprocess.run(
        ["git", "hash-object", "-w", "-t", "commit", "--literally", "--stdin"],
        cwd=project.folder,
        input=text.encode(),
        capture_output=True,
        check=True,
    )
    project.git("update-ref", "refs/heads/bad", done.stdout.decode().strip())
    before = refs(project)
    code, said = complaint(project, "import-lfs", "--history")
    assert code == 1
    assert "fast-import failed" in said
    assert refs(project) == before
    assert project.status() == ""


def test_versions_are_stored_as_differences(project: Project) -> None:
    """Each version of a model takes what it differs by, as if it had been committed with coral."""
    values = tensors(rows=1 << 13)
    lfs(project, model=safe(values))
    for step in range(3):
        values = {name: (value * 1.0001).astype("<f4") for name, value in values.items()}
        lfs(project, message=f"{step}", model=safe(values))
    project.coral("import-lfs", "--history")
    packed = sum(path.stat().st_size for path in (project.folder / ".coral/packs").glob("*.pack"))
    assert packed < 2.8 * len(safe(values))


MOMENTS = {
    "history": (".coral/locks/import-lfs", ".coral/tmp/import-lfs/history", ".coral/packs/*.pack", ".git/refs/coral"),
    "index": (".coral/tmp/import-lfs/index", ".coral/packs/*.pack", ".git/index.lock"),
}


@pytest.mark.parametrize("what", MOMENTS)
def test_killed(project: Project, what: str) -> None:
    """An import killed at any moment has moved all branches or none; afterwards the same command does it.

    Not its git, which leaves its locks when it is killed, as ever.
    """
    for step in range(3):
        lfs(project, message=f"{step}", model=safe(tensors(step, rows=1 << 13)))
        project.git("branch", f"branch-{step}")
    before, words = refs(project), ["import-lfs", *(["--history"] if what == "history" else [])]
    killed = []
    for moment in MOMENTS[what]:
        killed.append(_killed(project, words, moment))
        now = refs(project)
        assert len({now[name] == before[name] for name in before if "branch-" in name}) == 1
        project.git("reset", "-q", "--hard")
    assert killed[0]
    project.coral(*words)
    project.git("commit", "-q", "--allow-empty", "-m", "after")
    assert project.status() == ""
    assert project.read("model.safetensors") == safe(tensors(2, rows=1 << 13))
    Manifest.from_bytes(project.blob("model.safetensors"))


def _killed(project: Project, words: list[str], moment: str) -> bool:
    """Run coral until a file appears, or to its end, and wait for what it had started; whether it was killed."""
    command = [sys.executable, "-m", "coral", *words]
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.DEVNULL, start_new_session=True) as coral:
        while coral.poll() is None and not list(project.folder.glob(moment)):
            time.sleep(0.001)
        coral.kill()
    while coral.pid in _sessions():
        time.sleep(0.01)
    return coral.returncode != 0


def _sessions() -> set[int]:
    """The sessions that processes are in."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = status.read_text().rpartition(")")[2].split()[:4]
            found.add(int(session) if state != "Z" else 0)
    return found


class _Endless(io.RawIOBase):
    """What ``git fast-export`` prints for a long history with long messages, made as it is read."""

    def __init__(self, commits: int, message: int) -> None:
        self._pieces = (piece for number in range(commits) for piece in self._commit(number, message))
        self._rest = b""

    def _commit(self, number: int, message: int) -> Iterator[bytes]:
        yield b"commit refs/heads/main\nmark :%d\ncommitter n <e> 1 +0000\ndata %d\n" % (number, message)
        for _ in range(message // (1 << 16)):
            yield b"M 100644 0000 x\n" * (1 << 12)
        yield b"\nM 100644 %040d a.safetensors\n\n" % number

    def readable(self) -> bool:
        return True

    def readinto(self, out: Buffer) -> int:
        view = memoryview(out).cast("B")
        self._rest = self._rest or next(self._pieces, b"")
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


def test_the_memory_of_a_rewrite_is_bounded() -> None:
    """A history passes through line by line, however long it is, and a message is never a line."""
    seen: list[int] = []
    written = 0

    def change(blob: bytes, path: bytes) -> bytes:
        assert path == b"a.safetensors"
        seen.append(int(blob))
        return b"new"

    def write(data: bytes) -> None:
        nonlocal written
        written += len(data)

    tracemalloc.start()
    transform(io.BufferedReader(_Endless(40, 16 << 20)), change, write)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == list(range(40))
    assert written > 40 * (16 << 20)
    assert peak < 8 << 20
