"""Refs, read without libgit2 where they are plain: a repository as coral makes it, each ref a file as git writes it.

Loading libgit2 takes longer than all else that most commands do. Whatever is out of the ordinary is left to it. What is
answered here it would answer in the same way, except that a link that leads nowhere hides refs from its listing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

CONFIG = b"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\tlogAllRefUpdates = always
[gc]
\tauto = 0
"""
"""What a new repository's ``config`` says; another might have refs lie elsewhere, or want not to be read at all."""
_WORD = r"[\w-]+(?:\.[\w-]+)*(?<!\.lock)"
_NAME = rf"refs(?:/{_WORD})+"
_REST = re.compile(rf"{_WORD}(?:/{_WORD})*", re.ASCII)
_FULL = re.compile(rf"HEAD|{_NAME}", re.ASCII)
_SAID = re.compile(rf"([0-9a-f]{{40}})\n|ref: ({_NAME})\n".encode())
_MOST_BYTES = 1024


class NotPlainError(Exception):
    """Something is out of the ordinary: libgit2 is to be asked."""


class RefTarget(NamedTuple):
    """What a ref says: an object's hash, or the name of another ref."""

    oid: str | None
    ref: str | None


class PlainRefs:
    """The refs of a git repository, as far as they are plain.

    Every call raises NotPlainError where they are not.
    """

    def __init__(self, git_dir: Path) -> None:
        self._root = f"{git_dir}/"
        self._is_known = False

    def ref(self, name: str) -> RefTarget | None:
        """What a ref (full name) says; None when there is no such ref."""
        self._check()
        if _FULL.fullmatch(name) is None:
            raise NotPlainError
        said = _read(self._root + name)
        if said is None:
            self._check_not_packed()
        return said

    def refs(self, prefix: str) -> dict[str, str]:
        """The refs under a prefix such as ``refs/heads/``, by the rest of their name, sorted, with their hash."""
        self._check()
        top = self._root + prefix
        found = {}
        for folder, folders, names in os.walk(top, onerror=_refuse):
            for name in names:
                rest = f"{folder}/{name}"[len(top) :].lstrip("/")
                if name.endswith(".lock"):
                    continue
                said = _read(f"{folder}/{name}")
                if _REST.fullmatch(rest) is None or (said is not None and said.oid is None):
                    raise NotPlainError
                if said is not None and said.oid is not None:
                    found[rest] = said.oid
            if any(os.path.islink(f"{folder}/{name}") for name in folders):
                raise NotPlainError
        self._check_not_packed()
        return dict(sorted(found.items()))

    def _check(self) -> None:
        if not self._is_known:
            has_all = os.path.exists(f"{self._root}HEAD") and os.path.isdir(f"{self._root}objects")
            if not has_all or _bytes(f"{self._root}config") != CONFIG or os.path.lexists(f"{self._root}commondir"):
                raise NotPlainError
            self._is_known = True

    def _check_not_packed(self) -> None:
        # Looked at after the files: git packs a ref before it removes its file. coral packs none.
        if os.path.lexists(f"{self._root}packed-refs"):
            raise NotPlainError


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise NotPlainError from error


def _read(path: str) -> RefTarget | None:
    raw = _bytes(path)
    if raw is None:
        return None
    said = _SAID.fullmatch(raw)
    if said is None:
        raise NotPlainError
    oid, ref = said.groups()
    return RefTarget(oid.decode(), None) if oid is not None else RefTarget(None, ref.decode())


def _bytes(path: str) -> bytes | None:
    try:
        # A pipe in its place is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotPlainError from error
    try:
        return os.read(fd, _MOST_BYTES)
    except OSError as error:  # a folder of refs, for one
        raise NotPlainError from error
    finally:
        os.close(fd)
