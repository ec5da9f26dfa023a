"""Where tensors lie in memory: which of them may be written in any order, and which only one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from coral.integrations.torch.tensors import is_plain


class _Extent(NamedTuple):
    start: int
    stop: int
    order: int
    name: str


def by_memory(targets: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors about to be written, none of them empty, apart: whose bytes may be filled directly, in any order, and
    which have to be copied into, in the order given.

    What is written last stands. So of tensors that are the very same bytes only the last is written at all; tensors
    that overlap in any other way, such as a table and a view of its head, are written one after another.
    """
    direct: dict[str, torch.Tensor] = {}
    covered: set[str] = set()
    for cluster in _clusters(sorted(_extents(targets))):
        same = {(extent.start, extent.stop) for extent in cluster}
        if len(same) == 1 and all(is_plain(targets[extent.name]) for extent in cluster):
            last = max(cluster, key=lambda extent: extent.order).name
            direct[last] = targets[last]
            covered.update(extent.name for extent in cluster)
    return direct, {name: target for name, target in targets.items() if name not in covered}


def _extents(targets: Mapping[str, torch.Tensor]) -> Iterator[_Extent]:
    for order, (name, target) in enumerate(targets.items()):
        if target.device.type == "cpu":
            last = sum((length - 1) * step for length, step in zip(target.shape, target.stride(), strict=True))
            yield _Extent(target.data_ptr(), target.data_ptr() + (last + 1) * target.element_size(), order, name)


def _clusters(extents: Iterable[_Extent]) -> Iterator[list[_Extent]]:
    """Extents, sorted, in groups of which none overlaps another's."""
    cluster: list[_Extent] = []
    stop = 0
    for extent in extents:
        if cluster and extent.start >= stop:
            yield cluster
            cluster = []
        cluster.append(extent)
        stop = max(stop, extent.stop)
    if cluster:
        yield cluster


def is_written_at_once(tensor: torch.Tensor) -> bool:
    """Whether each element has a place of its own, as far as strides of zero tell; torch refuses to write to others."""
    shared = any(step == 0 and length > 1 for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    return not (shared and tensor.numel())
