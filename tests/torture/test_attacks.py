"""Attacks by name: whatever a repository from elsewhere holds, it runs nothing, writes nothing outside, and ends soon.

Others of their kind stand where what they attack is tested: hostile trees in ``tests/repository``, headers and archives
in ``tests/containers``, packs, rings and chains of deltas in ``tests/objects``, codecs and names in ``tests/format``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import xxhash

from coral import Repository
from coral.errors import CoralError, CorruptionError, FormatError
from coral.experiments import ExperimentTracker
from coral.format.index import build
from coral.format.manifest import Manifest, TensorRecord
from coral.format.pack import KIND_CHUNK, KIND_LIST, MAGIC, Entry, pack_header
from coral.history.commit import CommitObject
from coral.ids import ChunkId, CommitHash, checksum, chunk_id, list_ref, single_ref
from coral.tensors.state import decode_state
from coral.verbs.inside_git.filter import GitFilter
from tests.repository.helpers import commit, git, raw, read, weights
from tests.torture.hostile import attempt, nested, run_cli, watched

FILE = "model.safetensors"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    (folder / "main").write_bytes(b"a file of the user's\n")
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with a commit."""
    repo = Repository(tmp_path / "project", init=True)
    commit(repo, 1)
    return repo


# -- paths

NAMES = {
    "up": "../outside/x",
    "absolute": "/tmp/coral-attack",
    "hooks": ".git/hooks/post-commit",
    "own settings": "sub/.coral/config.toml",
    "NUL": "a\0b",
    "long": "x" * 5000,
    "case": ".Git/config",
    "ignorable": ".g\u2063it/config",
    "stream": ".git::$INDEX_ALLOCATION/config",
    "backslash": "..\\..\\x",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_staged_name(repo: Repository, outside: Path, name: str) -> None:
    """The shell's staging area, which may come from elsewhere, names no file that a commit could then write."""
    shell = Repository(repo.path, shell_staging=True)
    oid = repo.history.part(repo.resolve("HEAD"), FILE)
    (repo.folder.root / "staging/index.json").write_text(json.dumps({"base": None, "parts": {name: oid}}))
    with watched(outside):
        for call in (shell.status, lambda: shell.commit("x"), lambda: shell.checkout("HEAD", name)):
            assert isinstance(attempt(call), CoralError)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_from_the_caller(repo: Repository, outside: Path, name: str) -> None:
    """A script that takes names from somewhere cannot be made to store, write, remove or fetch one elsewhere."""
    run = ExperimentTracker(repo).start("a run")
    with watched(outside, seconds=2):
        assert isinstance(attempt(lambda: repo.stage_weights(weights(1), name)), CoralError)
        assert isinstance(attempt(lambda: repo.stage_state({"a": 1}, name)), CoralError)
        assert isinstance(attempt(lambda: repo.rm(name, force=True)), CoralError)
        assert isinstance(attempt(lambda: repo.get_all_weights("HEAD", name)), CoralError)
        assert isinstance(attempt(lambda: run.log_text("x", name)), CoralError)
    run.end()


def test_names_of_tensors_are_data(repo: Repository, outside: Path) -> None:
    """A tensor may be called like a path, an option or an escape sequence: its file is the one that was asked for."""
    names = ["../../outside/precious", "/etc/passwd", "..", ".git/config", "-rf", "a\0b", "\x1b]0;x\x07", "\u202egnp"]
    tensors = {name: np.full(9, number, "f4") for number, name in enumerate(names)}
    with watched(outside):
        repo.stage_weights(tensors, FILE)
        repo.commit("odd names")
        repo.checkout("main")
        assert sorted(path.name for path in repo.path.iterdir()) == [".coral", FILE]
        assert read(repo) == raw(tensors)


@pytest.mark.parametrize("url", ["../.coral/packs", "/", ".coral", "file://host/x", "ssh://-oProxyCommand=x/y", "-x"])
def test_an_offered_remote(repo: Repository, outside: Path, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A place that a project offers is none until the user takes it, and never one within the repository."""
    git(repo.path, "init", "-q")
    (repo.path / ".coralconfig").write_text(f"[remotes.origin]\nurl = {json.dumps(url)}\n")
    with watched(outside, seconds=3):
        run_cli("remote", "-v", folder=repo.path)
        run_cli("status", folder=repo.path)
        assert repo.config.remotes == ()


# -- symbolic links and pipes

LINKED = [
    *("packs", "tmp", "experiments", "staging", "cache", "locks", "trash", "quarantine", ".git", ".git/objects"),
    *(".git/objects/pack", ".git/refs", ".git/refs/heads", ".git/refs/tags", ".git/logs", ".git/logs/refs"),
    ".git/logs/refs/heads",
]


def use_everything(repo: Repository) -> list[object]:
    """Stage, commit, branch, log a run, end it, check out and pack: what writes below ``.coral``."""
    fresh = attempt(lambda: Repository(repo.path, shell_staging=True))
    if isinstance(fresh, CoralError):
        return [fresh]
    tracker = ExperimentTracker(fresh)

    def train() -> None:
        with tracker.start("a run", owner="shell") as run:
            run.log("loss", 1.0)
        tracker.attach(run.experiment_id).end()
        tracker.find_best("loss", "min")

    return [
        attempt(lambda: fresh.stage_weights(weights(2), FILE)),
        attempt(lambda: fresh.commit("through a link")),
        attempt(lambda: fresh.create_branch("other")),
        attempt(lambda: fresh.tag("a-tag")),
        attempt(train),
        attempt(lambda: fresh.checkout("main", FILE)),
        attempt(fresh.status),
        attempt(fresh.maintenance.repack),
        attempt(lambda: fresh.maintenance.gc(prune_now=True)),
        attempt(lambda: fresh.maintenance.fsck(repair=True)),
        attempt(fresh.undo),
        attempt(fresh.folder.sweep_temporary),
    ]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("place", LINKED)
def test_a_link_below_coral(repo: Repository, outside: Path, place: str) -> None:
    """A folder of coral's that is a link to the user's: nothing is made, changed or removed there."""
    path = repo.folder.root / place
    if path.exists():
        path.rename(repo.folder.root / "moved")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    for name in outside.iterdir():
        os.utime(name, (1, 1))
    with watched(outside, seconds=20):
        use_everything(repo)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "place",
    [
        "operations",
        "locks/store",
        "locks/refs",
        "staging/lock",
        "locks/experiments",
        ".git/logs/HEAD",
        ".git/refs/heads/main",
    ],
)
def test_a_link_in_the_place_of_a_file(repo: Repository, outside: Path, place: str) -> None:
    """A lock, a ref or a reflog that is a link makes no file, and adds nothing to one."""
    path = repo.folder.root / place
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / ("precious" if "logs" in place or place == "operations" else "made"))
    with watched(outside, seconds=20):
        use_everything(repo)


@pytest.mark.parametrize(
    "place", ["config.toml", "staging/index.json", "staging/files.json", "cache/experiments.index"]
)
@pytest.mark.parametrize("kind", ["pipe", "zero", "sparse"])
def test_a_small_file_that_is_none(repo: Repository, outside: Path, place: str, kind: str) -> None:
    """A pipe is not waited for, an endless device is not read, and a file of terabytes takes no memory."""
    path = repo.folder.root / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with watched(outside, seconds=5):
        fresh = attempt(lambda: Repository(repo.path, shell_staging=True))
        if isinstance(fresh, Repository):
            attempt(fresh.status)
            attempt(lambda: ExperimentTracker(fresh).list())
        assert isinstance(fresh, CoralError) == (place == "config.toml")


# -- redirects


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """The user's own project in git, with a linked worktree, and one whose git folder is elsewhere."""
    folder = tmp_path / "victim"
    for words in (["init", "-q", str(folder)], ["init", "-q", "--separate-git-dir", f"{folder}.git", f"{folder}.away"]):
        git(tmp_path, *words)
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    git(folder, "worktree", "add", "-q", f"{folder}.linked")
    for project in (folder, Path(f"{folder}.away")):
        repo = Repository(project, init=True)
        commit(repo, 1)
        repo.create_branch("work")
    return folder


def set_link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def set_git(folder: Path, text: str, **files: str) -> None:
    """A ``.git`` file, and a git folder ``x`` with these files, as an archive may have them."""
    (folder / ".git").write_text(text)
    (folder / "x/worktrees/y").mkdir(parents=True)
    for place in (folder / "x", folder / "x/worktrees/y"):
        (place / "HEAD").write_text("ref: refs/heads/main\n")
        for name, said in files.items():
            (place / name).write_text(said)


def set_own(folder: Path, *, link: str = "", **files: str) -> None:
    """A git folder of its own, with files in it, and links to the victim's in the place of others."""
    git(folder, "init", "-q")
    for name, said in files.items():
        with (folder / ".git" / name).open("a") as file:
            file.write(said)
    if link:
        subprocess.run(["rm", "-r", folder / ".git" / link], check=True)
        (folder / ".git" / link).symlink_to(f"../../victim/.git/{link}")


def set_history(folder: Path, name: str) -> None:
    """A ``.coral`` of its own with the victim's history."""
    commit(Repository(folder, init=True), 2)
    history = folder / ".coral/.git"
    if name == "commondir":
        (history / name).write_text("../../../victim/.coral/.git\n")
        return
    history.rename(folder / "moved")
    if name == "link":
        history.symlink_to("../../victim/.coral/.git")
    else:
        history.write_text("gitdir: ../../victim/.coral/.git\n")


def set_admin_link(folder: Path) -> None:
    set_git(folder, "gitdir: z\n")
    set_link(folder / "z", "../victim/.git/worktrees/victim.linked")


def set_inner_link(folder: Path) -> None:
    set_git(folder, "gitdir: x\n", config="[core]\n\tworktree = ..\n")
    set_link(folder / "x/.coral", "../../victim/.coral")


def set_chain(folder: Path) -> None:
    set_link(folder / ".coral", "a")
    set_link(folder / "a", "b/c")
    set_link(folder / "b/c", "../../victim/.coral")


def set_note(folder: Path) -> None:
    git(folder, "init", "-q")
    commit(Repository(folder, init=True), 2)
    (folder / ".coral/relying").write_text(f"{'0' * 32} {folder.parent}/victim/.git\n")


def set_remote(folder: Path) -> None:
    commit(Repository(folder, init=True), 2)
    with (folder / ".coral/config.toml").open("a") as file:
        file.write('\n[remotes.origin]\nurl = "../victim/.coral"\n')


HOOKS = "[core]\n\thooksPath = ../victim/.git/hooks\n"
REDIRECTS: dict[str, Callable[[Path], object]] = {
    "coral": lambda folder: set_link(folder / ".coral", "../victim/.coral"),
    "coral, absolute": lambda folder: set_link(folder / ".coral", f"{folder.parent}/victim/.coral"),
    "coral, by other links": set_chain,
    "coral, in git's folder": set_inner_link,
    "git's folder": lambda folder: set_git(folder, "gitdir: ../victim/.git\n"),
    "git's folder that is elsewhere": lambda folder: set_git(folder, "gitdir: ../victim.git\n"),
    "git's folder of a linked worktree": lambda folder: set_git(
        folder, "gitdir: ../victim/.git/worktrees/victim.linked\n"
    ),
    "the same by a link": set_admin_link,
    "a linked worktree that is not the victim's": lambda folder: set_git(
        folder, "gitdir: x\n", commondir="../../victim/.git\n", gitdir="../.git\n"
    ),
    "a linked worktree of a repository that is not the victim's": lambda folder: set_git(
        folder, "gitdir: x/worktrees/y\n", commondir="../../../../victim/.git\n", gitdir=f"{folder}/.git\n"
    ),
    "a link for git's folder": lambda folder: set_link(folder / ".git", "../victim/.git"),
    "a link for a linked worktree's": lambda folder: set_link(folder / ".git", "../victim.linked/.git"),
    "a shared folder of git's": lambda folder: set_own(folder, commondir="../../victim/.git\n"),
    "a link for git's settings": lambda folder: set_own(folder, link="config"),
    "a link for git's info": lambda folder: set_own(folder, link="info"),
    "a link for git's hooks": lambda folder: set_own(folder, link="hooks"),
    "hooks elsewhere": lambda folder: set_own(folder, config=HOOKS),
    "a worktree elsewhere": lambda folder: set_own(folder, config="[core]\n\tworktree = ../../victim\n"),
    "a link for the history": lambda folder: set_history(folder, "link"),
    "a file for the history": lambda folder: set_history(folder, "file"),
    "a note of who relies on it": set_note,
    "a remote": set_remote,
    "a shared history": lambda folder: set_history(folder, "commondir"),
}
VERBS = [
    *(["init"], ["status"], ["log"], ["fsck"], ["commit", "-m", "x", FILE], ["add", FILE], ["tag", "evil"], ["undo"]),
    *(["branch", "-d", "work"], ["branch", "new"], ["reset", "HEAD"], ["exp", "start", "e"], ["repack"]),
    *(
        ["gc", "--prune-now"],
        ["fsck", "--repair"],
        ["push", "origin"],
        ["remote", "add", "o", "../o"],
        ["install"],
        ["install", "--force"],
    ),
    *(["track", "*.x"], ["uninstall"], ["pull"], ["import-lfs"], ["resolve", "--list"], ["checkout", "work"]),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REDIRECTS)
def test_a_redirect_to_what_is_the_users(victim: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever leads from a project that came from elsewhere to the user's own: no verb changes anything there."""
    evil = victim.parent / "evil"
    evil.mkdir()
    REDIRECTS[kind](evil)
    (evil / FILE).write_bytes(safetensors.numpy.save({"w": np.ones(99, "f4")}))
    others = [path for path in victim.parent.iterdir() if path.name.startswith("victim")]
    for words in VERBS:
        with watched(*others, seconds=20):
            run_cli(*words, folder=evil)
    with watched(*others, seconds=20):
        attempt(lambda: Repository(evil, init=True))
        attempt(lambda: GitFilter(evil).keep(FILE, evil / FILE))
        attempt(lambda: commit(Repository(evil), 3))


# -- options in the place of names

OPTIONS = ["-d", "--force", "--output=/tmp/coral-attack", "-oProxyCommand=touch x", "--upload-pack=touch x"]


@pytest.mark.parametrize("word", OPTIONS)
def test_an_option_in_the_place_of_a_name(repo: Repository, outside: Path, word: str) -> None:
    """A branch, tag, ref, remote, key or run that begins with a hyphen is a name that is refused, not an option."""
    from coral.verbs.config import Remote
    from coral.verbs.sharing.remotes import add_remote

    calls: list[Callable[[], object]] = [
        lambda: repo.create_branch(word),
        lambda: repo.tag(word),
        lambda: repo.resolve(word),
        lambda: repo.checkout(word),
        lambda: list(repo.log(word)),
        lambda: repo.rename_branch("main", word),
        lambda: repo.commit("x", allow_empty=True, sign=word),
        lambda: repo.commit("x", allow_empty=True, tags=[word]),
        lambda: repo.maintenance.verify(word),
        lambda: add_remote(repo.path, repo.folder, Remote(word, str(outside))),
        lambda: ExperimentTracker(repo).get(word),
        lambda: ExperimentTracker(repo).restore(word),
    ]
    before = repo.resolve("HEAD")
    with watched(outside, seconds=3):
        for call in calls:
            assert isinstance(attempt(call), CoralError)
    assert repo.resolve("HEAD") == before and repo.branches().keys() == {"main"} and not repo.tags()


@pytest.mark.parametrize("word", OPTIONS[:3])
def test_an_option_after_the_hyphens(repo: Repository, word: str, capfd: pytest.CaptureFixture[str]) -> None:
    """After ``--`` the command line takes a word as it is, and refuses it as a name."""
    for command in ("branch", "tag", "switch", "checkout", "log", "show", "verify", "reflog"):
        assert run_cli(command, "--", word, folder=repo.path) not in (0, 1)


# -- pickles


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def torch_zip(data_pkl: bytes) -> bytes:
    """An archive as torch makes it, around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in (
            ("data.pkl", data_pkl),
            ("byteorder", b"little"),
            ("data/0", bytes(64)),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def pickles(target: Path) -> dict[str, tuple[str, bytes]]:
    """Files that run code when somebody unpickles them, by what they are."""
    bomb = pickle.dumps(Bomb(target), 2)
    objects, nested_zip = io.BytesIO(), io.BytesIO()
    np.savez(objects, a=np.array([Bomb(target)], dtype=object), b=np.arange(9.0))
    with zipfile.ZipFile(nested_zip, "w") as archive:
        archive.writestr("inner.pt", torch_zip(bomb))
        archive.writestr("a.npy", objects.getvalue())
    inner = pickle.dumps(bomb, 2)[2:-1]  # the bytes of a pickle, as a value
    loader = b"\x80\x02ctorch.storage\n_load_from_bytes\n" + inner + b"\x85R."
    before = b"".join(pickle.dumps(number, 2) for number in (0x1950A86A20F9469CFC6C, 1001, 0))
    state = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00xcos\nmkdir\n" + pickle.dumps(str(target))[2:-1]
    return {
        "a zip of torch's": ("x.pt", torch_zip(bomb)),
        "objects in an archive of arrays": ("x.npz", objects.getvalue()),
        "an archive in an archive": ("x.npz", nested_zip.getvalue()),
        "a pickle in a pickle": ("x.bin", torch_zip(loader)),
        "in an attribute": ("x.pth", torch_zip(state + b"\x85Rsb.")),
        "by another spelling": ("x.pt", torch_zip(bomb.replace(b"cposix\nmkdir\n", b"c__builtin__\ngetattr\n"))),
        "as it is": ("x.pkl", pickle.dumps(Bomb(target), 4)),
        "before archives": ("x.pt", before + bomb + pickle.dumps([], 2)),
        "in a list of keys": ("x.pt", before + pickle.dumps({}, 2) + bomb),
        "by a stack of names": ("x.ckpt", torch_zip(pickle.dumps(Bomb(target), 4))),
    }


@pytest.mark.parametrize("kind", pickles(Path("x")))
def test_a_pickle_is_not_run(repo: Repository, outside: Path, kind: str) -> None:
    """Adding, showing, loading, comparing and writing a file back runs nothing of it, and gives the same file."""
    name, data = pickles(outside / "pwned")[kind]
    (repo.path / name).write_bytes(data)
    with watched(outside, seconds=5):
        repo.stage_file(repo.path / name)
        repo.commit("trojan")
        repo.show(), repo.status(), repo.diff("HEAD~1")
        attempt(lambda: repo.get_all_weights("HEAD", name))
        attempt(lambda: repo.load_state("HEAD", name) if hasattr(repo, "load_state") else None)
        (repo.path / name).unlink()
        repo.checkout("main")
    assert (repo.path / name).read_bytes() == data


# -- archives that are more than they seem


def local(name: bytes, size: int, data: bytes = b"") -> bytes:
    """A member's own header."""
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), size, size, len(name), 0) + name + data


def central(name: bytes, size: int, at: int, extra: bytes = b"") -> bytes:
    """A member's entry in the directory."""
    fields = (20, 20, 0, 0, 0, 0, 0, size, size, len(name), len(extra), 0, 0, 0, 0, at)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name + extra


def end(count: int, size: int, at: int) -> bytes:
    """The end of an archive."""
    return struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, size, at, 0)


