"""Files in, files out: byte for byte, and never over bytes that no commit holds."""

from __future__ import annotations

import io
import os
import subprocess
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coral import Repository
from coral.errors import (
    ConflictError,
    FormatError,
    InvalidNameError,
    NotFoundError,
    OverwriteError,
    PartNotFoundError,
    StorageError,
    TensorNotFoundError,
    UsageError,
)
from coral.verbs.staging import Overlay, ShellStaging
from tests.repository.helpers import commit, raw, read, run, tree, weights

FILE = "model.safetensors"


def _files() -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 30, generator=generator)
    state = {"w": base, "view": base[3:9, ::2], "tied": base, "step": 3, "b": torch.ones(5, dtype=torch.bfloat16)}
    pt, npy, npz, packed = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, pt)
    np.save(npy, base.numpy())
    np.savez(npz, a=base.numpy(), b=np.arange(99))
    np.savez_compressed(packed, a=base.numpy())
    return {
        "deep/er/model.pt": pt.getvalue(),
        "a.npy": npy.getvalue(),
        "b.npz": npz.getvalue(),
        "compressed.npz": packed.getvalue(),
        "notes ünd so.txt": "text\nü".encode(),
        "empty": b"",
        "empty.ndjson": b"",
        "large.bin": os.urandom(3 << 20),
        ".hidden": b"\0" * 99,
    }


def test_files_come_back_byte_for_byte(repo: Repository) -> None:
    """Whatever the file is, checkout writes the bytes that were staged, at the same relative path."""
    files = _files()
    for name, data in files.items():
        (repo.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repo.path / name).write_bytes(data)
    save_file({"w": torch.randn(9, 9), "z": torch.ones(3)}, repo.path / FILE, {"format": "pt", "ü": "x"})
    files[FILE] = (repo.path / FILE).read_bytes()
    for name in files:
        repo.stage_file(repo.path / name)
    made = repo.commit("files")
    assert Repository(repo.path).status().modified == ()
    for name in files:
        (repo.path / name).unlink()
    result = Repository(repo.path).checkout("main")
    assert sorted(result.written) == sorted(files) and result.commit == made.commit_hash
    assert {name: (repo.path / name).read_bytes() for name in files} == files
    assert repo.checkout("main").written == () and repo.status().untracked == ()


def test_what_is_in_a_file_is_read_by_name(repo: Repository) -> None:
    """A .pt file shows the tensors of its pickle, views and ties included; a text file shows none."""
    files = _files()
    for name in ("deep/er/model.pt", "b.npz", "notes ünd so.txt"):
        (repo.path / name).parent.mkdir(parents=True, exist_ok=True)
        (repo.path / name).write_bytes(files[name])
        repo.stage_file(repo.path / name)
    repo.commit("x")
    expected = torch.load(repo.path / "deep/er/model.pt")
    found = repo.get_all_weights(name="deep/er/model.pt", framework="torch")
    for name in ("w", "view", "tied", "b"):
        assert torch.equal(found[name], expected[name])  # type: ignore[arg-type]
        assert (
            read(repo, name="deep/er/model.pt")[name]
            == raw({name: expected[name].contiguous().view(torch.uint8)})[name]
        )
    assert read(repo, name="b.npz")["b"] == np.arange(99).tobytes()
    with pytest.raises(TensorNotFoundError):
        repo.get_weight("data")


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_fortran_array_is_read_as_it_is(repo: Repository, framework: str) -> None:
    """An array in Fortran order is loaded with its own dtype, shape and elements, by either library."""
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(70, 3, 50)))
    np.save(repo.path / "a.npy", array)
    np.savez(repo.path / "b.npz", z=array.T, y=array[0])
    for name in ("a.npy", "b.npz"):
        repo.stage_file(repo.path / name)
    found = repo.get_all_weights(repo.commit("arrays").commit_hash, framework=framework)
    assert found.keys() == {"array", "y", "z"}
    for name, expected in {"array": array, "z": array.T, "y": array[0]}.items():
        assert np.array_equal(np.asarray(found[name]), expected) and np.asarray(found[name]).dtype == expected.dtype


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_checkpoints_with_an_odd_value_share_what_is_equal(repo: Repository, options: dict[str, bool]) -> None:
    """A second checkpoint stores what has changed, whatever stands beside its tensors."""
    state = {f"layer.{number}": torch.randn(64, 1024) for number in range(8)}
    grown = []
    for epoch in range(2):
        state["layer.0"] = torch.full((64, 1024), float(epoch))
        torch.save({"model": state, "args": Namespace(epoch=epoch, out=Path("x"))}, repo.path / "m.pt", **options)
        repo.stage_file(repo.path / "m.pt")
        before = sum(path.stat().st_size for path in (repo.folder.root / "packs").iterdir())
        repo.commit(f"{epoch}")
        grown.append(sum(path.stat().st_size for path in (repo.folder.root / "packs").iterdir()) - before)
    assert grown[1] < grown[0] / 20
    weights = repo.get_all_weights("HEAD", framework="torch")
    assert weights.keys() == {f"model.{name}" for name in state}
    assert all(torch.equal(weights[f"model.{name}"], value) for name, value in state.items())  # type: ignore[arg-type]


