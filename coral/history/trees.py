"""Trees: the named parts of a commit, as git keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coral.errors import ConflictError, CorruptionError
from coral.format.names import check_part_name
from coral.history.libgit import Handle

_BLOB, _FOLDER = "100644", "40000"
_BLOB_MODES = (_BLOB, "100755", "100664")


class Entry(NamedTuple):
    """One entry of a tree."""

    mode: str
    oid: str

    @property
    def is_folder(self) -> bool:
        return self.mode == _FOLDER


@dataclass(slots=True)
class _Changes:
    """What an overlay does to one folder: blobs to set (None removes), and what it does to folders inside."""

    blobs: dict[str, str | None] = field(default_factory=dict)
    folders: dict[str, _Changes] = field(default_factory=dict)


def entries(handle: Handle, tree: str) -> dict[str, Entry]:
    """The entries of one tree, by name. Raises CorruptionError."""
    kind, data = handle.read(tree)
    found = {}
    position = 0
    try:
        if kind != "tree":
            raise ValueError
        while position < len(data):
            end = data.index(b"\0", position)
            mode, _, name = data[position:end].partition(b" ")
            position = end + 21
            found[name.decode("utf-8", "surrogateescape")] = Entry(mode.decode(), data[end + 1 : position].hex())
    except ValueError:
        raise CorruptionError(f"the git tree {tree} is malformed", hint="run coral fsck") from None
    return found


def walk(handle: Handle, tree: str) -> dict[str, str]:
    """Every path of a tree and its blob, sorted by path."""
    found: dict[str, str] = {}
    todo = [("", tree)]
    while todo:
        prefix, oid = todo.pop()
        for name, entry in entries(handle, oid).items():
            if entry.is_folder:
                todo.append((f"{prefix}{name}/", entry.oid))
            elif entry.mode in _BLOB_MODES:
                found[prefix + name] = entry.oid
    return dict(sorted(found.items()))


def find(handle: Handle, tree: str, path: str) -> Entry | None:
    """The entry at a path, reading only the trees on the way to it."""
    *folders, name = path.split("/")
    for folder in folders:
        entry = entries(handle, tree).get(folder)
        if entry is None or not entry.is_folder:
            return None
        tree = entry.oid
    return entries(handle, tree).get(name)


def overlay(handle: Handle, tree: str | None, changes: Mapping[str, str | None]) -> str:
    """Write a tree with some paths set to other blobs, or removed; returns it.

    Args:
        tree: what to start from; None is empty.
        changes: path to blob; None removes the path (and is fine where there is none).

    Raises:
        InvalidNameError: a path that cannot be a part's name.
        ConflictError: one path would be a file and a folder.
    """
    return _apply(handle, tree, _group(changes), "") or _write(handle, {})


def _group(changes: Mapping[str, str | None]) -> _Changes:
    top = _Changes()
    for path, oid in changes.items():
        *folders, name = check_part_name(path).split("/")
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
