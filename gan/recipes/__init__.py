"""The games: what each player minimises."""

from gan.recipes import cyclegan, pix2pix, synthesis, wnet

__all__ = ["cyclegan", "pix2pix", "synthesis", "wnet"]
