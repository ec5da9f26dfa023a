"""Plain files out of git: without coral, and without the risk that a name is more than a name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inside_git.helpers import Project, safe, tensors, torch_file

both = pytest.mark.parametrize("project", ["sha1", "sha256"], indirect=True)


def files_in(folder: Path) -> dict[str, bytes]:
    """All regular files below a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure(project: Project, *arguments: str | Path) -> tuple[int, str]:
    done = project.run(sys.executable, "-m", "coral", "export", *arguments, check=False)
    return done.returncode, done.stderr.decode()


@both
def test_index_and_revisions(project: Project, tmp_path: Path) -> None:
    """Models byte for byte, other files as they are, modes too; of the index, or of a commit."""
    one, two, other = safe(tensors(1)), safe(tensors(2)), torch_file(tensors(3))
    project.write("train.py", b"print(1)\n").chmod(0o755)
    project.write("data/large.raw", os.urandom(3 << 20))
    project.write("d\u00fc r/net.pt", other)
    project.commit("one", model=one)
    project.commit("two", model=two)
    project.git("tag", "v2")
    project.write("model.safetensors", safe(tensors(4)))
    project.git("rm", "-q", "--cached", "train.py")
    plain = {name: project.read(name) for name in (".gitattributes", "data/large.raw", "d\u00fc r/net.pt")}

    said = project.coral("export", "--to", tmp_path / "index", ".")
    assert files_in(tmp_path / "index") == {**plain, "model.safetensors": two}
    assert "4 files written, 2 models among them" in said
    project.coral("export", "--ref", "v2~1", "--to", tmp_path / "old", ".")
    assert files_in(tmp_path / "old") == {**plain, "model.safetensors": one, "train.py": b"print(1)\n"}
    assert (tmp_path / "old/train.py").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "old/model.safetensors").stat().st_mode & 0o111 == 0


def test_paths(project: Project, tmp_path: Path) -> None:
    """Files and folders are named from the working folder, and keep their place below the top."""
    for name in ("a.pt", "sub/b.pt", "sub/deep/c.pt", "subway.pt"):
        project.write(name, torch_file(tensors(1)))
    project.commit("all")
    names = {
        (".", "sub"): {"sub/b.pt", "sub/deep/c.pt"},
        ("sub", "."): {"sub/b.pt", "sub/deep/c.pt"},
        ("sub", "../a.pt"): {"a.pt"},
        ("sub", "deep/c.pt"): {"sub/deep/c.pt"},
        (".", str(project.folder / "sub/b.pt")): {"sub/b.pt"},
    }
    for number, ((folder, path), wanted) in enumerate(names.items()):
        project.coral("-C", folder, "export", "--to", tmp_path / f"{number}", path)
        assert set(files_in(tmp_path / f"{number}")) == wanted
    for path, code in (("*.pt", 3), ("nothing", 3), ("..", 2), ("", 2), ("/etc", 2)):
        assert failure(project, "--to", tmp_path / "none", path)[0] == code
    assert failure(project, "--to", tmp_path / "none", "--ref", "nothing", ".")[0] == 3
    assert not (tmp_path / "none").exists()


def test_nothing_is_overwritten_unasked(project: Project, tmp_path: Path) -> None:
    """A file, a folder or a link in the place of a file: nothing is written; --force replaces files and links."""
    data = safe(tensors())
    project.commit("one", model=data, other=data)
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.write_bytes(b"precious")
    (target / "model.safetensors").symlink_to(outside)
    code, said = failure(project, "--to", target, ".")
    assert (code, "model.safetensors" in said) == (4, True)
    assert list(target.iterdir()) == [target / "model.safetensors"]
    project.coral("export", "--to", target, "--force", ".")
    assert files_in(target)["model.safetensors"] == data
    assert not (target / "model.safetensors").is_symlink()
    assert outside.read_bytes() == b"precious"


def test_absent_tensors(project: Project, tmp_path: Path) -> None:
    """A model whose tensors are not here is named, and nothing is written."""
    project.commit("one", model=safe(tensors()), other=safe(tensors(2)))
    shutil.rmtree(project.folder / ".coral")
    code, said = failure(project, "--to", tmp_path / "target", ".")
    assert code == 5
    assert "model.safetensors" in said
    assert "other.safetensors" in said
    assert not (tmp_path / "target").exists()
    project.coral("export", "--to", tmp_path / "target", ".gitattributes")


