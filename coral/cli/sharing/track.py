"""``coral track``: have git keep files by coral."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.look.output import printable
from coral.cli.session import Session, pass_session
from coral.cli.sharing.inside_git import here, print_files, say_installed

if TYPE_CHECKING:
    from coral.git.surroundings import Surroundings


@click.command()
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@pass_session
def command(session: Session, patterns: tuple[str, ...]) -> None:
    """Have git keep the files that match PATTERN by coral, by a line in this folder's .gitattributes.

    Quote PATTERN, or the shell puts the files of this moment in its place; one that begins with a dash goes after '--'.
    Where coral is not installed yet in the git repository, it is.

    \b
    Examples:
      coral track '*.safetensors'
      coral track 'checkpoints/**' '*.pt'
      git add .gitattributes
    """
    from coral.git.attributes import normal
    from coral.verbs.inside_git.track import track

    place = here()
    for pattern in patterns:
        normal(pattern)  # a pattern that will not do is found before anything is installed
    _install_where_missing(session, place)
    done = track(place, patterns)
    for pattern in dict.fromkeys(map(normal, patterns)):
        state = "tracking" if pattern in done.changed else "already tracking"
        session.say(f"{state} {printable(pattern)}")
    if not session.quiet:
        title = "These are in git whole, from before:"
        print_files(title, '"git add --renormalize FILE..." to keep them by coral', place, done.stale)
    if done.changed:
        session.advise("commit the patterns too: git add .gitattributes")


def _install_where_missing(session: Session, place: Surroundings) -> None:
    from coral.verbs.inside_git.install import install, is_configured, is_installed

    if not is_installed(place):
        say_installed(session, place, install(place, session.program, configure=not is_configured(place)))
