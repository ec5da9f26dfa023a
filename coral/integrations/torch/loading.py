"""Torch's modules filled with weights: in place where nothing stands between, else by the modules' own code.

Either way a module holds afterwards what ``load_state_dict`` would have left in it, or nothing has changed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, Protocol

import torch
from torch import nn
from torch.autograd.graph import increment_version

from coral import threads
from coral.errors import CoralError, UsageError
from coral.integrations.torch.memory import by_memory, is_written_at_once
from coral.integrations.torch.modules import EXTRA, VERSIONS, Names, noted_versions
from coral.integrations.torch.own_code import OwnCode
from coral.integrations.torch.snapshot import Snapshot
from coral.integrations.torch.tensors import cpu_bytes, empty_together, source

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

ReadMany = Callable[[Iterable[tuple[str, memoryview]]], None]
"""Fills memory with the bytes of tensors, each given by its name and exactly as long."""


class Loading(Protocol):
    """Weights about to be loaded into a module; what can be checked without reading them was."""

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        """Read the weights into the module.

        Args:
            read_many: reads some of them.
            undoable: keep a copy of the module's memory, for :meth:`undo`.

        Raises:
            UsageError: the module's own code refused them; the module is as it was.
        """
        ...

    def undo(self) -> None:
        """Put the module back as it was before :meth:`fill`, if that was to be undoable."""
        ...


def plan_loading(
    model: nn.Module,
    stored: Stored,
    *,
    strict: bool = True,
    rest: Mapping[str, Mapping[str, object]] | None = None,
) -> Loading:
    """Check that weights fit a module, before the first byte is read.

    Args:
        model: wrapped (DDP, compiled) or not.
        stored: what is there to be loaded, by name.
        strict: every tensor of the module must be there, and nothing else. Else what is ignored on either side is
            told in a warning when the module is filled.
        rest: what else was kept of the module's state; see :func:`coral.integrations.torch.modules.take_apart`.

    Raises:
        UsageError: names, shapes or dtypes do not fit, a tensor of the module cannot be written to, or there is no
            name in common; all of them are named.
    """
    state = model.state_dict()
    names = Names(model, state, stored if VERSIONS not in (rest or {}) else ())
    own = OwnCode(model, {names.full(name) for name in stored})
    targets = {names.short(full): value for full, value in state.items() if isinstance(value, torch.Tensor)}
    if own.is_there:
        untouched = {names.short(full): state[full] for full in own.plain if full in state}
        _refuse(list(_mismatches(untouched, stored)))
        return _ByModule(model, stored, names, strict=strict, rest=rest or {})
    problems = list(_mismatches(targets, stored))
    there = (*stored, *(rest or {}).get(EXTRA, {}))
    ignored = _Ignored(
        [name for name in targets if name not in stored], [name for name in there if name not in targets]
    )
    _refuse(problems + (ignored.as_problems() if strict else []))
    if targets and not targets.keys() & stored.keys():
        raise ignored.as_error()
    return _InPlace(model, {name: target for name, target in targets.items() if name in stored}, stored, ignored)


def load_weights(model: nn.Module, stored: Stored, read_many: ReadMany, *, strict: bool = True) -> None:
    """Fill a module's parameters and buffers; see :func:`plan_loading`, which raises, and :class:`Loading`."""
    plan_loading(model, stored, strict=strict).fill(read_many)


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


class _InPlace:
    """Weights read right into the module's own memory, without a second copy of them."""

    def __init__(
        self, model: nn.Module, targets: Mapping[str, torch.Tensor], stored: Stored, ignored: _Ignored
    ) -> None:
        self._model, self._targets, self._stored, self._ignored = model, targets, stored, ignored
        self._snapshot: Snapshot | None = None

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        if undoable:
            self._snapshot = Snapshot(self._model)
        filled = {name: target for name, target in self._targets.items() if target.numel()}
        direct, in_order = by_memory(filled)
        try:
            read_many((name, cpu_bytes(target)) for name, target in direct.items())
            # Other memory, a GPU's above all, is reached through copies of a few tensors at a time.
            for group in _groups(in_order):
                self._fill_group(group, read_many)
        finally:
            # As torch's own copying does: a backward pass that still needs the old values must not go on unknowing.
            for target in filled.values():
                increment_version(target)
        self._ignored.warn()

    def undo(self) -> None:
        if self._snapshot is not None:
            self._snapshot.restore()
            self._snapshot = None

    def _fill_group(self, targets: Mapping[str, torch.Tensor], read_many: ReadMany) -> None:
        fresh = empty_together(_kind(self._stored[name]) for name in targets)
        read_many((name, data) for name, (_, data) in zip(targets, fresh, strict=True))
        with torch.no_grad():
            for target, (tensor, _) in zip(targets.values(), fresh, strict=True):
                target.copy_(tensor)


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


class _ByModule:
    """Weights handed to the module's ``load_state_dict``, and taken back when that refuses them."""

    def __init__(
        self,
        model: nn.Module,
        stored: Stored,
        names: Names,
        *,
        strict: bool,
        rest: Mapping[str, Mapping[str, object]],
    ) -> None:
        self._model, self._stored, self._names, self._strict, self._rest = model, stored, names, strict, rest
        self._snapshot: Snapshot | None = None

    def fill(self, read_many: ReadMany, *, undoable: bool = False) -> None:
        state = self._read(read_many)
        self._snapshot = Snapshot(self._model)
        try:
            result = self._model.load_state_dict(state, strict=self._strict)
            ignored = self._ignored(result, state)
        except BaseException as error:
            self.undo()
            if isinstance(error, CoralError) or not isinstance(error, Exception):
                raise
            raise UsageError(
                f"the weights do not fit the model: {error}", hint="the model's own code to load them refused"
            ) from error
        if not undoable:
            self._snapshot = None
        ignored.warn()

    def undo(self) -> None:
        if self._snapshot is not None:
            self._snapshot.restore()
            self._snapshot = None

    def _read(self, read_many: ReadMany) -> OrderedDict[str, object]:
        """The state dict that torch would have been given."""
        fresh = dict(zip(self._stored, empty_together(map(_kind, self._stored.values())), strict=True))
        read_many((name, data) for name, (_, data) in fresh.items() if len(data))
        state: OrderedDict[str, object] = OrderedDict()
        for name, (tensor, _) in fresh.items():
            state[self._names.full(name)] = tensor
        for name, value in self._rest.get(EXTRA, {}).items():
            state[self._names.full(name)] = value
        if VERSIONS in self._rest:
            vars(state)["_metadata"] = noted_versions(self._model, self._names, self._rest[VERSIONS])
        return state

    def _ignored(self, result: object, state: Mapping[str, object]) -> _Ignored:
        """What the module says it did not load. Raises UsageError when that is all there was."""
        unexpected = [self._names.short(name) for name in getattr(result, "unexpected_keys", ())]
        ignored = _Ignored([self._names.short(name) for name in getattr(result, "missing_keys", ())], unexpected)
        if state and len(unexpected) >= len(state):
            raise ignored.as_error()
        return ignored


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
        here, there = source(name, target), stored[name]
        if _kind(there) != _kind(here):
            yield (
                f"{name}: {there.dtype} {list(there.shape)} in the weights, "
                f"{here.dtype} {list(here.shape)} in the model"
            )
        elif not is_written_at_once(target):
            yield f"{name}: several elements share one place in the model's memory, which cannot be written to"
        elif target.is_inference() and not torch.is_inference_mode_enabled():
            yield f"{name}: made in inference mode, a tensor of the model can only be written to in that mode"
