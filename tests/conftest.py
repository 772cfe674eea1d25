"""A tiny set of glyphs, and configurations composed as on the command line."""

from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gan.commands.train import conf_dir, switched_on
from gan.data.store import Record, build

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


@pytest.fixture(scope="session")
def glyph_store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("glyphs") / "tiny.lmdb"
    build(TinyGlyphs(), path, progress=False)
    return path


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """Compose overrides into plain values, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def compose(*overrides):
        with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return OmegaConf.to_container(
                hydra.compose("config", [*map(switched_on, overrides)]), resolve=True
            )

    return compose


@pytest.fixture
def tiny(composed, glyph_store):
    """A family of models at 16 pixels on the tiny glyphs: `tiny("wnet", "trainer.steps=3")`."""

    def compose(model, *overrides):
        sizes = {
            "wnet": ["generator.width=2", "discriminator.width=2", "recipe.feature=0"],
            "dcgan": ["generator.width=4", "discriminator.width=4", "generator.latent=8"],
        }
        common = [
            f"model={model}",
            "data=fonts",
            f"data.path={glyph_store}",
            f"image.size={SIZE}",
            "trainer.batch_size=8",
            "trainer.steps=4",
            "run_dir=run",
        ]
        return composed(*common, *sizes[model], *overrides)

    return compose


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
