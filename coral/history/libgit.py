"""libgit2, through pygit2: the only file that imports it, and where its errors become coral's.

Objects are durable when :meth:`Handle.write` returns: libgit2 syncs a new file and its folder; what it leaves out is
synced here: the folder of a new folder, and an object that was there already, loose or in a pack, because another git
may have written it and synced nothing. libgit2 never reads the home folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coral import threads
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CoralError,
    CorruptionError,
    InvalidNameError,
    LockedError,
    NotFoundError,
    RefNotFoundError,
    RepositoryNotFoundError,
    StorageError,
    UsageError,
)
from coral.history import loose
from coral.history.commit import is_hash
from coral.history.loose import Kind
from coral.history.packed import Indexes
from coral.history.plain import NotPlainError, PlainRefs, RefTarget
from coral.storage.files import sync_file, sync_folder, translate_errors
from coral.storage.folder import Folder
from coral.timings import step

if TYPE_CHECKING:
    import pygit2
else:

    class _Pygit2:
        """pygit2, imported at first use: that takes as long as most commands, which read loose files alone."""

        def __getattr__(self, name: str) -> Any:
            if "pygit2" in sys.modules:
                return getattr(import_module("pygit2"), name)
            with step("load libgit2"):
                return getattr(import_module("pygit2"), name)

    pygit2 = _Pygit2()

_KIND_NAMES: dict[int, Kind] = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}  # as in git's packs
_KINDS = {name: number for number, name in _KIND_NAMES.items()}
_CACHE_BYTES = 16 * 2**20
_MAX_REF_BYTES = 1024
_REF = re.compile(rb"ref: *refs/|[0-9a-fA-F]{40}(?:\s|\Z)")
_REFLOG_IDENTITY = ("coral", "coral@localhost")
# libgit2 gives a message, not the operating system's number, and calls some refusals of the disk by other names.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.EINTR)
_NUMBERS = {os.strerror(code): code for code in _REFUSALS}
_MOVED = "old reference value does not match"


class ReflogLine(NamedTuple):
    """One line of a reflog; ``offset`` is the time zone in minutes."""

    old: str
    new: str
    reason: str
    when: int
    offset: int


@cache
def _set_options() -> None:
    """Set libgit2's options, which are the whole process's; the only place that does."""
    pygit2.settings.enable_fsync_gitdir(True)
    pygit2.settings.enable_strict_hash_verification(True)
    # The folder is the user's own choice; a container often runs as another user than the one who owns it.
    pygit2.settings.owner_validation = False
    pygit2.settings.cache_max_size(_CACHE_BYTES)
    levels = pygit2.enums.ConfigLevel
    for level in (levels.PROGRAMDATA, levels.SYSTEM, levels.XDG, levels.GLOBAL):
        pygit2.settings.search_path[level] = ""


@contextlib.contextmanager
def _translated(kind: str, name: str = "", *, missing: type[CoralError] = CorruptionError) -> Iterator[None]:
    """Turn libgit2's errors into coral's; the thing of that kind and name was being read or written."""
    try:
        yield
    except CoralError:
        raise
    except KeyError as error:
        raise missing(
            f"{kind} {name} is missing", hint="run coral fsck" if missing is CorruptionError else None
        ) from error
    except OSError as error:
        raise _storage_error(f"{kind} {name}", error) from error
    except (pygit2.GitError, ValueError) as error:
        if _number(error) is not None:
            raise _storage_error(f"{kind} {name}", error) from error
        raise CorruptionError(f"{kind} {name} is damaged: {error}", hint="run coral fsck") from error


def _bad_ref(name: str) -> InvalidNameError:
    return InvalidNameError(f"{name!r} is not a valid name of a ref")


def _checked(name: str) -> str:
    """The name of a ref as libgit2 takes it, which would end it at a NUL. Raises InvalidNameError."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise _bad_ref(name) from None
    if b"\0" in raw or len(raw) > _MAX_REF_BYTES:
        raise _bad_ref(name)
    return name


