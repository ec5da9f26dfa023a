"""Short ways to make weights, files and processes in tests of the repository."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import coral
from coral import Commit, Repository

ROOT = Path(coral.__file__).parents[1]
Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def weights(seed: int, *, rows: int = 50) -> dict[str, Array]:
    """Two tensors that no other seed gives."""
    rng = np.random.default_rng(seed)
    return {"bias": rng.normal(size=7).astype("f4"), "layer.weight": rng.normal(size=(rows, 8)).astype("f4")}


def commit(repo: Repository, seed: int, name: str = "model.safetensors") -> Commit:
    """A commit of :func:`weights`."""
    repo.stage_weights(weights(seed), name)
    return repo.commit(f"seed {seed}")


def read(repo: Repository, ref: str = "HEAD", name: str | None = None) -> dict[str, bytes]:
    """The raw bytes of a commit's weights."""
    return raw(repo.get_all_weights(ref, name))


def raw(tensors: Mapping[str, object]) -> dict[str, bytes]:
    """The raw bytes of tensors."""
    return {name: np.asarray(tensor).tobytes() for name, tensor in tensors.items()}


def child(code: str, *arguments: object, front: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A Python process that runs code, with ``sys`` and ``coral`` imported; the arguments are ``sys.argv[1:]``.

    Args:
        front: what starts it, where it is not started at once.
    """
    head = "import os, sys\nfrom coral import Repository\nfrom tests.repository.helpers import *\n"
    text = head + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*front, sys.executable, "-c", text, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, *arguments: object) -> str:
    """What a :func:`child` prints; it must succeed."""
    return finish(child(code, *arguments))


def finish(process: subprocess.Popen[str]) -> str:
    """What a process prints by its end; it must succeed."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def at_once(function: Callable[[int], str], count: int) -> list[str]:
    """What a function returns in each of several processes that start together; all must succeed."""
    fork = multiprocessing.get_context("fork")
    barrier, queue = fork.Barrier(count), fork.SimpleQueue()

    def work(number: int) -> None:
        barrier.wait(30)
        queue.put((number, function(number)))

    processes = [fork.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    results: dict[int, str] = dict(queue.get() for _ in range(count))
    return [results[number] for number in range(count)]


def git(folder: Path, *arguments: str) -> str:
    """Run the real git in a folder; returns what it prints."""
    people = {f"GIT_{role}_{what}": f"{what}@x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments],
        env={**os.environ, **people},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_command(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command run in a folder, whatever becomes of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
