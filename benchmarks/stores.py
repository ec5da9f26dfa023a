"""Ways to keep checkpoints, as people use them: what each does to keep one more, and what it finds afterwards.

A checkpoint counts as acknowledged when the call that keeps it returns, or the command ends with status 0.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import safetensors.numpy
import torch
from numpy.typing import NDArray

from coral import CoralError, Repository
from coral.experiments import ExperimentTracker

Weights = dict[str, NDArray[numpy.float32]]
Keep = Callable[[int], object]
NAMELESS = -1
"""The number of something found that does not say which checkpoint it was."""
_MODEL = "model.safetensors"
_EXPECTED_ERRORS = (OSError, ValueError, RuntimeError, CoralError)


@dataclass(frozen=True)
class Store:
    """A way to keep checkpoints, numbered from 0.

    Attributes:
        name: as tables show it.
        size: bytes of one checkpoint's weights.
        keeps_all: whether earlier checkpoints stay when another one is kept.
        of_points: whether it keeps points of a metric, and no weights.
    """

    name: str
    size: int
    keeps_all: bool = True
    of_points: bool = False

    def open(self, folder: Path) -> Keep:
        """What keeps one more checkpoint in a folder: the store is made when it is not there."""
        raise NotImplementedError

    def read(self, folder: Path) -> dict[int, bool]:
        """The checkpoints that are found, and whether each is bit for bit what it was.

        Raises any exception when nothing can be read.
        """
        raise NotImplementedError


@functools.lru_cache(maxsize=64)
def weights(number: int, size: int) -> Weights:
    """The weights of a checkpoint: all of them differ from all others'."""
    chance = numpy.random.default_rng(number)
    values = (chance.standard_normal(size // 4, numpy.float32) * numpy.float32(0.02)).astype(numpy.float32)
    half = len(values) // 2
    return {"step": numpy.full(1, number, numpy.float32), "layer.0": values[:half], "layer.1": values[half:]}


def alike(found: object, number: int, size: int) -> bool:
    """Whether weights are those of a checkpoint, bit for bit."""
    wanted = weights(number, size)
    return (
        isinstance(found, dict)
        and found.keys() == wanted.keys()
        and all(numpy.asarray(found[name]).tobytes() == wanted[name].tobytes() for name in wanted)
    )


def loss(number: int) -> float:
    """The point that stands for a checkpoint where no weights are kept."""
    return 1 / (number + 7)


# -- coral


class Coral(Store):
    """``Repository.commit``, as by default."""

    def open(self, folder: Path) -> Keep:
        repo = Repository(folder, init=not (folder / ".coral").exists())

        def keep(number: int) -> None:
            repo.stage_weights(weights(number, self.size))
            repo.commit(f"n={number}")

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        repo, found = Repository(folder), {}
        for commit in repo.log():
            number = int(commit.message.partition("=")[2])
            try:
                found[number] = alike(dict(repo.get_all_weights(commit.commit_hash)), number, self.size)
            except CoralError:
                found[number] = False
        return found


class CoralLog(Store):
    """``Run.log``, as by default: it syncs every five seconds."""

    def open(self, folder: Path) -> Keep:
        run = ExperimentTracker(Repository(folder, init=not (folder / ".coral").exists())).start("run")
        return lambda number: run.log("loss", loss(number), number)

    def read(self, folder: Path) -> dict[int, bool]:
        runs = ExperimentTracker(Repository(folder)).list()
        return {point.step or 0: point.value == loss(point.step or 0) for run in runs for point in run.metrics}


# -- git


@dataclass(frozen=True)
class Git(Store):
    """``git add`` and ``git commit`` of a file, whose own bytes do not count, as git's index does not.

    Attributes:
        settings: given to git with ``-c``.
    """

    settings: tuple[str, ...] = ()

    def open(self, folder: Path) -> Keep:
        if not (folder / ".git").exists():
            self._git(folder, "init", "-q")

        def keep(number: int) -> None:
            _save_file(weights(number, self.size), folder / _MODEL)
            self._git(folder, "add", _MODEL)
            self._git(folder, "commit", "-q", "-m", f"n={number}")

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        done = self._git(folder, "log", "--format=%H %s", check=False)
        if not done.stdout:
            raise OSError("there is no commit to be read")
        found = {}
        for line in done.stdout.decode().splitlines():
            commit, _, number = line.partition(" n=")
            blob = self._git(folder, "cat-file", "blob", f"{commit}:{_MODEL}", check=False).stdout
            found[int(number)] = blob == safetensors.numpy.save(weights(int(number), self.size))
        return found

    def _git(self, folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        names = {f"GIT_{role}_{what}": "n" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        isolated = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
        settings = [part for setting in self.settings for part in ("-c", setting)]
        # Descriptors are inherited, so that what git writes can be recorded.
        return subprocess.run(
            ["git", *settings, *arguments],
            cwd=folder,
            env={**kept, **names, **isolated},
            close_fds=False,
            capture_output=True,
            check=check,
        )


# -- files


@dataclass(frozen=True)
class SaveFile(Store):
    """``save_file`` to another name, then a rename to the one that people load.

    Attributes:
        syncs: whether the file is synced before the rename, and the folder after it.
    """

    keeps_all: bool = False
    syncs: bool = False

    def open(self, folder: Path) -> Keep:
        fresh = folder / f"{_MODEL}.tmp"

        def keep(number: int) -> None:
            _save_file(weights(number, self.size), fresh)
            if self.syncs:
                _sync(fresh)
            os.replace(fresh, folder / _MODEL)
            if self.syncs:
                _sync(folder)

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        return _only(lambda: safetensors.numpy.load_file(folder / _MODEL), folder / _MODEL, self.size)


@dataclass(frozen=True)
class TorchSave(Store):
    """``torch.save`` to the name that people load."""

    keeps_all: bool = False

    def open(self, folder: Path) -> Keep:
        def keep(number: int) -> None:
            kept = {name: torch.from_numpy(array) for name, array in weights(number, self.size).items()}
            torch.save(kept, folder / "model.pt")

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        def load() -> object:
            kept = torch.load(folder / "model.pt", weights_only=True)
            return {name: tensor.numpy() for name, tensor in kept.items()}

        return _only(load, folder / "model.pt", self.size)


def _save_file(kept: Weights, path: Path) -> None:
    """``save_file``; where system calls are watched the same in Python, as it renames in a way that cannot be seen."""
    if "CORAL_SHIM" in os.environ:
        path.write_bytes(safetensors.numpy.save(kept))
    else:
        safetensors.numpy.save_file(kept, path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _only(load: Callable[[], object], path: Path, size: int) -> dict[int, bool]:
    """What is found where one file is replaced again and again."""
    if not path.exists():
        return {}
    try:
        kept = load()
        number = int(kept["step"][0]) if isinstance(kept, dict) else NAMELESS
    except (*_EXPECTED_ERRORS, Exception):  # safetensors has an error of its own
        return {NAMELESS: False}
    return {number: alike(kept, number, size)}


# -- databases and logs


@dataclass(frozen=True)
class SQLite(Store):
    """A blob in a table, ``synchronous=FULL``.

    Attributes:
        journal: SQLite's mode of journal.
    """

    journal: str = "delete"

    def open(self, folder: Path) -> Keep:
        database = sqlite3.connect(folder / "weights.db")
        database.execute(f"pragma journal_mode={self.journal}")
        database.execute("pragma synchronous=full")
        database.execute("create table if not exists checkpoint (number integer primary key, weights blob)")

        def keep(number: int) -> None:
            blob = safetensors.numpy.save(weights(number, self.size))
            with database:
                database.execute("insert into checkpoint values (?, ?)", (number, blob))

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        database = sqlite3.connect(folder / "weights.db")
        try:
            rows = database.execute("select number, weights from checkpoint")
            return {number: blob == safetensors.numpy.save(weights(number, self.size)) for number, blob in rows}
        finally:
            database.close()


class JsonLines(Store):
    """One line of JSON a point, flushed to the operating system."""

    def open(self, folder: Path) -> Keep:
        file = (folder / "log.jsonl").open("a")

        def keep(number: int) -> None:
            file.write(json.dumps({"step": number, "loss": loss(number)}) + "\n")
            file.flush()

        return keep

    def read(self, folder: Path) -> dict[int, bool]:
        *lines, _ = (folder / "log.jsonl").read_bytes().split(b"\n")  # the last may be cut short
        found = {}
        for line in lines:
            try:
                point = json.loads(line)
                found[int(point["step"])] = point["loss"] == loss(point["step"])
            except (ValueError, TypeError, KeyError):
                found[NAMELESS] = False
        return found


def stores(size: int) -> list[Store]:
    """All of them, with checkpoints of so many bytes."""
    return [
        Coral("coral", size),
        Git("git, default", size),
        Git("git, core.fsync=all", size, settings=("core.fsync=all",)),
        SaveFile("`save_file` + rename", size),
        SaveFile("`save_file`, file and folder synced by hand", size, syncs=True),
        TorchSave("`torch.save`", size),
        SQLite("SQLite FULL, rollback journal", size),
        SQLite("SQLite FULL, WAL", size, journal="wal"),
        CoralLog("coral, `run.log`", size, of_points=True),
        JsonLines("JSON lines, no fsync", size, of_points=True),
    ]
