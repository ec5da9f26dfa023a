"""``coral commit``: record what is staged, or the files named."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from coral.cli.adding import Added, add, failure, find_files, say_added
from coral.cli.complete import complete_run
from coral.cli.look.commits import commit_data
from coral.cli.look.output import count, json_option, metrics_line, print_json, size
from coral.cli.look.timings import print_timings
from coral.cli.runs import named
from coral.cli.session import Session, author_for, pass_session
from coral.errors import ConflictError, NotFoundError, NothingToCommitError, UsageError

if TYPE_CHECKING:
    from coral.history import Commit
    from coral.repository import Repository

_TEMPLATE = """

# Why this commit? Lines that start with '#' are left out; an empty message gives up.
# On branch {branch}
#
# To be committed:
{changes}
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user said about the commit."""

    tags: tuple[str, ...]
    step: int | None
    metrics: Mapping[str, float] | None
    author: str | None
    allow_empty: bool
    run: str | None
    sign: bool = False


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH...]", type=click.Path(readable=False))
@click.option("-m", "--message", "messages", multiple=True, metavar="TEXT", help="Why; again for more paragraphs.")
@click.option("--tag", "tags", multiple=True, metavar="NAME", help="Tag the commit.")
@click.option("--step", type=int, metavar="N", help="The training step the weights are of.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Measured at this step.")
@click.option("--author", metavar="WHO", help="'Name <email>', if not you.")
@click.option("--allow-empty", is_flag=True, help="Commit even if nothing changed.")
@click.option("--run", metavar="RUN", shell_complete=complete_run, help="The run it came from, if not CORAL_RUN.")
@click.option("-S", "--sign", is_flag=True, help="Sign it with the key of git's user.signingkey.")
@click.option("--timings", is_flag=True, help="Show where the time went.")
@json_option
@pass_session
def command(
    session: Session,
    paths: tuple[str, ...],
    messages: tuple[str, ...],
    tags: tuple[str, ...],
    step: int | None,
    metrics: tuple[str, ...],
    author: str | None,
    allow_empty: bool,
    run: str | None,
    sign: bool,
    timings: bool,
    as_json: bool,
) -> None:
    """Record what is staged; PATHs are added first, all of them or none, as 'coral add' does it.

    Without -m the message is written in $VISUAL or $EDITOR. The commit is linked to the run that --run or CORAL_RUN
    names, or to the only one that 'coral exp start' left running on this branch.

    \b
    Examples:
      coral commit -m "first model" model.safetensors
      coral commit -m "epoch 3" --step 300 --metric val_loss=0.41
    """
    from coral.cli.values import parse_metrics

    started = time.process_time()
    repo = session.open()
    chosen = Options(tags, step, parse_metrics(metrics) or None, author, allow_empty, run, sign)
    repo.check_tags(tags)
    added = add(repo, session, find_files(repo, paths)) if paths else Added()
    if added.staged.failed:
        if as_json:
            print_json(added.data())
        raise failure(added.staged.failed, "nothing was committed")
    if not as_json:
        say_added(session, added)
    message = "\n\n".join(messages) if messages else _ask(repo, allow_empty=chosen.allow_empty)
    commit = _commit(repo, session, message, chosen)
    if as_json:
        spent = {"timings": repo.timings.steps} if timings and repo.timings is not None else {}
        print_json({"branch": repo.branch, "tags": list(chosen.tags), **commit_data(commit), **added.data(), **spent})
        return
    if not session.quiet:
        _describe(repo, commit)
    if timings and repo.timings is not None:
        print_timings(repo.timings, started=started)


def _commit(repo: Repository, session: Session, message: str, options: Options) -> Commit:
    with _linked(repo, session, options.run):
        return repo.commit(
            message,
            author=author_for(repo, options.author),
            tags=options.tags,
            allow_empty=options.allow_empty,
            step=options.step,
            metrics=options.metrics,
            sign=options.sign,
        )


def _linked(repo: Repository, session: Session, wanted: str | None) -> AbstractContextManager[object]:
    """A context in which commits are linked to the run that is meant, if one is."""
    run = named(session, wanted)
    from coral.verbs.runs import run_ids

    if run is None and not run_ids(repo.folder):
        return nullcontext()
    from coral.experiments import ExperimentTracker

    tracker = ExperimentTracker(repo)
    if run is None:
        running = [one for one in tracker.running() if one.owner == "shell" and one.branch == repo.branch]
        return tracker.attach(running[0].experiment_id) if len(running) == 1 else nullcontext()
    try:
        return tracker.attach(run)
    except (NotFoundError, ConflictError, UsageError) as error:
        if wanted is not None:
            raise
        # A variable left over in the shell must not keep anybody from committing.
        click.echo(f"warning: not linked to the run of CORAL_RUN: {error.message}", err=True)
        return nullcontext()


def _ask(repo: Repository, *, allow_empty: bool) -> str:
    """The message, from the user's editor."""
    status = repo.status()
    if not status.staged and not allow_empty:
        raise NothingToCommitError(
            "nothing is staged that differs from the last commit", hint="stage files: 'coral add'"
        )
    changes = [f"#   {change.kind}: {change.name}" for change in status.staged] or ["#   nothing"]
    text = click.edit(
        _TEMPLATE.format(branch=status.branch or "(detached)", changes="\n".join(changes)), require_save=False
    )
    lines = [line.rstrip() for line in (text or "").splitlines() if not line.startswith("#")]
    message = "\n".join(lines).strip()
    if not message:
        raise UsageError("no message, so nothing was committed", hint="say why with -m, or write it in the editor")
    return message


def _describe(repo: Repository, commit: Commit) -> None:
    details = repo.show(commit.commit_hash)
    where = repo.branch or "detached HEAD"
    root = "" if commit.parents else " (first commit)"
    click.echo(f"[{click.style(where, fg='green')}{root} {commit.short_hash}] {commit.subject}")
    tensors = len(details.diff.of_kind("added")) + len(details.diff.of_kind("changed"))
    parts = {change.part for change in details.diff.tensors} | set(details.diff.structure)
    changed = (
        f"{count(len(parts), 'file')} changed, {count(tensors, 'tensor')} with {size(details.diff.changed_bytes)} new"
    )
    click.echo(f" {changed}")
    if commit.run_id is not None:
        at = "" if commit.step is None else f" at step {commit.step}"
        click.echo(f" run {commit.run_id}{at} {metrics_line(commit.metrics)}".rstrip())
