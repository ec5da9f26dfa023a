"""``coral install``: set coral up in a git repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import printable
from coral.cli.session import Session, pass_session
from coral.cli.sharing.inside_git import global_option, here, is_global, local_option, say_installed, say_settings

if TYPE_CHECKING:
    from coral.git.surroundings import Surroundings


@click.command()
@local_option
@global_option
@click.option("--force", is_flag=True, help="Overwrite other values of the same settings.")
@pass_session
def command(session: Session, local: bool, everywhere: bool, force: bool) -> None:
    """Set coral up in the git repository of this folder: its own repository, git's settings, and the pre-push hook.

    The remotes that the project's .coralconfig names are taken over, and shown. A hook that is there already goes on
    running, before coral's. With --global git's settings alone are written, for
    every repository of this user; 'coral track' or 'coral install' does the rest in each of them.

    \b
    Examples:
      coral install
      coral install --global
    """
    if is_global(local, everywhere):
        _install_globally(session, force)
        return
    from coral.verbs.inside_git.install import install

    place = here()
    done = install(place, session.program, force=force)
    say_installed(session, place, done)
    adopted = _adopt(session, place)
    if not (done.changed or adopted):
        session.say("coral is installed in this repository already")


def _adopt(session: Session, place: Surroundings) -> bool:
    """Take over the remotes that the project's .coralconfig offers, and say so; whether there were any."""
    from coral.verbs import layout
    from coral.verbs.sharing.remotes import adopt_remotes

    adopted = adopt_remotes(place.top, layout.open_folder(place.top))
    for remote in adopted:
        session.say(f"tensors are shared with {printable(remote.url)}, as .coralconfig says: the remote {remote.name}")
    if adopted:
        session.advise(f"'coral remote remove {adopted[0].name} --private' takes that back")
    return bool(adopted)


def _install_globally(session: Session, force: bool) -> None:
    from coral.git import settings

    overwritten = settings.conflicts(Path.cwd(), session.program, "global") if force else []
    changed = settings.install(Path.cwd(), session.program, "global", force=force)
    say_settings(session, changed, "wrote", "user")
    for setting in overwritten:
        session.say(f"overwrote {setting}")
    if not changed:
        session.say("coral is installed for this user already")
    session.advise("'coral track', or 'coral install', sets up the rest in each repository")
