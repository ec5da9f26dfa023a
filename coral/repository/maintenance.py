"""``repo.maintenance``: what keeps a repository whole and small."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from coral.errors import CoralError
from coral.verbs.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from coral.format.manifest import TensorRecord
    from coral.history import Operation
    from coral.ids import CommitHash
    from coral.objects.writer import Progress
    from coral.verbs.care.fsck import Checked
    from coral.verbs.care.gc import Collected
    from coral.verbs.care.repack import Repacked
    from coral.verbs.care.repair import Repaired
    from coral.verbs.care.verify import Verified
    from coral.verbs.opened import Opened


class Maintenance:
    """Checks, repairs and cleans a repository.

    Args:
        settle: waits for the commit that is under way.
        resolve: the commit of any form of ref.
    """

    def __init__(self, opened: Opened, *, settle: Callable[[], None], resolve: Callable[[str], CommitHash]) -> None:
        self._opened = opened
        self._settle = settle
        self._resolve = resolve

    def gc(
        self,
        *,
        grace: float | timedelta = timedelta(days=14),
        prune_now: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Collected:
        """Put what nothing names any more into the trash, and remove what has been there for the grace period.

        Kept is what branches, tags, HEAD and the reflogs lead to, what is staged, what runs name, deleted ones that can
        be restored included, what can be undone, and what the git repositories reach that rely on it: the one around
        the project, and those that were noted. A dedup hit takes what it needs back out of the trash.

        Args:
            grace: how long what is new, what can be undone and what is in the trash is kept; in seconds, or a delta.
            prune_now: keep none of that. Not while git is at work on models.
            dry_run: change nothing, and tell the same.

        Raises:
            CorruptionError, GitCommandError: what is named cannot be known; nothing was collected.
            LockedError: other processes kept the store busy.
            ConflictError: the repository object has parts staged.
        """
        from coral.verbs.care.gc import collect

        self._settle()
        self._opened.line.check_not_holding()
        return collect(
            self._opened.project,
            self._opened.folder,
            self._opened.history,
            self._opened.store,
            grace=grace.total_seconds() if isinstance(grace, timedelta) else grace,
            prune_now=prune_now,
            dry_run=dry_run,
            progress=progress,
        )

    def fsck(
        self,
        *,
        read_data: bool | float = False,
        git: bool = False,
        repair: bool = False,
        progress: Progress | None = None,
    ) -> Checked:
        """Check every commit that a branch, a tag or HEAD reaches, and what runs name, deleted ones included.

        Args:
            read_data: read and verify every byte, rather than only that every chunk is there; or a share of all,
                another one each time.
            git: check what the git repositories that rely on it reach as well.
            repair: make damaged indexes anew, and fetch what is lost from other packs, the trash, the remotes and the
                project's files. Damaged packs go into the quarantine, and nothing is removed.

        Raises:
            NotFoundError: no git repository is around the project, nor noted as relying on it, and ``git``.
            GitCommandError: one that relies on it cannot be reached, and ``git``.
            LockedError: others kept the store busy for too long to repair it.
        """
        from coral.verbs.care.fsck import Checker, still_damaged, with_runs
        from coral.verbs.care.scrub import Scrub
        from coral.verbs.relying import reliers

        opened, share = self._opened, float(read_data)
        checker = Checker(
            opened.history,
            opened.reader,
            opened.store,
            read_data=share == 1,
            scrub=Scrub(opened.folder, share) if read_data is not False and share != 1 else None,
            progress=progress,
        )
        checked = checker.run(folder=opened.folder, git=reliers(opened.project, opened.folder) if git else None)
        if repair:
            self._settle()
            opened.line.check_not_holding()
            repaired = self._repair([record for _, record in checker.damaged])
            left = still_damaged(opened.store, checked.damage, checker.damaged)
            checked = replace(checked, damage=left, repaired=repaired)
        return replace(checked, damage=with_runs(opened.folder, checked.damage))

    def _repair(self, damaged: Sequence[TensorRecord]) -> Repaired:
        from coral.verbs.care.repair import Repairer
        from coral.verbs.sharing.remotes import open_remote

        opened = self._opened
        files = [*opened.worktree.untracked(()), *opened.worktree.materialised(self._known_parts())]
        config = Config.load(opened.folder)  # as it is now: other processes change it as well
        remotes = {remote.name: partial(open_remote, opened.project, config, remote.name) for remote in config.remotes}
        repairer = Repairer(opened.project, opened.folder, opened.store, remotes=remotes, files=sorted(set(files)))
        return repairer.run(damaged)

    def _known_parts(self) -> set[str]:
        """The names of all parts of the tips."""
        history = self._opened.history
        found: set[str] = set()
        for tip in {*history.branches().values(), *history.tags().values()}:
            with contextlib.suppress(CoralError):
                found.update(history.parts(tip))
        return found

    def verify(self, ref: str = "HEAD", *, read_data: bool = False, progress: Progress | None = None) -> Verified:
        """Check that a commit is just what somebody signed whom the user trusts, down to the chunks of its tensors.

        Args:
            read_data: read and verify every byte, rather than only that every chunk is there. Whatever is read later
                is verified then.

        Raises:
            SignatureError: it is not signed, not by a trusted key, or holds something else than was signed.
            CorruptionError: a chunk is missing or damaged.
        """
        from coral.verbs.care.verify import verify_commit

        return verify_commit(
            self._opened.history,
            self._opened.reader,
            self._opened.store,
            self._resolve(ref),
            project=self._opened.project,
            read_data=read_data,
            progress=progress,
        )

    def repack(self, *refs: str, progress: Progress | None = None) -> Repacked:
        """Make commits quick to read: what they hold as deltas against other commits is stored whole.

        Args:
            refs: the commits; none takes the tips of all branches, and all tags.

        Raises:
            CorruptionError: a chunk cannot be read; nothing was changed.
        """
        from coral.verbs.care.repack import repack

        history = self._opened.history
        names = refs or (*history.branches().values(), *history.tags().values())
        done = repack(self._opened.store, self._opened.reader, map(self._resolve, names), progress=progress)
        with contextlib.suppress(CoralError, OSError):
            self._opened.tidy()
        return done

    def operations(self) -> list[Operation]:
        """What was done to branches, tags and HEAD, and by garbage collection; the newest first."""
        return self._opened.history.operations()
