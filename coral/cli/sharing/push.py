"""``coral push``: send tensors to a remote."""

from __future__ import annotations

from dataclasses import asdict

import click

from coral.cli.look.output import count, json_option, print_json, size
from coral.cli.look.progress import progress_bar
from coral.cli.remotes import remote_for
from coral.cli.session import Session, pass_session


@click.command()
@click.argument("remote", required=False)
@json_option
@pass_session
def command(session: Session, remote: str | None, as_json: bool) -> None:
    """Send tensors to REMOTE, or to 'origin', or to the only remote: those that it lacks.

    That is what the commits leading to git's HEAD name, and what the tips of coral's own branches, its tags and its
    HEAD hold; and the artifacts of runs, where 'coral fsck --repair' finds them, unless the run was deleted. 'git
    push' sends by itself what it pushes.

    \b
    Examples:
      coral push
      coral push backup
    """
    repo = session.open()
    name = remote_for(repo, remote)
    with progress_bar("sending", None, quiet=session.quiet) as progress:
        sent = repo.remotes.push(name, progress=progress)
    if as_json:
        print_json({"remote": name, **asdict(sent)})
    elif sent.chunks:
        session.say(f"sent {count(sent.chunks, 'chunk')}, {size(sent.nbytes)} to '{name}'")
    else:
        session.say(f"'{name}' has everything already")
