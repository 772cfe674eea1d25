"""How well a recipe does on what it was not trained on, during training and at its end."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan.config.settings import Settings
from gan.data.datasets import sampled
from gan.data.stream import Stream
from gan.data.translation import Unpaired
from gan.data.triples import Glyphs
from gan.metrics.claims import doubts
from gan.metrics.extractors import PORTION, OfNothing
from gan.metrics.glyph_evaluation import GlyphEvaluation
from gan.metrics.glyph_judges import glyph_judge
from gan.metrics.image_evaluation import (
    LEAST,
    ImageEvaluation,
    Real,
    ReferenceEvaluation,
    extractor_of,
    halves,
    labelled,
)
from gan.metrics.judges import Judge
from gan.metrics.pairs import MEASURES, PairEvaluation, Translate
from gan.metrics.populations import Sampler, Translations
from gan.metrics.translation import GlyphTranslation
from gan.noise import FromNoise
from gan.recipe import Recipe
from gan.run.best import Better

REFERENCES = ("inception", "vgg16")  # networks of images, one by one

Say = Callable[[str], None]


def evaluation_for(
    recipe: Recipe,
    dataset: Any,
    stream: Stream,
    device: torch.device,
    say: Say,
    settings: Settings,
    networks: Mapping[str, Any],
) -> Any:
    """What measures this recipe on this data; None where nothing does.

    With `settings.judges` classifiers of the real images take part. The first measure trains them
    where `data/classifiers/` has none of these images yet; those of `gan evaluate` are the same.
    `networks` are those whose weights are given: `inception` and `vgg16`, which are extractors, and
    `lpips`, a measure of pairs.

    Raises: ValueError for a network through which this recipe is not measured.
    """
    judges = settings.judges
    if "target" in recipe.reads:
        if "prototype" in recipe.reads and isinstance(dataset, Glyphs) and len(dataset.styles.test):
            _require_use(networks)
            judge = partial(glyph_judge, dataset, stream.images, device, say) if judges else None
            return GlyphEvaluation(recipe, dataset, device, judge)
        _require_use(networks, "lpips")
        if not hasattr(dataset, "held_out"):
            raise ValueError(
                f"pairs are measured where they were held out, but {type(dataset).__name__} has no "
                "`held_out`, which gives `validation` and `test`: see gan.data.translation.Pairs"
            )
        parts = {part: stream.read(dataset.held_out(part)) for part in ("validation", "test")}
        if "lpips" in networks:
            networks["lpips"].require_size(parts["test"]["target"])
        return PairEvaluation(_translate(recipe), parts, {**MEASURES, **networks})
    if "real_a" in recipe.reads and isinstance(dataset, Glyphs):
        _require_use(networks)
        return GlyphTranslation(_translate(recipe), dataset, stream, device, say, judges)
    if isinstance(dataset, Unpaired):
        if _enough(dataset, say):
            return _of_unpaired(recipe, dataset, stream, device, say, settings, networks)
        _require_use(networks)
        return None
    if "real" in recipe.reads and isinstance(recipe, FromNoise):
        return _of_images(recipe, dataset, stream, device, say, settings, networks)
    _require_use(networks)
    say(
        f"nothing is measured: {type(recipe).__name__} has no `target` to come near, and is not "
        "`gan.noise.FromNoise`, which says how images are drawn"
    )
    return None


def _translate(recipe: Recipe) -> Translate:
    return lambda generator, batch: recipe.samples(generator, batch)["generated"]


def _enough(dataset: Unpaired, say: Say) -> bool:
    """Whether images of both kinds suffice for measures in training; what is missing is said."""
    (held, _), (_, wanted) = dataset.held, dataset.train
    if min(len(halves(held)[0]), len(wanted)) >= LEAST:
        return True
    say(
        f"nothing is measured in training: it takes {2 * LEAST} held-out images of the first kind, "
        f"of which half are kept for the end, and {LEAST} training images of the second; there are "
        f"{len(held)} and {len(wanted)}"
    )
    return False


def _of_unpaired(
    recipe: Recipe,
    dataset: Unpaired,
    stream: Stream,
    device: torch.device,
    say: Say,
    settings: Settings,
    networks: Mapping[str, Any],
) -> Any:
    """Distances of translated held-out images from those of the other kind.

    One half of them is measured in training, which may choose the best by it, the other at its end.
    """
    _require_use(networks, *REFERENCES)
    wanted = Real(dataset.store, dataset.train[1], stream.images)
    extractor = cache(partial(OfNothing, dataset.store.shape[2], device))

    def translate(generator: nn.Module, image: Tensor) -> Tensor:
        return recipe.samples(generator, {"real_a": image})["generated"]

    def measured(rows: np.ndarray, say: Say) -> list[Any]:
        source = Translations(translate, stream.images, sampled(rows, settings.measured))
        count, known = len(source.rows), networks.values()
        return [
            ImageEvaluation(source, extractor, wanted, count),
            *(ReferenceEvaluation(source, network, wanted, count, say) for network in known),
        ]

    during, after = halves(dataset.held[0])
    return Apart(measured(during, say), Together(measured(after, lambda line: None)))


def _of_images(
    recipe: Any,
    dataset: Any,
    stream: Stream,
    device: torch.device,
    say: Say,
    settings: Settings,
    networks: Mapping[str, Any],
) -> Any:
    """Measures of what is drawn from noise: whether labels are obeyed, and all of it together."""
    _require_use(networks, *REFERENCES)
    conditional = "label" in recipe.reads
    make, labels = extractor_of(dataset, stream.images, device, conditional, say)
    rows, shown = labelled(dataset)
    if not settings.judges:
        make, labels = partial(OfNothing, dataset.store.shape[2], device), None
    extractor = cache(make)  # one network for both

    parts: list[Any] = []
    if conditional and labels is not None:
        network: Any = extractor  # a classifier, since there are labels
        judge, least = lambda: network().judge, settings.measured
        parts = [LabelEvaluation(recipe, judge, labels, device, least)]
    if len(rows) >= LEAST:
        sampler = Sampler(recipe, recipe.generator.latent, shown if conditional else None, device)
        real, count = Real(dataset.store, rows, stream.images), settings.measured
        parts.append(ImageEvaluation(sampler, extractor, real, count, labels))
        known = networks.values()
        parts += [ReferenceEvaluation(sampler, network, real, count, say) for network in known]
    else:
        _require_use(networks)
    return Together(parts) if parts else None


def _require_use(networks: Mapping[str, Any], *known: str) -> None:
    use = f"trainer.{' and trainer.'.join(known)} would be" if known else "none is"
    for name in networks.keys() - known:
        raise ValueError(
            f"trainer.{name}: this recipe on this data is not measured through that network "
            f"({use}): leave it out"
        )


class Together:
    """Several measures as one."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    @property
    def better(self) -> dict[str, Better]:
        """Of each measure, whether less or more is better."""
        return {name: better for part in self.parts for name, better in part.better.items()}

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """All numbers."""
        return {k: v for part in self.parts for k, v in part.measure(generator).items()}

    def report(self, generator: nn.Module) -> str:
        """All texts."""
        return "\n\n".join(part.report(generator) for part in self.parts)


