"""Torch's own optimizers and schedulers, as far as loading into one of them must be undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_HOOKS: Final = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")


def undo_of(holder: object) -> Callable[[], None] | None:
    """What puts an optimizer or scheduler back as it is now; None when its loading is not known to be torch's own.

    Torch's own look at no weight when they are loaded, and neither changes what they held before: an optimizer's
    tensors and groups are replaced by others.
    """
    if type(holder).load_state_dict.__module__.partition(".")[0] != torch.__name__:  # type: ignore[attr-defined]
        return None
    if isinstance(holder, Optimizer) and not any(vars(holder).get(hooks) for hooks in _HOOKS):
        return _undo_optimizer(holder)
    if isinstance(holder, LRScheduler):
        before = copy.deepcopy(holder.state_dict())
        return lambda: holder.load_state_dict(before)
    return None


def _undo_optimizer(optimizer: Optimizer) -> Callable[[], None]:
    before = dict(vars(optimizer))

    def undo() -> None:
        vars(optimizer).clear()
        vars(optimizer).update(before)

    return undo
