"""Every command that a document names is run, in its smallest form: what nobody runs is not known to work.

Documents are the texts beside the code, the Makefile, and docstrings and comments of the code itself. A command that
is named anywhere must stand in :data:`SMALLEST`, or be one of coral's own, whose words are looked up. The benchmarks
measure nothing here: each runs to its end and prints its table. They are forked from one process that has imported
PyTorch, and share one folder of checkpoints.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from coral.cli import main
from coral.testing.processes import Note, Warm

ROOT = Path(__file__).parent.parent
CODE = ("coral", "benchmarks", "examples", "tests")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in CODE for suffix in ("md", "py") for path in (ROOT / folder).rglob(f"*.{suffix}")),
    *(ROOT / name for name in ("Makefile", "constraints.txt", "pyproject.toml", "hatch_build.py", ".ci/run")),
]
_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)([^`]+)\1(?!`)")
_FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^(?:#\s+|\t@?|exec )((?:make|python|pip|\$\(BIN\)/)\S*.*)$", re.MULTILINE)
_TORTURE = re.compile(r"TORTURE='([^']+)'")
_PROGRAM = re.compile(r"(?:python[\d.]*|make|pip|cc|coral|git coral|pytest|ruff|mypy|\S*bin/\S+|\$\(BIN\)/\S+)(?= |$)")
_OPTION = re.compile(r"(?<!\S)\[?(-{1,2}[a-zA-Z][\w-]*)")
NO_COMMANDS = ("coral manifest 1", "coral 2026 chunk list 1")
"""Text of coral's formats."""


@dataclass(frozen=True)
class Run:
    """A program that is run.

    Attributes:
        smallest: its arguments; ``{place}`` is a folder of the test's own, ``{cache}`` one that all share.
        shows: what it prints at its end; a regular expression.
        status: what it ends with.
    """

    smallest: str
    shows: str
    status: int = 0


@dataclass(frozen=True)
class Elsewhere:
    """A command that is not run here.

    Attributes:
        why: who runs it, or why nobody can.
    """

    why: str


_FEW = "--small --runs 1 --json {place}/figures.json --cache {cache}"
SMALLEST: dict[str, Run | Elsewhere] = {
    "python -m benchmarks.durability": Run(
        "--small --bars --json {place}/figures.json --folder {place}", r"(?s)\| coral \|.*durability tax.*missed: none"
    ),
    "python -m benchmarks.git": Run(
        "--small --runs 1 --json {place}/figures.json", r"git status to that of a plain tree"
    ),
    "python -m benchmarks.history": Run(f"{_FEW} --peers --series fp32-2e-5", r"(?s)  coral .*XOR delta.*extra memory"),
    "python -m benchmarks.loading": Run(_FEW, r"(?s)depth 4 .*missed: .*coral get_weight, depth 4 "),
    "python -m benchmarks.loop": Run(
        f"{_FEW} --commits 20 --pairs 3", r"(?s)step, nothing beside it.*git log -n 20.*of 3 pairs"
    ),
    "python -m benchmarks.peers": Run("--small --cache {cache} --series from-scratch", r"XOR delta, zstd -3 +\d"),
    "python -m benchmarks.repository": Run(_FEW, r"coral get_weight, torch +\d"),
    "python -m benchmarks.series": Run("--small --cache {cache}", r"bf16-1e-4, each step step-0010"),
    "python -m benchmarks.tracking": Run("--small --bars", r"(?s)best of 200 runs, index deleted.*missed: none"),
    "python -m benchmarks.training": Run("--small --cache {cache}", r""),
    "python -m tests.torture": Run(
        "--small --only states,kills,faults,flips,fuzz,machine,trackers",
        r"(?s)trackers: one of eight: 1 done, 0 wrong.*\|",
    ),
    "python -m tests.torture.guided": Run("", r"atheris is not installed|usage: ", 1),
    "python -m coral": Elsewhere("its words are looked up; tests/cli"),
    "python examples/train_and_pick_best.py": Run("--quick --folder {place}/demo", r"(?s)val_loss of model.*\(equal\)"),
    "python -m venv": Elsewhere("Python's own"),
    "python -m pytest": Elsewhere("it runs this"),
    "pip install": Elsewhere("installs from the network; tests/test_packaging.py builds what would be installed"),
    "pytest": Elsewhere("it runs this"),
    "ruff": Elsewhere("make test runs it beside the tests"),
    "mypy": Elsewhere("make test runs it beside the tests"),
    "make demo": Elsewhere("its recipe is read here, for it is a document"),
    "make test": Elsewhere("it runs this"),
    "make torture": Elsewhere("its recipe is read here, for it is a document"),
    "make clean": Elsewhere("it removes what this runs in"),
    "make": Elsewhere("one of the above"),
    "cc": Elsewhere("test_the_command_that_builds_the_kernel"),
}
RUNS = {name: one for name, one in SMALLEST.items() if isinstance(one, Run)}


