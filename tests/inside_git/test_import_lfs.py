"""Repositories that git-LFS kept: their models become coral's, in the index or in all of the history."""

from __future__ import annotations

import contextlib
import hashlib
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
from coral.git.lfs import Pointer, lfs_lines, parse_pointer, with_coral
from coral.git.rewriting import Moved, move, transform
from coral.verbs.inside_git.lfs import alone
from tests.inside_git.helpers import Project, safe, tensors

if TYPE_CHECKING:
    from typing_extensions import Buffer

LINE = "filter=lfs diff=lfs merge=lfs -text"
CORAL_LINE = "filter=coral diff=coral merge=coral -text"
both = pytest.mark.parametrize("project", ["sha1", "sha256"], indirect=True)


def pointer_of(data: bytes) -> bytes:
    """What git-LFS keeps in git for a file."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (
        hashlib.sha256(data).hexdigest().encode(),
        len(data),
    )


def keep_in_lfs(project: Project, data: bytes, root: str = ".git/lfs") -> Path:
    """Put a file where git-LFS would."""
    name = hashlib.sha256(data).hexdigest()
    return project.write(f"{root}/objects/{name[:2]}/{name[2:4]}/{name}", data)


def lfs(
    project: Project, attributes: str = f"*.safetensors {LINE}\n", message: str = "with LFS", **files: bytes
) -> str:
    """Commit files as git-LFS would, and have the files themselves only where git-LFS keeps them.

    Returns:
        The commit.
    """
    project.write(".gitattributes", attributes.encode())
    for name, data in files.items():
        keep_in_lfs(project, data)
        project.write(f"{name}.safetensors", pointer_of(data))
    project.git("add", "-A")
    project.git("commit", "-q", "-m", message)
    return project.git("rev-parse", "HEAD")


def complaint(project: Project, *arguments: str) -> tuple[int, str]:
    """How a call of coral fails."""
    done = project.run(sys.executable, "-m", "coral", *arguments, check=False)
    return done.returncode, done.stderr.decode()


# -- the index


@both
def test_pointers_become_manifests(project: Project) -> None:
    """Manifests and attributes are staged, files hold their bytes, modes stay, and nothing else seems changed."""
    one, other = safe(tensors(1)), safe(tensors(2, rows=1 << 13))
    lfs(project, one=one, other=other)
    project.write("sub/with space — ü.safetensors", pointer_of(one)).chmod(0o755)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "in a folder")
    before = project.git("rev-parse", "HEAD")
    said = project.coral("import-lfs")
    assert "3 files imported, .gitattributes edited" in said
    assert project.git("rev-parse", "HEAD") == before
    assert project.git("diff", "--name-only") == ""
    assert project.git("status", "--porcelain", "-z").count("M  ") == 4
    assert project.read(".gitattributes").decode() == f"*.safetensors {CORAL_LINE}\n"
    for name, data in {"one": one, "other": other, "sub/with space — ü": one}.items():
        assert project.read(f"{name}.safetensors") == data
        assert Manifest.from_bytes(project.blob(f"{name}.safetensors")).container == "safetensors"
    assert "100755" in project.git("ls-files", "-s", "sub")
    assert (project.folder / "sub/with space — ü.safetensors").stat().st_mode & 0o777 == 0o755
    project.git("commit", "-q", "-m", "coral's")
    assert project.status() == ""
    shutil.rmtree(project.folder / ".git/lfs")
    project.git("checkout", "-q", "HEAD~1")
    project.git("checkout", "-q", "main")
    assert project.read("other.safetensors") == other
    assert project.status() == ""


def test_the_working_file_is_taken(project: Project) -> None:
    """What git-LFS wrote into the working tree needs no object of git-LFS's; nobody writes or reads it again."""
    data = safe(tensors(rows=1 << 14))
    lfs(project, model=data)
    shutil.rmtree(project.folder / ".git/lfs")
    path = project.write("model.safetensors", data)
    before = path.stat()
    project.coral("import-lfs")
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert project.git("diff-files", "--name-only") == ""
    assert project.status() == "M  .gitattributes\nM  model.safetensors"
    project.git("commit", "-q", "-m", "coral's")
    path.unlink()
    project.git("checkout", "--", ".")
    assert project.read("model.safetensors") == data


