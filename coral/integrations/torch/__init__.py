"""PyTorch: tensors without a copy, modules as named weights, and the state of its random generators.

The only folder that imports torch; it is loaded through the entry point group ``coral.frameworks``.
"""

from coral.integrations.torch.framework import FRAMEWORK
from coral.integrations.torch.modules import model_to_weights

__all__ = ["FRAMEWORK", "model_to_weights"]
