"""Torch's modules filled with weights: in place where nothing stands between, else by the modules' own code.

Either way a module holds afterwards what ``load_state_dict`` would have left in it, or nothing has changed.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import nn
from torch.autograd.graph import increment_version

from coral import threads
from coral.errors import CoralError, UsageError
from coral.integrations.torch.memory import by_memory, is_written_at_once
from coral.integrations.torch.modules import EXTRA, VERSIONS, Names, noted_versions
from coral.integrations.torch.snapshot import Snapshot
from coral.integrations.torch.survey import survey
from coral.integrations.torch.tensors import cpu_bytes, empty, empty_together, has_memory, kind_of, problem_of

if TYPE_CHECKING:
    from coral.verbs.checkpoint import Loading, ReadMany

_GROUP_BYTES: Final = 32 << 20
_SHOWN: Final = 50
_FEW: Final = 5


class Described(Protocol):
    """What must be known of a tensor before it is read; a TensorView or TensorRecord fits."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


Stored = Mapping[str, Described]
"""What is there to be loaded, by name."""


def plan_loading(
    model: nn.Module,
    stored: Stored,
    *,
    strict: bool = True,
    rest: Mapping[str, Mapping[str, object]] | None = None,
) -> Loading:
    """Check that weights fit a module, before the first byte is read. No code of the module's own is run.

    Args:
        model: wrapped (DDP, compiled) or not.
        stored: what is there to be loaded, by name.
        strict: every tensor of the module must be there, and nothing else. Else a warning tells what is ignored on
            either side.
        rest: what else was kept of the module's state; see :func:`coral.integrations.torch.modules.take_apart`.

    Raises:
        UsageError: names, shapes or dtypes do not fit, a tensor of the module cannot be written to, or there is no
            name in common; all of them are named.
    """
    rest = rest or {}
    found = survey(model)
    names = Names(model, found.tensors, stored if VERSIONS not in rest else ())
    targets = {names.short(full): tensor for full, tensor in found.tensors.items()}
    if found.needs_own_loading({names.full(name) for name in stored}) or rest.get(EXTRA):
        plain = {names.short(full): found.tensors[full] for full in found.plain}
        _refuse([*_without_memory(targets), *_mismatches(plain, stored)])
        return _ByModule(model, stored, names, strict=strict, rest=rest)
    missing = [name for name in targets if name not in stored]
    unexpected = [name for name in stored if name not in targets]
    ignored = _Ignored(missing, unexpected)
    _refuse(list(_mismatches(targets, stored)) + (ignored.as_problems() if strict else []))
    if targets and len(missing) == len(targets):
        raise ignored.as_error()
    ignored.warn()
    return _InPlace(model, {name: target for name, target in targets.items() if name in stored}, stored)


class _Ignored:
    """Names that only one side has: of the model, and of the weights."""

    def __init__(self, missing: Collection[str], unexpected: Collection[str]) -> None:
        self._missing, self._unexpected = missing, unexpected

    def as_problems(self) -> list[str]:
        return [f"missing: {name}" for name in self._missing] + [f"unexpected: {name}" for name in self._unexpected]

    def as_error(self) -> UsageError:
        return UsageError(
            "the weights and the model have no name in common: "
            f"{_few(self._unexpected)} in the weights, {_few(self._missing)} in the model",
            hint="load the commit, and the part, that the model was saved in",
        )

    def warn(self) -> None:
        """Say what was ignored, if anything was."""
        said = []
        if self._missing:
            said.append(f"the weights lack {_few(self._missing)}, which the model keeps as they were")
        if self._unexpected:
            said.append(f"the model lacks {_few(self._unexpected)}, which were not loaded")
        if said:
            threads.warn("; ".join(said), UserWarning)


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_FEW])
    return shown + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


class _Undoable:
    """Weights about to be loaded into a module that can be put back as it was."""

    def __init__(self, model: nn.Module, stored: Stored) -> None:
        self._model, self._stored = model, stored
        self._snapshot: Snapshot | None = None

    def undo(self) -> None:
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            snapshot.restore()


