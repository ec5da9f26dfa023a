"""Many loose objects into one pack, so that 10,000 commits are not 40,000 files.

The safe order: the pack and its index become durable, every object is read back from the pack and verified, and only
then are the loose copies unlinked. Whoever looks for an object meanwhile finds the one copy or the other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from coral.errors import CorruptionError, LockedError
from coral.history import loose
from coral.history.libgit import Handle, PackedObjects
from coral.storage.folder import Folder
from coral.storage.locks import file_lock

MANY = 2000
# Large objects stay loose: they are few for their bytes. What one call takes is bounded, because the search for deltas
# reads about 5 MB a second.
_MAX_OBJECT_BYTES = 128 * 2**10
_MAX_TOTAL_BYTES = 16 * 2**20
_MAX_OBJECTS = 4096
_SAMPLE = "17"  # the folder that git's own gc --auto counts
_FAN_OUT = re.compile(r"[0-9a-f]{2}", re.ASCII)
_REST = re.compile(r"[0-9a-f]{38}", re.ASCII)
_LEFTOVER = re.compile(r"(?:pack_git2_|tmp_|\.tmp|pack-tmp).*|.*\.coral-tmp|.*_git2_[0-9a-zA-Z]+", re.ASCII)
_LEFTOVER_SECONDS = 60 * 60.0


def consolidate(handle: Handle, locks: Path, *, force: bool = False) -> int:
    """Pack the loose objects when there are more than about :data:`MANY`, or when forced; returns how many."""
    if not force and len(list(_small(handle.git_dir, _SAMPLE))) <= MANY // 256:
        return 0
    try:
        with file_lock(locks / "consolidate", timeout=0.0):
            return _consolidate(handle)
    except LockedError:
        return 0  # another process is at it


def _consolidate(handle: Handle) -> int:
    folder = Folder(handle.git_dir)
    _sweep(folder)
    oids = [oid for oid in _oldest(handle.git_dir) if _is_whole(handle.git_dir, oid)]
    if not oids:
        return 0
    handle.pack(oids)
    folder.sync("objects/pack")
    packed = PackedObjects(handle.git_dir)
    lost = [oid for oid in oids if not packed.verify(oid)]
    if lost:
        raise CorruptionError(f"the new git pack does not hold {lost[0]}; the loose objects were kept")
    folder.remove_all(loose.key(oid) for oid in oids)
    return len(oids)


def _fan_outs(git_dir: Path) -> list[str]:
    return sorted(name for name in os.listdir(git_dir / "objects") if _FAN_OUT.fullmatch(name))


def _small(git_dir: Path, fan_out: str) -> Iterator[tuple[int, str, int]]:
    """The small loose objects of one folder: when written, hash, bytes on the disk."""
    try:
        with os.scandir(git_dir / "objects" / fan_out) as found:
            for entry in found:
                state = entry.stat()
                if _REST.fullmatch(entry.name) and state.st_size <= _MAX_OBJECT_BYTES:
                    yield state.st_mtime_ns, fan_out + entry.name, state.st_size
    except FileNotFoundError:
        return


def _oldest(git_dir: Path) -> list[str]:
    """What one call takes, oldest first: successive manifests side by side make the smallest deltas."""
    found = sorted(entry for fan_out in _fan_outs(git_dir) for entry in _small(git_dir, fan_out))
    sizes = itertools.accumulate(size for _, _, size in found)
    taken = itertools.takewhile(lambda pair: pair[1] <= _MAX_TOTAL_BYTES, zip(found, sizes, strict=True))
    return [oid for (_, oid, _), _ in itertools.islice(taken, _MAX_OBJECTS)]


def _is_whole(git_dir: Path, oid: str) -> bool:
    """Whether a loose object is undamaged; others stay where fsck finds them."""
    try:
        return loose.read(f"{git_dir}/{loose.key(oid)}", oid) is not None
    except CorruptionError:
        return False


def _sweep(folder: Folder) -> None:
    """Remove what killed processes left in the object store: temporary files, and an index without its pack."""
    for key in ("objects", "objects/pack"):
        names = set(folder.names(key))
        for name in names:
            orphan = name.endswith(".idx") and name[:-4] + ".pack" not in names
            if orphan or _LEFTOVER.fullmatch(name):
                _remove_old(folder, f"{key}/{name}")


def _remove_old(folder: Folder, key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - folder.path(key).lstat().st_mtime > _LEFTOVER_SECONDS:
            folder.remove(key)