@pytest.mark.parametrize("how", ["absent", "damaged", "of another length"])
def test_missing_bytes(project: Project, how: str) -> None:
    """A pointer whose bytes are nowhere is named, and nothing changes; with --skip-missing the others are imported."""
    one, other = safe(tensors(1)), safe(tensors(2))
    lfs(project, one=one, other=other)
    kept = keep_in_lfs(project, other)
    if how == "absent":
        kept.unlink()
    else:
        kept.write_bytes(other[:-1] + (b"" if how == "of another length" else b"\xff"))
    before = project.git("ls-files", "-s"), project.read("one.safetensors"), project.read(".gitattributes")
    code, said = complaint(project, "import-lfs")
    assert code == 3
    assert "other.safetensors" in said
    assert "one.safetensors" not in said
    assert "git lfs pull" in said
    assert (project.git("ls-files", "-s"), project.read("one.safetensors"), project.read(".gitattributes")) == before
    assert project.status() == ""

    assert "still a pointer: other.safetensors" in project.coral("import-lfs", "--skip-missing")
    assert project.status() == "M  .gitattributes\nM  one.safetensors"
    assert project.read("one.safetensors") == one
    assert project.read("other.safetensors") == pointer_of(other)
    project.git("commit", "-q", "-m", "one")
    (project.folder / "other.safetensors").touch()
    assert project.status() == ""

    kept.write_bytes(other)
    project.coral("import-lfs")
    assert project.status() == "M  other.safetensors"
    assert project.read("other.safetensors") == other


def test_changes_of_the_user_stay(project: Project) -> None:
    """A working file with other bytes, or none, is not touched: git shows the same change as before."""
    lfs(project, one=safe(tensors(1)), two=safe(tensors(2)))
    changed = safe(tensors(3))
    project.write("one.safetensors", changed)
    (project.folder / "two.safetensors").unlink()
    project.coral("import-lfs")
    assert project.read("one.safetensors") == changed
    assert not (project.folder / "two.safetensors").exists()
    assert project.status() == "M  .gitattributes\nMM one.safetensors\nMD two.safetensors"
    project.git("checkout", "--", ".")
    assert project.read("one.safetensors") == safe(tensors(1))
    assert project.read("two.safetensors") == safe(tensors(2))


def refused(project: Project, *arguments: str) -> str:
    """Why an import changes nothing."""
    before = project.git("ls-files", "-s"), project.git("status", "--porcelain"), project.git("for-each-ref")
    code, said = complaint(project, "import-lfs", *arguments)
    assert code in (2, 4)
    assert (project.git("ls-files", "-s"), project.git("status", "--porcelain"), project.git("for-each-ref")) == before
    return said


def test_what_is_refused(project: Project) -> None:
    """Staged pointers, attributes that are changed, and conflicts are refused; so is git without coral's filter."""
    lfs(project, model=safe(tensors()))
    keep_in_lfs(project, safe(tensors(2)))
    project.write("new.safetensors", pointer_of(safe(tensors(2))))
    project.git("add", "-A")
    assert "new.safetensors" in refused(project)
    project.git("rm", "-q", "--cached", "new.safetensors")
    (project.folder / "new.safetensors").unlink()
    for name in (".gitattributes", "sub/.gitattributes"):
        project.write(name, f"*.safetensors {LINE}\n# more\n".encode())
        assert name in refused(project)
        project.git("stash", "-q", "-u")
    project.git("config", "--rename-section", "filter.coral", "filter.other")
    assert "coral install" in refused(project)
    project.git("config", "--rename-section", "filter.other", "filter.coral")
    project.coral("import-lfs")


def test_conflicts_are_refused(project: Project) -> None:
    """A pointer in conflict is left to whoever merges."""
    lfs(project, model=safe(tensors(1)))
    project.git("branch", "other")
    lfs(project, model=safe(tensors(2)))
    project.git("checkout", "-q", "other")
    lfs(project, model=safe(tensors(3)))
    project.run("git", "merge", "main", check=False)
    assert "conflicts in model.safetensors" in refused(project)


def test_patterns(project: Project) -> None:
    """Only what is named is imported, with the lines that stand for it; a line that stands for more is refused."""
    project.write("deep/.gitattributes", f"*.pt {LINE}\n".encode())
    for name in ("a.bin", "b.bin", "deep/c.pt"):
        keep_in_lfs(project, safe(tensors(ord(name[0]))))
        project.write(name, pointer_of(safe(tensors(ord(name[0])))))
    lfs(project, f"*.safetensors {LINE}\n*.bin {LINE}\n", model=safe(tensors()))
    assert "'*.bin' in .gitattributes also stands for b.bin" in refused(project, "a.bin")
    code, said = complaint(project, "import-lfs", "nothing.*")
    assert (code, "nothing.*" in said) == (3, True)
    project.coral("-C", "deep", "import-lfs", "*.pt")
    assert project.status() == "M  deep/.gitattributes\nM  deep/c.pt"
    project.coral("import-lfs", "*.safetensors")
    assert project.read(".gitattributes").decode() == f"*.safetensors {CORAL_LINE}\n*.bin {LINE}\n"
    assert ".gitattributes" in refused(project, "*.bin")
    assert project.read("a.bin") == pointer_of(safe(tensors(ord("a"))))
    project.git("commit", "-q", "-m", "two")
    project.coral("import-lfs")
    assert project.status() == "M  .gitattributes\nM  a.bin\nM  b.bin"


