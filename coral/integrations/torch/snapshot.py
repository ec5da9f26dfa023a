"""A module as it was, to be put back when loading into it fails half way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from coral import threads
from coral.integrations.torch.tensors import cpu_bytes, empty_together, has_memory


class _Held(NamedTuple):
    """A tensor as it was: what it was of, and another one that lies where it lay."""

    tensor: torch.Tensor
    kind: type[torch.Tensor]
    attributes: dict[str, object]
    place: torch.Tensor | None
    requires_grad: bool
    grad: torch.Tensor | None


class _Owner(NamedTuple):
    """A module as it was: its class, its attributes, and what puts back what was in those that are containers."""

    module: nn.Module
    kind: type[nn.Module]
    attributes: dict[str, object]
    contents: list[Callable[[], None]]


class Snapshot:
    """Copies of all memory that a module's tensors lie in, and what its modules' attributes are.

    Memory is copied once, however many tensors lie in it. What an attribute holds is followed no further than into
    a dict, list or set.
    """

    def __init__(self, model: nn.Module) -> None:
        self._owners = [_owner(module) for module in model.modules()]
        self._tensors = [_hold(tensor) for tensor in _tensors(model)]
        places = [held.place for held in self._tensors if held.place is not None]
        # Of gradients, which loading does not change, only where they lie: half() and the like move them.
        self._tensors += [_hold(held.grad) for held in self._tensors if held.grad is not None]
        storages = {place.untyped_storage()._cdata: place.untyped_storage() for place in places}
        self._bytes = list(_copies([storage for storage in storages.values() if storage.nbytes()]))

    def restore(self) -> None:
        """Put everything back. What does not let itself be put back is warned of; the rest is all the same."""
        for owner in self._owners:
            with _told():
                _put_back_module(owner)
        for storage, before in self._bytes:
            with _told():
                if storage.nbytes() != before.numel():
                    storage.resize_(before.numel())
                _flat(storage).copy_(before)
        for held in self._tensors:
            with _told(), torch.no_grad():
                _put_back_tensor(held)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        threads.warn(f"a part of the model could not be put back as it was: {type(error).__name__}: {error}")


def _owner(module: nn.Module) -> _Owner:
    attributes = dict(vars(module))
    return _Owner(module, type(module), attributes, list(_contents(attributes.values())))


def _contents(values: Iterable[object]) -> Iterator[Callable[[], None]]:
    for value in values:
        if isinstance(value, dict):
            yield partial(refill, value, dict(value))
        elif isinstance(value, set):
            yield partial(refill, value, set(value))
        elif isinstance(value, list):
            yield partial(_refill_list, value, list(value))


def refill(container: dict[Any, Any] | set[Any], before: Any) -> None:
    """Make a dict or set hold what it held before."""
    container.clear()
    container.update(before)


def _refill_list(container: list[object], before: list[object]) -> None:
    container[:] = before


def _put_back_module(owner: _Owner) -> None:
    if type(owner.module) is not owner.kind:
        owner.module.__class__ = owner.kind
    refill(vars(owner.module), owner.attributes)
    for put_back in owner.contents:
        put_back()


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that the modules hold, as parameter, buffer or plain attribute."""
    for module in model.modules():
        for values in (module._parameters.values(), module._buffers.values(), vars(module).values()):
            yield from (value for value in values if isinstance(value, torch.Tensor))


def _hold(tensor: torch.Tensor) -> _Held:
    place = tensor.data if has_memory(tensor) else None
    grad = tensor.grad if place is not None and tensor.is_leaf else None
    return _Held(tensor, type(tensor), dict(vars(tensor)), place, tensor.requires_grad, grad)


def _put_back_tensor(held: _Held) -> None:
    tensor = held.tensor
    if held.place is not None and _layout(tensor) != _layout(held.place):
        tensor.data = held.place
    if type(tensor) is not held.kind:
        if held.place is None:  # a lazy one, that was given a shape meanwhile
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.__class__ = held.kind
    refill(vars(tensor), held.attributes)
    if held.place is not None and tensor.is_leaf:
        tensor.requires_grad_(held.requires_grad)
        tensor.grad = held.grad


def _layout(tensor: torch.Tensor) -> tuple[object, ...]:
    where = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.size(), tensor.stride())
    return (*where, tensor.dtype, tensor.is_conj(), tensor.is_neg())


def _flat(storage: torch.UntypedStorage) -> torch.Tensor:
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,))


def _copies(storages: list[torch.UntypedStorage]) -> Iterator[tuple[torch.UntypedStorage, torch.Tensor]]:
    here = [storage for storage in storages if storage.device.type == "cpu"]
    fresh = empty_together([("U8", (storage.nbytes(),)) for storage in here])
    for storage, (copy, data) in zip(here, fresh, strict=True):
        data[:] = cpu_bytes(_flat(storage))
        yield storage, copy
    yield from ((storage, _flat(storage).clone()) for storage in storages if storage.device.type != "cpu")