def test_weights_in_memory_become_a_real_safetensors_file(repo: Repository) -> None:
    """What checkout writes is read by the safetensors library, equal in every tensor."""
    from safetensors.numpy import load_file

    commit(repo, 1)
    repo.stage_state({"epoch": (1, 2), "t": np.arange(20)})
    repo.commit("state")
    result = repo.checkout("main")
    assert result.written == (FILE,) and result.states == ("state.safetensors",)
    assert raw(load_file(repo.path / FILE)) == raw(weights(1))
    repo.checkout("main", "state.safetensors")
    assert raw(load_file(repo.path / "state.safetensors")) == {"t": np.arange(20).tobytes()}
    assert repo.status().modified == ()


def test_only_files_of_the_project_have_a_name(repo: Repository, tmp_path: Path) -> None:
    """A file outside needs a name; '..' and metadata folders are refused as one; nothing is staged."""
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"x" * 99)
    with pytest.raises(UsageError, match="outside"):
        repo.stage_file(outside)
    for name in (
        "../x",
        "a/../../x",
        "/etc/x",
        "a//b",
        ".coral/config.toml",
        ".git/config",
        "a/.GIT/x",
        "a\0b",
        "a\nb",
        "",
    ):
        with pytest.raises(InvalidNameError):
            repo.stage_file(outside, name)
        with pytest.raises(InvalidNameError):
            repo.stage_weights(weights(1), name)
        with pytest.raises(InvalidNameError):
            repo.stage_state({}, name)
    with pytest.raises(InvalidNameError):
        repo.stage_file(repo.folder.root / "config.toml")
    with pytest.raises(NotFoundError, match="missing"):
        repo.stage_file(repo.path / "missing.pt")
    with pytest.raises(UsageError):
        repo.stage_file(repo.path)
    assert repo.status().staged == ()
    repo.stage_file(outside, "inside/ünder/权重 1.bin")
    repo.commit("x")
    repo.checkout("main")
    assert (repo.path / "inside/ünder/权重 1.bin").read_bytes() == b"x" * 99