def archives() -> dict[str, bytes]:
    """Archives that would take more than they are, in memory or time."""
    one = local(b"a/data.pkl", 4, b"\x80\x02N.")
    wide = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    huge = central(b"a/data/0", 0xFFFFFFFF, 0, wide)
    same = central(b"a/data/0", 4, 0) * 20_000
    many = b"".join(central(b"a/%07d" % number, 4, 0) for number in range(20_000))
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    endless = struct.pack("<HH", 1, 0xFFFF)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, (1 << 63) - 1, 1)
    return {
        "a member of exabytes": one + huge + end(1, len(huge), len(one)),
        "one member twenty thousand times": one + same + end(20_000, len(same), len(one)),
        "twenty thousand members in one place": one + many + end(20_000, len(many), len(one)),
        "a directory beyond the end": one + end(1, 0xFFFFFFF0, 5),
        "a directory before the beginning": one + locator + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        "a deflated member of 64 MB": deflated.getvalue(),
        "a directory within a member": local(b"a", 60, end(1, 40, 0)) + end(1, 46, 10),
        "an endless field beside a name": one + central(b"a", 4, 0, endless) + end(1, 51, len(one)),
    }


@pytest.mark.parametrize("kind", archives())
def test_an_archive_that_is_more_than_it_seems(repo: Repository, outside: Path, kind: str) -> None:
    """It is kept whole, restores byte for byte, and costs what its bytes cost."""
    data = archives()[kind]
    for name in ("x.pt", "x.npz"):
        (repo.path / name).write_bytes(data)
        with watched(outside):
            assert repo.stage_file(repo.path / name).container == "opaque"
        repo.commit(name)
        (repo.path / name).unlink()
        repo.checkout("main", name)
        assert (repo.path / name).read_bytes() == data


