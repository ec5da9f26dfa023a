"""Git's configuration: coral's keys come and go, the user's stay as they are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from coral.errors import ConflictError, GitCommandError
from coral.git.settings import conflicts, install, installed_program, uninstall, values
from tests.git.conftest import Git

PROGRAM = ["/opt/coral/bin/coral"]
KEYS = {
    "filter.coral.process": "/opt/coral/bin/coral git-filter",
    "filter.coral.required": "true",
    "diff.coral.command": "/opt/coral/bin/coral git-diff",
    "merge.coral.name": "merge of tensors",
    "merge.coral.driver": "/opt/coral/bin/coral git-merge %O %A %B %L %P",
}


@pytest.fixture
def code(git: Git, tmp_path: Path) -> Path:
    """An empty repository of git's."""
    git(tmp_path, "init", "-q", "code")
    return tmp_path / "code"


def config(git: Git, folder: Path, scope: str = "local") -> dict[str, str]:
    """Coral's keys, as git reads them."""
    listed = git(folder, "config", f"--{scope}", "--null", "--list").split("\0")
    pairs = (item.partition("\n")[::2] for item in listed if ".coral." in item)
    return dict(pairs)


def test_install_writes_what_is_documented(git: Git, code: Path) -> None:
    """These keys and no others, once; a second time nothing changes."""
    assert sorted(install(code, PROGRAM, "local")) == sorted(KEYS)
    assert config(git, code) == KEYS
    before = (code / ".git/config").read_bytes()
    assert install(code, PROGRAM, "local") == []
    assert (code / ".git/config").read_bytes() == before
    assert installed_program(code) == PROGRAM


@pytest.mark.parametrize(
    "name", ["a b/coral", "it's/coral", '"q"/coral', "100%O %P/coral", "$HOME `x`/coral", "ünï/coral"]
)
def test_git_starts_the_program_wherever_it_lies(git: Git, code: Path, tmp_path: Path, name: str) -> None:
    """Quotes, blanks, percents and dollars in the program's path are no matter, for the driver of merges either."""
    program = tmp_path / name
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {shlex.quote(str(tmp_path / "called"))}\nexit 0\n')
    program.chmod(0o755)
    install(code, [str(program)], "local")
    assert installed_program(code) == [str(program)]
    (code / ".git/info/attributes").write_text("*.pt merge=coral diff=coral\n")
    for branch, text in (("main", "1"), ("side", "2"), ("main", "3")):
        git(code, "checkout", "-q", *(["-B"] if text < "3" else []), branch)
        (code / "m.pt").write_text(text)
        git(code, "add", ".")
        git(code, "commit", "-qm", text)
    git(code, "merge", "-q", "-s", "recursive", "side", "-m", "merged")
    words = (tmp_path / "called").read_text().split("|")
    assert words[0] == "git-merge" and words[4:6] == ["7", "m.pt"]
    git(code, "diff", "HEAD~2")
    assert (tmp_path / "called").read_text().startswith("git-diff|m.pt|")
    assert sorted(uninstall(code, "local")) == sorted(KEYS)


def test_a_program_that_moved_is_updated(git: Git, code: Path) -> None:
    """Values for another path of coral's are coral's own: no conflict, and only what differs is written."""
    install(code, PROGRAM, "local")
    python = ["/opt/venv/bin/python", "-P", "-m", "coral"]
    changed = install(code, python, "local")
    assert sorted(changed) == ["diff.coral.command", "filter.coral.process", "merge.coral.driver"]
    assert config(git, code) == values(python)
    assert installed_program(code) == python
    assert install(code, ["/b/git-coral"], "local") == changed


USERS = [
    ("filter.coral.process", "wrapper coral git-filter"),
    ("filter.coral.process", "coral git-filter"),
    ("filter.coral.process", "/opt/coral/bin/coral git-filter --fast"),
    ("filter.coral.process", "/opt/other/bin/tool git-filter"),
    ("filter.coral.process", "'unfinished git-filter"),
    ("filter.coral.process", "'/opt/coral/bin/coral' git-filter"),
    ("filter.coral.required", "false"),
    ("diff.coral.command", "mydiff"),
    ("merge.coral.name", "my merge"),
    ("merge.coral.driver", "/opt/coral/bin/coral git-merge %O %A %B"),
]


@pytest.mark.parametrize(("key", "value"), USERS)
def test_the_users_values_are_not_overwritten(git: Git, code: Path, key: str, value: str) -> None:
    """A value that coral would not have written is named, and nothing at all is changed; --force overwrites it."""
    git(code, "config", key, value)
    before = (code / ".git/config").read_bytes()
    with pytest.raises(ConflictError) as error:
        install(code, PROGRAM, "local")
    assert f"{key} = {value}" in error.value.message and "--force" in (error.value.hint or "")
    assert (code / ".git/config").read_bytes() == before
    assert conflicts(code, PROGRAM, "local") == [f"{key} = {value}"]
    assert installed_program(code) is None
    install(code, PROGRAM, "local", force=True)
    assert config(git, code) == KEYS


