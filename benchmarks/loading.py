"""Reading weights back: coral beside ``torch.load``, ``load_file`` and ``cp``, on the same bytes, in one run.

``python -m benchmarks.loading [--small] [--runs 5] [--bars] [--json PATH] [--cache DIR]``. The repository holds the
ten commits of the series ``fp32-2e-5``. A commit's depth is how many others must be decoded before it can be: 0 stands
alone, 4 is the deepest that coral writes. Each measurement has a process of its own and a round makes each measurement
once; the medians over the rounds are shown. Libraries are loaded before time starts, by reading a few bytes in the
same way; repository objects are fresh. What was read is compared with the series' file every time, outside of the
time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import bars
from benchmarks.bars import MET, verdict
from benchmarks.repository import (
    ONE_TENSOR,
    Sample,
    facts,
    forget_peak,
    in_own_process,
    measured,
    median,
    progress,
    start_processes,
    sync,
    warm,
)
from benchmarks.series import series
from benchmarks.training import LARGE, SMALL, Size, add_arguments
from coral import Repository

SERIES = "fp32-2e-5"
FILE = "model.safetensors"
FEW_TORCH, FEW_SAFETENSORS = "few.pt", "few.safetensors"
DEPTHS = (0, 1, 4)
MOST_MEMORY = 150e6
ONE_TENSOR_SECONDS, ONE_TENSOR_RATE = 0.010, 0.5e9  # at most: a fixed part, and bytes a second of the rest


@dataclass(frozen=True)
class Place:
    """What a measuring process is told: where everything is that :func:`prepare` made, and the model's size.

    The repository ``main`` has a tag :func:`tag` for each of ``DEPTHS``; in its copy ``repacked`` all of them stand
    alone. Beside them lie the same weights as safetensors and as ``torch.save`` writes them; in ``tiny`` a few
    bytes in all three forms.
    """

    size: Size
    work: Path

    @property
    def main(self) -> Path:
        return self.work / "main"

    @property
    def repacked(self) -> Path:
        return self.work / "repacked"

    @property
    def tiny(self) -> Path:
        return self.work / "tiny"

    def plain(self, depth: int, suffix: str = ".safetensors") -> Path:
        """The weights of the commit of a depth, as a plain file."""
        return self.work / f"depth-{depth}{suffix}"


def tag(depth: int) -> str:
    """The tag of the commit of a depth."""
    return f"depth-{depth}"


# -- what is read


def prepare(place: Place, files: list[Path]) -> None:
    """Make the repositories and the plain files."""
    repo = Repository(place.main, init=True)
    model = place.size.model()
    for file in files:
        model.load_state_dict(load_file(file))
        repo.stage_weights(model)
        commit = repo.commit(file.parent.name).commit_hash
        depth = depth_of(repo, commit)
        if depth in DEPTHS and tag(depth) not in repo.tags():
            repo.tag(tag(depth), commit)
            save_file(load_file(file), place.plain(depth), metadata={"format": "pt"})  # as coral says of them, too
            torch.save(model.state_dict(), place.plain(depth, ".pt"))
    missing = [depth for depth in DEPTHS if tag(depth) not in repo.tags()]
    if missing:
        raise SystemExit(f"{SERIES}: no commit of the depths {missing}")
    shutil.copytree(place.main, place.repacked)
    Repository(place.repacked).maintenance.repack()
    if any(depth_of(Repository(place.repacked), tag(depth)) for depth in DEPTHS):
        raise SystemExit("repack left a delta at a tag")
    tiny = Repository(place.tiny, init=True)
    tiny.stage_weights(few_bytes())
    tiny.commit("a few bytes")
    torch.save(few_bytes().state_dict(), place.tiny / FEW_TORCH)
    save_file(few_bytes().state_dict(), place.tiny / FEW_SAFETENSORS)


def few_bytes() -> nn.Module:
    """What is loaded before time starts."""
    return nn.Linear(64, 64)


def depth_of(repo: Repository, ref: str) -> int:
    """The most bases that any chunk of a commit stands on."""
    records = [record for part in repo.parts(ref).values() for record in part.records]
    return max(len(repo.store.bases_of(chunk)) for record in records for chunk in repo.store.chunk_ids(record))


def check(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Stop everything unless the tensors are those of the file, bit for bit."""
    wanted = load_file(file)
    for name, tensor in tensors.items():
        if not torch.equal(as_bytes(tensor), as_bytes(wanted[name])):
            raise SystemExit(f"{name}: not the bytes of {file.name}")


