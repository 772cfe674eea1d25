"""Training against perturbations that are made to hurt."""

from gan.robust import discriminator, perturb

__all__ = ["discriminator", "perturb"]
