"""Readers of all that coral reads, and sound input of each, to be changed a little.

Bytes are flipped, cut, doubled, moved and swapped for numbers that hurt; where a checksum would stop all of them at the
door it is made right again.
"""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import tempfile
import time
import traceback
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from coral import Repository, containers
from coral.containers import BytesFile
from coral.errors import CoralError
from coral.experiments.columns import MetricColumns
from coral.experiments.events import Fold
from coral.experiments.experiment import Experiment, from_ms
from coral.experiments.local import record as records
from coral.experiments.local.index import Index
from coral.experiments.local.journal import damaged, decode, encode, line
from coral.experiments.local.liveness import myself
from coral.experiments.local.table import load as load_table
from coral.experiments.seams import Query
from coral.format import pack as pack_format
from coral.format.index import PackIndex, build
from coral.format.manifest import Manifest, TensorRecord
from coral.format.names import check_part_name, check_ref_name, unescape
from coral.format.pack import HEADER, HEADER_BYTES, MAGIC
from coral.git.pktline import FilterServer
from coral.history.commit import CommitObject
from coral.ids import CommitHash, ContentRef, checksum, single_ref
from coral.objects import ChunkStore
from coral.storage.folder import Folder
from coral.tensors.state import decode_state, encode_state
from coral.testing.processes import Note
from coral.verbs.config import Config
from coral.verbs.merging.merge import Merge
from tests.containers.helpers import gguf, kept, rebuilt
from tests.repository.helpers import weights
from tests.torture.hostile import BUG, GROWTH, SECONDS

_ALIVE = 500

_NUMBERS = [
    b"0",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"9" * 5000,
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"\xff",
    b"\0",
]
_WORDS = [*_NUMBERS, b"[" * 2000, b'{"a":' * 900, b"../", b"%00", b"\n", b"\t", b'"', b"\\ud800", b"\xed\xa0\x80"]
_BINARY = [bytes(8), b"\xff" * 8, b"\xff" * 4, (1 << 31).to_bytes(4, "little"), (1 << 62).to_bytes(8, "little")]
SMALL = {"flip": (1, 255), "cut": (1, 40), "double": (1, 200), "end": (0, 0)}
PARTS = {"word": _WORDS, "binary": _BINARY}
Change = tuple[str, float, int | bytes]
_KINDS = [*SMALL, *PARTS]
MOST_CHANGES = 6


def drawn(chance: random.Random) -> list[Change]:
    """Changes as hypothesis would choose them."""
    found: list[Change] = []
    for _ in range(chance.randint(1, MOST_CHANGES)):
        kind = chance.choice(_KINDS)
        what = chance.randint(*SMALL[kind]) if kind in SMALL else chance.choice(PARTS[kind])
        found.append((kind, chance.random(), what))
    return found


def changed(data: bytes, changes: list[Change]) -> bytes:
    """Input after these changes, one after the other."""
    for kind, where, what in changes:
        at = int(where * len(data))
        if isinstance(what, bytes):
            # A word takes the place of a run of digits or letters, so that the grammar stays what it was.
            end = at
            while end < len(data) and data[end : end + 1].isalnum():
                end += 1
            data = data[:at] + what + (data[end:] if kind == "word" else data[at + len(what) :])
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + what :]
        elif kind == "double":
            data = data[:at] + data[at : at + what] + data[at:]
        elif kind == "end":
            data = data[:at]
    return data


Reader = tuple[Callable[[], list[bytes]], Callable[[bytes], object]]


# -- what is sound, and who reads it


def _tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    return [save(_tensors(), {"format": "pt", "note": "x"}), save({})]


def _archives() -> list[bytes]:
    stream, npz, deflated, odd, legacy = (io.BytesIO() for _ in range(5))
    torch.save({**_tensors(), "view": torch.arange(9.0)[2:4], "step": 3}, stream)
    value = {"module": torch.nn.Linear(2, 1), "args": Namespace(lr=1, w=torch.ones(2)), "path": Path("x")}
    torch.save(value, odd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, legacy, _use_new_zipfile_serialization=False)
    np.savez(npz, a=np.arange(5), b=np.asfortranarray(np.ones((2, 2), "f4")), c=np.ones(2, "c16"))
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1000))
    return [made.getvalue() for made in (stream, npz, deflated, odd, legacy)]


