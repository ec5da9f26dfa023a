"""Bad things: damaged packs, full disks, killed processes, hostile files."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from coral import Repository
from coral.errors import CorruptionError, FormatError, StorageError
from coral.ids import CommitHash
from tests.repository.helpers import commit, git, raw, read, run, tree, weights

FILE = "model.safetensors"


def test_every_damaged_byte_of_a_pack_is_noticed(repo: Repository) -> None:
    """One flipped byte anywhere: the weights come back right or not at all, and the error names the chunk."""
    repo.stage_weights({"a": np.arange(40, dtype="f4"), "b": np.random.default_rng(0).normal(size=60)})
    repo.commit("x")
    expected = read(repo)
    (pack,) = (repo.folder.root / "packs").glob("*.pack")
    sound = pack.read_bytes()
    pack.chmod(0o644)
    noticed = 0
    for place in range(0, len(sound), 3):
        pack.write_bytes(sound[:place] + bytes([sound[place] ^ 0x40]) + sound[place + 1 :])
        found = Repository(repo.path).get_all_weights()
        for name in expected:
            try:
                assert raw({name: found[name]})[name] == expected[name]
            except CorruptionError as error:
                noticed += 1
                assert "chunk" in str(error) or pack.stem in str(error)
    assert noticed > len(sound) // 6


def test_a_damaged_chunk_is_not_written_to_a_file(repo: Repository) -> None:
    """Checkout leaves the file as it was and no torn one beside it; what is sound is still readable."""
    commit(repo, 1, "sound")
    commit(repo, 2)
    repo.checkout("main", FILE)
    repo.stage_weights({"x": np.random.default_rng(3).normal(size=(300, 300))})
    repo.commit("to be damaged")
    newest = max((repo.folder.root / "packs").glob("*.pack"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.chmod(0o644)
    newest.write_bytes(data)
    before = (repo.path / FILE).read_bytes()
    fresh = Repository(repo.path)
    with pytest.raises(CorruptionError):
        fresh.checkout("main")
    assert (repo.path / FILE).read_bytes() == before
    assert not list(repo.path.glob(".*coral-tmp"))
    assert read(fresh, name="sound") == raw(weights(1)) and read(fresh, "HEAD~1", FILE) == raw(weights(2))


def test_a_missing_pack_is_named(repo: Repository) -> None:
    """Weights whose pack is gone are an error, never zeros."""
    commit(repo, 1)
    for path in (repo.folder.root / "packs").iterdir():
        path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        read(Repository(repo.path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False)
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip("only root can make a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """Wherever the disk runs full in stage or commit: the old state stands, and after space is freed the same works."""
    repo = Repository(small_disk / "p", init=True)
    repo.stage_weights(weights(0, rows=100))
    first = repo.commit("zero")
    ballast = small_disk / "ballast"
    failed = 0
    for turn, room in enumerate((200_000, 100_000, 60_000, 40_000, 24_000, 16_000, 12_000, 8_000, 4_000, 0)):
        state = os.statvfs(small_disk)
        ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - room)))
        mine = Repository(repo.path)
        data = weights(turn + 1, rows=1000)
        try:
            mine.stage_weights(data)
            mine.commit(f"turn {turn}")
        except StorageError as error:
            failed += 1
            assert "free some space" in str(error)
            again = Repository(repo.path)
            assert read(again, first.commit_hash) == raw(weights(0, rows=100))
            assert again.resolve("HEAD") == mine.resolve("HEAD")
            read(again)
            ballast.unlink()
            mine.stage_weights(data)
            mine.commit(f"turn {turn}")
        assert read(Repository(repo.path)) == raw(data), turn
        ballast.unlink(missing_ok=True)
    assert 2 <= failed <= 9
    assert [found.message for found in repo.log()] == [f"turn {turn}" for turn in range(9, -1, -1)] + ["zero"]


def test_a_file_size_limit_in_mid_commit(repo: Repository) -> None:
    """Without any privileges: a process that may not write the pack fails cleanly, and goes on once it may."""
    commit(repo, 1)
    run(
        """
        import resource, signal
        from coral.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        repo = Repository(sys.argv[1])
        repo.stage_weights(weights(2), "before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
        try:
            repo.stage_weights(weights(3, rows=100_000))
        except StorageError:
            pass
        else:
            raise SystemExit("no error")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        repo.commit("what was staged before")
        repo.stage_weights(weights(3, rows=100_000))
        repo.commit("and then the rest")
        """,
        repo.path,
    )
    assert read(repo, name="before") == raw(weights(2)) and read(repo, name=FILE) == raw(weights(3, rows=100_000))


def test_git_locks_of_a_killed_process_are_swept(repo: Repository) -> None:
    """Lock files that are older than a few seconds stand in nobody's way."""
    commit(repo, 1)
    for name in ("HEAD.lock", "packed-refs.lock", "config.lock", "refs/heads/main.lock", "refs/heads/x/y.lock"):
        path = repo.folder.root / ".git" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - 60,) * 2)
    again = Repository(repo.path)
    commit(again, 2)
    again.switch("x", create=True)
    assert not list((repo.folder.root / ".git").rglob("*.lock"))


