"""The project's files: which of them are parts of a commit, whether they changed, and writing them.

A part is *materialised* when its file exists. Training commits straight from memory, so most parts never are;
``checkout`` materialises them, ``switch`` only brings along the files that are there already.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from coral.errors import CoralError, OverwriteError, StorageError, UsageError
from coral.ids import checksum
from coral.storage.bounded import read_bounded
from coral.storage.folder import Folder
from coral.verbs.parts import PartReader, is_state

if TYPE_CHECKING:
    from coral.format.manifest import Manifest
    from coral.history import History
    from coral.ids import CommitHash
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress

_CACHE = "files.json"
_CACHE_LIMIT = 256 << 20
_SETTLED_NS = 50_000_000
_SCAN_LIMIT = 20_000
_ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")


@dataclass(frozen=True, slots=True)
class CheckoutResult:
    """What a checkout did.

    Attributes:
        commit: full hash of the commit; empty on a branch that has none.
        branch: the branch HEAD is on now, None when detached; unchanged for single files.
        written: files written, relative to the project.
        unchanged: files that already held the right bytes.
        removed: files removed, because the commit does not hold them.
        states: training states left in the store; name one to have it written.
    """

    commit: CommitHash | Literal[""]
    branch: str | None
    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to write and to remove, found safe before the first of them is touched."""

    write: Mapping[str, Manifest]
    remove: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


class _Stamp(NamedTuple):
    """What tells a file's state apart without reading it; unsettled when a further change might not show."""

    fields: list[int]
    settled: bool


