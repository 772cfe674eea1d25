"""Train generative adversarial networks. Importing this package fills the registries."""

from gan import average, losses, networks, optimizers, recipes
from gan.data import entries

__all__ = ["average", "entries", "losses", "networks", "optimizers", "recipes"]
