"""Ten checkpoints of real trainings, each committed as it comes: coral beside ``save_file`` and beside other tools.

``python -m benchmarks.history [--small] [--series NAME ...] [--runs 3] [--peers] [--zipnn-python PATH] [--json PATH]``.
coral and ``save_file`` + fsync get the same tensors in memory, in one process, turn by turn; coral has its defaults,
so it verifies what it writes and syncs it, and holds its parent's bytes in memory. Every commit is read back and
compared. With ``--peers`` the tools of :mod:`benchmarks.peers` are then given the same checkpoints as files. Medians
are over the checkpoints after the first and over the runs; bytes are those of all ten.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers import FROM_SCRATCH, TOOLS, ZipNN, measure, series_files
from benchmarks.repository import (
    facts,
    folder_bytes,
    forget_peak,
    in_own_process,
    progress,
    resident_peak,
    start_processes,
    sync,
)
from benchmarks.series import SERIES
from benchmarks.training import LARGE, SMALL, Size, add_arguments
from coral import Repository

DISK_BYTES = 256 << 20


@dataclass(frozen=True)
class Turn:
    """One checkpoint kept in one way: seconds of the clock and of all cores, and the bytes that it added."""

    seconds: float
    cpu_seconds: float
    added_bytes: int


@dataclass(frozen=True)
class Kept:
    """Ten checkpoints kept.

    Attributes:
        raw_bytes: of each checkpoint.
        saves, commits: what each took.
        copies: seconds to copy a checkpoint's bytes within memory.
        unchanged: seconds to commit the last one again, five times.
        disk: bytes a second that the disk takes past the page cache, before and after.
        extra_memory: bytes at the peak of the commits, above tensors and parent.
    """

    raw_bytes: list[int]
    saves: list[Turn]
    commits: list[Turn]
    copies: list[float]
    unchanged: list[float]
    disk: list[float]
    extra_memory: int


@contextmanager
def timing(folder: Path) -> Iterator[Callable[[], Turn]]:
    """Measure what happens inside; what is given says how much, afterwards."""
    os.sync()
    before = folder_bytes(folder)
    cpu, clock = time.process_time(), time.perf_counter()
    found: list[Turn] = []
    yield lambda: found[0]
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    found.append(Turn(seconds, cpu_seconds, folder_bytes(folder) - before))


def keep(files: list[Path], work: Path) -> Kept:
    """Commit checkpoints in place of one another, and save each with ``save_file`` in between."""
    repository, plain = work / "repository", work / "plain"
    plain.mkdir()
    disk = [disk_speed(work)]
    live: dict[str, Tensor] = {}
    saves, commits, copies, raw = [], [], [], []
    repo = Repository(repository, init=True)
    extra = 0
    for number, file in enumerate(files):
        change(live, file)
        raw.append(sum(tensor.nbytes for tensor in live.values()))
        base = forget_peak()
        with timing(repository) as commit:
            repo.stage_weights(live)
            repo.commit(f"checkpoint {number}")
        extra = max(extra, resident_peak() - base) if number else 0  # the first one makes the parent's copy
        with timing(plain) as save:
            save_file(live, plain / f"{number}.safetensors")
            sync(plain / f"{number}.safetensors")
        commits.append(commit())
        saves.append(save())
        (plain / f"{number}.safetensors").unlink()
        copies.append(copying(live))
    unchanged = [again(repo, live, repository) for _ in range(5)]
    disk.append(disk_speed(work))
    check(Repository(repository), files)
    return Kept(raw, saves, commits, copies, unchanged, disk, extra)


def change(live: dict[str, Tensor], file: Path) -> None:
    """Make the tensors those of a file, in place, as training would; those of new shapes are replaced."""
    for name, tensor in load_file(file).items():
        if name in live and live[name].shape == tensor.shape:
            live[name].copy_(tensor)
        else:
            live[name] = tensor.clone()


def again(repo: Repository, live: dict[str, Tensor], folder: Path) -> float:
    """Seconds to commit what did not change."""
    with timing(folder) as turn:
        repo.stage_weights(live)
        repo.commit("the same", allow_empty=True)
    return turn().seconds


def copying(live: dict[str, Tensor]) -> float:
    """Seconds to copy all bytes into memory that is warm; the median of three."""
    size = sum(tensor.nbytes for tensor in live.values())
    source, target = numpy.ones(size, numpy.uint8), numpy.ones(size, numpy.uint8)
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        numpy.copyto(target, source)
        seconds.append(time.perf_counter() - clock)
    return statistics.median(seconds)


def disk_speed(folder: Path) -> float:
    """Bytes a second of a large file written past the page cache, where it can be, 8 MiB at a time, and synced."""
    data = mmap.mmap(-1, 8 << 20)
    data.write(os.urandom(1 << 20) * 8)
    place = folder / "disk"
    flags = os.O_WRONLY | os.O_CREAT
    try:
        descriptor = os.open(place, flags | getattr(os, "O_DIRECT", 0))
    except OSError:  # a file system in memory
        descriptor = os.open(place, flags)
    clock = time.perf_counter()
    for _ in range(DISK_BYTES // len(data)):
        os.write(descriptor, data)
    os.fsync(descriptor)
    seconds = time.perf_counter() - clock
    os.close(descriptor)
    place.unlink()
    return DISK_BYTES / seconds


def check(repo: Repository, files: list[Path]) -> None:
    """Every commit holds the bytes of its file."""
    commits = [commit for commit in reversed(list(repo.log())) if commit.subject != "the same"]
    for commit, file in zip(commits, files, strict=True):
        weights = repo.get_all_weights(commit.commit_hash, framework="torch")
        for name, tensor in load_file(file).items():
            found = weights[name]
            assert isinstance(found, Tensor)
            assert torch.equal(as_bytes(found), as_bytes(tensor)), f"{name} of {file}"


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def keep_once(files: list[Path], work: Path) -> Kept:
    """:func:`keep`, in a fresh process and an empty folder."""
    folder = Path(tempfile.mkdtemp(dir=work))
    kept = in_own_process(keep, files, folder)
    shutil.rmtree(folder)
    return kept


@dataclass(frozen=True)
class Line:
    """One way to keep a series: seconds and CPU seconds a checkpoint, bytes of all ten."""

    name: str
    seconds: float
    cpu_seconds: float
    total_bytes: int


def lines_of(runs: list[Kept]) -> list[Line]:
    """``save_file`` and coral over all runs; the first checkpoint has no parent, and is left out of the times."""
    lines = []
    for name, turns in (
        ("save_file + fsync", [kept.saves for kept in runs]),
        ("coral", [kept.commits for kept in runs]),
    ):
        later = [turn for run in turns for turn in run[1:]]
        lines.append(
            Line(
                name,
                statistics.median(turn.seconds for turn in later),
                statistics.median(turn.cpu_seconds for turn in later),
                sum(turn.added_bytes for turn in turns[0]),
            )
        )
    return lines


def peers(files: list[Path], work: Path, zipnn: Path | None) -> Iterator[Line]:
    """The other tools that are there."""
    for tool in TOOLS:
        if isinstance(tool, ZipNN) and zipnn is not None:
            tool = replace(tool, interpreter=zipnn)
        missing = tool.absent()
        if missing is not None:
            print(f"  {tool.name}: skipped, {missing}")
            continue
        added = measure(tool, files, work)
        later = added[1:]
        yield Line(
            tool.name,
            statistics.median(one.seconds for one in later),
            statistics.median(one.cpu_seconds for one in later),
            added[-1].total_bytes,
        )


def show(name: str, runs: list[Kept], lines: list[Line]) -> None:
    """Print a series: the table, and what the commits were like."""
    raw, kept = sum(runs[0].raw_bytes), runs[0]
    save, coral = lines[:2]
    print(f"\n{name}: {len(kept.raw_bytes)} checkpoints, {raw / 1e6:.0f} MB")
    print(f"  {'':<22}{'s':>8}{'CPU s':>8}{'MB of all':>11}{'of raw':>8}{'coral / it':>12}")
    for line in lines:
        share = coral.total_bytes / line.total_bytes
        print(
            f"  {line.name:<22}{line.seconds:>8.3f}{line.cpu_seconds:>8.3f}{line.total_bytes / 1e6:>11.1f}"
            f"{line.total_bytes / raw:>8.3f}{share:>12.2f}"
        )
    one = statistics.median(kept.raw_bytes)
    speed, disk = one / coral.seconds, statistics.median(rate for run in runs for rate in run.disk)
    copy = statistics.median(seconds for run in runs for seconds in run.copies)
    same = statistics.median(seconds for run in runs for seconds in run.unchanged)
    per_second = one / coral.cpu_seconds / 1e6
    shares = [turn.added_bytes / size for turn, size in zip(kept.commits, kept.raw_bytes, strict=True)]
    print(f"  a commit: {coral.seconds / save.seconds:.2f}x the time of save_file; {speed / 1e9:.2f} GB/s, which is")
    print(f"    {speed / disk:.2f}x the disk's {disk / 1e9:.2f} GB/s; {per_second:.0f} MB a CPU second")
    print(f"  unchanged: {one / same / 1e9:.1f} GB/s, {copy / same:.2f}x a copy in memory")
    print(f"  added, of raw: {' '.join(f'{share:.3f}' for share in shares)}; extra memory {memory(runs):.0f} MB")


def memory(runs: list[Kept]) -> float:
    """The most extra memory of a run, in MB."""
    return max(run.extra_memory for run in runs) / 1e6


def run(names: list[str], size: Size, work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure and print each series; every figure, for the file."""
    raw: dict[str, object] = {}
    for name in names:
        files = series_files(name, size, arguments.cache, work)
        runs = []
        for number in range(arguments.runs):
            progress(f"{name}: run {number + 1} of {arguments.runs}")
            runs.append(keep_once(files, work))
        progress("")
        lines = lines_of(runs)
        if arguments.peers:
            lines += peers(files, work, arguments.zipnn_python)
        show(name, runs, lines)
        raw[name] = {"runs": [asdict(one) for one in runs], "lines": [asdict(line) for line in lines]}
    return raw


def main() -> None:
    """Make the checkpoints if need be, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    names = [*SERIES, FROM_SCRATCH]
    parser.add_argument("--series", nargs="+", choices=names, default=names, help="which of them (all)")
    parser.add_argument("--runs", type=int, default=3, help="of each series (%(default)s)")
    parser.add_argument("--peers", action="store_true", help="measure the other tools, too")
    parser.add_argument("--zipnn-python", type=Path, help="a Python that has zipnn")
    parser.add_argument("--json", type=Path, help="write every figure to this file, too")
    arguments = parser.parse_args()
    start_processes(small=arguments.small)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name, value in facts(arguments.cache).items():
        print(f"{name:<12} {value}")
    size = SMALL if arguments.small else LARGE
    with tempfile.TemporaryDirectory(dir=arguments.cache) as work:
        raw = run(arguments.series, size, Path(work), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": facts(arguments.cache), "series": raw}, indent=1))


if __name__ == "__main__":
    main()
