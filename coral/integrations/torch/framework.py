"""What coral asks of torch: the framework that the entry point group ``coral.frameworks`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from coral.errors import FormatError, UsageError
from coral.integrations.torch import generators, optimizers, tensors
from coral.integrations.torch.loading import Stored, plan_loading
from coral.integrations.torch.modules import model_to_weights, take_apart
from coral.tensors.shapes import check_view

if TYPE_CHECKING:
    from coral.format.tensors import TensorSource
    from coral.verbs.checkpoint import Loading

_PARAMETER, _REQUIRES_GRAD, _FROZEN = "parameter", "requires_grad", "frozen"


class TorchFramework:
    """Torch's values as tensors that coral can keep, and back."""

    name = "torch"
    file_metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})

    def accepts(self, value: object) -> bool:
        """Whether the value is a tensor."""
        return isinstance(value, torch.Tensor)

    def source(self, name: str, value: object) -> TensorSource:
        """A tensor as bytes. Raises UnsupportedValueError for sparse, quantized, meta, distributed and other kinds."""
        return tensors.source(name, value)

    def weights(self, value: object) -> Mapping[str, object] | None:
        """A module's named tensors; None for a value that is not a module."""
        return model_to_weights(value) if isinstance(value, torch.nn.Module) else None

    def take_apart(self, module: object) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """A module's named tensors, and the rest of its state; see :func:`coral.integrations.torch.modules`."""
        return take_apart(module)

    def plan_loading(
        self, module: object, stored: Stored, *, strict: bool, rest: Mapping[str, Mapping[str, object]]
    ) -> Loading:
        """Check that weights fit a module; see :func:`coral.integrations.torch.loading.plan_loading`."""
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"a {type(module).__qualname__} is not a torch module")
        return plan_loading(module, stored, strict=strict, rest=rest)

    def undo_of(self, holder: object) -> Callable[[], None] | None:
        """What puts back an optimizer or scheduler of torch's kind; None for another object."""
        return optimizers.undo_of(holder)

    def stands_alone(self, holder: object) -> bool:
        """Whether loading into an optimizer or scheduler runs torch's code alone."""
        return optimizers.is_torch_s_own(holder)

    def capture_rng(self) -> dict[str, object]:
        """The state of every random generator; see :func:`capture_rng`."""
        return generators.capture_rng()

    def restore_rng(self, state: Mapping[str, object]) -> None:
        """Put the random generators back; see :func:`restore_rng`."""
        generators.restore_rng(state)

    def empty(self, dtype: str, shape: tuple[int, ...]) -> tuple[object, memoryview]:
        """A fresh CPU tensor and its bytes; packed types that torch lacks come as unsigned bytes."""
        return tensors.empty(dtype, shape)

    def view(self, tensor: object, shape: tuple[int, ...], stride: tuple[int, ...] | None, offset: int) -> object:
        """A strided view of a tensor from :meth:`empty`."""
        assert isinstance(tensor, torch.Tensor)
        steps = check_view(tensor.numel(), shape, stride, offset)
        return tensor.as_strided(shape, steps, offset)

    def not_exact(self, value: object) -> str | None:
        """Of a tensor of a class of its own, that it would come back as a plain one."""
        if type(value) in (torch.Tensor, torch.nn.Parameter):
            return None
        return f"is a {type(value).__qualname__}, which would come back as a plain tensor"

    def flags(self, value: object) -> tuple[str, ...]:
        """Whether a tensor is a parameter, and whether it collects gradients."""
        assert isinstance(value, torch.Tensor)
        if isinstance(value, torch.nn.Parameter):
            return (_PARAMETER,) if value.requires_grad else (_PARAMETER, _FROZEN)
        return (_REQUIRES_GRAD,) if value.requires_grad else ()

    def flagged(self, tensor: object, flags: tuple[str, ...]) -> object:
        """A tensor with its :meth:`flags` back."""
        assert isinstance(tensor, torch.Tensor)
        if flags in ((_PARAMETER,), (_PARAMETER, _FROZEN)):
            return torch.nn.Parameter(tensor, requires_grad=flags == (_PARAMETER,))
        if flags == (_REQUIRES_GRAD,):
            return tensor.requires_grad_()
        raise FormatError(f"a torch tensor has no flags {list(flags)}")

    def dtype_name(self, value: object) -> str | None:
        """The name of a ``torch.dtype``, without ``torch.``."""
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None

    def parse_dtype(self, name: str) -> object:
        """The ``torch.dtype`` of a name."""
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise FormatError(f"unknown torch dtype {name[:80]!r}")
        return found

    def encode(self, value: object) -> tuple[str, object] | None:
        """``torch.Size`` and ``torch.device``."""
        if type(value) is torch.Size:
            return "Size", list(value)
        if isinstance(value, torch.device):
            return "device", str(value)
        return None

    def decode(self, kind: str, payload: object) -> object:
        """A ``torch.Size`` or ``torch.device`` from its JSON."""
        if kind == "device" and isinstance(payload, str):
            try:
                return torch.device(payload)
            except RuntimeError:
                raise FormatError(f"unknown torch device {payload[:80]!r}") from None
        if kind == "Size" and isinstance(payload, list) and all(type(length) is int for length in payload):
            return torch.Size(payload)
        raise FormatError(f"unknown torch value {kind[:80]!r}")


FRAMEWORK = TorchFramework()
"""What the entry point names."""
