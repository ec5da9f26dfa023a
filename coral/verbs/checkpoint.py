"""Training checkpoints: a model and all that its training needs to go on bit for bit, as two parts of a commit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from coral import threads
from coral.errors import (
    CoralError,
    CorruptionError,
    InvalidNameError,
    PartNotFoundError,
    UnsupportedValueError,
    UsageError,
)
from coral.tensors.frameworks import Framework, find_framework, framework_named, framework_of
from coral.tensors.state import decode_state, encode_state
from coral.verbs.parts import STATE_KEY, is_state, part_not_found

if TYPE_CHECKING:
    from coral.containers import TensorView
    from coral.format.manifest import Manifest, TensorRecord
    from coral.format.tensors import TensorSource
    from coral.ids import CommitHash
    from coral.objects import ChunkStore
    from coral.tensors.copies import Copies
    from coral.verbs.parts import PartReader
    from coral.verbs.weights import Weights

MODEL_PART = "model.safetensors"
STATE_PART = "state.safetensors"
ReadMany = Callable[[Iterable[tuple[str, memoryview]]], None]
"""Fills memory with the bytes of tensors, each given by its name."""

_RESERVED_NAME = "__metadata__"
_OPTIMIZER, _SCHEDULER, _MODEL, _RNG, _REST = "optimizer", "scheduler", "model", "rng", "state"


@runtime_checkable
class Stateful(Protocol):
    """An optimizer, a scheduler, or anything else with a state of its own."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...


class Loading(Protocol):
    """Weights about to be loaded into a module; all that can be checked without reading them was."""

    @property
    def has_own_code(self) -> bool:
        """Whether code of the module's own takes part, for which the caller's thread matters."""
        ...

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        """Read the weights into the module; when its own code refuses them it is as it was. Raises UsageError.

        Args:
            read_many: reads some of them.
            undoable: keep what :meth:`undo` needs.
        """
        ...

    def undo(self) -> None:
        """Put the module back as it was before :meth:`fill`."""
        ...


class TrainingFramework(Framework, Protocol):
    """A framework whose modules can be trained, and so resumed."""

    def take_apart(self, module: object) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """A module's named tensors, sharing its memory, and whatever else its loading needs."""
        ...

    def plan_loading(
        self, module: object, stored: Mapping[str, TensorView], *, strict: bool, rest: Mapping[str, object]
    ) -> Loading:
        """Check that weights, and the rest of what was taken apart, fit a module.

        Raises:
            UsageError: they do not, or there is no name in common; everything that does not fit is listed.
        """
        ...

    def stands_alone(self, holder: Stateful) -> bool:
        """Whether loading into an optimizer or scheduler is known to look at no weight, and to run no foreign code."""
        ...

    def undo_of(self, holder: Stateful) -> Callable[[], None] | None:
        """What puts an optimizer or scheduler back as it is now; None for one that the framework does not know."""
        ...

    def capture_rng(self) -> dict[str, object]:
        """The states of every random number generator that training may draw from."""
        ...

    def restore_rng(self, state: Mapping[str, object]) -> None:
        """Put the generators back to a captured state. Raises FormatError."""
        ...


def weights_of(value: object) -> Mapping[str, object]:
    """The named tensors of a module, or of a mapping as it is. Raises UsageError for anything else."""
    if isinstance(value, Mapping):
        return value
    found = find_framework(value)
    weights = found.weights(value) if found is not None else None
    if weights is None:
        raise UsageError(
            f"a {type(value).__qualname__} is neither a module nor a mapping of names to tensors",
            hint="hand in the model, its state_dict(), or {'name': array}",
        )
    return weights


def sources_of(tensors: Mapping[str, object]) -> list[TensorSource]:
    """Named tensors of any framework as bytes to be stored. Raises UnsupportedValueError, naming the tensor."""
    sources = []
    for name, value in tensors.items():
        found = find_framework(value)
        if not isinstance(name, str) or found is None:
            what = f"is a {type(value).__qualname__}, which is no tensor" if isinstance(name, str) else "is no text"
            raise UnsupportedValueError(
                f"{name!r} among the weights {what}",
                hint="weights are a mapping of names to tensors; stage_state() keeps nested states and plain values",
            )
        if name == _RESERVED_NAME:
            raise InvalidNameError(f"a tensor cannot be named {name!r}: safetensors keeps its own notes there")
        sources.append(found.source(name, value))
    return sources


