"""Models inside git: ``git add``, ``git checkout`` and ``git status`` with coral, beside git-lfs, in one run.

``python -m benchmarks.git [--small] [--runs 5] [--bars] [--json PATH]``. A model of 280 MB (fp32, normally
distributed) in five versions: all tensors nudged, the last two layers, 100 rows of the embedding, a new head. A round
makes a new repository for each tool and adds and commits one version after the other under one name. Writing the file
is not in the time. The time of ``git add`` is that of git and all it starts, up to its end; coral syncs what it stores
within it, git-lfs does not. ``sha256sum`` reads the same file just before. Files are in the page cache. git's own
memory is the largest resident size of the process itself, looked at 200 times a second. What is checked out is
compared with what was added.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks import bars
from benchmarks.repository import facts, folder_bytes, progress

Model = dict[str, NDArray[numpy.float32]]
FILE = "model.safetensors"
TOOLS = ("coral", "git-lfs")
VERSIONS = ("first", "all tensors nudged", "last 2 layers", "100 rows of the embedding", "a new head")
SKIPPED = "checkout with CORAL_SKIP_SMUDGE"
TENTH = ("last 2 layers", "100 rows of the embedding", "a new head")
"""Versions that change a tenth or less."""
CORAL = f'"{sys.executable}" -m coral'
SECONDS_BETWEEN_LOOKS = 0.005


@dataclass(frozen=True)
class Spent:
    """What a command took: seconds of the clock and of all cores, and the most memory of the process itself."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass
class Round:
    """One tool's figures: of each version's add, then of what else was measured; bytes of the store at the end."""

    adds: list[Spent] = field(default_factory=list)
    hashes: list[float] = field(default_factory=list)
    others: dict[str, Spent] = field(default_factory=dict)
    store_bytes: int = 0


def versions(small: bool) -> Iterator[Model]:
    """The model's versions, one after the other."""
    random = numpy.random.default_rng(0)
    width, layers, words = (64, 4, 500) if small else (512, 20, 16384)

    def normal(*shape: int) -> NDArray[numpy.float32]:
        return (random.standard_normal(shape, numpy.float32) * numpy.float32(0.02)).astype(numpy.float32)

    model = {"embedding": normal(words, width)}
    for number in range(layers):
        for name, shape in (("qkv", (3 * width, width)), ("out", (width, width)), ("up", (4 * width, width))):
            model[f"layer.{number}.{name}"] = normal(*shape)
        model[f"layer.{number}.down"] = normal(width, 4 * width)
        model[f"layer.{number}.norm"] = numpy.ones(width, numpy.float32)
    model["head"] = normal(100, width)
    yield model
    for name, value in model.items():
        model[name] = value + normal(*value.shape) * numpy.float32(0.005)
    yield model
    for name in [name for name in model if name.startswith((f"layer.{layers - 1}.", f"layer.{layers - 2}."))]:
        model[name] = model[name] + normal(*model[name].shape) * numpy.float32(0.005)
    yield model
    model["embedding"] = model["embedding"].copy()
    model["embedding"][100:200] += normal(100, width)
    yield model
    model["head"] = normal(200, width)
    yield model


