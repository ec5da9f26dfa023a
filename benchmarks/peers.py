"""How other tools keep the same ten checkpoints: seconds to add one, and bytes on disk for all of them.

``python -m benchmarks.peers --series fp32-2e-5 [--small] [--cache DIR] [--zipnn-python PATH]``. Each tool gets the
files of a series one after the other. A tool with a command line is given them as users would, under one name in a
working folder that it commits or backs up; writing that file is not in its time, starting its programs is. Others are
a few lines here: they write one file a checkpoint, and the ``XOR delta`` needs the one before to be read again. All
are given their defaults but for what stands in ``TOOLS``, a home folder of their own, and no network.

Time ends when the checkpoint is durable. borg, restic and what is written here sync their files; git-lfs and dvc do
not, so that for them a sync of all file systems counts, as if they did. Files are in the page cache when time starts.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy
import zstandard
from numpy.typing import NDArray
from safetensors.torch import load_file, save, save_file
from torch import Tensor, bfloat16, float32, from_numpy, int16, int32

from benchmarks.repository import flat, folder_bytes, progress, sync, warm
from benchmarks.series import PRETRAINED, SERIES, series
from benchmarks.training import LARGE, SMALL, Size, add_arguments, checkpoints

FROM_SCRATCH = "from-scratch"  # weights and AdamW's state of benchmarks.training
FILE = "model.safetensors"
HOST = "PATH", "TMPDIR"  # what of this process's environment the tools see


@dataclass(frozen=True)
class Added:
    """One checkpoint added to a tool's store: seconds of the clock and of all cores, and the bytes on disk then."""

    seconds: float
    cpu_seconds: float
    total_bytes: int


class Tool(Protocol):
    """A way to keep checkpoints, in a folder that it has to itself."""

    @property
    def name(self) -> str: ...

    def absent(self) -> str | None:
        """Why the tool cannot be measured here, or None."""
        ...

    def version(self) -> str:
        """The version of the tool, or of what does its work."""
        ...

    def start(self, folder: Path) -> None:
        """Make an empty store."""
        ...

    def add(self, folder: Path, file: Path, previous: Path | None) -> tuple[float, float]:
        """Keep one more checkpoint; the seconds of the clock and of all cores that it took.

        Args:
            previous: the checkpoint added before, if there is one.
        """
        ...

    def stored(self, folder: Path) -> int:
        """The bytes on disk that the checkpoints so far need."""
        ...


@dataclass(frozen=True)
class Program:
    """A tool with a command line.

    Attributes:
        needs: programs on the path.
        asking: the command that prints its version.
        setup: commands that make an empty store, in a folder that holds nothing.
        commands: those that keep ``FILE`` as it is now.
        kept: the folders that count.
        syncs: whether the tool itself makes what it writes durable.
    """

    name: str
    needs: tuple[str, ...]
    asking: str
    setup: tuple[str, ...]
    commands: tuple[str, ...]
    kept: tuple[str, ...]
    syncs: bool

    def absent(self) -> str | None:
        missing = [program for program in self.needs if shutil.which(program) is None]
        return f"no {' and no '.join(missing)} on the path" if missing else None

    def version(self) -> str:
        with tempfile.TemporaryDirectory() as home:
            answer = run(shlex.split(self.asking), Path(home), environment(Path(home)))
        number = re.search(r"\d+(\.\d+)+", answer)
        return number[0] if number else answer.strip()

    def start(self, folder: Path) -> None:
        for place in (folder / "tree", folder / "home"):
            place.mkdir()
        self._run(folder, self.setup)

    def add(self, folder: Path, file: Path, previous: Path | None) -> tuple[float, float]:
        shutil.copyfile(file, folder / "tree" / FILE)

        def action() -> None:
            self._run(folder, self.commands)
            if not self.syncs:
                os.sync()

        return timed(action)

    def stored(self, folder: Path) -> int:
        return sum(folder_bytes(folder / "tree" / place) for place in self.kept)

    def _run(self, folder: Path, commands: tuple[str, ...]) -> None:
        for command in commands:
            run(shlex.split(command), folder / "tree", environment(folder / "home"))


@dataclass(frozen=True)
class Encoder:
    """A way to write one file a checkpoint, in this process: it is given the file, the previous one, and the target."""

    name: str
    encode: Callable[[Path, Path | None, Path], None]

    def absent(self) -> str | None:
        return None

    def version(self) -> str:
        return f"zstandard {zstandard.__version__}"

    def start(self, folder: Path) -> None:
        pass

    def add(self, folder: Path, file: Path, previous: Path | None) -> tuple[float, float]:
        target = next_file(folder)

        def action() -> None:
            self.encode(file, previous, target)
            sync(target)

        return timed(action)

    def stored(self, folder: Path) -> int:
        return folder_bytes(folder)


