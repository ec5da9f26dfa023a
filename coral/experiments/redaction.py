"""Secrets do not get into records of runs: what is named as one, or looks like one, is replaced before it is written.

Only texts are looked at. A parameter is secret by the end of its name (``hf_token``, ``db.password``), not by a part of
it (``max_tokens``, ``pad_token``, ``api_key_env``); any text is searched for tokens of well-known make, private keys,
and what stands before the ``@`` of a URL.
"""

from __future__ import annotations

import re
from typing import Final

from coral import threads
from coral.experiments.scalars import Json

REDACTED: Final = "[redacted]"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_ENDS = {
    *(("secret",), ("secrets",), ("password",), ("passwd",), ("passphrase",), ("credential",), ("credentials",)),
    *(("authorization",), ("apikey",), ("api", "key"), ("private", "key"), ("secret", "key"), ("access", "key")),
    *(("access", "key", "id"), ("signing", "key"), ("auth", "key"), ("authtoken",), ("bearer",)),
}
# A token alone, or somebody's; others ("pad_token", "eos_token") are words of a model's vocabulary.
_OF_TOKENS = {
    *("access", "api", "auth", "bearer", "bot", "github", "gh", "gitlab", "hf", "hub", "huggingface", "id", "login"),
    *("oauth", "personal", "refresh", "security", "service", "session", "slack", "wandb", "write", "read", "comet"),
}
_TOKENS = re.compile(
    r"""
      \bgh[pousr]_[A-Za-z0-9]{36,} | \bgithub_pat_[A-Za-z0-9_]{22,} | \bglpat-[A-Za-z0-9_-]{20,}
    | \bhf_[A-Za-z0-9]{30,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \bsk-(?=[A-Za-z0-9_-]{0,200}[0-9])(?=[A-Za-z0-9_-]{0,200}[A-Z])[A-Za-z0-9_-]{32,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}
    | \beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    | -----BEGIN\ (?:[A-Z0-9]+\ )*PRIVATE\ KEY(?:\ BLOCK)?-----.*?(?:-----END[^-]*-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_USER_IN_URL = re.compile(r"\b(https?://)[^\s/?#]*@|\b([a-z][a-z0-9+.-]{0,20}://)[^\s/?#:@]*:[^\s/?#]*@")
_QUERY = re.compile(
    r"([?&](?:access_token|token|api_?key|password|secret|sig|signature|X-Amz-(?:Signature|Credential|Security-Token))=)"
    r"[^&#\s]+",
    re.IGNORECASE,
)
# What most texts lack, and any of these would have.
_HINTS = ("_", "-", "://", "AKIA", "ASIA", "eyJ")
_warned: list[bool] = []


def redact_params(params: dict[str, Json]) -> dict[str, Json]:
    """Parameters, or other data by name, without secrets; warns once in a process that there were some."""
    found: list[str] = []
    kept = _redact_named(params, found, secret=False)
    _warn(found)
    return kept


def redact_text(text: str, what: str) -> str:
    """A text without what looks like a secret; ``what`` names it in the warning."""
    kept = _clean(text)
    if kept != text:
        _warn([what])
    return kept


def _redact_named(values: dict[str, Json], found: list[str], *, secret: bool) -> dict[str, Json]:
    return {name: _redact(value, name, found, secret=secret or is_secret_name(name)) for name, value in values.items()}


def _redact(value: Json, name: str, found: list[str], *, secret: bool) -> Json:
    if isinstance(value, str):
        kept = REDACTED if secret and value else _clean(value)
        if kept != value:
            found.append(name)
        return kept
    if isinstance(value, dict):
        return _redact_named(value, found, secret=secret)
    if isinstance(value, list):
        return [_redact(item, name, found, secret=secret) for item in value]
    return value


def is_secret_name(name: str) -> bool:
    """Whether what is called so is meant to be kept from others."""
    words = tuple(word.lower() for word in _WORDS.findall(name[-100:]))
    if words[-1:] == ("token",):
        return len(words) == 1 or words[-2] in _OF_TOKENS
    return any(words[-len(end) :] == end for end in _SECRET_ENDS)


def _clean(text: str) -> str:
    if not any(hint in text for hint in _HINTS):
        return text
    text = _TOKENS.sub(REDACTED, text)
    text = _USER_IN_URL.sub(lambda match: f"{match[1] or match[2]}{REDACTED}@", text)
    return _QUERY.sub(lambda match: match[1] + REDACTED, text)


def _warn(names: list[str]) -> None:
    if names and not _warned:
        _warned.append(True)
        shown = ", ".join(repr(name) for name in dict.fromkeys(names))
        threads.warn(f"{shown}: what looks like a secret is kept as {REDACTED!r}", UserWarning)
