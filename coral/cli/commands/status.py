"""``coral status``: what the next commit will hold, and what it will not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, json_option, print_json, printable, size
from coral.cli.session import Session, pass_session

if TYPE_CHECKING:
    from coral.verbs.status import Status

_KINDS = {"added": "new file", "changed": "changed", "removed": "removed"}


@click.command()
@json_option
@pass_session
def command(session: Session, as_json: bool) -> None:
    """Show what is staged, what was modified since, and model files that no commit holds.

    \b
    Example:
      coral status
    """
    repo = session.open()
    status = repo.status()
    if as_json:
        print_json(_data(status))
        return

    def shown(name: str) -> str:
        # As seen from here, as git does: it is to be given to 'coral add'.
        return printable(os.path.relpath(repo.path / name))

    if status.branch is None:
        click.secho(f"HEAD detached at {(status.commit or '')[:10]}", fg="red")
    else:
        click.echo(f"On branch {status.branch}")
    if status.commit is None:
        click.echo("No commits yet")
    _print_staged(status, shown)
    _section(
        "Modified since:",
        ['use "coral add FILE..." to stage the change', 'use "coral checkout --force HEAD FILE..." to undo it'],
        (f"modified:  {shown(name)}" for name in status.modified),
        colour="red",
    )
    _section(
        "Untracked model files:",
        ['use "coral add FILE..." to keep them'],
        map(shown, status.untracked),
        colour="red",
    )
    if not (status.staged or status.modified or status.untracked):
        click.echo(
            f"nothing to commit ({count(status.parts, 'file')} in the last commit)"
            if status.parts
            else 'nothing to commit (use "coral add FILE..." to keep files)'
        )


def _print_staged(status: Status, shown: Callable[[str], str]) -> None:
    lines = [
        f"{_KINDS[change.kind] + ':':<10} {shown(change.name)}"
        + (f"  ({size(change.nbytes)})" if change.nbytes else "")
        for change in status.staged
    ]
    _section("To be committed:", ['use "coral reset FILE..." to unstage'], lines, colour="green")


def _section(title: str, hints: list[str], lines: Iterable[str], *, colour: str) -> None:
    listed = list(lines)
    if not listed:
        return
    click.echo(f"\n{title}")
    for hint in hints:
        click.echo(f"  ({hint})")
    for line in listed:
        click.echo("    " + click.style(line, fg=colour))


def _data(status: Status) -> dict[str, object]:
    return {
        "branch": status.branch,
        "commit": status.commit,
        "staged": [{"name": change.name, "kind": change.kind, "bytes": change.nbytes} for change in status.staged],
        "modified": list(status.modified),
        "untracked": list(status.untracked),
        "parts": status.parts,
        "clean": not (status.staged or status.modified or status.untracked),
    }
