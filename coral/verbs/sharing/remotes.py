"""Remotes: folders that other people's repositories share chunks through, by name, and which of them the user chose.

The user's own are in ``.coral/config.toml``. A file ``.coralconfig`` at the root of the git worktree, which is
committed, tells colleagues of them; what stands only there is an offer. It is used once the user adopts it, because
whoever can commit to a project must not choose a folder that others write to without being told.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from coral.errors import AlreadyExistsError, CoralError, FormatError, InvalidNameError, NotFoundError, UsageError
from coral.git.enclosing import find_git
from coral.storage.contents import CONFIG, CORAL, HISTORY, LOCKS, PACKS, TMP, lock
from coral.storage.folder import Folder
from coral.storage.folder_place import FolderPlace
from coral.storage.locks import file_lock
from coral.verbs.config import Config, Remote, read_settings, remote_lines, remotes_of
from coral.verbs.layout import open_folder

if TYPE_CHECKING:
    from coral.objects import ChunkStore
    from coral.objects.far import FarShelf
    from coral.storage.place import Place

OFFERS = ".coralconfig"
DEFAULT = "origin"
KINDS = "a folder: an absolute path, a path relative to the project, or file:///path"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST_AND_PATH = re.compile(r"[^/]*:")


def add_remote(project: Path, folder: Folder, remote: Remote, *, private: bool = False) -> Path | None:
    """Name a remote, and make its folder ready where it is not; returns the file that tells colleagues of it.

    Args:
        folder: the project's ``.coral``.
        private: tell nobody; nor is anybody told outside of a git repository.

    Raises:
        UsageError: a place or name that cannot be.
        AlreadyExistsError: another remote has the name, here or in ``.coralconfig``.
    """
    _check_name(remote.name)
    root = folder_of(remote, folder.root.parent)
    offers = None if private else _offers_file(project)
    for others, where in ((Config.load(folder).remotes, CONFIG), (_offered(offers), OFFERS)):
        _refuse_taken(remote, others, where)
    _make_ready(root)
    with _changing(folder):
        if offers is not None:
            _change(Folder(offers.parent), OFFERS, partial(_with_remote, remote=remote))
        _change(folder, CONFIG, partial(_with_remote, remote=remote))
    return offers


def remove_remote(project: Path, folder: Folder, name: str, *, private: bool = False) -> Path | None:
    """Forget a remote; its chunks stay. Returns the file that told colleagues of it, if it does no longer.

    Args:
        private: colleagues still find it in ``.coralconfig``.

    Raises:
        NotFoundError: no such remote.
    """
    offers = None if private else _offers_file(project)
    here = _named(Config.load(folder).remotes, name)
    there = _named(_offered(offers), name)
    if here is None and there is None:
        raise _no_such(name, Config.load(folder).remotes)
    with _changing(folder):
        _change(folder, CONFIG, partial(_without_remote, name=name))
        if offers is not None and there is not None:
            _change(Folder(offers.parent), OFFERS, partial(_without_remote, name=name))
            return offers
    return None


def offered_remotes(project: Path, folder: Folder) -> list[Remote]:
    """The remotes that ``.coralconfig`` names and that are not the user's own, or lie elsewhere. Raises FormatError."""
    own = Config.load(folder).remotes
    return [remote for remote in _offered(_offers_file(project)) if remote not in own]


def adopt_remotes(project: Path, folder: Folder) -> list[Remote]:
    """Make the remotes of ``.coralconfig`` whose names are new the user's own; returns them.

    To be called only where the user asked for it, and to be told what came of it. Raises FormatError, UsageError.
    """
    taken = {remote.name for remote in Config.load(folder).remotes}
    fresh = [remote for remote in offered_remotes(project, folder) if remote.name not in taken]
    for remote in fresh:
        folder_of(remote, folder.root.parent)
    if fresh:
        with _changing(folder):
            for remote in fresh:
                _change(folder, CONFIG, partial(_with_remote, remote=remote))
    return fresh