def as_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes; a view."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def files_in(folder: Path) -> list[Path]:
    """All files of a repository."""
    return [path for path in (folder / ".coral").rglob("*") if path.is_file()]


def forget_files(paths: list[Path]) -> None:
    """Drop files from the page cache, so that they are read from the disk."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# -- the measurements


def into_model(
    place: Place,
    depth: int,
    prelude: Callable[[], object],
    load: Callable[[nn.Module], object],
    *,
    hooked: bool = False,
) -> Sample:
    """Load into an existing model, and check it.

    Args:
        prelude: what comes before time starts; the libraries that it loads count as memory.
        hooked: the model has a hook of its own, so that only its own ``load_state_dict`` may fill it.
    """
    model = place.size.model()
    if hooked:
        model.register_load_state_dict_post_hook(lambda module, keys: None)  # type: ignore[no-untyped-call]
    base = forget_peak()
    prelude()
    sample = measured(lambda: load(model), base=base, returned=lambda _: 0)
    check(model.state_dict(), place.plain(depth))
    return sample


def load_torch(place: Place, *, hooked: bool = False) -> Sample:
    """``torch.load`` and ``load_state_dict``."""
    file = place.plain(0, ".pt")

    def load(model: nn.Module, source: Path) -> None:
        model.load_state_dict(torch.load(source, mmap=False, weights_only=True))

    def prelude() -> None:
        load(few_bytes(), place.tiny / FEW_TORCH)
        warm([file])

    return into_model(place, 0, prelude, lambda model: load(model, file), hooked=hooked)


def load_safetensors(place: Place, *, cold: bool = False, hooked: bool = False) -> Sample:
    """``load_file`` and ``load_state_dict``."""
    file = place.plain(0)

    def prelude() -> None:
        few_bytes().load_state_dict(load_file(place.tiny / FEW_SAFETENSORS))
        forget_files([file]) if cold else warm([file])

    return into_model(place, 0, prelude, lambda model: model.load_state_dict(load_file(file)), hooked=hooked)


def load_coral(place: Place, *, depth: int, cold: bool = False, hooked: bool = False) -> Sample:
    """``load_into``; from a cold cache opening the repository is in the time, as it reads files, too."""
    opened: list[Repository] = []

    def prelude() -> None:
        Repository(place.tiny).load_into(few_bytes())
        if cold:
            forget_files(files_in(place.main))
        else:
            warm(files_in(place.main))
            opened.append(Repository(place.main))

    def load(model: nn.Module) -> None:
        repo = opened[0] if opened else Repository(place.main)
        repo.load_into(model, tag(depth))

    return into_model(place, depth, prelude, load, hooked=hooked)


def copy_file(place: Place) -> Sample:
    """``shutil.copyfile`` and fsync of the file and its folder."""
    folder = Path(tempfile.mkdtemp(dir=place.work))
    source, target = place.plain(DEPTHS[-1]), folder / FILE
    warm([source])

    def action() -> None:
        shutil.copyfile(source, target)
        sync(target)

    sample = measured(action, base=forget_peak(), returned=lambda _: 0)
    shutil.rmtree(folder)
    return sample


def checkout(place: Place, *, program: bool) -> Sample:
    """``repo.checkout`` of the file of a tag after ``repack``, or ``coral checkout``, its start included."""
    target = place.repacked / FILE
    base = forget_peak()
    Repository(place.tiny).checkout("main", FILE, force=True)
    warm(files_in(place.repacked))
    repo, name = Repository(place.repacked), tag(DEPTHS[-1])
    command = [sys.executable, "-m", "coral", "checkout", name, FILE]

    def action() -> None:
        if program:
            subprocess.run(command, cwd=place.repacked, check=True, stdout=subprocess.DEVNULL)
        else:
            repo.checkout(name, FILE)

    before = os.times()
    sample = measured(action, base=base, returned=lambda _: 0)
    after = os.times()
    if program:
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        sample = replace(sample, cpu_seconds=spent, extra_memory=-1)  # of another process, so not known
    if target.read_bytes() != place.plain(DEPTHS[-1]).read_bytes():
        raise SystemExit("the file that was checked out has other bytes")
    target.unlink()
    return sample


def one_safetensors(place: Place) -> Sample:
    """``safe_open`` and one tensor."""
    file = place.plain(0)

    def one(source: Path, name: str) -> Tensor:
        with safe_open(source, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name).clone()  # or none of it would be read yet
        return tensor

    base = forget_peak()
    one(place.tiny / FEW_SAFETENSORS, "weight")
    warm([file])
    return measured(lambda: one(file, ONE_TENSOR), base=base, returned=tensor_bytes)


def one_coral(place: Place, *, depth: int) -> Sample:
    """``get_weight``, by an object that has read nothing yet."""
    base = forget_peak()
    Repository(place.tiny).get_weight("weight", framework="torch")
    warm(files_in(place.main))
    repo = Repository(place.main)
    found: list[Tensor] = []

    def action() -> Tensor:
        tensor = repo.get_weight(ONE_TENSOR, tag(depth), framework="torch")
        assert isinstance(tensor, Tensor)
        found.append(tensor)
        return tensor

    sample = measured(action, base=base, returned=tensor_bytes)
    check({ONE_TENSOR: found[0]}, place.plain(depth))
    return sample


def tensor_bytes(result: object) -> int:
    """The bytes of one tensor."""
    assert isinstance(result, Tensor)
    return result.nbytes


# -- the bars


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach.

    Attributes:
        text: the bar, as it is shown.
        value: of a measurement and of its group's first, the number to be compared.
        limit: of a measurement, what to compare with.
        at_least: the number must not be smaller than the limit; else, not larger.
        shown: how the number is shown when the bar was missed.
    """

    text: str
    value: Callable[[Sample, Sample], float]
    limit: Callable[[Sample], float]
    at_least: bool
    shown: Callable[[float], str]

    def verdict(self, sample: Sample, base: Sample) -> str:
        """Whether the measurement reaches the bar."""
        return verdict(self.value(sample, base), self.limit(sample), self.shown, at_least=self.at_least)


