"""Which files of the user's git repository coral takes: the patterns in its attribute files, and what they match."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coral.errors import ConflictError, NotFoundError
from coral.format.manifest import is_manifest
from coral.git import attributes, index
from coral.git.blobs import read_found
from coral.git.surroundings import Surroundings
from coral.storage.folder import Folder
from coral.verbs.inside_git.install import alone

# A manifest of a hundred thousand tensors has 12 MB; what is larger is taken for a model.
_CODING = ("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that has coral's filter, and the attribute file that says so, from the top of the worktree."""

    pattern: str
    source: str


@dataclass(frozen=True, slots=True)
class Edited:
    """What :func:`track` or :func:`untrack` did.

    Attributes:
        changed: the patterns that were added or removed.
        stale: files in git, from the top of the worktree, that git would keep otherwise if they were added now.
    """

    changed: tuple[str, ...]
    stale: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tracked:
    """The patterns of a worktree, and the files in git's index that git filters through coral."""

    patterns: tuple[Pattern, ...]
    files: tuple[str, ...]


def track(place: Surroundings, given: Sequence[str]) -> Edited:
    """Give patterns coral's filter, in the attribute file of the place's folder.

    Raises:
        UsageError: git's attributes cannot say one of the patterns; nothing was written.
        ConflictError: the attribute file is a symbolic link, which git does not read.
    """
    patterns = [attributes.normal(pattern) for pattern in given]
    with alone(place):
        changed = _edit(place, patterns, attributes.add)
    entries = _below(place)
    matched = _filtered(place, entries)
    manifests = _manifests(place, (entry for entry in entries if entry.name in matched))
    return Edited(changed, tuple(sorted(matched - manifests)))


def untrack(place: Surroundings, given: Sequence[str]) -> Edited:
    """Take coral's filter from patterns, in the attribute file of the place's folder.

    Raises:
        NotFoundError: that file does not give one of the patterns coral's filter; nothing was written.
    """
    patterns = [attributes.normal(pattern) for pattern in given]
    entries = _below(place)
    with alone(place):
        _check_tracked(place, patterns)
        before = _filtered(place, entries)
        changed = _edit(place, patterns, attributes.remove)
    lost = before - _filtered(place, entries)
    return Edited(changed, tuple(sorted(_manifests(place, (entry for entry in entries if entry.name in lost)))))


def tracked(place: Surroundings) -> Tracked:
    """What coral takes in the whole worktree."""
    sources = {name: place.top / name for name in index.attribute_files(place.top)}
    sources[os.path.relpath(place.attributes, place.top)] = place.attributes
    patterns = [
        Pattern(pattern, name)
        for name, path in sources.items()
        if path.is_file() and not path.is_symlink()
        for pattern in attributes.patterns(path.read_bytes().decode(*_CODING))
    ]
    return Tracked(tuple(patterns), tuple(sorted(_filtered(place, index.index_entries(place.top)))))


def _edit(place: Surroundings, patterns: Sequence[str], change: Callable[[str, str], str]) -> tuple[str, ...]:
    """Change the attribute file pattern by pattern; returns those that made a difference."""
    folder, text = Folder(place.folder), _text(place)
    path, changed = folder.path(attributes.FILE), []
    for pattern in dict.fromkeys(patterns):
        old, text = text, change(text, pattern)
        if text != old:
            changed.append(pattern)
    if changed:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        folder.write(attributes.FILE, text.encode(*_CODING), mode=mode)
    return tuple(changed)


def _text(place: Surroundings) -> str:
    path = place.folder / attributes.FILE
    if path.is_symlink():
        raise ConflictError(f"{path} is a symbolic link, which git does not read", hint="make it a file of its own")
    return Folder(place.folder).read(attributes.FILE).decode(*_CODING) if path.exists() else ""


def _check_tracked(place: Surroundings, patterns: Iterable[str]) -> None:
    known = attributes.patterns(_text(place))
    for pattern in patterns:
        if pattern not in known:
            where = place.folder / attributes.FILE
            hint = f"it tracks {', '.join(known)}" if known else "'coral tracked' lists the patterns and their files"
            raise NotFoundError(f"{where} does not track {pattern!r}", hint=hint)


def _below(place: Surroundings) -> list[index.Entry]:
    """The files in the index that the attribute file of the place's folder may match."""
    folder = os.path.relpath(place.folder, place.top)
    start = "" if folder == "." else f"{folder}/"
    return [entry for entry in index.index_entries(place.top) if entry.name.startswith(start)]


def _filtered(place: Surroundings, entries: Iterable[index.Entry]) -> set[str]:
    return index.filtered(place.top, (entry.name for entry in entries if entry.is_file))


def _manifests(place: Surroundings, entries: Iterable[index.Entry]) -> set[str]:
    """The files whose blob is a manifest."""
    wanted = ((entry.blob, entry.name) for entry in entries if entry.is_file)
    return {name for name, _ in read_found(place.top, wanted, wanted=is_manifest)}
