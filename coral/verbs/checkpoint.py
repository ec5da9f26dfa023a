"""Training checkpoints: a model and all that its training needs to go on bit for bit, as two parts of a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from coral.errors import CorruptionError, InvalidNameError, PartNotFoundError, UnsupportedValueError, UsageError
from coral.verbs.frameworks import Framework, find_framework, framework_of
from coral.verbs.parts import STATE_KEY
from coral.verbs.state import encode_state

if TYPE_CHECKING:
    from coral.containers import TensorSource, TensorView
    from coral.objects import ChunkStore
    from coral.verbs.copies import Copies
    from coral.verbs.weights import Weights

MODEL_PART = "model.safetensors"
STATE_PART = "state.safetensors"
ReadMany = Callable[[Iterable[tuple[str, memoryview]]], None]
"""Fills memory with the bytes of tensors, each given by its name."""

_RESERVED_NAME = "__metadata__"
_OPTIMIZER, _SCHEDULER, _RNG, _REST = "optimizer", "scheduler", "rng", "state"


@runtime_checkable
class Stateful(Protocol):
    """An optimizer, a scheduler, or anything else with a state of its own."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...


class TrainingFramework(Framework, Protocol):
    """A framework whose modules can be trained, and so resumed."""

    def load_weights(
        self, module: object, tensors: Mapping[str, TensorView], read_many: ReadMany, *, strict: bool
    ) -> None:
        """Fill a module's parameters and buffers in place. Raises UsageError listing all that does not fit."""
        ...

    def capture_rng(self) -> dict[str, object]:
        """The states of every random number generator that training may draw from."""
        ...

    def restore_rng(self, state: Mapping[str, object]) -> None:
        """Put the generators back to a captured state."""
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


def parts_of(
    model: object, optimizer: Stateful | None, scheduler: Stateful | None, rest: Mapping[str, object]
) -> list[Part]:
    """What :meth:`Repository.save` keeps of a training, as two parts."""
    text, tensors = encode_state(gather(model, optimizer, scheduler, rest))
    return [
        Part(MODEL_PART, sources_of(weights_of(model)), ()),
        Part(STATE_PART, sources_of(tensors), ((STATE_KEY, text),)),
    ]


def gather(
    model: object, optimizer: Stateful | None, scheduler: Stateful | None, rest: Mapping[str, object]
) -> dict[str, object]:
    """All of a training's state but the weights: optimizer, scheduler, random number generators, and the rest."""
    state: dict[str, object] = {}
    for key, holder in ((_OPTIMIZER, optimizer), (_SCHEDULER, scheduler)):
        if holder is not None:
            state[key] = _stateful(key, holder).state_dict()
    if not isinstance(model, Mapping):
        state[_RNG] = _training_framework(model).capture_rng()
    state[_REST] = dict(rest)
    return state


def bring_back(
    state: Mapping[str, object],
    model: object,
    *,
    weights: Weights,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    strict: bool,
) -> dict[str, object]:
    """Load a checkpoint into a model, and into what trains it; returns the rest of the state.

    The generators are put back when training goes on, that is when an optimizer or a scheduler is given: loading
    weights to evaluate them must not change the program's random numbers.

    Raises:
        PartNotFoundError: an optimizer or scheduler is given whose state the checkpoint does not hold.
        UsageError: the weights do not fit the model.
    """
    for key, holder in ((_OPTIMIZER, optimizer), (_SCHEDULER, scheduler)):
        if holder is not None and key not in state:
            raise PartNotFoundError(
                f"the commit {weights.commit[:10]} holds no {key} state", hint=f"save it with repo.save(..., {key}=...)"
            )
    framework = _training_framework(model)
    framework.load_weights(model, weights.tensors, weights.read_many, strict=strict)
    for key, holder in ((_OPTIMIZER, optimizer), (_SCHEDULER, scheduler)):
        if holder is not None:
            _stateful(key, holder).load_state_dict(_dict(state[key]))
    if _RNG in state and (optimizer is not None or scheduler is not None):
        framework.restore_rng(_dict(state[_RNG]))
    return _dict(state.get(_REST, {}))


def _stateful(key: str, holder: object) -> Stateful:
    if not isinstance(holder, Stateful):
        raise UsageError(f"{key} must have state_dict() and load_state_dict(), a {type(holder).__qualname__} has not")
    return holder


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CorruptionError(f"a checkpoint's state holds a {type(value).__name__} where a dict belongs")
    return value


def _training_framework(model: object) -> TrainingFramework:
    framework = framework_of(model)
    if not hasattr(framework, "load_weights"):
        raise UsageError(f"a {type(model).__qualname__} is no module that weights can be loaded into")
    return framework  # type: ignore[return-value]
