"""The rules that keep coral's source in order: floors, one library a file, one writer, one voice, a light start."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import numpy
import pytest

import coral
from coral import threads
from coral.cli import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "coral"
FILES = sorted(PACKAGE.rglob("*.py"))
STANDARD = sys.stdlib_module_names

FLOORS: dict[str, float] = {
    **dict.fromkeys(("errors", "forks", "ids", "plugins", "timings"), 0),
    **dict.fromkeys(("live", "pool"), 0.3),
    "threads": 0.6,
    **dict.fromkeys(("storage", "git"), 1),
    "format": 1.5,
    **dict.fromkeys(("objects", "history", "containers"), 2),
    "tensors": 3,
    "verbs": 4,
    "repository": 5,
    "experiments": 6,
    "integrations": 9,
    **dict.fromkeys(("cli", "testing"), 12),
    "__main__": 13,
}
DOOR = "__init__"  # coral/__init__.py offers names of every floor but the last
DOOR_FLOOR = 11.5

# The floors within a folder, from below; BASE is all of its files that are named nowhere else. What stands on one
# level does not know each other, except the files of BASE: so the base knows none of its wings, and a door all.
BASE = "."
INNER: dict[str, list[set[str]]] = {
    "coral/cli": [{"look"}, {BASE}, {"commands", "sharing", "care", "called_by_git", "exp"}, {"root"}, {DOOR}],
    "coral/experiments": [{BASE}, {"local"}, {"tracker"}, {"refs", DOOR}],
    "coral/format": [{BASE}, {"codecs"}],
    "coral/integrations": [{BASE}, {"torch"}],
    "coral/testing": [{BASE}, {"contracts"}],
    "coral/verbs": [{BASE}, {"merging", "sharing", "care", "inside_git"}],
}
MOST_FILES = 25
OPEN_DOORS = {"coral.experiments"}  # a table of public names, through which nothing in the library imports

# The only place that may import each of these; any other third-party library has one file, whichever it is.
HOMES = {
    "blake3": "coral/ids.py",
    "xxhash": "coral/ids.py",
    "zstandard": "coral/format/codecs/",
    "git": "coral/git/",
    "pygit2": "coral/history/",
    "torch": "coral/integrations/torch/",
    "click": "coral/cli/",
    "pytest": "coral/testing/contracts/",
    "rich": "coral/cli/",
}
ANYWHERE = {"numpy", "typing_extensions"}
ONE_FILE_THOUGH_STANDARD = {"sqlite3"}

PUBLIC_NAMES = [
    "Commit",
    "ConflictError",
    "CoralError",
    "CorruptionError",
    "FormatError",
    "NotFoundError",
    "PendingCommit",
    "Repository",
    "StorageError",
    "UsageError",
    "VersionError",
    "__version__",
    "model_to_weights",
]


@cache
def tree(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path) -> str:
    """``coral/format/names.py`` for a file of the package."""
    return path.relative_to(ROOT).as_posix()


def unit(path: Path) -> str:
    """The folder or file just below ``coral/`` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> float:
    """The floor of a folder or file just below ``coral/``."""
    return DOOR_FLOOR if name == DOOR else FLOORS[name]


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """The line and the absolute dotted name of each import, wherever it stands; ``from a import b`` is ``a.b``."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module) if node.module else base)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def called(node: ast.Call) -> str:
    """The last name of what is called: ``write`` for ``os.write(…)``."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def dotted(node: ast.AST) -> str:
    """``os.environ`` for that attribute, the empty string for what is not a dotted name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def lines_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's place and its length in lines, docstring included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{place(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def changes_a_file(node: ast.Call) -> bool:
    """Whether a call is one of those that write, move or remove a file or folder."""
    full, name = dotted(node.func), called(node)
    if full.startswith("os.") and name != "fdopen":
        return name in OS_WRITERS or (name == "open" and "O_" in ast.dump(node) and not only_reads(node))
    if name in {"open", "fdopen"}:
        return any(opens_for_writing(value) for value in (*node.args, *(keyword.value for keyword in node.keywords)))
    if name == "replace" and isinstance(node.func, ast.Attribute):
        return len(node.args) == 1 and not node.keywords  # Path.replace; str.replace has two, datetime's are named
    return name in PATH_WRITERS


OS_WRITERS = {
    *("write", "writev", "pwrite", "pwritev", "rename", "renames", "replace", "unlink", "remove", "removedirs"),
    *("link", "symlink", "mkdir", "makedirs", "rmdir", "truncate", "ftruncate", "mkfifo", "sendfile"),
    *("copy_file_range", "chmod", "utime", "posix_fallocate"),
}
OUTSIDE_WORLD = {
    *("os.environ", "os.environb", "os.getenv", "os.putenv", "os.path.expanduser", "Path.home", "os._exit"),
    *("sys.argv", "sys.stdin", "sys.stdout", "sys.stderr", "sys.exit"),
}
# What runs at exit can have the exit status say that something is lost by way of the last flush alone.
# The first process of a container is not killed by a signal that it sends to itself.
MAY_TOUCH = {"coral/verbs/pending.py": {"sys.stderr"}, "coral/verbs/signals.py": {"os._exit"}}
SEAM = "coral/storage/disk.py"
SYSTEM_CALLS = {f"os.{name}" for name in (*OS_WRITERS, "fsync", "fdatasync", "sync", "fchmod", "lchmod", "mknod")}
PATH_WRITERS = {"write_bytes", "write_text", "unlink", "touch", "rmdir", "symlink_to", "hardlink_to", "mkdir"}


def only_reads(node: ast.Call) -> bool:
    """Whether an ``os.open`` has none of the flags that allow a write."""
    flags = {name.attr for name in ast.walk(node) if isinstance(name, ast.Attribute)}
    return not flags & {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC", "O_TMPFILE"}


def opens_for_writing(argument: ast.expr) -> bool:
    """Whether an argument of ``open`` is a mode other than reading."""
    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
        return False
    return set(argument.value) <= set("rwxabt+") and bool(set(argument.value) & set("wxa+"))


def test_every_part_has_a_floor() -> None:
    """A new folder or file of the package is given a floor before anything may import it."""
    assert {unit(path) for path in FILES} <= {*FLOORS, DOOR}


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_go_down(path: Path) -> None:
    """A file imports its own folder and lower floors only; a sibling of the same floor never."""
    own = unit(path)
    wrong = []
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] != "coral":
            continue
        other = parts[1] if len(parts) > 1 and parts[1] in FLOORS else DOOR
        if other != own and floor(other) >= floor(own):
            wrong.append(f"{place(path)}:{line} imports {name}")
    assert not wrong


def level(folder: str, name: str) -> int:
    """The inner floor of a file or sub-folder."""
    levels = INNER[folder]
    return next(
        (n for n, names in enumerate(levels) if name in names), next(n for n, s in enumerate(levels) if BASE in s)
    )


@pytest.mark.parametrize("folder", sorted({place(path.parent) for path in FILES} - {"coral"}))
def test_wings_do_not_know_each_other(folder: str) -> None:
    """Within a folder, too, a file imports its own sub-folder and lower levels: no wing another, the base none."""
    nested = {place(path.parent) for path in FILES if path.parent.parent == ROOT / folder}
    if nested:
        assert folder in INNER, f"{folder} has sub-folders, so its levels belong into INNER"
    wrong = []
    for path in FILES if nested else ():
        if not path.is_relative_to(ROOT / folder):
            continue
        own = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for line, name in imports(path):
            prefix = folder.replace("/", ".") + "."
            if not name.startswith(prefix):
                continue
            other = name.removeprefix(prefix).split(".")[0]
            above, here = level(folder, other), level(folder, own)
            is_base = {own, other}.isdisjoint(set().union(*INNER[folder]))
            if own != other and (above > here or (above == here and not is_base)):
                wrong.append(f"{place(path)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", sorted({place(path.parent) for path in FILES}))
def test_a_folder_can_be_taken_in_at_a_glance(folder: str) -> None:
    """A folder has at most 25 files of one level; more want wings."""
    assert sum(path.parent == ROOT / folder for path in FILES) <= MOST_FILES


def module(path: Path) -> str:
    """``coral.format.names`` for its file, ``coral.format`` for the folder's own."""
    return place(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_import_goes_round() -> None:
    """No file imports itself by way of others, not even lazily or for types alone; doors are tables, and left out."""
    known = {module(path): path for path in FILES if path.parent.name != "coral" or path.name != "__init__.py"}
    graph = {
        own: {name if name in known else name.rpartition(".")[0] for _, name in imports(path)} & known.keys() - {own}
        for own, path in known.items()
        if own not in OPEN_DOORS
    }
    circles = [" and ".join(sorted(circle)) for circle in strongly_connected(graph) if len(circle) > 1]
    assert circles == []


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of nodes that reach each other (Tarjan, "Depth-first search and linear graph algorithms", 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize(
    ("graph", "circles"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [{"a", "b", "c"}]),
        ({"a": {"b"}, "b": {"a"}, "c": {"d", "a"}, "d": {"c"}}, [{"a", "b"}, {"c", "d"}]),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], circles: list[set[str]]) -> None:
    """The rule against circles sees them, and nothing else."""
    found = [circle for circle in strongly_connected(graph) if len(circle) > 1]
    assert sorted(map(sorted, found)) == sorted(map(sorted, circles))


def test_a_callback_is_known_wherever_it_comes_from() -> None:
    """Whatever may be interrupted halfway is listed for ``threads``, which does a nested call in its place."""
    pure = {"errors", "forks", "ids", "live", "plugins", "timings", "format", "git"}
    may_be_interrupted = {name for name, floor in FLOORS.items() if floor <= FLOORS["experiments"]} - pure
    assert {f"coral.{name}" for name in may_be_interrupted} == set(threads._LOWER)


def test_a_library_has_one_home() -> None:
    """A third-party library is imported in its one file or folder, so that one place knows its ways."""
    users: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for _, name in imports(path):
            library = name.split(".")[0]
            if library in ONE_FILE_THOUGH_STANDARD or library not in {*STANDARD, *ANYWHERE, "coral"}:
                users[library].add(place(path))
    strays = {
        library: sorted(places)
        for library, places in users.items()
        if not (all(p.startswith(HOMES[library]) for p in places) if library in HOMES else len(places) == 1)
    }
    assert not strays


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) not in {"storage", "testing"}], ids=place)
def test_only_storage_writes(path: Path) -> None:
    """All of coral's own writes go through storage/; what stands in for the disk has to write below it."""
    wrong = [
        f"{place(path)}:{node.lineno} {ast.unparse(node.func)}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and changes_a_file(node)
    ]
    for line, name in imports(path):
        module, _, member = name.rpartition(".")
        if {name, module} & {"shutil", "tempfile"} or (module == "os" and member in OS_WRITERS):
            wrong.append(f"{place(path)}:{line} {name}")
    assert not wrong


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) == "storage" and place(path) != SEAM], ids=place)
def test_storage_writes_through_one_seam(path: Path) -> None:
    """All that storage/ changes on a disk goes through storage/disk.py, so that tests can record, fail and cut it."""
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and dotted(node) in SYSTEM_CALLS:
            wrong.append(f"{place(path)}:{node.lineno} {dotted(node)}")
        elif isinstance(node, ast.Call) and changes_a_file(node) and not dotted(node.func).startswith("disk.current."):
            wrong.append(f"{place(path)}:{node.lineno} {ast.unparse(node.func)}")
    assert not wrong


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) not in {"cli", "__main__"}], ids=place)
def test_only_the_command_line_speaks_and_listens(path: Path) -> None:
    """The library neither prints, nor exits, nor reads the environment or the home folder."""
    wrong = [f"{place(path)}:{line} {name}" for line, name in imports(path) if name in OUTSIDE_WORLD]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and dotted(node) in MAY_TOUCH.get(place(path), ()):
            continue
        if isinstance(node, ast.Attribute) and (dotted(node) in OUTSIDE_WORLD or node.attr == "expanduser"):
            wrong.append(f"{place(path)}:{node.lineno} {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and dotted(node.func) in {"print", "input", "exit", "quit"}:
            wrong.append(f"{place(path)}:{node.lineno} {ast.unparse(node.func)}")
    assert not wrong


def test_nothing_is_cached_under_a_lock_that_a_fork_copies() -> None:
    """``cached_property`` holds one for all objects of a class while it computes, up to Python 3.11; see forks.py."""
    assert not [place(path) for path in FILES for _, name in imports(path) if name == "functools.cached_property"]


def test_every_module_opens_with_a_sentence() -> None:
    """A newcomer learns from the first line whether to read on."""
    bare = []
    for path in FILES:
        text = ast.get_docstring(tree(path)) or ""
        if not text.split("\n\n")[0].rstrip().endswith((".", ":", "?", "!", "::")):
            bare.append(place(path))
    assert not bare


@pytest.mark.parametrize("folder", ["coral", "examples", "benchmarks"])
def test_functions_are_short(folder: str) -> None:
    """No function is longer than a screen: 60 lines."""
    long = [
        f"{name}: {length} lines"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, length in lines_of_functions(path)
        if length > 60
    ]
    assert not long


def test_the_public_names_are_pinned() -> None:
    """Adding a public name, or losing one, is a decision and not an accident."""
    assert sorted(coral.__all__) == PUBLIC_NAMES
    for name in coral.__all__:
        assert getattr(coral, name) is not None


TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_MODULE = re.compile(r"\btests\.(?:\w+\.)*test_\w+")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the text of each string."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_no_test_is_a_tool_of_others() -> None:
    """What tests share stands in helpers, fixtures or ``coral.testing``: nobody imports a test module or names it to a
    process of theirs, except that module itself."""
    wrong = []
    for path in TESTS:
        for line, text in (*imports(path), *texts(path)):
            others = set(TEST_MODULE.findall(text)) - {module(path)}
            wrong += [f"{place(path)}:{line} wants {other}" for other in others]
    assert not wrong


HEAVY = ("torch", "numpy", "git", "pandas", "safetensors.torch", "pygit2", "ssl", "tarfile")
FOR_SOME = ("logging", "concurrent.futures", "subprocess", "secrets", "coral.format.manifest", "coral.verbs.diff")


def loaded(statements: str, folder: Path, names: Sequence[str] = HEAVY) -> set[str]:
    """Which of these libraries a fresh Python has loaded after these statements, which may exit."""
    script = (
        "import sys\ntry:\n"
        + "".join(f"    {line}\n" for line in statements.splitlines())
        + f"except SystemExit as exit:\n    assert not exit.code, exit.code\n"
        f"print('loaded', *(set({names!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])


def run_coral(*arguments: str) -> str:
    """The statements that run the coral command with these arguments."""
    return f"sys.argv = {['coral', *arguments]!r}\nfrom coral.cli import main\nmain()"


def test_import_is_light(tmp_path: Path) -> None:
    """`import coral` loads neither torch, nor numpy, nor GitPython."""
    assert loaded("import coral", tmp_path) == set()


def test_importing_experiments_is_light(tmp_path: Path) -> None:
    """`import coral.experiments` loads none of them either."""
    assert loaded("import coral.experiments", tmp_path) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["log"], ["status"], ["branch"], ["exp", "list"]], ids=" ".join
)
def test_commands_start_light(arguments: list[str], tmp_path: Path) -> None:
    """Commands that show text load neither torch, nor numpy, nor GitPython, nor libgit2."""
    commit_zeros(tmp_path)
    assert loaded(run_coral(*arguments), tmp_path) == set()


