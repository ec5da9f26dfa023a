"""A module as it was, to be put back when loading into it fails half way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import nn

from coral.integrations.torch.tensors import empty_together

_TABLES: Final = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class _Layout(NamedTuple):
    tensor: torch.Tensor
    kind: type[torch.Tensor]
    storage: torch.UntypedStorage | None
    offset: int
    size: torch.Size | None
    stride: tuple[int, ...]


class Snapshot:
    """Copies of all memory that a module's tensors lie in, and what its modules' attributes are.

    Memory is copied once, however many tensors lie in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        self._tables = [
            (table, table.copy()) for _, held in self._attributes for key in _TABLES if (table := held.get(key))
        ]
        self._layouts = [_layout(tensor) for tensor in _tensors(model)]
        storages = {layout.storage._cdata: layout.storage for layout in self._layouts if layout.storage is not None}
        self._bytes = _copies([_flat(storage) for storage in storages.values() if storage.nbytes()])

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for table, before in self._tables:
            table.clear()
            table.update(before)
        for flat, before in self._bytes:
            storage = flat.untyped_storage()
            if storage.nbytes() != before.numel():
                storage.resize_(before.numel())
            _flat(storage).copy_(before)
        with torch.no_grad():
            for layout in self._layouts:
                _put_back(layout)


def _flat(storage: torch.UntypedStorage) -> torch.Tensor:
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return flat.set_(storage, 0, (storage.nbytes(),), (1,))


def _copies(flats: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each of the memories, and a copy of it."""
    here = [flat for flat in flats if flat.device.type == "cpu"]
    copied = []
    for flat, (copy, data) in zip(here, empty_together(("U8", (flat.numel(),)) for flat in here), strict=True):
        data[:] = flat.numpy().data
        copied.append((flat, copy))
    return copied + [(flat, flat.clone()) for flat in flats if flat.device.type != "cpu"]


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that the modules hold, as parameter, buffer or plain attribute."""
    for module in model.modules():
        for values in (module._parameters.values(), module._buffers.values(), vars(module).values()):
            yield from (value for value in values if isinstance(value, torch.Tensor))


def _layout(tensor: torch.Tensor) -> _Layout:
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        return _Layout(tensor, type(tensor), None, 0, None, ())
    offset = int(tensor.storage_offset())
    return _Layout(tensor, type(tensor), tensor.untyped_storage(), offset, tensor.size(), tensor.stride())


def _put_back(layout: _Layout) -> None:
    tensor = layout.tensor
    if layout.storage is not None:
        here = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.size(), tensor.stride())
        if here != (layout.storage._cdata, layout.offset, layout.size, layout.stride):
            assert layout.size is not None
            tensor.set_(layout.storage, layout.offset, layout.size, layout.stride)
    elif type(tensor) is not layout.kind:
        # A lazy one, that was given a shape meanwhile.
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.__class__ = layout.kind