def choose_remote(config: Config, name: str | None = None, *, like: str | None = None) -> Remote:
    """The remote that is meant: the one named, else the one named ``like`` something, else origin, else the only one.

    Raises:
        NotFoundError: there is none, or none of that name.
        UsageError: there are several, and nothing says which is meant.
    """
    if name is not None:
        found = _named(config.remotes, name)
        if found is None:
            raise _no_such(name, config.remotes)
        return found
    for wanted in filter(None, (like, DEFAULT)):
        found = _named(config.remotes, wanted)
        if found is not None:
            return found
    if not config.remotes:
        raise NotFoundError("no coral remote is configured", hint="'coral remote add origin PATH' names one")
    if len(config.remotes) > 1:
        raise UsageError(f"which remote: {_names(config.remotes)}?")
    return config.remotes[0]


def open_remote(project: Path, config: Config, name: str | None = None) -> FarShelf:
    """The chunks of a remote, to fetch from; None takes origin, else the only one.

    Raises:
        NotFoundError: no such remote, or its folder is not there, as when it is not mounted.
        UsageError: there are several, or its url is of a kind that is not supported, or leads to a repository.
        VersionError: made by a newer coral.
    """
    from coral.objects.far import FarShelf

    root = _find(project, config, name)
    guard = partial(file_lock, _store_lock(root), shared=True)
    return FarShelf(place_of(root), PACKS, threads=config.threads, guard=guard)


def place_of(root: Path) -> Place:
    """What a remote is read through. Every remote is a folder as yet."""
    return FolderPlace(root)


def open_target(project: Path, config: Config, name: str | None = None) -> ChunkStore:
    """The chunk store in a remote's folder, to send to. Raises as :func:`open_remote`."""
    from coral.objects import ChunkStore

    root = _find(project, config, name)
    return ChunkStore(
        _folder(root).sub(PACKS),
        _store_lock(root),
        threads=config.threads,
        verify_writes=config.verify_writes,
    )


def _find(project: Path, config: Config, name: str | None) -> Path:
    """The folder of the remote that is meant, where there is one."""
    remote = choose_remote(config, name)
    root = folder_of(remote, open_folder(project).root.parent)
    folder = _folder(root)
    _refuse_repository(root, folder.names())
    try:
        Config.load(folder)
    except NotFoundError:
        raise NotFoundError(
            f"the remote {remote.name!r} is not there: {root} holds no coral remote",
            hint=f"mount it, or make a new one there with 'coral remote add {remote.name} {remote.url}'",
        ) from None
    return root


def _store_lock(root: Path) -> Path:
    return root / lock("store")


def folder_of(remote: Remote, project: Path) -> Path:
    """Where a remote's files are. Raises UsageError for anything but a folder, and for one inside of ``.coral``.

    Args:
        project: the folder that holds ``.coral``, which relative paths are relative to.
    """
    root = Path(project / _path_of(remote.url))
    resolved, own = root.resolve(), (project / CORAL).resolve()
    if own in (resolved, *resolved.parents):
        raise UsageError(f"{remote.url!r} is this repository itself", hint=f"a remote is {KINDS}")
    return root


def _path_of(url: str) -> str:
    if not url or not url.isprintable():
        raise UsageError(f"{url!r} is no place for a remote", hint=f"a remote is {KINDS}")
    if url.startswith("file://"):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"{url!r} names another machine", hint="write file:///path, with three slashes")
        return unquote(url.removeprefix("file://").removeprefix(parts.netloc))
    if _HOST_AND_PATH.match(url):
        raise UsageError(f"a remote of the kind {url!r} is not supported yet", hint=f"a remote is {KINDS}")
    if url.startswith("~"):
        raise UsageError(f"'~' means nothing in {url!r}: settings are read by several users", hint="write all of it")
    return url


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} is not a valid name for a remote", hint="use letters, digits, '-', '_' and '.'"
        )


def _refuse_taken(remote: Remote, others: Iterable[Remote], where: str) -> None:
    other = _named(others, remote.name)
    if other is not None and other != remote:
        raise AlreadyExistsError(
            f"{where} has a remote {other.name!r} already: {other.url}",
            hint=f"choose another name, or remove that one with 'coral remote remove {other.name}'",
        )


