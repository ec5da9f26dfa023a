"""``coral untrack``: have git keep files itself again."""

from __future__ import annotations

import click

from coral.cli.look.output import printable
from coral.cli.session import Session, pass_session
from coral.cli.sharing.inside_git import here, print_files


@click.command()
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@pass_session
def command(session: Session, patterns: tuple[str, ...]) -> None:
    """Have git keep the files that match PATTERN itself again: undo 'coral track' in this folder's .gitattributes.

    \b
    Examples:
      coral untrack '*.safetensors'
      git add --renormalize model.safetensors
    """
    from coral.verbs.inside_git.track import untrack

    place = here()
    done = untrack(place, patterns)
    for pattern in done.changed:
        session.say(f"no longer tracking {printable(pattern)}")
    if not session.quiet:
        title = "These are in git by coral, from before:"
        print_files(title, '"git add --renormalize FILE..." to keep them whole', place, done.stale)
