"""Models through git's own commands: the same bytes come back, and git keeps readable text."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coral.format.manifest import Manifest
from coral.git.pktline import PacketReader
from coral.verbs.inside_git.filter import GitFilter
from tests.inside_git.helpers import ATTRIBUTES, CORAL, Project, kinds, safe, tensors, torch_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PAYLOAD = 65516
_ZEROS = b"%04x" % (_PAYLOAD + 4) + bytes(_PAYLOAD)
NAMES = ["with space.bin", "naïve—模型.bin", 'quo"te.bin', "-dash.bin", "tab\there.bin", "a/deep/er.bin", "[x]*?.bin"]


def test_every_kind_comes_back(project: Project) -> None:
    """Whatever a file is, add and checkout give the same bytes; what git keeps is a manifest.

    Not of an empty file, and of git-LFS's pointers: those git keeps itself.
    """
    files = kinds()
    for name, data in files.items():
        project.write(name, data)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "all")
    for name, data in files.items():
        if name in ("model.safetensors.index.json", "pointer.bin", "empty.bin"):
            assert project.blob(name) == data
        else:
            assert Manifest.from_bytes(project.blob(name)).to_bytes() == project.blob(name)
        (project.folder / name).unlink()
    project.git("checkout", "--", ".")
    assert {name: project.read(name) for name in files} == files
    assert project.status() == ""


@pytest.mark.parametrize("name", NAMES)
def test_names(project: Project, name: str) -> None:
    """A file may have any name that git allows."""
    data = os.urandom(3 << 20)
    project.write(name, data)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "odd")
    (project.folder / name).unlink()
    project.git("checkout", "-q", "--", ".")
    assert project.read(name) == data
    assert project.status() == ""


def test_what_is_not_what_its_name_promises_is_told(project: Project) -> None:
    """git's add keeps a broken file as it is, whichever suffix it has, and says so by name; once."""
    whole, pointer = torch_file(tensors()), kinds()["pointer.bin"]
    files = {
        "cut.pt": whole[:-200],
        "large.pth": torch_file(tensors(rows=1 << 15))[:-200],
        "cut.safetensors": safe(tensors(rows=1 << 15))[:-200],
        "empty.npz": b"",
        "pointer.bin": pointer,
        "raw.pt": b"no torch file",
    }
    for name, data in files.items():
        project.write(name, data)
    fine = {"whole.pt": whole, "raw.bin": b"anything", "model.safetensors": safe(tensors())}
    for name, data in fine.items():
        project.write(name, data)
    told = project.run("git", "add", "-A").stderr.decode()
    assert sorted(line.split(":")[1].strip() for line in told.splitlines()) == sorted(files)
    assert all(line.startswith("coral: ") and "kept as it is: " in line for line in told.splitlines())
    project.git("commit", "-q", "-m", "all")
    project.write("model.safetensors", project.blob("model.safetensors"))
    for name in files:
        os.utime(project.folder / name)
    assert project.run("git", "add", "-A").stderr == b""
    for name, data in files.items():
        (project.folder / name).unlink()
        project.git("checkout", "--", name)
        assert project.read(name) == data


def test_a_large_file_is_not_spooled_and_one_with_its_index_at_the_end_is(project: Project) -> None:
    """A large safetensors file, and a torch file, are kept tensor by tensor."""
    values = tensors(rows=1 << 15)
    project.write("a.safetensors", safe(values))
    project.write("b.pt", torch_file(values))
    project.git("add", "-A")
    one, other = (Manifest.from_bytes(project.blob(name)) for name in ("a.safetensors", "b.pt"))
    assert {record.name: record.content for record in one.records} == {r.name: r.content for r in other.records}
    assert len(one.records) == len(values)


def test_cleaning_a_manifest_gives_the_manifest(project: Project) -> None:
    """A working file that is a manifest, or one with conflict markers in it, is taken as it is."""
    project.commit("one", model=safe(tensors()))
    text = project.blob("model.safetensors")
    project.write("model.safetensors", text)
    project.git("add", "-A")
    assert project.status() == ""
    marked = text.replace(b"layer.1", b"<<<<<<< ours\nlayer.1", 1)
    project.write("model.safetensors", marked)
    project.git("add", "-A")
    assert project.blob("model.safetensors") == marked
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", ".")
    assert project.read("model.safetensors") == marked


def test_a_large_manifest_passes(project: Project) -> None:
    """A manifest of over 4 MiB is recognised as one, in both directions."""
    many = {
        f"a.tensor.with.a.name.of.usual.length.{number:06d}": tensors(layers=1)["layer.0.bias"][:1]
        for number in range(80_000)
    }
    project.commit("many", model=safe(many))
    text = project.blob("model.safetensors")
    assert len(text) > 4 << 20
    project.write("model.safetensors", text)
    project.git("add", "-A")
    assert project.status() == ""
    project.git("checkout", "-f", "HEAD", "--", "model.safetensors", CORAL_SKIP_SMUDGE="1")
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", "model.safetensors")
    assert project.read("model.safetensors") == safe(many)


