"""The text of a commit: what the user wrote, then coral's own trailers, told apart reversibly.

::

    val_loss=1.83 at step 400

    Coral-Run: 3f2a9c
    Coral-Step: 400

A line of the user's that looks like one of coral's trailers is stored one space further in, so that no message can
pass for a trailer and every message comes back exactly as it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from coral.errors import FormatError, UsageError
from coral.format.names import escape, unescape

_KEY = re.compile(r"Coral-[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
_LOOKS_LIKE_OURS = re.compile(r"^(?= *Coral-)", re.MULTILINE | re.IGNORECASE | re.ASCII)
_SET_IN = re.compile(r"^ (?= *Coral-)", re.MULTILINE | re.IGNORECASE | re.ASCII)
_TRAILERS = re.compile(r"\n\n((?:Coral-[A-Za-z0-9][A-Za-z0-9-]*: [^\n]*(?:\n|\Z))+)\Z", re.ASCII)


def encode(message: str, trailers: Mapping[str, str]) -> str:
    """The text of a commit object.

    Args:
        message: kept to the last space; not blank.
        trailers: keys start with ``Coral-``; values may be any text.

    Raises:
        UsageError: a blank message, a NUL, lone surrogates, or a key that is not ours.
    """
    if not message.strip():
        raise UsageError("the message of a commit is empty", hint="say in a few words what the weights are")
    check_text(message, "the message")
    lines = [f"{_check_key(key)}: {escape(value)}\n" for key, value in trailers.items()]
    return _LOOKS_LIKE_OURS.sub(" ", message) + ("\n\n" if lines else "\n") + "".join(lines)


def decode(text: str) -> tuple[str, dict[str, str]]:
    """Undo :func:`encode`; text that git wrote comes back less its last newline."""
    trailers: dict[str, str] = {}
    match = _TRAILERS.search(text)
    if match is not None:
        text = text[: match.start()]
        for line in match[1].removesuffix("\n").split("\n"):
            key, _, value = line.partition(": ")
            trailers[key] = _unescape(value)
    else:
        text = text.removesuffix("\n")
    return _SET_IN.sub("", text), trailers


def check_text(text: str, what: str) -> str:
    """Refuse what git cannot store; returns the text. Raises UsageError."""
    if "\0" in text:
        raise UsageError(f"{what} contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid unicode") from None
    return text


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} is not a valid trailer", hint="trailers are named Coral-Word or Coral-Two-Words")
    return key


def _unescape(value: str) -> str:
    try:
        return unescape(value)
    except FormatError:  # written by hand
        return value
