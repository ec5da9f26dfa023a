"""What coral writes into git's configuration: the filter, the diff and the merge driver.

Written and removed by ``git config``, one key at a time. A value counts as coral's own when it is, letter for letter,
what :func:`values` gives for some path of coral's program; all others are the user's.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from coral.errors import ConflictError
from coral.git.command import ask, run

Scope = Literal["local", "global"]
"""The configuration of one repository, with all its worktrees, or that of the user."""

NAMES = ("coral", "git-coral")
MODULE = ("-P", "-m", "coral")
_KEYS = r"^(filter|diff|merge)\.coral\."
_COMMANDS = {
    "filter.coral.process": " git-filter",
    "diff.coral.command": " git-diff",
    "merge.coral.driver": " git-merge %O %A %B %L %P",
}
_CONSTANTS = {"filter.coral.required": "true", "merge.coral.name": "merge of tensors"}
# A constant may be anybody's: it is coral's where the command that it belongs to is.
_BELONGS_TO = {"filter.coral.required": "filter.coral.process", "merge.coral.name": "merge.coral.driver"}


def values(program: Sequence[str]) -> dict[str, str]:
    """Every key and its value, for the words that start coral's program."""
    command = shlex.join(program)
    found = {key: f"{command}{arguments}" for key, arguments in _COMMANDS.items()}
    # Here alone git replaces %O and the like.
    found["merge.coral.driver"] = command.replace("%", "%%") + _COMMANDS["merge.coral.driver"]
    return found | _CONSTANTS


def conflicts(folder: Path, program: Sequence[str], scope: Scope) -> list[str]:
    """The keys that have a value of the user's, as ``key = value``."""
    return [
        f"{key} = {value}"
        for key, found in _read(folder, scope).items()
        for value in found
        if key in values(program) and not _is_corals(key, value)
    ]


def check(folder: Path, program: Sequence[str], scope: Scope) -> None:
    """Raise ConflictError when a key has a value of the user's."""
    taken = conflicts(folder, program, scope)
    if taken:
        raise ConflictError(
            f"git's configuration has other values already: {'; '.join(taken)}",
            hint="remove them with 'git config --unset', or overwrite them with --force",
        )


def install(folder: Path, program: Sequence[str], scope: Scope, *, force: bool = False) -> list[str]:
    """Write what is not there yet; returns the keys that changed.

    Raises:
        ConflictError: a key has a value of the user's, and ``force`` is False; nothing was written.
        GitCommandError: git could not write.
    """
    if not force:
        check(folder, program, scope)
    found = _read(folder, scope)
    changed = [(key, value) for key, value in values(program).items() if found.get(key) != [value]]
    for key, value in changed:
        run(folder, ["config", f"--{scope}", "--replace-all", key, value])
    return [key for key, _ in changed]


def uninstall(folder: Path, scope: Scope) -> list[str]:
    """Remove the keys whose value is coral's, and sections that are empty then; returns the keys."""
    file, found = _file(folder, scope), _read(folder, scope)
    corals = [key for key, all_values in found.items() if all(_is_corals(key, value) for value in all_values)]
    removed = [key for key in corals if _BELONGS_TO.get(key, key) in corals or _BELONGS_TO[key] not in found]
    for key in removed:
        run(folder, ["config", f"--{scope}", "--unset-all", key])
    for section in dict.fromkeys(key.rpartition(".")[0] for key in removed):
        if _has_bare_header(file, section):
            run(folder, ["config", f"--{scope}", "--remove-section", section])
    return removed


def installed_program(folder: Path) -> list[str] | None:
    """The program that git runs for coral in a folder, wherever that is configured; None when coral is not set up."""
    listed = ask(folder, ["config", "--null", "--get-regexp", _KEYS], nothing_found=1)
    last = {key: found[-1] for key, found in _grouped(listed or "").items()}
    program = _program("filter.coral.process", last.get("filter.coral.process", ""))
    return program if all(_is_corals(key, last.get(key, "")) for key in (*_COMMANDS, *_CONSTANTS)) else None


def _read(folder: Path, scope: Scope) -> dict[str, list[str]]:
    text = ask(folder, ["config", f"--{scope}", "--null", "--get-regexp", _KEYS], nothing_found=1)
    return _grouped(text or "")


def _grouped(listed: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in filter(None, listed.split("\0")):
        key, _, value = item.partition("\n")
        found.setdefault(key, []).append(value)
    return found


def _is_corals(key: str, value: str) -> bool:
    return value == _CONSTANTS[key] if key in _CONSTANTS else _program(key, value) is not None


def _program(key: str, value: str) -> list[str] | None:
    """The words that start coral in a value of coral's; None for a value of the user's."""
    arguments = _COMMANDS.get(key)
    if arguments is None or not value.endswith(arguments):
        return None
    text = value.removesuffix(arguments)
    try:
        words = shlex.split(text.replace("%%", "%") if key == "merge.coral.driver" else text)
    except ValueError:  # quotes that do not end
        return None
    return words if _is_program(words) and values(words)[key] == value else None


def _is_program(words: Sequence[str]) -> bool:
    if not words or not os.path.isabs(words[0]):
        return False
    return tuple(words[1:]) == MODULE or (len(words) == 1 and os.path.basename(words[0]) in NAMES)


def _file(folder: Path, scope: Scope) -> Path | None:
    """The file that holds coral's keys; None when none does."""
    listed = ask(folder, ["config", f"--{scope}", "--null", "--show-origin", "--get-regexp", _KEYS], nothing_found=1)
    origin = (listed or "").split("\0")[0]
    return folder / origin.removeprefix("file:") if origin else None


def _has_bare_header(file: Path | None, section: str) -> bool:
    """Whether all that a file says of a section is its header, which git leaves where a comment stands above it."""
    name, _, sub = section.partition(".")
    header = rf'\[{name} "{sub}"\]'.encode()
    text = file.read_bytes() if file is not None else b""
    bare = re.findall(rb"^[ \t]*" + header + rb"[ \t\r]*(?:\n\s*)?(?=\[|\Z)", text, re.MULTILINE)
    return bool(bare) and len(bare) == len(re.findall(header, text))
