"""A small repository in which one byte flips at a time, and whatever can be asked of it."""

from __future__ import annotations

import gc
import itertools
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from coral import Repository
from coral.errors import CoralError
from coral.experiments import ExperimentTracker
from coral.testing.processes import Note
from tests.repository.helpers import raw, weights

SAMPLE = 8
Answers = dict[str, object]
# The user's own to edit, so that no checksum can stand in them.
SETTINGS = ("config.toml", ".git/config")


def make(path: Path) -> Path:
    """A repository with some commits, branches, tags, runs ended and running, and something staged."""
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
                found[name] = Damaged(str(error))  # no trace: it would keep the repository open
            else:
                found[name] = Damaged(str(told[0].message)) if told else value

    try:
        repo = Repository(project, shell_staging=True)
    except CoralError as error:
        return {"open": Damaged(str(error))}
    ask("head", repo.history.head)
    ask("branches", repo.branches)
    ask("tags", repo.tags)
    ask("log", lambda: [str(one) + one.message + one.author + str(one.time) + str(one.metrics) for one in repo.log()])
    for ref in ("main", "dev", "v1", "noted", "HEAD~2"):
        ask(f"weights of {ref}", lambda ref=ref: raw(repo.get_all_weights(ref, "model.safetensors")))  # type: ignore[misc]
    ask("fsck", lambda: repo.maintenance.fsck().damage and Damaged("fsck says so"))
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


Place = tuple[str, int]
"""A file below the project, and a byte of it."""


def places(project: Path) -> Iterator[Place]:
    """Each byte of each file below ``.coral`` that has a checksum, or should be told of when it flips."""
    exempt = [project / ".coral" / name for name in SETTINGS]
    for path in sorted((project / ".coral").rglob("*")):
        if path.is_file() and path not in exempt:
            yield from ((path.relative_to(project).as_posix(), at) for at in range(path.stat().st_size))


def some(found: Iterator[Place]) -> Iterator[Place]:
    """A few bytes of each file."""
    chance = random.Random(0)
    for _, group in itertools.groupby(found, key=lambda place: place[0]):
        whole = list(group)
        yield from chance.sample(whole, min(SAMPLE, len(whole)))


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


class Flipped:
    """A sound repository and a copy of it, in which bytes are flipped one at a time.

    A flipped file takes the place of the sound one, and is not written into it: libgit2 maps the index of a pack and
    checks it when it opens it, so that what changes in there afterwards may end the process. It shares what it has
    open; so nothing of one answer may be open at the next.

    Attributes:
        count: how many were.
        noticed: how many of them made some answer an error.
    """

    def __init__(self, sound: Path) -> None:
        gc.collect()
        gc.freeze()
        self._sound, self._copy = sound, sound.with_name("copy")
        shutil.copytree(sound, self._copy, symlinks=True)
        self._expected = answers(sound)
        self.count = self.noticed = 0

    def flip(self, place: Place) -> list[str]:
        """What is wrong with the answers when this byte is another one."""
        name, at = place
        path, data = self._copy / name, (self._sound / name).read_bytes()
        path.unlink()
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        found = answers(self._copy)
        gc.collect()
        self.count += 1
        self.noticed += any(isinstance(value, CoralError) for value in found.values())
        _restore(self._sound, self._copy)
        bad = wrong(self._expected, found)
        return [f"{name}, byte {at}, after {data[max(0, at - 20) : at]!r}: {bad}"] if bad else []


def flip_each(note: Note, folder: Path, seed: int, slices: int, most: int) -> tuple[int, list[str]]:
    """The long form: one byte in so many, of a repository made for it; how many, and what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sound = make(folder / "project")
    flipped, bad = Flipped(sound), list[str]()
    for place in [one for one in places(sound) if one[1] % slices == seed][:most]:
        note(place)
        bad += flipped.flip(place)
    return flipped.count, bad


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
