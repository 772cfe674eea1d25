"""Against what hurts: perturbations that are made to, and labels that are wrong."""

from gan.robust import discriminator, perturb
