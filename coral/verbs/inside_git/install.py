"""Putting coral into the user's git repository, and taking it out again: its folder, its hook, git's settings.

The hook comes before the settings: what git stores through coral's filter must never be pushed without its tensors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coral.errors import AlreadyExistsError, ConflictError, NotFoundError, RepositoryNotFoundError, StorageError
from coral.git import settings
from coral.git.hooks import BEFORE, HOOK, MODE, knows_its_name, script, state_of
from coral.git.surroundings import Surroundings
from coral.storage.contents import lock
from coral.storage.folder import Folder
from coral.storage.locks import file_lock
from coral.verbs import layout
from coral.verbs.relying import forget, is_noted, note

HookChange = Literal["unchanged", "written", "removed", "restored", "edited", "foreign"]
"""What became of the hook; ``edited`` and ``foreign`` ones were left as they are."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What :func:`install` did.

    Attributes:
        folder: the folder of coral's repository.
        created: whether it was made.
        settings: the keys of git's configuration that changed.
        overwritten: what ``force`` overwrote, as ``key = value``.
        hook: the hook, and what became of it.
        before: the user's hook, which runs first; None for none.
        renamed: whether that hook asks for its own name, which has changed.
        noted: whether it was noted that the repository relies on coral's, see :mod:`coral.verbs.relying`.
    """

    folder: Path
    created: bool
    settings: tuple[str, ...]
    overwritten: tuple[str, ...]
    hook: Path
    change: HookChange
    before: Path | None
    renamed: bool
    noted: bool

    @property
    def changed(self) -> bool:
        """Whether anything did."""
        return self.created or self.noted or bool(self.settings) or self.change == "written"


@dataclass(frozen=True, slots=True)
class Uninstalled:
    """What :func:`uninstall` did: the keys it removed, the hook, and what became of that.

    ``forgotten`` are git repositories that relied on coral's, and are no longer there.
    """

    settings: tuple[str, ...]
    hook: Path
    change: HookChange
    forgotten: tuple[Path, ...]


def install(place: Surroundings, program: Sequence[str], *, force: bool = False, configure: bool = True) -> Installed:
    """Set coral up in a repository; doing it again changes nothing, or brings paths up to date.

    Args:
        program: the words that start coral.
        force: overwrite settings of the user's.
        configure: False leaves git's settings alone.

    Raises:
        ConflictError: the user has other settings, two hooks, or hooks switched off; of these nothing was changed.
    """
    if configure and not force:
        settings.check(place.top, program, "local")
    _check_hooks(place)
    created = _coral_folder(place) is None
    folder = layout.create(place.top)
    layout.exclude(place.common)
    # Before git is told to call coral: what it then stores must never be taken for garbage.
    noted = note(folder, place.top, place.common)
    with alone(place):
        taken = settings.conflicts(place.top, program, "local") if configure else []
        hook, change = _put_in(place, program)
        changed = settings.install(place.top, program, "local", force=force) if configure else []
    before = hook.with_name(BEFORE)
    there = os.path.lexists(before)
    return Installed(
        folder=folder.root,
        created=created,
        settings=tuple(changed),
        overwritten=tuple(taken),
        hook=hook,
        change=change,
        before=before if there else None,
        renamed=there and knows_its_name(_bytes(Folder(before.parent), BEFORE)),
        noted=noted,
    )


def is_configured(place: Surroundings) -> bool:
    """Whether git's settings, of whatever scope, name a program of coral's that is there."""
    program = settings.installed_program(place.top)
    return program is not None and os.path.exists(program[0])


def is_installed(place: Surroundings) -> bool:
    """Whether git runs coral here: settings, hook and coral's own repository are there, and that one knows of git's."""
    states, folder = _states(Folder(place.hooks)).values(), _coral_folder(place)
    is_known = folder is not None and is_noted(folder, place.common)
    return is_configured(place) and is_known and any(state != "foreign" for state in states)


def uninstall(place: Surroundings) -> Uninstalled:
    """Take out what :func:`install` put in; the weights stay. Doing it again changes nothing."""
    folder = _coral_folder(place)
    with alone(place):
        removed = settings.uninstall(place.top, "local")
        hook, change = _take_out(place)
        forgotten = forget(folder, place.common) if folder is not None else []
    return Uninstalled(tuple(removed), hook, change, tuple(forgotten))


@contextlib.contextmanager
def alone(place: Surroundings) -> Iterator[None]:
    """Keep other processes of coral from changing git's files of this repository, where coral has a place to say so."""
    folder = _coral_folder(place)
    with file_lock(folder.path(lock("git"))) if folder is not None else contextlib.nullcontext():
        yield