def _hash_object(project: Project, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "hash-object", "-w", "--stdin", "--path=model.safetensors"],
        cwd=project.folder,
        input=data,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("there", [True, False], ids=["beside a file", "without a file"])
def test_bytes_of_no_file(project: Project, there: bool) -> None:
    """git may send other bytes than those of the file of that name: they are what counts."""
    other = safe(tensors(2, rows=1 << 15))
    if there:
        project.write("model.safetensors", safe(tensors(1, rows=1 << 15)))
    for data in (other, safe(tensors(3)), b"", *([] if there else [other[:-7], os.urandom(5 << 20)])):
        blob = _hash_object(project, data).stdout.decode().strip()
        shown = project.run("git", "cat-file", "--filters", "--path=model.safetensors", blob)
        assert shown.stdout == data


def test_a_file_that_changes_meanwhile(project: Project) -> None:
    """Large contents of another length than the file had are refused, as git's add of a file that grows must be."""
    data = safe(tensors(1, rows=1 << 15))
    project.write("model.safetensors", data)
    for wrong in (data[:-7], data + b"more", os.urandom(5 << 20)):
        done = _hash_object(project, wrong)
        assert done.returncode != 0
        assert b"changed while it was read" in done.stderr
    project.commit("still works")
    assert Manifest.from_bytes(project.blob("model.safetensors")).container == "safetensors"


def test_a_blob_that_is_no_manifest_passes(project: Project) -> None:
    """A model that was committed before it was tracked is checked out as it is."""
    data = os.urandom(5 << 20)
    (project.folder / ".gitattributes").unlink()
    project.commit("untracked", model=data)
    project.write(".gitattributes", ATTRIBUTES.encode())
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", "model.safetensors")
    assert project.read("model.safetensors") == data


def test_skipping(project: Project) -> None:
    """CORAL_SKIP_SMUDGE leaves manifests in the working tree, and the tree is clean."""
    project.commit("one", model=safe(tensors()))
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", ".", CORAL_SKIP_SMUDGE="1")
    assert project.read("model.safetensors") == project.blob("model.safetensors")
    assert project.status() == ""


def test_absent_tensors(project: Project, tmp_path: Path) -> None:
    """A clone that has not the tensors gets manifests, and is told so; nothing fails, and nothing seems changed."""
    project.commit("one", model=safe(tensors()), other=safe(tensors(5, rows=1 << 14)))
    filtering = ("-c", f"filter.coral.process={CORAL} git-filter", "-c", "filter.coral.required=true")
    done = subprocess.run(
        ["git", *filtering, "clone", "-q", project.folder, tmp_path / "clone"],
        capture_output=True,
        check=True,
    )
    clone = Project(tmp_path / "clone")
    clone.configure()
    for name in ("model.safetensors", "other.safetensors"):
        assert clone.read(name) == project.blob(name)
        assert name.encode() in done.stderr
    assert b"coral pull" in done.stderr
    assert clone.status() == ""
    assert not (clone.folder / ".coral").exists()


