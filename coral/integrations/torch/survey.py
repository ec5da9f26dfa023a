"""What a module holds, and whether only torch's ``load_state_dict`` can load it as its own code expects."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

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


@dataclass
class Survey:
    """A model, without any of its own code having been run.

    Attributes:
        tensors: its parameters and persistent buffers, by the names and in the order that torch's ``state_dict`` has.
        plain: the names of those that no code but torch's has to do with.
        has_own_code: whether there are hooks, overridden methods, extra state, or tensors of classes of their own.
        norms: torch's norms, by what stands before their names.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    has_own_code: bool = False
    norms: list[tuple[str, _NormBase]] = field(default_factory=list)

    def needs_own_loading(self, stored: Collection[str]) -> bool:
        """Whether the model's own code is to load it.

        Args:
            stored: the names of what is to be loaded, as the state dict has them. The norms of torch have code for
                what was saved by a torch before 1.0, which does nothing to the rest.
        """
        return self.has_own_code or not all(_fits_norm(norm, prefix, stored) for prefix, norm in self.norms)


def survey(model: nn.Module) -> Survey:
    """Look through a model."""
    found = Survey()
    found.has_own_code = _overrides(model, "load_state_dict")
    found.has_own_code |= torch.__future__.get_swap_module_params_on_conversion()
    _visit(found, model, "", beneath=found.has_own_code)
    return found


def _visit(found: Survey, module: nn.Module, prefix: str, *, beneath: bool) -> None:
    own = _has_own_code(module)
    found.has_own_code |= own
    if isinstance(module, _NormBase):
        found.norms.append((prefix, module))
    for name, tensor in _tensors(module):
        found.tensors[prefix + name] = tensor if nn.parameter.is_lazy(tensor) else tensor.detach()
        if not (own or beneath):
            found.plain.add(prefix + name)
    for name, child in module._modules.items():
        if child is not None:
            # A module's code may do as it likes with all that lies beneath it.
            _visit(found, child, f"{prefix}{name}.", beneath=own or beneath)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    passing = module._non_persistent_buffers_set
    yield from ((name, tensor) for name, tensor in module._parameters.items() if tensor is not None)
    yield from (
        (name, tensor) for name, tensor in module._buffers.items() if tensor is not None and name not in passing
    )


def _has_own_code(module: nn.Module) -> bool:
    return (
        any(vars(module).get(hooks) for hooks in _HOOKS)
        or any(_overrides(module, method) for method in _METHODS)
        or any(type(tensor) not in _PLAIN_TENSORS for _, tensor in _tensors(module))
    )


def _overrides(module: nn.Module, method: str) -> bool:
    known = [getattr(nn.Module, method)]
    if method == "_load_from_state_dict":
        known += [_NormBase._load_from_state_dict, _InstanceNorm._load_from_state_dict]
    return method in vars(module) or getattr(type(module), method) not in known


def _fits_norm(module: _NormBase, prefix: str, stored: Collection[str]) -> bool:
    if module.track_running_stats:
        return f"{prefix}num_batches_tracked" in stored
    return not any(f"{prefix}{name}" in stored for name in ("running_mean", "running_var"))
