"""What the shell completes: refs, branches, tags, parts and run ids, looked up cheaply and never with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.errors import CoralError

if TYPE_CHECKING:
    from coral.ids import RunId
    from coral.repository import Repository

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _completer(names: Callable[[Repository], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from coral.repository import Repository

        try:
            repo = Repository.discover(Path(ctx.find_root().params.get("folder") or "."), shell_staging=True)
            return [name for name in names(repo) if name.startswith(incomplete)]
        except CoralError:
            return []

    return complete


def _refs(repo: Repository) -> list[str]:
    return ["HEAD", *repo.branches(), *repo.tags()]


def _parts(repo: Repository) -> list[str]:
    return list(repo.history.parts(repo.history.head().commit))


def _runs(repo: Repository) -> list[RunId]:
    from coral.verbs.runs import run_ids

    return run_ids(repo.folder)


complete_ref = _completer(_refs)
complete_branch = _completer(lambda repo: list(repo.branches()))
complete_tag = _completer(lambda repo: list(repo.tags()))
complete_part = _completer(_parts)
complete_run = _completer(_runs)
