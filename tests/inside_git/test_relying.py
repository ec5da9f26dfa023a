"""Whoever relies on a ``.coral`` is known to it: what git needs stays, also where git's folder is not found upwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import CorruptionError, GitCommandError
from tests.inside_git.helpers import ATTRIBUTES, Project, safe, tensors

FILE = "model.safetensors"
MODEL = safe(tensors())


class Dotfiles(Project):
    """A working tree whose git folder is elsewhere, and is told to git by the environment or not at all."""

    def __init__(self, folder: Path, git_dir: Path) -> None:
        super().__init__(folder)
        self.git_dir = git_dir
        self.environment = {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(folder)}

    @classmethod
    def made(cls, place: Path, git_dir: str) -> Dotfiles:
        """A new one, with coral's settings and attributes."""
        made = cls(place / "home folder", place / git_dir)
        made.folder.mkdir()
        super(Dotfiles, made).git("init", "-q", "--bare", "-b", "main", made.git_dir)
        made.configure()
        made.write(".gitattributes", ATTRIBUTES.encode())
        return made

    def git(self, *arguments: str | Path, **environment: str) -> str:
        return super().git(*arguments, **{**self.environment, **environment})

    def coral_there(self, *arguments: str) -> str:
        """What coral prints where it is told of git's folder."""
        return super().coral(*arguments, check=True, **self.environment)


@pytest.fixture
def dotfiles(tmp_path: Path) -> Dotfiles:
    """A model that is committed there; coral's settings are git's, as 'coral install --global' leaves them."""
    made = Dotfiles.made(tmp_path, "dot.git")
    made.git("add", ".gitattributes")
    made.commit("a model", model=MODEL)
    return made


def comes_back(project: Project) -> bool:
    """Whether git checks the model out as itself."""
    (project.folder / FILE).unlink()
    project.git("checkout", "-q", FILE)
    return project.read(FILE) == MODEL


def notes(folder: Path) -> list[str]:
    """The git folders that a ``.coral`` knows of."""
    return [line.split(" ", 1)[1].replace("%20", " ") for line in (folder / "relying").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["GIT_DIR", "core.worktree", "installed"])
def test_what_a_repository_elsewhere_needs_stays(dotfiles: Dotfiles, kind: str) -> None:
    """Walking up finds no git: collecting and sending ask the repository that the filter, or install, noted."""
    if kind == "core.worktree":
        dotfiles.git("config", "core.bare", "false")
        dotfiles.git("config", "core.worktree", "../home folder")
        del dotfiles.environment["GIT_WORK_TREE"]
    if kind == "installed":
        dotfiles.coral_there("uninstall")
        assert notes(dotfiles.folder / ".coral") == [] and not (dotfiles.git_dir / "coral").exists()
        dotfiles.coral_there("install", "--force")
        assert "already" in dotfiles.coral_there("install", "--force")
    assert notes(dotfiles.folder / ".coral") == [str(dotfiles.git_dir)]
    assert dotfiles.coral("gc", "--dry-run") == "nothing to collect\n"
    assert dotfiles.coral("gc", "--prune-now") == "nothing to collect\n"
    for git_dir in (str(dotfiles.git_dir), "../dot.git"):
        assert dotfiles.coral("gc", "--prune-now", GIT_DIR=git_dir) == "nothing to collect\n"
    assert comes_back(dotfiles)
    assert json.loads(dotfiles.coral("fsck", "--git", "--json"))["tensors"] == len(tensors())
    dotfiles.coral("remote", "add", "origin", "../remote")
    assert dotfiles.coral("push").startswith("sent ")
    dotfiles.git("rm", "-q", "-f", FILE)
    dotfiles.git("update-ref", "-d", "HEAD")
    dotfiles.git("reflog", "expire", "--expire=all", "--all")
    assert " collected: " in dotfiles.coral("gc", "--prune-now")


def test_git_ignores_coral_there(dotfiles: Dotfiles) -> None:
    """``.coral`` is in no ``git status`` of a repository that is elsewhere: the filter sees to it, as install does."""
    assert dotfiles.git("status", "--porcelain", "-uall") == ""
    (dotfiles.git_dir / "info/exclude").unlink()
    dotfiles.coral_there("install", "--force")
    assert dotfiles.git("status", "--porcelain", "-uall") == ""
    dotfiles.git("add", "-A")


