"""The torch adapter: an optimizer whose state lives on the servers, and a loader that leases samples.

The only rooms of Shoal that import torch are this one and those above it.
"""

from shoal.adapters.torch.loader import Loader, loader
from shoal.adapters.torch.local import LocalOptimizer
from shoal.adapters.torch.optimizer import Optimizer, optimizer

__all__ = ["Loader", "LocalOptimizer", "Optimizer", "loader", "optimizer"]