def ratio(value: float) -> str:
    """A ratio, as it is shown."""
    return f"{value:.3f}x"


def speed(least: float) -> Bar:
    """At least so many times as fast as the group's first."""
    return Bar(f"speed >= {least}x", lambda s, base: base.seconds / s.seconds, lambda _: least, True, ratio)


def time(most: float) -> Bar:
    """At most so many times the time of the group's first."""
    return Bar(f"time <= {most}x", lambda s, base: s.seconds / base.seconds, lambda _: most, False, ratio)


MEMORY = Bar("<= 150 MB", lambda s, _: s.extra_memory, lambda _: MOST_MEMORY, False, lambda v: f"{v / 1e6:.0f} MB")
ONE = Bar(
    "10 ms + 2 ms/MB",
    lambda s, _: s.seconds,
    lambda s: ONE_TENSOR_SECONDS + s.data_bytes / ONE_TENSOR_RATE,
    False,
    lambda value: f"{value * 1e3:.1f} ms",
)


# -- the table


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, how, and what it must reach."""

    label: str
    measure: Callable[[Place], Sample]
    bars: tuple[Bar, ...] = ()


SPEEDS = {0: 1.2, 1: 0.5, 4: 0.2}
GROUPS: dict[str, list[Row]] = {
    "into a model, page cache warm": [
        Row("torch.load + load_state_dict", load_torch),
        Row("load_file + load_state_dict", load_safetensors),
        *(
            Row(f"coral load_into, depth {depth}", partial(load_coral, depth=depth), (speed(SPEEDS[depth]), MEMORY))
            for depth in DEPTHS
        ),
    ],
    "into a model, page cache cold": [
        Row("load_file + load_state_dict", partial(load_safetensors, cold=True)),
        Row("coral load_into, depth 0", partial(load_coral, depth=0, cold=True), (speed(1.0), MEMORY)),
    ],
    "into a model with hooks, warm": [
        Row("torch.load + load_state_dict", partial(load_torch, hooked=True)),
        Row("load_file + load_state_dict", partial(load_safetensors, hooked=True)),
        Row("coral load_into, depth 0", partial(load_coral, depth=0, hooked=True), (time(1.3),)),
    ],
    "one file of a tag, repacked": [
        Row("copyfile + fsync", copy_file),
        Row("coral repo.checkout", partial(checkout, program=False), (time(1.2),)),
        Row("coral checkout, as a program", partial(checkout, program=True)),
    ],
    "one tensor": [
        Row("safe_open, get_tensor, clone", one_safetensors),
        *(Row(f"coral get_weight, depth {depth}", partial(one_coral, depth=depth), (ONE,)) for depth in (0, 4)),
    ],
}

Samples = dict[str, dict[str, list[Sample]]]


def run(place: Place, rounds: int) -> Samples:
    """Every measurement once a round."""
    samples: Samples = {group: {row.label: [] for row in rows} for group, rows in GROUPS.items()}
    for number in range(rounds):
        for group, rows in GROUPS.items():
            for row in rows:
                progress(f"round {number + 1} of {rounds}: {row.label}")
                sample = in_own_process(row.measure, place)
                assert sample is not None
                samples[group][row.label].append(sample)
    progress("")
    return samples


def show(samples: Samples) -> list[str]:
    """Print the medians; the ratios are to the first row of each group. Returns the bars that are missed."""
    missed = []
    for group, rows in GROUPS.items():
        print(f"\n{group:<31}{'ms':>8}{'CPU ms':>8}{'extra MB':>10}{'speed':>8}   bar")
        base = median(samples[group][rows[0].label])
        for row in rows:
            sample = median(samples[group][row.label])
            extra = f"{sample.extra_memory / 1e6:.1f}" if sample.extra_memory >= 0 else "-"
            print(
                f"  {row.label:<29}{sample.seconds * 1e3:>8.1f}{sample.cpu_seconds * 1e3:>8.1f}{extra:>10}"
                f"{base.seconds / sample.seconds:>7.2f}x",
                end="",
            )
            for place, bar in enumerate(row.bars):
                indent = "\n" + " " * 65 if place else ""
                found = bar.verdict(sample, base)
                missed += [] if found == MET else [f"{row.label}, {bar.text}"]
                print(f"{indent}   {bar.text:<17}{found}", end="")
            print()
    return missed


def main() -> int:
    """Make the series if need be, measure, and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median is shown (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every sample to this file, too")
    bars.add_argument(parser)
    arguments = parser.parse_args()

    start_processes(small=arguments.small)
    size = SMALL if arguments.small else LARGE
    files = series(SERIES, size, arguments.cache, print)
    known = facts(arguments.cache)
    for name, value in known.items():
        print(f"{name:<12} {value}")
    print(f"{'weights':<12} {files[0].stat().st_size / 1e6:.1f} MB, fp32; median of {arguments.runs}")
    with tempfile.TemporaryDirectory(dir=arguments.cache) as work:
        place = Place(size, Path(work))
        in_own_process(prepare, place, files)
        samples = run(place, arguments.runs)
    missed = show(samples)
    print(
        "\nextra MB: peak of resident memory above what the process held with the model and torch loaded, less what is"
        "\nreturned; libraries, and pages of mapped files while in use, count. speed: of the first line of each group."
    )
    if arguments.json:
        raw = {
            group: {label: [asdict(s) for s in values] for label, values in rows.items()}
            for group, rows in samples.items()
        }
        arguments.json.write_text(json.dumps({"facts": known, "samples": raw}, indent=1))
    return bars.status(missed, asked=arguments.bars)


if __name__ == "__main__":
    sys.exit(main())