def test_a_repository_that_is_not_there_stops_what_needs_it(dotfiles: Dotfiles) -> None:
    """Not found is not none: nothing is collected or sent, and the error says which, and what to do."""
    repo = Repository(dotfiles.folder)
    dotfiles.coral("remote", "add", "origin", "../remote")
    moved = dotfiles.git_dir.rename(dotfiles.git_dir.with_name("moved.git"))
    packs = sorted((repo.folder.root / "packs").iterdir())
    for words in (["gc"], ["gc", "--prune-now"], ["gc", "--dry-run"], ["fsck", "--git"], ["push"]):
        with pytest.raises(AssertionError, match=f"is not where it was: {dotfiles.git_dir}"):
            dotfiles.coral(*words)
    assert sorted((repo.folder.root / "packs").iterdir()) == packs
    dotfiles.environment["GIT_DIR"] = str(moved)
    said = dotfiles.coral_there("install", "--force")
    assert "that this repository relies on it" in said
    assert notes(repo.folder.root) == [str(moved)] and len(list((moved / "coral").iterdir())) == 1
    assert dotfiles.coral("gc", "--prune-now") == "nothing to collect\n"
    assert comes_back(dotfiles)


def test_one_that_is_gone_for_good_is_forgotten(dotfiles: Dotfiles) -> None:
    """Uninstalling says that git does not rely on the tensors any more, also where git's folder is gone."""
    shutil.rmtree(dotfiles.git_dir)
    with pytest.raises(GitCommandError, match="relies on"):
        Repository(dotfiles.folder).maintenance.gc(prune_now=True)
    assert dotfiles.coral("uninstall") == f"forgot the git repository {dotfiles.git_dir}, which is not there\n"
    assert Repository(dotfiles.folder).maintenance.gc(prune_now=True).packs == 1
    with pytest.raises(AssertionError, match="in no git repository"):
        dotfiles.coral("uninstall")


def test_another_repository_around_it_does_not_stand_for_it(dotfiles: Dotfiles, tmp_path: Path) -> None:
    """Found upwards is another one than relies on the tensors: both are asked."""
    plain = Project(dotfiles.folder)
    plain.git("init", "-q", "-b", "main")
    assert dotfiles.coral("gc", "--prune-now") == "nothing to collect\n"
    assert comes_back(dotfiles)
    plain.configure()
    plain.write("other.safetensors", safe(tensors(1)))
    plain.git("add", "other.safetensors")
    assert len(notes(dotfiles.folder / ".coral")) == 2
    dotfiles.git_dir.rename(tmp_path / "away.git")
    with pytest.raises(GitCommandError, match=r"dot\.git"):
        Repository(dotfiles.folder).maintenance.gc(prune_now=True)
    # git's folder alone, or another repository in its place, is not the one that relied on the tensors.
    plain.run("git", "init", "-q", "--bare", str(dotfiles.git_dir))
    with pytest.raises(GitCommandError, match=r"dot\.git"):
        Repository(dotfiles.folder).maintenance.gc(prune_now=True)


@pytest.fixture
def committed(project: Project) -> Project:
    """A model in a git repository that is found upwards."""
    project.commit("a model", model=MODEL)
    assert notes(project.folder / ".coral") == [str(project.folder / ".git")]
    return project


def collect(folder: Path) -> None:
    """Collect what nothing needs, which is nothing."""
    assert Repository(folder).maintenance.gc(prune_now=True).packs == 0


def test_a_moved_project_is_known(committed: Project, tmp_path: Path) -> None:
    """The mark moves with git's folder; the next file that git stores has the path noted."""
    moved = Project(committed.folder.rename(tmp_path / "moved"))
    collect(moved.folder)
    assert comes_back(moved)
    moved.commit("more", other=safe(tensors(1)))
    assert notes(moved.folder / ".coral") == [str(moved.folder / ".git")]
    assert len(list((moved.folder / ".git/coral").iterdir())) == 1


def test_a_copied_project_is_one_of_its_own(committed: Project, tmp_path: Path) -> None:
    """A copy asks its own repository, whatever becomes of the one it was made of; and so does that one."""
    copy = Project(tmp_path / "copy")
    shutil.copytree(committed.folder, copy.folder, symlinks=True)
    collect(copy.folder)
    copy.commit("more", other=safe(tensors(1)))
    committed.commit("another", other=safe(tensors(2)))
    collect(copy.folder)
    collect(committed.folder)
    shutil.rmtree(committed.folder)
    collect(copy.folder)
    assert comes_back(copy)