def test_a_macro_and_other_lines(project: Project) -> None:
    """Attributes of a macro's are found; a pointer that git-LFS does not handle is left, and said to be."""
    attributes = f"[attr]large {LINE} lockable\n*.safetensors large\n*.txt text\nexample.safetensors !filter\n"
    lfs(project, attributes, model=safe(tensors()), example=safe(tensors(2)))
    assert "left alone: example.safetensors" in project.coral("import-lfs")
    edited = attributes.replace(LINE, CORAL_LINE)
    assert project.read(".gitattributes").decode() == edited
    assert project.status() == "M  .gitattributes\nM  model.safetensors"
    assert project.read("model.safetensors") == safe(tensors())
    assert project.read("example.safetensors") == pointer_of(safe(tensors(2)))


def test_tracked_by_coral_already(project: Project) -> None:
    """Pointers that came before coral's attributes are imported, too; without any there is nothing to do."""
    assert "0 files imported\n" in project.coral("import-lfs")
    data = safe(tensors())
    keep_in_lfs(project, data)
    project.commit("pointer", model=pointer_of(data))
    assert project.blob("model.safetensors") == pointer_of(data)
    project.coral("import-lfs")
    assert project.read("model.safetensors") == data
    assert project.status() == "M  model.safetensors"


@pytest.mark.parametrize("absolute", [True, False])
def test_where_lfs_keeps_its_objects(project: Project, absolute: bool) -> None:
    """git-LFS's own setting counts, relative to git's folder; and linked worktrees share them."""
    data = safe(tensors())
    lfs(project, model=data)
    (project.folder / ".git/lfs").rename(project.folder / ".git/elsewhere")
    project.git("config", "lfs.storage", project.folder / ".git/elsewhere" if absolute else "elsewhere")
    project.git("worktree", "add", "-q", "../linked")
    linked = Project(project.folder.parent / "linked")
    linked.coral("import-lfs")
    assert linked.read("model.safetensors") == data
    assert linked.status() == "M  .gitattributes\nM  model.safetensors"
    assert not (linked.folder / ".coral").exists()
    assert project.read("model.safetensors") == pointer_of(data)


def test_one_import_at_a_time(project: Project) -> None:
    """A second import does not wait for the first one, nor get in its way."""
    with alone(project.folder) as scratch:
        scratch.write("index", b"of the first")
        assert "another process" in refused(project)
        assert scratch.read("index") == b"of the first"
    assert not scratch.root.exists()


def test_sparse_checkouts(project: Project) -> None:
    """A file that git leaves out of the working tree is imported, and still left out."""
    data = safe(tensors())
    keep_in_lfs(project, data)
    project.write("far/model.safetensors", pointer_of(data))
    lfs(project, near=safe(tensors(2)))
    project.git("sparse-checkout", "set", "--no-cone", "/*.safetensors", "/.gitattributes")
    assert not (project.folder / "far").exists()
    project.coral("import-lfs")
    assert project.status() == "M  .gitattributes\nM  far/model.safetensors\nM  near.safetensors"
    assert not (project.folder / "far").exists()
    project.git("sparse-checkout", "disable")
    assert project.read("far/model.safetensors") == data


def test_odd_contents(project: Project) -> None:
    """An empty file, a manifest's text and a pointer that git-LFS keeps are what git keeps of them afterwards."""
    project.commit("a manifest", model=safe(tensors()))
    # Of a file that is as young as its index git is not sure, and would ask the filter of git-LFS about it.
    os.utime(project.folder / "model.safetensors", (10**9, 10**9))
    assert project.status() == ""
    text = project.blob("model.safetensors")
    odd = {"empty": b"", "text": text, "pointer": pointer_of(b"x"), "noise": os.urandom(5 << 20)}
    lfs(project, f"*.safetensors {LINE}\n", "odd", **odd)
    project.coral("import-lfs")
    for name in ("empty", "pointer", "noise"):
        assert project.read(f"{name}.safetensors") == odd[name]
    assert project.read("text.safetensors") == project.read("model.safetensors")
    for name in ("empty", "text", "pointer"):
        assert project.blob(f"{name}.safetensors") == odd[name]
    project.git("commit", "-q", "-m", "coral's")
    for name in odd:
        (project.folder / f"{name}.safetensors").touch()
    assert project.status() == ""


