"""``coral git-merge``: git's merge driver for models, three-way by tensor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.session import Session, pass_session
from coral.errors import UsageError

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.verbs.merging.merge import Merge

RULES = ("ours", "theirs", "average", "conflict")
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
    from coral.git.unmerged import merge_rule
    from coral.storage.folder import Folder
    from coral.verbs.merging.merge import merge

    versions = [_read(Path(file), path) for file in (base, ours, theirs)]
    if versions[1] is None or versions[2] is None:
        raise UsageError(f"{path}: a version is empty, or has conflicts in it", hint="settle those first")
    merged = merge(versions[0], versions[1], versions[2])
    if merged.conflicts:
        merged = _settle(merged, merge_rule(Path.cwd(), path) or "conflict", path)
    target = Path(ours)
    Folder(target.parent).write(target.name, merged.to_bytes(marker_size=marker_size))
    if merged.conflicts:
        session.advise(_summary(path, merged.conflicts))
        raise click.exceptions.Exit(_CONFLICT)


def _read(file: Path, path: str) -> Manifest | None:
    """One version; None where there is none. A model that was committed before it was tracked is taken in now."""
    from coral.cli.filtering import open_filter
    from coral.format.manifest import is_manifest
    from coral.verbs.merging.merge import Merge, common

    if os.path.getsize(file) == 0:
        return None
    with file.open("rb") as opened:
        head = opened.read(64)
    if not is_manifest(head):
        return open_filter(Path.cwd()).keep(path, file)
    merge = Merge.from_bytes(file.read_bytes())
    return common(merge)


def _settle(merged: Merge, rule: str, path: str) -> Merge:
    if rule not in RULES:
        raise UsageError(f"{path}: there is no merge rule {rule!r}", hint=f"one of {', '.join(RULES)}")
    if rule in ("ours", "theirs"):
        return merged.take(rule)
    if rule == "average":
        from coral.cli.filtering import open_filter
        from coral.verbs.merging.average import average

        return average(open_filter(Path.cwd()).store, merged)
    return merged


def _summary(path: str, conflicts: tuple[str, ...]) -> str:
    names = ", ".join(conflicts[:_SHOWN]) + (f" and {len(conflicts) - _SHOWN} more" if conflicts[_SHOWN:] else "")
    return f"{path}: both sides changed {names}; see 'coral resolve --list {path}'"
