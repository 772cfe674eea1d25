"""How near drawn images come to the training images as a whole: cheap, for use in training."""

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gan.data.datasets import sampled, shuffled
from gan.metrics.extractors import Extractor, OfClassifier, OfNothing
from gan.metrics.judges import judge_of
from gan.metrics.populations import FOLDER, Drawn, Seen, classes_hit, distances, reference, seen
from gan.run.best import Better

LESSON = 10_000  # images that the classifier of an unconditional game learns from
LEAST = 16  # with fewer training images nothing is measured

Say = Callable[[str], None]


class Real(NamedTuple):
    """Training images: a store, their rows in it, and what reads rows as images."""

    store: Any
    rows: np.ndarray
    read: Callable[[np.ndarray], Tensor]


class ImageEvaluation:
    """Distances on features of a classifier of the store's labels, or of an untrained network."""

    more = "`gan evaluate` measures more of them, and FID where Inception's weights are given."

    def __init__(
        self,
        source: Drawn,
        extractor: Callable[[], Extractor],
        real: Real,
        count: int,
        labels: np.ndarray | None = None,
    ) -> None:
        """`extractor` is made when it is first needed; `labels` are the training images'.

        As many training images are looked at as are drawn: `count`.
        """
        self.source, self._make, self.labels = source, extractor, labels
        self.images, self.count = real._replace(rows=sampled(real.rows, count)), count

    @cached_property
    def extractor(self) -> Extractor:
        """Made once."""
        return self._make()

    @cached_property
    def real(self) -> Seen:
        """What the extractor sees in training images, once."""
        return reference(*self.images, self.extractor, folder=None)

    @property
    def better(self) -> dict[str, Better]:
        """Of each measure, whether less or more is better."""
        return better("random" if self.labels is None else "classifier")

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Distances by name, and the share of classes that are drawn where there are labels."""
        fake = seen(self.source.drawn(generator, self.count), self.extractor)
        missing = dict.fromkeys(self.better, math.nan)  # where a generator has diverged
        found = missing | distances(fake, self.real, self.extractor)
        if self.labels is not None and fake.logits.shape[1]:
            hit, classes, _ = classes_hit(fake.logits, self.labels)
            found["classes_hit"] = hit / classes
        return found

    def report(self, generator: nn.Module) -> str:
        """The same in words."""
        found = self.measure(generator)
        listed = "\n".join(f"  {name:<24}{value:9.3f}" for name, value in found.items())
        return (
            f"{self.count} drawn images beside {len(self.images.rows)} training images, on "
            f"features of {self._features()}:\n{listed}\n{self.more}"
        )

    def _features(self) -> str:
        of = {
            "classifier": "a classifier of the training images",
            "random": "an untrained network, which tell better from worse and no more",
        }
        return of[self.extractor.name]


class ReferenceEvaluation(ImageEvaluation):
    """The same on a reference network: FID and its kin, beside all training images."""

    more = "Numbers of so few images compare with numbers of as many; `gan evaluate` draws 50,000."

    def __init__(self, source: Drawn, network: Extractor, real: Real, count: int, say: Say) -> None:
        super().__init__(source, lambda: network, real, count)
        self.images = real
        self._say: Say = cache(say)  # a line is said once

    @cached_property
    def real(self) -> Seen:
        """What the network sees in all training images: kept, and the same as in `gan evaluate`.

        As many of them are compared one by one as are drawn.
        """
        found = reference(*self.images, self.extractor, FOLDER)
        some = sampled(np.arange(len(found.features)), self.count)
        return found._replace(features=found.features[torch.from_numpy(some)])

    @property
    def better(self) -> dict[str, Better]:
        """Of each measure, whether less or more is better."""
        return better(self.extractor.name)

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """The same; at the first one it is said of what the numbers are."""
        self._say(self._of())
        return super().measure(generator)

    def _of(self) -> str:
        first, wide = next(iter(self.better)), len(self.real.moments.mean)
        said = (
            f"metric/{first} and its kin are of {self.count} drawn images beside all "
            f"{len(self.images.rows)} training images, unflipped, on features of "
            f"{self.extractor.name} (weights {self.extractor.key[:16]})"
        )
        if first != "fid" or min(self.count, len(self.images.rows)) > wide:
            return said
        return (
            f"{said}: of no more images than features, which are {wide}, a covariance is singular "
            "and FID compares only with FID of as many"
        )

    def _features(self) -> str:
        network = self.extractor
        return f"{network.name} (weights {network.key[:16]}, resize {network.resize})"


def halves(held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held-out rows for measures in training, and others for what is reported at its end.

    The best checkpoint is chosen by the first. Where `LEAST` of both are not there, all are for the
    report.
    """
    if len(held) < 2 * LEAST:
        return held[:0], held
    one, other = np.array_split(shuffled(len(held)), 2)
    return held[np.sort(one)], held[np.sort(other)]


def better(network: str) -> dict[str, Better]:
    """Of each measure on a network's features, whether less or more is better."""
    among = ("precision", "recall", "density", "coverage")
    if network == "vgg16":
        return dict.fromkeys(among, "more")
    more: dict[str, Better] = {f"{name}_{network}": "more" for name in among}
    if network == "inception":
        return {"fid": "less", "kid": "less", "is": "more", **more}
    if network == "classifier":
        more |= {"is_classifier": "more", "classes_hit": "more"}
    return {f"fd_{network}": "less", f"kd_{network}": "less", **more}


def extractor_of(
    dataset: Any,
    read: Callable[[np.ndarray], Tensor],
    device: torch.device,
    conditional: bool,
    say: Say = print,
) -> tuple[Callable[[], Extractor], np.ndarray | None]:
    """What makes features of a dataset's images, when called, and the images' labels or None."""
    rows, label = labelled(dataset)
    if label is None or len(np.unique(label)) < 2:
        return lambda: OfNothing(dataset.store.shape[2], device), None
    place = sampled(np.arange(len(rows)), len(rows) if conditional else LESSON)

    def make() -> Extractor:
        labels = {"label": label[place]}
        return OfClassifier(judge_of(dataset.store, read, rows[place], labels, device, say))

    return make, label


def labelled(dataset: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of the training images [N] and their labels [N], if they have any."""
    if not hasattr(dataset, "labelled"):
        raise ValueError(
            f"images are measured beside those they learn from, but {type(dataset).__name__} has "
            "no `labelled`, which gives their rows and labels: see gan.data.datasets.Images"
        )
    rows, fields = dataset.labelled()
    return rows, fields.get("label", fields.get(getattr(dataset, "label", None)))


def mirrored(dataset: Any) -> bool:
    """Whether training reads half of its images mirrored."""
    return bool(getattr(dataset, "flip", False))
