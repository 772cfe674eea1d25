"""The wanted characters in the standard font, as a W-Net was trained to read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan import registry, runs
from gan.data.embedded import REGION_NEUTRAL
from gan.data.faces import Face
from gan.data.glyphs import Pixels, Spot, render
from gan.data.sheets import GlyphSheets
from gan.data.sources import embedded
from gan.data.triples import Glyphs
from gan.runs import Run

_SPACES = " \u3000"


class Prototypes(NamedTuple):
    """Characters in the standard font, each [size, size] and centred."""

    images: dict[str, Pixels]
    spots: Mapping[str, Spot]  # where the font has its characters and spaces in a line, if known
    source: str  # in words


def trained_on(run: Run) -> Glyphs:
    """The glyphs that a run was trained on, as `runs.dataset` has them.

    Raises:
        ValueError: the data are not there, are others, or are no glyphs.
    """
    name = run.config["data"]["name"]
    source = registry.entry("source", name, "data.name")
    if source.build.__annotations__.get("return") is not Glyphs:  # a stored word opens nothing else
        raise ValueError(f"{run.path} was trained on data={name}, which has no glyphs")
    return runs.dataset(run)


def read(dataset: Glyphs, rows: np.ndarray) -> Pixels:
    """Stored glyphs [N, H, W, C] by row."""
    pixels = np.empty((len(rows), *dataset.store.shape), np.uint8)
    dataset.store.read(rows, pixels)
    return pixels


def from_store(dataset: Glyphs) -> Prototypes:
    """Every character that the standard font has in the store, and in the sheets beside it.

    Neither keeps spots.
    """
    rows = dataset.rows[dataset.prototype]
    drawn = np.flatnonzero(rows >= 0)
    pixels = read(dataset, rows[drawn])[..., 0]
    images = dict(zip((dataset.characters[place] for place in drawn), pixels, strict=True))
    return Prototypes(_further(dataset) | images, {}, f"the prototype in {dataset.store.path}")


def _further(dataset: Glyphs) -> dict[str, Pixels]:
    """The characters of `hanzi-more` where that is drawn by the same font, at a size it gives."""
    id, size = dataset.style_names[dataset.prototype], dataset.store.shape[0]
    font = dataset.store.facts["styles"][id].get("sha256")
    try:
        sheets = GlyphSheets(embedded("hanzi-more"), size)
    except ValueError:  # that size is none of theirs, or they are not there
        return {}
    same = sheets.index["styles"].get(id, {}).get("sha256") == font is not None
    return sheets.glyphs(id).images if same else {}


def from_font(path: Path, index: int, size: int, characters: Sequence[str]) -> Prototypes:
    """Characters that a font file draws, at the scale of the training glyphs.

    The scale is that of the font's largest ink side among the characters and the region-neutral
    Hanzi together, so that a few characters are drawn as large as many.
    """
    drawn = render(Face(path, index), sorted({*characters, *REGION_NEUTRAL, *_SPACES}), size)
    images = {one: drawn.images[one] for one in characters if one in drawn.images}
    return Prototypes(images, drawn.spots, str(path))


def wanted(names: Sequence[str], found: Prototypes, skip: bool) -> dict[str, Pixels]:
    """The listed characters among those found; `skip` leaves out what is missing.

    Raises:
        ValueError: characters that the source does not draw, or nothing left.
    """
    missing = [character for character in names if character not in found.images]
    if missing and (not skip or len(missing) == len(names)):
        raise ValueError(
            f"{found.source} does not draw {len(missing)} of the {len(names)} characters "
            f"({''.join(missing[:20])}{'...' if len(missing) > 20 else ''}): give a "
            "--prototype-font that does, or --skip-missing"
        )
    return {one: found.images[one] for one in names if one in found.images}
