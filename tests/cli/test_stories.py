"""Whole stories told by real processes: what one command leaves, the next one finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., bytes]


def test_files_go_in_and_come_back_byte_for_byte(project: Path, shell: Shell, write: Write) -> None:
    """init, add, commit, log, diff, checkout, each a process of its own; the file that comes back is the one added."""
    first = write(seed=1)
    shell("add", "model.safetensors")
    shell("commit", "-m", "one", CORAL_AUTHOR="Ada <ada@example.org>")
    second = write(seed=2)
    shell("commit", "-m", "two", "--step", "20", "--metric", "loss=0.5", "model.safetensors")

    log = json.loads(shell("log", "--json").stdout)
    assert [commit["subject"] for commit in log] == ["two", "one"]
    assert log[1]["author"] == "Ada <ada@example.org>"
    assert (log[0]["step"], log[0]["metrics"], log[0]["branches"]) == (20, {"loss": 0.5}, ["main"])
    diff = json.loads(shell("diff", "HEAD~1", "HEAD", "--json").stdout)
    assert [(change["name"], change["kind"]) for change in diff["tensors"]] == [("layer.weight", "changed")]

    shell("checkout", "HEAD~1")
    assert (project / "model.safetensors").read_bytes() == first
    shell("checkout", "main")
    assert (project / "model.safetensors").read_bytes() == second


def test_a_run_of_the_shell_lives_between_processes(project: Path, shell: Shell, write: Write) -> None:
    """start prints the id alone; log, commit and end find the run; the best step's weights come back by its metric."""
    run = shell("exp", "start", "bert", "-p", "lr=1e-3", "-t", "nlp").stdout
    assert run.strip().isalnum() and run == run.strip() + "\n"
    best = ""
    for step, loss in ((1, 0.9), (2, 0.4), (3, 0.7)):
        shell("exp", "log", "loss", str(loss), "--step", str(step))
        data = write(seed=step)
        commit = json.loads(shell("commit", "-m", f"step {step}", "--step", str(step), ".", "--json").stdout)
        assert commit["run_id"] == run.strip()
        if step == 2:
            best, expected = commit["commit_hash"], data
    shell("exp", "end")

    (found,) = json.loads(shell("exp", "best", "loss", "--mode", "min", "--json").stdout)
    assert (found["best_value"], found["best_step"], found["commit_hash"]) == (0.4, 2, best)
    shell("checkout", "best:loss:min")
    assert (project / "model.safetensors").read_bytes() == expected


def test_log_is_light(shell: Shell, project: Path, write: Write) -> None:
    """`coral log` loads neither a framework, nor numpy, nor GitPython, nor rich."""
    write()
    shell("commit", "-m", "one", ".")
    script = (
        "import sys\nsys.argv = ['coral', 'log']\nfrom coral.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'git', 'rich', 'coral.experiments'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "one" in done.stdout


def test_help_is_lighter(tmp_path: Path) -> None:
    """`coral --help` does not even load libgit2, nor any command."""
    script = (
        "import sys\nsys.argv = ['coral', '--help']\nfrom coral.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "loaded = {'torch', 'numpy', 'git', 'rich', 'pygit2', 'coral.repository'} & set(sys.modules)\n"
        "print(loaded | {name for name in sys.modules if name.startswith('coral.cli.commands.')}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


def test_a_reader_that_goes_away_is_no_error(project: Path, shell: Shell, write: Write) -> None:
    """`coral log | head` ends quietly, with the code that a shell gives for SIGPIPE."""
    write()
    shell("commit", "-m", "one", ".")
    process = subprocess.Popen(
        [sys.executable, "-m", "coral", "log"],
        cwd=project,
        # What is left in Python's buffer is written once more at exit.
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_ends_with_130(project: Path, shell: Shell, write: Write, tmp_path: Path) -> None:
    """Interrupting a command gives the shell's own code for it, and no traceback."""
    write()
    shell("add", ".")
    started = tmp_path / "started"
    editor = f"{sys.executable} -c 'import pathlib, time; pathlib.Path(\"{started}\").touch(); time.sleep(2)'"
    process = subprocess.Popen(
        [sys.executable, "-m", "coral", "commit"],
        cwd=project,
        env={**os.environ, "VISUAL": editor},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_errors_are_one_line_a_hint_and_a_code(project: Path, shell: Shell) -> None:
    """What the user gets wrong never shows a traceback, and goes to standard error."""
    done = shell("checkout", "nowhere", code=3)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert all(line.startswith(("error: ", "hint: ")) for line in done.stderr.splitlines())
    shell("add", code=2)
    shell("add", "missing.pt", code=3)
    (project / "bad.safetensors").write_bytes(b"\xff" * 100)
    shell("add", "bad.safetensors", code=6)


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: Shell, shell_name: str) -> None:
    """Each shell gets a script that asks `coral` for its completions."""
    assert "_CORAL_COMPLETE" in shell("completion", shell_name).stdout
