"""How a move of HEAD, and the files that follow it, looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count

if TYPE_CHECKING:
    from coral.ids import CommitHash
    from coral.repository import Repository
    from coral.verbs.worktree import CheckoutResult

_LISTED = 10


def move_data(repo: Repository, result: CheckoutResult) -> dict[str, object]:
    """A move for JSON."""
    return {
        "commit_hash": result.commit or None,
        "branch": result.branch,
        "detached": result.branch is None,
        "written": list(result.written),
        "unchanged": list(result.unchanged),
        "removed": list(result.removed),
        "states": list(result.states),
    }


def print_move(repo: Repository, result: CheckoutResult, *, new: bool = False, only_files: bool = False) -> None:
    """Say where HEAD is now, which files were written, and what stayed in the store."""
    if not only_files:
        _print_head(repo, result, new=new)
    print_files(result)
    if only_files and not (result.written or result.removed):
        click.echo("nothing to write: the files hold these bytes already")
    if not only_files and result.commit:
        print_kept(repo, result.commit)


def print_kept(repo: Repository, commit_hash: CommitHash) -> None:
    """Say which parts of the commit that HEAD is at have no file, and how to get one."""
    parts = repo.history.parts(commit_hash)
    there = set(repo.worktree.materialised(parts))
    kept = sorted(name for name in parts if name not in there)
    if kept:
        more = f" and {len(kept) - _LISTED} more" if len(kept) > _LISTED else ""
        click.echo(f"  kept in the store: {', '.join(kept[:_LISTED])}{more}")
        click.echo(f'    (use "coral checkout HEAD {kept[0] if len(kept) == 1 else "FILE"}" to write it as a file)')


def print_files(result: CheckoutResult) -> None:
    """Say which files were written and removed, one a line, and how many were right already."""
    _list("wrote", result.written, "green")
    _list("removed", result.removed, "red")
    if result.unchanged and (result.written or result.removed):
        click.echo(f"  {count(len(result.unchanged), 'file')} already right")


def _print_head(repo: Repository, result: CheckoutResult, *, new: bool) -> None:
    if result.branch is not None:
        click.echo(f"Switched to {'a new ' if new else ''}branch '{result.branch}'")
        return
    commit = repo.history.commit(result.commit)
    click.echo(f"HEAD is detached at {commit.short_hash} {commit.subject}")
    click.echo('  (commits made here are on no branch; "coral switch -c NAME" makes one)')


def _list(verb: str, names: tuple[str, ...], colour: str) -> None:
    for name in names[:_LISTED]:
        click.echo(f"  {click.style(f'{verb:<8}', fg=colour)} {name}")
    if len(names) > _LISTED:
        click.echo(f"  {verb:<8} {len(names) - _LISTED} more files")
