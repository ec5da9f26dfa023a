"""``coral import-lfs``: files that git-LFS keeps become files that coral keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coral.cli.look.output import count, printable
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, pass_session
from coral.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coral.verbs.inside_git.lfs_history import NewBlobs
    from coral.verbs.inside_git.lfs_index import Plan


@click.command()
@click.argument("names", nargs=-1, metavar="[PATTERN|REF]...")
@click.option("--history", is_flag=True, help="Rewrite the history of all branches and tags, or of the REFs named.")
@click.option("--skip-missing", is_flag=True, help="Leave the pointers in place whose bytes are not here.")
@pass_session
def command(session: Session, names: tuple[str, ...], history: bool, skip_missing: bool) -> None:
    """Have coral keep the files that git-LFS keeps, all or those that PATTERNs mean.

    The bytes come from the working tree, else from where git-LFS keeps them on this machine, and are verified. What git
    shall keep instead, and coral's lines in .gitattributes, are staged; 'git commit' records them. Older commits stay
    with git-LFS.

    With --history they do not: every commit that held a pointer, and all that follow, are written anew. Authors, dates
    and messages stay, hashes change, signatures are lost, and all who have a clone must clone again. The old branches
    and tags are kept under refs/coral/before-import-lfs/.

    \b
    Examples:
      coral import-lfs
      coral import-lfs '*.safetensors'
      git lfs fetch --all && coral import-lfs --history

    \b
    To go back, and to let go of what was there before:
      git reset --hard refs/coral/before-import-lfs/heads/main
      git update-ref -d refs/coral/before-import-lfs/heads/main
    """
    from coral.git.surroundings import top_of
    from coral.verbs.inside_git.lfs import refuse_without_filter

    top = top_of(Path.cwd())
    if top is None:
        raise NotFoundError("this folder is in no working tree of git's", hint="go to one that git checks files out in")
    refuse_without_filter(top)
    if history:
        _import_history(session, top, names, skip_missing=skip_missing)
    else:
        _import_index(session, top, names, skip_missing=skip_missing)


def _import_index(session: Session, top: Path, patterns: Sequence[str], *, skip_missing: bool) -> None:
    from coral.cli.filtering import open_filter
    from coral.git.index import matching
    from coral.git.lfs import LfsObjects
    from coral.verbs.inside_git.lfs import alone, missing_error
    from coral.verbs.inside_git.lfs_index import execute, plan

    chosen = matching(Path.cwd(), patterns) if patterns else None
    objects = LfsObjects.of(top)
    with alone(top) as scratch:
        planned = plan(top, chosen, objects, scratch)
        if planned.missing and not skip_missing:
            raise missing_error(planned.missing, bring="git lfs pull")
        opened = open_filter(top)
        with progress_bar("importing", planned.nbytes, quiet=session.quiet) as report:
            damaged = execute(top, planned, objects, opened, skip_missing=skip_missing, report=report)
        opened.finish()
    _say_what_is_staged(session, planned, damaged)


def _say_what_is_staged(session: Session, planned: Plan, damaged: Sequence[str]) -> None:
    imported = [file.entry.name for file in planned.files if file.entry.name not in damaged]
    for name in imported:
        session.say(printable(name))
    lines = [printable(entry.name) for entry in planned.attributes]
    session.say(f"{count(len(imported), 'file')} imported" + (f", {', '.join(lines)} edited" if lines else ""))
    _say_what_stays(session, (*planned.missing, *damaged))
    for name in planned.left:
        session.say(f"left alone: {printable(name)} looks like a pointer, but is not git-LFS's by .gitattributes")
    if imported or lines:
        session.advise("'git commit' records it")


def _say_what_stays(session: Session, names: Sequence[str]) -> None:
    for name in names:
        session.say(f"still a pointer: {printable(name)}")


def _import_history(session: Session, top: Path, names: Sequence[str], *, skip_missing: bool) -> None:
    from coral.cli.filtering import open_filter
    from coral.git.lfs import LfsObjects
    from coral.git.rewriting import Rewriter, branches_and_tags
    from coral.verbs.inside_git.lfs import alone
    from coral.verbs.inside_git.lfs_history import check, look, rewrite, store

    refs = branches_and_tags(top, names)
    check(top, refs)
    # Nothing names what is stored until the branches move.
    with alone(top) as scratch, open_filter(top).store.held():
        kept = Rewriter(top, refs, beside=scratch.path("history"))
        found = look(top, kept)
        with progress_bar("importing", found.nbytes, quiet=session.quiet) as report:
            blobs = store(top, found, LfsObjects.of(top), skip_missing=skip_missing, report=report)
        moved, backup = rewrite(top, kept, blobs)
    for name, old, new in moved:
        session.say(f"{name}: {old[:10]} -> {new[:10]}")
    _say_what_was_rewritten(session, blobs, bool(moved))
    if moved:
        session.advise(f"the old ones are under {backup}; 'git push --force' and new clones make it known to others")


def _say_what_was_rewritten(session: Session, blobs: NewBlobs, changed: bool) -> None:
    versions = count(len(blobs.files), "version")
    session.say(f"{versions} of files imported; {'commits have new hashes' if changed else 'no commit changed'}")
    _say_what_stays(session, blobs.missing)
