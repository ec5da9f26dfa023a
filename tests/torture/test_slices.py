"""The full form stops and goes on where it was, and counts what it found."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coral.testing.processes import Note
from tests.torture.__main__ import Failed, Progress, Workers, run, table
from tests.torture.harness import ROOT, run_in
from tests.torture.kinds import KINDS, Bench, Kind, Slice


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What a slice did is kept: the next call has the next seed, and the rows that are behind come first."""
    first = Progress(tmp_path / "state.json")
    name, seed = first.next(["kills"], []) or (("", ""), -1)
    assert name[0] == "kills"
    first.add(name, seed, (50, ["lost"]), 3.0)
    again = Progress(tmp_path / "state.json")
    assert again.rows[name] == {"done": 50, "wrong": 1, "seed": 1, "seconds": 3.0, "failed": {}}
    assert again.found == [f"{': '.join(name)}, seed 0: lost"] and again.found[0] in table(again)
    other = again.next(["kills"], [])
    assert other is not None and other[0] != name
    assert again.next(["kills"], [one for one in again.rows if one != name]) == (name, 1)


def dies(bench: Bench, row: str, seed: int) -> Slice:
    """A slice whose process dies, unless its seed is the first."""
    if seed:
        run_in(bench.plain, f"{__name__}:crash")
    return 7, []


def crash(note: Note) -> None:
    """Come to a bad end."""
    note("here")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_slice_that_crashed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as failed and not as done, with its kind, row and seed; next time it is done before any other, and no
    other seed is left out or done twice."""
    kind = Kind(("a row",), 3, dies, is_whole=True)
    monkeypatch.setitem(KINDS, "flips", kind)
    name = "flips", "a row"
    bench = Bench(tmp_path / "bench")
    with contextlib.closing(bench):
        first = Progress(tmp_path / "state.json")
        wanted = argparse.Namespace(minutes=1, only=["flips"], table=tmp_path / "table.md")
        run(wanted, first, Workers([bench]))
    assert first.rows[name]["done"] == 7 and first.rows[name]["seed"] == 3
    assert [one.partition("\n")[0] for one in first.failed] == [
        f"flips: a row, seed {seed}: FAILED: Died(\"SIGSEGV at {__name__}:crash, after ['here']\")" for seed in (1, 2)
    ]
    assert first.failed[0].splitlines()[0] in table(first)
    again = Progress(tmp_path / "state.json")
    assert [again.next(["flips"], []) for _ in range(3)] == [(name, 1), (name, 2), None]
    again.add(name, 1, (7, []), 1.0)
    again.add(name, 2, Failed("again"), 1.0)
    assert again.rows[name]["done"] == 14 and again.rows[name]["failed"] == {"2": "again"}
    assert Progress(tmp_path / "state.json").next(["flips"], []) == (name, 2)


def test_it_ends(tmp_path: Path) -> None:
    """Rows that are done are not done again: by how many there were, or by the slices that are the whole."""
    progress = Progress(tmp_path / "state.json")
    for kind, count in (("machine", KINDS["machine"].full), ("flips", 1)):
        for _ in range(KINDS[kind].full if KINDS[kind].is_whole else 1):
            chosen = progress.next([kind], [])
            assert chosen is not None
            progress.add(*chosen, (count, []), 0.0)
        assert progress.next([kind], []) is None


_SHORT = """
import sys
from tests.torture import kinds
from tests.torture.__main__ import main
kinds.EXAMPLES = 2_000
sys.exit(main())
"""
"""The program, in slices of a second."""


def test_it_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C loses the slice at work and no other, and leaves no process behind."""
    state = tmp_path / "state.json"
    options = ["--only", "fuzz", "--state", str(state), "--table", str(tmp_path / "table.md")]
    process = subprocess.Popen(
        [sys.executable, "-c", _SHORT, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and " done, 0 wrong" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    process.stdout.read()  # until the last process that has it is gone
    assert sum(row["done"] for row in Progress(state).rows.values()) >= 2_000
    assert "| **fuzz** |" in (tmp_path / "table.md").read_text()
