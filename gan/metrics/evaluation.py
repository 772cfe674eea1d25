"""How well a recipe does on what it was not trained on, during training and at its end."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan.best import Better
from gan.data.datasets import Glyphs
from gan.data.stream import Stream
from gan.metrics import images
from gan.metrics.baselines import baselines
from gan.metrics.glyphs import (
    CELLS,
    Cells,
    Draw,
    common_characters,
    compare,
    score,
    shuffled_reference,
    table,
)
from gan.metrics.judges import Judge, judge_of
from gan.metrics.translation import GlyphTranslation
from gan.recipe import Batch, Recipe

MOST = 256  # characters of each part of the split that take part in a measure
PORTION = 64  # images that a network draws at once

Say = Callable[[str], None]


def evaluation_for(
    recipe: Recipe, dataset: Any, stream: Stream, device: torch.device, say: Say
) -> Any:
    """What measures this recipe on this data; None where nothing does."""
    if "target" in recipe.reads:
        if "prototype" in recipe.reads and len(dataset.styles.test):
            return GlyphEvaluation(recipe, dataset, device)
        parts = ("validation", "test")
        return PairEvaluation(recipe, {p: stream.read(dataset.held_out(p)) for p in parts})
    if "real_a" in recipe.reads and isinstance(dataset, Glyphs):
        return GlyphTranslation(recipe, dataset, stream, device, say)
    if "label" in recipe.reads:
        rows, fields = dataset.labelled()
        label = {"label": fields.get("label", fields.get(dataset.label))}

        def judge() -> Judge:
            return judge_of(dataset.store, stream.images, rows, label, device, say)

        return LabelEvaluation(recipe, judge, dataset.facts["classes"], device)
    return None


class PairEvaluation:
    """Distances to the truth on held-out pairs, beside the input as it is."""

    measures: Mapping[str, Better] = {"l1": "less", "psnr": "more", "ssim": "more"}

    def __init__(self, recipe: Recipe, parts: Mapping[str, Batch]) -> None:
        """`parts` are a `validation` and a `test` batch, with a `target`."""
        self.recipe, self.parts = recipe, parts

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """L1, PSNR and SSIM on the validation pairs, images taken as values in [0, 1]."""
        return self.distances("validation", lambda batch: self.drawn(generator, batch))

    def report(self, generator: nn.Module) -> str:
        """A table of the generator beside the copy of its input, on the test pairs."""
        rows = {
            "copy of the input": self.distances("test", _given),
            "generator": self.distances("test", lambda batch: self.drawn(generator, batch)),
        }
        names = next(iter(rows.values()))
        titles = "".join(f"{name.upper():>9}" for name in names)
        lines = [f"{len(self.parts['test']['target'])} held-out pairs".ljust(20) + titles]
        for row, values in rows.items():
            lines.append(row.ljust(20) + "".join(f"{values[name]:9.3f}" for name in names))
        return "\n".join(lines)

    def drawn(self, generator: nn.Module, batch: Batch) -> Tensor:
        """What the generator makes of a batch, [N, C, H, W]."""
        return self.recipe.samples(generator, batch)["generated"]

    def distances(self, part: str, draw: Callable[[Batch], Tensor]) -> dict[str, float]:
        """Mean distances of what is drawn to the truth."""
        found: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": []}
        for batch in _portions(self.parts[part]):
            made, truth = ((1 + x) / 2 for x in (draw(batch), batch["target"]))
            for name, values in found.items():
                values.append(getattr(images, name)(made, truth))
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}


class LabelEvaluation:
    """How many samples have the label that they were asked for, in the eyes of a classifier."""

    measures: Mapping[str, Better] = {"label_accuracy": "more", "worst_class": "more"}

    def __init__(
        self, recipe: Any, judge: Callable[[], Judge], classes: int, device: torch.device
    ) -> None:
        """`judge` makes the classifier of the field `label`, when it is first needed."""
        self.recipe, self._make = recipe, judge
        count = classes * -(-1024 // classes)  # as many of each class, 1024 or a few more
        self.labels = torch.arange(count, device=device) % classes
        noise = torch.Generator().manual_seed(0)
        shape = (count, recipe.generator.latent)
        self.noise = torch.randn(shape, generator=noise).to(device)

    @cached_property
    def judge(self) -> Judge:
        """The classifier, trained once."""
        return self._make()

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """The share of samples with the right label, and that of the class with the fewest."""
        right = self.right(generator).float()
        return {"label_accuracy": float(right.mean()), "worst_class": float(right.mean(0).min())}

    def report(self, generator: nn.Module) -> str:
        """The same in words, beside what the classifier makes of real images."""
        found = self.measure(generator)
        return (
            f"{len(self.labels)} samples, as many of each class: {found['label_accuracy']:.1%} "
            f"have the label they were asked for, {found['worst_class']:.1%} of the worst class; "
            f"the classifier that says so is right about {self.judge.ceiling['label']:.1%} of "
            "held-out real images"
        )

    def right(self, generator: nn.Module) -> Tensor:
        """Whether each sample has its label, bool [samples of a class, classes]."""
        drawn = [
            self.recipe.draw(generator, noise, label)
            for noise, label in zip(
                torch.split(self.noise, PORTION), torch.split(self.labels, PORTION), strict=True
            )
        ]
        right = self.judge.right(torch.cat(drawn), {"label": self.labels})["label"]
        return right.view(-1, int(self.labels.max()) + 1)


def _given(batch: Batch) -> Tensor:
    return batch["input"] if "input" in batch else batch["prototype"]


def _portions(batch: Batch) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(batch["target"]), PORTION):
        yield {key: value[start : start + PORTION] for key, value in batch.items()}


class GlyphEvaluation:
    """Scores on cells of seen and unseen styles and characters, with one reference glyph each."""

    measures: Mapping[str, Better] = {
        "validation_l1": "less",
        "validation_ssim": "more",
        "validation_sharpness": "more",
    }

    def __init__(self, recipe: Recipe, dataset: Any, device: torch.device) -> None:
        """`dataset` gives the store, its table of rows and both splits."""
        self.recipe, self.device = recipe, device
        self.cells, self.fonts = _cells(dataset), dataset.style_names
        self.families = dict(zip(self.fonts, dataset.families.tolist(), strict=True))

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """L1, SSIM and sharpness on validation styles and characters, on which nothing trains."""
        scores = score(self.cells, self.draw(generator), among=["validation"]).cells["validation"]
        return {f"validation_{name}": scores.mean(name) for name in ("l1", "ssim", "sharpness")}

    def report(self, generator: nn.Module) -> str:
        """A table of the generator beside every baseline, and what the reference is worth."""
        draw = self.draw(generator)
        among = [cell for cell in CELLS if cell != "validation"]
        rows = baselines(self.cells, among)
        rows["W-Net"] = score(self.cells, draw, among=among)
        shuffled = score(self.cells, draw, control=shuffled_reference, among=among)
        rows["W-Net, shuffled reference"] = shuffled
        lines = [
            "Unseen styles and characters (UFUC), L1 paired by font, 95 % intervals over families:",
            f"  shuffled reference minus W-Net: {_interval(shuffled, rows['W-Net'])}",
            f"  prototype copy minus W-Net:     {_interval(rows['prototype copy'], rows['W-Net'])}",
        ]
        return "\n".join([table(rows), "", *lines])

    def by_font(self, generator: nn.Module) -> dict[str, dict[str, dict[str, float]]]:
        """Every metric of each unseen font on unseen characters."""
        cells = score(self.cells, self.draw(generator), among=["UFUC"]).cells
        return {
            name: {
                self.fonts[style]: {metric: float(v[place]) for metric, v in cell.values.items()}
                for place, style in enumerate(cell.styles)
            }
            for name, cell in cells.items()
        }

    def draw(self, generator: nn.Module) -> Draw:
        """The generator as a function of ink."""

        def drawn(prototype: Tensor, references: Tensor) -> Tensor:
            batch = {
                "prototype": (1 - 2 * prototype).to(self.device),
                "reference": (1 - 2 * references).to(self.device),
            }
            return (1 - self.recipe.samples(generator, batch)["generated"]) / 2

        return drawn


def _interval(scores: Any, other: Any) -> str:
    difference = compare(scores, other)
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _cells(dataset: Any) -> Cells:
    """The dataset's glyphs and splits; of a large character set an even selection."""
    parts = [
        _spread(part)
        for part in (dataset.split.train, dataset.split.validation, dataset.split.test)
    ]
    characters = np.concatenate(parts)
    bounds = np.cumsum([0, *map(len, parts)])
    numbers = [np.arange(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    rows = dataset.rows[:, characters]  # [S, N], -1 where a glyph is missing
    glyphs = _glyphs(dataset.store, rows)
    prototype = glyphs[dataset.prototype]
    usable = (rows >= 0) & (rows[dataset.prototype] >= 0)
    styles = np.concatenate([dataset.styles.train, dataset.styles.validation, dataset.styles.test])
    return Cells(
        glyphs,
        usable,
        prototype,
        dataset.styles,
        type(dataset.split)(*numbers),
        dataset.families,
        common_characters(usable, styles, numbers[0]),
    )


def _glyphs(store: Any, rows: np.ndarray) -> np.ndarray:
    """Bytes [S, N, H, W] of the rows [S, N], blank where a glyph is missing."""
    present = rows.reshape(-1) >= 0
    glyphs = np.full((rows.size, *store.shape), 255, dtype=np.uint8)
    read = np.empty((int(present.sum()), *store.shape), dtype=np.uint8)
    store.read(rows.reshape(-1)[present], read)
    glyphs[present] = read
    return glyphs[..., 0].reshape(*rows.shape, *store.shape[:2])


def _spread(numbers: np.ndarray) -> np.ndarray:
    return numbers[np.linspace(0, len(numbers) - 1, min(MOST, len(numbers))).astype(np.int64)]
