"""Staging, committing and reading back."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from coral import Repository
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    NothingToCommitError,
    PartNotFoundError,
    RefNotFoundError,
    StorageError,
    TensorNotFoundError,
    UnsupportedValueError,
    UsageError,
)
from coral.history import Commit
from coral.verbs import line
from coral.verbs.commit import land
from tests.repository.helpers import commit, raw, read, weights

_BITS = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0, 0xFF800000, 1, 0x80000001, *range(9)], "u4")


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    grid = rng.normal(size=(6, 10)).astype("f4")
    return {
        "nan payloads": _BITS.view("f4"),
        "bf16": _BITS.view("u2").view(ml_dtypes.bfloat16),
        "f8e4": np.arange(256, dtype="u1").view(ml_dtypes.float8_e4m3fn),
        "f8e5": np.arange(256, dtype="u1").view(ml_dtypes.float8_e5m2),
        "bool": rng.random(41) > 0.5,
        "complex64": np.array([complex(-0.0, float("nan")), 1j] * 9, "c8"),
        "int8": np.arange(-128, 128, dtype="i1"),
        "u64": np.array([2**64 - 1, 0] * 5, "u8"),
        "0-d": np.array(-0.0, "f8"),
        "empty": np.zeros((0, 7), "f2"),
        "empty too": np.zeros((3, 0, 2), "f2"),
        "transposed": grid.T,
        "strided": grid[::2, ::-3],
        "big endian": grid.astype(">f4"),
        "broadcast": np.broadcast_to(grid[0], (4, 10)),
        "several chunks": rng.integers(0, 255, (700, 1000, 3), "u1"),
        "ünï\0code\n\t%": grid,
    }


def test_every_kind_of_array_comes_back_bit_for_bit(repo: Repository) -> None:
    """Dtype, shape and bytes are kept: NaN payloads, -0.0, packed floats, 0-d, empty, strided, big-endian."""
    arrays = _arrays()
    repo.stage_weights(arrays)
    repo.commit("all kinds")
    found = Repository(repo.path).get_all_weights()
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        back = found[name]
        assert isinstance(back, np.ndarray)
        assert (back.dtype, back.shape) == (array.dtype.newbyteorder("<"), array.shape), name
        assert back.tobytes() == array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(), name


def test_every_kind_of_tensor_comes_back_bit_for_bit(repo: Repository) -> None:
    """As for arrays, with torch in and torch out: conjugate and negative views, ties, parameters, non-contiguous."""
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10) - 30
    complex_base = torch.complex(base, base + 1)
    tensors = {
        "bf16": torch.tensor(_BITS.view("i2")).view(torch.bfloat16),
        "fp8": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "bool": base > 0,
        "conj": complex_base.conj(),
        "neg": complex_base.conj().imag,
        "view": base.t()[1:, ::2],
        "expanded": base[:1].expand(3, 10),
        "parameter": torch.nn.Parameter(base.clone()),
        "tied": base,
        "tied too": base,
        "0-d": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
    }
    repo.stage_weights(tensors)
    repo.commit("torch")
    manifest = repo.parts()["model.safetensors"]
    assert manifest["tied"].content == manifest["tied too"].content
    found = repo.get_all_weights(framework="torch")
    for name, tensor in tensors.items():
        back, flat = found[name], tensor.detach().resolve_conj().resolve_neg().contiguous()
        assert isinstance(back, torch.Tensor)
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape), name
        assert back.reshape(-1).view(torch.uint8).tolist() == flat.reshape(-1).view(torch.uint8).tolist(), name


def test_a_module_is_its_state_dict(repo: Repository) -> None:
    """Parameters, buffers and ties of a module are all kept, under the names of its state_dict."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model[2].weight = torch.nn.Parameter(torch.randn(4, 4))
    repo.stage_weights(torch.nn.DataParallel(model))
    repo.commit("module")
    assert read(repo) == raw({name: value.detach() for name, value in model.state_dict().items()})


