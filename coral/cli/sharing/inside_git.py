"""What ``coral track``, ``install`` and their like share: the scope's options, and what they say."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import printable
from coral.errors import UsageError

if TYPE_CHECKING:
    from coral.cli.session import Session
    from coral.git.surroundings import Surroundings
    from coral.verbs.inside_git.install import Installed

local_option = click.option("--local", "local", is_flag=True, help="For this repository; the default.")
global_option = click.option("--global", "everywhere", is_flag=True, help="For all repositories of this user.")


def is_global(local: bool, everywhere: bool) -> bool:
    """Whether the user's own configuration is meant. Raises UsageError for both at once."""
    if local and everywhere:
        raise UsageError("--local and --global are two places", hint="give one of the two")
    return everywhere


def here() -> Surroundings:
    """The git worktree of the working folder. Raises NotFoundError, UsageError."""
    from coral.git.surroundings import surroundings_of

    return surroundings_of(Path.cwd())


def say_settings(session: Session, keys: Iterable[str], verb: str, whose: str) -> None:
    """Say which settings of git's were written or removed."""
    listed = ", ".join(keys)
    if listed:
        session.say(f"{verb} git's settings of this {whose}: {listed}")


def say_installed(session: Session, place: Surroundings, done: Installed) -> None:
    """Say what an installation changed, and what the user should know of the hook."""
    if done.created:
        session.say(f"Made a coral repository in {done.folder}")
    elif done.noted:
        session.say(f"noted in {printable(str(done.folder))} that this repository relies on it")
    say_settings(session, done.settings, "wrote", "repository")
    for setting in done.overwritten:
        session.say(f"overwrote {setting}")
    if done.change == "written":
        session.say(f"wrote the hook {printable(str(done.hook))}")
    if done.change == "written" and done.before is not None:
        session.say(f"the hook that was there is {done.before.name} now, and runs first")
        if done.renamed:
            session.advise(f"{done.before} seems to ask for its own name, which has changed: see that it still works")
    if done.change == "written" and not place.owns_hooks:
        session.advise(f"the hooks in {place.hooks} may be those of other repositories too; coral's does no harm there")
    if done.change == "edited":
        session.advise(f"{done.hook} was edited since coral wrote it, and is left as it is")


def print_files(title: str, use: str, place: Surroundings, paths: Iterable[str]) -> None:
    """Print files as seen from here, as git does, with what to do about them; nothing for none."""
    listed = [printable(os.path.relpath(place.top / path)) for path in paths]
    if listed:
        click.echo(f"{title}\n  (use {use})")
        for path in listed:
            click.echo(f"    {path}")
