"""Manifests in the user's git: found wherever git keeps them, told from all else, and their chunks kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from coral import Repository
from coral.errors import GitCommandError, VersionError
from coral.format.manifest import Manifest
from coral.git.objects import Where
from coral.ids import ContentRef
from coral.verbs.git_manifests import contents_in, manifests_of_head, texts_of_git
from tests.processes import run_python
from tests.repository.helpers import git
from tests.repository.in_git import commit, conflict, stage


@pytest.fixture(params=["sha1", "sha256"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """A git project with coral in it and one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main", f"--object-format={request.param}")
    (folder / "train.py").write_text("print()\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "-q", "-m", "code")
    return Repository(folder, init=True)


def manifests(project: Path) -> dict[Where, Manifest]:
    """The manifests that git reaches, by a place of each."""
    return {where: Manifest.from_bytes(text) for where, text in texts_of_git(project)}


def named(project: Path) -> set[ContentRef]:
    """All that manifests of git's refer to."""
    return {content for _, text in texts_of_git(project) for content in contents_in(text)}


def stored(*kept: Manifest) -> set[ContentRef]:
    """What manifests refer to in the store."""
    return {record.content for one in kept for record in one.everything if record.content.startswith("b3")}


def test_manifests_are_found_by_what_they_say(repo: Repository) -> None:
    """Whatever a file is called: a manifest is found, with a place where it is, and nothing else is."""
    one, two = commit(repo, 1, "deep/er/a b.safetensors"), commit(repo, 2, "no-suffix")
    (repo.path / "noise").write_bytes(bytes(range(256)) * 1000)
    git(repo.path, "add", "noise")
    git(repo.path, "commit", "-q", "-m", "others")
    last = stage(repo, 3)
    head = git(repo.path, "rev-parse", "HEAD").strip()
    found = manifests(repo.path)
    assert found == {
        (head, "deep/er/a b.safetensors"): one,
        (head, "no-suffix"): two,
        ("index", "model.safetensors"): last,
    }
    (repo.path / "like").write_bytes(b"coral manifest 1\nbut no more\n")
    git(repo.path, "add", "like")
    git(repo.path, "commit", "-q", "-m", "malformed", "--", "like")
    assert {path: manifest for (_, path), manifest in manifests_of_head(repo.path)} == {
        "deep/er/a b.safetensors": one,
        "no-suffix": two,
    }


def test_outside_of_git(tmp_path: Path, repo: Repository) -> None:
    """Where there is no git nothing is reached; where git fails nobody may go on as if nothing were."""
    plain = Repository(tmp_path / "plain", init=True)
    assert not list(texts_of_git(plain.path)) and not list(manifests_of_head(plain.path))
    commit(repo, 1)
    tree = git(repo.path, "rev-parse", "HEAD^{tree}").strip()
    (repo.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(GitCommandError):
        list(texts_of_git(repo.path))


def test_before_the_first_commit(tmp_path: Path) -> None:
    """An empty repository has no HEAD to start from."""
    git(tmp_path, "init", "-q")
    repo = Repository(tmp_path, init=True)
    assert list(manifests_of_head(tmp_path)) == []
    manifest = stage(repo, 1)
    assert list(manifests(tmp_path).values()) == [manifest]


def test_each_place_is_looked_at(repo: Repository, tmp_path: Path) -> None:
    """Manifests of commits, stashes, reflogs, linked worktrees and indexes; what was seen before is not read again."""
    kept = [commit(repo, 1, rows=100_000)]
    kept.append(commit(repo, 2))
    git(repo.path, "reset", "-q", "--hard", "HEAD~1")
    kept.append(stage(repo, 3))
    git(repo.path, "stash")
    linked = tmp_path / "linked"
    git(repo.path, "worktree", "add", "-q", "--detach", str(linked))
    kept.append(stage(Repository(linked), 4))
    assert named(repo.path) == stored(*kept)
    seen: set[str] = set()
    assert len(list(texts_of_git(repo.path, seen=seen))) == 4
    new = stage(repo, 5)
    assert [text for _, text in texts_of_git(repo.path, seen=seen)] == [new.to_bytes()]
    assert list(texts_of_git(repo.path, seen=seen)) == []


def test_a_conflict_keeps_both_sides(repo: Repository) -> None:
    """What a text with conflict markers names is kept, though it is no manifest, and nothing else holds it any more."""
    ours, theirs = conflict(repo)
    text = (repo.path / "model.safetensors").read_bytes()
    assert b"\n<<<<<<< " in text
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "-m", "with its markers")
    whole = b"<<<<<<< ours\n" + ours.to_bytes() + b"=======\n" + theirs.to_bytes() + b">>>>>>> theirs\n"
    (repo.path / "both").write_bytes(whole)
    git(repo.path, "add", "both")
    git(repo.path, "stash", "-q")
    git(repo.path, "branch", "-q", "-D", "side")
    assert stored(ours, theirs) <= named(repo.path)
    assert {text, whole} <= {found for _, found in texts_of_git(repo.path)}
    assert set(contents_in(whole)) == stored(ours, theirs)
    # It is no manifest to anybody who wants one.
    assert text not in [found.to_bytes() for _, found in manifests_of_head(repo.path)]


def test_a_newer_manifest_is_not_passed_over(repo: Repository) -> None:
    """Whoever wants manifests is told to upgrade; whoever keeps chunks keeps those of any version."""
    manifest = commit(repo, 1)
    newer = manifest.to_bytes().replace(b"coral manifest 1", b"coral manifest 2")
    git(repo.path, "rm", "-q", "--cached", "model.safetensors")
    (repo.path / "model.safetensors").write_bytes(newer)
    git(repo.path, "add", "model.safetensors")
    git(repo.path, "commit", "-q", "--amend", "-m", "from the future")
    git(repo.path, "reflog", "expire", "--expire=all", "--all")
    with pytest.raises(VersionError):
        list(manifests_of_head(repo.path))
    assert named(repo.path) == stored(manifest)


def test_looking_is_light(repo: Repository) -> None:
    """Looking for manifests loads no numpy: a hook that finds none must cost nothing."""
    commit(repo, 1)
    program = """
import sys
from pathlib import Path
from coral.verbs.git_manifests import texts_of_git
print(len(list(texts_of_git(Path(sys.argv[1])))), "numpy" in sys.modules)
"""
    assert run_python(program, repo.path) == "1 False\n"
