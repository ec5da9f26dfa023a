"""Trees: the named parts of a commit, as git keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from coral.errors import ConflictError, CorruptionError, InvalidNameError
from coral.format.names import check_part_name
from coral.history.libgit import Handle
from coral.ids import BlobId

_BLOB, _FOLDER = "100644", "40000"
_BLOB_MODES = (_BLOB, "100755", "100664")
# A folder may stand in a tree many times, so that a few kilobytes of trees can hold more paths than memory does.
_MAX_PATHS = 1_000_000
_MAX_DEPTH = 64
_FOREIGN = "another program made this commit; do not trust what it holds"
_SHORT = 250  # letters of which even the longest name in UTF-8 is short enough


class Entry(NamedTuple):
    """One entry of a tree."""

    mode: str
    oid: str

    @property
    def is_folder(self) -> bool:
        return self.mode == _FOLDER

    @property
    def is_blob(self) -> bool:
        """Whether it is a file; a link or a submodule is none."""
        return self.mode in _BLOB_MODES


@dataclass(slots=True)
class _Changes:
    """What an overlay does to one folder: blobs to set (None removes), and what it does to folders inside."""

    blobs: dict[str, BlobId | None] = field(default_factory=dict)
    folders: dict[str, _Changes] = field(default_factory=dict)


def entries(handle: Handle, tree: str) -> dict[str, Entry]:
    """The entries of one tree, by name. Raises CorruptionError."""
    kind, data = handle.read(tree)
    found = {}
    position = count = 0
    try:
        if kind != "tree":
            raise ValueError
        while position < len(data):
            end = data.index(b"\0", position)
            mode, _, name = data[position:end].partition(b" ")
            position = end + 21
            found[name.decode("utf-8", "surrogateescape")] = Entry(mode.decode(), data[end + 1 : position].hex())
            count += 1
        if position != len(data) or len(found) != count:  # cut short, or one name twice
            raise ValueError
    except ValueError:
        raise CorruptionError(f"the git tree {tree} is malformed", hint="run coral fsck") from None
    return found


def walk(handle: Handle, tree: str) -> dict[str, BlobId]:
    """Every path of a tree and its blob, sorted by path.

    Raises:
        CorruptionError: no coral wrote this: a path that leads out of the project, or to a file that another program
            obeys; more paths, or deeper ones, than a commit may have.
    """
    found: dict[str, BlobId] = {}
    known: dict[str, dict[str, Entry]] = {}
    todo, count = [("", 1, tree)], 0
    while todo:
        prefix, depth, oid = todo.pop()
        if depth > _MAX_DEPTH:
            raise CorruptionError(f"the path {prefix!r} has more than {_MAX_DEPTH} levels", hint=_FOREIGN)
        if oid not in known:
            known[oid] = entries(handle, oid)
        count += len(known[oid])
        if count > _MAX_PATHS:
            raise CorruptionError(f"the git tree {tree} holds more than {_MAX_PATHS:,} paths", hint=_FOREIGN)
        for name, entry in known[oid].items():
            if entry.is_folder:
                todo.append((f"{_checked(prefix, name)}/", depth + 1, entry.oid))
            elif entry.is_blob:
                found[_checked(prefix, name)] = BlobId(entry.oid)
    return dict(sorted(found.items()))


def _checked(prefix: str, name: str) -> str:
    """The path of an entry. Raises CorruptionError when no part may have it."""
    path = prefix + name
    try:
        _check_component(name)
        if len(path) > _SHORT:
            check_part_name(path)
    except InvalidNameError:
        raise CorruptionError(f"the path {path!r} cannot be the name of a part", hint=_FOREIGN) from None
    return path


@lru_cache(maxsize=2**16)
def _check_component(name: str) -> None:
    # One name between slashes at a time, because every commit has them again.
    if "/" in name:
        raise InvalidNameError(f"{name!r} holds a slash")
    check_part_name(name)


class Finder:
    """Looks one path up in many trees, and reads each of them once.

    Args:
        path: any text; one that no part may have is an error only where a tree holds it.
    """

    def __init__(self, handle: Handle, path: str) -> None:
        self._handle = handle
        self._names = path.split("/")
        self._known: dict[tuple[int, str], Entry | None] = {}

    def find(self, tree: str) -> Entry | None:
        """The entry at the path, reading only the trees on the way to it. Raises CorruptionError."""
        entry: Entry | None = Entry(_FOLDER, tree)
        for depth, name in enumerate(self._names):
            if entry is None or not entry.is_folder:
                return None
            key = depth, entry.oid
            if key not in self._known:
                self._known[key] = entries(self._handle, entry.oid).get(name)
            entry = self._known[key]
        return entry

    def blob(self, tree: str) -> BlobId | None:
        """The file at the path. Raises CorruptionError when no part may have that path."""
        entry = self.find(tree)
        if entry is None or not entry.is_blob:
            return None
        prefix = ""
        for name in self._names:
            prefix = f"{_checked(prefix, name)}/"
        return BlobId(entry.oid)


def overlay(handle: Handle, tree: str | None, changes: Mapping[str, BlobId | None]) -> str:
    """Write a tree with some paths set to other blobs, or removed; returns it.

    Args:
        tree: what to start from; None is empty.
        changes: path to blob; None removes the path (and is fine where there is none).

    Raises:
        InvalidNameError: a path that cannot be a part's name, or has more levels than :func:`walk` takes.
        ConflictError: one path would be a file and a folder.
    """
    return _apply(handle, tree, _group(changes), "") or _write(handle, {})


def _group(changes: Mapping[str, BlobId | None]) -> _Changes:
    top = _Changes()
    for path, oid in changes.items():
        *folders, name = check_part_name(path).split("/")
        if len(folders) >= _MAX_DEPTH:
            raise InvalidNameError(f"{path!r} has more than {_MAX_DEPTH} levels", hint="give the file a shorter path")
        level = top
        for folder in folders:
            level = level.folders.setdefault(folder, _Changes())
        level.blobs[name] = oid
    return top


def _apply(handle: Handle, tree: str | None, changes: _Changes, prefix: str) -> str | None:
    found = entries(handle, tree) if tree is not None else {}
    for name, oid in changes.blobs.items():
        entry = found.get(name)
        if oid is None and entry is not None and not entry.is_folder:
            del found[name]
    for name, inner in changes.folders.items():
        _apply_folder(handle, found, name, inner, prefix)
    for name, oid in changes.blobs.items():
        if oid is not None:
            entry = found.get(name)
            if entry is not None and entry.is_folder:
                raise _clash(prefix + name)
            found[name] = Entry(_BLOB, oid)
    return _write(handle, found) if found else None


def _apply_folder(handle: Handle, found: dict[str, Entry], name: str, inner: _Changes, prefix: str) -> None:
    entry = found.get(name)
    if entry is not None and not entry.is_folder:
        if _sets_anything(inner):
            raise _clash(prefix + name)
        return
    result = _apply(handle, entry.oid if entry is not None else None, inner, f"{prefix}{name}/")
    if result is not None:
        found[name] = Entry(_FOLDER, result)
    else:
        found.pop(name, None)


def _sets_anything(changes: _Changes) -> bool:
    return any(oid is not None for oid in changes.blobs.values()) or any(map(_sets_anything, changes.folders.values()))


def _clash(path: str) -> ConflictError:
    return ConflictError(f"{path!r} would be a file and a folder", hint="remove the one, or store the other elsewhere")


def _write(handle: Handle, found: Mapping[str, Entry]) -> str:
    return handle.write("tree", b"".join(_lines(found)))


def _lines(found: Mapping[str, Entry]) -> Iterable[bytes]:
    # Git sorts a folder as if its name ended in a slash.
    raw = {name: name.encode("utf-8", "surrogateescape") for name in found}
    for name in sorted(found, key=lambda name: raw[name] + (b"/" if found[name].is_folder else b"")):
        entry = found[name]
        yield b"%s %s\0%s" % (entry.mode.encode(), raw[name], bytes.fromhex(entry.oid))