GOOD = pointer_of(b"weights")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-9],
        GOOD + b"more\n",
        GOOD.replace(b"spec/v1", b"spec/v2"),
        GOOD.replace(b"sha256:", b"sha512:"),
        GOOD.replace(b"size 7", b"size -7"),
        GOOD.replace(b"size 7", b"size 07"),
        GOOD.replace(b"size 7", b"size 99999999999999999999"),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"oid", b"ext-0-foo sha256:" + b"0" * 64 + b"\noid"),
        GOOD.upper(),
        b" " + GOOD,
    ],
)
def test_only_pointers_are_pointers(data: bytes) -> None:
    """Nothing but what git-LFS writes itself is taken for a pointer."""
    assert parse_pointer(GOOD) == Pointer(hashlib.sha256(b"weights").hexdigest(), 7)
    assert parse_pointer(data) is None


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (f"*.bin {LINE}\n", f"*.bin {CORAL_LINE}\n"),
        (f"*.bin {LINE}", f"*.bin {CORAL_LINE}"),
        (f"  *.bin\t{LINE} lockable \r\n", f"  *.bin\t{CORAL_LINE} lockable \r\n"),
        (f'"with space.bin" {LINE}\n', f'"with space.bin" {CORAL_LINE}\n'),
        ("*.bin filter=lfs\n", f"*.bin {CORAL_LINE}\n"),
        ("*.bin filter=lfs -diff text\n", "*.bin filter=coral -diff text merge=coral -text\n"),
        ("*.bin filter=lfs binary\n", "*.bin filter=coral binary\n"),
        ("*.bin filter=other filter=lfs\n", f"*.bin filter=other {CORAL_LINE}\n"),
        (f"\ufeff*.bin {LINE}\n", f"\ufeff*.bin {CORAL_LINE}\n"),
        ("*.bin filter=lfs filter=other\n", None),
        ("*.bin diff=lfs merge=lfs\n", None),
        ("*.bin -filter\n", None),
        ("*.bin filter=lfs2\n", None),
        (f"# *.bin {LINE}\n", None),
        (f"\t#*.bin {LINE}\n", None),
        ("\n", None),
        ("filter=lfs\n", None),
    ],
)
def test_lines_of_attributes(line: str, wanted: str | None) -> None:
    """A line that hands files to git-LFS becomes coral's; all else stays, to the byte, and is only done once."""
    around = b"*.txt text=auto \n\n# \xff\n", b"\r\n*.md  eol=lf"
    text = around[0] + line.encode() + (around[1] if line.endswith("\n") else b"")
    expected = text.replace(line.encode(), (wanted if wanted is not None else line).encode())
    assert with_coral(text) == expected
    assert with_coral(expected) == expected
    assert len(lfs_lines(text)) == (wanted is not None)


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="NOT PROVED HERE: git-LFS is missing")
def test_the_real_lfs(project: Project, tmp_path: Path) -> None:
    """A repository that git-LFS itself made: a clone whose objects were not fetched, then one where they were."""
    project.git("lfs", "install", "--local")
    for suffix in ("safetensors", "pt"):
        project.git("lfs", "track", f"*.{suffix}")
    project.write(".gitattributes", project.read(".gitattributes").replace(b"=coral", b"=lfs"))
    data = safe(tensors(rows=1 << 13))
    project.commit("by git-LFS", model=data)
    assert project.blob("model.safetensors") == pointer_of(data)
    subprocess.run(
        ["git", "clone", "-q", f"file://{project.folder}", tmp_path / "clone"],
        check=True,
        env={**os.environ, "GIT_LFS_SKIP_SMUDGE": "1"},
    )
    clone = Project(tmp_path / "clone")
    clone.configure()
    assert complaint(clone, "import-lfs")[0] == 3
    clone.git("lfs", "install", "--local")
    clone.git("lfs", "pull")
    clone.coral("import-lfs")
    assert clone.status() == "M  .gitattributes\nM  model.safetensors"
    clone.git("commit", "-q", "-m", "coral's")
    assert clone.read("model.safetensors") == data
    assert clone.status() == ""
    assert b"=lfs" not in clone.read(".gitattributes")
    project.coral("import-lfs", "--history")
    assert project.read("model.safetensors") == data
    assert project.status() == ""
    assert project.git("rev-parse", "HEAD:model.safetensors") == clone.git("rev-parse", "HEAD:model.safetensors")


# -- all of a history


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