def test_damage_is_never_written(project: Project) -> None:
    """A file whose stored bytes are damaged is refused by git, and named; the others are written."""
    project.commit("one", model=safe(tensors(1, rows=1 << 15)), small=safe(tensors(2)))
    packs = project.folder / ".coral" / "packs"
    largest = max(packs.glob("*.pack"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    for name in ("model.safetensors", "small.safetensors"):
        (project.folder / name).unlink()
    done = project.run("git", "checkout", "--", ".", check=False)
    assert done.returncode != 0
    assert b"model.safetensors" in done.stderr
    assert not (project.folder / "model.safetensors").exists()
    assert project.read("small.safetensors") == safe(tensors(2))


def test_a_delta_is_made_against_what_the_index_holds(project: Project) -> None:
    """The next version of a model is stored as its difference to the one before."""
    values = tensors(rows=1 << 15)
    project.commit("one", model=safe(values))
    before = _packed(project)
    nudged = {name: (value * 1.0001).astype("<f4") for name, value in values.items()}
    project.commit("two", model=safe(nudged))
    assert _packed(project) - before < 0.7 * before
    project.git("checkout", "-q", "HEAD~1")
    assert project.read("model.safetensors") == safe(values)
    project.git("checkout", "-q", "main")
    assert project.read("model.safetensors") == safe(nudged)


def _packed(project: Project) -> int:
    return sum(path.stat().st_size for path in (project.folder / ".coral" / "packs").glob("*.pack"))


class Sparse:
    """A content in git's packets, all of zeros but for some marks, which is nowhere as a whole."""

    def __init__(self, size: int, marks: dict[int, bytes]) -> None:
        self._size, self._marks = size, marks
        self._packets = self._made()
        self._left = memoryview(b"")

    def _made(self) -> Iterator[bytes]:
        for start in range(0, self._size, _PAYLOAD):
            packet = _ZEROS if start + _PAYLOAD <= self._size else b"%04x" % (self._size - start + 4)
            packet = packet.ljust(4 + min(_PAYLOAD, self._size - start), b"\0")
            for place, mark in self._marks.items():
                if start <= place and place + len(mark) <= start + len(packet) - 4:
                    at = 4 + place - start
                    packet = packet[:at] + mark + packet[at + len(mark) :]
            yield packet
        yield b"0000"

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes."""
        self._left = self._left or memoryview(next(self._packets, b""))
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)


def test_more_than_four_gigabytes(project: Project) -> None:
    """A file of over 4 GiB passes git's filter and comes back; through git itself it is in ``large.py``, which make
    torture runs."""
    size = (1 << 32) + (1 << 20)
    marks = {0: b"first", (1 << 32) + 5000: b"over", size - 4: b"last"}
    files = GitFilter(project.folder)
    content = PacketReader(Sparse(size, marks))
    content.begin_content()
    text = files.clean("huge.bin", content)
    files.finish()
    found, at = dict[int, bytes](), 0

    def write(piece: Buffer) -> None:
        nonlocal at
        view = memoryview(piece)
        for place, mark in marks.items():
            if at <= place < at + len(view):
                found[place] = bytes(view[place - at : place - at + len(mark)])
        at += len(view)

    files.smudge(Manifest.from_bytes(text), write)
    assert (found, at) == (marks, size)


@pytest.mark.parametrize("direction", ["clean", "smudge"])
def test_killed(project: Project, direction: str) -> None:
    """A filter killed at any moment: git reports failure, what was is as it was, and the same command works again."""
    data = safe(tensors(rows=1 << 17))
    if direction == "smudge":
        project.commit("one", model=data)
        (project.folder / "model.safetensors").unlink()
    else:
        project.write("model.safetensors", data)
    words = ["add", "model.safetensors"] if direction == "clean" else ["checkout", "--", "model.safetensors"]
    failures = 0
    for pause in (0.02, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4):
        git = subprocess.Popen(["git", *words], cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(pause)
        for child in _children(git.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        git.communicate()
        assert not (project.folder / ".git" / "index.lock").exists()
        project.git("fsck", "--strict")
        if git.returncode:
            failures += 1
        else:
            project.git("reset", "-q")
            if direction == "smudge":
                (project.folder / "model.safetensors").unlink()
    assert failures
    project.git(*words)
    project.git("commit", "-q", "--allow-empty", "-m", "after")
    assert project.status() == ""
    project.coral("fsck", "--read-data")
    (project.folder / "model.safetensors").unlink()
    project.git("checkout", "--", ".")
    assert project.read("model.safetensors") == data


def _children(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(status.parent.name)
            found += [child, *_children(child)]
    return found


def test_the_handshake_is_light() -> None:
    """git is greeted before numpy, or any other heavy library, is imported."""
    script = (
        "import sys\n"
        "from coral.git import pktline\n"
        "shake = pktline.FilterServer.shake_hands\n"
        "def spy(self, capabilities):\n"
        "    shake(self, capabilities)\n"
        "    print(sorted({'numpy', 'torch', 'git', 'pygit2', 'rich'} & set(sys.modules)), file=sys.stderr)\n"
        "    sys.exit()\n"
        "pktline.FilterServer.shake_hands = spy\n"
        "sys.argv = ['coral', 'git-filter']\n"
        "from coral.cli import main\n"
        "main()\n"
    )
    hello = b"0016git-filter-client\n000eversion=2\n0000" + b"0015capability=clean\n0000"
    done = subprocess.run([sys.executable, "-c", script], input=hello, capture_output=True, check=True)
    assert done.stderr.decode().strip() == "[]"
    assert done.stdout == b"0016git-filter-server\n000eversion=2\n0000" + b"0015capability=clean\n0000"


@pytest.mark.parametrize("said", [b"", b"0000", b"zzzz", b"0016git-filter-client\n000eversion=9\n0000", b"0009hi"])
def test_something_else_than_git(said: bytes, tmp_path: Path) -> None:
    """What is not git's protocol is told so, and nothing is made."""
    done = subprocess.run(
        [sys.executable, "-m", "coral", "git-filter"], input=said, capture_output=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 6
    assert b"error: " in done.stderr
    assert not list(tmp_path.glob(".coral"))