class _InPlace(_Undoable):
    """Weights read right into the module's own memory, without a second copy of them."""

    has_own_code = False

    def __init__(self, model: nn.Module, targets: Mapping[str, torch.Tensor], stored: Stored) -> None:
        super().__init__(model, stored)
        self._targets = {name: target for name, target in targets.items() if target.numel()}
        # Of the thread that asks for it: the one that reads may be another.
        self._inference = torch.is_inference_mode_enabled()
        devices = {target.device for target in targets.values() if target.device.type == "cuda"}
        self._streams = [torch.cuda.current_stream(device) for device in devices]

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        if undoable:
            self._snapshot = Snapshot(self._model)
        direct, in_order = by_memory(self._targets)
        with contextlib.ExitStack() as context:
            context.enter_context(torch.inference_mode(self._inference))
            for stream in self._streams:
                context.enter_context(torch.cuda.stream(stream))
            try:
                read_many((name, cpu_bytes(target)) for name, target in direct.items())
                # Other memory, a GPU's above all, is reached through copies of a few tensors at a time.
                for group in _groups(in_order):
                    self._fill_group(group, read_many)
            finally:
                # As torch's own copying does: a backward pass that needs the old values must not go on unknowing.
                for target in self._targets.values():
                    increment_version(target)

    def _fill_group(self, targets: Mapping[str, torch.Tensor], read_many: ReadMany) -> None:
        fresh = {name: empty(*_kind(self._stored[name])) for name in targets}
        read_many((name, data) for name, (_, data) in fresh.items())
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(fresh[name][0])


def _groups(targets: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    group: dict[str, torch.Tensor] = {}
    nbytes = 0
    for name, target in targets.items():
        group[name] = target
        nbytes += target.numel() * target.element_size()
        if nbytes >= _GROUP_BYTES:
            yield group
            group, nbytes = {}, 0
    if group:
        yield group


class _ByModule(_Undoable):
    """Weights handed to the module's ``load_state_dict``, and taken back when that refuses them."""

    has_own_code = True

    def __init__(
        self,
        model: nn.Module,
        stored: Stored,
        names: Names,
        *,
        strict: bool,
        rest: Mapping[str, Mapping[str, object]],
    ) -> None:
        super().__init__(model, stored)
        self._names, self._strict, self._rest = names, strict, rest

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        state = self._read(read_many)
        self._snapshot = Snapshot(self._model)
        try:
            self._say_ignored(self._model.load_state_dict(state, strict=self._strict), state)
        except BaseException as error:
            self.undo()
            if isinstance(error, CoralError | Warning) or not isinstance(error, Exception):
                raise
            raise UsageError(
                f"the weights do not fit the model: {error}", hint="the model's own code to load them refused"
            ) from error
        if not undoable:
            self._snapshot = None

    def _read(self, read_many: ReadMany) -> OrderedDict[str, object]:
        """The state dict that torch would have been given."""
        fresh = dict(zip(self._stored, empty_together(map(_kind, self._stored.values())), strict=True))
        read_many((name, data) for name, (_, data) in fresh.items() if len(data))
        state: OrderedDict[str, object] = OrderedDict()
        for name in sorted(fresh, key=self._names.place):
            state[self._names.full(name)] = fresh[name][0]
        for name, value in self._rest.get(EXTRA, {}).items():
            state[self._names.full(name)] = value
        if VERSIONS in self._rest:
            vars(state)["_metadata"] = noted_versions(self._model, self._names, self._rest[VERSIONS])
        return state

    def _say_ignored(self, result: object, state: Mapping[str, object]) -> None:
        """Warn of what the module says it did not load. Raises UsageError when that is all there was."""
        missing, unexpected = getattr(result, "missing_keys", ()), getattr(result, "unexpected_keys", ())
        ignored = _Ignored([*map(self._names.short, missing)], [*map(self._names.short, unexpected)])
        if state and state.keys() <= set(unexpected):
            raise ignored.as_error()
        ignored.warn()


def _kind(tensor: Described) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _refuse(problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
    raise UsageError(
        "the weights do not fit the model:\n  " + "\n  ".join(shown),
        hint="build the model as it was when they were committed, or load with strict=False to ignore names",
    )


def _mismatches(targets: Mapping[str, torch.Tensor], stored: Stored) -> Iterator[str]:
    for name, target in targets.items():
        if name not in stored:
            continue
        problem = _unwritable(target)
        if problem is not None:
            yield f"{name}: {problem}"
            continue
        here, there = kind_of(target), _kind(stored[name])
        if here != there:
            yield f"{name}: {there[0]} {list(there[1])} in the weights, {here[0]} {list(here[1])} in the model"


def _without_memory(targets: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Tensors that nothing could be put back into; a lazy one has a shape when its module is loaded."""
    for name, target in targets.items():
        if not nn.parameter.is_lazy(target) and not has_memory(target):
            yield f"{name}: {_unwritable(target) or 'not a plain tensor'}"


def _unwritable(target: torch.Tensor) -> str | None:
    """Why a tensor of the model cannot be written to; None when it can."""
    problem = problem_of(target)
    if problem is not None:
        return f"{problem[0]}, which coral does not load into ({problem[1]})"
    if not is_written_at_once(target):
        return "several elements share one place in the model's memory, which cannot be written to"
    if target.is_inference() and not torch.is_inference_mode_enabled():
        return "made in inference mode, a tensor can only be written to in that mode"
    return None
