"""Where a repository lies on the disk: finding it, and making a new one."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coral import threads
from coral.errors import ConflictError, CorruptionError, NotFoundError, RepositoryNotFoundError, StorageError
from coral.git.enclosing import common_dir, find_git, owner
from coral.storage.bounded import read_bounded
from coral.storage.contents import CONFIG, CORAL, FOLDERS, HISTORY, LINKED_FROM, PACKS, TMP, lock
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.storage.memory import available_memory
from coral.storage.mounts import network_file_system
from coral.verbs.config import Config

if TYPE_CHECKING:
    from coral.objects import ChunkStore

_EXCLUDE = "exclude"
_LINKS_BYTES = 1 << 20
_SHARE_OF_MEMORY = 4


def is_there(project: Path) -> bool:
    """Whether a folder has a repository, wherever that leads."""
    return (project / CORAL / CONFIG).exists()


def open_folder(project: Path) -> Folder:
    """The ``.coral`` folder of a project.

    Raises:
        RepositoryNotFoundError: there is none.
        ConflictError: there is a link to one that is not said to be this project's, see :func:`_refuse_links`.
    """
    found = _find(project)
    if found is not None:
        return _folder(found)
    raise RepositoryNotFoundError(
        f"{project} is not a coral repository",
        hint="run 'coral init' there, or open it with Repository(path, init=True)",
    )


def discover(start: Path) -> Path:
    """The project folder that holds ``start``: the nearest one upwards with a repository."""
    for candidate in (start, *start.parents):
        if _find(candidate) is not None:
            return candidate
    raise RepositoryNotFoundError(
        f"no coral repository in {start} or the folders above it", hint="run 'coral init' in your project's folder"
    )


def create(project: Path) -> Folder:
    """Make a repository, or open the one that is there. Several processes may call it at once."""
    if sys.platform == "win32":
        raise StorageError("coral runs on Linux and macOS for now", hint="use it inside WSL")
    # A linked worktree may be removed with all that is in it: the repository belongs beside the main one.
    folder = _folder(_find(project) or _main_worktree(project) or project)
    folder.make_folder()
    with file_lock(folder.path(lock("init"))):
        if not folder.exists(CONFIG):
            for name in FOLDERS:
                folder.make_folder(name)
            from coral.history import History  # its library is not needed to find a repository

            History.create(folder.path(HISTORY))
            _exclude(project)
            if folder.root.parent != project and owner(project) == "unsaid":
                folder.write(LINKED_FROM, f"{os.path.realpath(project)}\n".encode(errors="surrogateescape"))
            # Last: its presence says that all else is there.
            folder.write(CONFIG, Config().to_toml().encode())
            _warn_of_network(project)
    return folder


def open_tree(project: Path) -> Folder:
    """The project's own files; what is being written to them lies beside its target."""
    return Folder(project)


def open_store(folder: Folder, config: Config) -> ChunkStore:
    """The chunk store of a repository's folder, or of a remote's."""
    from coral.objects import ChunkStore

    return ChunkStore(
        folder.sub(PACKS),
        folder.path(lock("store")),
        threads=config.threads,
        verify_writes=config.verify_writes,
        memory=(lambda: available_memory() // _SHARE_OF_MEMORY) if config.keep_parent else None,
    )


def _warn_of_network(project: Path) -> None:
    kind = network_file_system(project)
    if kind is not None:
        threads.warn(
            f"{project} is on a network file system ({kind}), whose server decides what locks and fsync are worth; "
            "keep the repository on a local disk where you can",
            UserWarning,
        )


def _folder(project: Path) -> Folder:
    root = project / CORAL
    return Folder(root, temporary=root / TMP)


def _find(project: Path) -> Path | None:
    """The folder that a project's ``.coral`` lies in; None when there is none. Raises ConflictError."""
    if _is_repository(project):
        return project
    main = _main_worktree(project)
    return main if main is not None and _is_repository(main) else None


def _main_worktree(project: Path) -> Path | None:
    """In a linked worktree of git, the main one, whose ``.coral`` all of them share.

    Of a bare repository, and of a submodule, git's own folder: what is beside a worktree of theirs goes away with it.

    Raises:
        ConflictError: a ``.git`` leads to a repository with a ``.coral``, and neither says that this is its worktree.
    """
    dot_git = project / ".git"
    if not dot_git.is_file() or find_git(project) != dot_git:
        return None
    common = common_dir(project)
    if common is None:
        return None
    main = common.parent if common.name == ".git" else common
    whose, coral = owner(project), main / CORAL
    if whose != "this" and (coral / CONFIG).is_file() and not _is_linked_from(coral, project):
        moved = f"a linked worktree that was moved: git worktree repair {shlex.quote(str(project))}; else, "
        raise _not_said(f"{dot_git} leads to {common}", coral, project, moved if whose == "another" else "")
    return main if whose != "another" or (coral / CONFIG).is_file() else None


def _is_repository(project: Path) -> bool:
    """Whether there is one in a folder. Raises ConflictError."""
    _refuse_links(project)
    return (project / CORAL / CONFIG).is_file()


def _refuse_links(project: Path) -> None:
    """Raise ConflictError where ``.coral``, or the history in it, is elsewhere, unless the place itself agrees.

    git keeps links, so that a clone may bring one to somebody's ``.coral``. Where the user made it, the place that it
    leads to names the project in a line of the file ``linked-from``, which nobody can bring along.
    """
    coral = project / CORAL
    if coral.is_symlink() and not _is_linked_from(coral, project):
        raise _not_said(f"{coral} is a symbolic link", coral, project)
    history = coral / HISTORY
    if history.is_symlink() or os.path.lexists(history / "commondir"):
        raise ConflictError(
            f"{history} leads to another repository, and is not used", hint=f"move that one's folder to {history}"
        )


def _not_said(what: str, coral: Path, project: Path, before: str = "") -> ConflictError:
    """The error for a ``.coral`` elsewhere that does not name the project."""
    place, said = os.path.realpath(coral), os.path.realpath(project)
    note = os.path.join(place, LINKED_FROM)
    return ConflictError(
        f"{what}, and {place} does not say that it is for {said}: it is not used",
        hint=f"{before}if it is yours, say so there: echo {shlex.quote(said)} >> {shlex.quote(note)}",
    )


def _is_linked_from(coral: Path, project: Path) -> bool:
    try:
        text = read_bounded(Folder(coral), LINKED_FROM, _LINKS_BYTES).decode(errors="surrogateescape")
    except (NotFoundError, CorruptionError, StorageError):
        return False
    return os.path.realpath(project) in text.split("\n")


def _exclude(project: Path) -> None:
    """List ``.coral`` in the ``info/exclude`` of the git repository around a project."""
    common, found = common_dir(project), find_git(project)
    if common is None or found is None:
        return
    if owner(found.parent) == "another":
        threads.warn(f"{found} leads to another folder's repository, which is not told to ignore .coral", UserWarning)
        return
    exclude(common)


def exclude(common: Path) -> None:
    """List ``.coral`` in the ``info/exclude`` of a git repository, by the git folder that its worktrees share."""
    folder = Folder(common / "info")
    text = folder.read(_EXCLUDE).decode(errors="surrogateescape") if folder.exists(_EXCLUDE) else ""
    if f"{CORAL}/" in (line.strip() for line in text.splitlines()):
        return
    if text and not text.endswith("\n"):
        text += "\n"
    folder.write(_EXCLUDE, f"{text}{CORAL}/\n".encode(errors="surrogateescape"))
