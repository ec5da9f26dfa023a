"""Running git in the user's repository, by GitPython's command interface: questions that may fail, and commands.

Where git is called from a hook, a filter or a driver, its environment already names the repository; that stays.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from coral.errors import GitCommandError

QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false")
"""Options with which a question runs no program that the repository's own configuration names."""
QUIET_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    # A partial clone would fetch what it lacks, by whatever program its remote names.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}


def ask(folder: Path, arguments: Sequence[str], *, nothing_found: int = 0) -> str | None:
    """What git answers in a folder, as text; None when git is absent or fails.

    Args:
        nothing_found: another exit status that is no failure.
    """
    try:
        status, output, _ = _execute(folder, [*QUIET, *arguments], environment=QUIET_ENVIRONMENT)
    except GitCommandError:
        return None
    return output.decode(errors="surrogateescape") if status in (0, nothing_found) else None


def run(folder: Path, arguments: Sequence[str], *, data: bytes = b"", quiet: bool = True) -> bytes:
    """What a git command prints.

    Args:
        data: its standard input.
        quiet: no hooks, no file system monitor, nothing fetched.

    Raises:
        GitCommandError: it failed; the message is what it said.
    """
    options, environment = (QUIET, QUIET_ENVIRONMENT) if quiet else ((), {})
    status, output, complaint = _execute(folder, [*options, *arguments], data=data, environment=environment)
    if status != 0:
        said = complaint.decode(errors="replace").strip()
        raise GitCommandError(f"git {arguments[0]} failed: {said or f'exit status {status}'}")
    return output


def _execute(
    folder: Path, arguments: Sequence[str], *, data: bytes = b"", environment: Mapping[str, str]
) -> tuple[int, bytes, bytes]:
    try:
        from git.cmd import Git  # at import it looks for the git program
        from git.exc import GitError
    except ImportError as error:
        raise GitCommandError(f"git cannot be run: {error}", hint="install git") from None
    try:
        process = Git(str(folder)).execute(
            ["git", *arguments], istream=subprocess.PIPE, as_process=True, env=dict(environment)
        )
    except (GitError, OSError, ValueError) as error:
        raise GitCommandError(f"git cannot be run: {error}", hint="install git") from None
    # GitPython's wrapper kills what it lets go of; the process itself is wanted.
    assert process.proc is not None
    with process.proc as proc:
        output, complaint = proc.communicate(data)
    return proc.returncode, output, complaint
