"""The games: what each player minimises."""

from gan.recipes import synthesis, wnet

__all__ = ["synthesis", "wnet"]
