"""What must be kept: every id of a chunk that anything names which can still come back into a file or a model.

That is whatever the history's refs and reflogs reach, the shell's staging area, the commits and artifacts of runs, for
as long as a deleted one can be restored, what operations that can be undone name, and the manifests that the git
repositories reach which rely on the store: the one around the project, and those that are noted. Texts are searched for
ids, whatever else they are: a manifest with conflict markers counts with all that it mentions, and so do one of a newer
coral and the file of a run that is damaged. What cannot be read is an error, because nobody knows what it names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from coral.errors import CorruptionError, NotFoundError
from coral.objects.idset import IdSet
from coral.storage.contents import STAGING
from coral.verbs.git_manifests import STORED
from coral.verbs.relying import reliers
from coral.verbs.runs import COMMIT, Seen, texts_of_runs
from coral.verbs.staging import INDEX

if TYPE_CHECKING:
    from coral.history import History
    from coral.storage.folder import Folder

_STAGED = f"{STAGING}/{INDEX}"


class Marks:
    """Everything that is named, found step by step: each walk reads only what is new.

    Args:
        project: the project's folder.
        folder: its ``.coral``.
        may_be_here: where to put the ids that others name, who may have more than this repository.
        since: the operations from then on, in seconds since 1970, can be undone.

    Attributes:
        must_be_here: ids that the repository itself names, which the store must have.
    """

    def __init__(self, project: Path, folder: Folder, history: History, may_be_here: IdSet, *, since: float) -> None:
        self.must_be_here = IdSet()
        self.may_be_here = may_be_here
        self._project = project
        self._folder = folder
        self._history = history
        self._since = since
        self._reachable = history.reachable()
        self._of_git: set[str] = set()
        self._of_runs: Seen = {}

    def walk(self) -> None:
        """Find what is named now, and was not before.

        Raises:
            CorruptionError, GitCommandError, StorageError: something cannot be read.
        """
        # First what is on its way to be named elsewhere: a commit moves its ref before it clears the staging area.
        roots = {*self._staged(), *self._runs(), *self._history.named_since(self._since)}
        for _, text in reliers(self._project, self._folder).texts(seen=self._of_git):
            _add(text, self.may_be_here)
        for blob in self._reachable.blobs(sorted(roots)):
            _add(self._history.read_blob(blob), self.must_be_here)

    def _staged(self) -> Iterator[str]:
        """What the shell's staging area names."""
        try:
            text = self._folder.read(_STAGED)
        except NotFoundError:
            return
        try:
            data = json.loads(text)
            named = [data["base"], *data["parts"].values()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            named = [0]
        if not all(oid is None or (isinstance(oid, str) and COMMIT.fullmatch(oid.encode())) for oid in named):
            raise CorruptionError(f"{self._folder.path(_STAGED)} is damaged", hint="remove it and add the files again")
        yield from filter(None, named)

    def _runs(self) -> Iterator[str]:
        """The commits that runs name; what artifacts they name is noted."""
        for one in texts_of_runs(self._folder, seen=self._of_runs):
            _add(one.text, self.may_be_here)
            yield from (oid for oid in one.commits if self._history.has(oid))


def _add(text: bytes, ids: IdSet) -> None:
    ids.add_joined(bytes.fromhex(b"".join(STORED.findall(text)).decode()))