def test_projects_that_share_a_place(committed: Project, tmp_path: Path) -> None:
    """Each project that links to one ``.coral`` is known to it, a copy of another one too, which bears its mark."""
    place = (committed.folder / ".coral").rename(tmp_path / "place")
    (committed.folder / ".coral").symlink_to(place)
    copy = Project(tmp_path / "copy")
    shutil.copytree(committed.folder, copy.folder, symlinks=True)
    (place / "linked-from").write_text(f"{committed.folder}\n{copy.folder}\n")
    committed.commit("only here", model=safe(tensors(1)))
    copy.commit("only there", model=safe(tensors(2)))
    assert notes(place) == [str(committed.folder / ".git"), str(copy.folder / ".git")]
    collect(copy.folder)
    collect(committed.folder)
    assert Repository(copy.folder).maintenance.fsck(git=True).damage == ()


def test_a_clone_has_no_mark(committed: Project, tmp_path: Path) -> None:
    """git's clones bring nothing of it along, and a clone's tensors are its own."""
    clone = Project(tmp_path / "clone")
    committed.git("clone", "-q", ".", clone.folder)
    assert not (clone.folder / ".git/coral").exists() and not (clone.folder / ".coral").exists()
    collect(committed.folder)


def test_what_an_older_coral_left_is_noted_later(committed: Project) -> None:
    """Without a note all is as before; git's next file, or install, writes it."""
    for again in (
        lambda: committed.commit("more", other=safe(tensors(1))),
        lambda: committed.coral("install", "--force"),
    ):
        (committed.folder / ".coral/relying").unlink()
        shutil.rmtree(committed.folder / ".git/coral")
        collect(committed.folder)
        assert Repository(committed.folder).maintenance.fsck(git=True).damage == ()
        again()
        assert notes(committed.folder / ".coral") == [str(committed.folder / ".git")]
        collect(committed.folder)


def test_a_repository_that_was_made_anew(committed: Project) -> None:
    """In the place of the one that relied on the tensors there is another: once that relies on them, it is the one."""
    shutil.rmtree(committed.folder / ".git")
    committed.git("init", "-q", "-b", "main")
    committed.configure()
    with pytest.raises(GitCommandError, match="relies on"):
        Repository(committed.folder).maintenance.gc(prune_now=True)
    committed.git("add", FILE)
    collect(committed.folder)
    assert len(notes(committed.folder / ".coral")) == 1


def test_in_git_s_own_folder(project: Project, tmp_path: Path) -> None:
    """Of a bare repository the tensors lie in its folder: collected from there, they stay as well."""
    bare, tree = tmp_path / "bare.git", Project(tmp_path / "tree")
    project.git("clone", "-q", "--bare", ".", bare)
    project.git("-C", bare, "worktree", "add", "-q", tree.folder, "main")
    tree.configure()
    tree.commit("a model", model=MODEL)
    assert notes(bare / ".coral") == [str(bare)]
    for safe_ones in ("all", "explicit"):  # git, told so, finds no bare repository by itself
        project.git("config", "--global", "safe.bareRepository", safe_ones)
        collect(bare)
        (bare / ".coral/relying").unlink(missing_ok=True)
        collect(bare)
    collect(tree.folder)
    assert comes_back(tree)


@pytest.mark.parametrize("text", [b"x\n", b"\xff", b"0123456789abcdef0123456789abcdef /x\n\n", b"0" * 33 + b" /x\n"])
def test_damaged_notes(committed: Project, text: bytes) -> None:
    """Nobody knows who relies on the tensors: nothing is collected, and git stores nothing more until it is mended."""
    (committed.folder / ".coral/relying").write_bytes(text)
    with pytest.raises(CorruptionError, match="relying is damaged"):
        Repository(committed.folder).maintenance.gc(prune_now=True)
    committed.write("other.safetensors", safe(tensors(1)))
    with pytest.raises(AssertionError, match="relying is damaged"):
        committed.git("add", "-A")
    (committed.folder / ".coral/relying").unlink()
    committed.git("add", "-A")
    collect(committed.folder)


def test_odd_paths(tmp_path: Path) -> None:
    """Whatever bytes a path is of, and whatever lines it seems to have, it is found again."""
    made = Dotfiles.made(tmp_path, "dot\n\udcff%41 ü.git")
    made.commit("a model", model=MODEL)
    assert made.coral("gc", "--prune-now") == "nothing to collect\n"
    made.git_dir.rename(tmp_path / "away")
    with pytest.raises(GitCommandError, match="is not where it was"):
        Repository(made.folder).maintenance.gc()
