"""What every merge rule promises: the same versions give the same tensor, and what it cannot settle it leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING

from coral.format.dtypes import BITS, byte_count
from coral.format.manifest import SKELETON_NAME, Manifest, Skeleton, TensorRecord
from coral.verbs.merging.merge import Merge, Versions, merge
from coral.verbs.merging.rules import Rule, settle

if TYPE_CHECKING:
    from coral.objects import ChunkStore

_NAME = "layer.weight"
_SHAPES = [(), (0, 3), (4, 2), (600, 500), (8, 1)]
_DTYPES = [*sorted(BITS)]


class _Tensor:
    """Bytes as a tensor of any type and shape."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self._data = data

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]


class RuleContract:
    """The promises of :class:`coral.verbs.merging.rules.Rule`.

    A subclass has the fixtures ``rule``, and ``store``: an empty store.
    """

    def test_it_says_what_it_is(self, rule: Rule) -> None:
        """Its name is an option's and a setting's, what it does a sentence, why it leaves something part of one."""
        assert rule.name.isidentifier() and rule.name.islower()
        assert rule.help.endswith(".") and "\n" not in rule.help
        assert not rule.why_not.endswith(".")

    def test_its_tensor_takes_the_place(self, rule: Rule, store: ChunkStore) -> None:
        """What it makes has the name, the dtype and the shape of one of the versions, and as many bytes as they say."""
        for versions in _pairs(store):
            found = rule.settle(versions, _reader(store))
            if found is None or isinstance(found, str):
                assert found in (None, "ours", "theirs")
                continue
            fits = [(one.dtype, one.shape) for one in versions[1:] if one is not None]
            assert found.name == _NAME and (found.dtype, found.shape) in fits, f"{versions}: of another kind"
            assert len(_made(rule, store, versions) or b"") == byte_count(found.dtype, found.shape), f"{versions}"

    def test_the_same_versions_give_the_same_tensor(self, rule: Rule, store: ChunkStore) -> None:
        """Whoever merges, and however often, gets the same bytes."""
        for versions in _pairs(store):
            assert _made(rule, store, versions) == _made(rule, store, versions), f"{versions}: another tensor each time"

    def test_what_it_cannot_settle_it_leaves(self, rule: Rule, store: ChunkStore) -> None:
        """A version that is missing, or of another dtype or shape, is taken or left, and raises nothing."""
        kinds = [None, ("F32", (2, 3)), ("F32", (3, 2)), ("BF16", (2, 3)), ("I8", (2, 3)), ("F4", (2, 4))]
        for kind in product(kinds, repeat=3):
            records = [None if one is None else _stored(store, *one, seed) for seed, one in enumerate(kind)]
            versions = Versions(*records)
            if versions.ours != versions.theirs:
                _made(rule, store, versions)

    def test_nothing_is_read_before_it_is_wanted(self, rule: Rule, store: ChunkStore) -> None:
        """To settle costs nothing: bytes are read when the tensor that comes of it is."""

        def read(record: TensorRecord) -> Iterator[memoryview]:
            raise AssertionError(f"{record.name} is read to settle it")
            yield memoryview(b"")

        for versions in _pairs(store):
            rule.settle(versions, read)

    def test_only_what_is_asked_for_is_settled(self, rule: Rule, store: ChunkStore) -> None:
        """Of a merge the named conflicts are settled or left as they were; all others, and what was settled, stay."""
        ours, theirs = (_manifest(store, seed) for seed in (1, 2))
        unfinished = merge(_manifest(store, 0), ours, theirs)
        before = unfinished.conflicts
        assert {"a", "b", "n"} <= set(before)
        done = settle(unfinished, rule, store=lambda: store, base=_manifest(store, 0), names=["a", "n"])
        assert set(before) - set(done.conflicts) <= {"a", "n"}, "other tensors were settled"
        assert done.ours["b"] == ours["b"] and done.theirs["b"] == theirs["b"], "other tensors were changed"
        for name in ("a", "n"):
            assert name not in done.conflicts or done.versions(name) == unfinished.versions(name), name
        assert Merge.from_bytes(done.to_bytes()).conflicts == done.conflicts
        for record in done.ours.records:
            store.check(record)

    def test_the_rest_of_a_file(self, rule: Rule, store: ChunkStore) -> None:
        """What is no tensor is one side's, or left."""
        one, other = (
            Manifest("npz", _manifest(store, 0).records, Skeleton(_stored(store, "U8", (40,), seed).content, 40))
            for seed in (1, 2)
        )
        done = settle(Merge(one, other), rule, store=lambda: store)
        sides: dict[str | None, Manifest] = {"ours": one, "theirs": other}
        if rule.frame is None:
            assert done.conflicts == (SKELETON_NAME,)
        else:
            assert not done.conflicts and done.ours.skeleton == sides[rule.frame].skeleton


def _manifest(store: ChunkStore, seed: int) -> Manifest:
    records = [_stored(store, "F32", (5, 3), seed, name) for name in ("a", "b")]
    records += [_stored(store, "I64", (3,), seed, "n"), _stored(store, "F32", (9,), 7, "same")]
    return Manifest("safetensors", tuple(records))


def _pairs(store: ChunkStore) -> Iterator[Versions]:
    """Versions of a tensor of every dtype, and of some shapes; with a base, and without."""
    for dtype, shape in [*((dtype, (4, 2)) for dtype in _DTYPES), *(("F32", shape) for shape in _SHAPES)]:
        base, ours, theirs = (_stored(store, dtype, shape, seed) for seed in range(3))
        if ours != theirs:
            yield Versions(base, ours, theirs)
            yield Versions(None, ours, theirs)


def _stored(store: ChunkStore, dtype: str, shape: tuple[int, ...], seed: int, name: str = _NAME) -> TensorRecord:
    data = random.Random(f"{dtype}{shape}{seed}{name}").randbytes(byte_count(dtype, shape))
    with store.writer(keeps_young=True) as writer:
        (record,) = writer.write_tensors([_Tensor(name, dtype, shape, data)])
        writer.seal()
    return record


def _reader(store: ChunkStore) -> Callable[[TensorRecord], Iterator[memoryview]]:
    def read(record: TensorRecord) -> Iterator[memoryview]:
        yield from store.stream([record])

    return read


def _made(rule: Rule, store: ChunkStore, versions: Versions) -> bytes | None:
    """The bytes of the tensor that a rule gives; None where it leaves it, or takes a side on which it is gone."""
    found = rule.settle(versions, _reader(store))
    if found is None:
        return None
    if found == "ours" or found == "theirs":
        record = versions.ours if found == "ours" else versions.theirs
    else:
        with store.writer(keeps_young=True) as writer:
            (record,) = writer.write_tensors([found])
            writer.seal()
    return None if record is None else b"".join(map(bytes, store.stream([record])))
