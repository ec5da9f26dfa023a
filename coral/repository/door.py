"""The repository: the door to a folder's history of weights.

It holds no algorithm: each method names the verbs of the floor below, in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from coral import forks, threads
from coral.errors import (
    AlreadyExistsError,
    ConflictError,
    CoralError,
    PartNotFoundError,
    RefNotFoundError,
    UsageError,
)
from coral.format.manifest import Manifest, TensorRecord
from coral.format.names import check_ref, check_ref_name
from coral.git.enclosing import CodeState
from coral.history import Commit, History
from coral.live import Live
from coral.tensors.copies import Copies
from coral.verbs import layout, signals
from coral.verbs.commit import CommitObserver, Draft, build_trailers
from coral.verbs.config import Config
from coral.verbs.diff import Diff, diff_parts
from coral.verbs.line import Build, Line
from coral.verbs.parts import PartReader, check_updatable, is_state, is_weights, laid_over, part_not_found
from coral.verbs.pending import Background, PendingCommit
from coral.verbs.provenance import Provenance, made_by
from coral.verbs.staging import (
    PrivateStaging,
    ShellStaging,
    StagedChange,
    StagedFiles,
    Staging,
    staged_changes,
)
from coral.verbs.worktree import CheckoutResult, Plan, WorkTree

if TYPE_CHECKING:
    import os

    from coral.history import Operation, ReflogEntry
    from coral.objects import ChunkStore, Parent, StoreWriter, TensorSource
    from coral.objects.writer import Progress
    from coral.verbs.care.fsck import Checked
    from coral.verbs.care.gc import Collected
    from coral.verbs.care.repack import Repacked
    from coral.verbs.care.repair import Repaired
    from coral.verbs.care.verify import Verified
    from coral.verbs.checkpoint import Part, Stateful
    from coral.verbs.ingest import Tell
    from coral.verbs.pending import Make
    from coral.verbs.sharing.transfer import Transferred
    from coral.verbs.weights import Weights

_DEFAULT_AUTHOR = "coral"
_REF_GROUP = "coral.refs"


@dataclass(frozen=True, slots=True)
class Status:
    """What differs between the branch's tip, the staging area and the project's files.

    Attributes:
        branch: the branch HEAD is on, None when detached.
        commit: full hash of HEAD, None before the first commit.
        staged: what the next commit will change.
        modified: files that differ from the commit, or from what is staged.
        untracked: model files that no part names.
        parts: how many parts the next commit will hold.
    """

    branch: str | None
    commit: str | None
    staged: tuple[StagedChange, ...]
    modified: tuple[str, ...]
    untracked: tuple[str, ...]
    parts: int


@dataclass(frozen=True, slots=True)
class CommitDetails:
    """A commit, the parts it holds, and what it changed against its first parent."""

    commit: Commit
    parts: Mapping[str, Manifest]
    diff: Diff


class Repository(Live):
    """A folder's history of weights.

    One object belongs to one line of work: its staging is its own, and its commits land on the branch that HEAD was
    on when it first committed (or when a run started), whatever the shell switches to meanwhile.

    Threads may share it. Their calls of :meth:`save` land one after the other, each with what it was given; reading,
    branches and tags need no order. What one thread has staged by hand no other's :meth:`save` takes along, and one
    that stages meanwhile gets a ConflictError; :meth:`commit` commits what is staged, whoever staged it. Files of the
    project, the branch (:meth:`pin`), and where HEAD is, are one thread's affair. Callbacks, such as ``progress``, are
    called by a thread of coral's.

    An interrupt (Ctrl-C, an exception from a signal handler) never leaves it halfway: what was under way is whole, or
    is not there, and the next call works. From a signal handler that came in the middle of staging or committing,
    neither can be done (ConflictError).

    Args:
        path: the project's folder, the one that holds ``.coral``.
        init: make the repository when there is none.
        shell_staging: stage into ``.coral/staging``, which the shell's commands share.

    Raises:
        RepositoryNotFoundError: no repository there, and ``init`` is False.
        VersionError: made by a newer coral.
    """

    def __init__(self, path: str | os.PathLike[str] = ".", init: bool = False, *, shell_staging: bool = False) -> None:
        self.path = Path(path).resolve()
        self.storage = layout.create(self.path) if init else layout.open_folder(self.path)
        self.coral_dir = self.storage.root
        self.config = Config.load(self.storage)
        self.history = History(self.coral_dir / ".git", locks=self.coral_dir / "locks")
        self._reader = PartReader(self.history)
        staging: Staging = (
            ShellStaging(self.storage.sub("staging"), self.history, self._reader) if shell_staging else PrivateStaging()
        )
        self._line = Line(self.history, self._reader, lambda: self.store, staging, durable=shell_staging)
        self._observers: list[CommitObserver] = []
        self._opening = forks.rlock()
        self._store: ChunkStore | None = None
        self._background = Background()
        self._copies: dict[str, Copies] = {}
        cache = self.storage.sub("staging")
        self.worktree = WorkTree(self.path, cache, self.history, self._reader, lambda: self.store)
        """The project's files."""
        self._provenance = Provenance(self.path)
        if not shell_staging:
            self._provenance.start()

    @classmethod
    def discover(cls, path: str | os.PathLike[str] = ".", *, shell_staging: bool = False) -> Repository:
        """Open the repository that holds a folder, looking upwards as git does. Raises RepositoryNotFoundError."""
        return cls(layout.discover(Path(path).resolve()), shell_staging=shell_staging)

    @property
    def store(self) -> ChunkStore:
        """The chunk store."""
        if self._store is None:
            with self._opening:
                self._store = self._store or layout.open_store(self.storage, self.config)
        return self._store

    @property
    def code(self) -> CodeState | None:
        """The enclosing git repository's commit, branch and dirtiness, as they were when this object was made."""
        return self._provenance.state

    @property
    def author(self) -> str | None:
        """Who commits when the call does not say: whom the configuration names, else the user of the git repository
        around this one; None for nobody known."""
        return self.config.author or self._provenance.author

    # -- stage

    def stage_weights(
        self,
        weights: object,
        name: str = "model.safetensors",
        *,
        update: bool = False,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """Put a model's tensors into the next commit, as they are now.

        Args:
            weights: a module, or a mapping of names to torch tensors, numpy arrays or JAX arrays.
            name: the part, which is also the file that ``checkout`` writes.
            update: lay these tensors over those that the part holds, rather than replace it.
            metadata: the safetensors file's own key-value pairs; torch's tensors say ``format: pt`` without.

        Raises:
            UnsupportedValueError: a tensor that cannot be kept without loss.
            PartNotFoundError, UsageError: there is nothing to update, or it is no safetensors file of weights.
            StorageError: the disk refused; what was staged before is still staged.
        """
        from coral.verbs.checkpoint import weights_of, weights_part

        part = weights_part(name, weights_of(weights), metadata or {})

        def build(writer: StoreWriter, parent: Parent) -> Manifest:
            old = check_updatable(name, self._line.staged_or_tip(name)) if update else None
            records = tuple(writer.write_tensors(part.tensors, parent=parent, progress=progress))
            fresh = Manifest("safetensors", records, None, part.metadata)
            return fresh if old is None else laid_over(old, fresh)

        return self._line.stage(name, build)

    def stage_state(
        self, state: object, name: str = "state.safetensors", *, progress: Progress | None = None
    ) -> Manifest:
        """Put what is not a model's weights into the next commit: optimizer states, schedulers, epochs.

        Tensors inside become tensors; the rest is kept as JSON, never as a pickle. Tuples, integer keys, bytes and
        dtypes come back as such.

        Raises:
            UnsupportedValueError: a value that cannot be kept, named by its path in the state.
        """
        from coral.tensors.state import encode_state
        from coral.verbs.checkpoint import sources_of
        from coral.verbs.parts import STATE_KEY

        text, tensors = encode_state(state)
        sources = sources_of(tensors)

        return self._stage_tensors(name, sources, ((STATE_KEY, text),), progress)

    def _stage_tensors(
        self,
        name: str,
        sources: Sequence[TensorSource],
        metadata: tuple[tuple[str, str], ...],
        progress: Progress | None = None,
    ) -> Manifest:
        def build(writer: StoreWriter, parent: Parent) -> Manifest:
            records = tuple(writer.write_tensors(sources, parent=parent, progress=progress))
            return Manifest("safetensors", records, None, metadata)

        return self._line.stage(name, build)

    def stage_file(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        opaque: bool = False,
        progress: Progress | None = None,
    ) -> Manifest:
        """Put a file into the next commit: safetensors, torch zips, npy and npz by their tensors, others whole.

        Warns of one that is kept whole though its name promises tensors.

        Args:
            path: the file.
            name: the part; None takes the path relative to the project.
            opaque: keep the bytes whole, whatever the file is.

        Raises:
            FormatError: the file is plainly not what its name promises: malformed, cut short, empty, or a pointer;
                nothing was staged.
        """
        file, reasons = Path(path), list[str]()
        build = _building(file, reasons.append, opaque=opaque, progress=progress)
        manifest = self._line.stage(self.worktree.part_name(file) if name is None else name, build)
        for why in reasons:
            threads.warn(f"{file} is kept whole: {why}", UserWarning)
        return manifest

    def stage_files(
        self,
        files: Mapping[str, str | os.PathLike[str]],
        *,
        opaque: bool = False,
        partly: bool = False,
        progress: Progress | None = None,
    ) -> StagedFiles:
        """Put files into the next commit in one step; each as :meth:`stage_file` does, and no warning.

        Args:
            files: by part. All are looked at, whatever is wrong with one of them.
            partly: stage those that can be kept; else all are, or none is. What came of each is returned.

        Raises:
            StorageError, CorruptionError: the store's disk refused, or it is damaged; nothing was staged.
        """
        reasons: dict[str, str] = {}
        builds = {
            name: _building(Path(path), partial(reasons.__setitem__, name), opaque=opaque, progress=progress)
            for name, path in files.items()
        }
        parts, failed = self._line.stage_all(builds, partly=partly)
        return StagedFiles(parts, failed, reasons)

    def unstage(self, *names: str) -> None:
        """Take parts out of the next commit; all of them when none is named. Raises PartNotFoundError."""
        self._line.unstage(names)

    def rm(self, *names: str, cached: bool = False, force: bool = False) -> None:
        """Stage the removal of parts, and remove their files unless ``cached``.

        Raises:
            PartNotFoundError: neither staged nor in the branch's tip.
            OverwriteError: a file holds bytes that no commit holds, and ``force`` is False.
        """
        self._line.check_there(names)
        for name in () if cached or force else names:
            self.worktree.check_removable(name)
        self._line.stage_removal(names)
        if not cached:
            self.worktree.remove(names)

    def status(self) -> Status:
        """What differs between the branch's tip, the staging area and the files."""
        branch, commit = self._line.position()
        parts = self._line.staged()
        tip = self._reader.at(commit) if commit else {}
        now = {name: part for name, part in {**tip, **parts}.items() if part is not None}
        there = self.worktree.materialised(now)
        modified = tuple(name for name in sorted(there) if not self.worktree.agrees(name, now[name]))
        self.worktree.save_stamps()
        staged = tuple(staged_changes(parts, tip.get))
        return Status(branch, commit, staged, modified, tuple(self.worktree.untracked(now)), len(now))

    # -- commit

    @overload
    def commit(
        self,
        message: str,
        author: str | None = ...,
        tags: Sequence[str] = ...,
        metadata: Mapping[str, object] | None = ...,
        allow_empty: bool = ...,
        *,
        step: int | None = ...,
        metrics: Mapping[str, float] | None = ...,
        wait: Literal[True] = ...,
        sign: bool | str = ...,
    ) -> Commit: ...

    @overload
    def commit(
        self,
        message: str,
        author: str | None = ...,
        tags: Sequence[str] = ...,
        metadata: Mapping[str, object] | None = ...,
        allow_empty: bool = ...,
        *,
        step: int | None = ...,
        metrics: Mapping[str, float] | None = ...,
        wait: Literal[False],
        sign: bool | str = ...,
    ) -> PendingCommit: ...

    def commit(
        self,
        message: str,
        author: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
        allow_empty: bool = False,
        *,
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        wait: bool = True,
        sign: bool | str = False,
    ) -> Commit | PendingCommit:
        """Commit what is staged; once the commit is there, a power cut cannot take it back.

        Args:
            message: why.
            author: ``Name <email>`` or a name; None takes :attr:`author`, else ``coral``.
            tags: names for the commit.
            metadata: JSON to keep with the commit.
            allow_empty: commit even when nothing changed.
            step: the training step that the weights are of; links the commit to the active run exactly.
            metrics: measured at this step; they are kept with the commit.
            wait: False makes the commit beside the caller; :meth:`PendingCommit.result` tells how it went, and so
                does the next commit if it failed.
            sign: sign it with the key that git's ``user.signingkey`` names, or with this key.

        Raises:
            NothingToCommitError: nothing staged differs from the branch's tip.
            ConflictError: another commit changed a staged part meanwhile; committing again lays yours over it. Or the
                call came from a signal handler in the middle of another one.
            AlreadyExistsError: a tag exists; one taken in the very moment is found out after the commit landed.
        """
        self._line.check_not_inside()
        self.flush()
        names = self.check_tags(tags)
        draft = self._draft(message, author, metadata, step=step, metrics=metrics, allow_empty=allow_empty)
        draft = replace(draft, sign=self._signer(sign))
        if wait:
            return threads.undisturbed(lambda: self._land(draft, names), owner=self._line)

        def make(begun: Callable[[], None]) -> Commit:
            with self._line.alone():
                begun()
                return self._land(draft, names)

        return self._beside(lambda: make)

    def check_tags(self, tags: Sequence[str]) -> list[str]:
        """The tags that a commit shall get, each once. Raises AlreadyExistsError for one that is taken."""
        given = [tags] if isinstance(tags, str) else tags
        names = list(dict.fromkeys(check_ref_name(name, "tag") for name in given))
        for name in names:
            self._check_free_tag(name)
        return names

    def _beside(self, prepare: Callable[[], Make]) -> PendingCommit:
        signals.catch()
        return threads.undisturbed(lambda: self._background.start(prepare), owner=self._line)

    def _draft(
        self,
        message: str,
        author: str | None = None,
        metadata: Mapping[str, object] | None = None,
        *,
        step: int | None,
        metrics: Mapping[str, float] | None,
        allow_empty: bool,
    ) -> Draft:
        trailers = build_trailers(step=step, metrics=metrics, metadata=metadata, code=self.code)
        for observer in list(self._observers):
            trailers.update(observer.trailers(step=step, metrics=metrics))
        return Draft(message, author or self.author or _DEFAULT_AUTHOR, trailers, allow_empty)

    def _signer(self, sign: bool | str) -> Callable[[bytes], str] | None:
        if not sign:
            return None
        from coral.git.signing import Signer

        return Signer(self.path, key=sign if isinstance(sign, str) else None)

    def _land(self, draft: Draft, tags: Sequence[str]) -> Commit:
        with self.history.operation():
            with self._line.alone():
                commit = self._line.land(draft)
                threads.finish()
                for observer in list(self._observers):
                    observer.committed(commit)
                self._tidy()
            for name in tags:
                self.history.create_tag(name, commit.commit_hash)
        return commit

    def flush(self) -> None:
        """Wait for the commit that is under way. Raises what went wrong with it, unless its caller was told already."""
        self._background.settle()
        signals.let_go()

    def pending_failure(self) -> BaseException | None:
        """As :meth:`flush`, but what went wrong is returned, and still to be told: by the next commit, or at exit."""
        return self._background.failure()

    @overload
    def save(
        self,
        model: object,
        optimizer: Stateful | None = ...,
        scheduler: Stateful | None = ...,
        message: str | None = ...,
        *,
        step: int | None = ...,
        metrics: Mapping[str, float] | None = ...,
        tags: Sequence[str] = ...,
        metadata: Mapping[str, str] | None = ...,
        wait: Literal[True] = ...,
        **state: object,
    ) -> Commit: ...

    @overload
    def save(
        self,
        model: object,
        optimizer: Stateful | None = ...,
        scheduler: Stateful | None = ...,
        message: str | None = ...,
        *,
        step: int | None = ...,
        metrics: Mapping[str, float] | None = ...,
        tags: Sequence[str] = ...,
        metadata: Mapping[str, str] | None = ...,
        wait: Literal[False],
        **state: object,
    ) -> PendingCommit: ...

    def save(
        self,
        model: object,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        message: str | None = None,
        *,
        step: int | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        wait: bool = True,
        **state: object,
    ) -> Commit | PendingCommit:
        """Commit a whole training checkpoint in one call: weights, optimizer, scheduler, random number generators.

        The author is that of :meth:`commit`.

        Args:
            model: a module, or a mapping of names to tensors.
            optimizer, scheduler: what has ``state_dict()`` and ``load_state_dict()``.
            message: why; None writes ``step N``.
            step, metrics, tags: as :meth:`commit` takes them.
            metadata: the safetensors file's own key-value pairs, as :meth:`stage_weights` takes them.
            wait: False copies all of it, as it is now, and returns; the commit is made of the copy while training
                goes on. A call that finds the commit before it under way waits for that one. The end of the process
                waits, and so does a signal, if this, or the start of a run, was called by the main thread.
            state: whatever else training needs to go on; :meth:`load_into` returns it.

        What another process commits on the same branch meanwhile is no conflict: this checkpoint comes after it, and
        replaces the parts that it names. Parts that it does not name stay as they are there.

        Raises:
            UnsupportedValueError: a value that cannot be kept, named by its path.
            CoralError: with the commit before this one, which nobody waited for, something went wrong.
        """
        from coral.verbs import checkpoint

        self._line.check_not_inside()
        self.flush()
        names = self.check_tags(tags)
        text = message or ("checkpoint" if step is None else f"step {step}")
        draft = self._draft(text, step=step, metrics=metrics, allow_empty=True)
        parts = checkpoint.parts_of(model, optimizer, scheduler, state, metadata=metadata or {})
        if wait:
            return threads.undisturbed(lambda: self._save(parts, draft, names), owner=self._line)

        def prepare() -> Make:
            copied = [part.copied(self._copies.setdefault(part.name, Copies()), self.store) for part in parts]

            def make(begun: Callable[[], None]) -> Commit:
                with self._line.alone(), self.store.quietly():
                    begun()
                    return self._save(copied, draft, names)

            return make

        return self._beside(prepare)

    def _save(self, parts: Sequence[Part], draft: Draft, tags: Sequence[str]) -> Commit:
        with self._line.apart():
            for part in parts:
                self._stage_tensors(part.name, part.tensors, part.metadata)
            return self._land(draft, tags)

    def load_into(
        self,
        model: object,
        ref: str = "HEAD",
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        strict: bool = True,
        require_signed: bool = False,
    ) -> dict[str, object]:
        """Load a commit's weights into a model, in place, and its training state into what trains it.

        With an optimizer or a scheduler the random number generators are put back as well, so that training goes on
        bit for bit; without, they are left alone. Returns the rest of the state that :meth:`save` was given.

        A module holds afterwards what its ``load_state_dict`` would have left in it: where it, or one inside of it, has
        hooks or loading code of its own, these are what loads it (and convert types, if they do). When anything is
        refused, or an interrupt comes, model, optimizer, scheduler and generators are as they were, or all loaded.

        Args:
            strict: refuse weights that the model lacks, and the other way round; else a warning names them.
            require_signed: refuse a commit that :meth:`verify` refuses.

        Raises:
            UsageError: the weights do not fit the model, every misfit is listed; or a state does not fit what it is
                for.
            CorruptionError: the store is damaged; the model may be partly overwritten then, and only then.
            PartNotFoundError: the commit does not hold the state asked for.
            SignatureError: the commit is not signed by a trusted key, and ``require_signed``.
        """
        from coral.verbs import checkpoint

        commit = self.verify(ref).commit if require_signed else self.resolve(ref)
        parts = self._reader.at(commit)
        name = checkpoint.MODEL_PART if checkpoint.MODEL_PART in parts else None
        held = parts.get(checkpoint.STATE_PART)
        state = self.get_state(commit, checkpoint.STATE_PART) if held is not None and is_state(held) else {}
        return checkpoint.bring_back(
            state if isinstance(state, Mapping) else {},
            model,
            weights=self.get_all_weights(commit, name, framework=checkpoint.framework_name(model)),
            optimizer=optimizer,
            scheduler=scheduler,
            strict=strict,
        )

    def pin(self, branch: str | None = None) -> str | None:
        """Fix the branch that this object's commits land on; returns it, None for a detached HEAD.

        Args:
            branch: an existing branch, or any name before the first commit; None takes the one that HEAD is on now.
                HEAD does not move.

        Raises:
            RefNotFoundError: no such branch.
        """
        return self._line.pin(branch)

    @property
    def branch(self) -> str | None:
        """The branch that this object's commits land on; None for a detached HEAD."""
        return self._line.branch

    def add_commit_observer(self, observer: CommitObserver) -> None:
        """Have an observer add trailers to every commit of this object, and be told of each."""
        self._observers.append(observer)

    def remove_commit_observer(self, observer: CommitObserver) -> None:
        """Undo :meth:`add_commit_observer`; harmless when it was not added."""
        with contextlib.suppress(ValueError):
            self._observers.remove(observer)

    # -- read

    def get_all_weights(self, ref: str = "HEAD", name: str | None = None, framework: str = "numpy") -> Weights:
        """A commit's weights as a lazy mapping of names to tensors; each is read, verified, when asked for.

        Args:
            ref: any form that :meth:`resolve` takes.
            name: the part; None takes all parts that hold weights.
            framework: ``numpy`` (bf16 and fp8 through ml_dtypes) or ``torch``.

        Raises:
            PartNotFoundError: no such part, or a commit without weights.
            UsageError: two parts hold a tensor of the same name, and ``name`` does not say which is meant.
        """
        from coral.tensors.frameworks import framework as find_framework
        from coral.verbs.weights import Weights

        commit = self.resolve(ref)
        if name is not None:
            parts = {name: self._reader.one(commit, name)}
        else:
            parts = {part: manifest for part, manifest in self._reader.at(commit).items() if is_weights(manifest)}
        if not parts:
            raise PartNotFoundError(f"the commit {commit[:10]} holds no weights", hint="'coral ls' lists its parts")
        return Weights(self.store, find_framework(framework), parts, commit=commit)

    def get_weight(self, name: str, ref: str = "HEAD", framework: str = "numpy") -> object:
        """One tensor of a commit; only its own chunks are read. Raises TensorNotFoundError."""
        from coral.tensors.frameworks import framework as find_framework
        from coral.verbs.weights import Weights, holders_of

        commit = self.resolve(ref)
        parts = {part: manifest for part, manifest in self._reader.at(commit).items() if is_weights(manifest)}
        holders = holders_of(self.store, parts, name, commit=commit)
        return Weights(self.store, find_framework(framework), holders, commit=commit)[name]

    def get_state(self, ref: str = "HEAD", name: str | None = None) -> object:
        """The training state that a commit holds, as it was handed to :meth:`stage_state` or :meth:`save`.

        Args:
            name: the part; None takes the only one there is.

        Raises:
            PartNotFoundError: the commit holds no such state.
            UsageError: it holds several, and ``name`` does not say which is meant.
        """
        from coral.verbs.training_state import read_state

        commit = self.resolve(ref)
        states = {part: found for part, found in self._reader.at(commit).items() if is_state(found)}
        if name is not None and name not in states:
            raise part_not_found(name, states, commit)
        if not states:
            raise PartNotFoundError(f"the commit {commit[:10]} holds no training state")
        if name is None and len(states) > 1:
            raise UsageError(f"the commit {commit[:10]} holds several states", hint=f"name= one of {sorted(states)}")
        return read_state(self.store, states[name or next(iter(states))])

    def parts(self, ref: str = "HEAD") -> dict[str, Manifest]:
        """The manifests of a commit, by part name."""
        return self._reader.at(self.resolve(ref))

    def log(self, ref: str = "HEAD", max_count: int | None = None, path: str | None = None) -> Iterator[Commit]:
        """The commits that led to one, newest first.

        Args:
            max_count: at most so many.
            path: only those that changed this part.
        """
        return self.history.log(self.resolve(ref), max_count=max_count, path=path)

    def made_by(self, code: str, max_count: int | None = None, path: str | None = None) -> Iterator[Commit]:
        """The commits that a commit of the code made, on all branches and tags, newest first.

        Args:
            code: a branch, a tag or a hash of the git repository around this one.
            max_count, path: as for :meth:`log`.

        Raises:
            RefNotFoundError: no such commit.
        """
        return made_by(self.history, self.path, check_ref(code), max_count=max_count, path=path)

    def show(self, ref: str = "HEAD") -> CommitDetails:
        """A commit, its parts, and what it changed."""
        commit = self.history.commit(self.resolve(ref))
        parent = commit.parents[0] if commit.parents else None
        return CommitDetails(commit, self._reader.at(commit.commit_hash), self._diff(parent, commit.commit_hash))

    def diff(self, a: str = "HEAD", b: str | None = None) -> Diff:
        """What changed from one commit to another, by tensor.

        Args:
            a, b: the old and the new commit; with one alone, what that commit changed against its parent.
        """
        if b is None:
            return self.show(a).diff
        return self._diff(self.resolve(a), self.resolve(b))

    def reflog(self, ref: str = "HEAD") -> list[ReflogEntry]:
        """Where a branch, or HEAD, has pointed, newest first."""
        return self.history.reflog(ref)

    def resolve(self, ref: str) -> str:
        """The full hash of the commit that a ref names.

        Args:
            ref: branch, tag, full or short hash, ``HEAD``, ``HEAD~2``, ``main@{1}``; ``best:METRIC[:min|max]`` for the
                commit of the best run's best step; ``run:ID`` for a run's last commit.

        Raises:
            RefNotFoundError: it names no commit.
            UsageError: it is no text, or could mean several runs.
        """
        prefix, colon, rest = check_ref(ref).partition(":")
        if colon:
            # Imported here because it loads much, and most refs have no colon.
            from importlib.metadata import entry_points

            for point in entry_points(group=_REF_GROUP, name=prefix):
                found: str = point.load()(self, rest)
                return found
        return self._line.resolve(ref)

    def repack(self, *refs: str, progress: Progress | None = None) -> Repacked:
        """Make commits quick to read: what they hold as deltas against other commits is stored whole.

        Args:
            refs: the commits; none takes the tips of all branches, and all tags.

        Raises:
            CorruptionError: a chunk cannot be read; nothing was changed.
        """
        from coral.verbs.care.repack import repack

        names = refs or (*self.history.branches().values(), *self.history.tags().values())
        done = repack(self.store, self._reader, map(self.resolve, names), progress=progress)
        self._tidy()
        return done

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
            ConflictError: this object has parts staged.
        """
        from coral.verbs.care.gc import collect

        self.flush()
        self._line.check_not_holding()
        seconds = grace.total_seconds() if isinstance(grace, timedelta) else grace
        return collect(
            self.path,
            self.storage,
            self.history,
            self.store,
            grace=seconds,
            prune_now=prune_now,
            dry_run=dry_run,
            progress=progress,
        )

    def operations(self) -> list[Operation]:
        """What was done to branches, tags and HEAD, and by garbage collection; the newest first."""
        return self.history.operations()

    def undo(self, count: int = 1) -> list[Operation]:
        """Take the last operations back; returns them. That is an operation too, so to undo it is to redo them.

        Refs go back to where they were; the files follow where they followed before; what was collected as garbage
        comes out of the trash.

        Raises:
            ConflictError: a ref has moved since, or what it was at was removed for good; nothing was changed.
            NotFoundError: there are not so many, or what was collected is no longer in the trash.
            OverwriteError: a file that has to follow holds bytes that no commit holds.
        """
        from coral.verbs import undo

        self.flush()
        operations = undo.last_operations(self.history, count)
        changes = undo.changes_of(operations)
        undo.take_back_collections(self.store, operations)
        with self.store.held():
            undo.bring_back(self.history, self._reader, self.store, changes)
            if any(one.files for one in operations):
                self._follow(undo.head_after(self.history, changes))
            self.history.put_back(changes, undoes=operations)
        if "HEAD" in changes:
            self.pin()
        return operations

    def _follow(self, commit: str | None) -> None:
        """Have the files that are there follow HEAD to a commit."""
        head = self.history.head().commit
        if commit is not None and head is not None and commit != head:
            old, new = self._reader.at(head), self._reader.at(commit)
            self._line.check_can_leave(old, new, commit[:10])
            self.worktree.execute(self.worktree.plan(old, new, everything=False, force=False))

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

        share = float(read_data)
        checker = Checker(
            self.history,
            self._reader,
            self.store,
            read_data=share == 1,
            scrub=Scrub(self.storage, share) if read_data is not False and share != 1 else None,
            progress=progress,
        )
        checked = checker.run(runs=self.storage, git=reliers(self.path, self.storage) if git else None)
        if repair:
            self.flush()
            self._line.check_not_holding()
            repaired = self._repair([record for _, record in checker.damaged])
            left = still_damaged(self.store, checked.damage, checker.damaged)
            checked = replace(checked, damage=left, repaired=repaired)
        return replace(checked, damage=with_runs(self.storage, checked.damage))

    def _repair(self, damaged: Sequence[TensorRecord]) -> Repaired:
        from coral.verbs.care.repair import Repairer
        from coral.verbs.sharing.remotes import open_remote

        files = [*self.worktree.untracked(()), *self.worktree.materialised(self._known_parts())]
        remotes = {
            remote.name: partial(open_remote, self.path, self.config, remote.name) for remote in self.config.remotes
        }
        repairer = Repairer(self.path, self.storage, self.store, remotes=remotes, files=sorted(set(files)))
        return repairer.run(damaged)

    def _known_parts(self) -> set[str]:
        """The names of all parts of the tips."""
        tips = {*self.history.branches().values(), *self.history.tags().values()}
        found: set[str] = set()
        for tip in tips:
            with contextlib.suppress(CoralError):
                found.update(self.history.parts(tip))
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

        commit = self.resolve(ref)
        return verify_commit(
            self.history, self._reader, self.store, commit, folder=self.path, read_data=read_data, progress=progress
        )

    # -- share

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

        tips = {*self.history.branches().values(), *self.history.tags().values()}
        head = self.history.head().commit
        commits = sorted(tips | {head} if head is not None else tips)
        own = (manifest for commit in commits for manifest in self._reader.at(commit).values())
        ours = (manifest for _, manifest in reliers(self.path, self.storage).heads())
        artifacts = (one for text in texts_of_runs(self.storage, trash=False) for one in text.artifacts)
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
        from coral.verbs.sharing.remotes import open_remote
        from coral.verbs.sharing.transfer import send

        there = open_remote(self.path, self.config, remote)
        return send(self.store, there, manifests, progress, artifacts=artifacts)

    # -- move

    def branches(self) -> dict[str, str]:
        """Every branch and the commit it points at."""
        return self.history.branches()

    @threads.uninterrupted
    def create_branch(self, name: str, ref: str = "HEAD") -> None:
        """Make a branch that points at a commit; HEAD does not move. Raises AlreadyExistsError."""
        self.history.create_branch(check_ref_name(name), self.resolve(ref))

    @threads.uninterrupted
    def delete_branch(self, name: str, *, force: bool = False) -> None:
        """Delete a branch. Raises ConflictError when its commits are on no other branch or tag, unless ``force``."""
        tip = self.history.branch_tip(name)
        if tip is not None and not force:
            others = [*(other for key, other in self.branches().items() if key != name), *self.tags().values()]
            if not any(self.history.is_ancestor(tip, other) for other in others):
                raise ConflictError(
                    f"the commits of {name!r} are on no other branch or tag",
                    hint="tag its tip first, or use --force to let go of them",
                )
        self.history.delete_branch(name)

    @threads.uninterrupted
    def rename_branch(self, old: str, new: str) -> None:
        """Give a branch another name."""
        self.history.rename_branch(old, check_ref_name(new))
        self._line.follow_rename(old, new)

    @threads.uninterrupted
    def tag(self, name: str, ref: str = "HEAD", message: str | None = None, *, force: bool = False) -> None:
        """Name a commit for good. Raises AlreadyExistsError unless ``force``."""
        self.history.create_tag(check_ref_name(name, "tag"), self.resolve(ref), message=message, force=force)

    def tags(self) -> dict[str, str]:
        """Every tag and the commit it names."""
        return self.history.tags()

    @threads.uninterrupted
    def delete_tag(self, name: str) -> None:
        """Delete a tag; the commit stays."""
        self.history.delete_tag(name)

    def switch(self, branch: str, *, create: bool = False, force: bool = False) -> CheckoutResult:
        """Move HEAD to a branch; files that are there already follow, no others are written.

        Args:
            create: make the branch here first; no file is touched then.
            force: overwrite bytes that no commit holds.

        Raises:
            OverwriteError: a file that has to follow holds bytes that no commit holds.
        """
        if create:
            with self.history.operation(f"switch -c {branch}", files=force):
                return self._switch_to_new(branch, force=force)
        if check_ref(branch) not in self.branches():
            self.history.resolve(branch)
            raise RefNotFoundError(
                f"{branch!r} is not a branch",
                hint="'coral checkout' goes to any commit; 'coral switch -c' makes a branch",
            )
        return self._move_head(branch, everything=False, force=force)

    def _switch_to_new(self, branch: str, *, force: bool) -> CheckoutResult:
        check_ref_name(branch)
        if self.history.head().commit is None:
            self._point_head(branch, None, f"checkout: moving to {branch}")
            return CheckoutResult("", branch)
        self.create_branch(branch)
        return self._move_head(branch, everything=False, force=force, stay=not force)

    def checkout(
        self,
        ref: str,
        path: str | Sequence[str] | None = None,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> CheckoutResult:
        """Write a commit's files into the project, byte for byte.

        Without ``path`` HEAD moves there too (to the branch, or detached), and training states stay in the store.

        Args:
            ref: any form that :meth:`resolve` takes.
            path: only these parts; HEAD stays where it is.
            force: overwrite bytes that no commit holds.

        Raises:
            OverwriteError: a file in the way holds bytes that no commit holds.
        """
        if path is None:
            return self._move_head(ref, everything=True, force=force, progress=progress)
        names = [path] if isinstance(path, str) else list(path)
        commit = self.resolve(ref)
        wanted = {name: self._reader.one(commit, name) for name in names}
        plan = self.worktree.plan_files(wanted, force=force)
        self.worktree.execute(plan, progress=progress)
        return CheckoutResult(commit, self.history.head().branch, tuple(plan.write), plan.unchanged)

    def reset(self, ref: str = "HEAD", *, hard: bool = False, force: bool = False) -> CheckoutResult:
        """Point the branch at another commit, and forget what was staged.

        Args:
            hard: bring along the files that are there.
            force: overwrite bytes that no commit holds.

        Raises:
            OverwriteError: a file that has to follow holds bytes that no commit holds.
        """
        commit = self.resolve(ref)
        branch, tip = self._line.position()
        plan = Plan({})
        if hard:
            old = self._reader.at(tip) if tip else {}
            plan = self.worktree.plan(old, self._reader.at(commit), everything=False, force=force, keep=False)
            # The files first: when the disk refuses, the same command finds all as it was, and goes on.
            self.worktree.execute(plan)
        with self.history.operation(files=hard):
            self._line.move(commit, f"reset: moving to {ref}")
        return CheckoutResult(commit, branch, tuple(plan.write), plan.unchanged, plan.remove)

    # -- inside

    def _move_head(
        self, ref: str, *, everything: bool, force: bool, stay: bool = False, progress: Progress | None = None
    ) -> CheckoutResult:
        branches, head = self.branches(), self.history.head()
        branch = self.branch if check_ref(ref) in ("HEAD", "@") else ref if ref in branches else None
        commit = branches[branch] if branch in branches else self.resolve(ref)
        old = self._reader.at(head.commit) if head.commit else {}
        new = self._reader.at(commit)
        if not force:
            self._line.check_can_leave(old, new, ref)
        if stay and commit == head.commit:
            plan = Plan({})
        else:
            plan = self.worktree.plan(old, new, everything=everything, force=force)
        self.worktree.execute(plan, progress=progress)
        if force:
            self._line.drop_staged()
        reason = f"checkout: moving from {head.branch or head.commit or ''} to {ref}"
        self._point_head(branch, None if branch else commit, reason)
        there = set(self.worktree.materialised(new))
        states = tuple(sorted(name for name, part in new.items() if is_state(part) and name not in there))
        return CheckoutResult(commit, branch, tuple(plan.write), plan.unchanged, plan.remove, states)

    @threads.uninterrupted
    def _point_head(self, branch: str | None, commit: str | None, reason: str) -> None:
        with self.history.operation(files=True):
            self.history.set_head(branch=branch, commit=commit, reason=reason)
        self.pin()

    def _diff(self, old: str | None, new: str) -> Diff:
        before = self._reader.at(old) if old else {}
        return diff_parts((old, before), (new, self._reader.at(new)), lambda record: self.store.chunk_ids(record))

    def _tidy(self) -> None:
        """Keep the number of files small; the commit stands whatever becomes of this."""
        with contextlib.suppress(CoralError, OSError):
            self.history.consolidate()
            self.store.consolidate()
            self.storage.sweep_temporary()

    def _check_free_tag(self, name: str) -> None:
        for taken in self.history.tag_names():
            if taken == name or taken.startswith(f"{name}/") or name.startswith(f"{taken}/"):
                raise AlreadyExistsError(f"the tag {taken!r} exists already", hint="choose a name that is free")

    def __repr__(self) -> str:
        return f"<Repository {self.path}>"


def _building(file: Path, tell: Tell, *, opaque: bool, progress: Progress | None) -> Build:
    """What makes a part of a file."""
    from coral.verbs.ingest import manifest_of

    return lambda writer, parent: manifest_of(file, writer, opaque=opaque, parent=parent, progress=progress, tell=tell)
