"""How good a generator of images is: distances, variety, copies of training images, pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan import images
from gan.data.datasets import evenly, shuffled
from gan.metrics.claims import doubts
from gan.metrics.distances import moments
from gan.metrics.extractors import PORTION, Extractor, OfClassifier
from gan.metrics.populations import (
    NEIGHBOURS,
    Copies,
    Drawn,
    Seen,
    classes_hit,
    copies,
    distances,
    each,
    reference,
    seen,
)
from gan.metrics.report import Report

SHOWN = 8  # images beside the training images that they resemble most
GRID = 64
FLOOR = "training images"  # the column of some of them beside as many others
MEANING = {
    "memorised": "share as near to a training image as the nearest 1 % of those are to each other",
    "duplicates": "the same to another drawn image; of fresh images both are about 0.01",
    "classes_hit": "share of the training images' classes that the classifier reads at least once",
    "label_accuracy": "share read as the class that was asked for; worst_class: of the worst",
    "class_divergence": "of the read shares of classes from the training's, in nats; 0 is best",
}


class Asked(NamedTuple):
    """What is to be measured.

    Attributes:
        rows: those of the training images.
        drawn: how many images.
        extractors: by what. Copies are looked for on the first one's features; it is a classifier
            of the labels where there are any.
        labels: those of the training images.
        mirrored: whether training shows half of its images mirrored, so that copies may be too.
    """

    rows: np.ndarray
    drawn: int
    extractors: Sequence[Extractor]
    labels: np.ndarray | None = None
    mirrored: bool = False

    @property
    def searched(self) -> tuple[int, int]:
        """How many drawn images are copies looked for of, and among how many training images."""
        return min(self.drawn, NEIGHBOURS), len(self.rows)

    @property
    def equal(self) -> int:
        """How many drawn and how many training images stand beside as many other training ones."""
        return min(self.drawn, min(len(self.rows), NEIGHBOURS) // 2)


def image_report(
    generators: Mapping[str, nn.Module],
    source: Drawn,
    store: Any,
    read: Callable[[np.ndarray], Tensor],
    asked: Asked,
) -> Report:
    """All that is known of generators of one run, by the name of their weights; the last counts."""
    *others, chosen = generators
    columns: dict[str, dict[str, float]] = {name: {} for name in generators}
    equals: dict[str, dict[str, float]] = {chosen: {}, FLOOR: {}}
    measures: dict[str, Any] = {name: {} for name in generators}
    drawn: dict[str, Tensor] = {}  # features of the first extractor
    said: dict[str, dict[str, Any]] = {}
    for extractor in asked.extractors:
        first = extractor is asked.extractors[0]
        real = reference(store, asked.rows, read, extractor)
        for name, generator in generators.items():
            fake = seen(_progress(source, generator, name, asked, extractor), extractor)
            found = distances(fake, real, extractor)
            if first:
                drawn[name] = fake.features
                found |= _classes(fake, asked.labels, source.asked(asked.drawn))
            columns[name] |= found
            said[name] = _said(asked.drawn, fake, real, extractor)
            measures[name] |= {key: {"value": value, **said[name]} for key, value in found.items()}
        if first:
            alike = copies(drawn, real.features, asked.rows, _looks(asked, read, extractor))
            for name, copied in alike.items():
                columns[name] |= copied.shares
                shares = {k: {"value": v, **said[name]} for k, v in copied.shares.items()}
                measures[name] |= shares
                measures[name]["memorised"] |= {
                    "compared_one_by_one": [*asked.searched],
                    "mirrored": asked.mirrored,
                }
        both = _equally(fake.features, real.features, asked.equal, extractor)
        equals[chosen], equals[FLOOR] = equals[chosen] | both[0], equals[FLOOR] | both[1]
    return Report(
        "How good the images are",
        _sentence(columns[chosen], equals, asked),
        _text(columns, equals, asked),
        columns[chosen] | {f"{w}_weights/{k}": v for w in others for k, v in columns[w].items()},
        {
            "measures": measures,
            "floor": equals[FLOOR],
            "beside_floor": equals[chosen],
            "floor_images": asked.equal,
            "classifier_right": _ceilings(asked),
        },
        {
            f"{GRID} images by the {chosen} weights.": _grid(source, generators[chosen], asked),
            "The drawn images that resemble a training image most, beside it.": _sheet(
                source, generators[chosen], asked, alike[chosen], read
            ),
        },
    )


def _progress(
    source: Drawn, generator: nn.Module, name: str, asked: Asked, extractor: Extractor
) -> Iterator[Tensor]:
    parts = -(-asked.drawn // PORTION)
    title = f"{name} weights, {extractor.name}"
    yield from tqdm(source.drawn(generator, asked.drawn), title, parts, disable=None)


def _classes(fake: Seen, labels: np.ndarray | None, wanted: Tensor | None) -> dict[str, float]:
    """Which classes are drawn, where there are labels, and whether those that were asked for."""
    found: dict[str, float] = {}
    if labels is not None:
        hit, classes, divergence = classes_hit(fake.logits, labels)
        found |= {"classes_hit": hit / classes, "class_divergence": divergence}
    if labels is not None and wanted is not None:
        right = (fake.logits.argmax(1) == wanted).double()
        by_class = torch.stack([right[wanted == label].mean() for label in torch.unique(wanted)])
        found |= {"label_accuracy": float(right.mean()), "worst_class": float(by_class.min())}
    return found


def _looks(
    asked: Asked, read: Callable[[np.ndarray], Tensor], extractor: Extractor
) -> Iterator[Iterator[Tensor]]:
    """Features of all training images, and of their mirror images where training shows these."""
    yield each(asked.rows, read, extractor, "copies of training images")
    if asked.mirrored:
        title = "copies of mirrored training images"
        yield each(asked.rows, lambda rows: read(rows).flip(-1), extractor, title)


def _equally(
    fake: Tensor, real: Tensor, many: int, extractor: Extractor
) -> tuple[dict[str, float], dict[str, float]]:
    """Distances of so many drawn and so many training images from as many other training images.

    Even those of one distribution fall as images grow in number: only equal numbers compare.
    """
    both = real[torch.from_numpy(shuffled(len(real)))][: 2 * many]
    some = fake[torch.from_numpy(shuffled(len(fake)))][:many], *both.split(many)
    drawn, trained, others = (Seen(moments([x]), x, torch.empty(many, 0)) for x in some)
    return distances(drawn, others, extractor), distances(trained, others, extractor)


def _said(count: int, fake: Seen, real: Seen, extractor: Extractor) -> dict[str, Any]:
    return {
        "drawn": count,
        "reference_images": real.moments.images,
        "reference_split": "training images, unflipped",
        "compared_one_by_one": [len(fake.features), len(real.features)],
        "extractor": extractor.name,
        "extractor_hash": extractor.key,
        "resize": extractor.resize,
    }


def _text(
    columns: Mapping[str, Mapping[str, float]],
    equals: Mapping[str, Mapping[str, float]],
    asked: Asked,
) -> str:
    alike = {f"{name}, {asked.equal}": found for name, found in equals.items()}
    columns = {**columns, **alike}
    mirror = " and their mirror images" if asked.mirrored else ""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    wide = max(map(len, names)) + 2
    across = [max(12, len(column) + 2) for column in columns]
    titles = zip(columns, across, strict=True)
    lines = [" " * wide + "".join(f"{column:>{width}}" for column, width in titles)]
    for name in names:
        cells = zip(columns.values(), across, strict=True)
        shown = (f"{c[name]:{w}.4f}" if name in c else f"{'-':>{w}}" for c, w in cells)
        lines.append(name.ljust(wide) + "".join(shown))
    lines += [
        "",
        f"{asked.drawn} drawn images beside {len(asked.rows)} training images, unflipped; "
        f"neighbours are looked for among at most {NEIGHBOURS} of each.",
        f"Copies in {asked.searched[0]} drawn images are looked for among all {len(asked.rows)} "
        f"training images{mirror}; what is near is told by {min(len(asked.rows), NEIGHBOURS)} of "
        "these, each beside all others.",
        f"{'; '.join(alike)}: as many drawn and training images, each beside the same "
        f"{asked.equal} other training images, since fewer images have larger Fréchet distances.",
        *(f"{name}: {MEANING[name]}." for name in names if name in MEANING),
        *(
            f"{extractor.name}: weights {extractor.key[:16]}, resize {extractor.resize}."
            for extractor in asked.extractors
        ),
        *_cautions(asked),
    ]
    return "\n".join(lines)


def _cautions(asked: Asked) -> list[str]:
    lines: list[str] = []
    for right in _ceilings(asked):
        lines.append(f"classifier: it names {right:.1%} of held-out real images rightly.")
        lines += doubts({"label": right}, "images")
    if asked.drawn < 2049 and any(e.name == "inception" for e in asked.extractors):
        lines.append("Below 2,049 images the covariance of Inception's features is singular.")
    if all(e.name not in ("inception", "vgg16") for e in asked.extractors):
        lines.append("Comparable on these images and these features alone; FID needs --inception.")
    if any(e.name == "random" for e in asked.extractors):
        lines.append("random: an untrained network, since the images have no labels to learn.")
    return lines


def _ceilings(asked: Asked) -> list[float]:
    """How many held-out real images the classifier names rightly, where there is one."""
    found = [e.judge.ceiling for e in asked.extractors if isinstance(e, OfClassifier)]
    return [ceiling["label"] for ceiling in found]


def _sentence(
    found: Mapping[str, float], equals: Mapping[str, Mapping[str, float]], asked: Asked
) -> str:
    """The first distance beside what training images reach, and what was copied or left out."""
    distance = next(iter(found))
    drawn, trained = (column[distance] for column in equals.values())
    parts = [
        f"{distance} {found[distance]:.3f} ({asked.equal} of them beside as many training images: "
        f"{drawn:.3f}; as many other training images beside those: {trained:.3f})"
    ]
    if "classes_hit" in found:
        parts.append(f"{found['classes_hit']:.1%} of the classes are drawn")
    parts.append(
        f"{found['memorised']:.1%} resemble a training image and {found['duplicates']:.1%} one "
        "another as closely as 1 % of training images do"
    )
    return f"{asked.drawn} images: " + "; ".join(parts) + "."


def _grid(source: Drawn, generator: nn.Module, asked: Asked) -> np.ndarray:
    labels = source.asked(asked.drawn)
    order = torch.arange(asked.drawn) if labels is None else labels.argsort(stable=True)
    which = order[torch.from_numpy(evenly(np.arange(asked.drawn), GRID))]
    drawn = source.some(generator, asked.drawn, which)
    return images.grid(drawn)


def _sheet(
    source: Drawn,
    generator: nn.Module,
    asked: Asked,
    found: Copies,
    read: Callable[[np.ndarray], Tensor],
) -> np.ndarray:
    once: dict[int, int] = {}  # of each training image, the drawn one nearest to it
    for place in found.distance.argsort().tolist():
        once.setdefault(int(found.which[place]), place)
    closest = torch.tensor([*once.values()][:SHOWN])
    drawn = source.some(generator, asked.drawn, closest)
    trained = read(asked.rows[found.which[closest].numpy()])
    return images.table({"drawn": drawn, "nearest training image": trained})