def _named(remotes: Iterable[Remote], name: str) -> Remote | None:
    return next((remote for remote in remotes if remote.name == name), None)


def _no_such(name: str, remotes: Iterable[Remote]) -> NotFoundError:
    known = _names(remotes)
    return NotFoundError(
        f"there is no remote {name!r}", hint=f"there is {known}" if known else "'coral remote add' names one"
    )


def _names(remotes: Iterable[Remote]) -> str:
    return ", ".join(remote.name for remote in remotes)


# -- a remote's folder


def _folder(root: Path) -> Folder:
    return Folder(root, temporary=root / TMP)


def _refuse_repository(root: Path, names: Iterable[str]) -> None:
    """Raise UsageError where these are the names in a repository, which settings from elsewhere may call a remote."""
    if not {HISTORY, CORAL}.isdisjoint(names):
        raise UsageError(f"{root} is a repository, not a remote", hint="name an empty folder, or a new one")


def _make_ready(root: Path) -> None:
    """Make a remote in a folder that is empty or not there yet; one that is there already stays as it is."""
    folder = _folder(root)
    names = folder.names()
    _refuse_repository(root, names)
    if CONFIG in names:
        Config.load(folder)
        return
    strangers = [name for name in names if name not in (PACKS, LOCKS, TMP) and not name.startswith(".")]
    if strangers:
        raise UsageError(f"{root} holds other files: {strangers[0]}", hint="name an empty folder, or a new one")
    folder.make_folder(PACKS)
    folder.make_folder(TMP)
    # Whoever may only read the remote cannot make the lock.
    with file_lock(_store_lock(root), shared=True):
        folder.write(CONFIG, Config().to_toml().encode())


# -- the files that name remotes


def _offers_file(project: Path) -> Path | None:
    """The ``.coralconfig`` of the git worktree around a project, which may not exist; None outside of git."""
    found = find_git(project)
    return found.parent / OFFERS if found is not None else None


def _offered(path: Path | None) -> tuple[Remote, ...]:
    if path is None:
        return ()
    try:
        remotes = remotes_of(read_settings(Folder(path.parent), path.name))
        for remote in remotes:
            _check_name(remote.name)
            _path_of(remote.url)
    except NotFoundError:
        return ()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.message if isinstance(error, CoralError) else error
        raise FormatError(f"{path} is malformed: {reason}", hint="mend it, or take it out of the project") from None
    return remotes


def _changing(folder: Folder) -> contextlib.AbstractContextManager[None]:
    return file_lock(folder.path(lock("config")))


def _change(folder: Folder, key: str, edit: Callable[[str], str]) -> None:
    """Change a settings file, atomically."""
    text = folder.read(key).decode() if folder.exists(key) else ""
    changed = edit(text)
    if changed != text:
        folder.write(key, changed.encode())


def _with_remote(text: str, remote: Remote) -> str:
    """A settings file's text with one remote more, all else as it was, comments included."""
    data = tomllib.loads(text)
    if remote in remotes_of(data):
        return text
    before = [text.rstrip("\n"), ""] if text else []
    changed = "\n".join([*before, *remote_lines(remote), ""])
    expected = {**data, "remotes": {**data.get("remotes", {}), remote.name: {"url": remote.url}}}
    return _checked(changed, expected, f"add [remotes.{remote.name}] by hand")


def _without_remote(text: str, name: str) -> str:
    """A settings file's text without a remote."""
    data = tomllib.loads(text)
    if name not in data.get("remotes", {}):
        return text
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = _heading(line) == {"remotes": {name: {}}}
        if not inside:
            kept.append(line)
    expected = {**data, "remotes": {key: table for key, table in data["remotes"].items() if key != name}}
    return _checked("".join(kept).rstrip("\n") + "\n", expected, f"take the remote {name} out by hand")


def _heading(line: str) -> object:
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None


def _checked(text: str, expected: dict[str, Any], otherwise: str) -> str:
    """A changed text, if it says what is expected: TOML may be written in more ways than are looked for here."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        data = {}
    if {"remotes": {}, **data} != {"remotes": {}, **expected}:
        raise UsageError("the settings are written in a way that coral does not change", hint=otherwise)
    return text