@dataclass(frozen=True)
class ZipNN:
    """The zipnn package, each tensor on its own and with all cores, as its own script for safetensors files does.

    It runs in a process of its own, whose start is not in its time.

    Attributes:
        interpreter: a Python that has zipnn; needed if this one has not.
    """

    interpreter: Path | None = None
    name: str = "zipnn"

    def absent(self) -> str | None:
        if self.interpreter is None and importlib.util.find_spec("zipnn") is None:
            return "no zipnn in this Python, and no --zipnn-python"
        return None

    def version(self) -> str:
        ask = "import importlib.metadata; print(importlib.metadata.version('zipnn'))"
        return self._python("-c", ask).strip()

    def start(self, folder: Path) -> None:
        pass

    def add(self, folder: Path, file: Path, previous: Path | None) -> tuple[float, float]:
        os.sync()
        seconds, cpu_seconds = self._python("-c", ZIPNN_PROGRAM, str(file), str(next_file(folder))).split()
        return float(seconds), float(cpu_seconds)

    def stored(self, folder: Path) -> int:
        return folder_bytes(folder)

    def _python(self, *arguments: str) -> str:
        with tempfile.TemporaryDirectory() as home:
            command = [str(self.interpreter or sys.executable), *arguments]
            return run(command, Path(home), environment(Path(home)))


ZIPNN_PROGRAM = """
import os, sys, time
import torch
from safetensors.torch import load_file, save_file
from zipnn import ZipNN

source, target = sys.argv[1:]
clock, cpu = time.perf_counter(), time.process_time()
packed = {}
for name, tensor in load_file(source).items():
    coded = ZipNN(method="HUFFMAN", input_format="torch").compress(tensor)
    packed[name] = torch.frombuffer(bytearray(coded), dtype=torch.uint8)
save_file(packed, target)
for place in (target, os.path.dirname(target)):
    descriptor = os.open(place, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
print(time.perf_counter() - clock, time.process_time() - cpu)
"""


def next_file(folder: Path) -> Path:
    """The name of the next checkpoint's file."""
    return folder / f"{sum(1 for _ in folder.iterdir()):04}"


def environment(home: Path) -> dict[str, str]:
    """What a tool sees: no configuration but what its own commands made, no name to ask for, no password."""
    author = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "benchmark"), ("EMAIL", "benchmark@localhost"))
    }
    return author | {
        **{name: os.environ[name] for name in HOST if name in os.environ},
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "RESTIC_PASSWORD": "benchmark",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
    }


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command prints; what it complains of goes into the error if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command[:2])} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Run the action once; the seconds of the clock, and of all cores with the processes that it waited for."""
    os.sync()
    cpu, clock = cpu_seconds(), time.perf_counter()
    action()
    return time.perf_counter() - clock, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """What this process and those it waited for have used so far."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compress(file: Path, previous: Path | None, target: Path, *, level: int) -> None:
    """The file through zstd, in one frame and on one core."""
    target.write_bytes(zstandard.ZstdCompressor(level=level).compress(file.read_bytes()))


def xor_delta(file: Path, previous: Path | None, target: Path) -> None:
    """Each tensor's bits XORed with those of the previous checkpoint, its exponents and the rest through zstd apart.

    Tensors that the previous one lacks, or has in another shape, go through zstd as they are; so does the first file.
    """
    if previous is None:
        compress(file, None, target, level=3)
        return
    compressor = zstandard.ZstdCompressor(level=3)
    before, streams, others = load_file(previous), dict[str, bytes](), dict[str, Tensor]()
    for name, tensor in load_file(file).items():
        old = before.get(name)
        if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype or tensor.dtype not in SPLIT:
            others[name] = tensor
            continue
        for part, stream in SPLIT[tensor.dtype](tensor, old):
            streams[f"{name}.{part}"] = compressor.compress(stream.data)
    streams["others"] = compressor.compress(save(others))
    save_file({name: from_numpy(numpy.frombuffer(stream, "u1").copy()) for name, stream in streams.items()}, target)


Streams = Iterator[tuple[str, NDArray[numpy.uint8]]]


def split_float32(tensor: Tensor, old: Tensor) -> Streams:
    """The XOR's exponent bytes, and its sign and mantissa: three bytes a number, first all the highest ones."""
    number = (tensor.view(int32) ^ old.view(int32)).numpy().reshape(-1).view("u4")
    yield "exponent", (number >> 23).astype("u1")
    high = (number >> 16).astype("u1") & 0x7F | (number >> 24).astype("u1") & 0x80
    yield "rest", numpy.concatenate([high, (number >> 8).astype("u1"), number.astype("u1")])


def split_bfloat16(tensor: Tensor, old: Tensor) -> Streams:
    """The XOR's exponent bytes, and its sign and mantissa, a byte a number."""
    number = (tensor.view(int16) ^ old.view(int16)).numpy().reshape(-1).view("u2")
    yield "exponent", (number >> 7).astype("u1")
    yield "rest", (number & 0x7F | number >> 8 & 0x80).astype("u1")


