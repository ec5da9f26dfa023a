"""What a training loop feels: saving beside the training, very many tensors, very many commits.

``python -m benchmarks.loop [--only wait|tiny|many|guard] [--small] [--runs 5] [--commits 2000] [--pairs 200] [--bars]
[--json PATH] [--cache DIR]``

* ``wait``: a transformer and its AdamW state are trained and saved with ``wait=False``: how long the call holds the
  training up, beside one copy of the same bytes, and what a training step takes while the commit is being made.
* ``tiny``: 5,000 tensors of 64 numbers, all of them changed between two commits.
* ``many``: thousands of commits of a small model, and what a new process then finds.
* ``guard``: what it costs a small commit that no interrupt reaches it: pairs of saves, one as it is, by another thread
  while this one waits, and one in place.

Each part has processes of its own. What is compared is done by turns in one of them, so that what else the machine
does falls on all alike; medians are shown. Everything is durable when its time ends.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import bars
from benchmarks.bars import MET, verdict
from benchmarks.loading import files_in, ratio
from benchmarks.repository import (
    facts,
    flat,
    folder_bytes,
    forget_peak,
    in_own_process,
    measured,
    progress,
    resident_peak,
    start_processes,
    sync,
    warm,
)
from benchmarks.series import advance
from benchmarks.training import LARGE, SMALL, Checkpoint, Size, add_arguments, checkpoints
from coral import PendingCommit, Repository, threads
from examples.train_and_pick_best import standard_library_text

PARTS = ("wait", "tiny", "many", "guard")
WARMING = 2  # saves until every buffer is there
FREE_STEPS = 4  # measured before each commit
TINY_COUNT, TINY_COUNT_SMALL, TINY_SIZE = 5_000, 200, 64
ENDS = 100  # commits at the beginning and at the end that are compared
SHOWN = 20  # commits of a log

Figures = dict[str, list[float]]
"""What was measured: seconds unless the name says otherwise."""


class Table:
    """Prints one line a figure: what, how much, the bar, and whether it is met; keeps all figures that it is given."""

    def __init__(self) -> None:
        self.figures: dict[str, Figures] = {}
        self.missed: list[str] = []

    def keep(self, name: str, figures: Figures) -> Figures:
        """Keep what was measured, for ``--json``."""
        self.figures[name] = figures
        progress("")
        return figures

    def head(self, text: str) -> None:
        """The line above a group."""
        print(f"\n{text}", flush=True)

    def line(self, what: str, value: str, bar: str = "", verdict: str = "") -> None:
        """One row."""
        self.missed += [what.strip()] if verdict not in ("", MET) else []
        print(f"  {what:<56}{value:>12}   {bar:<11}{verdict}".rstrip(), flush=True)

    def ratio(self, what: str, value: float, most: float) -> None:
        """A row with a ratio that must not be larger than the bar."""
        self.line(what, ratio(value), f"<= {most}x", verdict(value, most, ratio))


def ms(seconds: float) -> str:
    """Seconds, as they are shown."""
    return f"{seconds * 1e3:.1f} ms"


def mb(count: float) -> str:
    """Bytes, as they are shown."""
    return f"{count / 1e6:.1f} MB"


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@torch.no_grad()
def nudge(tensors: Iterable[Tensor]) -> None:
    """Change every number a little, as a step of training does."""
    for tensor in tensors:
        tensor.add_(torch.randn_like(tensor), alpha=1e-4)


# -- saving beside the training


class Training:
    """A model in training, and the repository that it is saved to."""

    def __init__(self, folder: Path, size: Size, checkpoint: Checkpoint) -> None:
        self.size = size
        self.model, self.optimizer = checkpoint.load(size)
        self.text, _ = standard_library_text()
        self.repo = Repository(folder, init=True)
        self.saved = 0

    def warm(self) -> None:
        """Save until every buffer is there."""
        for _ in range(WARMING):
            self.step()
            self.save().result()

    def step(self) -> None:
        """One training step."""
        advance(self.model, self.optimizer, self.text, self.size, 1)

    def save(self) -> PendingCommit:
        """Save all of it, and do not wait."""
        self.saved += 1
        return self.repo.save(self.model, self.optimizer, step=self.saved, wait=False)

    def save_and_wait(self) -> None:
        """Save all of it as by default."""
        self.saved += 1
        self.repo.save(self.model, self.optimizer, step=self.saved)

    def tensors(self) -> Iterable[Tensor]:
        """What is saved, live."""
        return flat(self.model, self.optimizer).values()


def stalls(folder: Path, rounds: int, size: Size, checkpoint: Checkpoint) -> Figures:
    """What the call takes, and one copy of the same bytes, by turns; nothing runs beside them."""
    training = Training(folder / "stalls", size, checkpoint)
    training.step()
    copies = [tensor.clone() for tensor in training.tensors()]
    forget_peak()
    training.step()
    base = resident_peak()  # a step's own needs are not the commit's
    training.warm()
    figures: Figures = {"copy": [], "call": [], "cpu": [], "copy cpu": []}

    def copy() -> None:
        cpu, started = time.process_time(), time.perf_counter()
        for into, tensor in zip(copies, training.tensors(), strict=True):
            into.copy_(tensor)
        figures["copy"].append(time.perf_counter() - started)
        figures["copy cpu"].append(time.process_time() - cpu)

    def call() -> None:
        cpu, started = time.process_time(), time.perf_counter()
        pending = training.save()
        figures["call"].append(time.perf_counter() - started)
        pending.result()
        figures["cpu"].append(time.process_time() - cpu)

    for number in range(2 * rounds):
        progress(f"{number + 1} of {2 * rounds}: the call")
        for action in (copy, call) if number % 2 else (call, copy):
            training.step()
            os.sync()
            action()
    figures["bytes"] = [sum(copy.nbytes for copy in copies)]
    figures["extra bytes of memory"] = [resident_peak() - base]
    return figures


def steps(folder: Path, rounds: int, size: Size, checkpoint: Checkpoint, *, threads: int) -> Figures:
    """Training steps with nothing beside them and while a commit is being made; commits with nothing beside them."""
    torch.set_num_threads(threads)
    training = Training(folder / f"steps-{threads}", size, checkpoint)
    training.warm()
    figures: Figures = {"free": [], "beside": [], "lost": [], "commit beside": [], "commit alone": [], "waited for": []}
    for number in range(rounds):
        progress(f"{number + 1} of {rounds}: steps on {threads}")
        free = [timed(training.step) for _ in range(FREE_STEPS)]
        figures["free"] += free
        train_while_committing(training, figures, free=statistics.median(free))
        training.step()
        figures["commit alone"].append(timed(lambda: training.save().result()))
        training.step()
        figures["waited for"].append(timed(training.save_and_wait))
    return figures


def train_while_committing(training: Training, figures: Figures, *, free: float) -> None:
    """Train until a commit is made. The step that outlasts it counts only where it is the only one.

    Args:
        free: what a step takes with nothing beside it.
    """
    started = time.perf_counter()
    pending = training.save()
    ended: list[float] = []

    def watch() -> None:
        pending.wait()
        ended.append(time.perf_counter())

    watcher = threading.Thread(target=watch)
    watcher.start()
    taken: list[float] = []
    while not pending.done():
        taken.append(timed(training.step))
    watcher.join()
    pending.result()
    figures["beside"] += taken[:-1] or taken
    figures["lost"].append(sum(taken) - free * len(taken))
    figures["commit beside"].append(ended[0] - started)


def wait_part(table: Table, folder: Path, rounds: int, size: Size, checkpoint: Checkpoint) -> None:
    """Measure and show ``wait=False``."""
    figures = table.keep("wait", in_own_process(partial(stalls, folder, rounds, size, checkpoint)))
    found = {name: statistics.median(values) for name, values in figures.items()}
    table.head(f"save(wait=False), {found['bytes'] / 1e6:.0f} MB of weights and AdamW's state, of {2 * rounds}")
    table.line("copy_ of all tensors into warm memory", ms(found["copy"]))
    table.line("the call, which holds the training up", ms(found["call"]))
    table.ratio("    to the copy", found["call"] / found["copy"], 1.2)
    table.line("CPU seconds of the copy", f"{found['copy cpu']:.3f}")
    table.line("CPU seconds of call and commit", f"{found['cpu']:.3f}")
    table.line("extra memory, the copy that it takes included", mb(found["extra bytes of memory"]))
    cores = os.cpu_count() or 1
    for count in dict.fromkeys((torch.get_num_threads(), max(1, cores - 1))):
        trained = in_own_process(partial(steps, folder, rounds, size, checkpoint, threads=count))
        table.head(f"training on {count} of {cores} cores")
        show_steps(table, table.keep(f"wait, training on {count}", trained))


def show_steps(table: Table, figures: Figures) -> None:
    """The rows of one number of torch's threads."""
    found = {name: statistics.median(values) for name, values in figures.items() if values}
    table.line(f"step, nothing beside it, of {len(figures['free'])}", ms(found["free"]))
    if "beside" in found:
        beside = len(figures["beside"])
        table.line(f"step while a commit is being made, of {beside}", ms(found["beside"]))
        table.ratio("    to a free step", found["beside"] / found["free"], 1.05)
    table.line("training time that a commit costs, after the call", ms(found["lost"]))
    table.line("commit, beside the training, until it is made", f"{found['commit beside']:.3f} s")
    table.line("    the same, with the training standing still", f"{found['commit alone']:.3f} s")
    table.line("    save, waited for", f"{found['waited for']:.3f} s")


