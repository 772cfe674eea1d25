"""Train generative adversarial networks. Importing this package fills the registries."""

import numpy  # noqa: F401 - before torch, which loses a Ctrl-C that comes while it imports this

from gan import augment, averages, losses, networks, optimizers, recipes, robust
from gan.data import entries
from gan.images import to_bytes, to_floats
from gan.runs import Run, load

__all__ = [
    "Run",
    "augment",
    "averages",
    "entries",
    "load",
    "losses",
    "networks",
    "optimizers",
    "recipes",
    "robust",
    "to_bytes",
    "to_floats",
]
