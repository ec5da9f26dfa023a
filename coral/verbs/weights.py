"""A commit's weights as a lazy mapping: nothing is read before it is asked for, and then only that tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from coral.containers import TensorView
from coral.errors import PartNotFoundError, TensorNotFoundError, UsageError
from coral.format.manifest import Manifest, TensorRecord
from coral.tensors.frameworks import framework_named
from coral.verbs.ingest import views_of
from coral.verbs.parts import is_weights

if TYPE_CHECKING:
    from coral.ids import CommitHash
    from coral.objects import ChunkStore
    from coral.tensors.frameworks import Framework
    from coral.verbs.parts import PartReader


class _Entry(NamedTuple):
    view: TensorView
    record: TensorRecord


class Weights(Mapping[str, object]):
    """Name to tensor, read from the store and verified when a tensor is asked for.

    Attributes:
        commit: full hash of the commit.
        framework: what the tensors are, ``numpy`` or ``torch``.
    """

    def __init__(
        self, store: ChunkStore, framework: Framework, parts: Mapping[str, Manifest], *, commit_hash: CommitHash
    ) -> None:
        self.commit = commit_hash
        self.framework = framework.name
        self._store = store
        self._framework = framework
        self._entries = _gather(store, parts)

    def __getitem__(self, name: str) -> object:
        """Read one tensor. Raises TensorNotFoundError, CorruptionError."""
        view, record = self._entry(name)
        self._store.check(record)
        tensor, out = self._framework.empty(record.dtype, record.shape if view.stride is None else _flat(record))
        self._store.read_into(record, out)
        if view.stride is None:
            return tensor
        return self._framework.view(tensor, view.shape, view.stride, view.offset)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def nbytes(self) -> int:
        """Raw bytes of all tensors; tied ones count once."""
        return sum({entry.record.content: entry.record.nbytes for entry in self._entries.values()}.values())

    @property
    def tensors(self) -> Mapping[str, TensorView]:
        """Dtype and shape of each tensor, without reading any."""
        return {name: entry.view for name, entry in self._entries.items()}

    def read_many(self, wanted: Iterable[tuple[str, memoryview]]) -> None:
        """Fill memory with the bytes of tensors, C order, little-endian; no copy is made beside it.

        Raises:
            TensorNotFoundError: there is no tensor of a name.
            CorruptionError: a chunk is missing or damaged; what was to be filled then holds rubbish.
        """
        self._store.read_many(self._plain(wanted))

    def check(self) -> None:
        """See that the store holds everything, without reading it. Raises CorruptionError."""
        for entry in self._entries.values():
            self._store.check(entry.record)

    def _plain(self, wanted: Iterable[tuple[str, memoryview]]) -> Iterator[tuple[TensorRecord, memoryview]]:
        for name, out in wanted:
            view, record = self._entry(name)
            if view.stride is None:
                yield record, out
            else:
                # A view of a larger storage: its elements have to be picked out of it.
                out[:] = memoryview(self._framework.source(name, self[name]).read(0, len(out))).cast("B")

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise _tensor_not_found(name, list(self._entries), self.commit) from None

    def __repr__(self) -> str:
        return f"<Weights {self.commit[:10]}: {len(self)} tensors, {self.nbytes:,} bytes, {self.framework}>"


def _gather(store: ChunkStore, parts: Mapping[str, Manifest]) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    owner: dict[str, str] = {}
    for part, manifest in sorted(parts.items()):
        for name, view in views_of(store, manifest).items():
            if name in entries:
                raise UsageError(
                    f"both {owner[name]!r} and {part!r} hold a tensor {name!r}",
                    hint=f"say which one you mean: get_all_weights(ref, name={part!r})",
                )
            entries[name] = _Entry(view, manifest[view.record_name])
            owner[name] = part
    return entries


def weights_of_commit(
    reader: PartReader, store: Callable[[], ChunkStore], commit_hash: CommitHash, *, name: str | None, framework: str
) -> Weights:
    """A commit's weights: of one part, or of all that hold weights. Raises PartNotFoundError, UsageError."""
    if name is not None:
        parts = {name: reader.one(commit_hash, name)}
    else:
        parts = {part: manifest for part, manifest in reader.at(commit_hash).items() if is_weights(manifest)}
    if not parts:
        raise PartNotFoundError(f"the commit {commit_hash[:10]} holds no weights", hint="'coral ls' lists its parts")
    return Weights(store(), framework_named(framework), parts, commit_hash=commit_hash)


def one_weight(
    reader: PartReader, store: Callable[[], ChunkStore], commit_hash: CommitHash, name: str, *, framework: str
) -> object:
    """One tensor of a commit, whichever part holds it. Raises TensorNotFoundError, UsageError."""
    parts = {part: manifest for part, manifest in reader.at(commit_hash).items() if is_weights(manifest)}
    holders = holders_of(store(), parts, name, commit_hash=commit_hash)
    return Weights(store(), framework_named(framework), holders, commit_hash=commit_hash)[name]


def holders_of(
    store: ChunkStore, parts: Mapping[str, Manifest], name: str, *, commit_hash: CommitHash
) -> dict[str, Manifest]:
    """The parts that hold a tensor of a name. Raises TensorNotFoundError when there are none."""
    known: list[str] = []
    holders = {}
    for part, manifest in parts.items():
        found = views_of(store, manifest)
        known += found
        if name in found:
            holders[part] = manifest
    if not holders:
        raise _tensor_not_found(name, known, commit_hash)
    return holders


def _flat(record: TensorRecord) -> tuple[int, ...]:
    count = 1
    for size in record.shape:
        count *= size
    return (count,)


def _tensor_not_found(name: str, known: list[str], commit_hash: CommitHash) -> TensorNotFoundError:
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "coral ls lists the tensors of a commit"
    return TensorNotFoundError(f"the commit {commit_hash[:10]} holds no tensor {name!r}", hint=hint)
