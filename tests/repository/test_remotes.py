"""Remotes: which folders they may be, that the user chooses them, and that settings keep all else that they say."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import (
    AlreadyExistsError,
    CorruptionError,
    FormatError,
    NotFoundError,
    UsageError,
    VersionError,
)
from coral.storage.folder import Folder
from coral.verbs.config import Config, Remote
from coral.verbs.sharing.remotes import (
    add_remote,
    adopt_remotes,
    choose_remote,
    folder_of,
    offered_remotes,
    open_remote,
    open_target,
    remove_remote,
)
from tests.repository.helpers import git, tree

SETTINGS = """\
# who we are
[coral]
format = 1
hash = "blake3"

[store]
verify_writes = false  # quick
threads = 3

[user]
author = "Ada [x] <ada@example.org>"

[ours]
notes = '''
[remotes.no]
'''
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A git project with coral in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    Repository(folder, init=True)
    return folder


@pytest.fixture
def config(project: Path) -> Path:
    """The settings, with comments and with a table that coral does not know."""
    path = project / ".coral" / "config.toml"
    path.write_text(SETTINGS)
    return path


def add(project: Path, name: str, url: str, *, private: bool = False) -> Path | None:
    return add_remote(project, Repository(project).folder, Remote(name, url), private=private)


def remotes(project: Path) -> list[tuple[str, str]]:
    return list(Repository(project).config.remotes)


# -- settings


def test_settings_keep_what_else_they_say(project: Path, config: Path, tmp_path: Path) -> None:
    """Adding and removing a remote changes its own lines and no others, comments and unknown tables included."""
    add(project, "origin", str(tmp_path / "a"))
    add(project, "my.nas", "../b")
    assert config.read_text().startswith(SETTINGS)
    assert remotes(project) == [("origin", str(tmp_path / "a")), ("my.nas", "../b")]
    loaded = Repository(project).config
    assert (loaded.verify_writes, loaded.threads, loaded.author) == (False, 3, "Ada [x] <ada@example.org>")
    config.write_text(config.read_text() + "\n[later]\nx = 1\n")
    remove_remote(project, Repository(project).folder, "origin")
    assert remotes(project) == [("my.nas", "../b")]
    assert config.read_text().endswith("\n[later]\nx = 1\n")
    remove_remote(project, Repository(project).folder, "my.nas")
    assert config.read_text() == SETTINGS + "\n[later]\nx = 1\n"


def test_settings_are_written_and_read_alike(tmp_path: Path) -> None:
    """A new settings file that names remotes says what was meant, whatever characters are in it."""
    config = Config(author="A", remotes=(Remote("a", '/x "y" \\z ü'), Remote("b.c", "d")))
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert Config.load(Folder(tmp_path)) == config


@pytest.mark.parametrize("text", ["remotes = {a = {url = '/x'}}", "[remotes]\na = {url = '/x'}\n[remotes.b]\nurl='/y'"])
def test_settings_in_other_words_are_left_alone(project: Path, config: Path, text: str) -> None:
    """TOML has many ways to say the same; one that is not understood is not broken, and the user is told."""
    config.write_text(text + "\n" + SETTINGS if text.startswith("remotes") else SETTINGS + text)
    before = config.read_bytes()
    with pytest.raises(UsageError, match="does not change"):
        remove_remote(project, Repository(project).folder, "a")
    assert config.read_bytes() == before


@pytest.mark.parametrize("text", ["[remotes.a]\n", "[remotes.a]\nurl = 1\n", "remotes = 1\n", "[remotes]\na = '/x'\n"])
def test_damaged_settings(project: Path, config: Path, text: str) -> None:
    """A remote without a place is damage, named by the file."""
    config.write_text(text + SETTINGS if text.startswith("remotes ") else SETTINGS + text)
    with pytest.raises(CorruptionError, match=r"config\.toml"):
        Repository(project)


