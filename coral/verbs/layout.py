"""Where a repository lies on the disk: finding it, and making a new one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coral import threads
from coral.errors import RepositoryNotFoundError, StorageError
from coral.git.enclosing import common_dir, exclude_file
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.storage.memory import available_memory
from coral.storage.mounts import network_file_system
from coral.verbs.config import CONFIG, Config

if TYPE_CHECKING:
    from coral.objects import ChunkStore

CORAL = ".coral"
_FOLDERS = ("packs", "staging", "experiments", "trash", "tmp", "locks")
_SHARE_OF_MEMORY = 4


def open_folder(project: Path) -> Folder:
    """The ``.coral`` folder of a project. Raises RepositoryNotFoundError."""
    for candidate in (project, _main_worktree(project)):
        if candidate is not None and _is_repository(candidate):
            return _folder(candidate)
    raise RepositoryNotFoundError(
        f"{project} is not a coral repository",
        hint="run 'coral init' there, or open it with Repository(path, init=True)",
    )


def discover(start: Path) -> Path:
    """The project folder that holds ``start``: the nearest one upwards with a repository."""
    for candidate in (start, *start.parents):
        main = _main_worktree(candidate)
        if _is_repository(candidate) or (main is not None and _is_repository(main)):
            return candidate
    raise RepositoryNotFoundError(
        f"no coral repository in {start} or the folders above it", hint="run 'coral init' in your project's folder"
    )


def create(project: Path) -> Folder:
    """Make a repository, or open the one that is there. Several processes may call it at once."""
    if sys.platform == "win32":
        raise StorageError("coral runs on Linux and macOS for now", hint="use it inside WSL")
    # A linked worktree may be removed with all that is in it: the repository belongs beside the main one.
    folder = _folder(project if _is_repository(project) else _main_worktree(project) or project)
    folder.make_folder()
    with file_lock(folder.root / "locks" / "init"):
        if not folder.exists(CONFIG):
            for name in _FOLDERS:
                folder.make_folder(name)
            from coral.history import History  # its library is not needed to find a repository

            History.create(folder.root / ".git")
            _exclude(project)
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
        folder.sub("packs"),
        folder.root / "locks" / "store",
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
    return Folder(root, temporary=root / "tmp")


def _main_worktree(project: Path) -> Path | None:
    """In a linked worktree of git, the main one, whose ``.coral`` all of them share.

    Of a bare repository, and of a submodule, git's own folder: what is beside a worktree of theirs goes away with it.
    """
    if not (project / ".git").is_file():
        return None
    common = common_dir(project)
    if common is None:
        return None
    return common.parent if common.name == ".git" else common


def _is_repository(project: Path) -> bool:
    return (project / CORAL / CONFIG).is_file()


def _exclude(project: Path) -> None:
    """List ``.coral`` in the enclosing git repository's ``info/exclude``."""
    path = exclude_file(project)
    if path is None:
        return
    folder = Folder(path.parent)
    text = folder.read(path.name).decode(errors="surrogateescape") if path.exists() else ""
    if f"{CORAL}/" in (line.strip() for line in text.splitlines()):
        return
    if text and not text.endswith("\n"):
        text += "\n"
    folder.write(path.name, f"{text}{CORAL}/\n".encode(errors="surrogateescape"))
