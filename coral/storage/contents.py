"""What lies in a ``.coral``, by name; SPEC.md says what each is."""

from __future__ import annotations

CORAL = ".coral"
CACHE = "cache"
CONFIG = "config.toml"
"""Written last when a repository is made: its presence says that all else is there."""
HISTORY = ".git"
LINKED_FROM = "linked-from"
LOCKS = "locks"
OPERATIONS = "operations"
PACKS = "packs"
QUARANTINE = "quarantine"
RELYING = "relying"
RUNS = "experiments"
STAGING = "staging"
TMP = "tmp"
TRASH = "trash"

FOLDERS = (PACKS, STAGING, RUNS, TRASH, TMP, LOCKS)
"""Made with the repository."""


def lock(name: str) -> str:
    """The key of a lock."""
    return f"{LOCKS}/{name}"
