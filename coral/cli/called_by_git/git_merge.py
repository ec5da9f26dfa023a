"""``coral git-merge``: git's merge driver for models, three-way by tensor."""

from __future__ import annotations

from pathlib import Path

import click

from coral.cli.session import Session, pass_session

_CONFLICT = 1
_SHOWN = 5


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False))
@click.argument("ours", type=click.Path(exists=True, dir_okay=False))
@click.argument("theirs", type=click.Path(exists=True, dir_okay=False))
@click.argument("marker_size", type=click.IntRange(min=7, max=1000))
@click.argument("path")
@pass_session
def command(session: Session, base: str, ours: str, theirs: str, marker_size: int, path: str) -> None:
    """Merge the versions of a model, and write the outcome over OURS.

    git calls this where .gitattributes says merge=coral. What only one side changed is taken; what both changed is
    settled by the rule that the attribute coral-merge, or git's setting coral.merge, names: ours, theirs, average or
    conflict. Exits with 1 when something is not settled: 'coral resolve --list' shows it.

    \b
    Examples:
      git config merge.coral.driver 'coral git-merge %O %A %B %L %P'
      git config coral.merge average
    """
    from coral.cli.filtering import open_filter
    from coral.git.unmerged import merge_rule
    from coral.verbs.merging.driver import Files, merge_files

    opened = open_filter(Path.cwd())
    conflicts = merge_files(
        Files(Path(base), Path(ours), Path(theirs), path),
        keep=lambda file: opened.keep(path, file),
        store=lambda: opened.store,
        rule=lambda: merge_rule(Path.cwd(), path),
        marker_size=marker_size,
    )
    if conflicts:
        session.advise(_summary(path, conflicts))
        raise click.exceptions.Exit(_CONFLICT)


def _summary(path: str, conflicts: tuple[str, ...]) -> str:
    names = ", ".join(conflicts[:_SHOWN]) + (f" and {len(conflicts) - _SHOWN} more" if conflicts[_SHOWN:] else "")
    return f"{path}: both sides changed {names}; see 'coral resolve --list {path}'"
