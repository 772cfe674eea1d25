"""What the players minimise."""

from gan.losses import adversarial, classification, labels, penalties, reconstruction, relativistic