# -- tiny tensors


def tiny(folder: Path, rounds: int, count: int) -> Figures:
    """Commits of so many small tensors, all changed and none, and ``save_file`` of the same, by turns."""
    torch.manual_seed(0)
    tensors = {f"blocks.{number}.norm.weight": torch.randn(TINY_SIZE) for number in range(count)}
    base = forget_peak()
    repo, file = Repository(folder / "tiny", init=True), folder / "tiny.safetensors"
    figures: Figures = {}

    def commit() -> None:
        repo.stage_weights(tensors)
        repo.commit("tiny tensors", allow_empty=True)

    def write() -> None:
        save_file(tensors, file)
        sync(file)

    def note(name: str, action: Callable[[], None]) -> None:
        forget_peak()
        sample = measured(action, base=base, returned=lambda _: 0)
        figures.setdefault(name, []).append(sample.seconds)
        figures.setdefault(f"{name}, cpu", []).append(sample.cpu_seconds)
        figures.setdefault(f"{name}, extra bytes of memory", []).append(sample.extra_memory)

    commit()
    write()
    before = folder_bytes(repo.folder.root)
    for number in range(rounds):
        progress(f"{number + 1} of {rounds}: tiny tensors")
        nudge(tensors.values())
        note("changed", commit)
        note("unchanged", commit)
        note("save_file", write)
    figures["bytes a pair of commits"] = [(folder_bytes(repo.folder.root) - before) / rounds]
    figures["bytes a file"] = [file.stat().st_size]
    return figures