def test_relative_paths_are_relative_to_here(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """stage_file takes a path as open() does, and names the part by its place in the project."""
    (repo.path / "sub").mkdir()
    (repo.path / "sub" / "x.bin").write_bytes(b"x" * 50)
    monkeypatch.chdir(repo.path / "sub")
    repo.stage_file("x.bin")
    repo.stage_file(Path("../sub/x.bin"), "other")
    assert [change.name for change in repo.status().staged] == ["other", "sub/x.bin"]


@pytest.mark.parametrize("how", ["checkout", "path", "switch", "reset", "rm"])
def test_bytes_that_no_commit_holds_are_not_overwritten(repo: Repository, how: str) -> None:
    """Checkout, switch, reset and rm refuse, naming the file, and move nothing; force overwrites."""
    commit(repo, 1)
    repo.create_branch("old")
    commit(repo, 2)
    repo.checkout("main")
    verbs: dict[str, Callable[[bool], object]] = {
        "checkout": lambda force: repo.checkout("old", force=force),
        "path": lambda force: repo.checkout("old", FILE, force=force),
        "switch": lambda force: repo.switch("old", force=force),
        "reset": lambda force: repo.reset("old", hard=True, force=force),
        "rm": lambda force: repo.rm(FILE, force=force),
    }
    (repo.path / FILE).write_bytes(b"precious")
    before = tree(repo.path), repo.branch, repo.status()
    with pytest.raises(OverwriteError, match="model"):
        verbs[how](False)
    assert (repo.path / FILE).read_bytes() == b"precious"
    assert (repo.branch, repo.status()) == before[1:]
    verbs[how](True)
    if how == "rm":
        assert not (repo.path / FILE).exists()
    else:
        assert (repo.path / FILE).read_bytes() != b"precious"
        assert raw(dict(repo.get_all_weights("old"))) == raw(weights(1))


@pytest.mark.parametrize("holder", ["branch", "tag", "head"])
def test_bytes_that_some_commit_holds_may_go(repo: Repository, holder: str) -> None:
    """A file that any branch, any tag or a detached HEAD holds is overwritten without being asked."""
    first = commit(repo, 1)
    commit(repo, 2)
    repo.create_branch("side", first.commit_hash)
    repo.checkout("side")
    if holder == "head":
        repo.checkout(first.commit_hash)
    elsewhere = commit(repo, 3)
    if holder == "tag":
        repo.tag("kept", elsewhere.commit_hash)
        repo.reset(first.commit_hash)
    repo.checkout(elsewhere.commit_hash, FILE)
    repo.checkout("main", FILE)
    assert raw(dict(repo.get_all_weights("main"))) == raw(weights(2))
    assert Repository(repo.path).worktree.matches(FILE, repo.parts("main")[FILE])


def test_switch_moves_only_files_that_are_there(repo: Repository) -> None:
    """Switch brings along the files that exist and writes no others; files the branch lacks go away."""
    commit(repo, 1, "a"), commit(repo, 1, "b")
    repo.create_branch("dev")
    repo.switch("dev")
    commit(repo, 2, "a"), commit(repo, 2, "b")
    repo.rm("b")
    repo.commit("no b")
    repo.switch("main")
    assert not (repo.path / "a").exists()
    repo.checkout("main", ["a", "b"])
    result = repo.switch("dev")
    assert (result.written, result.removed, result.branch) == (("a",), ("b",), "dev")
    assert repo.worktree.matches("a", repo.parts("dev")["a"]) and not (repo.path / "b").exists()
    (repo.path / "a").unlink()
    assert repo.switch("main").written == () and not (repo.path / "a").exists()


def test_switch_keeps_a_change_that_both_commits_agree_about(repo: Repository) -> None:
    """As git does: a modified file that is the same part on both sides stays as it is."""
    commit(repo, 1)
    repo.checkout("main")
    repo.create_branch("dev")
    (repo.path / FILE).write_bytes(b"my change")
    repo.switch("dev")
    assert (repo.path / FILE).read_bytes() == b"my change" and repo.branch == "dev"


def test_a_new_branch_touches_no_file(repo: Repository) -> None:
    """As git's switch -c: the commit stays the same, so the files do, even those that another commit holds."""
    first = commit(repo, 1)
    commit(repo, 2)
    repo.checkout(first.commit_hash, FILE)
    best = (repo.path / FILE).read_bytes()
    result = repo.switch("fine-tune", create=True)
    assert (result.branch, result.written, (repo.path / FILE).read_bytes()) == ("fine-tune", (), best)
    assert repo.status().modified == (FILE,)


def test_a_hard_reset_leaves_no_change_behind(repo: Repository) -> None:
    """A local change that it would have to overwrite is refused, never passed over; force undoes it."""
    commit(repo, 1)
    repo.checkout("main")
    (repo.path / FILE).write_bytes(b"my change")
    with pytest.raises(OverwriteError, match="model"):
        repo.reset(hard=True)
    assert (repo.path / FILE).read_bytes() == b"my change"
    repo.reset(hard=True, force=True)
    assert repo.status().modified == ()


def test_what_is_staged_blocks_a_move_that_would_lose_it(repo: Repository) -> None:
    """A staged part that differs on the other branch stops a switch; else it comes along; force drops it."""
    commit(repo, 1)
    repo.create_branch("dev")
    commit(repo, 2)
    repo.stage_weights(weights(3))
    with pytest.raises(ConflictError, match="staged"):
        repo.switch("dev")
    assert repo.branch == "main" and len(repo.status().staged) == 1
    repo.switch("dev", force=True)
    assert repo.branch == "dev" and repo.status().staged == ()
    repo.stage_weights(weights(4), "new")
    repo.switch("main")
    assert repo.commit("came along").parents == (repo.history.resolve("main~1"),)
    assert read(repo, name="new") == raw(weights(4))


def test_a_symlink_in_the_way_is_never_followed(repo: Repository, tmp_path: Path) -> None:
    """Neither a link at the file's place nor one above it leads a write or a removal out of the project."""
    outside = tmp_path / "outside"
    outside.mkdir()
    commit(repo, 1), commit(repo, 1, "sub/x")
    repo.checkout("main")
    (repo.path / "sub/x").rename(outside / "x")
    (repo.path / FILE).rename(outside / "model")
    (repo.path / "sub").rmdir()
    (repo.path / "sub").symlink_to(outside)
    (repo.path / FILE).symlink_to(outside / "model")
    before = tree(outside)
    with pytest.raises(OverwriteError, match="model"):
        repo.checkout("main", FILE)
    with pytest.raises(StorageError):
        repo.checkout("main", "sub/x", force=True)
    repo.rm("sub/x")
    repo.commit("gone")
    commit(repo, 2)
    repo.checkout("main", FILE, force=True)
    assert tree(outside) == before and not (repo.path / FILE).is_symlink()
    with pytest.raises(StorageError):
        repo.checkout("main~2", force=True)
    assert tree(outside) == before


def test_a_link_that_was_added_is_not_modified(repo: Repository) -> None:
    """What a link leads to is what was staged; only when that changes, or goes away, is the file modified."""
    (repo.path / "step-1.bin").write_bytes(b"first")
    (repo.path / "latest.bin").symlink_to("step-1.bin")
    repo.stage_file(repo.path / "latest.bin")
    repo.commit("latest")
    assert repo.status().modified == ()
    with pytest.raises(OverwriteError, match="symbolic link"):
        repo.checkout("main")
    (repo.path / "step-1.bin").write_bytes(b"second")
    assert repo.status().modified == ("latest.bin",)
    (repo.path / "step-1.bin").unlink()
    assert repo.status().modified == ("latest.bin",)


def test_a_folder_may_take_the_name_of_a_file(repo: Repository) -> None:
    """Between commits where a name is a file here and a folder there, checkout goes both ways."""
    commit(repo, 1, "x")
    repo.create_branch("file")
    repo.rm("x")
    repo.stage_weights(weights(2), "x/y")
    repo.commit("folder")
    repo.checkout("file")
    repo.checkout("main")
    assert (repo.path / "x/y").is_file()


def test_checkout_of_head_stays_on_the_branch(repo: Repository) -> None:
    """checkout("HEAD") restores the files and does not detach."""
    commit(repo, 1)
    for ref in ("HEAD", "@"):
        assert repo.checkout(ref, force=True).branch == "main"
        assert repo.history.head().branch == "main"


def test_a_branch_wins_over_a_tag_of_its_name(repo: Repository) -> None:
    """checkout of a name that is both goes to the branch: its files, and HEAD on it."""
    commit(repo, 1)
    repo.tag("main")
    second = commit(repo, 2)
    result = repo.checkout("main")
    assert (result.commit, result.branch) == (second.commit_hash, "main")
    assert repo.resolve("HEAD") == second.commit_hash and repo.status().modified == ()


def test_a_file_system_that_cannot_be_written(repo: Repository) -> None:
    """Checkout into a read-only project says so, and moves nothing."""
    commit(repo, 1)
    repo.create_branch("dev")
    commit(repo, 2)
    (repo.path / "sub").mkdir()
    sub = repo.path / "sub"
    commit(repo, 3, "sub/x")
    if os.geteuid() == 0:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(sub)], check=False)
        if mounted.returncode:
            pytest.skip("cannot mount a read-only folder here")
    else:
        sub.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"(?s)sub.*(read-only|permissions)"):
            repo.checkout("main", "sub/x")
        assert repo.branch == "main"
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(sub)], check=True)
        sub.chmod(0o755)
    repo.checkout("main", "sub/x")
    assert (sub / "x").exists()


