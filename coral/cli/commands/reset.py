"""``coral reset``: unstage files, or point the branch at another commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_ref
from coral.cli.look.moves import move_data, print_files, print_kept
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, parts_named, pass_session
from coral.errors import PartNotFoundError, RefNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.repository import Repository
    from coral.verbs.worktree import CheckoutResult


@click.command()
@click.argument("what", nargs=-1, metavar="[REF | PATH...]", shell_complete=complete_ref)
@click.option("--hard", is_flag=True, help="Bring the files along, too.")
@click.option("-f", "--force", is_flag=True, help="With --hard: overwrite files even if no commit holds their bytes.")
@json_option
@pass_session
def command(session: Session, what: tuple[str, ...], hard: bool, force: bool, as_json: bool) -> None:
    """Forget what is staged; with PATHs only those; with REF point the branch there, too.

    The commits that the branch leaves behind stay in 'coral reflog'.

    \b
    Examples:
      coral reset
      coral reset model.safetensors
      coral reset --hard HEAD~1
    """
    repo = session.open()
    paths = [] if hard else _staged(repo, what)
    if paths:
        repo.unstage(*paths)
        if as_json:
            print_json({"unstaged": paths})
        for name in () if as_json else paths:
            session.say(f"unstaged {name}")
        return
    ref = _ref(what)
    if repo.history.head().commit is None and ref == "HEAD" and not hard:
        repo.unstage()
        session.say("nothing is staged now")
        return
    staged = [change.name for change in repo.status().staged]
    result = repo.reset(ref, hard=hard, force=force)
    if as_json:
        print_json(move_data(repo, result))
    elif not session.quiet:
        _describe(repo, result, staged, hard=hard)


def _describe(repo: Repository, result: CheckoutResult, staged: list[str], *, hard: bool) -> None:
    commit = repo.history.commit(result.commit)
    click.echo(f"{result.branch or 'HEAD'} is now at {commit.short_hash} {commit.subject}")
    for name in staged:
        click.echo(f"  unstaged {name}")
    print_files(result)
    if hard:
        print_kept(repo, commit.commit_hash)


def _ref(what: tuple[str, ...]) -> str:
    if len(what) > 1:
        raise UsageError("reset takes one REF, or staged files", hint="'coral status' lists what is staged")
    return what[0] if what else "HEAD"


def _staged(repo: Repository, what: tuple[str, ...]) -> list[str]:
    """The staged parts that the arguments mean; none when they are a ref."""
    if not what or (len(what) == 1 and _is_ref(repo, what[0])):
        return []
    known = [change.name for change in repo.status().staged]
    try:
        return parts_named(repo, what, known)
    except PartNotFoundError:
        missing = next((name for name in what if not _is_ref(repo, name)), what[0])
        raise PartNotFoundError(
            f"{missing!r} is neither staged nor a commit", hint="'coral status' lists what is staged"
        ) from None


def _is_ref(repo: Repository, text: str) -> bool:
    try:
        repo.resolve(text)
    except (RefNotFoundError, UsageError):
        return False
    return True
