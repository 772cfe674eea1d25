"""The games: what each player minimises."""

from gan.recipes import conditional, cyclegan, pix2pix, synthesis, wnet