def test_checkout_wants_what_exists(repo: Repository) -> None:
    """A path that the commit lacks raises, and none of the others is written."""
    commit(repo, 1)
    for bad in ("nope", "../x", "model.safetensors/x", ""):
        with pytest.raises(NotFoundError):
            repo.checkout("main", [FILE, bad])
    with pytest.raises(PartNotFoundError, match=r"it holds model\.safetensors"):
        repo.checkout("main", "nope")
    assert not (repo.path / FILE).exists()


def test_a_changed_file_is_seen(repo: Repository) -> None:
    """status names modified and untracked model files, and sees a change of the same size and time."""
    commit(repo, 1)
    repo.checkout("main")
    file = repo.path / FILE
    (repo.path / "other.pt").write_bytes(b"x")
    (repo.path / "readme.md").write_bytes(b"x")
    times = file.stat()
    for _ in range(2):
        status = Repository(repo.path).status()
        assert (status.modified, status.untracked) == ((), ("other.pt",))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Repository(repo.path).status().modified == (FILE,)
    assert repo.status().modified == (FILE,)


def test_a_malformed_file_stages_nothing(repo: Repository) -> None:
    """A .safetensors that is none raises FormatError naming it; with opaque=True it is kept whole."""
    for data in (b"", b"junk" * 30, (10**12).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"{}x"):
        (repo.path / FILE).write_bytes(data)
        with pytest.raises(FormatError, match="model"):
            repo.stage_file(repo.path / FILE)
        assert repo.status().staged == ()
        repo.stage_file(repo.path / FILE, opaque=True)
        repo.commit("whole", allow_empty=True)
        (repo.path / FILE).unlink()
        repo.checkout("main", FILE)
        assert (repo.path / FILE).read_bytes() == data
        assert repo.status().modified == ()


