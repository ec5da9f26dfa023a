"""The full form of the torture tests, in slices: ``python -m tests.torture [--minutes N]`` goes on where it stopped.

Each slice has its own seed: so many crash states of one scenario, or so many kills. What is done is kept in a state
file after each slice; the table is written anew each time. A slice that finds something is kept with its seed, and the
program ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from coral.testing.processes import Warm
from coral.testing.syscalls import Action, Plan
from tests.torture.harness import ROOT, bad_states, copy, kill_once, recorded, run_in, start
from tests.torture.scenarios import SCENARIOS, prepare

RESULTS = ROOT / "benchmarks" / "results"
FULL = {"crash states": 20_000, "kills": 10_000}
_SLICE = {"crash states": 250, "kills": 50}
_ACTIONS: tuple[Action, ...] = ("kill before", "kill half", "kill after")

Row = dict[str, int]


class Progress:
    """What was done so far, in a file.

    Args:
        path: of the file; begun afresh when it is not there, or was of other scenarios.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {
            f"{what}: {scenario}": {"done": 0, "wrong": 0, "seed": 0} for what in FULL for scenario in SCENARIOS
        }
        self.found: list[str] = []
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["rows"].keys() == self.rows.keys():
                self.rows, self.found = kept["rows"], kept["found"]

    def next(self) -> str | None:
        """The row that is furthest from its full count; None when all are there."""
        left = {name: row["done"] / goal(name) for name, row in self.rows.items() if row["done"] < goal(name)}
        return min(left, key=left.__getitem__, default=None)

    def add(self, name: str, done: int, wrong: list[str]) -> None:
        """Note a slice."""
        row = self.rows[name]
        row["done"] += done
        row["wrong"] += len(wrong)
        self.found += [f"{name}, seed {row['seed']}: {one}" for one in wrong]
        row["seed"] += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"rows": self.rows, "found": self.found}, indent=1))
        fresh.replace(self.path)

    def table(self) -> str:
        """The results, as Markdown."""
        lines = ["# Torture", ""]
        lines.append(f"`make torture`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Linux {platform.release()},")
        lines += [f"Python {platform.python_version()}. Seeds count from 0, one a slice.", ""]
        lines += ["| what | done | of | slices (seeds) | wrong |", "|---|---:|---:|---:|---:|"]
        for name, row in self.rows.items():
            lines.append(f"| {name} | {row['done']:,} | {goal(name):,} | {row['seed']} | {row['wrong']} |")
        for what in FULL:
            rows = [row for name, row in self.rows.items() if name.startswith(what)]
            done, wrong = sum(row["done"] for row in rows), sum(row["wrong"] for row in rows)
            lines.append(f"| **{what}** | {done:,} | {FULL[what]:,} | {sum(row['seed'] for row in rows)} | {wrong} |")
        return "\n".join([*lines, "", *(f"- {one.splitlines()[0]}" for one in self.found)]).rstrip() + "\n"


def goal(name: str) -> int:
    """How many of a row are the full form."""
    return FULL[name.partition(":")[0]] // len(SCENARIOS)


def cut_power(warm: Warm, place: Path, scenario: str, seed: int) -> tuple[int, list[str]]:
    """A slice of crash states; how many, and what was wrong."""
    project, log = copy(place / "template", place / "recorded"), place / "log"
    run_in(warm, "record", scenario, project, log)
    limit = _SLICE["crash states"]
    found = list(bad_states(project, place / "template", recorded(log), place / "state", limit=limit, seed=seed))
    wrong = [f"cut {state.cut}, {state.loss} lost: {what[0]}" for state, what in found if what]
    return len(found), wrong


def kill(warm: Warm, place: Path, scenario: str, seed: int) -> tuple[int, list[str]]:
    """A slice of kills; how many, and what was wrong."""
    count = run_in(warm, "run_with", scenario, copy(place / "template", place / "all"), Plan("short", -1))
    assert isinstance(count, int)
    chance, wrong, killed = random.Random(seed), [], 0
    for _ in range(_SLICE["kills"]):
        plan = Plan(chance.choice(_ACTIONS), chance.randrange(count))
        was_killed, what = kill_once(warm, scenario, place / "template", place / "killed", plan)
        killed += was_killed
        wrong += [f"{plan.action} call {plan.at}: {what[0]}"] if what else []
    return killed, wrong


def main() -> int:
    """Run slices until the time is up or all are done."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--state", type=Path, default=RESULTS / "torture.json", help="where to go on from")
    parser.add_argument("--table", type=Path, default=RESULTS / "torture.md", help="where to write the table")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    stop, progress = time.monotonic() + 60 * options.minutes, Progress(options.state)
    with tempfile.TemporaryDirectory(prefix="coral-", dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder).resolve()
        prepare(place / "template")
        warm = start(place)
        if warm is None:
            print("NOT TESTED: no C compiler, or not Linux, so system calls cannot be watched")
            return 2
        with warm:
            while time.monotonic() < stop and (name := progress.next()) is not None:
                what, _, scenario = name.partition(": ")
                job = cut_power if what == "crash states" else kill
                done, wrong = job(warm, place, scenario, progress.rows[name]["seed"])
                progress.add(name, done, wrong)
                options.table.write_text(progress.table())
                print(f"{name}: {done} done, {len(wrong)} wrong", *wrong, sep="\n  ", flush=True)
    print(progress.table())
    return 1 if progress.found else 0


if __name__ == "__main__":
    sys.exit(main())
