"""Which modules have loading code of their own, so that only torch's ``load_state_dict`` does what they expect."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import nn

_HOOKS: Final = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_METHODS: Final = (
    "state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
    "set_extra_state",
)
_PLAIN_TENSORS: Final = (torch.Tensor, nn.Parameter)
_BATCH_NORM = nn.modules.batchnorm._NormBase


class OwnCode:
    """What of a model has loading code of its own: hooks, overridden methods, extra state, tensors of its own kinds.

    Attributes:
        plain: names in the state dict of the tensors that no such code can have to do with.
        is_there: whether there is any.
    """

    def __init__(self, model: nn.Module, stored: Collection[str]) -> None:
        """Look through a model.

        Args:
            stored: names of what is to be loaded, as the state dict has them.
        """
        self._stored = stored
        self.plain: set[str] = set()
        self.is_there = _overrides(model, "load_state_dict") or torch.__future__.get_swap_module_params_on_conversion()
        self._visit(model, "", beneath=self.is_there)

    def _visit(self, module: nn.Module, prefix: str, *, beneath: bool) -> None:
        has_own = self._has_own(module, prefix)
        self.is_there |= has_own
        if not (has_own or beneath):
            tables = (module._parameters, module._buffers)  # of a ScriptModule they are no dicts, but have their items
            self.plain.update(prefix + name for table in tables for name, _ in table.items())
        for name, child in module._modules.items():
            if child is not None:
                # A module's code may do as it likes with all that lies beneath it.
                self._visit(child, f"{prefix}{name}.", beneath=has_own or beneath)

    def _has_own(self, module: nn.Module, prefix: str) -> bool:
        tensors = (*module._parameters.values(), *module._buffers.values())
        return (
            any(vars(module).get(hooks) for hooks in _HOOKS)
            or any(_overrides(module, method) for method in _METHODS if not self._is_batch_norm(module, prefix, method))
            or any(type(tensor) not in _PLAIN_TENSORS for tensor in tensors if tensor is not None)
        )

    def _is_batch_norm(self, module: nn.Module, prefix: str, method: str) -> bool:
        """Whether the code is torch's own for checkpoints without ``num_batches_tracked``, and this one has it."""
        return (
            method == "_load_from_state_dict"
            and getattr(type(module), method) is _BATCH_NORM._load_from_state_dict
            and f"{prefix}num_batches_tracked" in self._stored
        )


def _overrides(module: nn.Module, method: str) -> bool:
    return method in vars(module) or getattr(type(module), method) is not getattr(nn.Module, method)
