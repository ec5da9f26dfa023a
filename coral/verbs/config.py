"""``.coral/config.toml``: the format version, the repository's policies, and its remotes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from coral.errors import CoralError, CorruptionError, VersionError
from coral.storage.bounded import read_bounded
from coral.storage.contents import CONFIG
from coral.storage.folder import Folder

FORMAT_VERSION = 1
_LIMIT = 64 << 10
_MAX_DOTS = 200
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Remote(NamedTuple):
    """A name for another place that holds chunks, and where that is, as the user wrote it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Config:
    """A repository's settings.

    Attributes:
        author: who commits when the call does not say.
        verify_writes: decode each encoded chunk and compare before it counts.
        threads: workers for hashing and codecs; None takes every core.
        keep_parent: keep the bytes of the last commit in memory while training goes on, up to a quarter of what is
            free, so that the next one need not read them back to be encoded against them.
        remotes: where chunks are sent to and fetched from, in the order they were added.
    """

    author: str | None = None
    verify_writes: bool = True
    threads: int | None = None
    keep_parent: bool = True
    remotes: tuple[Remote, ...] = ()

    def to_toml(self) -> str:
        """The file's text."""
        lines = ["[coral]", f"format = {FORMAT_VERSION}", 'hash = "blake3"', "", "[store]"]
        lines.append(f"verify_writes = {str(self.verify_writes).lower()}")
        lines.append(f"keep_parent = {str(self.keep_parent).lower()}")
        if self.threads is not None:
            lines.append(f"threads = {self.threads}")
        if self.author is not None:
            lines += ["", "[user]", f"author = {quoted(self.author)}"]
        lines += [line for remote in self.remotes for line in ("", *remote_lines(remote))]
        return "\n".join(lines) + "\n"

    @classmethod
    def load(cls, folder: Folder) -> Config:
        """Read the settings of the repository in this folder.

        Raises:
            NotFoundError: no settings, so no repository.
            VersionError: the repository was made by a newer coral.
            CorruptionError: the file is damaged, or says what coral does not understand.
        """
        where = folder.path(CONFIG)
        try:
            text = _read(folder, CONFIG)
            if text == cls().to_toml():  # as a new repository has it: no parser need be loaded
                return cls()
            data = _parse(text)
            _check_version(data["coral"], folder)
            store, user = data.get("store", {}), data.get("user", {})
            config = cls(
                user.get("author"),
                store.get("verify_writes", True),
                store.get("threads"),
                store.get("keep_parent", True),
                remotes_of(data),
            )
            config._check()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CoralError):
                raise
            raise CorruptionError(f"{where} is damaged: {error}") from None
        return config

    def _check(self) -> None:
        good = (
            type(self.verify_writes) is bool
            and type(self.keep_parent) is bool
            and isinstance(self.author, str | None)
            and (self.threads is None or (type(self.threads) is int and 1 <= self.threads <= 1024))
        )
        if not good:
            raise ValueError("a setting has the wrong type")


def read_settings(folder: Folder, key: str) -> dict[str, Any]:
    """A settings file, parsed. Raises NotFoundError, CorruptionError, ValueError, RecursionError."""
    return _parse(_read(folder, key))


def _read(folder: Folder, key: str) -> str:
    return read_bounded(folder, key, _LIMIT).decode()


def _parse(text: str) -> dict[str, Any]:
    import tomllib

    # A key of thousands of dots costs their square, in time and memory.
    if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {_MAX_DOTS} dots")
    return tomllib.loads(text)


def remotes_of(data: dict[str, dict[str, dict[str, object]]]) -> tuple[Remote, ...]:
    """The remotes that a parsed settings file names. Raises ValueError, KeyError, TypeError or AttributeError."""
    remotes = tuple(Remote(name, str(table["url"])) for name, table in data.get("remotes", {}).items())
    if any(type(table["url"]) is not str for table in data.get("remotes", {}).values()):
        raise ValueError("the url of a remote is no text")
    return remotes


def remote_lines(remote: Remote) -> list[str]:
    """The lines of a settings file that name a remote."""
    key = remote.name if _BARE_KEY.fullmatch(remote.name) else quoted(remote.name)
    return [f"[remotes.{key}]", f"url = {quoted(remote.url)}"]


def quoted(text: str) -> str:
    """A text as TOML writes it. No DEL may be in it."""
    return json.dumps(text, ensure_ascii=False)


def _check_version(head: dict[str, object], folder: Folder) -> None:
    """Before anything else is looked at: a newer format may mean something else by it."""
    version = head["format"]
    if type(version) is not int or version < 1:
        raise ValueError("the format is no number")
    if version > FORMAT_VERSION or head["hash"] != "blake3":
        raise VersionError(
            f"{folder.root} has format {version} ({head.get('hash')}), this coral reads {FORMAT_VERSION} (blake3)",
            hint="upgrade coral",
        )