# -- running git


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's settings."""
    names = {f"GIT_{role}_{what}": "n" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "PYTHONPATH") if name in os.environ}
    return {**kept, **names, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", **more}


def spend(command: list[str], folder: Path, **more: str) -> Spent:
    """Run a command to its end; what it took."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder.parent, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command}: {said.decode(errors='replace')}")
    return Spent(seconds, usage.ru_utime + usage.ru_stime, peak[0])


def watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Note the largest resident size of a process while it lives."""
    while process.returncode is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        found = [int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:")]
        if not found:
            return
        peak[0] = max(peak[0], *found)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def start(tool: str, folder: Path) -> None:
    """A repository in which models are tracked."""
    folder.mkdir(parents=True)
    spend(["git", "init", "-q"], folder)
    if tool == "coral":
        settings = {"process": f"{CORAL} git-filter", "required": "true"}
        for key, value in settings.items():
            spend(["git", "config", f"filter.coral.{key}", value], folder)
        (folder / ".gitattributes").write_text("*.safetensors filter=coral diff=coral merge=coral -text\n")
    elif tool == "git-lfs":
        spend(["git", "lfs", "install", "--local"], folder)
        spend(["git", "lfs", "track", "*.safetensors"], folder)
    if tool != "nothing":
        spend(["git", "add", ".gitattributes"], folder)


def commit(folder: Path) -> None:
    spend(["git", "commit", "-q", "-m", "version"], folder)


def measure(tool: str, files: list[Path], work: Path) -> Round:
    """All versions in one repository, and then what a checkout and a status take."""
    found, folder = Round(), work / tool
    start(tool, folder)
    store = folder / (".coral/packs" if tool == "coral" else ".git/lfs")
    for file in files:
        shutil.copyfile(file, folder / FILE)
        os.sync()
        found.hashes.append(spend(["sha256sum", FILE], folder).seconds)
        found.adds.append(spend(["git", "add", FILE], folder))
        commit(folder)
    found.store_bytes = folder_bytes(store)
    (folder / FILE).unlink()
    found.others["checkout"] = spend(["git", "checkout", "--", "."], folder)
    check(folder / FILE, files[-1])
    time.sleep(1.1)  # git compares whole seconds: what it wrote in this one it would look at again
    spend(["git", "status"], folder)
    found.others["status"] = spend(["git", "status"], folder)
    if tool == "coral":
        (folder / FILE).unlink()
        found.others[SKIPPED] = spend(["git", "checkout", "--", "."], folder, CORAL_SKIP_SMUDGE="1")
        found.others["coral pull"] = spend([sys.executable, "-m", "coral", "pull"], folder)
        check(folder / FILE, files[-1])
    return found


def plain_status(file: Path, work: Path) -> Spent:
    """``git status`` of the same tree, tracked by nobody."""
    folder = work / "nothing"
    start("nothing", folder)
    shutil.copyfile(file, folder / FILE)
    spend(["git", "add", FILE], folder)
    commit(folder)
    time.sleep(1.1)
    spend(["git", "status"], folder)
    return spend(["git", "status"], folder)


def check(path: Path, wanted: Path) -> None:
    """Stop everything unless two files are the same."""
    spend(["cmp", str(path), str(wanted)], path.parent)


# -- the table


class Table:
    """The medians over the rounds."""

    def __init__(self, rounds: dict[str, list[Round]], plain: list[Spent]) -> None:
        self.rounds = rounds
        self.plain_status = median(one.seconds for one in plain)

    def add(self, tool: str, number: int) -> Spent:
        """Adding one version."""
        return middle([one.adds[number] for one in self.rounds[tool]])

    def hashing(self, number: int) -> float:
        return median(one.hashes[number] for one in self.rounds["coral"])

    def other(self, tool: str, name: str) -> Spent | None:
        """What else was measured; None for what this tool has not."""
        found = [one.others[name] for one in self.rounds.get(tool, []) if name in one.others]
        return middle(found) if found else None

    def stored(self, tool: str) -> float:
        return median(one.store_bytes for one in self.rounds[tool])

    def worst(self, ratio: Callable[[int], float], names: tuple[str, ...] = VERSIONS) -> float:
        """The largest ratio of any of these versions."""
        return max(ratio(VERSIONS.index(name)) for name in names)


def middle(found: list[Spent]) -> Spent:
    """The median of each figure."""
    return Spent(
        median(one.seconds for one in found),
        median(one.cpu_seconds for one in found),
        int(median(one.peak_bytes for one in found)),
    )


def show(table: Table, nbytes: int) -> None:
    """Print the figures."""
    tools = list(table.rounds)
    print(f"\n| version | sha256sum | {' | '.join(f'git add, {tool}' for tool in tools)} |")
    print(f"|---|---|{'---|' * len(tools)}")
    for number, name in enumerate(VERSIONS):
        adds = [table.add(tool, number) for tool in tools]
        cells = [f"{one.seconds:.2f} s ({one.cpu_seconds:.2f} s of CPU)" for one in adds]
        print(f"| {name} | {table.hashing(number):.2f} s | {' | '.join(cells)} |")
    stores = ", ".join(f"{tool} {table.stored(tool) / 1e6:.0f} MB" for tool in tools)
    print(f"\nstores after five versions of {nbytes / 1e6:.0f} MB: {stores}\n")
    for name in table.rounds["coral"][0].others:
        measured = {tool: found for tool in tools if (found := table.other(tool, name)) is not None}
        cells = [f"{tool} {one.seconds:.3f} s, {one.peak_bytes / 1e6:.0f} MB" for tool, one in measured.items()]
        print(f"{name}: {'; '.join(cells)}")


def promises(table: Table) -> list[str]:
    """Print each promise, and whether it holds; returns those that do not."""
    first = table.add("coral", 0).seconds
    said = [("git add to sha256sum", table.worst(lambda n: table.add("coral", n).seconds / table.hashing(n)), 1.5)]
    if "git-lfs" in table.rounds:
        to_lfs = table.worst(lambda n: table.add("coral", n).seconds / table.add("git-lfs", n).seconds)
        said.append(("git add to git-lfs's", to_lfs, 1.0))
        said.append(("store to git-lfs's", table.stored("coral") / table.stored("git-lfs"), 0.42))
    said.append(
        ("a tenth changed to the first", table.worst(lambda n: table.add("coral", n).seconds / first, TENTH), 0.35)
    )
    said.append(("git's memory on add, MB", table.worst(lambda n: table.add("coral", n).peak_bytes / 1e6), 50))
    skipped, status = table.other("coral", SKIPPED), table.other("coral", "status")
    assert skipped is not None and status is not None
    said.append((f"git's memory, {SKIPPED}, MB", skipped.peak_bytes / 1e6, 50))
    said.append(("git status to that of a plain tree", status.seconds / table.plain_status, 1.2))
    print()
    for name, value, most in said:
        print(f"{'met   ' if value <= most else 'MISSED'} {name}: {value:.2f} (at most {most})")
    return [name for name, value, most in said if value > most]


def main() -> int:
    """Make the versions, measure, and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a model of 1 MB, to see that it runs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    bars.add_argument(parser)
    arguments = parser.parse_args()
    tools = [tool for tool in TOOLS if tool != "git-lfs" or shutil.which("git-lfs")]
    if "git-lfs" not in tools:
        print("git-lfs is not installed: no comparison with it")
    with tempfile.TemporaryDirectory(prefix="coral-bench-git-") as name:
        work, files = Path(name), []
        for number, model in enumerate(versions(arguments.small)):
            files.append(work / f"{number}.safetensors")
            save_file(model, files[-1])
        rounds: dict[str, list[Round]] = {tool: [] for tool in tools}
        plain = []
        for number in range(arguments.runs):
            for tool in tools:
                progress(f"round {number + 1} of {arguments.runs}: {tool}")
                rounds[tool].append(measure(tool, files, work / f"round{number}"))
            plain.append(plain_status(files[-1], work / f"round{number}"))
            shutil.rmtree(work / f"round{number}", ignore_errors=True)
        table = Table(rounds, plain)
        show(table, files[0].stat().st_size)
        missed = promises(table)
        if arguments.json:
            found = {tool: [asdict(one) for one in done] for tool, done in rounds.items()}
            arguments.json.write_text(json.dumps({**facts(work), "rounds": found}, indent=1))
    return bars.status(missed, asked=arguments.bars)


if __name__ == "__main__":
    sys.exit(main())
