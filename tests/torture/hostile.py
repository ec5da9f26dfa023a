"""What the tests of hostile input share: a watch over an attack, which may fail but must do nothing else."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from coral import Repository
from coral.errors import CoralError
from coral.experiments import ExperimentTracker
from tests.clock import at_most
from tests.repository.helpers import weights

T = TypeVar("T")
FILE = "model.safetensors"
BUG = 70
SECONDS = 1.0
GROWTH = 200 << 20
_STARTERS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
_CODE = ("pickle.find_class",)
_seen: list[str] = []
_watching: list[bool] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event in _STARTERS:
        program = arguments[0]
        words = program if isinstance(program, list | tuple) else [program]
        if os.path.basename(os.fsdecode(words[0] or "")) != "git":  # type: ignore[arg-type]
            _seen.append(f"{event} {arguments[:2]}")
    elif event in _CODE:
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(*outside: Path, seconds: float = SECONDS) -> Iterator[None]:
    """Let an attack run: outside of coral's folders nothing may change, no program but git may start, and the time (of
    the processor: a busy machine is no failure) and the memory that it takes are bounded."""
    before = [everything(folder) for folder in outside]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _seen.clear()
    _watching.append(True)
    try:
        with at_most(seconds):
            yield
    finally:
        _watching.pop()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    assert not _seen
    assert [everything(folder) for folder in outside] == before
    assert grown <= GROWTH, f"{grown >> 20} MiB"


def attempt(call: Callable[[], T]) -> T | CoralError:
    """What a call gives, or the error of coral's that it ends in; any other error is a bug."""
    try:
        return call()
    except CoralError as error:
        assert error.exit_code != BUG and error.message
        return error


def everything(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """All that lies below a folder: modes, bytes, and where links lead."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: bytes | str = b""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, content)
    return found


def nested(depth: int, opening: str = "[", closing: str = "]", core: str = "1") -> str:
    """JSON nested so deep."""
    return opening * depth + core + closing * depth


def run_cli(*arguments: str, folder: Path) -> int:
    """The exit code of the command line in a folder, which must not be that of a bug."""
    from coral.cli import main

    with contextlib.chdir(folder):
        try:
            main(list(arguments), prog_name="coral")
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else 1
    assert code != BUG, arguments
    return code


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