def _parse(data: bytes, *suffixes: str) -> None:
    for suffix in suffixes:
        name = f"x{suffix}" if suffix else ""
        with containers.parse_file(BytesFile(data), name=name, keeps_broken=suffix != ".safetensors") as parsed:
            assert len(parsed.tensors) <= len(data) + 1
            assert len(parsed.reason) < 1000
            manifest, contents = kept(parsed)
            assert rebuilt(manifest, parsed.skeleton, contents) == data
            # What was taken apart can be shown.
            containers.views(manifest, parsed.skeleton)


def _gguf() -> list[bytes]:
    tensors = {"w": (2, (64, 2), b"ab" * 36), "w.Q4_0": (30, (4,), bytes(8)), "b": (0, (3,), bytes(12))}
    return [gguf(tensors), gguf(tensors, version=2, alignment=8)]


def _promised() -> list[bytes]:
    array, head = io.BytesIO(), b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0"
    np.save(array, np.ones((5, 7), "f4"))
    hdf5 = head + bytes(24) + (96).to_bytes(8, "little") + bytes(48)
    return [array.getvalue(), hdf5, b"version https://git-lfs.github.com/spec/v1\n", b"GGUF" + bytes(90)]


def _manifests() -> list[bytes]:
    found = [TensorRecord(f"layer.{n}%\t", "F32", (n, 2), ContentRef("b3:" + f"{n:064x}")) for n in range(5)]
    found.append(TensorRecord("step", "I64", (), ContentRef("hex:" + "00" * 8)))
    return [Manifest("safetensors", tuple(found), None, (("format", "pt"),)).to_bytes()]


def _read_manifest(data: bytes) -> None:
    assert Manifest.from_bytes(data).to_bytes() == data


def _merges() -> list[bytes]:
    one = Manifest.from_bytes(_manifests()[0])
    other = Manifest("safetensors", one.records[1:], None, (("format", "np"),))
    return [Merge(one, other).to_bytes(), one.to_bytes()]


def _read_merge(data: bytes) -> None:
    found = Merge.from_bytes(data)
    again = Merge.from_bytes(found.to_bytes())
    assert (again.ours, again.theirs) == (found.ours, found.theirs)
    assert not found.take("ours").conflicts


