"""``coral branch``: list, make, rename and delete branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_branch
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session
from coral.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from coral.repository import Repository


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME [REF]]", shell_complete=complete_branch)
@click.option("-v", "--verbose", is_flag=True, help="Show each branch's commit.")
@click.option("-d", "--delete", is_flag=True, help="Delete branches whose commits others hold, too.")
@click.option("-D", "--delete-anyway", is_flag=True, help="Delete branches, and let go of their commits.")
@click.option("-m", "--move", is_flag=True, help="Rename: [OLD] NEW.")
@json_option
@pass_session
def command(
    session: Session,
    names: tuple[str, ...],
    verbose: bool,
    delete: bool,
    delete_anyway: bool,
    move: bool,
    as_json: bool,
) -> None:
    """List branches, or make the branch NAME at REF (or here) without going there.

    \b
    Examples:
      coral branch
      coral branch small v1.0
      coral branch -m small tiny
      coral branch -d tiny
    """
    repo = session.open()
    if delete or delete_anyway:
        _delete(repo, session, names, force=delete_anyway)
    elif move:
        _rename(repo, session, names)
    elif names:
        if len(names) > 2:
            raise UsageError("branch takes a NAME and a REF", hint="see 'coral branch --help'")
        repo.create_branch(*names)
        session.say(f"made branch '{names[0]}' at {repo.branches()[names[0]][:10]}")
    elif as_json:
        _print_json(repo)
    else:
        _print_list(repo, verbose=verbose)


def _delete(repo: Repository, session: Session, names: tuple[str, ...], *, force: bool) -> None:
    if not names:
        raise UsageError("which branch?", hint="coral branch -d NAME")
    for name in names:
        tip = repo.branches().get(name, "")
        try:
            repo.delete_branch(name, force=force)
        except ConflictError as error:
            if force or "--force" not in (error.hint or ""):
                raise
            raise ConflictError(error.message, hint="tag its tip first, or use -D to let go of them") from None
        session.say(f"deleted branch '{name}' (was {tip[:10]})")


def _rename(repo: Repository, session: Session, names: tuple[str, ...]) -> None:
    current = repo.history.head().branch
    if len(names) == 1 and current is not None:
        names = (current, names[0])
    if len(names) != 2:
        raise UsageError("rename which branch?", hint="coral branch -m [OLD] NEW")
    repo.rename_branch(*names)
    session.say(f"renamed branch '{names[0]}' to '{names[1]}'")


def _print_json(repo: Repository) -> None:
    current = repo.history.head().branch
    found = repo.branches().items()
    print_json([{"name": name, "commit_hash": tip, "current": name == current} for name, tip in found])


def _print_list(repo: Repository, *, verbose: bool) -> None:
    head, found = repo.history.head(), repo.branches()
    width = max(map(len, found), default=0)
    if head.branch is None and head.commit is not None:
        click.echo("* " + click.style(f"(HEAD detached at {head.commit[:10]})", fg="red"))
    for name, tip in found.items():
        here = name == head.branch
        label = click.style(name, fg="green") if here else name
        detail = ""
        if verbose:
            detail = f"{' ' * (width - len(name))} {tip[:10]} {repo.history.commit(tip).subject}"
        click.echo(f"{'*' if here else ' '} {label}{detail}")