def _coral_folder(place: Surroundings) -> Folder | None:
    try:
        return layout.open_folder(place.top)
    except RepositoryNotFoundError:
        return None


# -- the hook


def _check_hooks(place: Surroundings) -> None:
    if place.hooks.exists() and not place.hooks.is_dir():
        raise ConflictError(
            f"core.hooksPath is {place.hooks}, so that git runs no hooks, and would push without any tensors",
            hint="unset it with 'git config --unset core.hooksPath', or 'coral install --global' sets up no hook",
        )
    if place.hooks_are_of is not None:
        raise ConflictError(
            f"git would take this repository's hooks from {place.hooks.resolve()}, which is {place.hooks_are_of}'s",
            hint="unset core.hooksPath or remove the link; hooks that are yours, name in your own settings: "
            "git config --global core.hooksPath",
        )


def _put_in(place: Surroundings, program: Sequence[str]) -> tuple[Path, HookChange]:
    hooks, data = Folder(place.hooks), script(program)
    states = _states(hooks)
    name = _corals(states) or HOOK
    path = hooks.path(name)
    if states.get(name) == "edited":
        return path, "edited"
    if states.get(name) == "coral" and hooks.read(name) == data and os.access(path, os.X_OK):
        return path, "unchanged"
    if states.get(name) == "foreign":
        _put_aside(hooks, name)
    hooks.write(name, data, mode=MODE)
    return path, "written"


def _put_aside(hooks: Folder, name: str) -> None:
    """Give the user's hook its second name; it keeps the first until coral's takes that, so that git always has one."""
    try:
        hooks.link(name, BEFORE)
    except AlreadyExistsError:
        if not _is_one_file(hooks, name):  # as an installation that was killed leaves it
            raise ConflictError(
                f"there are two hooks to keep: {hooks.path(name)} and {BEFORE}",
                hint=f"make one of the two, call it {name}, and install again",
            ) from None
    except StorageError:  # a file system without links
        hooks.move(name, BEFORE)


def _is_one_file(hooks: Folder, name: str) -> bool:
    return os.path.samestat(hooks.path(name).lstat(), hooks.path(BEFORE).lstat())


def _take_out(place: Surroundings) -> tuple[Path, HookChange]:
    hooks = Folder(place.hooks)
    states = _states(hooks)
    name = _corals(states) or HOOK
    path, kept = hooks.path(name), os.path.lexists(hooks.path(BEFORE))
    if states.get(name) == "edited":
        return path, "edited"
    if states.get(name) == "foreign":
        if kept and _is_one_file(hooks, name):
            hooks.remove(BEFORE)
            return path, "unchanged"
        return path, "foreign" if kept else "unchanged"
    if kept:
        hooks.move(BEFORE, name)
        return path, "restored"
    if name not in states:
        return path, "unchanged"
    hooks.remove(name)
    return path, "removed"


def _states(hooks: Folder) -> dict[str, str]:
    """Whose each pre-push hook is. Other tools give coral's hook names of their own, and call it from theirs."""
    return {name: state_of(_bytes(hooks, name)) for name in _names(hooks) if name.startswith(HOOK)}


def _corals(states: dict[str, str]) -> str | None:
    names = [name for name, state in states.items() if state != "foreign"]
    return HOOK if HOOK in names else min(names, default=None)


def _names(hooks: Folder) -> list[str]:
    try:
        return hooks.names()
    except StorageError:  # not a folder
        return []


def _bytes(hooks: Folder, name: str) -> bytes:
    """A hook's bytes; none for one that leads nowhere, or is not for us to read."""
    try:
        return hooks.read(name)
    except (NotFoundError, StorageError):
        return b""
