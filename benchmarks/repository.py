"""Saving and loading real checkpoints: coral beside ``save_file`` and ``torch.save``, on the same bytes, in one run.

``python -m benchmarks.repository [--small] [--runs 5] [--json PATH] [--cache DIR]``. Each measurement has a process
of its own, and a round makes each measurement once, so that what else the machine does falls on all alike; the
medians over the rounds are shown. Reads find the page cache warm and touch every page of what they return, since
``load_file`` may only map it. Commits verify what they write, as by default.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import set_start_method
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.training import LARGE, SMALL, Checkpoint, Size, add_arguments, checkpoints
from coral import Repository

P = ParamSpec("P")
T = TypeVar("T")
ONE_TENSOR = "layers.0.linear1.weight"
BYTE = {Tensor: torch.uint8, numpy.ndarray: numpy.uint8}


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds of the clock and of all cores, bytes written or returned, bytes of memory.

    Memory is the peak of the process's resident pages above where they stood with the checkpoint loaded and coral
    not yet used, less the bytes returned. Pages of mapped files count while they are in use, and so do libraries.
    """

    seconds: float
    cpu_seconds: float
    data_bytes: int
    extra_memory: int


@dataclass(frozen=True)
class Job:
    """What a measuring process is told: the round's two checkpoints, a folder, and the repository for reads."""

    size: Size
    before: Checkpoint
    after: Checkpoint
    folder: Path
    repository: Path


def resident_peak() -> int:
    """The most bytes of memory that this process has had resident since :func:`forget_peak`."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> int:
    """Start the peak anew and return the bytes resident now; only Linux can forget, elsewhere the old peak stays."""
    gc.collect()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def _status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(action: Callable[[], object], *, base: int, returned: Callable[[object], int]) -> Sample:
    """Run the action once.

    Args:
        base: what :func:`forget_peak` returned, bytes.
        returned: the bytes of the action's result.
    """
    os.sync()
    cpu, clock = time.process_time(), time.perf_counter()
    result = action()
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    peak = resident_peak()
    size = returned(result)
    return Sample(seconds, cpu_seconds, size, max(0, peak - base - size))


def written(folder: Path, action: Callable[[], object], *, base: int) -> Sample:
    """Run the action once; its bytes are what the folder has grown by."""
    before = folder_bytes(folder)
    sample = measured(action, base=base, returned=lambda _: 0)
    return Sample(sample.seconds, sample.cpu_seconds, folder_bytes(folder) - before, sample.extra_memory)


def folder_bytes(folder: Path) -> int:
    """The bytes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Make a new file durable: its bytes, and its name in its folder."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def flat(model: nn.Module, optimizer: AdamW | None) -> dict[str, Tensor]:
    """All tensors under one name each, as ``save_file`` wants them."""
    tensors = dict(model.state_dict())
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def load(job: Job, *, state: bool) -> tuple[nn.Module, AdamW | None]:
    """The round's later checkpoint, with the optimizer if ``state``."""
    model, optimizer = job.after.load(job.size)
    return model, optimizer if state else None


def write_safetensors(job: Job, *, state: bool) -> Sample:
    """``save_file`` and fsync."""
    tensors, file = flat(*load(job, state=state)), job.folder / "model.safetensors"

    def action() -> None:
        save_file(tensors, file)
        sync(file)

    return written(job.folder, action, base=forget_peak())


def write_torch(job: Job, *, state: bool) -> Sample:
    """``torch.save`` and fsync."""
    model, optimizer = load(job, state=state)
    value = {"model": model.state_dict(), "optimizer": optimizer.state_dict() if optimizer else None}
    file = job.folder / "checkpoint.pt"

    def action() -> None:
        torch.save(value, file)
        sync(file)

    return written(job.folder, action, base=forget_peak())


