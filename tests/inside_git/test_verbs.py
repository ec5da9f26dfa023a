"""Everyday git on models: after each command the files are what they were, to the byte, and the tree is clean."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from coral.format.manifest import is_manifest
from tests.inside_git.helpers import ATTRIBUTES, CORAL, Project, safe, tensors

A, B = "a.safetensors", "weights of M\u00fcller/b \u6a21\u578b.safetensors"
ROWS = 1 << 10
VERSIONS = [safe(tensors(seed, rows=ROWS)) for seed in range(6)]
MAIN = {A: VERSIONS[2], B: VERSIONS[1]}
MAIN_BEFORE = {A: VERSIONS[0], B: VERSIONS[1]}
SIDE = {A: VERSIONS[0], B: VERSIONS[3]}
both = pytest.mark.parametrize("project", ["sha1", "sha256"], indirect=True)

_made: dict[str, Path] = {}


@pytest.fixture(params=["sha1"])
def project(tmp_path: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two commits on ``main``, with another A in the second; ``side`` changed B after the first."""
    kind = request.param
    if kind not in _made:
        _made[kind] = tmp_path_factory.mktemp(kind) / "project"
        _make(Project(_made[kind]), kind)
    shutil.copytree(_made[kind], tmp_path / "project", symlinks=True)
    copy = Project(tmp_path / "project")
    assert copy.status() == ""
    return copy


def _make(project: Project, kind: str) -> None:
    subprocess.run(["git", "init", "-q", "-b", "main", f"--object-format={kind}", project.folder], check=True)
    project.configure()
    project.write(".gitattributes", ATTRIBUTES.encode())
    commit(project, "one", MAIN_BEFORE)
    project.git("branch", "side")
    commit(project, "two", MAIN)
    project.git("switch", "-q", "side")
    commit(project, "three", SIDE)
    project.git("switch", "-q", "main")


