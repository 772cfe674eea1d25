"""How near a translation comes to the truth, where there are pairs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan import images as pictures
from gan.data.datasets import evenly
from gan.metrics import images
from gan.metrics.extractors import portions
from gan.metrics.report import SHOWN, Report
from gan.metrics.scores import bootstrap
from gan.metrics.tables import listed, signed, tagged
from gan.recipe import Batch
from gan.run.best import Better

Measure = Callable[[Tensor, Tensor], Tensor]
"""Images and truths [N, C, H, W] in [0, 1] to values [N]."""

Translate = Callable[[nn.Module, Batch], Tensor]
"""A generator and a batch to images [N, C, H, W] in [-1, 1]."""

MEASURES: dict[str, Measure] = {"l1": images.l1, "psnr": images.psnr, "ssim": images.ssim}
BETTER: dict[str, Better] = {"l1": "less", "psnr": "more", "ssim": "more", "lpips": "less"}


class PairEvaluation:
    """Distances to the truth on held-out pairs, beside the input as it is."""

    def __init__(
        self,
        translate: Translate,
        parts: Mapping[str, Batch],
        measures: Mapping[str, Measure] = MEASURES,
    ) -> None:
        """`parts` are a `validation` and a `test` batch, with a `target`."""
        self.translate, self.parts, self.measures = translate, parts, measures

    @property
    def better(self) -> dict[str, Better]:
        """Of each measure, whether less or more is better."""
        return {name: BETTER[name] for name in self.measures}

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Means of the measures on the validation pairs, images taken as values in [0, 1]."""
        return self.distances("validation", lambda batch: self.translate(generator, batch))

    def report(self, generator: nn.Module) -> str:
        """A table of the generator beside the copy of its input, on the test pairs."""
        rows = {
            "copy of the input": self.distances("test", given),
            "generator": self.distances("test", lambda batch: self.translate(generator, batch)),
        }
        lines = [_table(rows, len(self.parts["test"]["target"]))]
        if "lpips" in self.measures:
            network: Any = self.measures["lpips"]
            lines.append(f"lpips: {network.name}, weights {network.key[:16]}")
        return "\n".join(lines)

    def distances(self, part: str, draw: Callable[[Batch], Tensor]) -> dict[str, float]:
        """Mean distances of what is drawn to the truth."""
        return {name: float(value.mean()) for name, value in self.each(part, draw).items()}

    def each(self, part: str, draw: Callable[[Batch], Tensor]) -> dict[str, np.ndarray]:
        """Distances [N] of what is drawn to the truth."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.measures}
        for batch in portions(self.parts[part]):
            made, truth = ((1 + x) / 2 for x in (draw(batch), batch["target"]))
            for name, measure in self.measures.items():
                found[name].append(measure(made, truth).float().cpu())
        return {name: torch.cat(values).numpy() for name, values in found.items()}


def pair_report(
    generators: Mapping[str, nn.Module],
    translate: Translate,
    test: Batch,
    measures: Mapping[str, Measure],
    facts: Mapping[str, Any],
    families: np.ndarray | None = None,
) -> Report:
    """Distances of every generator, by the name of its weights, on held-out pairs; the last counts.

    Intervals are bootstraps over the `families` [N] of the pairs' styles, whose pairs are alike, or
    over the pairs where there are not several; all come from one run. Every generator has the same
    noise, so that the same weights have the same numbers again.
    """
    evaluation = PairEvaluation(translate, {"test": test}, measures)
    *_, chosen = generators
    rows = {"copy of the input": evaluation.each("test", given)}
    with torch.no_grad(), torch.random.fork_rng():
        for name, generator in generators.items():
            torch.manual_seed(0)

            def draw(batch: Batch, generator: nn.Module = generator) -> Tensor:
                return translate(generator, batch)

            rows[f"{name} weights"] = evaluation.each("test", draw)
        shown = torch.from_numpy(evenly(np.arange(len(test["target"])), SHOWN))
        some = {key: value[shown.to(value.device)] for key, value in test.items()}
        drawn = translate(generators[chosen], some)
    means = {
        row: {name: float(values.mean()) for name, values in found.items()}
        for row, found in rows.items()
    }
    ours, copy = rows[f"{chosen} weights"], rows["copy of the input"]
    differences = {name: ours[name] - copy[name] for name in measures}
    count = len(test["target"])
    groups, over = _groups(families, count)
    lines, ahead = _gaps(differences, groups)
    verdict = f"On {count} held-out pairs it is not ahead of the copy of its input on anything."
    if ahead:
        verdict = f"On {count} held-out pairs it is ahead of the copy of its input on "
        verdict += f"{', '.join(ahead)}."
    elif count == 1:
        verdict = "There is one held-out pair, which allows no claim."
    columns = {"input": given(some), chosen: drawn, "truth": some["target"]}
    return Report(
        "How near the translations come to the truth",
        verdict,
        "\n".join(
            [
                _table(means, count),
                "",
                f"{chosen} minus copy, paired by image, 95 % intervals over {over}:",
                *lines,
                "l1 and lpips: less is better; psnr and ssim: more is.",
            ]
        ),
        tagged(means, f"{chosen} weights"),
        {"pairs": count, "intervals": f"over {over}", "values": rows, **facts},
        {"Held-out pairs, evenly chosen.": pictures.table(columns)},
    )


def given(batch: Batch) -> Tensor:
    """The input of a pair."""
    return batch["input"] if "input" in batch else batch["prototype"]


def _groups(families: np.ndarray | None, count: int) -> tuple[np.ndarray, str]:
    """What to draw again of so many pairs, and its name."""
    several = 0 if families is None else len(np.unique(families))
    if families is None or several < 2:
        return np.arange(count), "images"
    return families, f"{several} families of styles"


def _gaps(differences: Mapping[str, np.ndarray], groups: np.ndarray) -> tuple[list[str], list[str]]:
    """A line for each measure's differences [N], and the measures by which they are ahead."""
    lines, ahead = [], []
    for name, difference in differences.items():
        if len(difference) == 1:
            lines.append(f"  {name:<6}{difference[0]:+.4f}, of one pair: no interval")
            continue
        gap = bootstrap(difference, groups)
        lines.append(f"  {name:<6}{signed(gap)}")
        if (gap.low > 0) if BETTER[name] == "more" else (gap.high < 0):
            ahead.append(name)
    return lines, ahead


def _table(rows: Mapping[str, Mapping[str, float]], count: int) -> str:
    named = {
        row: {name.upper(): value for name, value in values.items()} for row, values in rows.items()
    }
    return "\n".join(listed(f"{count} held-out pairs", named, 20))
