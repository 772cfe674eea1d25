"""Glyphs made of random strokes, drawn by pens that differ as fonts do."""

import numpy as np

from gan.data.triples import Split
from gan.metrics.glyphs import Cells

SIZE, STYLES, CHARACTERS = 16, 10, 40


def write(width: float, slant: float = 0.0, characters: int = CHARACTERS) -> np.ndarray:
    """Bytes [N, H, W] of four strokes a character, the same for every pen; width in pixels."""
    ends = np.random.default_rng(5).uniform(3, SIZE - 3, (characters, 4, 2, 2))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    place = np.stack([x + slant * (y - SIZE / 2), y], -1)[:, :, None]  # [H, W, 1, 2]
    a, b = ends[:, None, None, :, 0], ends[:, None, None, :, 1]  # [N, 1, 1, 4, 2]
    along = (((place - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1)).clip(0, 1)[..., None]
    distance = np.linalg.norm(place - a - along * (b - a), axis=-1).min(-1)  # [N, H, W]
    ink = (width / 2 - distance + 0.5).clip(0, 1)
    return np.round(255 * (1 - ink)).astype(np.uint8)


def make_cells(**changes: object) -> Cells:
    """Ten styles of nine families: six to train on, one to validate, three to test."""
    pens = [(1.2 + 0.25 * i, 0.1 * (i % 3) - 0.1) for i in range(STYLES)]
    facts = {
        "glyphs": np.stack([write(*pen) for pen in pens]),
        "usable": np.ones((STYLES, CHARACTERS), dtype=bool),
        "prototype": write(2.0),
        "style_split": Split(np.array([0, 2, 4, 6, 8, 9]), np.array([3]), np.array([1, 5, 7])),
        "character_split": Split(np.arange(28), np.arange(28, 32), np.arange(32, 40)),
        "families": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]),
        "references": np.array([2, 7, 12, 17, 22, 27]),
    }
    return Cells(**{**facts, **changes})