def test_a_file_that_is_no_file_of_its_format_stages_nothing(repo: Repository) -> None:
    """As a malformed .safetensors, so a cut .pt, an empty .npz, a pointer: refused, or kept with opaque=True."""
    good = _files()
    broken = {
        "cut.pt": good["deep/er/model.pt"][:-200],
        "deep/cut.PTH": good["deep/er/model.pt"][:-1],
        "cut.npy": good["a.npy"][:-200],
        "empty.npz": b"",
        "lfs.ckpt": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n",
    }
    (repo.path / "deep").mkdir()
    for name, data in broken.items():
        (repo.path / name).write_bytes(data)
        with pytest.raises(FormatError, match=name) as caught:
            repo.stage_file(repo.path / name)
        assert "--opaque" in (caught.value.hint or "")
        assert repo.status().staged == ()
    for name in broken:
        repo.stage_file(repo.path / name, opaque=True)
    repo.commit("whole")
    for name, data in broken.items():
        (repo.path / name).unlink()
        repo.checkout("main", name)
        assert (repo.path / name).read_bytes() == data
    assert repo.status().modified == ()


def test_a_file_that_cannot_be_taken_apart_is_told_of(repo: Repository) -> None:
    """What is kept whole though its name promises tensors is kept with a warning at the caller's line."""
    (repo.path / "raw.pt").write_bytes(b"junk" * 50)
    with pytest.warns(UserWarning, match=r"raw\.pt is kept whole: it begins as no torch file") as told:
        assert repo.stage_file(repo.path / "raw.pt").container == "opaque"
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("deep/er/model.pt", "large.bin", "notes ünd so.txt"):
            (repo.path / Path(name).name).write_bytes(_files()[name])
            repo.stage_file(repo.path / Path(name).name)
        repo.stage_file(repo.path / "raw.pt", opaque=True)


def test_files_are_staged_together_or_not_at_all(repo: Repository) -> None:
    """One step: with a broken file among them none is staged, or with ``partly`` all others; each is told of."""
    for name, data in {**_files(), "bad.pt": b"", "worse.npy": b"x", "raw.pt": b"junk" * 50}.items():
        (repo.path / Path(name).name).write_bytes(data)
    names = ["a.npy", "bad.pt", "empty", "gone.txt", "raw.pt", "worse.npy"]
    commit(repo, 1, "before")
    repo.stage_weights(weights(2), "before")
    for partly in (False, True):
        made = repo.stage_files({name: repo.path / name for name in names}, partly=partly)
        assert sorted(made.failed) == ["bad.pt", "gone.txt", "worse.npy"]
        assert sorted(made.parts) == (["a.npy", "empty", "raw.pt"] if partly else [])
        assert [change.name for change in repo.status().staged] == (
            ["a.npy", "before", "empty", "raw.pt"] if partly else ["before"]
        )
        assert list(made.reasons) == ["raw.pt"]
    repo.commit("some")
    repo.maintenance.fsck(read_data=True)
    assert repo.parts()["a.npy"].container == "npy"