def file_metadata(pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A safetensors file's own key-value pairs. Raises UnsupportedValueError for what is not text, or is coral's."""
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UnsupportedValueError(f"metadata is text by text, not {key!r}: {value!r}")
        if key == STATE_KEY:
            raise UnsupportedValueError(f"the metadata key {key!r} is coral's own", hint="stage_state() keeps states")
    return tuple(pairs.items())


def framework_name(model: object) -> str:
    """The framework that a model is of; ``load_into`` reads the weights as its tensors."""
    return framework_of(model).name


@dataclass(frozen=True)
class Part:
    """One part of a checkpoint, to be staged.

    Attributes:
        name: of the part.
        tensors: as they are now, or copies of them.
        metadata: the container's key-value pairs.
    """

    name: str
    tensors: Sequence[TensorSource]
    metadata: tuple[tuple[str, str], ...]

    def copied(self, copies: Copies, store: ChunkStore) -> Part:
        """This part with copies of its tensors."""
        return Part(self.name, copies.take(self.tensors, store), self.metadata)


def weights_part(name: str, weights: Mapping[str, object], metadata: Mapping[str, str]) -> Part:
    """Named tensors as a part; what a library writes into its own files, it says of itself here too."""
    one_of_each = {type(value): value for value in weights.values()}.values()
    frameworks = {found.name: found for found in map(find_framework, one_of_each) if found is not None}
    own = next(iter(frameworks.values())).file_metadata if len(frameworks) == 1 else {}
    return Part(name, sources_of(weights), file_metadata({**own, **metadata}))


def state_part(name: str, state: object) -> Part:
    """A training state as a part. Raises UnsupportedValueError, naming the value by its path in the state."""
    text, tensors = encode_state(state)
    return Part(name, sources_of(tensors), ((STATE_KEY, text),))


def parts_of(
    model: object,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    rest: Mapping[str, object],
    *,
    metadata: Mapping[str, str],
) -> list[Part]:
    """What :meth:`Repository.save` keeps of a training, as two parts."""
    state: dict[str, object] = {}
    for key, holder in _holders(optimizer, scheduler).items():
        state[key] = holder.state_dict()
    if isinstance(model, Mapping) and find_framework(model) is None:
        weights: Mapping[str, object] = model
    else:
        framework = _training_framework(model)
        weights, state[_MODEL] = framework.take_apart(model)
        state[_RNG] = framework.capture_rng()
    state[_REST] = dict(rest)
    return [weights_part(MODEL_PART, weights, metadata), state_part(STATE_PART, state)]


def bring_back(
    state: Mapping[str, object],
    model: object,
    *,
    weights: Weights,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    strict: bool,
) -> dict[str, object]:
    """Load a checkpoint into a model, and into what trains it, or leave all of them as they are; returns the rest.

    The generators are put back when training goes on, that is when an optimizer or a scheduler is given: loading
    weights to evaluate them must not change the program's random numbers.

    Raises:
        PartNotFoundError: an optimizer or scheduler is given whose state the checkpoint does not hold.
        UsageError: the weights do not fit the model, or a state not its optimizer or scheduler.
        CorruptionError: bytes of the weights are damaged; only then are those of the model partly overwritten.
    """
    holders = _holders(optimizer, scheduler)
    for key in holders:
        if key not in state:
            raise PartNotFoundError(
                f"the commit {weights.commit[:10]} holds no {key} state", hint=f"save it with repo.save(..., {key}=...)"
            )
    framework = _training_framework(model)
    rest = _dict(state.get(_MODEL, {}))
    plan = framework.plan_loading(model, weights.tensors, strict=strict, rest=rest)
    weights.check()
    generators = _dict(state[_RNG]) if holders and _RNG in state else None
    loading = _Loading(framework, plan, holders, state, generators)
    if loading.runs_foreign_code:
        loading.load(weights.read_many)
    else:
        # Whole or not at all for an interrupt, too, without a second copy of the weights.
        threads.undisturbed(lambda: loading.load(weights.read_many))
    return _dict(state.get(_REST, {}))


def state_of_commit(
    reader: PartReader, store: Callable[[], ChunkStore], commit_hash: CommitHash, name: str | None
) -> object:
    """The training state that a commit holds: the one named, else the only one.

    Raises:
        PartNotFoundError: it holds none, or none of that name.
        UsageError: it holds several, and no name says which is meant.
    """
    states = {part: found for part, found in reader.at(commit_hash).items() if is_state(found)}
    if name is not None and name not in states:
        raise part_not_found(name, states, commit_hash)
    if not states:
        raise PartNotFoundError(f"the commit {commit_hash[:10]} holds no training state")
    if name is None and len(states) > 1:
        raise UsageError(f"the commit {commit_hash[:10]} holds several states", hint=f"name= one of {sorted(states)}")
    return read_state(store(), states[name or next(iter(states))])


def read_state(store: ChunkStore, manifest: Manifest) -> object:
    """The training state of a part, as it was staged. Raises CorruptionError, FormatError."""
    wanted: list[tuple[TensorRecord, memoryview]] = []

    def allocate(name: str, framework_name: str) -> object:
        if name not in manifest:
            raise CorruptionError(f"a training state refers to a tensor {name!r} that it does not hold")
        record = manifest[name]
        store.check(record)
        tensor, out = framework_named(framework_name).empty(record.dtype, record.shape)
        wanted.append((record, out))
        return tensor

    state = decode_state(dict(manifest.metadata)[STATE_KEY], allocate)
    # All at once, because an optimizer's state is thousands of small tensors.
    store.read_many(wanted)
    return state


@dataclass(frozen=True)
class _Loading:
    """All that is to be loaded, and to be put back when any of it is refused."""

    framework: TrainingFramework
    plan: Loading
    holders: Mapping[str, Stateful]
    state: Mapping[str, object]
    generators: Mapping[str, object] | None

    @property
    def runs_foreign_code(self) -> bool:
        """Whether code takes part that is neither coral's nor the framework's."""
        return self.plan.has_own_code or not all(map(self.framework.stands_alone, self.holders.values()))

    def load(self, read_many: ReadMany) -> None:
        """Load it all, or leave all of it as it is."""
        with contextlib.ExitStack() as undo:
            if self.holders or self.plan.has_own_code:
                undo.callback(self.framework.restore_rng, self.framework.capture_rng())
            self._restore_generators()  # which finds out whether they can be
            for key, holder in self.holders.items():
                undo.callback(self.framework.undo_of(holder) or _undo_unknown(key, holder))
            undo.callback(self.plan.undo)  # done first, for those who look at the weights
            first = {key: holder for key, holder in self.holders.items() if self.framework.stands_alone(holder)}
            self._load_holders(first)
            threads.finish()  # an interrupt that comes now waits for the end of it
            self.plan.fill(read_many, undoable=self.runs_foreign_code)
            self._load_holders({key: holder for key, holder in self.holders.items() if key not in first})
            self._restore_generators()  # again: foreign code may have drawn from them
            undo.pop_all()

    def _restore_generators(self) -> None:
        if self.generators is not None:
            self.framework.restore_rng(self.generators)

    def _load_holders(self, holders: Mapping[str, Stateful]) -> None:
        for key, holder in holders.items():
            try:
                holder.load_state_dict(_dict(self.state[key]))
            except CoralError:
                raise
            except Exception as error:
                raise UsageError(
                    f"the {key}'s state does not fit: {type(error).__name__}: {error}",
                    hint=f"make the {key} as it was when the checkpoint was saved",
                ) from error


def _holders(optimizer: object, scheduler: object) -> dict[str, Stateful]:
    """What of the two is there, by the name that its state is kept by. Raises UsageError."""
    holders = {}
    for key, holder in ((_OPTIMIZER, optimizer), (_SCHEDULER, scheduler)):
        if holder is None:
            continue
        if not isinstance(holder, Stateful):
            kind = type(holder).__qualname__
            raise UsageError(f"{key} must have state_dict() and load_state_dict(), a {kind} has not")
        holders[key] = holder
    return holders


def _undo_unknown(key: str, holder: Stateful) -> Callable[[], None]:
    """What puts back a holder of which no more is known than its two methods; a warning when it does not let itself."""

    def undo() -> None:
        try:
            holder.load_state_dict(copy.deepcopy(before))
        except Exception as error:
            threads.warn(f"the {key} could not be put back as it was: {type(error).__name__}: {error}")

    try:
        before = copy.deepcopy(holder.state_dict())
    except Exception:  # one that cannot say what it holds, such as one whose state lies in other processes
        return lambda: None
    return undo


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CorruptionError(f"a checkpoint's state holds a {type(value).__name__} where a dict belongs")
    return value


def _training_framework(model: object) -> TrainingFramework:
    framework = framework_of(model)
    if not hasattr(framework, "plan_loading") or framework.accepts(model):
        raise UsageError(
            f"a {type(model).__qualname__} is no module, which has weights to save and to be loaded into",
            hint="hand in the model; to save, a mapping of names to tensors will do",
        )
    return framework  # type: ignore[return-value]
