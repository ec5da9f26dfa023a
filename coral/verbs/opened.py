"""A repository, opened: what its doors share, each part made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from coral import forks
from coral.history import History
from coral.live import Live
from coral.storage.contents import HISTORY, LOCKS, STAGING
from coral.verbs import layout
from coral.verbs.config import Config
from coral.verbs.line import Line
from coral.verbs.parts import PartReader
from coral.verbs.staging import PrivateStaging, ShellStaging

if TYPE_CHECKING:
    from coral.objects import ChunkStore
    from coral.verbs.provenance import Provenance
    from coral.verbs.worktree import WorkTree

T = TypeVar("T")


class _Made(Generic[T]):
    """An attribute that is made by the first who asks, once, whichever thread that is.

    The one of ``functools`` would hold a lock of the class while it computes, up to Python 3.11.
    """

    def __init__(self, make: Callable[[Opened], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, opened: None, owner: type[Opened]) -> _Made[T]: ...

    @overload
    def __get__(self, opened: Opened, owner: type[Opened]) -> T: ...

    def __get__(self, opened: Opened | None, owner: type[Opened]) -> _Made[T] | T:
        if opened is None:
            return self
        with opened.making:
            # What is in the object's own dictionary is found there the next time, before this is asked.
            if self._name not in opened.__dict__:
                opened.__dict__[self._name] = self._make(opened)
        made: T = opened.__dict__[self._name]
        return made


class Opened(Live):
    """One repository, opened. Doors hold it; verbs are handed the parts that they need.

    Args:
        project: the project's folder, the one that holds ``.coral``.
        init: make the repository when there is none.
        shell_staging: stage into ``.coral/staging``, which the shell's commands share.

    Attributes:
        folder: its ``.coral``.
        reader: the manifests of commits.
        line: the branch that is committed to, and what is staged for it.

    Raises:
        RepositoryNotFoundError: no repository there, and ``init`` is False.
        VersionError: made by a newer coral.
    """

    def __init__(self, project: Path, *, init: bool = False, shell_staging: bool = False) -> None:
        self.project = project
        self.folder = layout.create(project) if init else layout.open_folder(project)
        self.config = Config.load(self.folder)
        self.history = History(self.folder.path(HISTORY), locks=self.folder.path(LOCKS))
        self.reader = PartReader(self.history)
        self.making = forks.rlock()
        self.line = Line(
            self.history,
            self.reader,
            lambda: self.store,
            ShellStaging(self.folder.sub(STAGING), self.history, self.reader) if shell_staging else PrivateStaging(),
            durable=shell_staging,
        )

    @_Made
    def store(self) -> ChunkStore:
        """The chunk store."""
        return layout.open_store(self.folder, self.config)

    @_Made
    def worktree(self) -> WorkTree:
        """The project's files."""
        from coral.verbs.worktree import WorkTree

        return WorkTree(self.project, self.folder.sub(STAGING), self.history, self.reader, lambda: self.store)

    @_Made
    def provenance(self) -> Provenance:
        """Which code is around the project, and who its user is."""
        from coral.verbs.provenance import Provenance

        return Provenance(self.project)

    def tidy(self) -> None:
        """Keep the number of files small. Whoever calls has done what he wanted, whatever becomes of this."""
        self.history.consolidate()
        self.store.consolidate()
        self.folder.sweep_temporary()