def test_one_of_several_values_is_the_users(git: Git, code: Path) -> None:
    """A key that stands there twice is as much the user's as its second value."""
    install(code, PROGRAM, "local")
    git(code, "config", "--add", "diff.coral.command", "mine")
    with pytest.raises(ConflictError, match=r"diff\.coral\.command = mine"):
        install(code, PROGRAM, "local")
    uninstall(code, "local")
    assert "mine" in git(code, "config", "--get-all", "diff.coral.command")


def test_a_key_that_stands_there_twice_is_one_key(git: Git, code: Path) -> None:
    """Coral's own value, doubled, is written once again, and removed as often as it is there."""
    for _ in range(2):
        install(code, PROGRAM, "local")
        git(code, "config", "--add", "diff.coral.command", KEYS["diff.coral.command"])
    assert install(code, PROGRAM, "local") == ["diff.coral.command"]
    assert git(code, "config", "--get-all", "diff.coral.command").count("\n") == 1
    git(code, "config", "--add", "diff.coral.command", KEYS["diff.coral.command"])
    uninstall(code, "local")
    assert config(git, code) == {}


@pytest.mark.parametrize("key", list(KEYS))
def test_all_keys_are_needed(git: Git, code: Path, key: str) -> None:
    """What the user took out by hand is missed, put in again, and does not keep the rest from being taken out."""
    install(code, PROGRAM, "local")
    git(code, "config", "--unset", key)
    assert installed_program(code) is None
    assert install(code, PROGRAM, "local") == [key] and installed_program(code) == PROGRAM
    git(code, "config", "--unset", key)
    uninstall(code, "local")
    assert config(git, code) == {}


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("[core]\n\tbare = false\n", True),
        ("[core]\r\n\tbare = false\r\n[user]\r\n\tname = x\r\n", True),
        ("[core]\n\tbare = false\n# the last line is a comment\n", True),
        ('# odd [filter "coral"] spacing\n  [core]   ; here\n bare=false\n\n\n[a "b"]c = d\n', True),
        ("[core]\n\tbare = false", False),
    ],
)
def test_uninstall_gives_the_file_back(code: Path, text: str, exact: bool) -> None:
    """Not a byte is left of keys and sections; only a last line break that was missing is there now: git adds it."""
    file = code / ".git/config"
    file.write_bytes(text.encode())
    install(code, PROGRAM, "local")
    assert sorted(uninstall(code, "local")) == sorted(KEYS)
    assert file.read_bytes() == text.encode() + (b"" if exact else b"\n")
    assert uninstall(code, "local") == []


def test_uninstall_leaves_what_is_the_users(git: Git, code: Path) -> None:
    """Keys, comments and values of the user's in coral's sections stay, and so do the sections then."""
    install(code, PROGRAM, "local")
    git(code, "config", "filter.coral.clean", "cat")
    git(code, "config", "diff.coral.command", "mine")
    file = code / ".git/config"
    file.write_text(file.read_text() + "# about merges\n")
    uninstall(code, "local")
    assert config(git, code) == {"filter.coral.clean": "cat", "diff.coral.command": "mine"}
    assert file.read_text().endswith("# about merges\n")


def test_constants_belong_to_their_command(git: Git, code: Path) -> None:
    """`required = true` beside a filter of the user's own was not put in by coral, and is not taken out."""
    git(code, "config", "filter.coral.process", "mine")
    git(code, "config", "filter.coral.required", "true")
    assert uninstall(code, "local") == []
    assert config(git, code) == {"filter.coral.process": "mine", "filter.coral.required": "true"}


def test_linked_worktrees_share_the_settings(git: Git, code: Path, tmp_path: Path) -> None:
    """The file is that of the common git folder, from wherever it is written."""
    git(code, "commit", "-q", "--allow-empty", "-m", "x")
    git(code, "worktree", "add", "-q", str(tmp_path / "linked"))
    install(tmp_path / "linked", PROGRAM, "local")
    assert config(git, code) == KEYS and installed_program(code) == PROGRAM
    before = (code / ".git/config").read_text()
    assert "git-filter" in before
    uninstall(tmp_path / "linked", "local")
    assert ".coral" not in git(code, "config", "--list")


def test_global_settings_hold_everywhere(git: Git, code: Path, tmp_path: Path) -> None:
    """--global writes the user's own file, also outside of a repository, and touches no repository."""
    (tmp_path / "home").mkdir()
    before = (code / ".git/config").read_bytes()
    file = tmp_path / "home/.gitconfig"
    file.write_text("[user]\n\tname = x\n")
    install(tmp_path, PROGRAM, "global")
    assert config(git, tmp_path, "global") == KEYS
    assert installed_program(code) == PROGRAM and (code / ".git/config").read_bytes() == before
    uninstall(tmp_path, "global")
    assert file.read_text() == "[user]\n\tname = x\n"


def test_local_settings_need_a_repository(git: Git, tmp_path: Path) -> None:
    """Outside of one, git says so."""
    with pytest.raises(GitCommandError):
        install(tmp_path, PROGRAM, "local")


def test_a_file_that_is_locked_is_not_changed(git: Git, code: Path) -> None:
    """What git refuses to write is an error that says what git said."""
    (code / ".git/config.lock").touch()
    with pytest.raises(GitCommandError, match="lock"):
        install(code, PROGRAM, "local")
