"""Every byte of a small repository flipped: what is read is right, or there is an error; nothing wrong is returned.

Packs alone, byte by byte, are flipped in ``tests/repository/test_damage.py``. Here it is every file below ``.coral``,
and whatever can be asked. A sample by default; ``CORAL_TORTURE_FLIPS`` says how many of each file, or ``all``.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coral import Repository
from coral.errors import CoralError
from coral.experiments import ExperimentTracker
from tests.repository.helpers import raw, weights

_WANTED = os.environ.get("CORAL_TORTURE_FLIPS", "8")
SAMPLE = 1 << 62 if _WANTED == "all" else int(_WANTED)
Answers = dict[str, object]
# The user's own to edit, so that no checksum can stand in them.
SETTINGS = ("config.toml", ".git/config")


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: nothing here is about the disk."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sound(memory: Path) -> Path:
    """A repository with some commits, branches, tags, runs ended and running, and something staged."""
    path = memory / "project"
    repo = Repository(path, init=True)
    tracker = ExperimentTracker(repo)
    with tracker.start("ended", "why", {"lr": 0.1}, ["tag"], notes="note") as run:
        for step in range(3):
            run.log("loss", 1.0 - step, step=step)
            repo.stage_weights(weights(step, rows=4))
            repo.commit(f"step {step}", step=step)
        run.log_text("text" * 20, "note.txt")
    repo.history.consolidate(force=True)
    repo.stage_state({"epoch": 3, "m": np.arange(20.0)}, "state")
    repo.commit("state", tags=["v1"])
    repo.create_branch("dev", "HEAD~1")
    repo.tag("noted", "HEAD~1", "annotated")
    live = tracker.start("running", params={"lr": 0.2}, owner="shell")
    for step in range(3):
        live.log("loss", 5.0 - step, step=step)
    live.close()
    shell = Repository(path, shell_staging=True)
    shell.stage_weights({"a": np.arange(30.0)}, "staged")
    shell.checkout("main", "model.safetensors")
    shell.status()
    ExperimentTracker(shell).list()
    return path


def answers(project: Path) -> Answers:
    """Whatever can be asked, each answer by its name; an error stands for itself."""
    found: Answers = {}

    def ask(name: str, call: Callable[[], object]) -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                value = call()
            except CoralError as error:
                found[name] = error
            else:
                found[name] = Damaged(str(told[0].message)) if told else value

    try:
        repo = Repository(project, shell_staging=True)
    except CoralError as error:
        return {"open": error}
    ask("head", repo.history.head)
    ask("branches", repo.branches)
    ask("tags", repo.tags)
    ask("log", lambda: [str(one) + one.message + one.author + str(one.time) + str(one.metrics) for one in repo.log()])
    for ref in ("main", "dev", "v1", "noted", "HEAD~2"):
        ask(f"weights of {ref}", lambda ref=ref: raw(repo.get_all_weights(ref, "model.safetensors")))  # type: ignore[misc]
    ask("fsck", lambda: repo.fsck().damage and Damaged("fsck says so"))
    ask("state", lambda: raw(repo.get_all_weights("HEAD", "state")))
    ask("parts", lambda: repo.parts())
    ask("staged", lambda: repo.status().staged)
    ask("modified", lambda: repo.status().modified)
    tracker = ExperimentTracker(repo)
    ask("queries", lambda: _queries(tracker))
    for run in sorted(path.stem for path in (project / ".coral/experiments").glob("*.json")):
        ask(f"run {run}", lambda run=run: _run(tracker, run))  # type: ignore[misc]
    return found


def _queries(tracker: ExperimentTracker) -> object:
    runs = sorted(str(run.to_dict(history=True)) for run in tracker.list())
    return runs, [dict(one) for one in tracker.find_best("loss", "min")], tracker.get_summary()


def _run(tracker: ExperimentTracker, run: str) -> object:
    found = tracker.get(run)
    return found.to_dict(history=True), [found.load_artifact(one.name) for one in found.list_artifacts()]


class Damaged(CoralError):
    """A warning, which tells of damage as an error does."""


def places(project: Path) -> list[tuple[str, int]]:
    """The bytes to flip: file by file below ``.coral``."""
    chance, found = random.Random(0), []
    for path in sorted((project / ".coral").rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            chosen = range(size) if size <= SAMPLE else sorted(chance.sample(range(size), SAMPLE))
            found += [(path.relative_to(project).as_posix(), place) for place in chosen]
    return found


def wrong(expected: Answers, found: Answers) -> list[str]:
    """The answers that are neither right nor an error. A ref is a hash, and nothing but what it leads to can tell that
    it is another one: reading it is an error, and fsck says so."""
    told = any(isinstance(found.get(name), CoralError) for name in ("fsck", "log"))
    return [
        name
        for name, value in found.items()
        if not isinstance(value, CoralError)
        and value != expected[name]
        and not (told and name in ("head", "branches", "tags"))
    ]


def test_no_flip_changes_an_answer(sound: Path, memory: Path) -> None:
    """Whichever byte flips, in packs, indexes, git objects, refs, runs, journals, staging and caches: each answer is
    right, or an error or a warning that says so; or fsck says so."""
    expected = answers(sound)
    assert not [name for name, value in expected.items() if isinstance(value, CoralError)], expected
    copy = memory / "copy"
    shutil.copytree(sound, copy, symlinks=True)
    exempt = tuple(f".coral/{name}" for name in SETTINGS)
    bad, noticed = [], 0
    for name, place in places(sound):
        path, data = copy / name, (sound / name).read_bytes()
        if name in exempt or not data:
            continue
        path.chmod(0o644)
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        found = answers(copy)
        noticed += any(isinstance(value, CoralError) for value in found.values())
        if wrong(expected, found):
            bad.append((name, place, data[max(0, place - 20) : place + 20], wrong(expected, found)))
        _restore(sound, copy)
    assert not bad, "\n".join(map(str, bad[:40]))
    assert noticed > 50


def _restore(sound: Path, copy: Path) -> None:
    """Undo the flip, and whatever a reader settled because of it."""
    for path in (sound / ".coral").rglob("*"):
        other = copy / path.relative_to(sound)
        if path.is_file() and (not other.is_file() or other.read_bytes() != path.read_bytes()):
            other.parent.mkdir(parents=True, exist_ok=True)
            other.unlink(missing_ok=True)
            shutil.copy2(path, other)
    for other in (copy / ".coral").rglob("*"):
        if other.is_file() and not (sound / other.relative_to(copy)).is_file():
            other.unlink()