class WorkTree:
    """The project's files, compared with manifests.

    Args:
        project: the folder that parts are relative to.
        cache: where file stamps are kept, so that an untouched file is not hashed twice; may be deleted.
    """

    def __init__(
        self, project: Path, cache: Folder, history: History, reader: PartReader, store: Callable[[], ChunkStore]
    ) -> None:
        self.project = Folder(project)
        self._cache_folder = cache
        self._history = history
        self._reader = reader
        self._store = store
        # By file: its stamp, whether it was described as one span of bytes, and the digest of that manifest.
        self._stamps: dict[str, tuple[list[int], bool, str]] | None = None

    # -- what is there

    def materialised(self, names: Iterable[str]) -> list[str]:
        """Those of the names that exist as files."""
        return [name for name in names if os.path.lexists(self.project.path(name)) and not self._is_linked(name)]

    def _is_linked(self, name: str) -> bool:
        """Whether the way to a file leads through a symbolic link, and so perhaps out of the project."""
        *folders, _ = name.split("/")
        return any(self.project.root.joinpath(*folders[:depth]).is_symlink() for depth in range(1, len(folders) + 1))

    def matches(self, name: str, manifest: Manifest) -> bool:
        """Whether the file holds the bytes that the manifest describes, as far as its stamp tells.

        An untouched file is not hashed again. A write through a memory map may leave the stamp as it was, so nothing is
        overwritten on the word of this: see :meth:`_holds`.
        """
        stamp = self._stamp(name)
        if stamp is None:
            return False
        opaque = manifest.container == "opaque"
        known = self._load_stamps().get(name)
        if known is not None and known[:2] == (stamp.fields, opaque):
            return known[2] == _digest(manifest.to_bytes())
        found = self.describe(self.project.path(name), opaque=opaque)
        if found is not None and stamp.settled:
            self._load_stamps()[name] = (stamp.fields, opaque, _digest(found.to_bytes()))
        return found == manifest

    def _holds(self, name: str, manifests: Iterable[Manifest]) -> bool:
        """Whether the file holds the bytes of one of the manifests; it is hashed, whatever its stamp says."""
        if self._stamp(name) is None:
            return False
        path = self.project.path(name)
        seen: dict[bool, Manifest | None] = {}
        for manifest in manifests:
            opaque = manifest.container == "opaque"
            if opaque not in seen:
                seen[opaque] = self.describe(path, opaque=opaque)
            if seen[opaque] == manifest:
                return True
        return False

    def _stamp(self, name: str) -> _Stamp | None:
        """The stamp of a regular file; None when there is none."""
        try:
            status = self.project.path(name).lstat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        fields = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
        # A file changed within the clock's last tick could change again under the same stamp.
        return _Stamp(fields, settled=time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS)

    def agrees(self, name: str, manifest: Manifest) -> bool:
        """As :meth:`matches`, but what a link in the file's place leads to counts, as it did when it was added."""
        path = self.project.path(name)
        if not path.is_symlink():
            return self.matches(name, manifest)
        return os.path.isfile(path) and self.describe(path, opaque=manifest.container == "opaque") == manifest

    def describe(self, path: Path, *, opaque: bool = False) -> Manifest | None:
        """The manifest that a file would get, without storing it; None when it cannot be read as a container."""
        from coral.objects.writer import TensorHasher
        from coral.verbs.ingest import manifest_of

        try:
            return manifest_of(path, TensorHasher(self._store()), opaque=opaque)
        except CoralError:
            return None

    def untracked(self, tracked: Iterable[str]) -> list[str]:
        """Model files of the project that no part names, where they are looked for: see :func:`is_searched`."""
        from coral.containers import is_model_name

        known, found, seen = set(tracked), [], 0
        for root, folders, files in os.walk(self.project.root):
            folders[:] = sorted(name for name in folders if is_searched(Path(root, name)))
            seen += len(files)
            if seen > _SCAN_LIMIT:
                break
            for file in files:
                name = Path(root, file).relative_to(self.project.root).as_posix()
                if is_model_name(file) and name not in known and not file.startswith("."):
                    found.append(name)
        return sorted(found)

    # -- moving from one commit to another

    def plan(
        self,
        old: Mapping[str, Manifest],
        new: Mapping[str, Manifest],
        *,
        everything: bool,
        force: bool,
        keep: bool = True,
    ) -> Plan:
        """What to write and remove so that the files follow from one commit to another.

        Args:
            old: parts of the commit the files stand at.
            new: parts of the commit they shall stand at.
            everything: write every part that is no state, rather than those that have a file already.
            force: overwrite bytes that no commit holds.
            keep: leave a local change alone that both commits agree about, unless ``everything`` is asked for.

        Raises:
            OverwriteError: a file in the way holds bytes that no commit holds.
        """
        there = set(self.materialised(old.keys() | new.keys()))
        wanted = {name for name, part in new.items() if name in there or (everything and not is_state(part))}
        write, unchanged, lost = {}, [], []
        for name in sorted(wanted):
            if name in there and self._holds(name, [new[name]]):
                unchanged.append(name)
            elif name in there and not force and not self._is_safe(name, old.get(name)):
                # As git's switch does, and its checkout of files and reset --hard do not.
                if keep and not everything and old.get(name) == new[name]:
                    continue
                lost.append(name)
            else:
                write[name] = new[name]
        remove = sorted(name for name in there - new.keys() if name in old)
        lost += [name for name in remove if not force and not self._is_safe(name, old[name])]
        self._refuse(lost)
        return Plan(write, tuple(remove), tuple(unchanged))

    def plan_files(self, wanted: Mapping[str, Manifest], *, force: bool) -> Plan:
        """What to write so that these files hold these parts. Raises OverwriteError."""
        there = set(self.materialised(wanted))
        unchanged = [name for name in sorted(there) if self._holds(name, [wanted[name]])]
        write = {name: part for name, part in wanted.items() if name not in unchanged}
        self._refuse([name for name in write if name in there and not force and not self._is_safe(name, None)])
        return Plan(write, (), tuple(unchanged))

    def check_removable(self, name: str) -> None:
        """Raise OverwriteError when removing the file would lose bytes that no commit holds."""
        if self.materialised([name]) and not self._is_safe(name, None):
            self._refuse([name])

    def execute(self, plan: Plan, *, progress: Progress | None = None) -> None:
        """Write and remove the files of a plan; each file is replaced atomically."""
        from coral.verbs.ingest import write_file

        # Removed first: a folder may be about to take a file's name.
        self.remove(plan.remove)
        for name, manifest in plan.write.items():
            write_file(self._store(), manifest, self.project, name, progress=progress)
        self.save_stamps()

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are fine."""
        for name in self.materialised(names):
            self.project.remove(name)

    def _is_safe(self, name: str, expected: Manifest | None) -> bool:
        """Whether some commit holds the file's bytes."""
        versions = (self._reader.load(oid) for oid in self._history.versions(name))
        return self._holds(name, versions if expected is None else itertools.chain([expected], versions))

    def _refuse(self, lost: list[str]) -> None:
        links = [name for name in lost if self.project.path(name).is_symlink()]
        if lost and links == lost:
            raise OverwriteError(
                f"{', '.join(links)}: a symbolic link is in the way",
                hint="remove it, or use --force to put the file in its place; what it leads to stays as it is",
            )
        if lost:
            raise OverwriteError(
                f"no commit holds the present bytes of {', '.join(lost)}",
                hint="commit them first ('coral commit -m ... FILE'), or use --force to overwrite them",
            )

    # -- stamps of files, so that an untouched file is not hashed again

    def _load_stamps(self) -> dict[str, tuple[list[int], bool, str]]:
        if self._stamps is None:
            try:
                first, _, body = read_bounded(self._cache_folder, _CACHE, _CACHE_LIMIT).partition(b"\n")
                data = json.loads(body) if first == _check_line(body) else {}
                self._stamps = {
                    name: (list(stamp), bool(opaque), str(digest)) for name, (stamp, opaque, digest) in data.items()
                }
            except (CoralError, ValueError, TypeError, AttributeError, RecursionError):
                self._stamps = {}
        return self._stamps

    def save_stamps(self) -> None:
        """Keep the stamps for the next process; a disk that refuses costs time there, and nothing else."""
        if self._stamps is not None:
            with contextlib.suppress(StorageError):
                body = json.dumps(self._stamps).encode()
                self._cache_folder.write(_CACHE, _check_line(body) + b"\n" + body)

    def part_name(self, path: Path) -> str:
        """The part that a file is, by its path relative to the project. Raises UsageError for one outside of it."""
        try:
            return (path.parent.resolve() / path.name).relative_to(self.project.root).as_posix()
        except ValueError:
            raise UsageError(
                f"{path} is outside of the project {self.project.root}",
                hint="give it a name with name= (--name), or copy it in",
            ) from None


def is_searched(folder: Path) -> bool:
    """Whether model files are looked for in a folder of the project: not where it is hidden, or Python's.

    One that may not be entered has no marks that could be seen.
    """
    is_python = folder.name == "__pycache__" or any(os.path.exists(folder / mark) for mark in _ENVIRONMENT_MARKS)
    return not folder.name.startswith(".") and not is_python


def _check_line(body: bytes) -> bytes:
    """The first line of the stamps' file, as JSON: a damaged stamp would pass a changed file off as unchanged."""
    return b'"%016x"' % checksum(body)


def _digest(text: bytes) -> str:
    from coral.ids import chunk_id

    return chunk_id(text).hex()