def _is_damaged_ref(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # deleted in this moment
        return False
    with open(fd, "rb", buffering=0) as file:
        return _REF.match(file.read(_MAX_REF_BYTES) or b"") is None


def _number(error: Exception) -> int | None:
    """The operating system's number of an error of libgit2's, by its message; None where it tells none."""
    said = next((number for reason, number in _NUMBERS.items() if reason in str(error)), None)
    return error.errno if said is None and isinstance(error, OSError) else said


def _storage_error(what: str, error: Exception) -> CoralError:
    text, number = str(error), _number(error)
    if "failed to lock file" in text:
        return LockedError(f"{what} is locked by another git process", hint="run the command again in a few seconds")
    hint = "free some space and run the command again" if number in (errno.ENOSPC, errno.EDQUOT) else None
    return StorageError(f"{what}: {text}", hint=hint, errno=number)


class Handle:
    """A git repository's objects and refs, opened once for each thread and each process."""

    def __init__(self, git_dir: Path) -> None:
        self.git_dir = git_dir
        self._folder = Folder(git_dir)
        self._root = f"{git_dir}/"
        self._local = threading.local()
        self._plain = PlainRefs(git_dir)
        self._indexes = Indexes(f"{git_dir}/objects/pack")
        self._durable: set[str] = set()  # the names of objects that were found, of packs, and of folders
        self._told: set[str] = set()

    @property
    def _repo(self) -> pygit2.Repository:
        if getattr(self._local, "pid", None) != os.getpid():
            _set_options()
            self._local.repo = self._open()
            self._local.packs = _open_packs(self.git_dir)
            self._local.pid = os.getpid()
        repo: pygit2.Repository = self._local.repo
        return repo

    @property
    def _packs(self) -> pygit2.Odb:
        """The packs alone: libgit2 1.9 reads a loose object that is cut short for ever, so it never reads any. It
        follows an index wherever it leads, so each is looked at before."""
        _ = self._repo
        self._indexes.check()
        packs: pygit2.Odb = self._local.packs
        return packs

    def _open(self) -> pygit2.Repository:
        # Told to open a bare repository, libgit2 would take any folder for one.
        with translate_errors(self.git_dir):
            if not (self.git_dir / "HEAD").exists() or not (self.git_dir / "objects").is_dir():
                raise RepositoryNotFoundError(f"{self.git_dir} is not a git repository")
        try:
            flags = pygit2.enums.RepositoryOpenFlag
            repo = pygit2.Repository(str(self.git_dir), flags.NO_SEARCH | flags.BARE | flags.NO_DOTGIT)
            repo.set_ident(*_REFLOG_IDENTITY)
        except (pygit2.GitError, KeyError, OSError, ValueError) as error:
            raise RepositoryNotFoundError(f"{self.git_dir} is not a git repository: {error}") from error
        return repo

    # -- objects

    def read(self, oid: str) -> tuple[Kind, bytes]:
        """An object's kind and bytes, verified. Raises CorruptionError when it is missing or damaged."""
        found = loose.read(self._root + loose.key(oid), oid)
        if found is not None:
            return found
        packs = self._packs
        with _translated("the git object", oid):
            kind, data = packs.read(oid)
            return _KIND_NAMES[int(kind)], data

    def exists(self, oid: str) -> bool:
        """Whether there is an object of this hash, whole or not."""
        if is_hash(oid) and os.path.exists(self._root + loose.key(oid)):
            return True
        with _translated("the git object", oid):
            return self._repo.odb.exists(oid)

    def kind(self, oid: str) -> Kind:
        """An object's kind, from its head alone. Raises CorruptionError."""
        found = loose.kind(self._root + loose.key(oid), oid)
        if found is not None:
            return found
        with _translated("the git object", oid):
            return _KIND_NAMES[int(self._packs.read_header(oid)[0])]

    def write(self, kind: Kind, data: bytes) -> str:
        """Store an object, durably; returns its hash. Raises UsageError for one that would be too large to be read."""
        if len(data) > loose.LIMITS[kind]:
            raise UsageError(f"a {kind} of {len(data):,} bytes: at most {loose.LIMITS[kind]:,} can be kept")
        oid = loose.object_hash(kind, data)
        if self._is_whole(oid):
            self._settle(kind, data, oid)
        else:
            self._refuse_link(oid[:2])
            with _translated("the git objects of", str(self.git_dir)):
                self._repo.odb.write(_KINDS[kind], data)
            if not self._folder.exists(loose.key(oid)):
                self._settle_packs()  # where one holds it, libgit2 writes nothing
                return oid
        self._settle_fan_out(oid[:2])
        return oid

    def _refuse_link(self, fan_out: str) -> None:
        if fan_out not in self._durable:
            path = self.git_dir / "objects" / fan_out
            with translate_errors(path):
                if path.is_symlink() or path.parent.is_symlink():
                    raise StorageError(f"{path} is reached through a symbolic link", hint="remove it")

    def _is_whole(self, oid: str) -> bool:
        """Whether an object is there, loose and readable; a damaged file is dropped."""
        key = loose.key(oid)
        try:
            return loose.read(self._root + key, oid) is not None
        except CorruptionError:
            self._folder.remove(key)  # a power cut under a git that does not sync leaves such files
            return False

    def _settle(self, kind: Kind, data: bytes, oid: str) -> None:
        """Make a loose object durable that was there already, once."""
        if oid in self._durable:
            return
        key = loose.key(oid)
        path = self._folder.path(key)
        try:
            with translate_errors(path):
                sync_file(path)
                sync_folder(path.parent)
        except NotFoundError:
            self._settle_packs()  # packed meanwhile
        except StorageError:
            # What of it is on the disk nobody knows, and the kernel would say yes the next time.
            self._folder.write(key, loose.encode(kind, data), mode=0o444)
        self._durable.add(oid)

    def _settle_packs(self) -> None:
        """Make the packs durable that are there, each once."""
        folder = self.git_dir / "objects/pack"
        with translate_errors(folder):
            while new := {*os.listdir(folder)} - self._durable:
                for name in new:
                    with contextlib.suppress(FileNotFoundError):  # merged into one that is listed the next time
                        sync_file(folder / name)
                sync_folder(folder)
                self._durable |= new

    def _settle_fan_out(self, fan_out: str) -> None:
        # libgit2 makes objects/xx without syncing objects. Once synced after it was seen, it stays durable.
        if fan_out not in self._durable:
            objects = self.git_dir / "objects"
            with translate_errors(objects):
                seen = os.listdir(objects)
                sync_folder(objects)
            self._durable.update(seen)

    def with_prefix(self, prefix: str) -> list[str]:
        """The objects whose hash begins with at least four digits, sorted."""
        repo = self._repo
        with _translated("the git objects of", str(self.git_dir)):
            try:
                return [str(repo.expand_id(prefix))]
            except KeyError:
                return []
            except ValueError:  # ambiguous, which is rare enough to read every name
                return sorted({oid for oid in map(str, repo.odb) if oid.startswith(prefix)})

    # -- refs

    def ref(self, name: str) -> RefTarget | None:
        """What a ref (full name) says; None when there is no such ref. Raises InvalidNameError, CorruptionError."""
        name = _checked(name)
        with contextlib.suppress(NotPlainError):
            return self._plain.ref(name)
        repo = self._repo
        try:
            target = repo.lookup_reference(name).target
        except KeyError:
            return None
        except pygit2.InvalidSpecError as error:
            raise _bad_ref(name) from error
        except (pygit2.GitError, ValueError, OSError) as error:
            raise CorruptionError(f"the ref {name} is damaged: {error}", hint="run coral fsck") from error
        return RefTarget(None, target) if isinstance(target, str) else RefTarget(str(target), None)

    def refs(self, prefix: str) -> dict[str, str]:
        """The refs under a prefix such as ``refs/heads/``, by the rest of their name, with the hash they lead to."""
        with contextlib.suppress(NotPlainError):
            return self._plain.refs(prefix)
        found = {}
        with _translated("the refs of", str(self.git_dir)):
            for ref in self._repo.references.iterator():
                if ref.name.startswith(prefix):
                    with contextlib.suppress(KeyError):  # a symbolic ref that leads nowhere
                        target = ref.target
                        found[ref.name[len(prefix) :]] = str(
                            ref.resolve().target if isinstance(target, str) else target
                        )
        for name in self.damaged_refs(prefix):
            if name not in self._told:
                self._told.add(name)
                threads.warn(f"the ref {name} is damaged, and left out: run coral fsck")
        return dict(sorted(found.items()))

    def damaged_refs(self, prefix: str) -> list[str]:
        """The refs under a prefix (full names) whose file says nothing, which libgit2 leaves out in silence."""
        found = []
        for folder, _, names in os.walk(self.git_dir / prefix):
            for name in names:
                path = os.path.join(folder, name)
                if not name.endswith(".lock") and _is_damaged_ref(path):
                    found.append(os.path.relpath(path, self.git_dir))
        return sorted(found)

    def create_ref(self, name: str, target: RefTarget, reason: str, *, force: bool = False) -> None:
        """Create a ref, or replace one when forced. Raises AlreadyExistsError, ConflictError for ``a`` and ``a/b``."""
        repo, name = self._repo, _checked(name)
        try:
            if target.oid is not None:
                repo.create_reference_direct(name, pygit2.Oid(hex=target.oid), force, message=reason)
            else:
                repo.create_reference_symbolic(name, target.ref or "", force, message=reason)
        except pygit2.AlreadyExistsError as error:
            raise AlreadyExistsError(f"{name} exists already") from error
        except pygit2.InvalidSpecError as error:
            raise _bad_ref(name) from error
        except OSError as error:
            raise _storage_error(name, error) from error
        except (pygit2.GitError, ValueError) as error:
            raise ConflictError(f"cannot write {name}: {error}") from error

    def move_ref(self, name: str, target: RefTarget, reason: str, *, expected: RefTarget) -> None:
        """Move a ref by compare-and-swap. Raises ConflictError when it is not where it is expected to be."""
        repo, name = self._repo, _checked(name)
        try:
            ref = repo.lookup_reference(name)
            held = ref.target
            if RefTarget(None, held) != expected if isinstance(held, str) else RefTarget(str(held), None) != expected:
                raise ConflictError(f"{name} moved meanwhile")
            ref.set_target(pygit2.Oid(hex=target.oid) if target.oid is not None else target.ref or "", reason)
        except KeyError as error:
            raise ConflictError(f"{name} was deleted meanwhile") from error
        except OSError as error:
            raise _storage_error(name, error) from error
        except pygit2.GitError as error:
            raise ConflictError(f"cannot move {name}: {error}") from error

    def delete_ref(self, name: str) -> None:
        """Delete a ref and its reflog; a missing one is fine."""
        repo, name = self._repo, _checked(name)
        try:
            repo.lookup_reference(name).delete()
        except KeyError:
            return
        except OSError as error:
            raise _storage_error(name, error) from error
        except pygit2.GitError as error:
            if _MOVED in str(error):
                raise ConflictError(f"{name} moved meanwhile") from error
            # Of an unlink that is refused libgit2 says nothing: the message is that of an older error, or none.
            raise StorageError(f"{name} cannot be deleted", hint="is the disk full, or read-only?") from error

    def reflog(self, name: str) -> list[ReflogLine]:
        """The reflog of a ref, newest first."""
        with _translated("the reflog of", name, missing=RefNotFoundError):
            return [
                ReflogLine(
                    str(entry.oid_old),
                    str(entry.oid_new),
                    entry.message or "",
                    entry.committer.time,
                    entry.committer.offset,
                )
                for entry in self._repo.lookup_reference(_checked(name)).log()
            ]

    # -- packing

    def pack(self, oids: Iterable[str]) -> None:
        """Write one pack of these objects, which must be whole, into the repository; not durable yet."""
        builder = pygit2.PackBuilder(self._repo)
        builder.set_threads(1)
        with _translated("the git objects of", str(self.git_dir)):
            for oid in oids:
                builder.add(pygit2.Oid(hex=oid))
        try:
            builder.write()
        except (pygit2.GitError, OSError) as error:  # perhaps without a word, when the disk refuses
            raise _storage_error(f"a new pack in {self.git_dir}", error) from error


class PackedObjects:
    """The objects that the packs of a repository hold now, whatever lies loose beside them."""

    def __init__(self, git_dir: Path) -> None:
        self._odb = _open_packs(git_dir)

    def verify(self, oid: str) -> bool:
        """Whether the packs hold this object, whole."""
        try:
            kind, data = self._odb.read(oid)
        except (pygit2.GitError, KeyError, ValueError, OSError):
            return False
        return loose.object_hash(_KIND_NAMES[int(kind)], data) == oid


def _open_packs(git_dir: Path) -> pygit2.Odb:
    with _translated("the packs of", str(git_dir)):
        packs = pygit2.Odb()
        packs.add_backend(pygit2.OdbBackendPack(str(git_dir / "objects")), 1)
        return packs
