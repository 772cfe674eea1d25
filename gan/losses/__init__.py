"""What the players minimise."""

from gan.losses import adversarial, labels, penalties, relativistic

__all__ = ["adversarial", "labels", "penalties", "relativistic"]
