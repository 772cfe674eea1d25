"""Train generative adversarial networks. Importing this package fills the registries."""

from gan import average, losses, networks, optimizers, recipes

__all__ = ["average", "losses", "networks", "optimizers", "recipes"]