def test_a_commit_holds_what_was_staged(repo: Repository) -> None:
    """Changing an array after it was staged changes neither this commit nor, unstaged, the next."""
    array = np.zeros((600, 1000), "f4")
    repo.stage_weights({"w": array})
    array += 1
    first = repo.commit("zeros")
    with pytest.raises(NothingToCommitError):
        repo.commit("not staged")
    repo.stage_weights({"w": array})
    repo.commit("ones")
    assert read(repo, first.commit_hash) == {"w": bytes(array.nbytes)}
    assert read(repo) == raw({"w": array})


def test_staging_overlays_the_tip(repo: Repository) -> None:
    """Staging one part keeps the others; staging it again replaces it; update=True overlays tensor by tensor."""
    commit(repo, 1, "a"), commit(repo, 2, "b")
    assert read(repo, name="a") == raw(weights(1))
    repo.stage_weights({"x": np.ones(3)}, "a")
    repo.stage_weights({"y": np.ones(3), "bias": np.zeros(2)}, "a")
    repo.commit("replaced")
    assert (list(repo.get_all_weights(name="a")), read(repo, name="b")) == (["bias", "y"], raw(weights(2)))
    repo.stage_weights({"y": np.zeros(1), "new": np.ones(9)}, "a", update=True)
    repo.stage_weights({"newer": np.ones(9)}, "a", update=True)
    repo.commit("updated")
    assert {name: view.shape for name, view in repo.get_all_weights(name="a").tensors.items()} == {
        "bias": (2,),
        "new": (9,),
        "newer": (9,),
        "y": (1,),
    }


def test_update_wants_a_safetensors_part(repo: Repository) -> None:
    """What is no set of named tensors cannot be updated one by one, and what does not exist cannot at all."""
    (repo.path / "notes.txt").write_text("hello")
    repo.stage_file(repo.path / "notes.txt")
    repo.stage_state({"epoch": 3, "t": np.ones(9)})
    repo.stage_weights({"data": np.ones(9)})
    before = repo.status()
    for name in ("notes.txt", "state.safetensors"):
        with pytest.raises(UsageError, match=name):
            repo.stage_weights({"data": np.ones(5)}, name, update=True)
    with pytest.raises(PartNotFoundError, match="nope"):
        repo.stage_weights({"data": np.ones(5)}, "nope", update=True)
    assert repo.status() == before
    repo.commit("x")
    assert (repo.parts()["notes.txt"].container, repo.get_state()["epoch"]) == ("opaque", 3)  # type: ignore[index]


def test_metadata_of_the_file_survives_an_update(repo: Repository) -> None:
    """The safetensors file's own key-value pairs are kept by an update that does not give new ones."""
    repo.stage_weights({"a": np.ones(9)}, metadata={"format": "pt"})
    repo.stage_weights({"b": np.ones(9)}, update=True)
    repo.commit("x")
    assert repo.parts()["model.safetensors"].metadata == (("format", "pt"),)


def test_what_cannot_be_kept_leaves_staging_as_it_was(repo: Repository) -> None:
    """A refused tensor is named, and neither it nor its neighbours are staged; what was staged still is."""
    repo.stage_weights(weights(1))
    before = repo.status()
    sparse = torch.eye(3).to_sparse()
    refused: list[object] = [
        {"good": np.ones(99), "bad": np.array(["text"])},
        {"good": np.ones(99), "bad": sparse},
        {"good": np.ones(99), "bad": [1.0, 2.0]},
        {"good": np.ones(99), "bad": {"nested": np.ones(2)}},
        {"good": np.ones(99), "bad": 3},
        {"bad": torch.nn.Linear(2, 2)},
    ]
    for value in refused:
        with pytest.raises(UnsupportedValueError, match="bad"):
            repo.stage_weights(value)
    with pytest.raises(UnsupportedValueError, match="7"):
        repo.stage_weights({7: np.ones(3)})
    with pytest.raises(UsageError):
        repo.stage_weights(np.ones(3))
    with pytest.raises(UnsupportedValueError, match="bad"):
        repo.stage_state({"bad": object()})
    with pytest.raises(UsageError):
        repo.stage_weights(weights(2), "../outside")
    assert repo.status() == before
    repo.commit("only the good")
    assert read(repo) == raw(weights(1))


