"""The frame around the commands: help, exit codes, quiet, colours and completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import Result

from coral.cli import main
from coral.cli.session import Session

Call = Callable[..., Result]
Write = Callable[..., bytes]


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


assert isinstance(main, click.Group)


@pytest.mark.parametrize("path", list(leaves(main)), ids=" ".join)
def test_every_command_has_an_example_and_fits_80_columns(path: tuple[str, ...], call: Call) -> None:
    """Help names an example that starts as the user would type it, and no line of it is cut by a terminal."""
    text = call(*path, "-h").stdout
    assert f"coral {' '.join(path)}" in text.partition("Example")[2]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("group", [[], ["exp"]], ids=["coral", "exp"])
def test_a_group_alone_shows_its_help(group: list[str], call: Call) -> None:
    """As git does: the help itself, not as an error, and not as success."""
    assert call(*group, code=2).stderr.startswith(f"Usage: {' '.join(['coral', *group])} [OPTIONS]")


def test_the_top_explains_exit_codes(call: Call) -> None:
    """The codes a script may meet are in `coral --help`, which fits 80 columns."""
    text = call("--help").stdout
    assert "Exit codes" in text and "CORAL_RUN" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["comit"], "did you mean commit"),
        (["exp", "strat", "x"], "did you mean start"),
        (["log", "--onelin"], "coral log --help"),
        (["--nope"], "coral --help"),
        (["log", "-n", "many"], "many"),
        (["commit", "-m"], "coral commit --help"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(project: Path, call: Call, arguments: list[str], words: str) -> None:
    """A slip of the keyboard is one line and a hint, exit code 2."""
    errors = call(*arguments, code=2).stderr
    assert errors.startswith("error: ") and words in errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (ZeroDivisionError("oops"), 70), (PermissionError(13, "Permission denied", "x"), 8)],
    ids=["interrupt", "bug", "disk"],
)
def test_what_nobody_expected_has_its_code(
    project: Path, call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """An interrupt, a bug and the operating system's refusal are told apart; only a bug shows a traceback."""

    def fail(session: Session) -> None:
        raise error

    monkeypatch.setattr(Session, "open", fail)
    errors = call("log", code=code).stderr
    assert ("Traceback" in errors) == ("bug in coral" in errors) == (code == 70)


def test_quiet_says_nothing(project: Path, call: Call, write: Write) -> None:
    """-q leaves only what was asked for."""
    write()
    assert call("-q", "add", ".").output == ""
    assert call("-q", "commit", "-m", "one").output == ""
    assert call("-q", "checkout", "HEAD").output == ""
    assert "one" in call("-q", "log").output


def test_pipes_get_no_colours(history: list[str], call: Call) -> None:
    """What does not go to a terminal has no escape sequences."""
    for command in ("log", "status", "branch", "show", "diff", "ls", "reflog"):
        assert "\x1b" not in call(command).output


def test_refs_files_and_commands_complete(history: list[str], call: Call) -> None:
    """The shell completes commands, and refs and files of the repository."""

    def complete(*words: str) -> list[str]:
        env = {
            "_CORAL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("coral", *words)),
            "COMP_CWORD": str(len(words)),
        }
        return [line.partition(",")[2] for line in call(env=env).stdout.splitlines()]

    assert complete("che") == ["checkout"]
    assert complete("exp", "l") == ["log", "list", "lineage"]
    assert complete("checkout", "v") == ["v2"]
    assert complete("log", "--path", "mo") == ["model.safetensors"]
    assert complete("switch", "m") == ["main"]
