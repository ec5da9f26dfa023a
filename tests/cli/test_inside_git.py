"""Coral inside the user's git repository: track, install and their like, from the command line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

import coral
from coral.cli import main
from tests.repository.helpers import git

Call = Callable[..., Result]
Ask = Callable[..., Any]

ROOT = Path(coral.__file__).parents[1]
SCRIPT = "#!{python}\nimport sys\nfrom coral.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
PROCESS = "filter.coral.process"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository, which is the working folder, and a home folder without settings."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    monkeypatch.chdir(folder)
    return folder


def console_script(path: Path, python: str = sys.executable) -> Path:
    """The script that pip makes for an entry point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPT.format(python=python))
    path.chmod(0o755)
    return path


def run(*command: str | Path, code: int = 0, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """A program, with coral to be found and this environment besides."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


# -- track, untrack, tracked


def test_track_installs_where_it_must_and_says_so(code: Path, call: Call) -> None:
    """The first time sets all up; the second time is silent about it."""
    text = call("track", "*.safetensors").stdout
    for words in ("Made a coral repository", "git's settings of this repository", "wrote the hook", "tracking *.saf"):
        assert words in text
    assert (code / ".coral/config.toml").exists() and (code / ".git/hooks/pre-push").exists()
    assert git(code, "config", "--local", PROCESS).endswith(" -m coral git-filter\n")
    assert (code / ".gitattributes").read_text() == "*.safetensors filter=coral diff=coral merge=coral -text\n"
    assert call("track", "*.safetensors").output == "already tracking *.safetensors\n"
    assert call("install").stdout == "coral is installed in this repository already\n"


def test_track_leaves_settings_of_the_user_to_the_user(code: Path, call: Call) -> None:
    """Where git is set up for the user already, only what belongs to the repository is made."""
    call("install", "--global")
    assert not (code / ".coral").exists() and not (code / ".git/hooks/pre-push").exists()
    text = call("track", "*.pt").stdout
    assert "wrote the hook" in text and "git's settings" not in text
    assert "coral" not in git(code, "config", "--local", "--list")
    assert call("track", "*.bin").stdout == "tracking *.bin\n"


def test_track_sets_up_again_what_is_gone(code: Path, call: Call, tmp_path: Path) -> None:
    """A hook that was removed, or a program that is not there any more, is as good as not installed."""
    call("track", "*.pt")
    (code / ".git/hooks/pre-push").unlink()
    assert "wrote the hook" in call("track", "*.pt").stdout
    git(code, "config", PROCESS, f"{tmp_path}/gone/coral git-filter")
    assert f"wrote git's settings of this repository: {PROCESS}" in call("track", "*.pt").stdout
    shutil.rmtree(code / ".coral")
    assert "Made a coral repository" in call("track", "*.pt").stdout


def test_track_leaves_an_installation_as_it_is(code: Path, call: Call, tmp_path: Path) -> None:
    """One coral does not replace another one that is there: that is what 'coral install' is for."""
    run(console_script(tmp_path / "bin/coral"), "install")
    before = (code / ".git/config").read_bytes(), (code / ".git/hooks/pre-push").read_bytes()
    assert call("track", "*.pt").stdout == "tracking *.pt\n"
    assert ((code / ".git/config").read_bytes(), (code / ".git/hooks/pre-push").read_bytes()) == before
    assert "wrote the hook" in call("install").stdout


def test_track_names_what_must_be_added_again(code: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that git has whole already are listed as seen from here, with the command that converts them."""
    (code / "sub").mkdir()
    (code / "sub" / "model one.pt").write_bytes(b"weights")
    git(code, "add", ".")
    monkeypatch.chdir(code / "sub")
    done = call("track", "*.pt")
    assert '"git add --renormalize FILE..."' in done.stdout and "\n    model one.pt\n" in done.stdout
    assert "git add .gitattributes" in done.stderr
    assert call("-q", "track", "*.bin").output == ""


def test_patterns_that_look_like_options(code: Path, call: Call) -> None:
    """After '--' anything is a pattern."""
    call("track", "--", "-model.pt", "--global")
    assert (code / ".gitattributes").read_text().split("\n")[1].startswith("--global filter=coral")
    assert "no longer tracking -model.pt" in call("untrack", "--", "-model.pt").stdout


def test_a_wrong_pattern_installs_nothing(code: Path, call: Call) -> None:
    """It is found before anything is set up."""
    assert "models/**" in call("track", "*.pt", "models/", code=2).stderr
    assert not (code / ".coral").exists() and "coral" not in git(code, "config", "--list")
    call("track", code=2)
    call("untrack", "*.pt", code=3)


def test_tracked_lists_patterns_and_files(code: Path, call: Call, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """For people as seen from here, for programs from the top; odd names break neither."""
    assert "coral track '*.safetensors'" in call("tracked").stdout
    call("track", "*.pt")
    for name in ("a.pt", "two\nlines.pt", os.fsdecode(b"\xff.pt"), "other"):
        (code / name).touch()
    blob = git(code, "hash-object", "-w", "other").strip()  # added without the filter
    for name in ("a.pt", "two\nlines.pt", os.fsdecode(b"\xff.pt"), "other"):
        git(code, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
    (code / "sub").mkdir()
    monkeypatch.chdir(code / "sub")
    text = call("tracked").stdout
    assert "    *.pt (../.gitattributes)\n" in text and "\n    ../a.pt\n" in text and "two\\nlines.pt" in text
    assert ask("tracked") == {
        "patterns": [{"pattern": "*.pt", "source": ".gitattributes"}],
        "files": ["a.pt", "two\nlines.pt", "\ufffd.pt"],
    }


# -- install, uninstall


def test_install_and_uninstall(code: Path, call: Call) -> None:
    """What is put in is taken out, the weights stay, and the user is told what is left."""
    before = (code / ".git/config").read_bytes()
    call("track", "*.pt")
    done = call("uninstall")
    assert "removed git's settings of this repository" in done.stdout and "removed the hook" in done.stdout
    assert "still tracked" in done.stderr
    assert (code / ".git/config").read_bytes() == before and (code / ".coral/config.toml").exists()
    call("untrack", "*.pt")
    assert call("uninstall").output == "coral is not installed in this repository\n"


def test_the_users_hook_is_kept_and_said(code: Path, call: Call) -> None:
    """The hook that was there is named; one that was edited since is left, and that is said."""
    hook = code / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ncase $(basename "$0") in pre-push) ;; esac\n')
    hook.chmod(0o755)
    done = call("install")
    assert "the hook that was there is pre-push.before-coral now, and runs first" in done.stdout
    assert "its own name" in done.stderr
    assert "restored the hook" in call("uninstall").stdout and "basename" in hook.read_text()
    call("install")
    hook.write_text(hook.read_text() + "# mine\n")
    assert "was edited" in call("install").stderr
    assert "was edited" in call("uninstall").stderr and "# mine" in hook.read_text()


def test_other_settings_are_a_conflict(code: Path, call: Call) -> None:
    """They are named, and overwritten by --force alone, which names them as well."""
    git(code, "config", "diff.coral.command", "mine")
    error = call("install", code=4).stderr
    assert "diff.coral.command = mine" in error and "--force" in error
    call("track", "*.pt", code=4)
    assert not (code / ".gitattributes").exists()
    assert "overwrote diff.coral.command = mine" in call("install", "--force").stdout


def test_global_needs_no_repository(code: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--global works anywhere; the rest says that there is no git repository."""
    monkeypatch.chdir(tmp_path)
    for command in (["install"], ["uninstall"], ["track", "*.pt"], ["untrack", "*.pt"], ["tracked"]):
        error = call(*command, code=3).stderr
        assert "is in no git repository" in error and "git init" in error
    file = tmp_path / "home/.gitconfig"
    file.write_text("[user]\n\tname = x\n")
    assert "wrote git's settings of this user" in call("install", "--global").stdout
    assert call("install", "--global").stdout == "coral is installed for this user already\n"
    assert "removed git's settings of this user" in call("uninstall", "--global").stdout
    assert file.read_text() == "[user]\n\tname = x\n"
    assert call("uninstall", "--global").stdout == "coral is not installed for this user\n"
    call("install", "--global", "--local", code=2)


def test_uninstall_tells_of_the_users_settings(code: Path, call: Call) -> None:
    """Taken out of the repository, coral may still be there for the user."""
    call("install", "--global")
    call("install")
    assert "coral uninstall --global" in call("uninstall").stderr


@pytest.mark.parametrize("command", [["install"], ["uninstall"], ["track", "*.pt"], ["tracked"]], ids=" ".join)
def test_where_git_checks_nothing_out(
    code: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """A bare repository, and git's own folder, are refused for what they are."""
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    for folder, words in ((tmp_path / "bare.git", "bare repository"), (code / ".git", "git's own folder")):
        monkeypatch.chdir(folder)
        assert words in call(*command, code=2).stderr


def test_a_linked_worktree_and_a_subfolder_set_up_the_repository(code: Path, call: Call, tmp_path: Path) -> None:
    """.coral lies beside the main worktree's .git; the patterns are those of the folder one is in."""
    git(code, "commit", "-q", "--allow-empty", "-m", "x")
    git(code, "worktree", "add", "-q", str(tmp_path / "linked"))
    (tmp_path / "linked/sub").mkdir()
    call("-C", str(tmp_path / "linked/sub"), "track", "*.pt")
    assert (code / ".coral").exists() and (code / ".git/hooks/pre-push").exists()
    assert (tmp_path / "linked/sub/.gitattributes").exists() and not (code / ".gitattributes").exists()


# -- the program's own path


@pytest.mark.parametrize("name", ["coral", "git-coral"])
def test_the_scripts_own_path_is_written(code: Path, tmp_path: Path, name: str) -> None:
    """The absolute path of the script that runs, however it was called, also with -C; links to it are kept."""
    script = console_script(tmp_path / "my bin" / name)
    link = tmp_path / "elsewhere" / name
    link.parent.mkdir()
    link.symlink_to(script)
    calls: list[tuple[str, Path, Path, Path]] = [
        (str(script), script, code, Path(".")),
        (f"../my bin/{name}", script, code, Path(".")),
        (f"./{name}", script, script.parent, code),
        (str(link), link, code, Path(".")),
    ]
    for called, expected, cwd, folder in calls:
        run(called, "-C", str(folder), "install", cwd=cwd)
        assert shlex.split(git(code, "config", PROCESS)) == [str(expected), "git-filter"]
    run("sh", "-c", f"{name} install", PATH=f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    assert shlex.split(git(code, "config", PROCESS)) == [str(script), "git-filter"]


def test_a_script_that_nobody_can_start_is_not_written(code: Path, tmp_path: Path) -> None:
    """One of another name, and one that Python was handed, stand for the module."""
    renamed, plain = console_script(tmp_path / "bin/my-coral"), console_script(tmp_path / "bin/coral")
    plain.chmod(0o644)
    for command in ([str(renamed)], [sys.executable, str(plain)]):
        run(*command, "install")
        assert shlex.split(git(code, "config", PROCESS))[1:] == ["-P", "-m", "coral", "git-filter"]
        run(sys.executable, "-m", "coral", "uninstall")


def test_a_module_is_called_by_its_python(code: Path) -> None:
    """`python -m coral` is written as such, and a folder called coral in the user's project does not get in its way."""
    run(sys.executable, "-m", "coral", "install", cwd=code)
    value = git(code, "config", PROCESS).strip()
    assert value == shlex.join([sys.executable, "-P", "-m", "coral", "git-filter"])
    (code / "coral").mkdir()
    (code / "coral/__init__.py").write_text("raise SystemExit('the wrong one')\n")
    version = run("sh", "-c", f"{value.removesuffix('git-filter')} --version", cwd=code)
    assert version.stdout == f"coral, version {coral.__version__}\n"


def test_an_environment_that_is_not_activated(code: Path, tmp_path: Path) -> None:
    """What is written starts the coral of its own virtual environment, with nothing of it on the PATH."""
    home = tmp_path / "my venv"
    venv.create(home, symlinks=True)
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "coral.pth").write_text("\n".join([str(ROOT), *site.getsitepackages()]))
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "GIT_CONFIG_NOSYSTEM": "1"}
    python = home / "bin/python"
    script = home / "bin/coral"
    script.write_text(f'#!/bin/sh\n"exec" "{python}" "$0" "$@"\n' + SCRIPT.split("\n", 1)[1])  # as pip does for a blank
    script.chmod(0o755)
    for command in ([str(script)], [str(python), "-m", "coral"]):
        subprocess.run([*command, "install"], cwd=code, env=bare, check=True, capture_output=True)
        value = git(code, "config", PROCESS).strip()
        assert str(home) in value
        version = ["sh", "-c", f"{value.removesuffix('git-filter')} --version"]
        done = subprocess.run(version, env=bare, cwd=code, capture_output=True, text=True, check=True)
        assert done.stdout == f"coral, version {coral.__version__}\n"


def test_git_coral_reaches_every_command(code: Path, tmp_path: Path) -> None:
    """git finds git-coral on the PATH: its help, its commands, their errors."""
    script = console_script(tmp_path / "bin/git-coral")
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    text = run("git", "coral", "-h", PATH=path).stdout
    assert text.startswith("Usage: git coral ")
    assert isinstance(main, click.Group)
    for name in main.list_commands(click.Context(main)):
        assert f"\n  {name} " in text
    assert run("git", "coral", "track", "-h", PATH=path).stdout.startswith("Usage: git coral track ")
    assert "'trak' is not a git coral command" in run("git", "coral", "trak", PATH=path, code=2).stderr
    run("git", "coral", "track", "*.pt", PATH=path)
    assert json.loads(run("git", "-C", ".", "coral", "tracked", "--json", PATH=path).stdout)["files"] == []


def test_these_commands_start_light(code: Path) -> None:
    """They load neither a framework nor numpy: hooks and drivers are set up in a moment."""
    script = (
        "import sys\nsys.argv = ['coral', *sys.argv[1:]]\nfrom coral.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["install"], ["track", "*.pt"], ["tracked"], ["untrack", "*.pt"], ["uninstall"]):
        assert run(sys.executable, "-c", script, *arguments).stderr.splitlines()[-1] == "[]"
