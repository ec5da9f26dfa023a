"""An index of a pack of git's that leads out of its pack is an error; libgit2 alone would end the process."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coral import Repository
from coral.errors import CorruptionError
from coral.testing.processes import Note, Warm

ROOT = Path(__file__).parents[2]
_HEADS = {1: 4 * 256, 2: 8 + 4 * 256}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a pack of git objects."""
    repo = Repository(tmp_path_factory.mktemp("packed"), init=True)
    for number in range(3):
        repo.stage_state({"number": number})
        repo.commit(f"n={number}")
    repo.history.consolidate(force=True)
    return repo.path


@pytest.fixture(scope="module")
def apart() -> Iterator[Warm]:
    """A process of its own, which may come to a bad end."""
    with Warm(None, [__name__], folder=ROOT) as warm:
        yield warm


def places(data: bytes) -> range:
    """Where the offsets of an index stand."""
    version = 2 if data.startswith(b"\xfftOc") else 1
    (count,) = struct.unpack_from(">I", data, _HEADS[version] - 4)
    start = _HEADS[version] + (24 * count if version == 2 else 0)
    return range(start, start + count * (4 if version == 2 else 24), 4 if version == 2 else 24)


def ask(note: Note, project: Path) -> list[str]:
    """The subjects of the commits, or an error's message."""
    try:
        return [one.subject for one in Repository(project).log()]
    except CorruptionError as error:
        return [error.message]


@pytest.mark.parametrize("version", [1, 2])
def test_an_offset_out_of_the_pack_is_an_error(apart: Warm, project: Path, tmp_path: Path, version: int) -> None:
    """Whichever bit of an offset flips, there is an answer or an error, and the process goes on."""
    copy = shutil.copytree(project, tmp_path / "copy")
    (index,) = (copy / ".coral/.git/objects/pack").glob("*.idx")
    index.chmod(0o644)
    command = ["git", "index-pack", f"--index-version={version}", "-o", str(tmp_path / "made.idx")]
    subprocess.run([*command, str(index.with_suffix(".pack"))], check=True, capture_output=True)
    sound = (tmp_path / "made.idx").read_bytes()
    wrong = []
    for place in places(sound):
        for bit in (0, 4, 7, 8, 20, 31):
            (offset,) = struct.unpack_from(">I", sound, place)
            index.unlink()
            index.write_bytes(sound[:place] + struct.pack(">I", offset ^ 1 << (31 - bit)) + sound[place + 4 :])
            ended = apart.run(f"{__name__}:ask", copy)
            wrong += [] if ended.error is None and ended.finished else [(place, bit, ended.error or ended.signal)]
    assert not wrong


def test_a_far_offset_out_of_the_pack_is_an_error(apart: Warm, project: Path, tmp_path: Path) -> None:
    """The longer offsets of packs over 2 GiB stand in a table of their own: both that and what stands there count."""
    copy = shutil.copytree(project, tmp_path / "copy")
    (index,) = (copy / ".coral/.git/objects/pack").glob("*.idx")
    sound = index.read_bytes()
    head, offsets = sound[: places(sound).start], sound[places(sound).start : places(sound).stop]
    for number, far in ((0, 1 << 40), (1, 12), (0, 12)):
        first = struct.pack(">I", 1 << 31 | number)
        index.unlink()
        index.write_bytes(head + first + offsets[4:] + struct.pack(">Q", far) + sound[-40:])
        ended = apart.run(f"{__name__}:ask", copy)
        assert ended.finished and ended.error is None
        assert ("leads out of its pack" in str(ended.result)) is ((number, far) != (0, 12))


def test_a_pack_that_comes_later_is_looked_at_too(project: Path, tmp_path: Path) -> None:
    """Whoever has the repository open already does not follow the index of a pack that comes meanwhile."""
    copy = shutil.copytree(project, tmp_path / "copy")
    repo = Repository(copy)
    assert [one.subject for one in repo.log()] == ["n=2", "n=1", "n=0"]
    (index,) = (copy / ".coral/.git/objects/pack").glob("*.idx")
    data = index.read_bytes()
    index.unlink()
    index.write_bytes(data[: places(data).start] + b"\x01" + data[places(data).start + 1 :])
    with pytest.raises(CorruptionError, match="leads out of its pack"):
        list(repo.log())
