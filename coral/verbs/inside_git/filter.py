"""What stands between git's working tree and its blobs: files become manifests ("clean"), and come back ("smudge").

Whatever is not understood passes through unchanged, in both directions, so that nothing is ever lost on the way: what
is a manifest already, one with conflict markers in it, and one whose tensors are not here; and so do the pointers of
git-LFS, which are no models.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from coral import containers
from coral.errors import CoralError, CorruptionError, RepositoryNotFoundError
from coral.format.manifest import Manifest, is_manifest
from coral.git.enclosing import common_dir, shared_dir
from coral.git.lfs import parse_pointer
from coral.git.pktline import PacketReader
from coral.objects.parent import Parent
from coral.verbs import layout
from coral.verbs.config import Config
from coral.verbs.ingest import skeleton_of, store_file, take_in, write_file
from coral.verbs.relying import note

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.storage.files import NewFile
    from coral.storage.folder import Folder

_HEAD_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20
# A smaller file is not worth asking git what it was before.
_LEAST_WITH_PARENT = 1 << 16

Write = Callable[["Buffer"], None]
"""Takes the next piece of a content."""


class GitFilter:
    """Cleans and smudges the files of one working tree.

    Args:
        project: the top of the working tree.
        previous: the blob that git's index holds for a name, None when there is none; what is stored is stored as its
            difference to that.
        fetch: brings what manifests need from a remote, as far as it has it.
        git_dir: git's folder, where the environment says it; None looks upwards.
        warn: told of a file, by name, that is kept as it is though its name promises tensors, and why; unless git's
            index holds just that already.
    """

    def __init__(
        self,
        project: Path,
        *,
        previous: Callable[[str], bytes | None] = lambda _: None,
        fetch: Callable[[ChunkStore, list[Manifest]], None] = lambda *_: None,
        git_dir: Path | None = None,
        warn: Callable[[str, str], object] = lambda *_: None,
    ) -> None:
        self._project = project
        self._previous = previous
        self._fetch = fetch
        self._git_dir = git_dir
        self._warn = warn
        self._is_noted = False
        self._opened: tuple[Folder, ChunkStore] | None = None
        self._holding = contextlib.ExitStack()
        self._is_holding = False

    @property
    def store(self) -> ChunkStore:
        """The store, which is made with the repository when there is none."""
        return self._open()[1]

    # -- from a file to a blob

    def clean(self, name: str, content: PacketReader) -> bytes:
        """What git shall keep of a file.

        Args:
            name: relative to the top of the working tree.
            content: the file's bytes; read to their end.

        Raises:
            ConflictError: the file changed while it was read.
            StorageError: the disk refused. In both cases nothing of the file counts.
        """
        head = memoryview(bytearray(_HEAD_BYTES))
        start = bytes(head[: content.read_into(head)])
        if len(start) < _HEAD_BYTES:
            return self.keep_whole(name, containers.BytesFile(start))
        if is_manifest(start):
            return _whole(start, content)
        size = self._size(name)
        if size is not None and size >= len(start) and containers.begins_with_its_index(start):
            return self._store(name, containers.StreamFile(name, size, start, content.read_into))
        return self._store_spooled(name, start, content)

    def keep(self, name: str, path: Path) -> Manifest:
        """Store a file that git put somewhere else than where it belongs. Raises as :meth:`clean`."""
        return Manifest.from_bytes(self._store(name, containers.OpenFile(path)))

    def keep_whole(self, name: str, file: containers.ReadableFile) -> bytes:
        """What :meth:`clean` gives for a file that is open, and is closed. Raises as that."""
        start = file.read(0, min(file.size, _HEAD_BYTES))
        if _is_no_model(start):
            text = file.read(0, file.size)
            file.close()
            return self._as_it_is(name, text)
        return self._store(name, file)

    def _as_it_is(self, name: str, content: bytes) -> bytes:
        """What git shall keep of a file that is no model: just that."""
        # A manifest stands for a model that is somewhere else, as it is meant to.
        reason = "" if is_manifest(content) else containers.broken_promise(content, name)
        self._say(name, content, [reason] if reason else [])
        return content

    def _say(self, name: str, kept: bytes, reasons: Iterable[str]) -> None:
        for reason in reasons:
            # git cleans a file once more whenever it is not sure of it.
            if self._previous(name) != kept:
                self._warn(name, reason)

    def describe(self, parsed: containers.ParsedFile) -> Manifest:
        """The manifest of a file that is open, without storing it."""
        from coral.objects.writer import TensorHasher

        return take_in(parsed, TensorHasher(self.store))

    def _size(self, name: str) -> int | None:
        """Bytes of the file itself, which is what git sends, unless it was told to send something else."""
        try:
            status = os.lstat(self._project / name)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _store_spooled(self, name: str, start: bytes, content: PacketReader) -> bytes:
        """Of a container whose index is at its end, which must be there whole before it can be taken apart."""
        buffer = memoryview(bytearray(_PIECE_BYTES))
        with self._open()[0].new_file("spool") as spool:
            spool.write(start)
            while count := content.read_into(buffer):
                spool.write(buffer[:count])
            return self._store(name, containers.OpenFile(spool.path))

    def _store(self, name: str, file: containers.ReadableFile) -> bytes:
        store = self.store
        if not self._is_holding:
            # git names what is stored once it writes its index, and by then has ended this process, mostly.
            self._holding.enter_context(store.held())
            self._is_holding = True
        self._note()
        reasons: list[str] = []
        parent = self._parent(name, file.size)
        with store.writer(keeps_young=True) as writer:
            manifest = store_file(file, writer, name=name, parent=parent, tell=reasons.append)
            writer.seal()
        text = manifest.to_bytes()
        self._say(name, text, reasons)
        return text

    def _parent(self, name: str, nbytes: int) -> Parent | None:
        if nbytes < _LEAST_WITH_PARENT:
            return None
        manifest = read_manifest(self._previous(name) or b"")
        if manifest is None:
            return None
        return Parent({record.name: record for record in manifest.records}, self.store.chunk_ids)

    def _open(self) -> tuple[Folder, ChunkStore]:
        if self._opened is None:
            folder = layout.create(self._project)
            self._opened = folder, layout.open_store(folder, Config.load(folder))
        return self._opened

    def _note(self) -> None:
        """Note, where it is not, that a git repository relies on what is stored here from now on."""
        if not self._is_noted:
            common = shared_dir(self._git_dir) if self._git_dir is not None else common_dir(self._project)
            if common is not None and note(self._open()[0], self._project, common):
                layout.exclude(common)
            self._is_noted = True

    # -- from a blob to a file

    def smudge(self, manifest: Manifest, write: Write) -> None:
        """Write the file that a manifest stands for. :meth:`lacking` tells beforehand what is not here.

        Raises:
            CorruptionError: stored bytes are damaged; what was written is to be thrown away.
            FormatError: the manifest describes no file.
        """
        folder, store = self._open()
        skeleton = skeleton_of(store, manifest)
        if containers.written_in_order(manifest):
            containers.restore(manifest, skeleton, store.stream, _InOrder(write))
            return
        with folder.new_file("spool") as spool:
            containers.restore(manifest, skeleton, store.stream, spool)
            _copy(spool, write)

    def lacking(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Those of the manifests whose bytes are not all here, after asking the remote for them."""
        wanted = list(manifests)
        try:
            layout.open_folder(self._project)
        except RepositoryNotFoundError:
            return wanted
        store = self.store
        absent = [manifest for manifest in wanted if not is_here(store, manifest)]
        if absent:
            self._note()
            self._fetch(store, absent)
        return [manifest for manifest in absent if not is_here(store, manifest)]

    def write_file(self, name: str, manifest: Manifest, *, progress: Progress | None = None) -> None:
        """Write the model itself into the working tree, whole or not at all. Raises as :meth:`smudge`."""
        tree = layout.open_tree(self._project)
        write_file(self.store, manifest, tree, name, mode=self._mode(name), progress=progress)

    def _mode(self, name: str) -> int | None:
        """The permissions that git gave the file that is there."""
        try:
            status = os.lstat(self._project / name)
        except OSError:
            return None
        return stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else None

    def leave_text(self, name: str, text: bytes) -> None:
        """Write the text that git keeps in place of a model into the working tree."""
        layout.open_tree(self._project).write(name, text)

    def finish(self) -> None:
        """Tidy up after the last file."""
        if self._opened is not None:
            self._opened[1].consolidate()
            self._opened[0].sweep_temporary()
        self._is_holding = False
        self._holding.close()


