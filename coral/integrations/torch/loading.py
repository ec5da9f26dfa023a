"""Torch's modules filled in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import torch

from coral.errors import UsageError
from coral.integrations.torch.modules import WRAPPERS, model_to_weights
from coral.integrations.torch.tensors import cpu_bytes, empty, is_plain, source

_GROUP_BYTES: Final = 32 << 20


class Described(Protocol):
    """What :func:`load_weights` needs to know of a tensor before it is read; a TensorView or TensorRecord fits."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


ReadMany = Callable[[Iterable[tuple[str, memoryview]]], None]
"""Fills memory with the bytes of tensors, each given by its name and exactly as long."""


def load_weights(
    model: torch.nn.Module, tensors: Mapping[str, Described], read_many: ReadMany, *, strict: bool = True
) -> None:
    """Fill a module's parameters and buffers in place, without a second copy of the model.

    Args:
        model: wrapped (DDP, compiled) or not.
        tensors: what is there to be loaded, by name.
        read_many: reads some of them.
        strict: every tensor of the module must be there, and nothing else.

    Raises:
        UsageError: names, shapes or dtypes do not fit; all of them are named, and nothing was loaded.
    """
    targets = model_to_weights(model)
    _check_fit(targets, tensors, strict=strict)
    wanted = {name: target for name, target in targets.items() if name in tensors and target.numel()}
    # Of tied tensors the last one counts, as when torch copies them one after another.
    plain = {target.data_ptr(): (name, target) for name, target in wanted.items() if is_plain(target)}
    read_many((name, cpu_bytes(target)) for name, target in plain.values())
    # Other memory, a GPU's above all, is reached through copies of a few tensors at a time.
    rest = ((name, target) for name, target in wanted.items() if not is_plain(target))
    for group in _groups(rest):
        _fill(group, tensors, read_many)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    detached = {name: target for name, target in wanted.items() if target.untyped_storage().data_ptr() not in own}
    if detached:
        _load_detached(model, detached)


def _groups(targets: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    group: dict[str, torch.Tensor] = {}
    nbytes = 0
    for name, target in targets:
        group[name] = target
        nbytes += target.numel() * target.element_size()
        if nbytes >= _GROUP_BYTES:
            yield group
            group, nbytes = {}, 0
    if group:
        yield group


def _fill(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described], read_many: ReadMany) -> None:
    fresh = {name: empty(tensors[name].dtype, tensors[name].shape) for name in targets}
    read_many((name, data) for name, (_, data) in fresh.items())
    with torch.no_grad():
        for name, target in targets.items():
            tensor = fresh[name][0]
            target.copy_(tensor)


def _load_detached(model: torch.nn.Module, filled: Mapping[str, torch.Tensor]) -> None:
    """Hand copies that the module's own hooks made back through those hooks."""
    originals = {WRAPPERS.sub("", name): name for name in model.state_dict()}
    model.load_state_dict({originals.get(name, name): tensor for name, tensor in filled.items()}, strict=False)


def _check_fit(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described], *, strict: bool) -> None:
    problems = list(_mismatches(targets, tensors))
    if strict:
        problems += [f"missing: {name}" for name in targets if name not in tensors]
        problems += [f"unexpected: {name}" for name in tensors if name not in targets]
    if not problems:
        return
    shown = problems[:50] + ([f"and {len(problems) - 50} more"] if len(problems) > 50 else [])
    raise UsageError(
        "the weights do not fit the model:\n  " + "\n  ".join(shown),
        hint="build the model as it was when they were committed, or load with strict=False to ignore names",
    )


def _mismatches(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, Described]) -> Iterator[str]:
    for name, target in targets.items():
        fresh = source(name, target)
        if name not in tensors:
            continue
        stored = tensors[name]
        if (stored.dtype, tuple(stored.shape)) != (fresh.dtype, fresh.shape):
            yield (
                f"{name}: {stored.dtype} {list(stored.shape)} in the weights, "
                f"{fresh.dtype} {list(fresh.shape)} in the model"
            )
