"""The games: what each player minimises."""

from gan.recipes import conditional, synthesis, wnet

__all__ = ["conditional", "synthesis", "wnet"]
