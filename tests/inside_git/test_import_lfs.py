"""Repositories that git-LFS kept: the models of the index become coral's, and nothing else changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from coral.format.manifest import Manifest
from coral.git.lfs import Pointer, lfs_lines, parse_pointer, with_coral
from coral.verbs.inside_git.lfs import alone
from tests.inside_git.helpers import Project, safe, tensors
from tests.inside_git.lfs import CORAL_LINE, LINE, both, complaint, keep_in_lfs, lfs, pointer_of, refused


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
