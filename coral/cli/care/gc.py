"""``coral gc``: making room, by collecting what nothing names any more."""

from __future__ import annotations

import re
from dataclasses import asdict

import click

from coral.cli.look.output import count, json_option, print_json, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, pass_session
from coral.errors import UsageError

_DURATION = re.compile(r"(\d{1,9})([smhdw]?)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60, "w": 7 * 24 * 60 * 60, "": 24 * 60 * 60}


@click.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--grace", metavar="TIME", default="14d", show_default=True, help="Keep what is younger: 12h, 14d, 4w.")
@click.option("--prune-now", is_flag=True, help="Keep nothing for a grace period, and empty the trash.")
@json_option
@pass_session
def command(session: Session, dry_run: bool, grace: str, prune_now: bool, as_json: bool) -> None:
    """Collect tensors that nothing names any more.

    Kept is what branches, tags and reflogs lead to, what is staged, what runs name, the deleted ones that 'coral exp
    restore' brings back included, what 'coral undo' can take back, and what the git repositories reach that rely on it,
    their indexes and stashes included: the one around the project, and those that .coral knows of. The rest goes into
    .coral/trash, from where 'coral undo' brings it back, and is removed after the grace period. When anything that
    names tensors cannot be read or found, nothing is collected.

    With --prune-now nothing waits: not while git is at work on models. Deleted runs stay. git objects of the history
    are left to 'git -C .coral gc'.

    \b
    Examples:
      coral gc --dry-run
      coral gc --grace 3d
      coral gc --prune-now
    """
    repo = session.open()
    with progress_bar("collecting", None, quiet=session.quiet) as progress:
        done = repo.maintenance.gc(grace=_seconds(grace), prune_now=prune_now, dry_run=dry_run, progress=progress)
    if as_json:
        print_json(asdict(done))
        return
    would = "would be " if dry_run else ""
    if done.packs:
        session.say(
            f"{size(done.nbytes)} {would}collected: {count(done.chunks, 'chunk')} of {count(done.packs, 'pack')}, "
            f"{done.rewritten} of them written anew"
        )
    else:
        session.say("nothing to collect")
    if done.emptied_packs:
        session.say(f"{size(done.emptied_bytes)} {would}removed from the trash")
    if done.trash is not None:
        session.say("it is in the trash for now; 'coral undo' brings it back, 'coral gc --prune-now' makes the room")


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a length of time", hint="such as 12h, 14d or 4w")
    return float(int(found[1]) * _SECONDS[found[2]])
