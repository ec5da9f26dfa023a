"""Making and finding repositories, alone and inside the user's git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import ConflictError, CorruptionError, RepositoryNotFoundError, StorageError, VersionError
from tests.repository.helpers import at_once, commit, git, raw, read, run, tree, weights


@pytest.fixture
def code(project: Path) -> Path:
    """A git project with one commit and one untracked file."""
    project.mkdir()
    git(project, "init", "-q", "-b", "main")
    (project / "train.py").write_text("print()\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "code")
    (project / "untracked.txt").write_text("mine")
    return project


def test_init_is_idempotent(project: Path) -> None:
    """init=True on an existing repository opens it, and loses nothing."""
    first = commit(Repository(project, init=True), 1)
    before = tree(project / ".coral")
    again = Repository(project, init=True)
    assert again.resolve("HEAD") == first.commit_hash
    assert tree(project / ".coral") == before


def test_eight_processes_may_init_at_once(project: Path) -> None:
    """Whoever comes first, all of them get a repository that works, and each commit is kept."""

    def start(number: int) -> str:
        repo = Repository(project, init=True)
        return commit(repo, number, f"part{number}").commit_hash

    hashes = set(at_once(start, 8))
    repo = Repository(project)
    assert {found.commit_hash for found in repo.log()} == hashes
    assert sorted(repo.parts()) == [f"part{number}" for number in range(8)]


def test_a_plain_folder_is_refused_with_a_hint(tmp_path: Path) -> None:
    """Opening what is no repository says how to make one, and makes nothing."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RepositoryNotFoundError, match="coral init"):
            Repository(path)
    with pytest.raises(RepositoryNotFoundError, match="coral init"):
        Repository.discover(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A path that is a file can neither be opened nor initialised."""
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    with pytest.raises(RepositoryNotFoundError):
        Repository(file)
    with pytest.raises(StorageError, match=r"model\.pt"):
        Repository(file, init=True)
    assert file.read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["mit Ümläuten und Leerzeichen", "权重 🪸", "a'b\"c$d", "-rf"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    """Spaces, unicode and quotes in the path of a project are no matter."""
    repo = Repository(tmp_path / name, init=True)
    commit(repo, 1)
    repo.checkout("main")
    assert Repository.discover(repo.path).status().modified == ()
    assert read(Repository(tmp_path / name)) == read(repo)


@pytest.mark.parametrize(
    "text",
    [
        '[coral]\nformat = 2\nhash = "blake3"\n',
        '[coral]\nformat = 2\n[store]\nthreads = "many"\n',
        '[coral]\nformat = 1\nhash = "blake4"\n',
    ],
)
def test_a_newer_format_is_refused(repo: Repository, text: str) -> None:
    """A repository of a newer coral is named as such, whatever else its settings say, and left alone."""
    (repo.folder.root / "config.toml").write_text(text)
    before = tree(repo.folder.root)
    for init in (False, True):
        with pytest.raises(VersionError, match="upgrade coral"):
            Repository(repo.path, init=init)
    assert tree(repo.folder.root) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[coral",
        b"[coral]\nformat = 'x'\nhash = 'blake3'\n",
        b"[coral]\nformat = 0\n",
        b"coral = 1\n",
        b'[coral]\nformat = 1\nhash = "blake3"\n[store]\nthreads = 0\n',
        b'[coral]\nformat = 1\nhash = "blake3"\n[store]\nverify_writes = 1\n',
    ],
)
def test_damaged_settings_are_named(repo: Repository, data: bytes) -> None:
    """A damaged config.toml is a CorruptionError that names the file."""
    (repo.folder.root / "config.toml").write_bytes(data)
    with pytest.raises(CorruptionError, match=r"config\.toml"):
        Repository(repo.path)


def test_settings_count(repo: Repository) -> None:
    """The author of config.toml is who commits when the call does not say."""
    text = (repo.folder.root / "config.toml").read_text()
    (repo.folder.root / "config.toml").write_text(text + '\n[user]\nauthor = "Ada Ü <a@x>"\n')
    again = Repository(repo.path)
    assert commit(again, 1).author == "Ada Ü <a@x>"
    again.stage_weights(weights(2))
    assert again.commit("x", author="Bob").author == "Bob"


def test_git_leaves_the_repository_alone(code: Path) -> None:
    """clean -xfd, stash -u and checkout -f of the user's git touch nothing below .coral, and do not list it."""
    repo = Repository(code, init=True)
    commit(repo, 1)
    assert ".coral/" in (code / ".git/info/exclude").read_text().splitlines()
    assert ".coral" not in git(code, "status", "--porcelain")
    before = tree(code / ".coral")
    (code / "train.py").write_text("changed")
    git(code, "stash", "-u")
    git(code, "checkout", "-qfB", "other")
    git(code, "clean", "-xfdq")
    assert not (code / "untracked.txt").exists()
    assert tree(code / ".coral") == before
    assert read(Repository(code)) == read(repo)


def test_exclude_is_appended_to_once(code: Path) -> None:
    """What the user excludes stays excluded, and a second repository adds no second line."""
    exclude = code / ".git/info/exclude"
    exclude.write_bytes(b"*.tmp\n\xff no newline")
    one, two = Repository(code, init=True), Repository(code / "nested" / "deeper", init=True)
    commit(one, 1), commit(two, 2)
    assert exclude.read_bytes() == b"*.tmp\n\xff no newline\n.coral/\n"
    assert ".coral" not in git(code, "status", "--porcelain", "-uall")
    git(code, "clean", "-xfdq")
    assert read(Repository(code)) != read(Repository(code / "nested/deeper"))
    assert Repository.discover(code / "nested/deeper").path == code / "nested/deeper"
    assert Repository.discover(code / "nested").path == code


def test_the_history_is_plain_git(repo: Repository) -> None:
    """The user's own git reads the history, and finds nothing wrong with it."""
    made = commit(repo, 1)
    assert git(repo.folder.root, "log", "--format=%H %s").strip() == f"{made.commit_hash} seed 1"
    git(repo.folder.root, "fsck", "--strict")


def test_a_linked_worktree_shares_the_repository(code: Path, tmp_path: Path) -> None:
    """A linked worktree finds the main one's .coral, even when it is asked to make one, and has files of its own."""
    linked = tmp_path / "linked"
    git(code, "worktree", "add", "-q", str(linked))
    made = commit(Repository(code, init=True), 1)
    for repo in (Repository(linked), Repository(linked, init=True), Repository.discover(linked)):
        assert repo.resolve("HEAD") == made.commit_hash
        assert (repo.path, repo.folder.root) == (linked, code / ".coral")
    Repository(linked).checkout("main")
    assert (linked / "model.safetensors").exists()
    assert not (code / "model.safetensors").exists() and not (linked / ".coral").exists()


def test_a_repository_made_in_a_linked_worktree_outlives_it(code: Path, tmp_path: Path) -> None:
    """git worktree remove takes all that is in the worktree: the weights lie beside the main one."""
    linked = tmp_path / "linked"
    git(code, "worktree", "add", "-q", str(linked))
    made = commit(Repository(linked, init=True), 1)
    git(code, "worktree", "remove", "--force", str(linked))
    assert Repository(code).resolve("HEAD") == made.commit_hash


def test_worktrees_of_a_bare_repository_share_one_that_outlives_them(code: Path, tmp_path: Path) -> None:
    """There is no main worktree to lie beside: the weights lie in git's own folder, not where git removes them."""
    bare, one, two = tmp_path / "bare.git", tmp_path / "one", tmp_path / "two"
    git(code, "clone", "-q", "--bare", str(code), str(bare))
    git(bare, "worktree", "add", "-q", str(one), "main")
    git(bare, "worktree", "add", "-q", "-b", "side", str(two))
    made = commit(Repository(one, init=True), 1)
    assert Repository(two).resolve("HEAD") == Repository.discover(two).resolve("HEAD") == made.commit_hash
    git(bare, "worktree", "remove", str(one))
    assert read(Repository(two, init=True)) == raw(weights(1))


def elsewhere(repo: Repository) -> Path:
    """Put a project's .coral on another disk, and a link in its place; returns where it is."""
    place = repo.path.parent / "disk/weights of it"
    place.parent.mkdir()
    repo.folder.root.rename(place)
    repo.folder.root.symlink_to(place)
    return place


@pytest.mark.parametrize("target", ["absolute", "relative", "chain", "dangling", "empty"])
def test_a_link_in_the_place_of_coral_is_refused(repo: Repository, target: str) -> None:
    """git keeps links, so one may come with a clone: neither opened, nor found, nor made, whatever it leads to."""
    commit(repo, 1)
    place = elsewhere(repo)
    if target != "absolute":
        repo.folder.root.unlink()
        (repo.path / "link").symlink_to(os.path.relpath(place, repo.path))
        leads = {"relative": f"../{place.relative_to(repo.path.parent)}", "chain": "link", "dangling": "../disk/no"}
        (place.parent / "empty").mkdir()
        repo.folder.root.symlink_to(leads.get(target, "../disk/empty"))
    before = tree(repo.path.parent)
    for call in (
        lambda: Repository(repo.path),
        lambda: Repository(repo.path, init=True),
        lambda: Repository.discover(repo.path),
        repo.maintenance.gc,
    ):
        with pytest.raises(ConflictError, match=r"is a symbolic link, and .* does not say that it is for"):
            call()
    assert tree(repo.path.parent) == before


def test_a_link_that_its_target_knows_of_is_followed(code: Path, tmp_path: Path) -> None:
    """Where the user wrote, as the error says, into the place itself that it is for the project, all is as ever."""
    repo = Repository(code, init=True)
    made = commit(repo, 1)
    place = elsewhere(repo)
    with pytest.raises(ConflictError) as refused:
        Repository(code)
    assert refused.value.hint is not None
    command = refused.value.hint.partition("there: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    subprocess.run(["sh", "-c", command], check=True)
    assert (place / "linked-from").read_text() == f"{code}\n" * 2
    git(code, "worktree", "add", "-q", str(tmp_path / "tree"))
    for again in (Repository(code), Repository.discover(code / ".git"), Repository(tmp_path / "tree", init=True)):
        assert again.resolve("HEAD") == made.commit_hash
        commit(again, 2)
        again.maintenance.gc(prune_now=True)
        again.reset(made.commit_hash)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.coral").symlink_to(place)
    with pytest.raises(ConflictError, match="does not say that it is for"):
        Repository(tmp_path / "other")


def test_a_link_to_a_new_place(tmp_path: Path) -> None:
    """A repository is made behind a link that the place knows of."""
    (tmp_path / "project").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "project/.coral").symlink_to("../disk")
    (tmp_path / "disk/linked-from").write_text(f"/elsewhere\n{tmp_path / 'project'}\n")
    commit(Repository(tmp_path / "project", init=True), 1)
    assert read(Repository.discover(tmp_path / "project")) == raw(weights(1))
    assert (tmp_path / "disk/config.toml").is_file()


@pytest.mark.parametrize("by", ["worktree", "core.worktree", "linked-from", "nothing"])
def test_a_git_file_is_followed_where_the_other_end_agrees(code: Path, tmp_path: Path, by: str) -> None:
    """git's note of a linked worktree, a submodule's core.worktree, or what coral noted where git notes nothing."""
    inner, away = tmp_path / "inner", tmp_path / "away.git"
    if by == "worktree":
        Repository(code, init=True)
        git(code, "worktree", "add", "-q", str(inner))
    else:
        git(tmp_path, "init", "-q", "--separate-git-dir", str(away), str(inner))
        if by == "core.worktree":
            git(inner, "config", "core.worktree", "../inner")
    made = commit(Repository(inner, init=True), 1)
    assert (away / ".coral/linked-from").exists() == (by in ("linked-from", "nothing"))
    if by == "nothing":
        (away / ".coral/linked-from").unlink()
        with pytest.raises(ConflictError, match=r"leads to .*away\.git, and .* does not say"):
            Repository(inner)
        return
    assert Repository(inner).resolve("HEAD") == made.commit_hash
    inner.rename(tmp_path / "moved")
    with pytest.raises(ConflictError, match="does not say that it is for") as refused:
        Repository(tmp_path / "moved")
    if by == "worktree":
        assert f"git worktree repair {tmp_path / 'moved'}" in (refused.value.hint or "")
        git(tmp_path / "moved", "worktree", "repair", str(tmp_path / "moved"))
        assert Repository(tmp_path / "moved").resolve("HEAD") == made.commit_hash


def test_discover_looks_upwards(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder inside of a project its repository is found, as git finds its own."""
    inner = repo.path / "a" / "b"
    inner.mkdir(parents=True)
    assert Repository.discover(inner).path == repo.path
    monkeypatch.chdir(inner)
    assert Repository.discover().path == repo.path
    with pytest.raises(RepositoryNotFoundError):
        Repository()


def test_opening_loads_no_framework(repo: Repository) -> None:
    """The shell's log and status load neither torch nor numpy."""
    output = run(
        """
        import subprocess
        code = "import sys; from coral.repository import Repository; r = Repository(sys.argv[1], shell_staging=True); "
        code += "r.status(); r.branches(); print({'torch', 'numpy', 'git'} & set(sys.modules))"
        print(subprocess.run([sys.executable, "-c", code, sys.argv[1]], capture_output=True, text=True).stdout)
        """,
        repo.path,
    )
    assert output.strip() == "set()"
