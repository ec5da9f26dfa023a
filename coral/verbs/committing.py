"""Making the commits of one line of work: at once or beside the caller, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from coral import threads
from coral.errors import AlreadyExistsError, CoralError
from coral.format.names import check_ref_name
from coral.timings import Timings, step
from coral.verbs import signals
from coral.verbs.commit import CommitObserver, Draft
from coral.verbs.line import OTHER
from coral.verbs.pending import Background, PendingCommit

if TYPE_CHECKING:
    from coral.history import Commit, History
    from coral.objects import ChunkStore
    from coral.tensors.copies import Copies
    from coral.verbs.checkpoint import Part
    from coral.verbs.line import Line
    from coral.verbs.pending import Make


class Committer:
    """Makes commits on a line of work.

    Args:
        store: opens the chunk store.
        tidy: what is done after each commit, which stands whatever becomes of it.

    Attributes:
        observers: who is asked for trailers of every commit, and told of it.
        timings: where the time of the last commit went, one that failed included.
    """

    def __init__(
        self, history: History, line: Line, store: Callable[[], ChunkStore], *, tidy: Callable[[], None]
    ) -> None:
        self._history = history
        self._line = line
        self._store = store
        self._tidy = tidy
        self._background = Background()
        self._copies: dict[str, Copies] = {}
        self.observers: list[CommitObserver] = []
        self.timings: Timings | None = None

    def commit(self, draft: Draft, *, wait: bool) -> Commit | PendingCommit:
        """Commit what is staged."""
        if wait:
            return threads.undisturbed(lambda: self._land(draft), owner=self._line)

        def make(begun: Callable[[], None]) -> Commit:
            with self._line.alone():
                begun()
                return self._land(draft)

        return self._beside(lambda: make)

    def save(self, parts: Sequence[Part], draft: Draft, *, wait: bool) -> Commit | PendingCommit:
        """Commit these parts, and nothing else that is staged; beside the caller, copies of them."""
        if wait:
            return threads.undisturbed(lambda: self._save(parts, draft), owner=self._line)

        def prepare() -> Make:
            store = self._store()
            with self._line.stopwatch.running("copy the state"):
                copied = [part.copied(self._copies_of(part.name), store) for part in parts]

            def make(begun: Callable[[], None]) -> Commit:
                with self._line.alone(), store.quietly():
                    begun()
                    return self._save(copied, draft)

            return make

        return self._beside(prepare)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What comes to nothing is no part of the next commit's timings."""
        try:
            yield
        except BaseException:
            self._line.stopwatch.take()
            raise

    def check_free(self) -> None:
        """Wait for the commit under way. Raises ConflictError in the middle of another one, and what went wrong."""
        self._line.check_not_inside()
        with self._line.stopwatch.running("wait for the commit before"):
            self.settle()

    def settle(self) -> None:
        """Wait for the commit that is under way. Raises what went wrong with it, unless its caller was told already."""
        self._background.settle()
        signals.let_go()

    def failure(self) -> BaseException | None:
        """As :meth:`settle`, but what went wrong is returned, and still to be told."""
        return self._background.failure()

    def trailers(self, *, step: int | None, metrics: Mapping[str, float] | None) -> dict[str, str]:
        """What the observers want to have in the next commit."""
        return {
            key: value
            for observer in list(self.observers)
            for key, value in observer.trailers(step=step, metrics=metrics).items()
        }

    def _copies_of(self, part: str) -> Copies:
        from coral.tensors.copies import Copies

        return self._copies.setdefault(part, Copies())

    def _beside(self, prepare: Callable[[], Make]) -> PendingCommit:
        signals.catch()
        return threads.undisturbed(lambda: self._background.start(prepare), owner=self._line)

    def _save(self, parts: Sequence[Part], draft: Draft) -> Commit:
        from coral.verbs.building import of_tensors

        with self._line.apart():
            for part in parts:
                self._line.stage(part.name, of_tensors(part))
            return self._land(draft)

    def _land(self, draft: Draft) -> Commit:
        with self._timed(), self._history.operation():
            with self._line.alone():
                commit = self._line.land(draft)
                threads.finish()
                with step("tell the run"):
                    for observer in list(self.observers):
                        observer.committed(commit)
                with step("tidy"), contextlib.suppress(CoralError, OSError):
                    self._tidy()
            for name in draft.tags:
                with step("tag"):
                    self._history.create_tag(name, commit.commit_hash)
        return commit

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        try:
            with self._line.stopwatch.running(OTHER):
                yield
        finally:
            self.timings = self._line.stopwatch.take()


def free_tags(history: History, tags: Sequence[str]) -> tuple[str, ...]:
    """The tags that a commit shall get, each once. Raises AlreadyExistsError for one that is taken."""
    given = [tags] if isinstance(tags, str) else tags
    names = dict.fromkeys(check_ref_name(name, "tag") for name in given)
    for name in names:
        for taken in history.tag_names():
            if taken == name or taken.startswith(f"{name}/") or name.startswith(f"{taken}/"):
                raise AlreadyExistsError(f"the tag {taken!r} exists already", hint="choose a name that is free")
    return tuple(names)
