"""The git repositories that rely on a store: noted in both, so that one that is not found is not taken for none.

git keeps manifests, and ``.coral`` the tensors. Walking up from a project finds the repository around it, but not one
whose folder is elsewhere and is told to git by ``GIT_DIR``. So each that begins to rely on a ``.coral`` is noted: a
line of the file ``relying`` there has a mark and the path of git's folder, which has a file ``coral/<mark>``. A
repository is where its mark is, also when it was moved together with the project; one whose mark is nowhere stops
whoever would remove what it may need, or would say that all is there.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from coral.errors import CorruptionError, GitCommandError, NotFoundError
from coral.git.command import ask
from coral.git.enclosing import common_dir, find_git, is_git_dir, owner
from coral.storage.bounded import read_bounded
from coral.storage.contents import RELYING, lock
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.verbs.git_manifests import manifests_of_head, texts_of_git

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.git.objects import Where

MARKS = "coral"
_LIMIT = 1 << 20
_NOTE = re.compile(r"([0-9a-f]{32}) (/[!-~]*)", re.ASCII)


class _Note(NamedTuple):
    """A repository that relies on a store: its mark, and the git folder that its worktrees share."""

    mark: str
    path: Path


@dataclass(frozen=True, slots=True)
class Reliers:
    """The git repositories that rely on a store, all of which can be reached.

    Attributes:
        project: the project's folder, whose own repository is the one around it, if there is one.
        others: the git folders of those that are not around it.
    """

    project: Path
    others: tuple[Path, ...]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.others) or find_git(self.project) is not None

    def texts(self, *, seen: set[str] | None = None) -> Iterator[tuple[Where, bytes]]:
        """The manifests that any of them reaches, see :func:`coral.verbs.git_manifests.texts_of_git`."""
        yield from texts_of_git(self.project, seen=seen)
        for git_dir in self.others:
            yield from texts_of_git(self.project, git_dir=git_dir, seen=seen)

    def heads(self) -> Iterator[tuple[Where, Manifest]]:
        """The manifests of all commits that led to the HEAD of each."""
        yield from manifests_of_head(self.project)
        for git_dir in self.others:
            yield from manifests_of_head(self.project, git_dir=git_dir)


def reliers(project: Path, folder: Folder) -> Reliers:
    """The repositories that rely on a project's store.

    Args:
        folder: its ``.coral``.

    Raises:
        GitCommandError: one of them cannot be reached, or git does not answer for it.
        CorruptionError: what is noted of them cannot be read.
    """
    around, said = common_dir(project), _by_git(project)
    beside = folder.root.parent  # git's own folder, of a submodule and of a bare repository
    near = [path for path in (around, said, beside if is_git_dir(beside) else None) if path is not None]
    noted = [_reach(note, folder, near) for note in _read(folder)]
    _check_around(project, around, said, noted)
    others: list[Path] = []
    for path in (*near, *filter(None, noted)):
        if not any(_is_same(path, other) for other in (around, *others) if other is not None):
            others.append(path)
    return Reliers(project, tuple(others))


def _reach(note: _Note, folder: Folder, near: Iterable[Path]) -> Path | None:
    """Where a repository is that was noted; None where one that is known of anyway has its mark."""
    if _has_mark(note.path, note.mark):
        return note.path
    if any(_has_mark(path, note.mark) for path in near):
        return None
    raise GitCommandError(
        f"a git repository relies on {folder.root}, and is not where it was: {note.path}",
        hint="where it moved to, run 'coral install'; where it is gone for good, 'coral uninstall' forgets it",
    )


def _by_git(project: Path) -> Path | None:
    """The git folder of the repository that git takes for the project's, as the environment may tell it."""
    answer = ask(project, ["rev-parse", "--git-common-dir"])
    return Path(os.path.normpath(project / answer.removesuffix("\n"))) if answer is not None else None


