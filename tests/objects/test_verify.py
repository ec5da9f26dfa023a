"""Every chunk that is encoded is decoded again and compared before it counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coral.errors import CorruptionError
from coral.format import codecs
from coral.objects import ChunkStore, Parent
from coral.storage.folder import Folder
from tests.objects.helpers import Tensor, packs_of, read, stored_chunks, write

pytestmark = pytest.mark.usefixtures("no_fsync")


class _Machine:
    """An encoder in whose memory the last bit of a chunk flips, once it is faulty."""

    def __init__(self) -> None:
        self.is_faulty = False
        self.codecs: list[int] = []
        self._encode = codecs.encode

    def encode(self, raw: memoryview, item: int, base: codecs.Base | None = None) -> tuple[int, memoryview]:
        if self.is_faulty:
            data = bytearray(raw)
            data[-1] ^= 1
            raw = memoryview(data)
        codec, payload = self._encode(raw, item, base)
        self.codecs.append(codec)
        return codec, payload


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    machine = _Machine()
    monkeypatch.setattr(codecs, "encode", machine.encode)
    return machine


def _open(root: Path, *, verify_writes: bool = True) -> ChunkStore:
    return ChunkStore(Folder(root / "packs", temporary=root / "tmp"), root / "lock", verify_writes=verify_writes)


def _versions() -> Iterator[Tensor]:
    """A tensor that codecs shrink, and what it is after some training."""
    numbers = np.random.default_rng(0).standard_normal(20_000).astype("<f4").view("<u4")
    for step in range(2):
        yield Tensor("t", ((numbers >> 16).astype("<u2") + np.uint16(step)).tobytes(), "BF16", (len(numbers),))


def test_a_chunk_that_does_not_decode_is_not_stored(tmp_path: Path, machine: _Machine) -> None:
    """An encoding that decodes to other bytes fails the call, alone or as a delta; what was stored before stays."""
    first, second = _versions()
    store, parent = _open(tmp_path), Parent()
    for tensor in (first, second):
        with store.writer() as writer:
            machine.is_faulty = True
            with pytest.raises(CorruptionError, match="did not decode to what was encoded"):
                writer.write_tensors([tensor], parent=parent)
            machine.is_faulty = False
            (record,) = writer.write_tensors([tensor], parent=parent)
            writer.seal()
        assert read(_open(tmp_path), record) == tensor.data
    alone, delta = machine.codecs[:2], machine.codecs[2:]
    assert alone == [codecs.PLANES] * 2
    assert len(delta) == 2 and set(delta) <= codecs.WITH_BASE
    assert len(stored_chunks(store)) == 2


def test_who_verifies_no_writes_finds_out_when_reading(tmp_path: Path, machine: _Machine) -> None:
    """Without ``verify_writes`` such a chunk is stored, and reading refuses it, because its id names other bytes."""
    first, _ = _versions()
    store = _open(tmp_path, verify_writes=False)
    machine.is_faulty = True
    with store.writer() as writer:
        (record,) = writer.write_tensors([first])
        writer.seal()
    assert len(packs_of(tmp_path)) == 2
    with pytest.raises(CorruptionError):
        read(_open(tmp_path), record)


def test_what_is_written_alone_is_verified(tmp_path: Path, machine: _Machine) -> None:
    """A delta that is written once more without its base is compared as well."""
    store, parent = _open(tmp_path), Parent()
    for tensor in _versions():
        (record,) = write(store, tensor, parent=parent)
    assert machine.codecs[1] in codecs.WITH_BASE
    before = packs_of(tmp_path)
    machine.is_faulty = True
    with store.writer() as writer, pytest.raises(CorruptionError, match="did not decode to what was encoded"):
        writer.write_alone(store.chunk_ids(record))
    assert packs_of(tmp_path) == before
    assert read(store, record) == tensor.data
