"""Bugs of the kind that lose data, to be planted into coral: the harness must find each of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pygit2

from coral.experiments.events import Event
from coral.experiments.local import journal
from coral.format.index import PackIndex
from coral.format.index import build as build_index
from coral.history import libgit, refs
from coral.history.history import History
from coral.history.libgit import Handle
from coral.history.plain import RefTarget
from coral.ids import ChunkId, CommitHash
from coral.objects import consolidate, garbage, writer
from coral.objects.packs import INDEX, PACK, Pack
from coral.storage import disk, files
from coral.storage.files import AppendFile, NewFile
from coral.testing import syscalls


def _ref_before_pack() -> None:
    """The branch moves before the pack has its name."""
    late: list[Callable[[], object]] = []
    publish, move = writer.publish_pack, History.move_branch

    def publish_late(*arguments: Any, **named: Any) -> str:
        late.append(partial(publish, *arguments, **named))
        return ""

    def move_first(*arguments: Any, **named: Any) -> None:
        move(*arguments, **named)
        while late:
            late.pop()()

    writer.publish_pack = publish_late
    History.move_branch = move_first  # type: ignore[method-assign]


def _index_before_pack() -> None:
    """The index is there before the pack is, whose bytes nobody synced."""

    def publish(store: Any, pack: NewFile, entries: Any, *, modified: float | None = None) -> str:
        name: str = store.packs.new_name()
        store.folder.write(name + INDEX, build_index(entries.items()))
        _rename_unsynced(pack, name + PACK)
        store.packs.refresh()
        return name

    writer.publish_pack = publish


def _rename_unsynced(file: NewFile, key: str, *, mode: int | None = None, modified: float | None = None) -> Path:
    """As NewFile.publish, the bytes synced after the name was given."""
    target = file._home.path(key)
    file._home.make_folder(key.rpartition("/")[0])
    disk.current.rename(file._path, target)
    files.sync_folder(target.parent)
    disk.current.fsync(file._fd)
    file._close()
    return target


def _rename_before_fsync() -> None:
    """Every file gets its name before its bytes are safe."""
    NewFile.publish = _rename_unsynced  # type: ignore[method-assign, assignment]


def _ref_in_place() -> None:
    """A ref is overwritten where it stands."""

    def move(handle: Handle, name: str, target: RefTarget, reason: str, *, expected: RefTarget) -> None:
        path = handle.git_dir / name
        with path.open("w") as file:
            file.write(f"{target.oid}\n" if target.oid is not None else f"ref: {target.ref}\n")
            file.flush()
            disk.current.fsync(file.fileno())

    Handle.move_ref = move  # type: ignore[method-assign, assignment]


def _no_compare_and_swap() -> None:
    """A branch moves wherever it is."""

    def move(self: refs.Refs, ref: str, new: CommitHash, *, expected: CommitHash | None, reason: str) -> None:
        self.create(ref, new, reason=reason, force=True)

    refs.Refs.move = move  # type: ignore[method-assign]


def _torn_line_accepted() -> None:
    """A line of the journal counts without its checksum, mended where it is cut off."""

    def decode(data: bytes) -> tuple[list[Event], int]:
        events = []
        for body in re.findall(rb"^[0-9a-f]{16} (\{.*)$", data, re.MULTILINE):
            for end in ("", "}", "}}"):
                try:
                    events.append(json.loads(body.rstrip(b"\0").decode() + end))
                    break
                except ValueError:
                    continue
        return events, len(data)

    journal.decode = decode


def _lines_kept_back() -> None:
    """What is logged waits in memory for the next sync."""
    waiting: list[bytes] = []
    write, sync = AppendFile.write, AppendFile.sync

    def late(self: AppendFile) -> None:
        while waiting:
            write(self, waiting.pop(0))
        sync(self)

    AppendFile.write_line = lambda self, data: waiting.append(data)  # type: ignore[method-assign]
    AppendFile.sync = late  # type: ignore[method-assign]


def _old_packs_go_first() -> None:
    """A merge removes the packs before the one that takes their place is there."""
    publish = writer.publish_pack

    def remove_first(store: Any, merged: NewFile, entries: dict[ChunkId, Any], **named: Any) -> str:
        for pack in store.packs.packs:
            if all(chunk in entries for chunk, _ in pack.index.items()):
                store.folder.remove(pack.name + INDEX)
        return publish(store, merged, entries, **named)

    consolidate.publish_pack = remove_first  # type: ignore[assignment, attr-defined]


def _garbage_goes_first() -> None:
    """A collection removes a pack before what stays of it is elsewhere."""
    publish = writer.publish_pack

    def remove_first(store: Any, kept: NewFile, entries: dict[ChunkId, Any], **named: Any) -> str:
        for pack in store.packs.packs:
            if any(chunk in entries for chunk, _ in pack.index.items()):
                store.folder.remove(pack.name + INDEX)
        return publish(store, kept, entries, **named)

    garbage.publish_pack = remove_first  # type: ignore[assignment, attr-defined]


def _locks_are_left() -> None:
    """The lock file of a killed process is never swept."""
    refs.Refs._sweep = lambda self, keys: None  # type: ignore[method-assign]


def _git_does_not_sync() -> None:
    """libgit2 syncs nothing, as git does by default for refs."""
    libgit._set_options()
    pygit2.settings.enable_fsync_gitdir(False)


def _unsynced(pattern: str) -> Callable[[], None]:
    return partial(syscalls.lie, pattern)


def _index_unsynced() -> None:
    """Nobody syncs the index; and as coral survives that, because it makes a damaged one anew, it no longer does."""

    def load(pack: Pack) -> PackIndex:
        return PackIndex(pack._folder.map(pack.name + INDEX), pack.name + INDEX)

    Pack._load_index = load  # type: ignore[method-assign, assignment]
    syscalls.lie("*/tmp/*.idx.*")


PLANTED: dict[str, tuple[str, Callable[[], None]]] = {
    "no fsync of the pack": ("commit", _unsynced("*/tmp/pack.pack.*")),
    "no fsync of the index": ("commit", _index_unsynced),
    "no fsync of the packs' folder": ("commit", _unsynced("*/packs")),
    "no fsync of the ref": ("commit", _unsynced("*/refs/heads/*.lock")),
    "no fsync of the ref's folder": ("commit", _unsynced("*/.git/refs/heads")),
    "no fsync of git's objects": ("commit", _unsynced("*/tmp_object*")),
    "no fsync of the objects' folder": ("commit", _unsynced("*/.git/objects")),
    "no fsync by libgit2": ("commit", _git_does_not_sync),
    "no fsync of the journal": ("track", _unsynced("*.jsonl")),
    "no fsync of the runs' folder": ("track", _unsynced("*/experiments")),
    "no fsync of a file checked out": ("checkout", _unsynced("*.coral-tmp")),
    "ref before pack": ("commit", _ref_before_pack),
    "index before pack": ("commit", _index_before_pack),
    "rename before fsync": ("track", _rename_before_fsync),
    "ref overwritten in place": ("commit", _ref_in_place),
    "torn line accepted": ("track", _torn_line_accepted),
    "old packs go first": ("commit", _old_packs_go_first),
    "garbage goes first": ("collect", _garbage_goes_first),
}
"""Found by the states that a power cut leaves: the scenario that shows it, and how it is planted."""

PLANTED_FOR_KILLS: dict[str, tuple[str, Callable[[], None]]] = {
    "ref before pack": ("commit", _ref_before_pack),
    "ref overwritten in place": ("commit", _ref_in_place),
    "lines kept back": ("track", _lines_kept_back),
    "old packs go first": ("commit", _old_packs_go_first),
    "garbage goes first": ("collect", _garbage_goes_first),
    "locks are left": ("branch", _locks_are_left),
}
"""Found by kills."""


PLANTED_FOR_RACES: dict[str, tuple[str, Callable[[], None]]] = {"no compare-and-swap": ("", _no_compare_and_swap)}
"""Found by processes that commit to one branch at once."""


def plant(name: str) -> None:
    """Plant a bug into this process, for good."""
    {**PLANTED_FOR_KILLS, **PLANTED, **PLANTED_FOR_RACES}[name][1]()
