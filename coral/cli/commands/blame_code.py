"""``coral blame-code``: the code that made a commit of weights."""

from __future__ import annotations

import click

from coral.cli.complete import complete_ref
from coral.cli.look.commits import Names, commit_data, one_line
from coral.cli.look.output import json_option, print_json
from coral.cli.session import Session, pass_session
from coral.errors import NotFoundError


@click.command()
@click.argument("ref", default="HEAD", shell_complete=complete_ref)
@json_option
@pass_session
def command(session: Session, ref: str, as_json: bool) -> None:
    """Show the commit of the code that made the weights of REF, its branch, and whether it was modified.

    Equal modifications have equal hashes. The way back is 'coral log --code'.

    \b
    Examples:
      coral blame-code
      coral blame-code best:val_loss:min
    """
    repo = session.open()
    (commit,) = repo.log(ref, max_count=1)
    if commit.code_commit is None:
        raise NotFoundError(
            f"the commit {commit.short_hash} does not say which code made it",
            hint="it was made outside of a git repository, or before the first commit of the code",
        )
    from coral.git.enclosing import code_subject

    subject = code_subject(repo.path, commit.code_commit)
    if as_json:
        data = commit_data(commit)
        print_json({"commit_hash": commit.commit_hash, "code": {**data["code"], "subject": subject}})
        return
    click.echo(one_line(commit, Names(repo)))
    click.echo(f"Code:     {click.style(commit.code_commit, fg='yellow')}{f' {subject}' if subject else ''}")
    if commit.code_branch is not None:
        click.echo(f"Branch:   {commit.code_branch}")
    click.echo(f"Modified: {_modified(commit.code_dirty, commit.code_diff)}")


def _modified(dirty: bool | None, diff: str | None) -> str:
    if not dirty:
        return "unknown" if dirty is None else "no"
    return f"yes, by {diff}" if diff else "yes"
