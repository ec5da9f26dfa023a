"""How fast experiments are recorded and found again: ``python -m benchmarks.tracking [--small] [--bars]``.

Everything is measured in this run, on this machine: medians of five or more, wall time unless the line says CPU.
Other tools are measured beside coral where they are installed, with their own defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import logging as logging_module
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import bars
from benchmarks.bars import MET, verdict
from coral.experiments import ExperimentTracker
from coral.experiments.local.index import CACHE_KEY
from coral.experiments.local.record import decode, decode_history, encode, head
from coral.repository import Repository

ROUNDS = 5
Shown = Callable[[float], str]


class Table:
    """Prints one line a measurement: what, how much, the bar, and whether it is met.

    Args:
        has_bars: whether the bars are those of what is measured; a smoke run measures something else.
    """

    def __init__(self, has_bars: bool) -> None:
        self._has_bars = has_bars
        self.missed: list[str] = []

    def line(self, what: str, value: str, note: str = "") -> None:
        """One row."""
        print(f"{what:<58} {value:>22}  {note}".rstrip(), flush=True)

    def bar(self, what: str, value: float, shown: Shown, limit: float, *, at_least: bool = False) -> None:
        """A row with a bar: at most the limit, unless ``at_least``."""
        if not self._has_bars:
            self.line(what, shown(value))
            return
        found = verdict(value, limit, shown, at_least=at_least)
        self.line(what, shown(value), f"{'>=' if at_least else '<='} {shown(limit)}: {found.partition(':')[0]}")
        self.missed += [] if found == MET else [what]


def count(value: float) -> str:
    """A number of calls or points, as it is shown."""
    return f"{value:,.0f}"


def ms(seconds: float) -> str:
    """Seconds, as they are shown."""
    return f"{seconds * 1e3:.1f} ms"


def median(measure: Callable[[], float]) -> float:
    """The median of several measurements."""
    return statistics.median(measure() for _ in range(ROUNDS))


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def calls_a_second(log: Callable[[str, float, int], object], calls: int, threads: int = 1) -> float:
    """Logging calls a second of wall time, all threads together."""
    values = [random.random() for _ in range(calls // threads)]

    def loop() -> None:
        for step, value in enumerate(values):
            log("loss", value, step)

    workers = [threading.Thread(target=loop) for _ in range(threads)]

    def all_of_them() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return len(values) * threads / timed(all_of_them if threads > 1 else loop)


def logging(table: Table, folder: Path, calls: int) -> None:
    """Log calls a second from one thread and from four, and what the history costs afterwards."""
    tracker = ExperimentTracker(Repository(folder / "logging", init=True))
    for threads, least in ((1, 200_000), (4, 120_000)):
        rates, closed = [], []
        for _ in range(ROUNDS):
            run = tracker.start("speed")
            rates.append(calls_a_second(run.log, calls, threads))
            closed.append(calls / (calls / rates[-1] + timed(run.end)))
        what = f"log calls a second, {threads} thread(s), {calls:,} calls"
        table.bar(what, statistics.median(rates), count, least, at_least=True)
        table.line("    until it is closed", count(statistics.median(closed)))
    with tracker.run("history") as run:
        for step in range(calls):
            run.log("loss", random.random(), step=step)
    file = tracker.repo.folder.root / "experiments" / f"{run.experiment_id}.json"
    table.bar("bytes a point once folded", file.stat().st_size / calls, "{:.1f}".format, 25)

    def load() -> None:
        history = tracker.get(run.experiment_id).get_metric_history("loss")
        assert len(history) == calls and history[-1].step == calls - 1

    table.bar(f"load a {calls:,}-point history", median(lambda: timed(load)), ms, 0.040)


def queries(table: Table, folder: Path, runs: int, has_bars: bool) -> None:
    """The best of many runs: indexed in a warm process, and with the index deleted."""
    repo = Repository(folder / f"runs-{runs}", init=True)
    _many_runs(repo, runs)
    tracker = ExperimentTracker(repo)

    def best(asked: ExperimentTracker) -> None:
        assert len(asked.find_best("val_loss", mode="min", limit=10)) == 10

    # A run whose file coral refuses would make the search faster than it is.
    assert len(tracker.find_best("val_loss", mode="min", limit=runs + 1)) == runs
    indexed = median(lambda: timed(lambda: best(tracker)))

    def cold() -> float:
        repo.folder.remove(CACHE_KEY)
        fresh = ExperimentTracker(repo)
        return timed(lambda: best(fresh))

    deleted = median(cold)
    opened = median(lambda: timed(lambda: best(ExperimentTracker(repo))))
    bar = table.bar if has_bars else lambda what, value, shown, _: table.line(what, shown(value))
    bar(f"best of {runs:,} runs, indexed", indexed, ms, 0.050)
    table.line(f"best of {runs:,} runs, index read from its file", ms(opened))
    bar(f"best of {runs:,} runs, index deleted", deleted, ms, 0.300)


def _many_runs(repo: Repository, count: int) -> None:
    """Runs as they are on disk, each encoded from one that was really made, with values of its own."""
    tracker = ExperimentTracker(repo)
    with tracker.run("sweep", params={"lr": 1e-3, "opt": {"name": "adamw", "wd": 0.1}}, tags=["sweep"]) as run:
        for step in range(50):
            run.log_metrics({"train_loss": 777.5, "val_loss": 888.5, "val_acc": 0.5}, step=step)
    folder = repo.folder.root / "experiments"
    path = folder / f"{run.experiment_id}.json"
    data = path.read_bytes()
    _, fields = head(data, path)
    history = decode_history(data, path)
    assert fields is not None
    record = decode(fields, lambda: history, path)
    rng, losses = random.Random(1), history.series["val_loss"].values
    for number in range(count - 1):
        record.experiment.experiment_id = f"{number:012x}"
        losses[:] = [rng.random()] * len(losses)
        (folder / f"{number:012x}.json").write_bytes(encode(record, history))
    _age(folder)


def _age(folder: Path) -> None:
    """Let the files be older than a clock tick, as they are when one asks about finished runs."""
    for path in [*folder.iterdir(), folder]:
        os.utime(path, ns=(time.time_ns() - 60 * 10**9,) * 2)


def killed(table: Table, folder: Path, calls: int) -> None:
    """Points lost when the process is killed with SIGKILL right after its last call returned."""
    repo = Repository(folder / "killed", init=True)
    script = (
        "import sys, time; from coral.repository import Repository; from coral.experiments import ExperimentTracker\n"
        "run = ExperimentTracker(Repository(sys.argv[1])).start('killed')\n"
        f"for step in range({calls}): run.log('loss', step / 7, step=step)\n"
        "print('done', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(repo.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = ExperimentTracker(repo).list()
    table.bar(f"points lost to kill -9, of {calls:,}", calls - len(run.metrics), count, 0)


def importing(table: Table) -> None:
    """CPU seconds of ``import coral.experiments``, less those of Python alone."""

    def cpu(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    alone = median(lambda: cpu("pass"))
    imported = median(lambda: cpu("import coral.experiments"))
    table.bar("import coral.experiments", imported - alone, "{:.3f} s CPU".format, 0.25)


def others(table: Table, folder: Path, calls: int) -> None:
    """The same loop with the tools that are installed: calls a second, and again with what closing the run takes."""
    for name, module, measure, most in (
        ("TensorBoard", "tensorboard", _tensorboard, calls),
        ("MLflow", "mlflow", _mlflow, min(calls, 500)),
        ("trackio", "trackio", _trackio, calls),
    ):
        if importlib.util.find_spec(module) is None:
            table.line(f"log calls a second, {name}", "not installed")
            continue
        try:
            rounds = [measure(folder, most) for _ in range(ROUNDS)]
        except Exception as error:  # another tool's trouble is a line, not the end
            table.line(f"log calls a second, {name}", type(error).__name__, str(error).partition("\n")[0])
            continue
        rates, closed = (statistics.median(one) for one in zip(*rounds, strict=True))
        table.line(f"log calls a second, {name}, {most:,} calls", count(rates))
        table.line("    until it is closed", count(closed))


def _tensorboard(folder: Path, calls: int) -> tuple[float, float]:
    """With PyTorch's writer, as most do; without PyTorch, with TensorBoard's own."""
    name, writer = "tensorboard.summary", "Writer"
    if importlib.util.find_spec("torch") is not None:
        name, writer = "torch.utils.tensorboard", "SummaryWriter"
    opened = getattr(importlib.import_module(name), writer)(tempfile.mkdtemp(dir=folder))
    return _until_closed(opened.add_scalar, calls, opened.close)


def _mlflow(folder: Path, calls: int) -> tuple[float, float]:
    mlflow = importlib.import_module("mlflow")
    logging_module.getLogger("mlflow").setLevel(logging_module.ERROR)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return _until_closed(lambda name, value, step: mlflow.log_metric(name, value, step=step), calls, mlflow.end_run)


def _trackio(folder: Path, calls: int) -> tuple[float, float]:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    trackio = importlib.import_module("trackio")
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="bench", name=f"run-{time.monotonic_ns()}", embed=False)
        return _until_closed(lambda name, value, step: trackio.log({name: value}, step=step), calls, trackio.finish)


def _until_closed(
    log: Callable[[str, float, int], object], calls: int, close: Callable[[], object]
) -> tuple[float, float]:
    """Calls a second while they are made, and with the time that closing takes added."""
    rate = calls_a_second(log, calls)
    return rate, calls / (calls / rate + timed(close))


def sizes(small: bool) -> Iterator[tuple[int, bool]]:
    """How many runs to search, and whether that size has bars."""
    yield from ((200, False),) if small else ((1_000, False), (10_000, True))


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a smoke run of a few seconds, which has no bars")
    bars.add_argument(parser)
    options = parser.parse_args()
    calls = 1_000 if options.small else 100_000
    folder, table = Path(tempfile.mkdtemp(prefix="coral-bench-", dir=Path.cwd())), Table(not options.small)
    try:
        print(f"medians of {ROUNDS}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; files in {folder.parent}")
        logging(table, folder, calls)
        for runs, has_bars in sizes(options.small):
            queries(table, folder, runs, has_bars)
        killed(table, folder, calls)
        importing(table)
        others(table, folder, calls)
    finally:
        shutil.rmtree(folder)
    return bars.status(table.missed, asked=options.bars)


if __name__ == "__main__":
    sys.exit(main())
