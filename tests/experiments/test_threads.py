"""Threads: eight may log to one run; nothing is lost and no lines are mixed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from coral.experiments import ExperimentTracker


def test_eight_threads_log_to_one_run(tracker: ExperimentTracker) -> None:
    """Every point of every thread is there, in its thread's order."""
    run = tracker.start("a")

    def work(number: int) -> None:
        for step in range(2000):
            run.log(f"m{number}", step / 7, step=step)
            if step % 500 == 0:
                run.log_metrics({"shared": float(number)}, step=step)
                run.log_params({f"p{number}": step})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = tracker.end()
    for number in range(8):
        history = ended.get_metric_history(f"m{number}")
        assert list(history.steps) == list(range(2000)) and list(history.values) == [step / 7 for step in range(2000)]
    assert Counter(ended.get_metric_history("shared").values) == Counter({float(number): 4 for number in range(8)})
    assert len(ended.params) == 8 and len(ended.parameter_history) == 32


def test_importing_is_light() -> None:
    """`import coral.experiments` loads neither frameworks nor data frames nor databases."""
    heavy = ("numpy", "torch", "pandas", "sqlite3", "git", "pygit2")
    code = f"import sys, coral.experiments; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr
