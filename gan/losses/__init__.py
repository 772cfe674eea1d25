"""What the players minimise."""

from gan.losses import adversarial, penalties

__all__ = ["adversarial", "penalties"]
