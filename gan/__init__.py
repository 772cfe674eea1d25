"""Train generative adversarial networks. Importing this package fills the registries."""

from gan import averages, losses, networks, optimizers, recipes, robust
from gan.data import entries
from gan.images import to_bytes, to_floats

__all__ = [
    "averages",
    "entries",
    "losses",
    "networks",
    "optimizers",
    "recipes",
    "robust",
    "to_bytes",
    "to_floats",
]