def test_kill_9_at_any_moment(quick: Path) -> None:
    """Every commit that was acknowledged is there after each of 15 kills, and the next process just works."""
    Repository(quick, init=True)
    chance = random.Random(0)
    acknowledged: dict[CommitHash, int] = {}
    for number in range(15):
        told = _kill_one(quick, 1000 * number, wait_for=number % 3, delay=chance.uniform(0, 0.05))
        acknowledged.update(told)
        line = {found.commit_hash: found.message for found in Repository(quick).log()} if acknowledged else {}
        assert all(line[commit_hash] == f"seed {turn}" for commit_hash, turn in acknowledged.items())
    repo = Repository(quick)
    assert len(acknowledged) >= 15
    for commit_hash, turn in acknowledged.items():
        assert read(repo, commit_hash) == raw(weights(turn))
    commit(repo, 1)
    git(repo.folder.root, "fsck", "--strict")


def _kill_one(project: Path, start: int, *, wait_for: int, delay: float) -> dict[CommitHash, int]:
    """Kill a process that commits in a loop, some time after its n-th commit; returns the commits that it told of."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        repo, turn = Repository(project), start
        while True:
            turn += 1
            os.write(writer, f"{commit(repo, turn).commit_hash} {turn}\n".encode())
    os.close(writer)
    with os.fdopen(reader) as told:
        lines = [told.readline() for _ in range(wait_for)]
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lines += told.readlines()
    return {CommitHash(line.split()[0]): int(line.split()[1]) for line in lines if line.endswith("\n")}


def test_a_hostile_header_is_refused_in_bounded_memory(repo: Repository) -> None:
    """A safetensors header of 100 MB, or one that claims more than there is, costs neither time nor memory."""
    path = repo.path / FILE
    with path.open("wb") as file:
        size = 100_000_000
        file.write(size.to_bytes(8, "little"))
        file.write(b'{"__metadata__":{"a":"' + b"x" * (size - 24) + b'"}')
        file.truncate(8 + size)
    started = time.monotonic()
    peak = run(
        """
        import resource
        from coral.errors import FormatError
        repo = Repository(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            repo.stage_file(repo.path / "model.safetensors")
        except FormatError as error:
            assert "model.safetensors" in str(error)
        else:
            raise SystemExit("no error")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """,
        repo.path,
    )
    assert int(peak) < 150_000 and time.monotonic() - started < 30
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for tensors in (
        {"a": entry, "b": entry},
        {"a": {**entry, "data_offsets": [4, 20]}},
        {"a": {**entry, "shape": [5]}},
    ):
        header = json.dumps(tensors).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
        with pytest.raises(FormatError):
            repo.stage_file(path)
    assert repo.status().staged == ()


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


def test_code_in_a_pickle_is_never_run(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that would execute code shows at most the tensors beside that, and comes back as it was; none runs."""
    monkeypatch.setenv("BOMB", str(repo.path / "executed"))
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(99), "bomb": _Bomb()}, buffer)
    for name, container, data in (
        ("zip.pt", "torch", buffer.getvalue()),
        ("plain.pt", "opaque", pickle.dumps(_Bomb())),
        ("x.pkl", "opaque", pickle.dumps(_Bomb())),
    ):
        (repo.path / name).write_bytes(data)
        assert repo.stage_file(repo.path / name).container == container
        repo.commit(name)
        assert list(repo.get_all_weights("HEAD")) == ["w"]
        (repo.path / name).unlink()
        repo.checkout("main", name)
        assert (repo.path / name).read_bytes() == data
        repo.status(), repo.show(), repo.diff("HEAD")
    assert not (repo.path / "executed").exists()


def test_a_damaged_staging_area_is_named(repo: Repository) -> None:
    """A torn index of the shell's staging says which file it is, and what to do."""
    shell = Repository(repo.path, shell_staging=True)
    shell.stage_weights(weights(1))
    index = repo.folder.root / "staging/index.json"
    sound = index.read_bytes()
    for data in (
        sound[:-9],
        b"",
        b"[]",
        b'{"base": 3, "parts": {}}',
        b'{"base": null, "parts": {"../x": null}}',
        b"\xff",
    ):
        index.write_bytes(data)
        with pytest.raises(CorruptionError, match=r"index\.json"):
            shell.status()
    index.unlink()
    assert shell.status().staged == ()


def test_a_commit_is_many_small_files_for_a_while_only(quick: Path) -> None:
    """Many commits stay few files, and each is still readable."""
    repo = Repository(quick, init=True)
    hashes = [commit(repo, number).commit_hash for number in range(60)]
    packs = list((repo.folder.root / "packs").iterdir())
    assert len(packs) <= 40
    for number in (0, 30, 59):
        assert read(Repository(repo.path), hashes[number]) == raw(weights(number))
    assert tree(repo.folder.root / "tmp") == {}