def test_save_is_all_or_nothing(repo: Repository) -> None:
    """A state that cannot be kept stages no half of a checkpoint."""
    repo.stage_weights(weights(1), "other")
    before = repo.status()
    with pytest.raises(UnsupportedValueError, match="handle"):
        repo.save(torch.nn.Linear(2, 2), handle=object())
    assert repo.status() == before
    with pytest.raises(UsageError):
        repo.save(torch.nn.Linear(2, 2), optimizer=3)  # type: ignore[call-overload]
    assert repo.status() == before


def test_unstage_and_rm(repo: Repository) -> None:
    """unstage forgets what was staged, rm stages a removal; unknown names raise and change nothing."""
    commit(repo, 1, "a"), commit(repo, 2, "b")
    repo.stage_weights(weights(3), "a"), repo.stage_weights(weights(3), "c")
    with pytest.raises(PartNotFoundError, match="nope"):
        repo.unstage("a", "nope")
    repo.unstage("a", "a")
    repo.rm("b", "c")
    with pytest.raises(PartNotFoundError, match="nope"):
        repo.rm("a", "nope")
    with pytest.raises(PartNotFoundError, match="'b'"):
        repo.rm("b")
    assert [(change.name, change.kind) for change in repo.status().staged] == [("b", "removed")]
    repo.commit("without b")
    assert list(repo.parts()) == ["a"] and read(repo) == raw(weights(1))
    repo.rm("a")
    repo.unstage()
    with pytest.raises(NothingToCommitError):
        repo.commit("nothing")


def test_status_names_each_change(repo: Repository) -> None:
    """status tells added, changed and removed apart, and what equals the tip is no change."""
    assert repo.status().commit is None and repo.status().branch == "main"
    commit(repo, 1, "a"), commit(repo, 2, "b"), commit(repo, 3, "c")
    repo.stage_weights(weights(9), "a")
    repo.rm("b")
    repo.stage_weights(weights(3), "c")
    repo.stage_weights(weights(4, rows=10), "d")
    staged = repo.status().staged
    assert [(change.name, change.kind, change.nbytes) for change in staged] == [
        ("a", "changed", 28 + 1600),
        ("b", "removed", 0),
        ("d", "added", 28 + 320),
    ]
    assert repo.status().parts == 3


def test_nothing_to_commit(repo: Repository) -> None:
    """A commit equal to its parent needs allow_empty; the same bytes staged again are nothing."""
    with pytest.raises(NothingToCommitError):
        repo.commit("nothing at all")
    first = commit(repo, 1)
    with pytest.raises(NothingToCommitError):
        commit(repo, 1)
    empty = repo.commit("on purpose", allow_empty=True)
    assert empty.parents == (first.commit_hash,) and read(repo) == raw(weights(1))
    assert len(list(repo.log())) == 2


def test_tags_of_a_commit(repo: Repository) -> None:
    """Tags are made with the commit; one that cannot be made is refused before anything is committed."""
    repo.stage_weights(weights(1))
    made = repo.commit("x", tags=["v1", "best/a", "v1"])
    assert repo.tags() == {"best/a": made.commit_hash, "v1": made.commit_hash}
    for taken in (["new", "v1"], ["best"], ["v1/x"]):
        repo.stage_weights(weights(2))
        with pytest.raises(AlreadyExistsError):
            repo.commit("y", tags=taken)
        with pytest.raises(UsageError):
            repo.commit("y", tags=["good", "not good.."])
    assert repo.resolve("HEAD") == made.commit_hash and len(repo.tags()) == 2
    assert repo.commit("z", tags="one").commit_hash == repo.tags()["one"]
    repo.tag("later", "v1", "a message")
    assert repo.resolve("later") == made.commit_hash
    with pytest.raises(AlreadyExistsError):
        repo.tag("later")
    repo.delete_tag("later")
    with pytest.raises(RefNotFoundError):
        repo.delete_tag("later")


