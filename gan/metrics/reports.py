"""Which report a run gets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gan.data.datasets import Glyphs
from gan.data.stream import Stream
from gan.metrics.glyph_report import glyph_judge, glyph_report, writing
from gan.metrics.report import Report
from gan.recipes.wnet import WNet

if TYPE_CHECKING:
    from gan.runs import Run


def report_of(loaded: "Mapping[str, Run]", dataset: Any, device: torch.device) -> Report:
    """What is to be known of a run's generators, by the name of their weights.

    Raises:
        ValueError: a recipe whose generator is called in a way that is not known here.
    """
    last = [*loaded.values()][-1]
    read = Stream(dataset, 1, 0, device, ()).images
    if issubclass(last.recipe, WNet) and isinstance(dataset, Glyphs) and len(dataset.styles.test):
        draws = {name: writing(run.generator, device) for name, run in loaded.items()}
        return glyph_report(draws, dataset, glyph_judge(dataset, read, device, print), device)
    raise ValueError(
        f"gan evaluate knows no measure of recipe={last.config['recipe']['name']} on "
        f"data={last.config['data']['name']}"
    )
