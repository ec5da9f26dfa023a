"""How the difference of two commits looks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, percent, print_table, shape, size

if TYPE_CHECKING:
    from coral.verbs.diff import Diff, TensorChange

_KINDS = ("added", "removed", "changed")


def print_diff(diff: Diff, limit: int) -> None:
    """Print the largest changes, file by file, and a line that sums up."""
    if not diff:
        click.echo("no difference")
        return
    largest = sorted(diff.tensors, key=lambda change: (-change.changed_bytes, change.part, change.name))
    by_part: dict[str, list[TensorChange]] = defaultdict(list)
    for change in largest[:limit]:
        by_part[change.part].append(change)
    for part, changes in by_part.items():
        click.secho(part, bold=True)
        print_table(
            ("change", "bytes", "share", "dtype", "shape", "tensor"), [_row(change) for change in changes], right=(1, 2)
        )
        click.echo()
    if len(largest) > limit:
        left = count(len(largest) - limit, "tensor")
        click.echo(f"... and {left} more (--max {len(largest)} lists all)\n")
    for part in diff.structure:
        click.echo(f"{part}: same tensors, but the rest of the file differs")
    click.echo(summary(diff))


def print_stat(diff: Diff) -> None:
    """Print one line a file."""
    by_part: dict[str, list[TensorChange]] = defaultdict(list)
    for change in diff.tensors:
        by_part[change.part].append(change)
    rows = []
    for part, changes in sorted(by_part.items()):
        kinds = [str(sum(change.kind == kind for change in changes)) for kind in _KINDS]
        nbytes = sum(change.changed_bytes for change in changes if change.kind != "removed")
        rows.append([*kinds, size(nbytes), part])
    rows += [["0", "0", "0", size(0), part] for part in diff.structure]
    if rows:
        print_table(("added", "removed", "changed", "new bytes", "file"), rows, right=(0, 1, 2, 3))
        click.echo()
    click.echo(summary(diff) if diff else "no difference")


def summary(diff: Diff) -> str:
    """What changed in all, in one line."""
    kinds = [f"{len(found):,} {kind}" for kind in _KINDS if (found := diff.of_kind(kind))]
    bytes_ = f"{size(diff.changed_bytes)} of {size(diff.total_bytes)} new, {percent(diff.share)}"
    noun = "tensor" if len(diff.tensors) == 1 else "tensors"
    return f"{', '.join(kinds) or 'no'} {noun} ({bytes_})"


def _row(change: TensorChange) -> list[str]:
    old, new = change.old, change.new
    dtype = _moved(old and old.dtype, new and new.dtype)
    sizes = _moved(old and shape(old.shape), new and shape(new.shape))
    return [change.kind, size(change.changed_bytes), percent(change.share), dtype, sizes, change.name]


def _moved(old: str | None, new: str | None) -> str:
    if old is None or new is None or old == new:
        return new or old or ""
    return f"{old} -> {new}"
