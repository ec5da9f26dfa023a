"""The repository: the door to a folder's history of weights.

It holds no algorithm: each method names the verbs of the floor below, in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from coral import plugins, threads
from coral.format.names import check_ref, check_ref_name
from coral.live import Live
from coral.verbs import layout
from coral.verbs.commit import CommitObserver, CommitOptions, Draft, build_trailers
from coral.verbs.committing import Committer, free_tags
from coral.verbs.opened import Opened

if TYPE_CHECKING:
    import os

    from coral.format.manifest import Manifest, TensorRecord
    from coral.git.enclosing import CodeState
    from coral.history import Commit, History, Operation, ReflogEntry
    from coral.ids import ChunkId, CommitHash
    from coral.objects import ChunkStore
    from coral.objects.writer import Progress
    from coral.repository.maintenance import Maintenance
    from coral.repository.remotes import Remotes
    from coral.storage.folder import Folder
    from coral.timings import Timings
    from coral.verbs.checkpoint import Stateful
    from coral.verbs.config import Config
    from coral.verbs.diff import CommitDetails, Diff
    from coral.verbs.heads import Heads
    from coral.verbs.pending import PendingCommit
    from coral.verbs.staging import StagedFiles
    from coral.verbs.status import Status
    from coral.verbs.weights import Weights
    from coral.verbs.worktree import CheckoutResult, WorkTree

_DEFAULT_AUTHOR = "coral"


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
        self._opened = opened = Opened(self.path, init=init, shell_staging=shell_staging)
        self._line = opened.line
        self._committer = Committer(opened.history, opened.line, lambda: opened.store, tidy=opened.tidy)
        if not shell_staging:
            opened.provenance.start()

    @classmethod
    def discover(cls, path: str | os.PathLike[str] = ".", *, shell_staging: bool = False) -> Repository:
        """Open the repository that holds a folder, looking upwards as git does. Raises RepositoryNotFoundError."""
        return cls(layout.discover(Path(path).resolve()), shell_staging=shell_staging)

    # -- what it is made of

    @property
    def folder(self) -> Folder:
        """Its ``.coral``."""
        return self._opened.folder

    @property
    def config(self) -> Config:
        """Its settings, as they were when this object was made; :attr:`remotes` looks anew."""
        return self._opened.config

    @property
    def history(self) -> History:
        """Commits, branches and tags."""
        return self._opened.history

    @property
    def store(self) -> ChunkStore:
        """The chunk store."""
        return self._opened.store

    @property
    def worktree(self) -> WorkTree:
        """The project's files."""
        return self._opened.worktree

    @property
    def remotes(self) -> Remotes:
        """The places that tensors are shared through: ``add``, ``remove``, ``adopt``, ``push``."""
        from coral.repository.remotes import Remotes

        return Remotes(self._opened)

    @property
    def maintenance(self) -> Maintenance:
        """What keeps it whole and small: ``gc``, ``fsck``, ``repack``, ``verify``, ``operations``."""
        from coral.repository.maintenance import Maintenance

        return Maintenance(self._opened, settle=self.flush, resolve=self.resolve)

    @property
    def code(self) -> CodeState | None:
        """The enclosing git repository's commit, branch and dirtiness, as they were when this object was made."""
        return self._opened.provenance.state

    @property
    def author(self) -> str | None:
        """Who commits when the call does not say: whom the configuration names, else the user of the git repository
        around this one; None for nobody known."""
        return self.config.author or self._opened.provenance.author

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
        from coral.verbs.building import of_tensors
        from coral.verbs.checkpoint import weights_of, weights_part
        from coral.verbs.parts import check_updatable

        part = weights_part(name, weights_of(weights), metadata or {})
        over = (lambda: check_updatable(name, self._line.staged_or_tip(name))) if update else None
        return self._line.stage(name, of_tensors(part, over=over, progress=progress))

    def stage_state(
        self, state: object, name: str = "state.safetensors", *, progress: Progress | None = None
    ) -> Manifest:
        """Put what is not a model's weights into the next commit: optimizer states, schedulers, epochs.

        Tensors inside become tensors; the rest is kept as JSON, never as a pickle. Tuples, integer keys, bytes and
        dtypes come back as such.

        Raises:
            UnsupportedValueError: a value that cannot be kept, named by its path in the state.
        """
        from coral.verbs.building import of_tensors
        from coral.verbs.checkpoint import state_part

        return self._line.stage(name, of_tensors(state_part(name, state), progress=progress))

    def stage_file(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        opaque: bool = False,
        progress: Progress | None = None,
    ) -> Manifest:
        """Put a file into the next commit: safetensors, GGUF, torch, npy and npz files by their tensors, others whole.

        Warns of one that is kept whole though its name promises tensors.

        Args:
            path: the file.
            name: the part; None takes the path relative to the project.
            opaque: keep the bytes whole, whatever the file is.

        Raises:
            FormatError: the file is plainly not what its name promises: malformed, cut short, empty, or a pointer;
                nothing was staged.
        """
        from coral.verbs.building import of_file

        file, reasons = Path(path), list[str]()
        build = of_file(file, reasons.append, opaque=opaque, progress=progress)
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
        from coral.verbs.building import of_file
        from coral.verbs.staging import StagedFiles

        reasons: dict[str, str] = {}
        builds = {
            name: of_file(Path(path), partial(reasons.__setitem__, name), opaque=opaque, progress=progress)
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
        from coral.verbs.status import status_of

        return status_of(self._line, self._opened.reader, self.worktree)

    # -- commit

    @overload
    def commit(
        self, message: str, author: str | None = ..., *, wait: Literal[True] = ..., **options: Unpack[CommitOptions]
    ) -> Commit: ...

    @overload
    def commit(
        self, message: str, author: str | None = ..., *, wait: Literal[False], **options: Unpack[CommitOptions]
    ) -> PendingCommit: ...

    def commit(
        self,
        message: str,
        author: str | None = None,
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, object] | None = None,
        allow_empty: bool = False,
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
        with self._committer.preparing():
            self._committer.check_free()
            names = self.check_tags(tags)
            draft = self._draft(message, author, names, step, metrics, metadata, allow_empty=allow_empty, sign=sign)
            return self._committer.commit(draft, wait=wait)

    def check_tags(self, tags: Sequence[str]) -> tuple[str, ...]:
        """The tags that a commit shall get, each once. Raises AlreadyExistsError for one that is taken."""
        return free_tags(self.history, tags)

    def _draft(
        self,
        message: str,
        author: str | None,
        tags: tuple[str, ...],
        step: int | None,
        metrics: Mapping[str, float] | None,
        metadata: Mapping[str, object] | None = None,
        *,
        allow_empty: bool,
        sign: bool | str = False,
    ) -> Draft:
        with self._line.stopwatch.running("look at the code"):
            code = self.code
        trailers = build_trailers(step=step, metrics=metrics, metadata=metadata, code=code)
        trailers.update(self._committer.trailers(step=step, metrics=metrics))
        author = author or self.author or _DEFAULT_AUTHOR
        return Draft(message, author, trailers, tags, allow_empty, sign=self._signer(sign))

    def _signer(self, sign: bool | str) -> Callable[[bytes], str] | None:
        if not sign:
            return None
        from coral.git.signing import Signer

        return Signer(self.path, key=sign if isinstance(sign, str) else None)

    @property
    def timings(self) -> Timings | None:
        """Where the time of this object's last commit went, by step, staging included; None before the first.

        What worker threads do beside is in the step that waits for them.
        """
        return self._committer.timings

    def flush(self) -> None:
        """Wait for the commit that is under way. Raises what went wrong with it, unless its caller was told already."""
        self._committer.settle()

    def pending_failure(self) -> BaseException | None:
        """As :meth:`flush`, but what went wrong is returned, and still to be told: by the next commit, or at exit."""
        return self._committer.failure()

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
        from coral.verbs.checkpoint import parts_of

        text = message or ("checkpoint" if step is None else f"step {step}")
        with self._committer.preparing():
            self._committer.check_free()
            names = self.check_tags(tags)
            draft = self._draft(text, None, names, step, metrics, allow_empty=True)
            with self._line.stopwatch.running("take the state apart"):
                parts = parts_of(model, optimizer, scheduler, state, metadata=metadata or {})
            return self._committer.save(parts, draft, wait=wait)

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
        from coral.verbs.parts import is_state

        commit_hash = self.maintenance.verify(ref).commit if require_signed else self.resolve(ref)
        parts = self._opened.reader.at(commit_hash)
        name = checkpoint.MODEL_PART if checkpoint.MODEL_PART in parts else None
        held = parts.get(checkpoint.STATE_PART)
        state = self.get_state(commit_hash, checkpoint.STATE_PART) if held is not None and is_state(held) else {}
        return checkpoint.bring_back(
            state if isinstance(state, Mapping) else {},
            model,
            weights=self.get_all_weights(commit_hash, name, framework=checkpoint.framework_name(model)),
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
        self._committer.observers.append(observer)

    def remove_commit_observer(self, observer: CommitObserver) -> None:
        """Undo :meth:`add_commit_observer`; harmless when it was not added."""
        with contextlib.suppress(ValueError):
            self._committer.observers.remove(observer)

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
        from coral.verbs.weights import weights_of_commit

        commit_hash = self.resolve(ref)
        return weights_of_commit(self._opened.reader, lambda: self.store, commit_hash, name=name, framework=framework)

    def get_weight(self, name: str, ref: str = "HEAD", framework: str = "numpy") -> object:
        """One tensor of a commit; only its own chunks are read. Raises TensorNotFoundError."""
        from coral.verbs.weights import one_weight

        return one_weight(self._opened.reader, lambda: self.store, self.resolve(ref), name, framework=framework)

    def get_state(self, ref: str = "HEAD", name: str | None = None) -> object:
        """The training state that a commit holds, as it was handed to :meth:`stage_state` or :meth:`save`.

        Args:
            name: the part; None takes the only one there is.

        Raises:
            PartNotFoundError: the commit holds no such state.
            UsageError: it holds several, and ``name`` does not say which is meant.
        """
        from coral.verbs.checkpoint import state_of_commit

        return state_of_commit(self._opened.reader, lambda: self.store, self.resolve(ref), name)

    def parts(self, ref: str = "HEAD") -> dict[str, Manifest]:
        """The manifests of a commit, by part name."""
        return self._opened.reader.at(self.resolve(ref))

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
        from coral.verbs.provenance import made_by

        return made_by(self.history, self.path, check_ref(code), max_count=max_count, path=path)

    def show(self, ref: str = "HEAD") -> CommitDetails:
        """A commit, its parts, and what it changed."""
        from coral.verbs.diff import details

        return details(self.history, self._opened.reader, self.resolve(ref), self._chunk_ids)

    def diff(self, a: str = "HEAD", b: str | None = None) -> Diff:
        """What changed from one commit to another, by tensor.

        Args:
            a, b: the old and the new commit; with one alone, what that commit changed against its parent.
        """
        if b is None:
            return self.show(a).diff
        from coral.verbs.diff import diff_commits

        return diff_commits(self._opened.reader, self.resolve(a), self.resolve(b), self._chunk_ids)

    def reflog(self, ref: str = "HEAD") -> list[ReflogEntry]:
        """Where a branch, or HEAD, has pointed, newest first."""
        return self.history.reflog(ref)

    def resolve(self, ref: str) -> CommitHash:
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
            found: Callable[[Repository, str], CommitHash] | None = plugins.find("coral.refs", prefix)
            if found is not None:
                return found(self, rest)
        return self._line.resolve(ref)

    def undo(self, count: int = 1) -> list[Operation]:
        """Take the last operations back; returns them. That is an operation too, so to undo it is to redo them.

        Refs go back to where they were; the files follow where they followed before; what was collected as garbage
        comes out of the trash.

        Raises:
            ConflictError: a ref has moved since, or what it was at was removed for good; nothing was changed.
            NotFoundError: there are not so many, or what was collected is no longer in the trash.
            OverwriteError: a file that has to follow holds bytes that no commit holds.
        """
        from coral.verbs.undo import undo

        self.flush()
        return undo(self._heads(), lambda: self.store, count)

    # -- move

    def branches(self) -> dict[str, CommitHash]:
        """Every branch and the commit it points at."""
        return self.history.branches()

    @threads.uninterrupted
    def create_branch(self, name: str, ref: str = "HEAD") -> None:
        """Make a branch that points at a commit; HEAD does not move. Raises AlreadyExistsError."""
        self.history.create_branch(check_ref_name(name), self.resolve(ref))

    @threads.uninterrupted
    def delete_branch(self, name: str, *, force: bool = False) -> None:
        """Delete a branch. Raises ConflictError when its commits are on no other branch or tag, unless ``force``."""
        from coral.verbs.heads import delete_branch

        delete_branch(self.history, name, force=force)

    @threads.uninterrupted
    def rename_branch(self, old: str, new: str) -> None:
        """Give a branch another name."""
        self.history.rename_branch(old, check_ref_name(new))
        self._line.follow_rename(old, new)

    @threads.uninterrupted
    def tag(self, name: str, ref: str = "HEAD", message: str | None = None, *, force: bool = False) -> None:
        """Name a commit for good. Raises AlreadyExistsError unless ``force``."""
        self.history.create_tag(check_ref_name(name, "tag"), self.resolve(ref), message=message, force=force)

    def tags(self) -> dict[str, CommitHash]:
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
        return self._heads().switch(branch, create=create, force=force)

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
            return self._heads().go(ref, everything=True, force=force, progress=progress)
        names = [path] if isinstance(path, str) else list(path)
        return self._heads().write_parts(ref, names, force=force, progress=progress)

    def reset(self, ref: str = "HEAD", *, hard: bool = False, force: bool = False) -> CheckoutResult:
        """Point the branch at another commit, and forget what was staged.

        Args:
            hard: bring along the files that are there.
            force: overwrite bytes that no commit holds.

        Raises:
            OverwriteError: a file that has to follow holds bytes that no commit holds.
        """
        return self._heads().reset(ref, hard=hard, force=force)

    # -- inside

    def _chunk_ids(self, record: TensorRecord) -> list[ChunkId]:
        return self.store.chunk_ids(record)

    def _heads(self) -> Heads:
        from coral.verbs.heads import Heads

        opened = self._opened
        return Heads(opened.history, opened.reader, opened.line, opened.worktree, self.resolve)

    def __repr__(self) -> str:
        return f"<Repository {self.path}>"
