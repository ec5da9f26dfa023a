"""Torch's modules as named weights, and what else their state dicts hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import torch
from torch import nn

from coral.errors import UnsupportedValueError

# By name, so that none of them is imported; a subclass of one is one.
_WRAPPERS: Final = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
    "apex.parallel.distributed.DistributedDataParallel": "module",
}
_ANYWHERE: Final = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
_FIRST_VERSION: Final = {"version": 1}
VERSIONS, EXTRA = "versions", "extra"


class Names:
    """The names that a module's tensors are kept by: its own, without the prefixes that training's wrappers add.

    ``DistributedDataParallel``, ``DataParallel``, ``torch.compile`` and their like only wrap; what they wrap is the
    model. A model's own attribute ``module`` is left alone. Where two names would become one, all stay as they are.

    Args:
        model: wrapped or not.
        names: those in its state dict.
        stored: what is to be loaded, if it was perhaps kept when coral left out these prefixes wherever they stood;
            when just that fits, it was.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], stored: Collection[str] = ()) -> None:
        # Outermost first; of each, what stands before the wrapped module's names, and what would without the wrapper.
        self._prefixes = list(_wrapped(model))
        names = list(names)
        short = {name: self._unwrapped(name) for name in names}
        if len(set(short.values())) < len(names):
            self._prefixes = []
            short = {name: name for name in names}
        if stored and set(short.values()) != set(stored):
            before = {name: _ANYWHERE.sub("", name) for name in names}
            short = before if len(set(before.values())) == len(names) and set(before.values()) == set(stored) else short
        self._short = short
        self._full = {kept: name for name, kept in short.items()}
        self._places = {kept: place for place, kept in enumerate(self._full)}

    def short(self, name: str) -> str:
        """A name of the module's state dict as it is kept."""
        return self._short.get(name) or self._unwrapped(name)

    def full(self, name: str) -> str:
        """A kept name as the module's state dict has it, or would have it."""
        known = self._full.get(name)
        if known is not None:
            return known
        for full, plain in self._prefixes:
            if name.startswith(plain):
                name = full + name[len(plain) :]
        return name

    def place(self, name: str) -> int:
        """Where a kept name stands among the model's; what the model has not comes last."""
        return self._places.get(name, len(self._places))

    def short_path(self, path: str) -> str:
        """The path of a module inside the model, without its wrappers."""
        return self._unwrapped(f"{path}.")[:-1] if path else ""

    def _unwrapped(self, name: str) -> str:
        for full, plain in reversed(self._prefixes):
            if name.startswith(full):
                name = plain + name[len(full) :]
        return name


def _wrapped(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules(remove_duplicate=False):
        inside = _wrapped_attribute(module)
        if inside is not None:
            plain = f"{path}." if path else ""
            yield f"{plain}{inside}.", plain


def _wrapped_attribute(module: nn.Module) -> str | None:
    for kind in type(module).__mro__:
        found = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None and found in module._modules:
            return found
    return None


def model_to_weights(model: object) -> dict[str, torch.Tensor]:
    """A module's parameters and persistent buffers by name, detached and sharing its memory.

    The prefixes that training's wrappers add (``module.`` of DistributedDataParallel, ``_orig_mod.`` of torch.compile)
    are left out; where that would give two tensors one name, names stay as they are.

    Raises:
        UnsupportedValueError: not a module, or its state holds something that is not a tensor.
    """
    tensors, rest = take_apart(model)
    for name, value in rest[EXTRA].items():
        raise UnsupportedValueError(
            f"{name!r} in the model's state is a {type(value).__qualname__}, not a tensor",
            hint="repo.save(model) keeps it beside the weights",
        )
    return tensors


def take_apart(model: object) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, object]]]:
    """A module's state dict as named tensors, as :func:`model_to_weights` gives them, and the rest.

    The rest is what is no tensor (a module's own extra state), and what torch notes of each module: the versions that
    modules look at when an older checkpoint is loaded. The first version of a module is not mentioned.

    Raises:
        UnsupportedValueError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedValueError(f"{type(model).__qualname__} is not a torch module")
    state = model.state_dict()
    names = Names(model, state)
    tensors, extra = {}, {}
    for full, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors[names.short(full)] = value if nn.parameter.is_lazy(value) else value.detach()
        else:
            extra[names.short(full)] = value
    noted: Mapping[str, object] = getattr(state, "_metadata", None) or {}
    # A wrapper comes before what it wraps, which is what counts.
    versions = {names.short_path(path): facts for path, facts in noted.items()}
    return tensors, {VERSIONS: {p: facts for p, facts in versions.items() if facts != _FIRST_VERSION}, EXTRA: extra}


def noted_versions(model: nn.Module, names: Names, versions: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """What torch noted of each module, as :func:`take_apart` kept it, by the module's path in this model."""
    found = {}
    for path, _ in model.named_modules(remove_duplicate=False):
        facts = versions.get(names.short_path(path), _FIRST_VERSION)
        found[path] = dict(facts if isinstance(facts, Mapping) else _FIRST_VERSION)
    return found