def test_two_who_add_at_once(project: Path, tmp_path: Path) -> None:
    """No remote is lost when several are added at the same time."""
    names = [f"r{number}" for number in range(8)]
    threads = [threading.Thread(target=add, args=(project, name, str(tmp_path / name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in remotes(project)) == names
    stranger = Repository(tmp_path / "o", init=True).folder
    assert sorted(remote.name for remote in offered_remotes(project, stranger)) == names


# -- places


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("/mnt/a b", "/mnt/a b"),
        ("../shared", "/home/shared"),
        ("./a:b", "/home/project/a:b"),
        ("file:///mnt/a%20b", "/mnt/a b"),
        ("file://localhost/mnt/x", "/mnt/x"),
    ],
)
def test_a_place_is_a_folder(url: str, place: str) -> None:
    """Absolute, relative to the project, or by a file url."""
    assert folder_of(Remote("r", url), Path("/home/project")).resolve() == Path(place)


@pytest.mark.parametrize(
    "url",
    ["", "s3://bucket/x", "https://h/x", "ssh://h/x", "user@host:x", "host:x", "file://h/x", "file://", "~/x", "~u/x"],
)
def test_no_other_place_is_one_yet(url: str, project: Path, config: Path) -> None:
    """What is no folder is refused when it is named, with the kinds that there are; nothing is written."""
    with pytest.raises(UsageError) as caught:
        add(project, "r", url)
    assert caught.value.hint
    assert config.read_text() == SETTINGS
    assert not (project / ".coralconfig").exists()


@pytest.mark.parametrize("url", [".coral", ".coral/packs", "/x\ny", "a\x1b[2J"])
def test_places_that_would_do_harm(url: str, project: Path) -> None:
    """The repository itself is no remote; nor is what would print as something else."""
    with pytest.raises(UsageError):
        add(project, "r", url)


@pytest.mark.parametrize("name", ["", "-v", "a b", "a/b", ".", "a\n[x]", "ä"])
def test_names(name: str, project: Path, tmp_path: Path) -> None:
    """A name is one word that no option and no table can be taken for."""
    with pytest.raises(UsageError):
        add(project, name, str(tmp_path / "r"))


def test_a_folder_with_other_things_in_it(project: Path, tmp_path: Path) -> None:
    """Packs are not strewn into somebody's documents, nor into another repository; a remote that is there is taken."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear")
    Repository(tmp_path / "other", init=True)
    for folder in ("documents", "other", "other/.coral"):
        with pytest.raises(UsageError):
            add(project, "r", str(tmp_path / folder))
    assert tree(tmp_path / "documents") == {"letter.txt": b"dear"}
    add(project, "r", str(tmp_path / "new/deep"))
    before = tree(tmp_path / "new")
    add(project, "again", str(tmp_path / "new/deep"))
    assert tree(tmp_path / "new") == before


def test_opening(project: Path, tmp_path: Path) -> None:
    """A remote is opened by its name; one that is not mounted is not made anew in the place where it would be."""
    add(project, "origin", "../shared")
    store = open_target(project, Repository(project).config, "origin")
    content = store.put_bytes(b"x" * 100)
    (tmp_path / "shared").rename(tmp_path / "away")
    (tmp_path / "shared").mkdir()
    with pytest.raises(NotFoundError, match="holds no coral remote") as caught:
        open_remote(project, Repository(project).config)
    assert "mount" in (caught.value.hint or "")
    assert list((tmp_path / "shared").iterdir()) == []
    (tmp_path / "shared").rmdir()
    for opens in (open_remote, open_target):
        with pytest.raises(NotFoundError):
            opens(project, Repository(project).config)
    (tmp_path / "away").rename(tmp_path / "shared")
    (chunk,) = open_remote(project, Repository(project).config).chunks_in(content)
    out = bytearray(100)
    open_remote(project, Repository(project).config).read_chunk(chunk, memoryview(out))
    assert out == b"x" * 100


def test_a_remote_of_a_newer_coral(project: Path, tmp_path: Path) -> None:
    """A remote says its format, so that an older coral does not write into a newer one's."""
    add(project, "origin", str(tmp_path / "r"))
    path = tmp_path / "r" / "config.toml"
    path.write_text(path.read_text().replace("format = 1", "format = 2"))
    with pytest.raises(VersionError):
        open_remote(project, Repository(project).config)
    with pytest.raises(VersionError):
        add(project, "other", str(tmp_path / "r"))


def test_choosing() -> None:
    """The one named; else the one like git's; else origin; else the only one; else nobody can say."""
    a, origin, b = Remote("a", "1"), Remote("origin", "2"), Remote("b", "3")
    config = Config(remotes=(a, origin, b))
    assert choose_remote(config, "b") == choose_remote(config, like="b") == b
    assert choose_remote(config) == choose_remote(config, like="c") == origin
    assert choose_remote(Config(remotes=(a,)), like="c") == a
    with pytest.raises(NotFoundError, match="no remote 'c'"):
        choose_remote(config, "c")
    with pytest.raises(UsageError, match="which remote: a, b"):
        choose_remote(Config(remotes=(a, b)), like="c")
    with pytest.raises(NotFoundError) as caught:
        choose_remote(Config())
    assert "coral remote add" in (caught.value.hint or "")


# -- colleagues


def test_an_offer_is_no_choice(project: Path, tmp_path: Path) -> None:
    """What a colleague committed is used once it is adopted, and not before."""
    assert add(project, "origin", "../shared") == project / ".coralconfig"
    add(project, "mine", str(tmp_path / "mine"), private=True)
    git(project, "add", ".coralconfig")
    git(project, "commit", "-q", "-m", "remotes")
    git(tmp_path, "clone", "-q", str(project), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone", init=True)
    assert offered_remotes(clone.path, clone.folder) == [("origin", "../shared")]
    with pytest.raises(NotFoundError, match="no coral remote is configured"):
        open_remote(clone.path, clone.config)
    assert adopt_remotes(clone.path, clone.folder) == [("origin", "../shared")]
    assert adopt_remotes(clone.path, clone.folder) == offered_remotes(clone.path, clone.folder) == []
    assert remotes(clone.path) == [("origin", "../shared")]
    open_remote(clone.path, Config.load(clone.folder))


def test_an_offer_does_not_replace_a_choice(project: Path, tmp_path: Path) -> None:
    """A commit that moves a remote elsewhere moves nobody's pushes."""
    add(project, "origin", str(tmp_path / "ours"))
    (project / ".coralconfig").write_text(f'[remotes.origin]\nurl = "{tmp_path}/theirs"\n')
    folder = Repository(project).folder
    assert adopt_remotes(project, folder) == []
    assert remotes(project) == [("origin", str(tmp_path / "ours"))]
    assert offered_remotes(project, folder) == [("origin", str(tmp_path / "theirs"))]
    with pytest.raises(AlreadyExistsError, match=r"\.coralconfig"):
        add(project, "origin", str(tmp_path / "ours"))
    with pytest.raises(AlreadyExistsError, match=r"config\.toml"):
        add(project, "origin", str(tmp_path / "third"))
    add(project, "origin", str(tmp_path / "ours"), private=True)


@pytest.mark.parametrize(
    "text",
    [
        "<<<<<<< HEAD\n",
        "[remotes.x]\n",
        "[remotes.x]\nurl = 1\n",
        "[remotes.'-v']\nurl = '/x'\n",
        "[remotes.x]\nurl = 's3://b'\n",
        '[remotes.x]\nurl = "/x\\u001b[2J"\n',
        "[remotes.x]\nurl = '.coral'\n",
        "remotes = 1\n",
        "\xff",
    ],
)
def test_a_malformed_offer(project: Path, text: str) -> None:
    """Nothing of a file is adopted that says what cannot be; it is named, and the user's own remotes work on."""
    (project / ".coralconfig").write_bytes(text.encode("latin-1"))
    folder = Repository(project).folder
    with pytest.raises((FormatError, UsageError)):
        adopt_remotes(project, folder)
    assert remotes(project) == []


def test_removing(project: Path, tmp_path: Path) -> None:
    """A remote is forgotten here and in what colleagues are told, or here alone; what is stored stays."""
    for name in ("a", "b"):
        add(project, name, str(tmp_path / name))
    folder = Repository(project).folder
    assert remove_remote(project, folder, "a") == project / ".coralconfig"
    assert remove_remote(project, folder, "b", private=True) is None
    assert remotes(project) == []
    assert offered_remotes(project, folder) == [("b", str(tmp_path / "b"))]
    assert remove_remote(project, folder, "b") == project / ".coralconfig"
    with pytest.raises(NotFoundError):
        remove_remote(project, folder, "b")
    assert (tmp_path / "a" / "config.toml").exists()


def test_outside_of_git(tmp_path: Path) -> None:
    """Without git there is nobody to tell."""
    repo = Repository(tmp_path / "p", init=True)
    assert add(repo.path, "origin", "../r") is None
    assert adopt_remotes(repo.path, repo.folder) == []
    assert {path.name for path in repo.path.iterdir()} == {".coral"}


def test_a_linked_worktree(project: Path, tmp_path: Path) -> None:
    """Worktrees share the remotes, whose relative places are told from the main one; the offer lies in each."""
    git(project, "commit", "-q", "--allow-empty", "-m", "one")
    linked = tmp_path / "far" / "linked"
    git(project, "worktree", "add", "-q", str(linked))
    assert add(linked, "origin", "../shared") == linked / ".coralconfig"
    assert (tmp_path / "shared" / "packs").is_dir()
    open_remote(linked, Repository(linked).config)
    open_remote(project, Repository(project).config)
    assert remotes(project) == [("origin", "../shared")]
