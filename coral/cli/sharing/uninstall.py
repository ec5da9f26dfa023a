"""``coral uninstall``: take coral out of a git repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import printable
from coral.cli.session import Session, pass_session
from coral.cli.sharing.inside_git import global_option, here, is_global, local_option, say_settings
from coral.errors import NotFoundError, RepositoryNotFoundError

if TYPE_CHECKING:
    from coral.git.surroundings import Surroundings
    from coral.verbs.inside_git.install import Uninstalled


@click.command()
@local_option
@global_option
@pass_session
def command(session: Session, local: bool, everywhere: bool) -> None:
    """Take out what 'coral install' put in: git's settings, and the hook; the hook that was there before comes back.

    The weights in .coral stay, and so do the patterns in .gitattributes ('coral untrack' removes those). From then on
    'coral gc' keeps what this repository needs only where it finds it by going upwards; and what was needed by one that
    is no longer where it was is not kept.

    \b
    Examples:
      coral uninstall
      coral uninstall --global
    """
    if is_global(local, everywhere):
        from coral.git import settings

        removed = settings.uninstall(Path.cwd(), "global")
        say_settings(session, removed, "removed", "user")
        if not removed:
            session.say("coral is not installed for this user")
        return
    from coral.verbs.inside_git.install import uninstall

    try:
        place = here()
    except NotFoundError:
        if not _say_forgotten(session, _forget()):
            raise
        return
    done = uninstall(place)
    say_settings(session, done.settings, "removed", "repository")
    _say_hook(session, place, done)
    if not _say_forgotten(session, done.forgotten) and not done.settings and done.change == "unchanged":
        session.say("coral is not installed in this repository")
    _advise(session, place)


def _forget() -> list[Path]:
    """Have the project of this folder forget git repositories that are no longer there; returns those."""
    from coral.verbs import layout
    from coral.verbs.relying import forget

    try:
        return forget(layout.open_folder(layout.discover(Path.cwd())))
    except RepositoryNotFoundError:
        return []


def _say_forgotten(session: Session, paths: Sequence[Path]) -> bool:
    for path in paths:
        session.say(f"forgot the git repository {printable(str(path))}, which is not there")
    return bool(paths)


def _say_hook(session: Session, place: Surroundings, done: Uninstalled) -> None:
    if done.change in ("removed", "restored"):
        session.say(f"{done.change} the hook {done.hook}")
        if not place.owns_hooks:
            session.advise(f"other repositories with hooks in {place.hooks} push without their tensors from now on")
    elif done.change == "edited":
        session.advise(f"{done.hook} was edited since coral wrote it, and is left as it is: take coral out by hand")
    elif done.change == "foreign":
        session.advise(f"{done.hook} is not coral's any more: it is left as it is, and so is pre-push.before-coral")


def _advise(session: Session, place: Surroundings) -> None:
    from coral.git.settings import installed_program
    from coral.verbs.inside_git.track import tracked

    if installed_program(place.top) is not None:
        session.advise("coral is still installed for this user, here too: 'coral uninstall --global'")
    elif tracked(place).patterns:
        session.advise("files are still tracked ('coral tracked'): what git checks out of them is coral's text")