def test_damage_is_never_written(project: Project, tmp_path: Path) -> None:
    """A model whose stored bytes are damaged is named, and not written."""
    project.commit("one", model=safe(tensors(rows=1 << 12)))
    (pack,) = (project.folder / ".coral/packs").glob("*.pack")
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    code, said = failure(project, "--to", tmp_path / "target", "model.safetensors")
    assert (code, "model.safetensors" in said) == (5, True)
    assert files_in(tmp_path / "target") == {}


def test_links_and_submodules_are_left_out(project: Project, tmp_path: Path) -> None:
    """A link could lead anywhere: it is not made, and said to be left out."""
    (project.folder / "link").symlink_to("/etc/passwd")
    project.git("update-index", "--add", "--cacheinfo", f"160000,{project.git('rev-parse', 'HEAD')},sub")
    project.git("add", "link")
    said = project.coral("export", "--to", tmp_path / "target", ".")
    assert "left out: link\nleft out: sub\n" in said
    assert list(files_in(tmp_path / "target")) == [".gitattributes"]


def crafted(project: Project, *path: tuple[str, str]) -> str:
    """A tree that git itself would not make: folders and a file at the end, by mode and name."""
    found = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], cwd=project.folder, input=b"x", capture_output=True, check=True
    ).stdout.strip()
    for mode, name in reversed(path):
        entry = f"{mode} {name}\0".encode() + bytes.fromhex(found.decode())
        words = ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"]
        done = subprocess.run(words, cwd=project.folder, input=entry, capture_output=True, check=True)
        found = done.stdout.strip()
    return found.decode()


@pytest.mark.parametrize(
    "path",
    [
        [("40000", ".."), ("100644", "evil")],
        [("40000", "a"), ("40000", ".."), ("40000", ".."), ("100644", "evil")],
        [("100644", "../evil")],
        [("100644", "{top}/evil")],
        [("40000", "."), ("100644", "evil")],
        [("40000", ".git"), ("40000", "hooks"), ("100755", "post-checkout")],
        [("40000", "a"), ("40000", ".GIT"), ("100755", "config")],
    ],
    ids=lambda path: "".join(f"-{name}" for _, name in path),
)
def test_names_are_data(project: Project, tmp_path: Path, path: list[tuple[str, str]]) -> None:
    """A tree of whatever names cannot have a file written outside of the folder, or into a repository there."""
    target = tmp_path / "target/sub/sub"
    target.mkdir(parents=True)
    named = [(mode, name.format(top=tmp_path)) for mode, name in path]
    code, said = failure(project, "--ref", crafted(project, *named), "--to", target, ".")
    assert (code, "path" in said) == (2, True)
    assert not files_in(tmp_path / "target")
    assert not list(tmp_path.rglob("*evil*"))


def test_a_link_in_the_way(project: Project, tmp_path: Path) -> None:
    """A link below the folder is not followed, even with --force; the folder itself may be one."""
    project.write("sub/model.pt", torch_file(tensors()))
    project.commit("one")
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "sub").symlink_to(outside)
    assert failure(project, "--force", "--to", target, "sub")[0] == 8
    assert files_in(outside) == {}
    (tmp_path / "itself").symlink_to(outside)
    project.coral("export", "--to", tmp_path / "itself", "sub")
    assert list(files_in(outside)) == ["sub/model.pt"]


def test_how_to_stop_using_coral(project: Project) -> None:
    """Without the attributes, 'git add --renormalize .' gives git the models themselves, and coral is not needed."""
    data = safe(tensors())
    project.commit("one", model=data)
    project.write(".gitattributes", b"")
    project.git("add", "--renormalize", ".")
    project.git("commit", "-q", "-m", "models without coral")
    assert project.blob("model.safetensors") == data
    project.git("config", "--remove-section", "filter.coral")
    shutil.rmtree(project.folder / ".coral")
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", ".")
    assert project.read("model.safetensors") == data
    assert project.status() == ""
    assert "add --renormalize" in project.coral("export", "--help")