def test_what_a_commit_says(repo: Repository) -> None:
    """Step, metrics and metadata come back as they were given, whatever kind of number they were."""
    repo.stage_weights(weights(1))
    made = repo.commit(  # type: ignore[call-overload]
        "subject ü\n\nbody\nCoral-Step: 9",
        author="Ada Lovelace <ada@x>",
        metadata={"nested": {"list": [1, None, "ü\n"]}},
        step=np.int64(7),
        metrics={"loss": torch.tensor(0.1, dtype=torch.float64), "n": np.float32(2), "nan": float("nan")},
    )
    for found in (made, repo.history.commit(made.commit_hash), repo.show().commit):
        assert isinstance(found, Commit)
        assert (found.message, found.author) == ("subject ü\n\nbody\nCoral-Step: 9", "Ada Lovelace <ada@x>")
        assert (found.step, found.metadata) == (7, {"nested": {"list": [1, None, "ü\n"]}})
        assert found.metrics["loss"] == 0.1 and found.metrics["n"] == 2 and found.metrics["nan"] != found.metrics["nan"]
    repo.stage_weights(weights(2))
    steps: list[dict[str, object]] = [{"step": value} for value in (1.5, "3", np.ones(2))]
    metrics: list[dict[str, object]] = [{"metrics": {"m": value}} for value in ("x", np.ones(2), torch.ones(2))]
    texts: list[dict[str, object]] = [{"message": " \n"}, {"message": "a\0b"}, {"author": "<>"}]
    cases: list[dict[str, object]] = [*steps, *metrics, *texts, {"metadata": {"o": object()}}]
    for case in cases:
        arguments = {"message": "x", **case}
        with pytest.raises(UsageError):
            repo.commit(**arguments)  # type: ignore[call-overload]
    assert repo.commit("still staged").author == "coral"


def test_an_observer_is_linked_to_each_commit(repo: Repository) -> None:
    """Its trailers stand in the commit, and it is told of the commit once the branch is there."""

    class Watch:
        seen: Sequence[Commit] = ()

        def trailers(self, *, step: int | None, metrics: Mapping[str, float] | None) -> Mapping[str, str]:
            return {"Coral-Run": f"run-{step}-{sorted(metrics or {})}"}

        def committed(self, commit: Commit) -> None:
            assert repo.history.branches()["main"] == commit.commit_hash
            self.seen = [*self.seen, commit]

    watch = Watch()
    repo.add_commit_observer(watch)
    repo.stage_weights(weights(1))
    made = repo.commit("x", step=3, metrics={"b": 1, "a": 2})
    assert made.run_id == "run-3-['a', 'b']" and watch.seen == [made]
    repo.remove_commit_observer(watch)
    repo.remove_commit_observer(watch)
    assert commit(repo, 2).run_id is None and watch.seen == [made]


def test_a_clash_of_tensor_names_asks_which(repo: Repository) -> None:
    """Two parts with one tensor name raise; name= says which; a tensor that only one holds is not ambiguous."""
    repo.stage_weights({"w": np.ones(9), "only here": np.ones(3)}, "a")
    repo.stage_weights({"w": np.zeros(9)}, "b")
    repo.commit("x")
    with pytest.raises(UsageError, match="name="):
        repo.get_all_weights()
    with pytest.raises(UsageError, match="name="):
        repo.get_weight("w")
    assert np.sum(repo.get_all_weights(name="a")["w"]) == 9  # type: ignore[call-overload]
    assert np.sum(repo.get_weight("only here")) == 3  # type: ignore[call-overload]


