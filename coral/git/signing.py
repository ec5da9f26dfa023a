"""Signatures as git makes and checks them, with the user's own keys: by gpg, gpgsm or ssh-keygen.

Which program signs is taken from the user's and the system's git configuration alone, never from a repository's: a
folder that came from elsewhere must not name a program to be run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coral.errors import GitCommandError, UsageError
from coral.git.command import ask, check

_OWN_SCOPES = ("system", "global", "command")
_PROGRAMS: Final = {
    "openpgp": (("gpg.openpgp.program", "gpg.program"), "gpg"),
    "x509": (("gpg.x509.program",), "gpgsm"),
    "ssh": (("gpg.ssh.program",), "ssh-keygen"),
}
_ALLOWED = "gpg.ssh.allowedsignersfile"
_REVOKED = "gpg.ssh.revocationfile"
_SETTINGS = r"^(gpg\..*|user\.signingkey)$"
_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What git says of a signature.

    Attributes:
        good: it is of these very bytes, by a key that the user trusts.
        report: what the program said, for people.
    """

    good: bool
    report: str


class Signer:
    """Signs with the key that git's configuration names.

    Args:
        folder: where git is asked.
        key: instead of ``user.signingkey``.

    Raises:
        UsageError: no key is configured, or a format that is unknown.
    """

    def __init__(self, folder: Path, *, key: str | None = None) -> None:
        settings = _settings(folder)
        self._format = settings.get("gpg.format", "openpgp")
        if self._format not in _PROGRAMS:
            raise UsageError(f"git's gpg.format is {self._format!r}", hint=f"one of {', '.join(_PROGRAMS)}")
        self._program = _program(settings, self._format)
        self._key = key or settings.get("user.signingkey", "")
        if not self._key or self._key.startswith("-"):
            raise UsageError("no key to sign with", hint="git config --global user.signingkey KEY")
        if self._format == "ssh" and self._key.startswith(("ssh-", "key::", "ecdsa-", "sk-")):
            raise UsageError("user.signingkey holds a key itself", hint="name the file that the key is in")

    def __call__(self, payload: bytes) -> str:
        """The signature of these bytes, armoured. Raises GitCommandError when the program fails."""
        if self._format == "ssh":
            arguments = ["-Y", "sign", "-n", "git", "-f", self._key]
        else:
            arguments = ["--status-fd=2", "-bsau", self._key]
        signature = _run([self._program, *arguments], payload)
        if not signature.startswith("-----BEGIN "):
            raise GitCommandError(f"{self._program} made no signature")
        return signature


def verify(git_dir: Path, commit: str, *, folder: Path) -> Checked:
    """Whether a commit bears a good signature, as ``git verify-commit`` says.

    Args:
        git_dir: the history that the commit is in.
        folder: where git is asked for the user's configuration.

    Raises:
        GitCommandError: there is no git.
    """
    settings = _settings(folder)
    options = [f"gpg.{kind}.program={_program(settings, kind)}" for kind in _PROGRAMS]
    options += [f"gpg.program={_program(settings, 'openpgp')}", f"{_ALLOWED}={settings.get(_ALLOWED, '')}"]
    # A repository's own list of revoked keys, or level of trust, does not take the place of the user's.
    options.append(f"gpg.mintrustlevel={settings.get('gpg.mintrustlevel', 'undefined')}")
    options += [f"{_REVOKED}={settings[_REVOKED]}"] if _REVOKED in settings else []
    words = [word for option in options for word in ("-c", option)]
    # A replacement would be verified in the place of the commit that weights are read from.
    status, report = check(git_dir, [*words, "--no-replace-objects", "verify-commit", commit])
    return Checked(status == 0, report)


def _settings(folder: Path) -> Mapping[str, str]:
    """The settings that signing needs. Programs, and who is trusted, count only where the user himself says so."""
    # As a path, so that git replaces a leading ~; what is no path stays as it is.
    listed = ask(folder, ["config", "--type=path", "--show-scope", "--null", "--get-regexp", _SETTINGS])
    words = (listed or "").split("\0")
    found = {}
    for scope, item in zip(words[::2], words[1::2], strict=False):
        name, _, value = item.partition("\n")
        if scope in _OWN_SCOPES or name in ("user.signingkey", "gpg.format"):
            found[name.lower()] = value
    return found


def _program(settings: Mapping[str, str], kind: str) -> str:
    names, usual = _PROGRAMS[kind]
    return next((settings[name] for name in names if settings.get(name)), usual)


def _run(words: Sequence[str], data: bytes) -> str:
    try:
        done = subprocess.run(words, input=data, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitCommandError(f"{words[0]} cannot be run: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise GitCommandError(f"{words[0]} did not sign: {said or f'exit status {done.returncode}'}")
    return done.stdout.decode("ascii", "replace")
