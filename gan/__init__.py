"""Train generative adversarial networks. Importing this package fills the registries."""

from gan import averages, losses, networks, optimizers, recipes, robust
from gan.data import entries

__all__ = ["averages", "entries", "losses", "networks", "optimizers", "recipes", "robust"]
