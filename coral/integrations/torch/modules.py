"""Torch's modules as named weights."""

from __future__ import annotations

import re

import torch

from coral.errors import UnsupportedValueError

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")


def model_to_weights(model: object) -> dict[str, torch.Tensor]:
    """A module's parameters and persistent buffers by name, detached and sharing its memory.

    The prefixes that wrappers add (``module.``, ``_orig_mod.``) are stripped wherever they stand; where that would
    give two tensors one name, names stay as they are.

    Raises:
        UnsupportedValueError: not a module, or its state holds something that is not a tensor.
    """
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedValueError(f"{type(model).__qualname__} is not a torch module")
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedValueError(
                f"{name!r} in the model's state is a {type(value).__qualname__}, not a tensor",
                hint="keep such extra state beside the weights: save(model, extra=…)",
            )
    stripped = {WRAPPERS.sub("", name): tensor.detach() for name, tensor in state.items()}
    return stripped if len(stripped) == len(state) else {name: tensor.detach() for name, tensor in state.items()}
