"""``coral fsck``: whether everything that was committed is still there."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, json_option, print_json, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, pass_session
from coral.errors import CorruptionError, UsageError

if TYPE_CHECKING:
    from coral.experiments.local.check import DamagedRun
    from coral.verbs.care.fsck import Checked, Damage

REPAIRED = 9

_DAMAGED = "copy .coral somewhere safe before anything else; all else is as it was"
_MISSING = "'coral pull' brings what a remote has"
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@click.command()
@click.option(
    "--read-data",
    metavar="[SHARE]",
    is_flag=False,
    flag_value="100%",
    help="Read and verify every byte, too; with =10% a tenth, another one each time.",
)
@click.option("--git", is_flag=True, help="Check what the git repository around this one reaches, too.")
@click.option("--repair", is_flag=True, help="Bring back what is lost, from wherever it is to be had.")
@json_option
@pass_session
def command(session: Session, read_data: str | None, git: bool, repair: bool, as_json: bool) -> None:
    """Check every commit that a branch, a tag or HEAD reaches, and every run with what it names, deleted ones too.

    Without --read-data only that everything is there: commits, manifests and chunks. Exits with 5 when something is
    damaged, and names the commits, files, tensors and experiments that it hurts. With --git also every manifest that a
    branch, a stash, a reflog, an index or a worktree of the git repository reaches.

    With --repair damaged indexes are made anew, and lost chunks come from other packs, the trash, the remotes and the
    files of the project; damaged packs go into .coral/quarantine, and nothing is removed. Exits with 9 when all that
    was damaged is repaired.

    \b
    Examples:
      coral fsck
      coral fsck --read-data=10%
      coral fsck --read-data --repair
      coral fsck --git
    """
    from coral.experiments.local.check import damaged_runs
    from coral.verbs.runs import run_ids

    repo, share = session.open(), _share(read_data)
    with progress_bar("checking", None, quiet=session.quiet) as progress:
        checked = repo.maintenance.fsck(read_data=share, git=git, repair=repair, progress=progress)
        lost = list(damaged_runs(repo))
    if as_json:
        print_json(asdict(checked) | {"damaged_runs": [one._asdict() for one in lost]})
    else:
        _describe(session, checked, lost)
        read = f", {size(checked.nbytes)} read and verified" if share else ""
        counts = f"commits {checked.commits}, manifests {checked.manifests}, tensors {checked.tensors}"
        session.say(f"{counts}, runs {len(run_ids(repo.folder))}{read}")
    if checked.damage or lost:
        raise CorruptionError(
            f"the repository is damaged in {count(len(checked.damage) + len(lost), 'place')}",
            hint=_DAMAGED if lost or not all(found.in_git for found in checked.damage) else _MISSING,
        )
    if checked.repaired:
        raise click.exceptions.Exit(REPAIRED)


def _share(text: str | None) -> float:
    if text is None:
        return False
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"{text!r} is no share of all data", hint="such as 10%") from None


def _describe(session: Session, checked: Checked, lost: list[DamagedRun]) -> None:
    for found in checked.damage:
        runs = f" (experiments: {', '.join(found.runs)})" if found.runs else ""
        click.echo(f"damaged: {_where(found)}: {found.message}{runs}")
    for one in lost:
        click.echo(f"damaged: run {one.experiment_id}: {one.message}")
    _describe_repair(session, checked)


def _describe_repair(session: Session, checked: Checked) -> None:
    if not checked.repaired:
        if checked.damaged_packs and not checked.damage:
            session.say(f"damaged packs, of which all is elsewhere as well: {', '.join(checked.damaged_packs)}")
            session.advise("'coral fsck --read-data --repair' puts them aside")
        return
    for source, chunks in checked.repaired.chunks.items():
        session.say(f"repaired: {count(chunks, 'chunk')} from {source}")
    for pack in checked.repaired.indexes:
        session.say(f"repaired: the index of {pack}")
    for pack in checked.repaired.quarantined:
        session.say(f"put aside: {pack}")


def _where(found: Damage) -> str:
    holder = found.commit[:10] if _HASH.fullmatch(found.commit) else found.commit
    return " ".join(filter(None, ("git" if found.in_git else "", holder, found.part, found.tensor)))
