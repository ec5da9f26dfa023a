"""The full form stops and goes on where it was, and counts what it found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.torture.__main__ import Progress, table
from tests.torture.harness import ROOT
from tests.torture.kinds import KINDS


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What a slice did is kept: the next call has the next seed, and the rows that are behind come first."""
    first = Progress(tmp_path / "state.json")
    name = first.next(["kills"], [])
    assert name is not None and name[0] == "kills"
    first.add(name, (50, ["lost"]), 3.0)
    again = Progress(tmp_path / "state.json")
    assert again.rows[name] == {"done": 50, "wrong": 1, "seed": 1, "seconds": 3.0}
    assert again.found == [f"{': '.join(name)}, seed 0: lost"] and again.found[0] in table(again)
    assert again.next(["kills"], []) not in (name, None)
    assert again.next(["kills"], [one for one in again.rows if one != name]) == name


def test_it_ends(tmp_path: Path) -> None:
    """Rows that are done are not done again: by how many there were, or by the slices that are the whole."""
    progress = Progress(tmp_path / "state.json")
    for kind, count in (("machine", KINDS["machine"].full), ("flips", 1)):
        for _ in range(KINDS[kind].full if KINDS[kind].is_whole else 1):
            name = progress.next([kind], [])
            assert name is not None
            progress.add(name, (count, []), 0.0)
        assert progress.next([kind], []) is None


def test_it_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C loses the slice at work and no other, and leaves no process behind."""
    state = tmp_path / "state.json"
    options = ["--only", "fuzz", "--state", str(state), "--table", str(tmp_path / "table.md")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture", *options],
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
    assert sum(row["done"] for row in Progress(state).rows.values()) >= 25_000
    assert "| **fuzz** |" in (tmp_path / "table.md").read_text()