def spans(path: Path) -> Iterator[str]:
    """Whatever looks like a command in a document, on one line each."""
    text = path.read_text(encoding="utf-8")
    yield from (" ".join(found[2].split()) for found in _SPAN.finditer(_without_blocks(text)))
    yield from (line for found in _FENCE.finditer(text) for line in found[1].splitlines())
    if path.suffix != ".md" and path.suffix != ".py":
        yield from (part.strip() for found in _LINE.finditer(text) for part in found[1].split("&&"))
    yield from (f"python -m tests.torture {found[1]}" for found in _TORTURE.finditer(text))


def _without_blocks(text: str) -> str:
    """Blocks of consoles and of Python are run by tests/test_readme.py."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> dict[str, set[str]]:
    """Each command that a document names, with where."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in DOCUMENTS:
        for text in spans(path):
            if _PROGRAM.match(text) and text not in NO_COMMANDS and not text.startswith("coral manifest 1 "):
                found[re.sub(r"\s+#.*| \|.*", "", text)].add(path.relative_to(ROOT).as_posix())
    return found


NAMED = commands()


def program(command: str) -> str:
    """The program of a command, as :data:`SMALLEST` calls it."""
    first, *rest = re.sub(r"(?:\$\(BIN\)|\S*\bbin)/", "", command).split()
    first = "python" if first.startswith("python") else first
    if first == "python":
        return " ".join([first, *rest[: 2 if rest[0] == "-m" else 1]])
    return " ".join([first, *rest[:1]]) if first in ("make", "pip") else first


def is_ours(command: str) -> bool:
    """Whether it is a command of coral's."""
    return command.startswith(("coral", "git coral")) or program(command) == "python -m coral"


@pytest.mark.parametrize("command", sorted(command for command in NAMED if not is_ours(command)))
def test_a_command_that_is_named_is_run(command: str) -> None:
    """Whoever names a command in a document says here how it is run in its smallest form, or why it cannot be."""
    assert program(command) in SMALLEST, f"{command!r}, named in {NAMED[command]}, is run by nothing"


def test_what_is_run_is_named() -> None:
    """A command that no document names any more has no place in the table; each benchmark is named by itself."""
    named = {program(command) for command in NAMED if not is_ours(command)} | {"python -m coral"}
    assert SMALLEST.keys() - named == set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in path.read_text(encoding="utf-8"):
            assert f"python -m benchmarks.{path.stem}" in RUNS


@pytest.mark.parametrize("command", sorted(filter(is_ours, NAMED)))
def test_a_command_of_corals_is_there(command: str) -> None:
    """Each word of it is a command, each option one that it takes; what they do is in tests/cli."""
    words = shlex.split(re.sub(r"^(?:git coral|python -m coral|coral)", "", command).replace("|", " "))
    found: click.Command = main
    with click.Context(main) as context:
        for word in words:
            if isinstance(found, click.Group) and not word.startswith("-"):
                below = found.get_command(context, word)
                assert below is not None, f"{command}: there is no {word} ({NAMED[command]})"
                found = below
        taken = {option for one in found.get_params(context) for option in (*one.opts, *one.secondary_opts)}
    wanted = {option.partition("=")[0] for option in _OPTION.findall(" ".join(words))}
    assert wanted <= taken | {"--help"}, f"{command} ({NAMED[command]})"


