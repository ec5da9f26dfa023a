"""Torch's own optimizers and schedulers, as far as loading into one of them must be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from coral.integrations.torch.snapshot import refill

_METHODS: Final = ("state_dict", "load_state_dict", "__setstate__")
_HOOKS: Final = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")


def is_torch_s_own(holder: object) -> bool:
    """Whether loading into an optimizer or scheduler runs torch's code alone, which looks at no weight."""
    return (
        isinstance(holder, Optimizer | LRScheduler)
        and not any(vars(holder).get(hooks) for hooks in _HOOKS)
        and all(_is_torch_s(holder, method) for method in _METHODS)
    )


def undo_of(holder: object) -> Callable[[], None] | None:
    """What puts an optimizer or scheduler of torch's kind back as it is now; None for any other object.

    Loading replaces an optimizer's tensors and groups by others, so its attributes are all there is to put back.
    """
    if not isinstance(holder, Optimizer | LRScheduler):
        return None
    before = [(owner, dict(vars(owner))) for owner in _owners(holder)]

    def undo() -> None:
        for owner, attributes in before:
            refill(vars(owner), attributes)

    return undo


def _is_torch_s(holder: object, method: str) -> bool:
    found = getattr(type(holder), method, None)
    return method not in vars(holder) and (found is None or found.__module__.startswith("torch.optim."))


def _owners(holder: object) -> Iterator[object]:
    """An object whose attributes are loaded into, and those that it hands parts of its state on to."""
    yield holder
    for attribute in ("_schedulers", "lr_lambdas"):
        for part in vars(holder).get(attribute) or ():
            if hasattr(part, "__dict__"):
                yield from _owners(part)