def _check_around(project: Path, around: Path | None, said: Path | None, noted: Iterable[Path | None]) -> None:
    """Make sure that git will answer for the repository around a project. Raises GitCommandError."""
    start = Path(os.path.abspath(project))
    found = find_git(start)
    for folder in (start, *start.parents):
        candidate = folder / ".git"
        if candidate == found:
            break
        if folder.name != ".coral" and os.path.lexists(candidate):
            raise GitCommandError(f"{candidate} is there, and is no git repository that can be read")
    if found is None:
        return
    if said is None or around is None:
        raise GitCommandError(f"git does not open the repository around {start}", hint="is git installed?")
    if not any(_is_same(said, path) for path in (around, *noted) if path is not None):
        raise GitCommandError(
            f"git was told to use another repository than the one around {start}", hint="unset GIT_DIR"
        )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


# -- the notes


def is_noted(folder: Folder, common: Path) -> bool:
    """Whether a repository is noted where it is, in both."""
    common = Path(os.path.realpath(common))
    return any(note.path == common and _has_mark(common, note.mark) for note in _read(folder))


def note(folder: Folder, project: Path, common: Path) -> bool:
    """Note in both that a git repository relies on a store; whether it was not noted so.

    Args:
        folder: a project's ``.coral``.
        common: the git folder that its worktrees share.

    Raises:
        CorruptionError: what is noted of others cannot be read.
    """
    # One that a .git from elsewhere leads to is not written to; walking up finds it, for what it is.
    if owner(project) == "another" or is_noted(folder, common):
        return False
    path = Path(os.path.realpath(common))
    with file_lock(folder.path(lock(RELYING))):
        notes = _read(folder)
        # One that is moved has its mark; where another one has it as well, this one is a copy.
        moved = [note for note in notes if _has_mark(path, note.mark) and not _has_mark(note.path, note.mark)]
        mark = moved[0].mark if moved else secrets.token_hex(16)
        if not moved:
            # First: of a note whose mark is nowhere the repository is lost.
            Folder(path).write(f"{MARKS}/{mark}", _line(str(folder.root)).encode())
        kept = [note for note in notes if note not in moved and note.path != path]
        _write(folder, [*kept, _Note(mark, path)])
    return True


def forget(folder: Folder, common: Path | None = None) -> list[Path]:
    """Drop the note of a repository, and those of repositories that are not there; returns where these were.

    Raises:
        CorruptionError: what is noted cannot be read.
    """
    path = Path(os.path.realpath(common)) if common is not None else None
    with file_lock(folder.path(lock(RELYING))):
        notes = _read(folder)
        own = [note for note in notes if path is not None and (note.path == path or _has_mark(path, note.mark))]
        lost = [note for note in notes if note not in own and not _has_mark(note.path, note.mark)]
        if own or lost:
            _write(folder, [note for note in notes if note not in (*own, *lost)])
    if path is not None:
        Folder(path).remove_all(f"{MARKS}/{note.mark}" for note in own)
        Folder(path).remove_folder(MARKS)
    return [note.path for note in lost]


def _has_mark(common: Path, mark: str) -> bool:
    return is_git_dir(common) and (common / MARKS / mark).is_file()


def _read(folder: Folder) -> list[_Note]:
    try:
        lines = read_bounded(folder, RELYING, _LIMIT).decode().splitlines()
    except NotFoundError:
        return []
    except UnicodeDecodeError:
        lines = [""]
    found = [_NOTE.fullmatch(line) for line in lines]
    notes = [
        _Note(match[1], Path(os.fsdecode(unquote(match[2], errors="surrogateescape")))) for match in found if match
    ]
    if len(notes) < len(lines):
        raise CorruptionError(
            f"{folder.path(RELYING)} is damaged, so that nobody knows which git repositories rely on the tensors here",
            hint="remove it, and run 'coral install' in each of them",
        )
    return notes


def _write(folder: Folder, notes: Iterable[_Note]) -> None:
    folder.write(RELYING, "".join(f"{note.mark} {_line(str(note.path))}" for note in notes).encode())


def _line(path: str) -> str:
    return quote(path, safe="/!#$&'()*+,;=:@[]~", errors="surrogateescape") + "\n"
