"""Builds the C kernel while coral is installed; without a compiler coral works as well, only slower."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("coral", "format", "codecs")
SOURCE, LIBRARY = FOLDER / "kernel.c", FOLDER / "_kernel.so"
_FLAGS = ("-O3", "-shared", "-fPIC")
_SECONDS = 300


class NotBuiltError(Exception):
    """There is no kernel, for the reason given."""


class KernelHook(BuildHookInterface[Any]):
    """Compiles the kernel for wheels and editable installs, in place; a source distribution holds its source only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernel and put it into the wheel, which then is for this platform alone, and for any Python 3."""
        if self.target_name != "wheel":
            return
        try:
            build(Path(self.root), os.environ)
        except NotBuiltError as error:
            self.app.display_warning(f"coral: the C kernel was not built, numpy does its work, slower: {error}")
            return
        if version == "editable":
            return  # the library is found where it was built
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        platform = self.build_config.builder.get_best_matching_tag().rpartition("-")[2]
        build_data["tag"] = f"py3-none-{platform}"


def build(root: Path, environment: Mapping[str, str]) -> None:
    """Compile the kernel; when that fails none is left over from before, so that what is installed is what was built.

    Args:
        root: of the source tree.
        environment: ``CC`` names the compiler; with ``CORAL_NO_KERNEL`` nothing is built.

    Raises:
        NotBuiltError: in one line, why.
    """
    library = root / LIBRARY
    temporary = library.with_name(f"_kernel.{os.getpid()}.tmp")
    try:
        if environment.get("CORAL_NO_KERNEL", "0") not in {"", "0"}:
            raise NotBuiltError("CORAL_NO_KERNEL is set")
        _compile(_compilers(environment), root / SOURCE, temporary)
        # Under its own name at once: a process that has the old one loaded keeps it.
        temporary.replace(library)
    except BaseException:
        temporary.unlink(missing_ok=True)
        library.unlink(missing_ok=True)
        raise


def _compilers(environment: Mapping[str, str]) -> list[list[str]]:
    named = [environment["CC"]] if environment.get("CC") else ["cc", "gcc", "clang"]
    commands = [shlex.split(name) for name in named]
    found = [command for command in commands if command and shutil.which(command[0], path=environment.get("PATH"))]
    if not found:
        raise NotBuiltError(f"no compiler: {', '.join(named)} cannot be found")
    return found


def _compile(compilers: list[list[str]], source: Path, target: Path) -> None:
    """Compile with the first compiler that can."""
    problems = []
    for compiler in compilers:
        command = [*compiler, *_FLAGS, "-o", str(target), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            wrong = next(
                (line for line in said if "error" in line.lower()), said[0] if said else "it failed and did not say why"
            )
            problems.append(f"{compiler[0]}: {wrong.strip()}")
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"{compiler[0]}: {error}")
        else:
            return
    raise NotBuiltError("; ".join(problems))
