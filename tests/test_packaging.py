"""Installing: a C kernel is built where there is a compiler, left out where there is none, used where it is there."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from coral.format.codecs.kernel import _VERSION, LIBRARY, kernel

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hook() -> ModuleType:
    """``hatch_build.py``, which the build backend runs."""
    pytest.importorskip("hatchling", reason="NOT TESTED: the build of the C kernel; hatchling is not installed here")
    found = util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert found is not None and found.loader is not None
    module = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def sources(hook: ModuleType) -> list[Path]:
    """The kernel's source, and what it includes."""
    return [file for file in (ROOT / hook.FOLDER).iterdir() if file.suffix in {".c", ".h"}]


@pytest.fixture
def source(tmp_path: Path, hook: ModuleType) -> Path:
    """A source tree in which a library was built before."""
    (tmp_path / hook.FOLDER).mkdir(parents=True)
    for file in sources(hook):
        shutil.copy(file, tmp_path / hook.FOLDER)
    (tmp_path / hook.LIBRARY).write_bytes(b"an old one")
    return tmp_path


def built(source: Path, hook: ModuleType) -> list[str]:
    """What lies beside the kernel's source."""
    return sorted(path.name for path in (source / hook.FOLDER).iterdir() if path.suffix not in {".c", ".h"})


def test_a_library_that_is_there_is_used() -> None:
    """The loops run in C when the library was built, and only then; both are told apart without guessing."""
    assert kernel.is_native is (LIBRARY.exists() and sys.byteorder == "little")


def test_a_compiler_gives_a_library(source: Path, hook: ModuleType) -> None:
    """Where there is a compiler, the library is built under its own name and nothing else is left."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("NOT TESTED: the build of the C kernel; there is no compiler here")

    hook.build(source, {"PATH": os.environ["PATH"]})
    assert built(source, hook) == ["_kernel.so"]
    assert ctypes.CDLL(str(source / hook.LIBRARY)).coral_kernel_version() == _VERSION


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CORAL_NO_KERNEL": "1", "PATH": "/usr/bin:/bin"}, "CORAL_NO_KERNEL is set"),
        ({"PATH": "/nonexistent"}, "no compiler: cc, gcc, clang cannot be found"),
        ({"CC": "no-such-compiler -m64", "PATH": "/usr/bin:/bin"}, "no compiler: no-such-compiler -m64"),
        ({"CC": "false", "PATH": "/usr/bin:/bin"}, "false: "),
    ],
    ids=str,
)
def test_without_a_compiler_there_is_none(
    source: Path, hook: ModuleType, environment: dict[str, str], said: str
) -> None:
    """A build that cannot or must not have the kernel says why in one line, and leaves no older library to be used."""
    with pytest.raises(hook.NotBuiltError, match=said) as error:
        hook.build(source, environment)
    assert "\n" not in str(error.value)
    assert built(source, hook) == []


def test_git_ignores_what_is_built(hook: ModuleType) -> None:
    """Neither the library nor what a build that was killed leaves behind is ever committed, or put into a wheel."""
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for name in (hook.LIBRARY, hook.LIBRARY.with_name("_kernel.1.tmp")):
        assert any(name.match(pattern) for pattern in patterns)