def test_the_staging_area_is_read_once_for_all_files(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files are staged already, it is read as often for thirty more as for one; to remove them, too."""
    peek, counted = ShellStaging.peek, list[int]()

    def counting(staging: ShellStaging) -> Overlay:
        counted.append(1)
        return peek(staging)

    monkeypatch.setattr(ShellStaging, "peek", counting)
    shell = Repository(repo.path, shell_staging=True)
    files = {f"{number}.txt": repo.path / f"{number}.txt" for number in range(30)}
    for number, path in enumerate(files.values()):
        path.write_text(str(number))

    def looks(work: Callable[[], object]) -> int:
        counted.clear()
        work()
        return len(counted)

    shell.stage_files(files)
    assert looks(lambda: shell.stage_files(files)) == looks(lambda: shell.stage_files(dict([files.popitem()])))
    assert looks(lambda: shell.rm(*files, cached=True)) == looks(lambda: shell.rm("29.txt", cached=True))


def test_a_file_that_failed_keeps_no_garbage_collection_waiting(repo: Repository) -> None:
    """Where nothing is staged nothing is held; what is staged beside a file that failed is held, and is committed."""
    bad = repo.path / "bad.npy"
    bad.touch()
    (repo.path / "good").write_text("good")
    for partly in (False, True):
        assert list(repo.stage_files({"bad.npy": bad}, partly=partly).failed) == ["bad.npy"]
        repo.maintenance.gc(prune_now=True)
        with pytest.raises(FormatError):
            repo.stage_file(bad)
        repo.maintenance.gc(prune_now=True)
    repo.stage_file(repo.path / "good")
    with pytest.raises(FormatError):
        repo.stage_file(bad)
    with pytest.raises(ConflictError, match="parts staged"):
        repo.maintenance.gc(prune_now=True)
    repo.commit("good")
    repo.maintenance.gc(prune_now=True)
    repo.maintenance.fsck(read_data=True)


def test_a_store_that_refuses_is_no_fault_of_the_file(repo: Repository, tmp_path: Path) -> None:
    """A disk that takes no more ends the call, whichever file came then; a file that cannot be read is told of."""
    (tmp_path / "large").write_bytes(os.urandom(1 << 20))
    (tmp_path / "small").write_text("small")
    run(
        """
        import resource, signal
        from coral.containers import source
        from coral.errors import StorageError, UnreadableError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        repo = Repository(sys.argv[1], shell_staging=True)
        files = {name: os.path.join(sys.argv[2], name) for name in ("small", "large")}
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
        try:
            repo.stage_files(files, partly=True)
        except StorageError as error:
            assert not isinstance(error, UnreadableError)
        else:
            raise SystemExit("no error")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        assert not repo.status().staged
        pread = os.pread
        def refuses(fd, *where):
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/large"):
                raise OSError(5, "input/output error")
            return pread(fd, *where)
        source.os.pread = refuses
        made = repo.stage_files(files, partly=True)
        assert [*made.parts] == ["small"] and isinstance(made.failed["large"], UnreadableError)
        """,
        repo.path,
        tmp_path,
    )


def test_no_file_is_staged_in_the_place_of_a_folder(repo: Repository) -> None:
    """Nor a folder in that of a file: it is told when it is added, with what to do, and the others are staged."""
    for path in ("file", "in/a", "also", "folder/b"):
        (repo.path / path).parent.mkdir(exist_ok=True)
        (repo.path / path).write_text(path)
    repo.stage_files({name: repo.path / name for name in ("file", "in/a")})
    repo.commit("before")
    made = repo.stage_files(dict.fromkeys(("file/x/y", "in", "also", "also/z"), repo.path / "also"), partly=True)
    assert list(made.parts) == ["also"]
    assert [type(error) for error in made.failed.values()] == [ConflictError] * 3
    assert [error.hint.rpartition(" ")[2] for error in made.failed.values() if error.hint] == ["file", "in/a", "also"]
    repo.rm("file", cached=True)
    assert not repo.stage_files({"file/x/y": repo.path / "also"}).failed
    repo.commit("after")
    assert sorted(repo.parts()) == ["also", "file/x/y", "in/a"]