HEADERS = {
    "depth below metadata": b'{"__metadata__":{"a":%s}}' % nested(5000).encode(),
    "a hundred thousand empty tensors": b"{"
    + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(20_000))
    + b"}",
    "one name, spelled twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    b'"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "a name of a megabyte": b'{"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' % (b"x" * (1 << 20)),
    "a shape of zeros and exabytes": b'{"a":{"dtype":"F64","shape":[0,9223372036854775807],"data_offsets":[0,0]}}',
    "an exponent": b'{"a":{"dtype":"U8","shape":[1e308],"data_offsets":[0,0]}}',
    "a number of a million digits": b'{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % (b"9" * 1_000_000),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_costs_more_than_it_holds(repo: Repository, outside: Path, kind: str) -> None:
    """A header is refused, or kept and restored byte for byte, in bounded time."""
    data = len(HEADERS[kind]).to_bytes(8, "little") + HEADERS[kind]
    (repo.path / FILE).write_bytes(data)
    with watched(outside, seconds=3):
        staged = attempt(lambda: repo.stage_file(repo.path / FILE))
    if isinstance(staged, Manifest):
        repo.commit("odd")
        (repo.path / FILE).unlink()
        repo.checkout("main", FILE)
        assert (repo.path / FILE).read_bytes() == data
    else:
        assert isinstance(staged, FormatError)