@pytest.mark.parametrize("arguments", [["log", "-n", "20"], ["log", "--oneline"], ["branch"]], ids=" ".join)
def test_looking_at_commits_is_lighter(arguments: list[str], tmp_path: Path) -> None:
    """Who looks at commits alone runs no program, has no worker threads and reads no manifest, nor loads what does."""
    commit_zeros(tmp_path)
    assert loaded(run_coral(*arguments), tmp_path, FOR_SOME) == set()


def commit_zeros(folder: Path) -> None:
    """A repository with one commit."""
    repo = coral.Repository(folder, init=True)
    repo.stage_weights({"weight": numpy.zeros(100, "<f4")})
    repo.commit("Zeros", step=1, metrics={"loss": 1.0})


def commands(group: click.Group, name: str = "coral") -> Iterator[tuple[str, click.Command]]:
    """Each command of a click group and of the groups in it, by its full name."""
    context = click.Context(group)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        assert command is not None, f"{name} {child}"
        yield f"{name} {child}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {child}")


def test_every_command_has_help() -> None:
    """Every command says what it does, and every option of it too."""
    assert isinstance(main, click.Group)
    found = dict(commands(main))
    assert found
    silent = [name for name, command in found.items() if not command.help]
    silent += [
        f"{name} {parameter.opts[0]}"
        for name, command in found.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not (parameter.help or parameter.hidden)
    ]
    assert not silent


@pytest.mark.parametrize(
    ("source", "writes"),
    [
        ("open(p)", False),
        ("open(p, 'rb')", False),
        ("open(p, 'w')", True),
        ("p.open('ab')", True),
        ("open(p, mode='r+')", True),
        ("os.open(p, os.O_RDONLY)", False),
        ("os.open(p, os.O_WRONLY | os.O_CREAT)", True),
        ("os.replace(a, b)", True),
        ("os.fdopen(fd, 'rb')", False),
        ("os.fdopen(fd, 'wb')", True),
        ("text.replace('a', 'b')", False),
        ("path.replace(target)", True),
        ("time.replace(tzinfo=None)", False),
        ("path.write_text('x')", True),
        ("folder.write(key, data)", False),
    ],
)
def test_a_write_is_recognised(source: str, writes: bool) -> None:
    """The rule that only storage/ writes sees the ways to write, and no string method."""
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert changes_a_file(call) is writes
