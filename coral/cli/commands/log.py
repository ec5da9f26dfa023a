"""``coral log``: the commits that led to one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_part, complete_ref
from coral.cli.look.commits import Names, full, named_data, one_line
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session
from coral.errors import UsageError

if TYPE_CHECKING:
    from coral.repository import Repository


@click.command()
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("-n", "--max-count", type=click.IntRange(min=0), metavar="N", help="At most N commits.")
@click.option("--oneline", is_flag=True, help="One line a commit.")
@click.option("--path", metavar="FILE", shell_complete=complete_part, help="Only commits that changed this file.")
@click.option("--branch", metavar="NAME", shell_complete=complete_ref, help="The same as giving the branch as REF.")
@click.option("--code", metavar="REV", help="All commits that this commit of the code made; REV is git's.")
@json_option
@pass_session
def command(
    session: Session,
    ref: str | None,
    max_count: int | None,
    oneline: bool,
    path: str | None,
    branch: str | None,
    code: str | None,
    as_json: bool,
) -> None:
    """Show the commits that led to REF (or to HEAD), newest first.

    REF is a branch, a tag, a hash or the start of one, HEAD~2, main@{1}, best:METRIC:min or run:ID.

    \b
    Examples:
      coral log
      coral log --oneline -n 10 main
      coral log --path model.safetensors
      coral log --code main~3
    """
    repo = session.open()
    if code is None:
        commits = repo.log(branch or ref or "HEAD", max_count=max_count, path=_path(repo, path))
    elif branch or ref:
        raise UsageError("--code looks at all branches and tags", hint="leave REF out")
    else:
        commits = repo.made_by(code, max_count=max_count, path=_path(repo, path))
    names = Names(repo)
    if as_json:
        print_json([named_data(commit, names) for commit in commits])
        return
    place = -1
    for place, commit in enumerate(commits):
        if oneline:
            click.echo(one_line(commit, names))
        else:
            click.echo("\n" * (place > 0) + "\n".join(full(commit, names)))
    if place < 0 and code is not None and max_count != 0:
        session.advise("the code has this commit, but no weights were made by it")


def _path(repo: Repository, path: str | None) -> str | None:
    """The part that a path means, even if no commit here holds it any more."""
    if path is None:
        return None
    known = repo.history.parts(repo.history.head().commit)
    return path if path in known else repo.worktree.part_name(Path(path))