def tiny_part(table: Table, folder: Path, rounds: int, count: int) -> None:
    """Measure and show tiny tensors."""
    figures = table.keep("tiny", in_own_process(partial(tiny, folder, rounds, count)))
    found = {name: statistics.median(values) for name, values in figures.items()}

    def each(seconds: float) -> str:
        return f"{seconds / count * 1e6:.1f} us"

    table.head(f"{count:,} tensors of {TINY_SIZE} numbers, a tensor; of {rounds}")
    changed = found["changed"]
    table.line("save_file + fsync", each(found["save_file"]))
    table.line("commit, all changed a little", each(changed), "<= 20 us", verdict(changed, 20e-6 * count, each))
    table.line("commit, nothing changed", each(found["unchanged"]))
    for name, label in (("save_file", "save_file"), ("changed", "all changed"), ("unchanged", "nothing changed")):
        table.line(f"CPU time, {label}", each(found[f"{name}, cpu"]))
    table.line("extra memory of a commit, libraries included", mb(found["changed, extra bytes of memory"]))
    table.line("written by the two commits together", mb(found["bytes a pair of commits"]))
    table.line("written by save_file", mb(found["bytes a file"]))


# -- many commits


def many(folder: Path, commits: int) -> Figures:
    """Very many commits of a small model, one after another, then as many files as there are commits at each end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    repo = Repository(folder, init=True)
    figures: Figures = {"commit": [], "save_file": [], "resident": []}

    def commit(number: int) -> None:
        repo.stage_weights(model)
        repo.commit(f"step {number}", step=number)

    def write(file: Path) -> None:
        save_file(model.state_dict(), file)
        sync(file)

    cpu = time.process_time()
    for number in range(commits):
        if number % ENDS == 0:
            progress(f"{number} of {commits} commits")
        if number == ends(commits):
            figures["resident"].append(forget_peak())
        nudge(model.parameters())
        figures["commit"].append(timed(partial(commit, number)))
    figures["cpu"] = [time.process_time() - cpu]
    figures["resident"].append(forget_peak())
    for number in range(ends(commits)):
        nudge(model.parameters())
        file = folder / f"{number}.safetensors"
        figures["save_file"].append(timed(partial(write, file)))
        figures["bytes a file"] = [file.stat().st_size]
    return figures


def ends(commits: int) -> int:
    """How many commits are compared at each end."""
    return min(ENDS, commits // 2)


def reopened(folder: Path) -> Figures:
    """Opening the repository, and the newest commits, in a process that has not seen it."""
    opened: list[Repository] = []
    figures = {"open": [timed(lambda: opened.append(Repository(folder)))]}
    figures["log"] = [timed(lambda: list(opened[0].log(max_count=SHOWN)))]
    return figures


def program(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of the clock and of all cores that a program takes, its start included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # os.times() counts in steps of 10 ms
    seconds = timed(lambda: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def found_again(folder: Path, rounds: int) -> Figures:
    """What a new process takes to find the newest commits, by coral and by git."""
    warm(files_in(folder))
    figures: Figures = {}
    coral_log = [sys.executable, "-m", "coral", "log", "-n", str(SHOWN)]
    git_log = ["git", "-C", ".coral", "log", "-n", str(SHOWN)]
    program(coral_log, folder)  # leaves its libraries in the page cache
    for number in range(rounds):
        progress(f"{number + 1} of {rounds}: log")
        for name, values in in_own_process(partial(reopened, folder)).items():
            figures.setdefault(name, []).extend(values)
        for name, command in (("coral log", coral_log), ("git log", git_log)):
            seconds, cpu = program(command, folder)
            figures.setdefault(name, []).append(seconds)
            figures.setdefault(f"{name}, cpu", []).append(cpu)
    return figures


def many_part(table: Table, folder: Path, rounds: int, commits: int) -> None:
    """Measure and show many commits."""
    repository = folder / "many"
    figures = table.keep("many", in_own_process(partial(many, repository, commits)))
    count, commit = ends(commits), figures["commit"]
    first, last = statistics.median(commit[:count]), statistics.median(commit[-count:])
    files = files_in(repository)
    held = sum(path.stat().st_size for path in files)
    plain = figures["bytes a file"][0]
    table.head(f"{commits:,} commits of a model of {plain / 1e3:.0f} kB")
    table.line(f"save_file + fsync, of {count}", ms(statistics.median(figures["save_file"])))
    table.line(f"commit, the first {count}", ms(first))
    table.line(f"commit, the last {count}", ms(last))
    table.ratio("    to the first", last / first, 1.2)
    table.line("    the slowest of all", ms(max(commit)))
    table.line("    the mean of all", ms(statistics.mean(commit)))
    table.line("    the mean of all, CPU", ms(figures["cpu"][0] / commits))
    table.line(f"memory grown since commit {count}", mb(figures["resident"][1] - figures["resident"][0]))
    table.line(".coral, bytes a commit", f"{held / commits / 1e3:.1f} kB")
    table.line(".coral, to as many plain files", ratio(held / commits / plain))
    table.line(".coral, files", f"{len(files):,}")
    show_found(table, table.keep("found again", found_again(repository, rounds)), rounds)
    shutil.rmtree(repository)


def show_found(table: Table, figures: Figures, rounds: int) -> None:
    """The rows of what a new process takes."""
    found = {name: statistics.median(values) for name, values in figures.items()}
    table.head(f"what a new process takes, of {rounds}")
    table.line("Repository(...)", ms(found["open"]), "<= 50 ms", verdict(found["open"], 0.050, ms))
    table.line(f"    and repo.log, {SHOWN} commits", ms(found["log"]))
    whole, cpu = found["coral log"], found["coral log, cpu"]
    table.line(f"coral log -n {SHOWN}, the program", ms(whole), "<= 200 ms", verdict(whole, 0.200, ms))
    table.line("    its CPU time", ms(cpu), "<= 200 ms", verdict(cpu, 0.200, ms))
    table.line(f"git log -n {SHOWN}", ms(found["git log"]))
    table.line("    its CPU time", ms(found["git log, cpu"]))
    table.line("    coral's to git's, CPU", ratio(cpu / found["git log, cpu"]))


# -- what interrupts cost


def guard(folder: Path, pairs: int) -> Figures:
    """Saves of a small model, by another thread and in place, by turns; and what it takes to hand over nothing."""
    repo, chance = Repository(folder / "guard", init=True), torch.Generator().manual_seed(0)
    weights = {f"w{number}": torch.randn(3000, generator=chance) for number in range(4)}
    figures: Figures = {"guarded": [], "in place": [], "nothing": []}
    hand_over = threads._hand_over

    def save() -> float:
        nudge(weights.values())
        return timed(lambda: repo.save(weights))

    def save_in_place() -> float:
        threads._hand_over = lambda work: False  # as where no thread can be had
        try:
            return save()
        finally:
            threads._hand_over = hand_over

    for number in range(pairs + WARMING):
        progress(f"{number} of {pairs}: pairs of small commits")
        ways = [("guarded", save), ("in place", save_in_place)]
        for name, way in ways if number % 2 else reversed(ways):
            seconds = way()
            figures[name] += [seconds] if number >= WARMING else []
        figures["nothing"].append(timed(lambda: threads.undisturbed(lambda: None)))
    return figures


def guard_part(table: Table, folder: Path, pairs: int) -> None:
    """Measure and show what it costs that no interrupt reaches a commit."""
    figures = table.keep("guard", in_own_process(partial(guard, folder, pairs)))
    found = {name: statistics.median(values) for name, values in figures.items()}
    table.head(f"a small commit, out of the reach of interrupts; of {pairs} pairs")
    table.line("save, done by a thread of its own", ms(found["guarded"]))
    table.line("    the same in place", ms(found["in place"]))
    each = zip(figures["guarded"], figures["in place"], strict=True)
    table.ratio("    to that, in the median pair", statistics.median(one / other for one, other in each), 1.02)
    table.line("nothing, done by a thread of its own", f"{found['nothing'] * 1e6:.0f} us")


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median is shown (%(default)s)")
    parser.add_argument("--commits", type=int, default=2000, help="how many are many (%(default)s)")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of small commits (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every figure to this file, too")
    bars.add_argument(parser)
    arguments = parser.parse_args()

    start_processes(small=arguments.small)
    size, rounds, table = SMALL if arguments.small else LARGE, arguments.runs, Table()
    chosen = PARTS if arguments.only is None else (arguments.only,)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    known = facts(arguments.cache)
    for name, value in known.items():
        print(f"{name:<12} {value}")
    with tempfile.TemporaryDirectory(dir=arguments.cache) as work:
        folder = Path(work)
        if "wait" in chosen:
            wait_part(table, folder, rounds, size, checkpoints(size, arguments.cache, print)[0])
        if "tiny" in chosen:
            tiny_part(table, folder, *((rounds, TINY_COUNT_SMALL) if arguments.small else (max(5, rounds), TINY_COUNT)))
        if "many" in chosen:
            many_part(table, folder, rounds, arguments.commits)
        if "guard" in chosen:
            guard_part(table, folder, arguments.pairs)
    if arguments.json:
        arguments.json.write_text(json.dumps({"facts": known, "figures": table.figures}, indent=1))
    return bars.status(table.missed, asked=arguments.bars)


if __name__ == "__main__":
    sys.exit(main())