SPLIT = {float32: split_float32, bfloat16: split_bfloat16}

GIT_LFS = Program(
    "git-lfs",
    needs=("git", "git-lfs"),
    asking="git lfs version",
    setup=("git init -q", "git lfs install --local", f"git lfs track {FILE}", "git add .gitattributes"),
    commands=(f"git add {FILE}", "git commit -q -m checkpoint"),
    kept=(".git",),
    syncs=False,
)
DVC = Program(
    "dvc",
    needs=("git", "dvc"),
    asking="dvc --version",
    setup=("git init -q", "dvc init -q", "dvc config core.check_update false", "git commit -q -m start"),
    commands=(f"dvc add -q {FILE}", f"git add {FILE}.dvc .gitignore", "git commit -q -m checkpoint"),
    kept=(".dvc/cache", ".git"),
    syncs=False,
)
BORG = Program(
    "borg, zstd,3",
    needs=("borg",),
    asking="borg --version",
    setup=("borg init --encryption none ../repository",),
    commands=(f"borg create --compression zstd,3 ../repository::{{uuid4}} {FILE}",),
    kept=("../repository",),
    syncs=True,
)
RESTIC = Program(
    "restic, auto",
    needs=("restic",),
    asking="restic version",
    setup=("restic init --repo ../repository --repository-version 2",),
    commands=(f"restic backup --quiet --repo ../repository --compression auto {FILE}",),
    kept=("../repository",),
    syncs=True,
)
TOOLS: tuple[Tool, ...] = (
    GIT_LFS,
    DVC,
    BORG,
    RESTIC,
    Encoder("zstd -9", partial(compress, level=9)),
    ZipNN(),
    Encoder("XOR delta, zstd -3", xor_delta),
)


def measure(tool: Tool, files: list[Path], work: Path) -> list[Added]:
    """Give a tool the checkpoints one after the other, in a new folder below ``work``."""
    folder = Path(tempfile.mkdtemp(dir=work))
    tool.start(folder)
    added: list[Added] = []
    for number, file in enumerate(files):
        progress(f"{tool.name}: {number + 1} of {len(files)}")
        before = files[number - 1] if number else None
        warm(path for path in (before, file) if path)
        seconds, cpu_seconds = tool.add(folder, file, before)
        added.append(Added(seconds, cpu_seconds, tool.stored(folder)))
    progress("")
    shutil.rmtree(folder)
    return added


def series_files(name: str, size: Size, cache: Path, work: Path) -> list[Path]:
    """The files of a series; those of ``FROM_SCRATCH``, with AdamW's state, are written below ``work``."""
    say = partial(print, flush=True)
    if name != FROM_SCRATCH:
        return series(name, size, cache, say)
    files: list[Path] = []
    for checkpoint in checkpoints(size, cache, say):
        files.append(work / checkpoint.folder.name / FILE)
        files[-1].parent.mkdir()
        save_file(flat(*checkpoint.load(size)), files[-1])
    return files


def show(tool: Tool, added: list[Added], raw: int) -> None:
    """Print a row: medians of a checkpoint's time, and what all need on the disk."""
    seconds = statistics.median(one.seconds for one in added)
    cpu_seconds = statistics.median(one.cpu_seconds for one in added)
    total = added[-1].total_bytes
    row = f"{tool.name:<20}{seconds:>8.2f}{cpu_seconds:>8.2f}{total / 1e6:>10.1f}{total / raw:>8.3f}  {tool.version()}"
    print(row, flush=True)


def main() -> None:
    """Make the series if need be, and measure the tools that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--series", choices=(FROM_SCRATCH, PRETRAINED, *SERIES), default="fp32-2e-5")
    parser.add_argument("--zipnn-python", type=Path, help="a Python that has zipnn, if this one has not")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as work:
        size = SMALL if arguments.small else LARGE
        files = series_files(arguments.series, size, arguments.cache, Path(work))
        raw = sum(file.stat().st_size for file in files)
        load = ", ".join(f"{load:.2f}" for load in os.getloadavg())
        print(f"{size.name} {arguments.series}: {len(files)} checkpoints, {raw / 1e6:.1f} MB; load before: {load}")
        print(f"{'':<20}{'s':>8}{'CPU s':>8}{'MB':>10}{'of raw':>8}  version", flush=True)
        for tool in TOOLS:
            if isinstance(tool, ZipNN):
                tool = ZipNN(arguments.zipnn_python)
            if reason := tool.absent():
                print(f"{tool.name:<20}skipped: {reason}", flush=True)
            else:
                show(tool, measure(tool, files, Path(work)), raw)
    print("s, CPU s: median of a checkpoint. MB: on the disk for all of them.")


if __name__ == "__main__":
    main()
