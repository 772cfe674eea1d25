"""A tiny source of glyphs."""

from types import SimpleNamespace

import numpy as np

from gan.data.store import Record

SIZE, STYLES, CHARACTERS = 16, 14, 20


class TinyGlyphs(SimpleNamespace):
    """Random strokes in styles of different weight and contrast, one family each."""

    name = "tiny glyphs"
    shape = (SIZE, SIZE, 1)

    def __init__(self):
        styles = [f"style{n:02d}" for n in range(STYLES)]
        super().__init__(
            names={"style": styles, "character": [chr(0x4E00 + n) for n in range(CHARACTERS)]},
            facts={"styles": {s: {"family": s} for s in styles}, "prototype": styles[0]},
        )

    def fingerprint(self):
        return "tiny"

    def __len__(self):
        return STYLES * CHARACTERS

    def __iter__(self):
        rng = np.random.default_rng(0)
        shapes = [self._strokes(rng) for _ in range(CHARACTERS)]
        for style, name in enumerate(self.names["style"]):
            for character in range(CHARACTERS):
                grown = shapes[character] * (0.4 + 0.04 * style)
                image = (255 * (1 - grown)).astype(np.uint8)[..., None]
                yield Record(
                    f"{name}/{0x4E00 + character:06x}",
                    image,
                    {"style": style, "character": character},
                )

    def _strokes(self, rng):
        ink = np.zeros((SIZE, SIZE))
        for _ in range(3):
            row, column = rng.integers(2, SIZE - 3, 2)
            ink[row : row + 2, 2:-2] = 1
            ink[2:-2, column : column + 1] = 1
        return ink
