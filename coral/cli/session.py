"""What one call of the command line knows: where it is, who calls, which run is meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.terminal import visible
from coral.errors import PartNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.repository import Repository


@dataclass(frozen=True, slots=True)
class Session:
    """One call of the command line.

    Attributes:
        quiet: print only what was asked for, and errors.
        started_as: the absolute path of the script that runs.
    """

    quiet: bool = False
    started_as: str = ""

    def open(self) -> Repository:
        """The repository of the working folder. Raises RepositoryNotFoundError."""
        from coral.repository import Repository

        return Repository.discover(".", shell_staging=True)

    def say(self, text: str) -> None:
        """Tell the user what was done."""
        if not self.quiet:
            click.echo(text)

    def advise(self, text: str) -> None:
        """Tell the user what could be done next, apart from the output."""
        if not self.quiet:
            click.secho("hint: ", fg="cyan", nl=False, err=True)
            click.echo(visible(text), err=True)

    @property
    def program(self) -> list[str]:
        """The words that start this very program from anywhere, in an environment that is not activated."""
        from coral.git.settings import MODULE, NAMES

        if os.path.basename(self.started_as) in NAMES and os.access(self.started_as, os.X_OK):
            return [self.started_as]
        return [sys.executable, *MODULE]

    @property
    def run(self) -> str | None:
        """The run that the environment names."""
        return os.environ.get("CORAL_RUN") or None


pass_session = click.make_pass_decorator(Session, ensure=True)


def author_for(repo: Repository, given: str | None) -> str | None:
    """Who commits: the option, the environment, whom the library knows; None for nobody known.

    Outside of a git repository, where the library asks nobody, git says whom the user's own settings name.
    """
    known = given or os.environ.get("CORAL_AUTHOR") or repo.author
    if known:
        return known
    from coral.git.enclosing import identity

    return identity(repo.path)


def parts_named(repo: Repository, paths: Sequence[str], known: Collection[str]) -> list[str]:
    """The parts that paths mean: files as the working folder names them, folders with all beneath, or part names.

    Raises:
        PartNotFoundError: a path that means no part of ``known``.
        UsageError: an empty path, which a shell makes of a variable that is not set.
    """
    found: dict[str, None] = {}
    for path in paths:
        names = parts_at(repo, check_path(path), known)
        if not names:
            from difflib import get_close_matches

            near = get_close_matches(path, known, n=3) or sorted(known)[:5]
            raise PartNotFoundError(
                f"{path!r} is no file of this commit", hint=f"did you mean {' or '.join(near)}?" if near else None
            )
        found.update(dict.fromkeys(names))
    return list(found)


def check_path(path: str) -> str:
    """Raise UsageError for an empty path, which would mean this whole folder."""
    if not path:
        raise UsageError("a path is empty", hint="name a file, or '.' for this folder")
    return path


def parts_at(repo: Repository, path: str, known: Collection[str]) -> list[str]:
    """The parts of ``known`` that one path means; none when it means none of them."""
    try:
        name = repo.worktree.part_name(Path(path))
    except UsageError:
        name = path
    for candidate in (name, path):
        if candidate in known:
            return [candidate]
    if name == ".":
        return sorted(known)
    return sorted(other for other in known if other.startswith(f"{name}/"))