@cache
def _folder() -> Path:
    """A folder in memory where there is one, with a repository."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    repo = Repository(folder / "project", init=True)
    for seed in range(3):
        drifted = {name: np.add(value, 1e-3 * seed, dtype="f4") for name, value in weights(1, rows=200).items()}
        repo.stage_weights(drifted)
        repo.commit(f"seed {seed}", metrics={"loss": 1.0}, metadata={"a": [1]}, step=seed)
    repo.tag("v1")
    return folder


def sweep() -> None:
    """Remove what was made in memory."""
    if _folder.cache_info().currsize:
        shutil.rmtree(_folder())
        _folder.cache_clear()


def _packs() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_folder() / "project/.coral/packs").glob("*.pack"))]


def _sealed(data: bytes) -> bytes:
    """A pack whose checksums are right, as far as its lengths lead."""
    out, at = bytearray(data), len(MAGIC)
    while at + HEADER_BYTES <= len(out):
        stored = int.from_bytes(out[at + 8 : at + 12], "little")
        payload = bytes(out[at + HEADER_BYTES : at + HEADER_BYTES + stored])
        out[at + 16 : at + 24] = checksum(payload).to_bytes(8, "little")
        out[at + HEADER.size : at + HEADER_BYTES] = checksum(bytes(out[at : at + HEADER.size])).to_bytes(8, "little")
        at += HEADER_BYTES + stored
    return bytes(out)


def _read_pack(data: bytes) -> None:
    data = _sealed(data)
    entries = list(pack_format.scan(data, "a pack"))
    root = _folder() / "packs"
    root.mkdir(exist_ok=True)
    (root / "00000001-0123456789abcdef.pack").write_bytes(data)
    (root / "00000001-0123456789abcdef.idx").write_bytes(build(entries))
    store = ChunkStore(Folder(root), _folder() / "lock", threads=1)
    for chunk, entry in entries[:20]:
        try:
            wanted = TensorRecord("t", "U8", (entry.raw_length,), single_ref(chunk))
            store.check(wanted)
            store.read_into(wanted, memoryview(bytearray(entry.raw_length)))
        except CoralError:
            continue


def _indexes() -> list[bytes]:
    return [path.read_bytes() for path in sorted((_folder() / "project/.coral/packs").glob("*.idx"))]


def _read_index(data: bytes) -> None:
    body = data[:-8]
    index = PackIndex(body + checksum(body).to_bytes(8, "little"), "an index")
    for chunk, _ in list(index.items())[:50]:
        index.find(chunk)


def _journals() -> list[bytes]:
    events = [
        {"e": "m", "t": 1000, "s": 1, "v": {"loss": 0.5, "acc": "NaN"}, "d": {"split": "x"}},
        {"e": "p", "t": 1001, "v": {"opt": {"lr": 0.1}}},
        {
            "e": "set",
            "t": 1002,
            "v": {"add_tags": ["a"], "notes": "n", "labels": {"k": "v"}, "objective": {"a": "min"}},
        },
        {"e": "a", "t": 1002, "v": {"name": "x.txt", "kind": "text", "nbytes": 3, "ref": "hex:000000"}},
        {"e": "c", "t": 1003, "hash": "a" * 40, "step": 1, "metrics": {"loss": 0.5}},
        {"e": "drop", "t": 1004, "n": 3},
        {"e": "end", "t": 1005, "status": "completed", "failure": None, "commit": None},
    ]
    return [b"".join(map(encode, events))]  # type: ignore[arg-type]


def _read_journal(data: bytes) -> None:
    decode(data), damaged(data)
    sealed = b"".join(line(part.partition(b" ")[2]) for part in data.split(b"\n") if part)
    run = Experiment("a" * 12, "x", created_at=from_ms(0))
    fold = Fold(run, MetricColumns())
    fold.apply_all(decode(sealed)[0])
    text = records.encode(records.Record(run, myself("process"), {}), fold.history)
    fields = records.head(text, "x")[1]
    assert fields is not None
    assert list(records.decode_history(text, "x").points()) == list(fold.history.points())
    records.decode(fields, MetricColumns, "x")


def _runs() -> list[bytes]:
    run, history = Experiment("a" * 12, "x", created_at=from_ms(0)), MetricColumns()
    Fold(run, history).apply_all(decode(_journals()[0])[0])
    for step in range(40):
        history.append(("loss", "acc")[step % 2], step / 3, step, 1000 + step)
    return [records.encode(records.Record(run, myself("process"), {}), history).replace(b'"check"', b'"chalk"')]


def _read_run(data: bytes) -> None:
    _, fields = records.head(data, "x")
    history = records.decode_history(data, "x")
    len(list(history.points())), [series.times and series.steps for series in history.series.values()]
    if fields is not None:
        records.decode(fields, lambda: history, "x").experiment.to_dict(history=True)
    try:
        records.summaries([data.partition(b"\n")[0] + b"\n"])
    except CoralError:
        pass


def _tables() -> list[bytes]:
    from coral.experiments import ExperimentTracker

    repo = Repository(_folder() / "project")
    with ExperimentTracker(repo).start("a run") as run:
        run.log("loss", 1.0, step=1)
    ExperimentTracker(repo).list()
    return [(repo.folder.root / "cache/experiments.index").read_bytes()]


def _read_table(data: bytes) -> None:
    first, _, body = data.partition(b"\n")
    found = load_table(b"%b %016x\n%b" % (first.rpartition(b" ")[0], checksum(body), body))
    if found is not None:
        index = Index(Folder(_folder() / "none"))
        index._table = found
        index.select(Query()), index.totals(), index.running(), index.best("loss", "min", Query(), 5)


def _states() -> list[bytes]:
    value = {
        "a": (1, 2.5),
        3: {b"x", "y"},
        "t": torch.ones(2),
        "n": np.float32(1.5),
        "d": torch.float16,
        "i": 1 << 2000,
    }
    return [encode_state(value)[0].encode()]


def _read_state(data: bytes) -> None:
    decode_state(data.decode("utf-8", "surrogateescape"), lambda name, owner: torch.ones(1))


def _configs() -> list[bytes]:
    text = (_folder() / "project/.coral/config.toml").read_bytes()
    return [text + b'threads = 4\n[user]\nauthor = "A <a@b>"\n[remotes.origin]\nurl = "/srv/x"\n']


def _read_config(data: bytes) -> None:
    path = _folder() / "settings"
    path.mkdir(exist_ok=True)
    (path / "config.toml").write_bytes(data)
    Config.load(Folder(path))


def _names() -> list[bytes]:
    return [
        b"feature/x",
        b"HEAD~2^2",
        b"main@{1}",
        b"refs/tags/v1",
        b"best:loss:min",
        b"dir/model.safetensors",
        b"v1^{commit}",
    ]


def _read_name(data: bytes) -> None:
    name = data.decode("utf-8", "surrogateescape")
    repo = Repository(_folder() / "project")
    for look in (check_ref_name, check_part_name, unescape, repo.resolve, repo.history.branch_tip, repo.history.reflog):
        try:
            look(name)
        except CoralError:
            continue
    repo.get_all_weights("HEAD", name)


def _packets() -> list[bytes]:
    def packet(text: bytes) -> bytes:
        return b"%04x%s" % (len(text) + 4, text)

    hello = [packet(b"git-filter-client\n"), packet(b"version=2\n"), b"0000", packet(b"capability=clean\n"), b"0000"]
    ask = [packet(b"command=clean\n"), packet(b"pathname=x.bin\n"), b"0000", packet(b"x" * 300), packet(b"y"), b"0000"]
    return [b"".join([*hello, *ask, *ask])]


def _read_packets(data: bytes) -> None:
    server = FilterServer(io.BytesIO(data), io.BytesIO())
    server.shake_hands(["clean", "smudge"])
    for request in server.requests():
        if request.command in ("clean", "smudge"):
            content = server.content.read_whole()
            server.answer(lambda send, content=content: send(content))  # type: ignore[misc]


def _commits() -> list[bytes]:
    history = Repository(_folder() / "project").history
    return [history._object(one.commit_hash).to_bytes() for one in history.log("main")]


def _read_commit(data: bytes) -> None:
    commit_hash = CommitHash("a" * 40)
    one = CommitObject.from_bytes(data, commit_hash).commit(commit_hash)
    str(one), one.step, one.metrics, one.metadata, one.code_dirty, one.subject, one.run_id


READERS: dict[str, Reader] = {
    "safetensors": (_safetensors, lambda data: _parse(data, ".safetensors")),
    "archives": (_archives, lambda data: _parse(data, "", ".pt", ".npz", ".keras")),
    "gguf": (_gguf, lambda data: _parse(data, "", ".gguf", ".pt")),
    "promises": (_promised, lambda data: _parse(data, ".npy", ".h5", ".gguf", ".bin", ".txt")),
    "manifests": (_manifests, _read_manifest),
    "merges": (_merges, _read_merge),
    "packs": (_packs, _read_pack),
    "indexes": (_indexes, _read_index),
    "journals": (_journals, _read_journal),
    "runs": (_runs, _read_run),
    "tables of runs": (_tables, _read_table),
    "states": (_states, _read_state),
    "settings": (_configs, _read_config),
    "names": (_names, _read_name),
    "git's packets": (_packets, _read_packets),
    "commits": (_commits, _read_commit),
}


class Fuzzed:
    """One reader, and whether it stays within its bounds.

    Args:
        kind: one of :data:`READERS`.

    Attributes:
        sound: what it should read well.
    """

    def __init__(self, kind: str) -> None:
        make, self._reader = READERS[kind]
        self.sound = make()
        for data in self.sound:
            self._attempt(data)
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(self, data: bytes) -> None:
        """Read input: an answer, or an error of coral's, in time."""
        started = time.process_time()
        self._attempt(data)
        assert time.process_time() - started < SECONDS

    def survives(self, which: int, changes: list[Change]) -> None:
        """Read one sound input after these changes."""
        self.read(changed(self.sound[which % len(self.sound)], changes))

    def _attempt(self, data: bytes) -> None:
        try:
            self._reader(data)
        except CoralError as error:
            assert error.exit_code != BUG

    def grown(self) -> int:
        """How much more memory was ever used than after the sound inputs."""
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before)


def fuzz(note: Note, kind: str, examples: int, seed: int) -> list[str]:
    """The long form: what is wrong with a reader after so many examples, by the first lines of each error."""
    chance, wrong, fuzzed = random.Random(seed), dict[str, str](), Fuzzed(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(examples):
            if number % _ALIVE == 0:
                note(number)
            which, changes = chance.randrange(12), drawn(chance)
            try:
                fuzzed.survives(which, changes)
            except Exception as error:
                trace = traceback.format_exc(limit=-4)
                wrong.setdefault(trace.splitlines()[-2] + repr(error)[:80], f"{which}, {changes}: {trace}")
    sweep()
    return [*wrong.values()] + ([f"{fuzzed.grown() >> 20} MiB more"] if fuzzed.grown() > GROWTH else [])