def commit(project: Project, message: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        project.write(name, data)
    return project.commit(message)


def holds(project: Project, files: dict[str, bytes], status: str = "") -> None:
    """The working tree has these models and no others, and git finds nothing else to say."""
    found = {path.relative_to(project.folder).as_posix() for path in project.folder.rglob("*.safetensors")}
    assert found == set(files)
    for name, data in files.items():
        assert project.read(name) == data, name
    assert project.status() == status


def test_branches(project: Project) -> None:
    """checkout, switch, and a commit without a branch."""
    holds(project, MAIN)
    project.git("switch", "-q", "side")
    holds(project, SIDE)
    project.git("checkout", "-q", "main")
    holds(project, MAIN)
    project.git("checkout", "-q", "--detach", "main~1")
    holds(project, MAIN_BEFORE)
    project.git("switch", "-q", "-c", "new", "-")
    holds(project, MAIN)
    assert all(is_manifest(project.blob(name, "HEAD")) for name in MAIN)


@both
def test_commits(project: Project) -> None:
    """commit -a, commit PATH while something else is staged, commit --amend; what is not meant stays as it was."""
    project.write(A, VERSIONS[4])
    project.git("commit", "-q", "-a", "-m", "all")
    holds(project, {**MAIN, A: VERSIONS[4]})
    project.write(B, VERSIONS[4])
    project.git("add", B)
    project.write(A, VERSIONS[5])
    project.git("commit", "-q", "-m", "only A", A)
    holds(project, {A: VERSIONS[5], B: VERSIONS[4]}, status=f'M  "{quoted(B)}"')
    project.git("commit", "-q", "--amend", "--no-edit", "-a")
    holds(project, {A: VERSIONS[5], B: VERSIONS[4]})
    project.git("reset", "-q", "--hard", "HEAD~1")
    holds(project, {**MAIN, A: VERSIONS[4]})


def quoted(name: str) -> str:
    """A name as git shows it."""
    return "".join(f"\\{byte:o}" if byte > 127 else chr(byte) for byte in name.encode())


def test_restore(project: Project) -> None:
    """restore, --staged and --source."""
    project.write(A, VERSIONS[4])
    project.git("restore", ".")
    holds(project, MAIN)
    project.write(A, VERSIONS[4])
    project.git("add", A)
    project.git("restore", "--staged", A)
    holds(project, {**MAIN, A: VERSIONS[4]}, status=f"M {A}")
    project.git("restore", "--source=main~1", A)
    holds(project, MAIN_BEFORE, status=f"M {A}")
    project.git("restore", "--source=side", "--staged", "--worktree", ".")
    holds(project, SIDE, status=f'M  {A}\nM  "{quoted(B)}"')
    project.git("reset", "-q", "--hard")
    holds(project, MAIN)


def test_reset(project: Project) -> None:
    """reset --soft, --mixed and --hard, and checkout -f."""
    for how, status in (("--soft", f"M  {A}"), ("--mixed", f"M {A}"), ("--hard", "")):
        project.git("reset", "-q", how, "main~1")
        holds(project, MAIN if status else MAIN_BEFORE, status=status)
        project.git("reset", "-q", "--hard", "ORIG_HEAD")
    project.write(A, VERSIONS[4])
    project.git("checkout", "-q", "-f", "side")
    holds(project, SIDE)


@both
def test_stash(project: Project) -> None:
    """stash push and pop, with what is untracked too, and with what is staged left in place."""
    project.write(A, VERSIONS[4])
    project.git("stash", "push", "-q")
    holds(project, MAIN)
    project.git("stash", "pop", "-q")
    holds(project, {**MAIN, A: VERSIONS[4]}, status=f"M {A}")
    project.write("new.safetensors", VERSIONS[5])
    project.git("stash", "push", "-q", "-u")
    holds(project, MAIN)
    project.git("stash", "pop", "-q")
    holds(project, {**MAIN, A: VERSIONS[4], "new.safetensors": VERSIONS[5]}, status=f"M {A}\n?? new.safetensors")


def test_stash_keep_index(project: Project) -> None:
    """stash --keep-index leaves what is staged, and pop --index brings the rest back."""
    project.write(A, VERSIONS[4])
    project.git("add", A)
    project.write(B, VERSIONS[5])
    project.git("stash", "push", "-q", "--keep-index")
    holds(project, {**MAIN, A: VERSIONS[4]}, status=f"M  {A}")
    project.git("reset", "-q", "--hard")
    project.git("stash", "pop", "-q", "--index")
    holds(project, {A: VERSIONS[4], B: VERSIONS[5]}, status=f'M  {A}\n M "{quoted(B)}"')


@both
def test_worktrees(project: Project) -> None:
    """Linked worktrees share the main one's store: what is committed in one is there when it is removed."""
    project.git("worktree", "add", "-q", "../linked", "side")
    linked = Project(project.folder.parent / "linked")
    holds(linked, SIDE)
    commit(linked, "four", {A: VERSIONS[4]})
    assert not (linked.folder / ".coral").exists()
    project.git("worktree", "remove", "../linked")
    project.git("switch", "-q", "side")
    holds(project, {**SIDE, A: VERSIONS[4]})


@both
def test_rebase_and_merge(project: Project) -> None:
    """rebase, and a merge of branches that changed different models."""
    project.git("switch", "-q", "-c", "copy", "side")
    project.git("rebase", "-q", "main")
    holds(project, {A: VERSIONS[2], B: VERSIONS[3]})
    project.git("switch", "-q", "main")
    project.git("merge", "-q", "-m", "merged", "side")
    holds(project, {A: VERSIONS[2], B: VERSIONS[3]})
    assert project.git("rev-parse", "HEAD^{tree}") == project.git("rev-parse", "copy^{tree}")


def test_autostash(project: Project) -> None:
    """rebase --autostash takes changes along that are not committed."""
    project.git("switch", "-q", "side")
    project.write("notes.txt", b"one")
    project.git("add", "notes.txt")
    project.write(B, VERSIONS[5])
    project.git("rebase", "-q", "--autostash", "main")
    holds(project, {A: VERSIONS[2], B: VERSIONS[5]}, status=f'A  notes.txt\n M "{quoted(B)}"')


@both
def test_cherry_pick_and_revert(project: Project) -> None:
    """cherry-pick and revert."""
    project.git("cherry-pick", "side")
    holds(project, {A: VERSIONS[2], B: VERSIONS[3]})
    project.git("revert", "--no-edit", "HEAD~1")
    holds(project, SIDE)


def test_patches(project: Project) -> None:
    """A change sent as a patch, which is one of the manifest's text, is the model's change where the tensors are."""
    patch = project.run("git", "format-patch", "--stdout", "main~1..main").stdout
    project.git("switch", "-q", "side")
    project.write("../patch", patch)
    project.git("am", "-q", "../patch")
    holds(project, {A: VERSIONS[2], B: VERSIONS[3]})


def test_a_side_of_a_conflict(project: Project) -> None:
    """checkout --ours and --theirs write one side's model."""
    project.git("switch", "-q", "side")
    commit(project, "four", {A: VERSIONS[4]})
    project.run("git", "merge", "main", check=False)
    project.git("checkout", "-q", "--theirs", A)
    assert project.read(A) == VERSIONS[2]
    project.git("checkout", "-q", "--ours", A)
    assert project.read(A) == VERSIONS[4]
    project.git("add", A)
    project.git("commit", "-q", "-m", "merged")
    holds(project, {A: VERSIONS[4], B: VERSIONS[3]})
    project.git("reset", "-q", "--hard", "HEAD~1")
    project.run("git", "merge", "main", check=False)
    project.git("merge", "--abort")
    holds(project, {A: VERSIONS[4], B: VERSIONS[3]})


def test_bisect(project: Project) -> None:
    """bisect run finds the first commit whose model is bad, by its bytes."""
    bad = [commit(project, f"{number}", {A: VERSIONS[number]}) for number in (3, 4, 5)]
    project.write("../good", VERSIONS[2])
    project.git("bisect", "start", "HEAD", "main~4")
    said = project.git("bisect", "run", "sh", "-c", f"test $(git log --format=%s -1) = one || cmp -s {A} ../good")
    assert f"{bad[0]} is the first bad commit" in said
    project.git("bisect", "reset")
    holds(project, {**MAIN, A: VERSIONS[5]})


@both
def test_shallow_clone(project: Project, tmp_path: Path) -> None:
    """A clone that lacks the tensors has manifests, seems unchanged, and gets no store of its own."""
    filtering = ("-c", f"filter.coral.process={CORAL} git-filter", "-c", "filter.coral.required=true")
    source = f"file://{project.folder}"
    subprocess.run(["git", "clone", "-q", "--depth=1", *filtering, source, tmp_path / "clone"], check=True)
    clone = Project(tmp_path / "clone")
    manifests = {name: project.blob(name) for name in MAIN}
    holds(clone, manifests)
    (clone.folder / A).unlink()
    clone.git("checkout", "-q", "--", ".")
    holds(clone, manifests)
    assert not (clone.folder / ".coral").exists()


def test_submodule(project: Project, tmp_path: Path) -> None:
    """A submodule's store lies in git's own folder: deinit loses nothing."""
    outer = Project(tmp_path / "outer")
    subprocess.run(["git", "init", "-q", outer.folder], check=True)
    outer.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", project.folder, "inner")
    outer.git("commit", "-q", "-m", "one")
    inner = Project(outer.folder / "inner")
    inner.configure()
    commit(inner, "four", {A: VERSIONS[4]})
    outer.git("commit", "-q", "-a", "-m", "two")
    assert outer.status() == ""
    assert not (inner.folder / ".coral").exists()
    assert (outer.folder / ".git/modules/inner/.coral").is_dir()
    outer.git("submodule", "--quiet", "deinit", "-f", "inner")
    assert not any(inner.folder.iterdir())
    outer.git("submodule", "--quiet", "update", "--init")
    assert inner.read(A) == VERSIONS[4]
    assert is_manifest(inner.read(B))
    assert inner.status() == ""


@both
def test_archive(project: Project) -> None:
    """An archive holds the models themselves."""
    with tarfile.open(fileobj=io.BytesIO(project.run("git", "archive", "main~1").stdout)) as archive:
        for name, data in MAIN_BEFORE.items():
            member = archive.extractfile(name)
            assert member is not None
            assert member.read() == data
    with zipfile.ZipFile(io.BytesIO(project.run("git", "archive", "--format=zip", "HEAD", A).stdout)) as zipped:
        assert zipped.read(A) == MAIN[A]


def test_collecting_garbage(project: Project) -> None:
    """git's own collection takes no tensors, whatever it drops of the history."""
    project.git("branch", "-D", "side")
    project.git("reset", "-q", "--hard", "HEAD~1")
    project.git("reflog", "expire", "--expire=now", "--all")
    project.git("gc", "--quiet", "--prune=now")
    for name in MAIN:
        (project.folder / name).unlink()
    project.git("checkout", "--", ".")
    holds(project, MAIN_BEFORE)
    project.coral("fsck", "--read-data")


def test_renames(project: Project) -> None:
    """git mv, a rename that git finds out itself, and back; an unchanged model is a rename of 100 %."""
    project.git("mv", A, "moved.safetensors")
    project.git("commit", "-q", "-m", "moved")
    (project.folder / B).rename(project.folder / "b.safetensors")
    project.git("add", "-A")
    assert "R100" in project.git("diff", "--cached", "-M", "--name-status")
    project.git("commit", "-q", "-m", "moved, too")
    holds(project, {"moved.safetensors": MAIN[A], "b.safetensors": MAIN[B]})
    project.git("checkout", "-q", "HEAD~2")
    holds(project, MAIN)


def test_removals(project: Project) -> None:
    """git rm, and a file that is simply gone."""
    project.git("rm", "-q", A)
    (project.folder / B).unlink()
    project.git("commit", "-q", "-a", "-m", "gone")
    holds(project, {})
    project.git("checkout", "-q", "HEAD~1")
    holds(project, MAIN)
    project.git("switch", "-q", "main")
    holds(project, {})
    project.git("restore", "--source=HEAD~1", "--staged", "--worktree", A)
    assert project.read(A) == MAIN[A]


def test_modes(project: Project) -> None:
    """The executable bit comes and goes with commits."""
    path = project.folder / A
    path.chmod(0o755)
    assert project.status() == f"M {A}"
    project.git("commit", "-q", "-a", "-m", "executable")
    project.git("checkout", "-q", "HEAD~1")
    assert path.stat().st_mode & 0o111 == 0
    project.git("checkout", "-q", "main~1")
    project.git("checkout", "-q", "main")
    assert path.stat().st_mode & 0o111 == 0o111
    holds(project, MAIN)


def test_cleaning(project: Project) -> None:
    """clean -xfd takes models that are not tracked, and leaves the store; so does stash -u."""
    project.write(".gitignore", b"*\n")
    project.write("new.safetensors", VERSIONS[5])
    project.write("folder/new.safetensors", VERSIONS[5])
    project.git("clean", "-q", "-xfd")
    holds(project, MAIN)
    project.git("stash", "push", "-q", "-u", "--all")
    (project.folder / A).unlink()
    project.git("checkout", "--", ".")
    holds(project, MAIN)


def test_touched_files(project: Project) -> None:
    """A file that only seems to have changed is clean."""
    for name in MAIN:
        project.write(name, MAIN[name])
    holds(project, MAIN)


@both
def test_a_bare_repository(project: Project, tmp_path: Path) -> None:
    """Worktrees of a bare repository share a store in it."""
    bare = Project(tmp_path / "bare.git")
    subprocess.run(["git", "clone", "-q", "--bare", project.folder, bare.folder], check=True)
    bare.configure()
    bare.git("worktree", "add", "-q", "../one", "main")
    one = Project(tmp_path / "one")
    holds(one, {name: project.blob(name) for name in MAIN})
    commit(one, "four", {A: VERSIONS[4]})
    assert (bare.folder / ".coral").is_dir()
    assert not (one.folder / ".coral").exists()
    bare.git("worktree", "remove", "../one")
    bare.git("worktree", "add", "-q", "../two", "main")
    holds(Project(tmp_path / "two"), {A: VERSIONS[4], B: project.blob(B)})


def test_sparse_checkout(project: Project) -> None:
    """A folder that is left out of the working tree is there again when it is wanted."""
    project.git("sparse-checkout", "set", "elsewhere")
    holds(project, {A: MAIN[A]})
    project.git("switch", "-q", "side")
    holds(project, {A: SIDE[A]})
    project.git("sparse-checkout", "disable")
    holds(project, SIDE)
