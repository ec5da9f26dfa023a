"""How the distance of two versions of a model looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, percent, print_table, printable, shape, size
from coral.verbs.merging.compare import ADDED, CHANGED, REMOVED, compare

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.verbs.merging.compare import TensorDifference, Version

_ABBREVIATED = 7


def print_head(path: str, old: tuple[str, str], new: tuple[str, str], renamed: Sequence[str]) -> None:
    """Print what git prints above a difference: names, modes and blobs."""
    target = renamed[0] if renamed else path
    click.secho(f"diff --git a/{printable(path)} b/{printable(target)}", bold=True)
    (old_hex, old_mode), (new_hex, new_mode) = old, new
    if old_mode == ".":
        click.secho(f"new file mode {new_mode}", bold=True)
    elif new_mode == ".":
        click.secho(f"deleted file mode {old_mode}", bold=True)
    elif old_mode != new_mode:
        click.secho(f"old mode {old_mode}\nnew mode {new_mode}", bold=True)
    for line in "".join(renamed[1:]).splitlines():
        if not line.startswith("index "):
            click.secho(line, bold=True)
    if old_hex != new_hex:
        blobs = ("0" * _ABBREVIATED if text == "." else text[:_ABBREVIATED] for text in (old_hex, new_hex))
        click.secho(f"index {'..'.join(blobs)}", bold=True)


def print_distances(old: Version, new: Version, *, limit: int) -> None:
    """Print the tensors that differ, the rest of the file where it does, and a line that sums up."""
    changes = compare(old, new)
    if changes[:limit]:
        headers = ("change", "L2", "max", "cosine", "elements", "dtype", "shape", "tensor")
        print_table(headers, [_row(change) for change in changes[:limit]], right=(1, 2, 3, 4))
    if len(changes) > limit:
        left = count(len(changes) - limit, "tensor")
        click.echo(f"... and {left} more (git config coral.diffMax {len(changes)} lists all)")
    if old.manifest.records and new.manifest.records:
        _print_metadata(old.manifest, new.manifest)
    click.echo(_summary(changes, new.manifest))
    unread = sum(change.kind == CHANGED and change.distance is None for change in changes)
    if unread:
        click.echo(f"({count(unread, 'tensor')} could not be compared: not here, or packed; see 'coral pull')")


def _row(change: TensorDifference) -> list[str]:
    distance = change.distance
    numbers = ["", "", "", ""]
    if distance is not None:
        cosine = "-" if distance.cosine is None else f"{distance.cosine:.6f}"
        numbers = [f"{distance.l2:.3g}", f"{distance.largest:.3g}", cosine, percent(distance.share)]
    dtype = _moved(change.old and change.old.dtype, change.new and change.new.dtype)
    sizes = _moved(change.old and shape(change.old.shape), change.new and shape(change.new.shape))
    return [change.kind, *numbers, dtype, sizes, change.name]


def _moved(old: str | None, new: str | None) -> str:
    if old is None or new is None or old == new:
        return new or old or ""
    return f"{old} -> {new}"


def _print_metadata(old: Manifest, new: Manifest) -> None:
    before, after = dict(old.metadata), dict(new.metadata)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            click.echo(f"metadata {printable(key)}: {_value(before.get(key))} -> {_value(after.get(key))}")
    if old.container != new.container:
        click.echo(f"container {old.container} -> {new.container}")
    elif old.skeleton != new.skeleton:
        click.echo("the rest of the file differs")


def _value(text: str | None) -> str:
    if text is None:
        return "absent"
    shown = printable(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _summary(changes: Sequence[TensorDifference], new: Manifest) -> str:
    kinds = {kind: sum(change.kind == kind for change in changes) for kind in (ADDED, REMOVED, CHANGED)}
    kinds["of other dtype or shape"] = len(changes) - sum(kinds.values())
    parts = [f"{how_many:,} {kind}" for kind, how_many in kinds.items() if how_many]
    return f"{', '.join(parts) or 'no difference'}; {count(len(new.records), 'tensor')}, {size(new.nbytes)} now"
