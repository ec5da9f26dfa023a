"""Files that a command puts into the next commit: which ones its paths mean, and what is said of each."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from coral.cli.look.output import count, printable, size
from coral.cli.look.progress import progress_bar
from coral.cli.session import Session, check_path
from coral.containers import is_model_name
from coral.errors import CoralError, NotFoundError, UsageError
from coral.format.names import check_part_name
from coral.verbs.staging import StagedFiles
from coral.verbs.worktree import is_searched

if TYPE_CHECKING:
    from coral.repository import Repository

_NO_MODEL = "not model files (name one to add it)"
_NOT_SEARCHED = "hidden, or of Python (name one to add it)"
_TOOLS = "of git, coral or Python, and never kept"
_NOWHERE = "links that lead nowhere"
_FOLDER_LINK = "links to folders (name one to add it)"
_CLOSED = "may not be read"
_EMPTY = "folders without files"
_SPECIAL = "pipes, sockets or devices"
_NEVER_KEPT = frozenset({".git", ".coral", "__pycache__"})
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was passed over, and why; the reason goes for several."""

    path: str
    reason: str


@dataclass(slots=True)
class Found:
    """What paths mean: files by the parts that they are, and what was passed over in folders."""

    files: dict[str, Path] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding files."""

    staged: StagedFiles = field(default_factory=lambda: StagedFiles({}, {}, {}))
    skipped: Sequence[Skipped] = ()

    def data(self) -> dict[str, object]:
        """It all, for JSON."""
        return {
            "staged": [
                {
                    "name": name,
                    "container": manifest.container,
                    "tensors": len(manifest.records),
                    "bytes": manifest.nbytes,
                    "reason": self.staged.reasons.get(name, ""),
                }
                for name, manifest in self.staged.parts.items()
            ],
            "skipped": [{"path": one.path, "reason": one.reason} for one in self.skipped],
            "failed": [
                {"name": name, "error": error.message, "hint": error.hint} for name, error in self.staged.failed.items()
            ],
        }


def find_files(repo: Repository, paths: Sequence[str], *, name: str | None = None) -> Found:
    """The files that paths mean.

    A file is taken whatever it is. Of the project's own folder the model files are; any other folder is a unit, and
    taken with all that is in it, hidden files included. What is passed over is noted.

    Args:
        name: the part that the one file shall be.

    Raises:
        NotFoundError, UsageError: a path that means nothing, or nothing of the project.
    """
    if name is not None and (len(paths) != 1 or os.path.isdir(paths[0])):
        raise UsageError("--name is for one file")
    search = _Search(repo)
    for text in paths:
        path = Path(check_path(text))
        if _is_folder(path):
            search.take_folder(path)
        else:
            search.found.files[repo.worktree.part_name(path) if name is None else check_part_name(name)] = path
    return search.found


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder. Raises NotFoundError where nothing is there."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise _nothing_there(str(path)) from None
    except OSError:
        return False  # what cannot be looked at is to be staged, which says so


def _nothing_there(text: str) -> NotFoundError:
    if os.path.islink(text):
        return NotFoundError(f"{text!r} is a link that leads nowhere")
    return NotFoundError(f"no file {text!r}", hint="if it was removed, 'coral rm' stages that")


class _Search:
    """Looks through folders."""

    def __init__(self, repo: Repository) -> None:
        self.found = Found()
        self._tree = repo.worktree

    def take_folder(self, path: Path) -> None:
        """Take what is to be kept of a folder. Raises UsageError for one that the project does not hold."""
        name = self._tree.part_name(path.resolve())
        is_project = name == "."
        if not is_project:
            check_part_name(name)
        before = len(self.found.files) + len(self.found.skipped)
        self._walk(path, is_project)
        if not is_project and len(self.found.files) + len(self.found.skipped) == before:
            self._note(path, _EMPTY)

    def _walk(self, path: Path, is_project: bool) -> None:
        for root, folders, files in os.walk(path, onerror=partial(self._take_unread, is_project=is_project)):
            reasons = [(one, self._why_no_folder(Path(root, one), is_project)) for one in sorted(folders)]
            # As it is walked on from there, so it is noted.
            folders[:] = [one for one, reason in reasons if reason is None]
            for one, reason in reasons:
                self._note(Path(root, one), reason)
            for one in sorted(files):
                self._take_file(Path(root, one), is_project)

    def _take_unread(self, error: OSError, is_project: bool) -> None:
        """A folder that cannot be read: of one that is wanted whole to be staged, which says so."""
        path = Path(error.filename)
        if is_project:
            self._note(path, _CLOSED)
        else:
            self.found.files[self._tree.part_name(path.resolve())] = path

    def _take_file(self, file: Path, is_project: bool) -> None:
        reason = _why_no_file(file, is_project)
        if reason is None:
            self.found.files[self._tree.part_name(file)] = file
        self._note(file, reason)

    def _note(self, path: Path, reason: str | None) -> None:
        if reason:
            self.found.skipped.append(Skipped(str(path), reason))

    def _why_no_folder(self, folder: Path, is_project: bool) -> str | None:
        """Why a folder is passed over; empty where nobody would ask."""
        if folder.name in _NEVER_KEPT:
            return "" if is_project else _TOOLS
        if os.path.islink(folder):
            return _FOLDER_LINK
        return _NOT_SEARCHED if is_project and not is_searched(folder) else None


def _why_no_file(file: Path, is_project: bool) -> str | None:
    if file.name in _NEVER_KEPT:
        return "" if is_project else _TOOLS
    try:
        is_file = stat.S_ISREG(os.stat(file).st_mode)
    except OSError as error:
        if os.path.islink(file) or isinstance(error, FileNotFoundError):
            return _NOWHERE
        # What cannot be looked at and is wanted is to be staged, which says so.
        return _CLOSED if is_project else None
    if not is_file:
        return _SPECIAL
    if is_project and not is_model_name(file.name):
        return _NO_MODEL
    return _NOT_SEARCHED if is_project and file.name.startswith(".") else None


def add(repo: Repository, session: Session, found: Found, *, opaque: bool = False, partly: bool = False) -> Added:
    """Stage files under one progress bar, in one step.

    Args:
        partly: stage those that can be kept; else all are, or none is.
    """
    total = sum(map(_size, found.files.values()))
    with progress_bar("adding", total, quiet=session.quiet) as progress:
        staged = repo.stage_files(found.files, opaque=opaque, partly=partly, progress=progress)
    return Added(staged, found.skipped)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def say_added(session: Session, added: Added) -> None:
    """Tell the user what was staged and what was passed over."""
    whole = 0
    for name, manifest in added.staged.parts.items():
        how = count(len(manifest.records), "tensor")
        if manifest.container == "opaque":
            whole += 1
            reason = added.staged.reasons.get(name)
            how = f"kept whole: {reason}" if reason else "kept whole"
        session.say(f"staged {printable(name)}  ({how}, {size(manifest.nbytes)})")
    if whole and len(added.staged.parts) > 1:
        others = ", the others by their tensors" if whole < len(added.staged.parts) else ""
        session.say(f"{whole:,} of {count(len(added.staged.parts), 'file')} kept whole{others}")
    for reason, group in groupby(sorted(added.skipped, key=attrgetter("reason")), key=attrgetter("reason")):
        session.say(f"skipped {_some([one.path for one in group])}: {reason}")


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(printable, paths[:_SHOWN])) + more


def failure(failed: Mapping[str, CoralError], outcome: str) -> CoralError:
    """What to raise for files that cannot be kept: of the class of the first, and naming each, with what to do.

    Args:
        outcome: what became of the others.
    """
    first, *others = failed.values()
    if not others:
        return type(first)(f"{first.message}; {outcome}", hint=first.hint)
    hints = {error.hint for error in failed.values()}
    common = first.hint if len(hints) == 1 else None
    lines = "".join(
        f"\n  {error.message}" + (f"\n    hint: {error.hint}" if error.hint and common is None else "")
        for error in failed.values()
    )
    return type(first)(f"{len(failed):,} files cannot be kept; {outcome}:{lines}", hint=common)