# -- packs


def plant(repo: Repository, *records: tuple[ChunkId, bytes, Entry]) -> None:
    """A pack and its index with right checksums, whatever they say; offset and stored length are filled in."""
    data, entries = MAGIC, []
    for chunk, payload, entry in records:
        where = entry._replace(offset=len(data), stored_length=len(payload))
        data += pack_header(chunk, where, checksum(payload)) + payload
        entries.append((chunk, where))
    name = "00000009-0123456789abcdef"
    (repo.folder.root / "packs" / f"{name}.pack").write_bytes(data)
    (repo.folder.root / "packs" / f"{name}.idx").write_bytes(build(entries))


def plain(length: int, *, kind: int = KIND_CHUNK, codec: int = 0, depth: int = 0, item: int = 1) -> Entry:
    """An entry of so many raw bytes."""
    return Entry(0, 0, length, kind, codec, depth, item)


SOME = chunk_id(b"some")
PACKED = {
    "a chunk of 256 MiB in 4 bytes": (single_ref(SOME), 1 << 28, plain(1 << 28), b"\0\0\0\0"),
    "an unknown codec": (single_ref(SOME), 100, plain(100, codec=99), bytes(100)),
    "an unknown kind": (single_ref(SOME), 100, plain(100, kind=7), bytes(100)),
    "an element of no bytes": (single_ref(SOME), 100, plain(100, codec=1, item=0), bytes(100)),
    "an element of 255 bytes": (single_ref(SOME), 100, plain(100, codec=2, item=255), bytes(100)),
    "a list that names itself": (list_ref(SOME), 2 << 20, plain(64, kind=KIND_LIST), bytes(SOME) * 2),
    "a list that is a chunk": (list_ref(chunk_id(b"x" * 64)), 2 << 20, plain(64), b"x" * 64),
    "a list that is cut": (list_ref(SOME), 2 << 20, plain(33, kind=KIND_LIST), bytes(33)),
    "a list of other bytes": (list_ref(SOME), 2 << 20, plain(64, kind=KIND_LIST), b"y" * 64),
    "a delta over itself": (single_ref(SOME), 100, plain(100, codec=3, depth=1, item=4), bytes(SOME) + bytes(68)),
    "other bytes under the name": (single_ref(SOME), 100, plain(100), b"z" * 100),
    "frames of other lengths": (single_ref(SOME), 100, plain(100, codec=1, item=4), b"\xff" * 16),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_record_that_lies(repo: Repository, outside: Path, kind: str) -> None:
    """What a pack says under a right checksum is never returned under a wrong name, nor believed as a length."""
    content, nbytes, entry, payload = PACKED[kind]
    chunk = ChunkId(bytes.fromhex(content.partition(":")[2]))
    plant(repo, (chunk, payload, entry))
    manifest = Manifest("safetensors", (TensorRecord("w", "U8", (nbytes,), content),))
    oid = repo.history.write_blob(manifest.to_bytes())
    made = repo.history.write_commit(overlay={FILE: oid}, message="lies")
    repo.history.create_branch("lies", made.commit_hash)
    fresh = Repository(repo.path)
    with watched(outside):
        assert isinstance(attempt(lambda: read(fresh, "lies")), CorruptionError)
        assert isinstance(attempt(lambda: fresh.checkout("lies", FILE)), CorruptionError)
        assert fresh.maintenance.fsck(read_data=True).damage
        assert read(fresh, "main") == raw(weights(1))


INDEXES: dict[str, Callable[[bytes], bytes]] = {
    "a count of 2**60": lambda body: body[:16] + (1 << 60).to_bytes(8, "little") + body[24:],
    "a table that falls": lambda body: body[:24] + b"\xff" * 512 + bytes(512) + body[24 + 1024 :],
    "a table beyond the ids": lambda body: body[:24] + b"\xff" * 1024 + body[24 + 1024 :],
    "ids in no order": lambda body: body[: 24 + 1024] + body[24 + 1024 :][32:64] + body[24 + 1024 :][:32] + body[1112:],
    "entries of other records": lambda body: body[:-24] + body[-48:-24],
    "nothing": lambda body: b"",
    "one magic": lambda body: body[:16],
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_lies(repo: Repository, outside: Path, kind: str) -> None:
    """Weights come back right or not at all, whatever an index with a right checksum says."""
    (index,) = (repo.folder.root / "packs").glob("*.idx")
    index.chmod(0o644)
    body = INDEXES[kind](index.read_bytes()[:-8])
    index.write_bytes(body + checksum(body).to_bytes(8, "little"))
    fresh = Repository(repo.path)
    with watched(outside):
        found = attempt(lambda: read(fresh))
        assert isinstance(found, CorruptionError) or found == raw(weights(1))
        commit(fresh, 2)
        assert read(fresh) == raw(weights(2))


# -- settings, staging and states

TEXTS = {
    "deep": "x = " + nested(2000),
    "deep tables": "x = " + nested(2000, "{a=", "}"),
    "long": "#" * 100_000,
    "dots": "a." * 7_000 + "b = 1",
    "digits": "x = " + "9" * 20_000,
    "a remote that is a list": "[[remotes]]\nurl = 1",
    "a remote without a place": "[remotes.a]",
    "a thousand tables of one name": "[a]\n" * 1000,
    "no text": "\udcff",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_settings_that_are_none(repo: Repository, outside: Path, kind: str) -> None:
    """A settings file that would take the stack, the time or the memory is one clear error, own or offered."""
    git(repo.path, "init", "-q")
    offers, own = repo.path / ".coralconfig", repo.folder.root / "config.toml"
    sound, text = own.read_bytes(), TEXTS[kind].encode("utf-8", "surrogateescape")
    from coral.verbs.sharing.remotes import adopt_remotes, offered_remotes

    with watched(outside, seconds=3):
        own.write_bytes(sound + text)
        found = attempt(lambda: Repository(repo.path))
        assert isinstance(found, CorruptionError) and "config.toml" in str(found)
        own.write_bytes(sound)
        offers.write_bytes(text)
        for call in (offered_remotes, adopt_remotes):
            refused = attempt(lambda call=call: call(repo.path, repo.folder))  # type: ignore[misc]
            assert isinstance(refused, CoralError)


STAGED = {
    "deep": nested(100_000),
    "deep parts": '{"base": null, "parts": ' + nested(900, '{"a":', "}") + "}",
    "a hash that is a path": '{"base": null, "parts": {"x": "../../outside/precious"}}',
    "a hash that is an option": '{"base": "--all", "parts": {}}',
    "a hash that is a number": '{"base": null, "parts": {"x": 1e400}}',
    "a huge number": '{"base": null, "parts": {"x": %s}}' % ("9" * 5000),
    "another checksum": '{"base": null, "parts": {}, "check": "0000000000000000"}',
    "a checksum that is none": '{"base": null, "parts": {}, "check": [1]}',
    "a lone surrogate": '{"base": null, "parts": {"\\ud800": null}}',
}


@pytest.mark.parametrize("kind", STAGED)
def test_staging_that_is_none(repo: Repository, outside: Path, kind: str) -> None:
    """A hostile index of the staging area is damage that is named; the commits are read as ever."""
    (repo.folder.root / "staging/index.json").write_text(STAGED[kind])
    with watched(outside):
        for call in (Repository(repo.path, shell_staging=True).status, lambda: use_everything(repo)[0]):
            assert isinstance(error := attempt(call), CorruptionError) and "index.json" in str(error)
        assert read(repo) == raw(weights(1))


def test_a_flipped_letter_of_what_is_staged(repo: Repository) -> None:
    """A name that damage made another name is not committed."""
    shell = Repository(repo.path, shell_staging=True)
    shell.stage_weights(weights(2), "model")
    index = repo.folder.root / "staging/index.json"
    text = index.read_text()
    index.write_text(text.replace('"model"', '"mndel"'))
    with pytest.raises(CorruptionError, match="checksum"):
        shell.commit("x")
    data = json.loads(text)
    del data["check"]
    index.write_text(json.dumps(data))  # of an older coral
    shell.commit("x")
    assert read(repo, name="model") == raw(weights(2))


STATES = {
    "deep": nested(5000),
    "deep in pairs": nested(400, '{"$dict":[[1,', "]]}"),
    "a number of a hundred thousand digits": "9" * 100_000,
    "another one, in words": '{"$int": "%s"}' % ("9" * 100_000),
    "a million empty lists": "[" + "[]," * 300_000 + "[]]",
    "a tensor that is a path": '{"$tensor": ["torch", "../../outside/precious"]}',
    "a framework that is a module": '{"$tensor": ["os", "system", "x"]}',
    "a kind that is a module": '{"$subprocess.run": ["touch", "x"]}',
    "a constant": '{"a": NaN}',
    "keys that are lists": '{"$dict": [[{"$tuple": [[]]}, 1]]}',
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_is_none(outside: Path, kind: str) -> None:
    """The JSON of a training state is checked; nothing in it names code, and its depth and digits are bounded."""

    def load(name: str, owner: str) -> object:
        raise CorruptionError(f"no tensor {name!r}")

    with watched(outside, seconds=2):
        found = attempt(lambda: decode_state(STATES[kind], load))
    assert isinstance(found, CoralError) or kind in ("a million empty lists", "another one, in words")


# -- collisions

# The secret of XXH3, of which the hash of 33 to 64 bytes takes these bytes for the second of four halves.
_SECRET = bytes.fromhex("cb79e64eccc0e578825ad07dccff7221")


def colliding(seed: int = 0) -> tuple[bytes, bytes]:
    """Two contents of 64 bytes with one XXH3-128.

    Bytes 16 to 32 are two words; each is XORed with the secret and the seed, and the two are multiplied. Where the one
    is zero the other does not count, except in a sum of both: so either may be, as long as the sum is the same.
    """
    wrap = (1 << 64) - 1
    low = (int.from_bytes(_SECRET[:8], "little") + seed) & wrap
    high = (int.from_bytes(_SECRET[8:], "little") - seed) & wrap
    free = 0x0123456789ABCDEF
    one = struct.pack("<QQ", low, free)
    two = struct.pack("<QQ", (low + free - high) & wrap, high)
    return bytes(16) + one + bytes(32), bytes(16) + two + bytes(32)


@pytest.mark.parametrize("ways", ["one commit", "one after the other", "in other processes"])
def test_tensors_whose_xxh3_is_equal(repo: Repository, ways: str) -> None:
    """A pair made to collide: both come back as they were, because no XXH3 is anybody's name."""
    one, two = colliding()
    assert one != two and xxhash.xxh3_128_digest(one) == xxhash.xxh3_128_digest(two)
    first, second = ({"w": np.frombuffer(data, "f4"), "fill": np.arange(99)} for data in (one, two))
    if ways == "one commit":
        repo.stage_weights({"one": first["w"], "two": second["w"]})
        repo.commit("both")
        assert read(Repository(repo.path)) == {"one": one, "two": two}
        return
    repo.stage_weights(first)
    made = repo.commit("first")
    writer = repo if ways == "one after the other" else Repository(repo.path)
    writer.stage_weights(second)
    writer.commit("second")
    fresh = Repository(repo.path)
    assert read(fresh, made.commit_hash)["w"] == one and read(fresh)["w"] == two


def test_a_known_seed_is_what_it_would_take(repo: Repository) -> None:
    """The fingerprint's seed is secret and another one in each process: a pair made for one is none in the next."""
    code = "from coral.ids import fingerprint; import sys; d = bytes.fromhex(sys.argv[1]); print(fingerprint(d).hex())"
    one, two = colliding()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    prints = [
        subprocess.run(
            [sys.executable, "-c", code, data.hex()], env=environment, capture_output=True, check=True
        ).stdout
        for data in (one, one, two)
    ]
    assert len(set(prints)) == 3


# -- what is shown

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202etxt.exe\x1b[8m\r"
_COLOURS = re.compile("\x1b\\[(?:[012]|3[0-7]|9[0-7])?m")


def obeyed(text: str) -> list[str]:
    """The characters of a text that a terminal would obey, colours and line breaks left aside."""
    return [char for char in _COLOURS.sub("", text) if not (char.isprintable() or char in "\n\t")]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_escape_sequences_are_shown(
    repo: Repository, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Messages, authors, names of tensors, branches, runs, metrics, tags and artifacts, and reflogs: no command sends
    what a terminal would obey; the text around it is readable."""
    repo.stage_weights({f"w{ESCAPES}": np.ones(9, "f4")}, metadata={ESCAPES: ESCAPES})
    made = repo.commit(f"message {ESCAPES}", author=f"{ESCAPES} <x@y>").commit_hash
    (repo.folder.root / ".git/refs/heads" / "b\x9b31m\u202etxt").write_text(made + "\n")
    with ExperimentTracker(repo).start("a run", f"why {ESCAPES}", {ESCAPES: ESCAPES}, [f"t{ESCAPES}"]) as run:
        run.log(f"loss{ESCAPES}", 1.0)
        run.set_notes(ESCAPES)
    if terminal:
        monkeypatch.setattr("click._compat.should_strip_ansi", lambda *_: False)
        monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    commands = [
        *(["log"], ["log", "--oneline"], ["log", "--json"], ["show"], ["diff", "HEAD~1"], ["ls", "-l"], ["reflog"]),
        *(["branch", "-v"], ["status"], ["cat", f"w{ESCAPES}"], ["checkout", "HEAD"], ["log", ESCAPES]),
        *(["exp", "list"], ["exp", "show", run.experiment_id], ["exp", "best", f"loss{ESCAPES}", "--mode", "min"]),
        *(["exp", "summary"], ["exp", "params", run.experiment_id], ["exp", "lineage", run.experiment_id]),
        *(["exp", "best", f"none{ESCAPES}"], ["fsck"], ["switch", f"x{ESCAPES}"], ["exp", "show", ESCAPES]),
    ]
    for words in commands:
        run_cli(*words, folder=repo.path)
        told = capfd.readouterr()
        assert told.out + told.err, words
        assert not obeyed(told.out) and not obeyed(told.err), (words, told)


# -- git's own configuration


def trap(folder: Path) -> tuple[Path, Path]:
    """A program that leaves a mark, and the mark."""
    mark, program = folder / "mark", folder / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    return program, mark


PROGRAMS = [
    *("core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.gitProxy", "core.askPass"),
    *("core.alternateRefsCommand", "diff.external", "diff.evil.textconv", "diff.evil.command", "merge.evil.driver"),
    *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "gpg.program", "gpg.ssh.program"),
    *("gpg.ssh.defaultKeyCommand", "credential.helper", "sequence.editor", "pager.log", "pager.status", "ssh.variant"),
    *("remote.origin.uploadpack", "remote.origin.receivepack", "remote.origin.vcs", "uploadpack.packObjectsHook"),
    *("interactive.diffFilter", "difftool.evil.cmd", "browser.evil.cmd", "web.browser", "trailer.evil.command"),
]
ALIASES = ["status", "config", "rev-parse", "ls-tree", "verify-commit", "cat-file", "log"]


@pytest.mark.parametrize("where", ["the code's", "the history's", "included"])
def test_no_program_of_a_configuration_is_run(
    repo: Repository, tmp_path: Path, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever programs a repository's configuration names, the code's or the history's, no command runs any."""
    code, history = repo.path, repo.folder.root / ".git"
    git(code, "init", "-q")
    (code / "train.py").write_text("x = 1\n")
    (code / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    git(code, "add", "train.py")
    git(code, "commit", "-q", "-m", "code")
    program, mark = trap(tmp_path)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "pre-commit", "post-checkout", "reference-transaction", "fsmonitor-watchman"):
        (hooks / hook).symlink_to(program)
        (history / "hooks" / hook).symlink_to(program)
    folder = repo.folder.root if where == "the history's" else code
    config = tmp_path / "included" if where == "included" else folder / ".git/config"
    for key in (*PROGRAMS, *(f"alias.{name}" for name in ALIASES)):
        value = f"!{program}" if key.startswith(("alias", "credential")) else str(program)
        git(folder, "config", "-f", str(config), key, value)
    git(folder, "config", "-f", str(config), "core.hooksPath", str(hooks))
    if where == "included":
        git(folder, "config", "include.path", str(config))
    os.utime(code / "train.py", (1, 1))
    with watched(seconds=60):
        commit(Repository(code), 5)
        for words in (
            *(["status"], ["log"], ["show"], ["diff"], ["fsck"], ["verify"], ["remote"], ["pull"], ["branch", "new"]),
            *(["commit", "-m", "x", "train.py"], ["tag", "v1"], ["checkout", "main"], ["exp", "list"], ["repack"]),
        ):
            run_cli(*words, folder=code)
    assert not mark.exists()
    subprocess.run(["git", "-C", folder, "status"], capture_output=True, check=False)
    assert mark.exists() or where == "the history's"  # the trap works


# -- forged experiments


def forge(repo: Repository, run: str, **changes: object) -> None:
    """Rewrite fields of a run's file, in a file that somebody formatted anew."""
    path = repo.folder.root / "experiments" / f"{run}.json"
    data = json.loads(path.read_text())
    for place, fields in changes.items():
        data[place].update(fields)
    path.write_text(json.dumps(data, indent=1))


FORGED: dict[str, dict[str, dict[str, object]]] = {
    "an id that is a path": {"summary": {"id": "../../x"}, "experiment": {"experiment_id": "../../x"}},
    "a parent that is itself": {"summary": {"parent": "SELF"}, "experiment": {"parent_experiment": "SELF"}},
    "a parent that is a path": {"experiment": {"parent_experiment": "../../../outside/precious"}},
    "a commit that is an option": {"experiment": {"commit_hash": "--all"}},
    "a time beyond the calendar": {"experiment": {"parameter_history": [{"t": 10**300, "params": {}}]}},
    "a count of a thousand digits": {"experiment": {"dropped_points": 10**4000}},
    "an artifact elsewhere": {
        "experiment": {"artifacts": [{"name": "../x", "kind": "file", "nbytes": 1, "ref": "hex:00", "t": 1}]}
    },
    "an artifact of exabytes": {
        "experiment": {"artifacts": [{"name": "x", "kind": "file", "nbytes": 1 << 60, "ref": "b3:" + "0" * 64, "t": 1}]}
    },
    "a run of 2**62 steps": {
        "history": {"series": {"loss": {"steps": [[0, 1 << 62, 1]], "times": [1], "values": [1.0]}}}
    },
    "an order of 2**62 points": {"history": {"order": [[[0], 1 << 62]]}},
    "a metric that is text": {"history": {"series": {"loss": {"steps": [[0, 1, 0]], "times": [1], "values": ["x"]}}}},
    "a status of its own": {"experiment": {"status": "glorious"}},
    "params that are a list": {"experiment": {"params": [1]}},
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_run(repo: Repository, outside: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A run's file from elsewhere is read as what it says or refused; nothing it names is looked up as a path."""
    with ExperimentTracker(repo).start("a run") as run:
        run.log("loss", 1.0, step=1)
    run_id = run.experiment_id
    forge(repo, run_id, **json.loads(json.dumps(FORGED[kind]).replace("SELF", run_id)))
    tracker = ExperimentTracker(repo)
    calls: list[Callable[[], object]] = [
        lambda: tracker.get(run_id).to_dict(history=True),
        lambda: tracker.find_best("loss", "min"),
        lambda: str(tracker.lineage(run_id)),
        lambda: tracker.get(run_id).load_artifact("x"),
        lambda: tracker.get(run_id).download_artifact("../x", outside),
        lambda: tracker.resume(run_id).end(),
        lambda: tracker.compare([run_id, run_id]),
        lambda: run_cli("exp", "show", run_id, folder=repo.path),
        lambda: tracker.delete(run_id),
        lambda: tracker.trash(),
    ]
    with watched(outside, seconds=6):
        for call in calls:
            attempt(call)


@pytest.mark.parametrize("circle", [True, False], ids=["in a circle", "in a row"])
def test_a_thousand_runs_that_descend_from_each_other(repo: Repository, outside: Path, circle: bool) -> None:
    """A forged family, in a circle or in a row, is drawn as far as families go."""
    tracker = ExperimentTracker(repo)
    with tracker.start("a run") as run:
        run.log("loss", 1.0)
    source = (repo.folder.root / "experiments" / f"{run.experiment_id}.json").read_text().replace('"check"', '"chalk"')
    for number in range(1200):
        parent = f'"{(number + 1) % 1200:012x}"' if circle or number < 1199 else "null"
        text = source.replace(run.experiment_id, f"{number:012x}").replace('"parent":null', f'"parent":{parent}')
        text = text.replace('"parent_experiment":null', f'"parent_experiment":{parent}')
        (repo.folder.root / "experiments" / f"{number:012x}.json").write_text(text)
    with watched(outside, seconds=30):
        for number in (0, 600, 1199):
            family = ExperimentTracker(repo).lineage(f"{number:012x}")
            assert len(family.ancestors) == (200 if circle else min(200, 1199 - number))
            assert 200 <= len(str(family).splitlines()) <= 402


# -- forged trailers

TRAILERS = {
    "steps": f"Coral-Step: {'9' * 5000}",
    "metrics": "Coral-Metrics: " + nested(100_000),
    "numbers": 'Coral-Metrics: {"a": 1e999, "b": ' + "9" * 5000 + "}",
    "metadata": 'Coral-Metadata: {"a": ' + "[" * 5000,
    "a run that is a path": "Coral-Run: ../../outside/precious",
    "escapes": "Coral-Run: %ZZ%1B%F0",
    "a root": "Coral-Root: " + "0" * 64,
    "a thousand": "\n".join(f"Coral-X{number}: y" for number in range(5000)),
    "spaces": "Coral-Step:" + " " * 100_000 + "1",
}


@pytest.mark.parametrize("kind", TRAILERS)
def test_forged_trailers(repo: Repository, outside: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A commit that another program wrote says what it says; what makes no sense is no step, metric or run."""
    tip = repo.history.commit(repo.resolve("HEAD"))
    text = f"subject\n\n{TRAILERS[kind]}\n"
    tree = repo.history._object(tip.commit_hash).tree
    data = CommitObject(tree, (tip.commit_hash,), "A <a@x>", 1, 0, 1, text).to_bytes()
    made = CommitHash(repo.history._handle.write("commit", data))
    repo.history.create_branch("forged", made)
    with watched(outside, seconds=4):
        found = next(iter(repo.log("forged")))
        assert found.subject == "subject" and (found.step is None or kind == "spaces")
        assert found.metrics.keys() <= {"a"} and (kind == "numbers" or not found.metrics)
        assert isinstance(found.metadata, dict)
        attempt(lambda: ExperimentTracker(repo).runs_for("forged"))
        for words in (["log", "forged"], ["show", "forged"], ["log", "--json", "forged"]):
            assert run_cli(*words, folder=repo.path) == 0