def test_one_tensor_reads_its_own_chunks_only(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """get_weight reads the chunks of that tensor and no other; making the mapping reads none."""
    rng = np.random.default_rng(0)
    repo.stage_weights({f"w{n}": rng.normal(size=(512, 1024)).astype("f4") for n in range(4)})
    repo.commit("x")
    fresh = Repository(repo.path)
    reads: list[bytes] = []
    original = fresh.store.read_chunk

    def counting(chunk, out):  # type: ignore[no-untyped-def]
        reads.append(chunk)
        original(chunk, out)

    monkeypatch.setattr(fresh.store, "read_chunk", counting)
    found = fresh.get_all_weights()
    assert len(found) == 4 and found.nbytes == 4 * 512 * 1024 * 4 and reads == []
    fresh.get_weight("w2")
    record = fresh.parts()["model.safetensors"]["w2"]
    assert len(reads) == 2 and set(reads) == set(fresh.store.chunk_ids(record))


def test_states_come_back_as_they_were(repo: Repository) -> None:
    """get_state returns tuples, integer keys, bytes and tensors; several states ask which one is meant."""
    state = {1: (1, 2.5, None), "b": b"\0\xff", "t": np.arange(99), "inf": float("-inf"), "big": 2**200}
    repo.stage_state(state)
    repo.commit("state")
    back = repo.get_state()
    assert isinstance(back, dict) and np.array_equal(back.pop("t"), state.pop("t"))  # type: ignore[arg-type]
    assert back == state and type(back[1]) is tuple
    repo.stage_state([1], "other.state")
    repo.commit("two")
    with pytest.raises(UsageError, match="name="):
        repo.get_state()
    assert repo.get_state(name="other.state") == [1]


def test_what_does_not_exist_raises(repo: Repository) -> None:
    """Never {} or None: unknown refs, parts, tensors, states and frameworks raise, and near misses are named."""
    with pytest.raises(RefNotFoundError, match="no commit yet"):
        repo.get_all_weights()
    with pytest.raises(RefNotFoundError, match="no commit yet"):
        list(repo.log())
    commit(repo, 1)
    cases: list[tuple[type[Exception], str, Mapping[str, object]]] = [
        (RefNotFoundError, "did you mean 'main'", {"ref": "mian"}),
        (PartNotFoundError, r"model\.safetensors", {"name": "modle.safetensors"}),
        (UsageError, "known frameworks", {"framework": "tensorflow"}),
    ]
    for error, hint, arguments in cases:
        with pytest.raises(error, match=hint):
            repo.get_all_weights(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TensorNotFoundError, match=r"did you mean layer\.weight"):
        repo.get_weight("layer.wieght")
    with pytest.raises(TensorNotFoundError):
        repo.get_all_weights()["nope"]
    for name in (None, "model.safetensors", "nope"):
        with pytest.raises(PartNotFoundError):
            repo.get_state(name=name)
    repo.rm("model.safetensors")
    repo.stage_state({"epoch": 1})
    repo.commit("no weights")
    with pytest.raises(PartNotFoundError, match="no weights"):
        repo.get_all_weights()
    with pytest.raises(RefNotFoundError):
        repo.diff("main", "nope")
    with pytest.raises(RefNotFoundError):
        repo.show("HEAD~9")
    with pytest.raises(RefNotFoundError):
        repo.reflog("nope")


def test_shell_commands_share_one_staging(repo: Repository) -> None:
    """What one command stages the next commits; an object's own staging is nobody else's."""
    first, second = (Repository(repo.path, shell_staging=True) for _ in range(2))
    first.stage_weights(weights(1), "a")
    second.stage_weights(weights(2), "b")
    assert repo.status().staged == ()
    assert [change.name for change in Repository(repo.path, shell_staging=True).status().staged] == ["a", "b"]
    second.unstage("b")
    made = Repository(repo.path, shell_staging=True).commit("from the shell")
    assert list(repo.parts(made.commit_hash)) == ["a"] and read(repo) == raw(weights(1))
    assert first.status().staged == () and not (repo.folder.root / "staging/index.json").exists()
    with pytest.raises(NothingToCommitError):
        first.commit("again")


def test_a_conflict_in_the_shell_can_be_retried(repo: Repository) -> None:
    """The second try lays the staged part over the new tip, though it is another process."""
    commit(repo, 1)
    Repository(repo.path, shell_staging=True).stage_weights(weights(2))
    theirs = commit(repo, 3)
    with pytest.raises(ConflictError, match=r"model\.safetensors"):
        Repository(repo.path, shell_staging=True).commit("mine")
    mine = Repository(repo.path, shell_staging=True).commit("mine")
    assert mine.parents == (theirs.commit_hash,) and read(repo) == raw(weights(2))


def test_a_conflict_with_a_commit_of_this_moment_can_be_retried(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try lies over the commit that was told of, though it came while the first was under way."""
    commit(repo, 1)
    mine = Repository(repo.path)
    mine.stage_weights(weights(2))
    theirs: list[str] = []

    def late(*arguments: Any, **options: Any) -> Commit:
        monkeypatch.setattr(line, "land", land)
        theirs.append(commit(repo, 3).commit_hash)
        return land(*arguments, **options)

    monkeypatch.setattr(line, "land", late)
    with pytest.raises(ConflictError, match=r"model\.safetensors"):
        mine.commit("mine")
    assert mine.commit("mine").parents == tuple(theirs) and read(repo) == raw(weights(2))


def test_a_commit_that_outran_its_staging_file(repo: Repository) -> None:
    """A shell killed between moving the branch and emptying the staging area leaves nothing to commit."""
    shell = Repository(repo.path, shell_staging=True)
    commit(repo, 1)
    shell.stage_weights(weights(2))
    index = repo.folder.root / "staging/index.json"
    text = index.read_bytes()
    made = shell.commit("x")
    index.write_bytes(text)
    again = Repository(repo.path, shell_staging=True)
    assert again.status().staged == ()
    with pytest.raises(NothingToCommitError):
        again.commit("y")
    assert repo.resolve("main") == made.commit_hash


def test_tied_names_are_stored_once(repo: Repository) -> None:
    """The same bytes under any name, part or commit take their place in the packs once."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (1000, 1000), "u1")
    repo.stage_weights({"a": array, "b": array.copy()})
    repo.commit("x")
    repo.stage_weights({"c": array}, "other")
    repo.commit("y")
    size = sum(path.stat().st_size for path in (repo.folder.root / "packs").rglob("*"))
    assert size < 1.1 * array.nbytes
    assert repo.get_all_weights(name="model.safetensors").nbytes == array.nbytes


def test_float_metrics_are_exact(repo: Repository) -> None:
    """A metric comes back with every bit."""
    value = struct.unpack("<d", b"\x01\x23\x45\x67\x89\xab\xcd\x3f")[0]
    repo.stage_weights(weights(1))
    assert repo.history.commit(repo.commit("x", metrics={"m": value}).commit_hash).metrics == {"m": value}


def test_a_commit_stands_whatever_becomes_of_tidying(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the branch has moved, a disk that refuses to merge small packs is no failure of the commit."""

    def refuse() -> int:
        raise StorageError("no space")

    monkeypatch.setattr(repo.store, "consolidate", refuse)
    repo.stage_weights(weights(1))
    assert repo.commit("x", tags=["v1"]).commit_hash == repo.tags()["v1"] == repo.resolve("HEAD")


def test_reset_empties_the_shells_staging(repo: Repository) -> None:
    """What any command staged is forgotten by a reset of another, and by no other object's."""
    commit(repo, 1)
    shell = Repository(repo.path, shell_staging=True)
    shell.stage_weights(weights(2))
    repo.reset()
    assert len(shell.status().staged) == 1
    Repository(repo.path, shell_staging=True).reset()
    assert shell.status().staged == () and read(repo) == raw(weights(1))
