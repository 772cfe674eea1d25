"""What a generator makes of images that it is given, beside them and the truth."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gan.data.stream import Stream
from gan.metrics.extractors import portions
from gan.recipe import Batch, Recipe
from gan.recipes.cyclegan import CycleGAN
from gan.recipes.pix2pix import Pix2Pix
from gan.recipes.wnet import WNet
from gan.trained.reports import TRANSLATIONS, reads

if TYPE_CHECKING:
    from gan.runs import Run

Columns = dict[str, Tensor]
"""Images [N, C, H, W] by the titles of a sheet's columns."""


def _pairs(generator: nn.Module, batch: Batch) -> Columns:
    made = TRANSLATIONS[Pix2Pix](generator, batch)
    return {"input": batch["input"], "generated": made, "truth": batch["target"]}


def _both_ways(generator: nn.Module, batch: Batch) -> Columns:
    made = TRANSLATIONS[CycleGAN](generator, batch)
    back = generator.get_submodule("to_a")(batch["real_b"])
    return {"a": batch["real_a"], "generated": made, "b": batch["real_b"], "generated a": back}


def _written(generator: nn.Module, batch: Batch) -> Columns:
    return {
        "prototype": batch["prototype"],
        "reference": batch["reference"][:, 0],
        "generated": TRANSLATIONS[WNet](generator, batch),
        "truth": batch["target"],
    }


SHEETS: dict[type[Recipe], Callable[[nn.Module, Batch], Columns]] = {
    WNet: _written,
    Pix2Pix: _pairs,
    CycleGAN: _both_ways,
}


def kind_of(recipe: type[Recipe]) -> type[Recipe] | None:
    """The recipe whose sheets fit this one, or None."""
    return next((kind for kind in SHEETS if issubclass(recipe, kind)), None)


@torch.no_grad()
def sheets(run: "Run", dataset: Any, many: int, seed: int) -> Iterator[tuple[str, Columns]]:
    """Columns by the name of what is shown, on the CPU: so many rows that were trained on or not.

    With seed 0 rows are evenly spaced, with another one chosen at random; noise follows it too.
    """
    kind = kind_of(run.recipe)
    assert kind is not None
    keys = reads(run, kind)
    stream = Stream(dataset, 1, 0, run.device, keys)
    for name, plan in dataset.shown(keys, many, seed).items():
        batch = stream.read(plan)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            parts = [SHEETS[kind](run.generator, part) for part in portions(batch)]
        yield name, {title: torch.cat([p[title] for p in parts]).cpu() for title in parts[0]}
