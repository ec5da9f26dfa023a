"""Running git in the user's repository, by GitPython's command interface: questions that may fail, and commands.

Where git is called from a hook, a filter or a driver, its environment already names the repository; that stays.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING

from coral import pool
from coral.errors import GitCommandError

if TYPE_CHECKING:
    import subprocess

_MOST_COMPLAINTS = 20
_NOTHING: Mapping[str, str] = MappingProxyType({})
QUIET = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false")
"""Options with which a question runs no program that the repository's own configuration names."""
QUIET_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    # A partial clone would fetch what it lacks, by whatever program its remote names.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    # Questions name files by patterns of git's.
    "GIT_LITERAL_PATHSPECS": "0",
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


def run(
    folder: Path,
    arguments: Sequence[str],
    *,
    data: bytes = b"",
    quiet: bool = True,
    environment: Mapping[str, str] = _NOTHING,
) -> bytes:
    """What a git command prints.

    Args:
        data: its standard input.
        quiet: no hooks, no file system monitor, nothing fetched.
        environment: variables besides ours.

    Raises:
        GitCommandError: it failed; the message is what it said.
    """
    options, own = (QUIET, QUIET_ENVIRONMENT) if quiet else ((), {})
    status, output, complaint = _execute(folder, [*options, *arguments], data=data, environment={**own, **environment})
    if status != 0:
        raise _failure(arguments, status, complaint)
    return output


def _failure(arguments: Sequence[str], status: int, complaint: bytes) -> GitCommandError:
    command = next((word for word in arguments if not word.startswith("-")), "")
    said = complaint.decode(errors="replace").strip()
    return GitCommandError(f"git {command} failed: {said or f'exit status {status}'}")


class Conversation:
    """A git process that is written to and read from by turns, see :func:`converse`.

    Attributes:
        stdin, stdout: its ends of the pipes.
    """

    def __init__(self, process: subprocess.Popen[bytes], arguments: Sequence[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout
        self._process = process
        self._arguments = arguments
        self._complaints: deque[bytes] = deque(maxlen=_MOST_COMPLAINTS)
        # Whoever complains much must not wait for somebody to read it.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        try:
            pool.start(self._listener)
        except RuntimeError as error:
            process.kill()
            process.communicate()
            raise GitCommandError(f"git cannot be listened to: {error}") from error

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            self._complaints.extend(stderr)

    def tell(self, data: bytes, *, now: bool = True) -> None:
        """Write to the process, in larger pieces unless wanted ``now``. Raises GitCommandError when it is gone."""
        try:
            self.stdin.write(data)
            if now:
                self.stdin.flush()
        except OSError:
            raise self.failure() from None

    def finish(self) -> None:
        """Wait for the process to end. Raises GitCommandError when it failed."""
        if self._end() != 0:
            raise self.failure()

    def failure(self) -> GitCommandError:
        """The error for a process that ended badly, or too early; the message is what it said last."""
        status = self._end()
        self._listener.join()
        return _failure(self._arguments, status, b"".join(self._complaints))

    def _end(self) -> int:
        with contextlib.suppress(OSError):
            self.stdin.close()
        return self._process.wait()

    def kill(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._end()
        self.stdout.close()
        self._listener.join()


@contextlib.contextmanager
def converse(
    folder: Path, arguments: Sequence[str], *, environment: Mapping[str, str] = _NOTHING
) -> Iterator[Conversation]:
    """Start a git command that answers while it is asked, quietly as :func:`ask`; it is killed at the block's end.

    Args:
        environment: variables besides ours.

    Raises:
        GitCommandError: there is no git.
    """
    started = _start(folder, [*QUIET, *arguments], environment={**QUIET_ENVIRONMENT, **environment})
    talk = Conversation(started, arguments)
    try:
        yield talk
    finally:
        talk.kill()


@contextlib.contextmanager
def stream(
    folder: Path, arguments: Sequence[str], *, environment: Mapping[str, str] = _NOTHING
) -> Iterator[Conversation]:
    """As :func:`converse`, of a process that counts only when it comes to its end, which the block's end waits for.

    Raises:
        GitCommandError: at the end of the block, when the process failed; where an exception leaves it, it is killed.
    """
    with converse(folder, arguments, environment=environment) as talk:
        yield talk
        talk.finish()


def lines(folder: Path, arguments: Sequence[str], *, data: bytes = b"") -> Iterator[bytes]:
    """What a git command prints, quietly as :func:`ask`, line by line as it comes and without their ends.

    Args:
        data: its standard input, which it must read before it prints much.

    Raises:
        GitCommandError: it failed, perhaps after some lines.
    """
    with converse(folder, arguments) as talk:
        talk.tell(data)
        talk.stdin.close()
        for line in talk.stdout:
            yield line.rstrip(b"\n")
        talk.finish()


def check(folder: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """A git command's exit status, and all that it says. Raises GitCommandError when there is no git."""
    status, output, complaint = _execute(folder, [*QUIET, *arguments], environment=QUIET_ENVIRONMENT)
    return status, (output + complaint).decode(errors="replace").strip()


def _execute(
    folder: Path, arguments: Sequence[str], *, data: bytes = b"", environment: Mapping[str, str]
) -> tuple[int, bytes, bytes]:
    with _start(folder, arguments, environment=environment) as proc:
        output, complaint = proc.communicate(data)
    return proc.returncode, output, complaint


def _start(folder: Path, arguments: Sequence[str], *, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    import subprocess  # most commands run no program

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
    proc, process.proc = process.proc, None
    assert proc is not None
    return proc