def write_coral(job: Job, *, state: bool, changed: Callable[[str], bool]) -> Sample:
    """Commit a checkpoint on top of the one before it, of which only the ``changed`` tensors are overwritten."""
    model, optimizer = job.before.load(job.size)
    later_model, later_optimizer = job.after.load(job.size)
    base = forget_peak()
    repo = Repository(job.folder, init=True)

    def commit() -> None:
        repo.stage_weights(model)
        if state:
            repo.stage_state(optimizer.state_dict())
        repo.commit("A checkpoint", allow_empty=True)

    commit()
    names = {parameter: name for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for (parameter, name), later in zip(names.items(), later_model.parameters(), strict=True):
            if changed(name):
                parameter.copy_(later)
                for key, value in later_optimizer.state[later].items():
                    optimizer.state[parameter][key].copy_(value)
    return written(job.folder, commit, base=base)


def everything(_: str) -> bool:
    """Every tensor changed."""
    return True


def nothing(_: str) -> bool:
    """No tensor changed."""
    return False


def one_layer(name: str) -> bool:
    """One transformer layer changed."""
    return name.startswith("layers.1.")


def make_repository(folder: Path, size: Size, checkpoint: Checkpoint) -> None:
    """A repository with this checkpoint's model and optimizer, to read from."""
    model, optimizer = checkpoint.load(size)
    repo = Repository(folder, init=True)
    repo.stage_weights(model)
    repo.stage_state(optimizer.state_dict())
    repo.commit("A checkpoint")


def tensor_bytes(result: object) -> int:
    """The bytes of a mapping's arrays or tensors."""
    assert isinstance(result, Mapping)
    return sum(int(tensor.nbytes) for tensor in result.values())


def touched(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors, each page of them read."""
    for tensor in tensors.values():
        tensor.reshape(-1).view(BYTE[type(tensor)])[::4096].sum()
    return tensors


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that they are in the page cache."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def read(action: Callable[[], Mapping[str, Any]], *, base: int) -> Sample:
    """Run the action once, and touch what it returns."""
    return measured(lambda: touched(action()), base=base, returned=tensor_bytes)


def read_safetensors(job: Job) -> Sample:
    """``load_file`` of the weights."""
    warm([job.after.weights_file])
    return read(lambda: load_file(job.after.weights_file), base=forget_peak())


def read_torch(job: Job) -> Sample:
    """``torch.load`` of the weights."""
    file = job.folder / "model.pt"
    torch.save(load_file(job.after.weights_file), file)
    return read(lambda: torch.load(file, weights_only=True), base=forget_peak())


def read_one_safetensors(job: Job) -> Sample:
    """``safe_open`` and one tensor."""
    warm([job.after.weights_file])

    def action() -> Mapping[str, Tensor]:
        with safe_open(job.after.weights_file, framework="pt") as file:
            return {ONE_TENSOR: file.get_tensor(ONE_TENSOR)}

    return read(action, base=forget_peak())


def read_coral(job: Job, *, framework: str, one: bool) -> Sample:
    """``get_all_weights`` and each tensor of it, or ``get_weight`` of one."""
    warm(path for path in job.repository.rglob("*") if path.is_file())
    base = forget_peak()
    repo = Repository(job.repository)
    repo.get_weight("norm.weight", framework=framework)  # loads the libraries that the first read loads

    def action() -> Mapping[str, Any]:
        if one:
            return {ONE_TENSOR: repo.get_weight(ONE_TENSOR, framework=framework)}
        return dict(repo.get_all_weights(framework=framework))

    return read(action, base=base)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, how, and with which options."""

    label: str
    function: Callable[..., Sample]
    options: Mapping[str, object]


def writing_rows(*, state: bool) -> list[Row]:
    """The ways to save a checkpoint; the first is what the others are compared with."""
    rows = [
        Row("save_file + fsync", write_safetensors, {"state": state}),
        Row("torch.save + fsync", write_torch, {"state": state}),
    ]
    for label, changed in (("all changed", everything), ("one layer changed", one_layer), ("unchanged", nothing)):
        rows.append(Row(f"coral commit, {label}", write_coral, {"state": state, "changed": changed}))
    return rows


GROUPS: dict[str, list[Row]] = {
    "save the weights": writing_rows(state=False),
    "save the weights and AdamW's state": writing_rows(state=True),
    "load the weights": [
        Row("load_file", read_safetensors, {}),
        Row("torch.load", read_torch, {}),
        Row("coral get_all_weights, numpy", read_coral, {"framework": "numpy", "one": False}),
        Row("coral get_all_weights, torch", read_coral, {"framework": "torch", "one": False}),
    ],
    "load one tensor": [
        Row("safe_open, get_tensor", read_one_safetensors, {}),
        Row("coral get_weight, numpy", read_coral, {"framework": "numpy", "one": True}),
        Row("coral get_weight, torch", read_coral, {"framework": "torch", "one": True}),
    ],
}

Samples = dict[str, dict[str, list[Sample]]]


def start_processes(*, small: bool) -> None:
    """Have each measurement begin with a fresh Python; in a smoke run with a fork of this one, which takes no second.

    Whoever forks must not have had threads, so torch gets none.
    """
    set_start_method("fork" if small else "spawn", force=True)
    if small:
        torch.set_num_threads(1)


def in_own_process(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call the function in a process of its own; :func:`start_processes` says how it begins."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(function, *arguments, **options).result()


def run(size: Size, series: list[Checkpoint], work: Path, rounds: int) -> Samples:
    """Every measurement once a round."""
    repository = work / "repository"
    in_own_process(make_repository, repository, size, series[1])
    samples: Samples = {group: {row.label: [] for row in rows} for group, rows in GROUPS.items()}
    for number in range(rounds):
        first = number % (len(series) - 1)
        for group, rows in GROUPS.items():
            for row in rows:
                progress(f"round {number + 1} of {rounds}: {row.label}")
                folder = Path(tempfile.mkdtemp(dir=work))
                job = Job(size, series[first], series[first + 1], folder, repository)
                sample = in_own_process(row.function, job, **row.options)
                samples[group][row.label].append(sample)
                shutil.rmtree(folder)
    progress("")
    return samples


def progress(text: str) -> None:
    """Show what is going on, on a terminal, in place of what was shown before."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}\r", end="", file=sys.stderr, flush=True)


def median(samples: list[Sample]) -> Sample:
    """The median of each column."""
    columns = zip(*(asdict(sample).values() for sample in samples), strict=True)
    seconds, cpu_seconds, data_bytes, extra_memory = map(statistics.median, columns)
    return Sample(seconds, cpu_seconds, int(data_bytes), int(extra_memory))


def show(samples: Samples) -> None:
    """Print the medians; the ratios are to the first row of each group."""
    for group, rows in samples.items():
        print(f"\n{group:<36}{'s':>8}{'CPU s':>8}{'MB':>9}{'extra MB':>10}{'x time':>8}")
        base = median(next(iter(rows.values())))
        for label, values in rows.items():
            sample = median(values)
            print(
                f"  {label:<34}{sample.seconds:>8.3f}{sample.cpu_seconds:>8.3f}{sample.data_bytes / 1e6:>9.2f}"
                f"{sample.extra_memory / 1e6:>10.1f}{sample.seconds / base.seconds:>8.2f}"
            )


def facts(folder: Path) -> dict[str, str]:
    """What a reader must know of the machine to judge the figures."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "coral": version("coral-weights"),
        "file system": file_system(folder),
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, as the kernel calls it."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    found = {line.split()[1]: line.split()[2] for line in mounts.read_text().splitlines()}
    return next(found[str(place)] for place in (folder.resolve(), *folder.resolve().parents) if str(place) in found)


def main() -> None:
    """Make the checkpoints if need be, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median is shown (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every sample to this file, too")
    arguments = parser.parse_args()

    start_processes(small=arguments.small)
    size = SMALL if arguments.small else LARGE
    series = checkpoints(size, arguments.cache, print)
    for name, value in facts(arguments.cache).items():
        print(f"{name:<12} {value}")
    parameters = sum(math.prod(tensor.shape) for tensor in load_file(series[0].weights_file).values())
    print(f"{'model':<12} {parameters / 1e6:.1f} M parameters, fp32; median of {arguments.runs}")
    with tempfile.TemporaryDirectory(dir=arguments.cache) as work:
        samples = run(size, series, Path(work), arguments.runs)
    show(samples)
    print(
        "\nMB: written (by coral: what .coral has grown by), or returned. extra MB: peak of resident memory above"
        "\nwhat the process held with the checkpoint loaded, less what is returned, libraries included."
        "\nx time: to the first line of each group."
    )
    if arguments.json:
        raw = {
            group: {label: [asdict(s) for s in values] for label, values in rows.items()}
            for group, rows in samples.items()
        }
        arguments.json.write_text(json.dumps({"facts": facts(arguments.cache), "samples": raw}, indent=1))


if __name__ == "__main__":
    main()
