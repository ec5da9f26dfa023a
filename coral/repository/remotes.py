"""``repo.remotes``: the places that tensors are shared through, by name, and sending there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from coral.verbs.config import Config, Remote

if TYPE_CHECKING:
    from coral.format.manifest import Manifest, TensorRecord
    from coral.objects.writer import Progress
    from coral.verbs.opened import Opened
    from coral.verbs.sharing.transfer import Transferred


class Remotes:
    """The user's own remotes, in the order they were added; iterating gives them."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def __iter__(self) -> Iterator[Remote]:
        return iter(self._config().remotes)

    def _config(self) -> Config:
        """The settings as they are now, which other processes change as well."""
        return Config.load(self._opened.folder)

    def choose(self, name: str | None = None, *, like: str | None = None) -> Remote:
        """The remote that is meant: the one named, else the one named ``like`` something, else origin, else the only
        one.

        Raises:
            NotFoundError: there is none, or none of that name.
            UsageError: there are several, and nothing says which is meant.
        """
        from coral.verbs.sharing.remotes import choose_remote

        return choose_remote(self._config(), name, like=like)

    def offered(self) -> list[Remote]:
        """The remotes that ``.coralconfig`` names, and that are not the user's own or lie elsewhere.

        Raises:
            FormatError: that file is malformed.
        """
        from coral.verbs.sharing.remotes import offered_remotes

        return offered_remotes(self._opened.project, self._opened.folder)

    def add(self, name: str, url: str, *, private: bool = False) -> Path | None:
        """Name a remote, and make its folder ready where it is not; returns the file that tells colleagues of it.

        Args:
            url: a folder: an absolute path, one relative to the project, or ``file:///path``.
            private: tell nobody; nor is anybody told outside of a git repository.

        Raises:
            UsageError: a place or name that cannot be.
            AlreadyExistsError: another remote has the name, here or in ``.coralconfig``.
        """
        from coral.verbs.sharing.remotes import add_remote

        return add_remote(self._opened.project, self._opened.folder, Remote(name, url), private=private)

    def remove(self, name: str, *, private: bool = False) -> Path | None:
        """Forget a remote; its chunks stay. Returns the file that told colleagues of it, if it does no longer.

        Args:
            private: colleagues still find it in ``.coralconfig``.

        Raises:
            NotFoundError: no such remote.
        """
        from coral.verbs.sharing.remotes import remove_remote

        return remove_remote(self._opened.project, self._opened.folder, name, private=private)

    def adopt(self) -> list[Remote]:
        """Make the remotes of ``.coralconfig`` whose names are new the user's own; returns them.

        Raises:
            FormatError, UsageError: the file is malformed, or names what cannot be a remote.
        """
        from coral.verbs.sharing.remotes import adopt_remotes

        return adopt_remotes(self._opened.project, self._opened.folder)

    def push(self, remote: str | None = None, *, progress: Progress | None = None) -> Transferred:
        """Send to a remote what it lacks of the chunks of git's HEAD and all before it, and of the tips of the history.

        The artifacts of runs go along, so that one that is lost here can be repaired from there; the runs themselves do
        not, and nothing of deleted ones.

        Args:
            remote: its name; None takes origin, else the only one.

        Raises:
            NotFoundError, UsageError: no such remote, or nothing says which of several.
            CorruptionError: chunks are missing or damaged here; all others were sent.
            GitCommandError: a git repository that relies on this one cannot be reached; nothing was sent.
            StorageError: the disk refused; the next call goes on from there.
        """
        from coral.verbs.relying import reliers
        from coral.verbs.runs import texts_of_runs

        opened = self._opened
        tips = {*opened.history.branches().values(), *opened.history.tags().values()}
        head = opened.history.head().commit
        hashes = sorted(tips | {head} if head is not None else tips)
        own = (manifest for commit_hash in hashes for manifest in opened.reader.at(commit_hash).values())
        ours = (manifest for _, manifest in reliers(opened.project, opened.folder).heads())
        artifacts = (one for text in texts_of_runs(opened.folder, trash=False) for one in text.artifacts)
        return self.send(chain(ours, own), remote, artifacts=artifacts, progress=progress)

    def send(
        self,
        manifests: Iterable[Manifest],
        remote: str | None = None,
        *,
        artifacts: Iterable[TensorRecord] = (),
        progress: Progress | None = None,
    ) -> Transferred:
        """Send to a remote what it lacks of the chunks of some manifests and artifacts. Raises as :meth:`push`."""
        from coral.verbs.sharing.remotes import open_target
        from coral.verbs.sharing.transfer import send

        there = open_target(self._opened.project, self._config(), remote)
        return send(self._opened.store, there, manifests, progress, artifacts=artifacts)
