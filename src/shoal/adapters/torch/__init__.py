"""The torch adapter: an optimizer whose state lives on the servers, and a loader that leases samples.

The only rooms of Shoal that import torch are this one and those above it.
"""

from shoal.adapters.torch.loader import Loader, loader
from shoal.adapters.torch.local import LocalOptimizer
from shoal.adapters.torch.optimizer import Optimizer, optimizer
from shoal.adapters.torch.sharded import ShardedOptimizer, is_sharded

__all__ = ["Loader", "LocalOptimizer", "Optimizer", "ShardedOptimizer", "is_sharded", "loader", "optimizer"]