class Apart(Together):
    """Measures on some images in training, and the same on others at its end."""

    def __init__(self, during: Sequence[Any], after: Together) -> None:
        super().__init__(during)
        self.after = after

    def report(self, generator: nn.Module) -> str:
        """Text on the images for the end."""
        return self.after.report(generator)


class LabelEvaluation:
    """How many samples have the label that they were asked for, in the eyes of a classifier."""

    better: Mapping[str, Better] = {"label_accuracy": "more", "worst_class": "more"}

    def __init__(
        self,
        recipe: Any,
        judge: Callable[[], Judge],
        labels: np.ndarray,
        device: torch.device,
        least: int,
    ) -> None:
        """`judge` makes the classifier of the field `label`, when it is first needed.

        As many samples, `least` or a few more, are drawn of each class among the `labels` of
        training images.
        """
        self.recipe, self._make = recipe, judge
        shown = np.unique(labels)
        self.classes = len(shown)
        count = self.classes * -(-least // self.classes)
        self.labels = torch.from_numpy(np.resize(shown, count)).to(device)
        noise = torch.Generator().manual_seed(0)
        shape = (count, recipe.generator.latent)
        self.noise = recipe.noise(torch.randn(shape, generator=noise)).to(device)

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
        found, right = self.measure(generator), self.judge.ceiling["label"]
        said = (
            f"{len(self.labels)} samples, as many of each of {self.classes} classes: "
            f"{found['label_accuracy']:.1%} have the label they were asked for, "
            f"{found['worst_class']:.1%} of the worst class; the classifier that says so is right "
            f"about {right:.1%} of held-out real images"
        )
        return "\n".join([said, *doubts({"label": right}, "images")])

    def right(self, generator: nn.Module) -> Tensor:
        """Whether each sample has its label, bool [samples of a class, classes]."""
        drawn = [
            self.recipe.draw(generator, noise, label)
            for noise, label in zip(
                torch.split(self.noise, PORTION), torch.split(self.labels, PORTION), strict=True
            )
        ]
        right = self.judge.right(torch.cat(drawn), {"label": self.labels})["label"]
        return right.view(-1, self.classes)
