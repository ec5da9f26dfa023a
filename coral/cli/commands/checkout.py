"""``coral checkout``: write a commit's files, and go there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.complete import complete_part, complete_ref
from coral.cli.look.moves import move_data, print_move
from coral.cli.look.output import json_option, print_json
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, parts_at, parts_named, pass_session
from coral.errors import RefNotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coral.ids import CommitHash
    from coral.repository import Repository
    from coral.verbs.worktree import CheckoutResult


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("paths", nargs=-1, metavar="[PATH...]", shell_complete=complete_part)
@click.option("-f", "--force", is_flag=True, help="Overwrite files even if no commit holds their bytes.")
@click.option("-b", "new_branch", metavar="NEW", help="Make the branch NEW at REF, and go there.")
@json_option
@pass_session
def command(
    session: Session, ref: str, paths: tuple[str, ...], force: bool, new_branch: str | None, as_json: bool
) -> None:
    """Write the files of the commit REF into the project, byte for byte, and move HEAD there.

    With PATHs only those files are written, and HEAD stays. Training states stay in the store unless they are named.
    If REF is a file that git has checked out as a manifest, the model is written in its place, as 'coral pull' does.
    REF is a branch, a tag, a hash or the start of one, HEAD~2, main@{1}, best:METRIC:min or run:ID.

    \b
    Examples:
      coral checkout main
      coral checkout best:val_loss:min
      coral checkout HEAD~1 model.safetensors
      coral checkout -b retry v1.0
    """
    if _is_manifest_of_git(ref):
        from coral.cli.materialise import materialise, say_written

        say_written(session, materialise(session, [ref, *paths]))
        return
    repo = session.open()
    commit_hash = _resolve(repo, ref)
    if paths:
        names = parts_named(repo, paths, repo.history.parts(commit_hash))
        with progress_bar("checking out", _bytes(repo, commit_hash, names), quiet=session.quiet) as progress:
            result = repo.checkout(ref, names, force=force, progress=progress)
    else:
        result = _go(repo, session, ref, new_branch=new_branch, force=force)
    if as_json:
        print_json(move_data(repo, result))
    elif not session.quiet:
        print_move(repo, result, new=new_branch is not None, only_files=bool(paths))


def _is_manifest_of_git(name: str) -> bool:
    from coral.format.manifest import is_manifest

    path = Path(name)
    if not name or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return is_manifest(file.read(64))


def _resolve(repo: Repository, ref: str) -> CommitHash:
    try:
        return repo.resolve(ref)
    except (RefNotFoundError, UsageError) as error:
        # What git's checkout takes for a path.
        if ref and parts_at(repo, ref, repo.history.parts(repo.history.head().commit)):
            raise RefNotFoundError(error.message, hint=f"did you mean 'coral checkout HEAD {ref}'?") from None
        raise


def _go(repo: Repository, session: Session, ref: str, *, new_branch: str | None, force: bool) -> CheckoutResult:
    total = _bytes(repo, repo.resolve(ref), None)
    if new_branch is not None:
        repo.create_branch(new_branch, ref)
    try:
        with progress_bar("checking out", total, quiet=session.quiet) as progress:
            return repo.checkout(new_branch or ref, force=force, progress=progress)
    except BaseException:
        if new_branch is not None and repo.history.head().branch != new_branch:
            repo.delete_branch(new_branch, force=True)
        raise


def _bytes(repo: Repository, commit_hash: CommitHash, names: Sequence[str] | None) -> int:
    """How many bytes will be written: those of the parts that differ from here, or have no file."""
    from coral.verbs.parts import is_state

    here = repo.history.parts(repo.history.head().commit)
    there = repo.history.parts(commit_hash)
    return sum(
        part.nbytes
        for name, part in repo.parts(commit_hash).items()
        if (name in names if names is not None else not is_state(part))
        and (here.get(name) != there[name] or not repo.worktree.materialised([name]))
    )
