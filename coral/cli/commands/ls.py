"""``coral ls``: a commit's files and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_part, complete_ref
from coral.cli.look.output import json_option, print_json, print_table, shape, size
from coral.cli.look.parts import part_data
from coral.cli.session import Session, parts_named, pass_session

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.repository import Repository


@click.command()
@click.argument("ref", default="HEAD", shell_complete=complete_ref)
@click.argument("paths", nargs=-1, metavar="[PATH...]", shell_complete=complete_part)
@click.option("-l", "--long", is_flag=True, help="List every tensor.")
@json_option
@pass_session
def command(session: Session, ref: str, paths: tuple[str, ...], long: bool, as_json: bool) -> None:
    """List the files and training states that the commit REF holds; with -l their tensors.

    \b
    Examples:
      coral ls
      coral ls -l main model.safetensors
      coral ls --json HEAD~1
    """
    repo = session.open()
    parts = repo.parts(ref)
    if paths:
        parts = {name: parts[name] for name in parts_named(repo, paths, parts)}
    if as_json:
        print_json([part_data(name, part) for name, part in sorted(parts.items())])
    elif long:
        for place, (name, part) in enumerate(sorted(parts.items())):
            click.echo("\n" * (place > 0) + click.style(name, bold=True))
            _print_tensors(repo, part)
    elif parts:
        rows = [_row(name, part) for name, part in sorted(parts.items())]
        print_table(("kind", "tensors", "bytes", "file"), rows, right=(1, 2))


def _row(name: str, part: Manifest) -> list[str]:
    from coral.verbs.parts import is_state

    kind = "state" if is_state(part) else part.container
    tensors = "-" if part.container == "opaque" else f"{len(part.records):,}"
    return [kind, tensors, size(part.nbytes), name]


def _print_tensors(repo: Repository, part: Manifest) -> None:
    from coral.verbs.ingest import views_of

    if part.container == "opaque":
        click.echo(f"kept whole, {size(part.nbytes)}")
        return
    rows = []
    views = views_of(repo.store, part)
    for name, view in sorted(views.items()):
        within = "" if view.stride is None else f"  (in {view.record_name})"
        rows.append([view.dtype, shape(view.shape), size(part[view.record_name].nbytes), name + within])
    shown = {view.record_name for view in views.values()}
    for name, dtype, sizes, _ in part.records:
        if name not in shown:
            rows.append([dtype, shape(sizes), size(part[name].nbytes), f"{name}  (of no tensor that can be shown)"])
    print_table(("dtype", "shape", "bytes", "tensor"), rows, right=(2,))
