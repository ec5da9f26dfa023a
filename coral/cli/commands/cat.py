"""``coral cat``: one tensor's statistics or values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_part, complete_ref
from coral.cli.look.output import json_option, percent, print_json, shape, size, terminal_width
from coral.cli.session import Session, parts_named, pass_session
from coral.errors import TensorNotFoundError, UsageError

if TYPE_CHECKING:
    from coral.cli.look.statistics import Statistics
    from coral.containers import TensorView
    from coral.format.manifest import Manifest
    from coral.ids import CommitHash
    from coral.repository import Repository


@click.command()
@click.argument("tensor")
@click.option("--ref", default="HEAD", show_default=True, shell_complete=complete_ref, help="The commit.")
@click.option("--part", metavar="FILE", shell_complete=complete_part, help="The file, if several hold such a tensor.")
@click.option("--values", is_flag=True, help="Print the values, too.")
@click.option("--max", "limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Values to print.")
@json_option
@pass_session
def command(session: Session, tensor: str, ref: str, part: str | None, values: bool, limit: int, as_json: bool) -> None:
    """Show the statistics of one tensor, and with --values its values. Only this tensor is read.

    \b
    Examples:
      coral cat encoder.weight
      coral cat bias --ref HEAD~1 --values
      coral cat optimizer.exp_avg --part state.safetensors
    """
    from coral.cli.look.statistics import describe, flat_values, print_values

    repo = session.open()
    commit_hash = repo.resolve(ref)
    name, view = _find(repo, commit_hash, tensor, part)
    array = repo.get_all_weights(commit_hash, name=name)[tensor]
    found = describe(array)
    if as_json:
        where = {"commit_hash": commit_hash, "part": name, "name": tensor}
        data = {**where, "dtype": view.dtype, "shape": list(view.shape)}
        shown = {"values": flat_values(array, limit)} if values else {}
        print_json({**data, **found._asdict(), **shown})
        return
    click.echo(f"{click.style(tensor, bold=True)}  {view.dtype} {shape(view.shape)}  in {name}, {commit_hash[:10]}")
    _print_statistics(found)
    if values:
        print_values(array, limit, width=terminal_width())


def _find(repo: Repository, commit_hash: CommitHash, tensor: str, part: str | None) -> tuple[str, TensorView]:
    """The part that holds the tensor; weights go before training states."""
    from coral.verbs.ingest import views_of
    from coral.verbs.parts import is_weights

    parts: Mapping[str, Manifest] = repo.parts(commit_hash)
    if part is not None:
        (chosen,) = parts_named(repo, [part], parts)[:1]
        parts = {chosen: parts[chosen]}
    views = {name: views_of(repo.store, manifest) for name, manifest in parts.items()}
    holders = [name for name in views if tensor in views[name]]
    preferred = [name for name in holders if is_weights(parts[name])] or holders
    if len(preferred) > 1:
        raise UsageError(
            f"{', '.join(preferred)} hold a tensor {tensor!r} each", hint=f"say which: --part {preferred[0]}"
        )
    if not preferred:
        raise _not_found(tensor, commit_hash, [name for names in views.values() for name in names])
    return preferred[0], views[preferred[0]][tensor]


def _not_found(tensor: str, commit_hash: CommitHash, known: list[str]) -> TensorNotFoundError:
    from difflib import get_close_matches

    near = get_close_matches(tensor, known, n=3) or [name for name in known if tensor in name][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "'coral ls -l' lists the tensors"
    return TensorNotFoundError(f"the commit {commit_hash[:10]} holds no tensor {tensor!r}", hint=hint)


def _print_statistics(found: Statistics) -> None:
    def line(label: str, text: str) -> None:
        click.echo(f"  {label:<9} {text}")

    def plain(value: float | None) -> str:
        return "-" if value is None else f"{value:.7g}"

    line("bytes", f"{size(found.bytes)} ({found.elements:,} elements)")
    line("min, max", f"{plain(found.min)}  {plain(found.max)}")
    line("mean, std", f"{plain(found.mean)}  {plain(found.std)}")
    line("L2 norm", plain(found.l2))
    line("zeros", f"{percent(found.zeros / found.elements) if found.elements else '-'} ({found.zeros:,})")
    if found.nan or found.inf:
        line("NaN, inf", click.style(f"{found.nan:,}  {found.inf:,}", fg="red"))
    else:
        line("NaN, inf", "none")