def _is_no_model(content: bytes) -> bool:
    """Whether a file's content is what git shall keep of it."""
    return not content or is_manifest(content) or parse_pointer(content) is not None


def read_manifest(text: bytes) -> Manifest | None:
    """The manifest that a blob is; None for anything else, such as one with conflict markers in it."""
    try:
        return Manifest.from_bytes(text) if is_manifest(text) else None
    except CoralError:
        return None


def is_here(store: ChunkStore, manifest: Manifest) -> bool:
    """Whether the store holds all that a manifest needs, as far as can be told without reading it."""
    try:
        for record in manifest.everything:
            store.check(record)
    except CorruptionError:
        return False
    return True


class _InOrder:
    """Where a file is written to that needs no byte overwritten."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def patch(self, offset: int, data: bytes) -> None:
        """Never asked for: see ``containers.written_in_order``."""
        raise AssertionError("a container that patches must be written to a file first")


def _whole(start: bytes, content: PacketReader) -> bytes:
    pieces = [start]
    piece = memoryview(bytearray(_PIECE_BYTES))
    while count := content.read_into(piece):
        pieces.append(bytes(piece[:count]))
    return b"".join(pieces)


def _copy(spool: NewFile, write: Write) -> None:
    for start in range(0, spool.size, _PIECE_BYTES):
        write(spool.read_back(start, min(start + _PIECE_BYTES, spool.size)))