# -- the programs


@dataclass(frozen=True)
class Ended:
    """What became of a program."""

    status: object
    output: str


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """A process that has imported what takes long, and has no threads."""
    modules = ["torch._dynamo", "safetensors.torch", "coral.experiments", "coral.objects.writer", __name__]
    with Warm(None, modules, folder=ROOT) as process:
        yield process


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmarks keep their checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


def call(note: Note, name: str, arguments: list[str], place: Path) -> object:
    """Run a program in a folder, its output in a file there; returns its status."""
    with (place / "output").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(place)
    module, path = name.removeprefix("python -m "), name.removeprefix("python ")
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = str(ROOT)
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    try:
        if module == name:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        return 1 if isinstance(end.code, str) else end.code or 0
    finally:
        sys.stdout.flush()


def ended(warm: Warm, name: str, arguments: str, place: Path) -> Ended:
    """Run a program to its end."""
    done = warm.run(f"{__name__}:call", name, shlex.split(arguments), place)
    output = (place / "output").read_text(errors="replace")
    assert done.finished and done.error is None, f"{done.error or done.signal}\n{output[-3000:]}"
    return Ended(done.result, output)


@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name: str, warm: Warm, cache: Path, tmp_path: Path) -> None:
    """It comes to its end and prints what it is there for. A small run misses bars, as what is small takes longer to
    begin than to do; that is a failure only where it is asked for."""
    arguments = RUNS[name].smallest.format(place=tmp_path, cache=cache)
    done = ended(warm, name, arguments, tmp_path)
    assert done.status == RUNS[name].status, done.output[-3000:]
    assert re.search(RUNS[name].shows, done.output), done.output
    assert (tmp_path / "figures.json").exists() is ("--json" in arguments)


@pytest.mark.parametrize("name", RUNS)
def test_it_takes_what_it_is_said_to_take(name: str, warm: Warm, tmp_path: Path) -> None:
    """Each option that a document names with it is one of its own; whole commands are taken as they stand."""
    said = [command for command in NAMED if program(command) == name and command != name]
    if name == "python -m tests.torture.guided":
        pytest.skip("its options are libFuzzer's")
    for command in said:
        options = [] if "[" in command else shlex.split(command.removeprefix(name))
        done = ended(warm, name, shlex.join([*options, "--help"]), tmp_path)
        assert done.status == 0, f"{command}\n{done.output}"
        for option in _OPTION.findall(command.removeprefix(name)):
            assert re.search(rf"{option}\b", done.output), f"{command} ({NAMED[command]})"


def test_each_kind_of_torture_that_is_named_is_one(warm: Warm, tmp_path: Path) -> None:
    """What stands after ``--only`` in a document is a kind; no slice is begun in no time."""
    kinds = {
        kind for command in NAMED for found in re.findall(r"--only ([a-z,]+)", command) for kind in found.split(",")
    }
    assert len(kinds) > 5
    wanted = ",".join(sorted(kinds - {"wait"}))
    done = ended(warm, "python -m tests.torture", f"--only {wanted} --minutes 0 --small", tmp_path)
    assert done.status in (0, 2) and "| **kills** | 0 |" in done.output, done.output


def test_the_command_that_builds_the_kernel(tmp_path: Path) -> None:
    """It stands in CONTRIBUTING.md; built elsewhere here, since the tests use what it builds."""
    (command,) = (command for command in NAMED if program(command) == "cc")
    if shutil.which("cc") is None:
        pytest.skip("NOT TESTED: no C compiler")
    head, _, target = command.rpartition(" -o ")
    subprocess.run([*shlex.split(head), "-o", str(tmp_path / Path(target).name)], cwd=ROOT, check=True)


@pytest.mark.parametrize("target", sorted(name.split()[1] for name in SMALLEST if name.startswith("make ")))
def test_a_target_is_there(target: str) -> None:
    """make knows what to do for it; what its recipe runs is named in it, and so stands in the table."""
    if shutil.which("make") is None:
        pytest.skip("NOT TESTED: there is no make here")
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
