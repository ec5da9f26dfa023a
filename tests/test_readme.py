"""Every block of the README that shows Python or the coral command runs, in the order it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
_BLOCK = re.compile(r"^```(python|console|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line it starts on, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    not_run: str | None

    @property
    def commands(self) -> str:
        """What is typed at the prompt ``$``, continued lines included; the rest is output."""
        typed: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                typed.append(line[2:])
            elif typed and typed[-1].endswith("\\"):
                typed.append(line)
        return "\n".join(typed)

    @property
    def output(self) -> list[str]:
        """The lines that are shown as output."""
        lines = self.text.splitlines()
        return [
            line
            for before, line in zip(["", *lines], lines, strict=False)
            if not line.startswith("$ ") and before[-1:] != "\\"
        ]


def blocks(markdown: str) -> list[Block]:
    """The Python and shell blocks of a text, in order."""
    found = []
    for match in _BLOCK.finditer(markdown):
        before = markdown[: match.start()]
        reason = _NOT_RUN.search(before)
        found.append(Block(match[1], match[2], before.count("\n") + 2, reason[1] if reason else None))
    return found


def run_shell(block: Block) -> None:
    """Run the block's commands as one script, which stops at the first that fails; it prints what the block shows,
    blanks aside, in which ``…`` stands for anything."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    identity = {f"GIT_{role}_{what}": "me" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        env={**os.environ, **identity, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"README.md:{block.line}\n{block.commands}\n{done.stdout}{done.stderr}"
    shown = ".*".join(re.escape(" ".join(line.split())).replace("…", ".*") for line in block.output)
    assert re.search(shown, " ".join(done.stdout.split())), (
        f"README.md:{block.line} shows otherwise than\n{done.stdout}"
    )


def run_python(block: Block, namespace: dict[str, object]) -> None:
    """Run the block; a traceback names the README's own lines."""
    exec(compile("\n" * (block.line - 1) + block.text, str(README), "exec"), namespace)


def test_every_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks share one namespace, all blocks one folder; what is typed at a prompt exits 0, and prints what is
    shown."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    ran = 0
    for block in blocks(README.read_text(encoding="utf-8")):
        if block.not_run:
            continue
        if block.language == "python":
            run_python(block, namespace)
            ran += 1
        else:
            run_shell(block)
            ran += 1
    assert ran > 5, "the README shows hardly a block that runs"


def test_the_python_of_the_readme_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies the blocks into a script runs it a second time, in the repository that the first one made."""
    monkeypatch.chdir(tmp_path)
    python = [block for block in blocks(README.read_text(encoding="utf-8")) if block.language == "python"]
    for _ in range(2):
        namespace: dict[str, object] = {"__name__": "readme"}
        for block in python:
            if not block.not_run:
                run_python(block, namespace)


def test_a_block_is_marked_as_not_run_only_right_above_it() -> None:
    """The mark names its reason and holds for one block."""
    first, second, third = blocks(
        "```python\na\n```\n\n<!-- not run: needs a GPU -->\n```python\nb\n```\n```console\n$ coral log\nout\n```\n"
    )
    assert (first.not_run, second.not_run, third.not_run) == (None, "needs a GPU", None)
    assert (first.line, second.line) == (2, 7)
    assert (third.commands, third.output) == ("coral log", ["out"])


def test_a_failing_command_is_seen() -> None:
    """A shell block fails with its first command that does, not only with its last, and where it prints otherwise."""
    for text in ("$ false\n$ true\n", "$ echo one\ntwo\n"):
        with pytest.raises(AssertionError, match=r"README\.md:7"):
            run_shell(Block("console", text, 7, None))
    run_shell(Block("console", "$ echo one two\none …\n", 7, None))
