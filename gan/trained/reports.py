"""Which report a run gets, and what may be asked of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from gan.data.datasets import Plan
from gan.data.stream import Stream
from gan.data.translation import Unpaired
from gan.data.triples import Glyphs
from gan.metrics.extractors import Extractor, OfNothing
from gan.metrics.glyph_judges import glyph_judge
from gan.metrics.glyph_report import PAIRED, Adaptation, glyph_report, writing
from gan.metrics.image_evaluation import (
    LEAST,
    extractor_of,
    halves,
    labelled,
    mirrored,
)
from gan.metrics.image_report import Asked, image_report
from gan.metrics.pairs import MEASURES, Measure, Translate, pair_report
from gan.metrics.populations import Sampler, Translations
from gan.metrics.report import Report
from gan.metrics.translation import translation_report
from gan.networks.lpips import Lpips
from gan.networks.reference import REFERENCES, downloaded, reference_networks
from gan.noise import FromNoise
from gan.recipe import Recipe
from gan.recipes.cyclegan import CycleGAN
from gan.recipes.modules import GlyphWriter
from gan.recipes.pix2pix import Pix2Pix
from gan.recipes.wnet import WNet
from gan.references import is_paired, references_of
from gan.styles import HOW, Relatives, accuracy, adapted, known

if TYPE_CHECKING:
    from gan.runs import Run

TRANSLATIONS: dict[type[Recipe], Translate] = {
    WNet: lambda generator, batch: generator(batch["prototype"], references_of(generator, batch)),
    Pix2Pix: lambda generator, batch: generator(batch["input"]),
    CycleGAN: lambda generator, batch: generator.get_submodule("to_b")(batch["real_a"]),
}
MANY, FEW = 50_000, 10_000  # images drawn with the weights of a reference network, and without


class Options(NamedTuple):
    """What a user may choose.

    Attributes:
        drawn: images to draw, or None for as many as are usual.
        weights: files of reference networks by name, see `REFERENCES`.
        download: fetch the weights of those that are not named.
        adapt: steps on the references of a style before a W-Net draws in it.
        strict: refuse weights and counts that are not read: a trainer may have more than a report.
    """

    drawn: int | None = None
    weights: Mapping[str, Path] = {}
    download: bool = False
    adapt: int = 0
    strict: bool = False


def reads(run: "Run", kind: type[Recipe]) -> tuple[str, ...]:
    """The keys of a batch that a translation of this kind takes to the run's generator."""
    return (*kind.reads, "shown") if is_paired(run.generator) else kind.reads


def report_of(
    loaded: "Mapping[str, Run]", dataset: Any, device: torch.device, options: Options
) -> Report:
    """What is to be known of a run's generators, by the name of their weights.

    Raises:
        ValueError: a recipe whose generator is called in a way that is not known here.
    """
    last = [*loaded.values()][-1]
    kind = next((kind for kind in TRANSLATIONS if issubclass(last.recipe, kind)), None)
    stream = Stream(dataset, 1, 0, device, reads(last, kind) if kind else ())
    if issubclass(last.recipe, WNet) and isinstance(dataset, Glyphs) and len(dataset.styles.test):
        _require_use(options, "adapt")
        draws = {name: writing(run.generator, device) for name, run in loaded.items()}
        judge = glyph_judge(dataset, stream.images, device, print)
        adaptation = _adaptation(last, dataset, options.adapt) if options.adapt else None
        paired = is_paired(last.generator)
        return glyph_report(draws, dataset, judge, device, adaptation, paired)
    if options.adapt:
        raise ValueError(
            "--adapt is for a W-Net on glyphs with held-out styles, not for recipe="
            f"{last.config['recipe']['name']} on data={last.config['data']['name']}"
        )
    if issubclass(last.recipe, FromNoise) and hasattr(dataset, "labelled"):
        return _of_images(loaded, dataset, stream, device, options)
    if kind and isinstance(dataset, Unpaired):
        return _of_unpaired(TRANSLATIONS[kind], loaded, dataset, stream, device, options)
    if kind and hasattr(dataset, "held_out"):
        return _of_translations(kind, loaded, dataset, stream, device, options)
    raise ValueError(
        f"gan evaluate knows no measure of recipe={last.config['recipe']['name']} on "
        f"data={last.config['data']['name']}"
    )


def _adaptation(run: "Run", dataset: Glyphs, steps: int) -> Adaptation:
    writer = cast(GlyphWriter, run.generator)
    glyphs = known(dataset, run.device)
    enough = accuracy(writer, glyphs)

    def learn(shown: Tensor, references: Tensor, characters: Sequence[str]) -> nn.Module:
        relatives = Relatives(dataset, run.device, characters, references)
        return adapted(writer, shown, references, steps, enough, glyphs["prototype"], relatives)

    return Adaptation(learn, {"steps": steps, "enough": enough, **HOW})


def _of_translations(
    kind: type[Recipe],
    loaded: "Mapping[str, Run]",
    dataset: Any,
    stream: Stream,
    device: torch.device,
    options: Options,
) -> Report:
    generators = {name: run.generator for name, run in loaded.items()}
    translate = TRANSLATIONS[kind]
    if kind is CycleGAN:
        _require_use(options)
        return translation_report(generators, translate, dataset, stream, device)
    _require_use(options, "lpips", "download")
    measures: dict[str, Measure] = dict(MEASURES)
    facts = {"ssim": "7x7 uniform window, data range 1, as scikit-image"}
    if "lpips" in options.weights or options.download:
        lpips = Lpips(options.weights.get("lpips") or downloaded("alexnet"), device)
        measures["lpips"] = lpips
        facts["lpips"] = f"version 0.1, {lpips.name}, weights {lpips.key}"
    plan = dataset.held_out("test")
    families = _families(dataset, plan)
    report = pair_report(generators, translate, stream.read(plan), measures, facts, families)
    if "shown" not in stream.keys:
        return report
    return replace(report, text=f"{report.text}\n{PAIRED}", facts={**report.facts, "paired": True})


def _families(dataset: Any, plan: Plan) -> np.ndarray | None:
    """That of the style of each pair [N], where pairs have styles."""
    if "style" not in plan.fields:
        return None
    families: np.ndarray = dataset.families[dataset.styles.train[plan.fields["style"]]]
    return families


def _of_images(
    loaded: "Mapping[str, Run]",
    dataset: Any,
    stream: Stream,
    device: torch.device,
    options: Options,
) -> Report:
    _require_use(options, "count", "inception", "vgg16", "download")
    last = [*loaded.values()][-1]
    rows, shown = labelled(dataset)
    if len(rows) < LEAST:
        raise ValueError(f"{dataset.store.path} has too few images to measure by: {LEAST} needed")
    make, labels = extractor_of(dataset, stream.images, device, bool(last.classes))
    references = _references(options, device)
    extractors = [make(), *references]
    count = options.drawn or (MANY if references else FEW)
    if count < LEAST:
        raise ValueError(f"--count={count} is too few: distances need {LEAST} images or more")
    recipe = cast(type[FromNoise], last.recipe)
    sampler = Sampler(recipe, last.latent, shown if last.classes else None, device)
    generators = {name: run.generator for name, run in loaded.items()}
    asked = Asked(rows, count, extractors, labels, mirrored(dataset))
    return image_report(generators, sampler, dataset.store, stream.images, asked)


def _of_unpaired(
    translate: Translate,
    loaded: "Mapping[str, Run]",
    dataset: Unpaired,
    stream: Stream,
    device: torch.device,
    options: Options,
) -> Report:
    """Translated held-out images beside training images of the other kind.

    Held-out images by which the best checkpoint was chosen are left out.
    """
    _require_use(options, "inception", "vgg16", "download")
    (_, given), (_, wanted) = halves(dataset.held[0]), dataset.train
    if min(len(given), len(wanted)) < LEAST:
        raise ValueError(
            f"{dataset.store.path} has too few images to measure by: {LEAST} held-out ones of the "
            f"first kind and {LEAST} of the second are needed"
        )
    source = Translations(lambda g, image: translate(g, {"real_a": image}), stream.images, given)
    extractors = [OfNothing(dataset.store.shape[2], device), *_references(options, device)]
    generators = {name: run.generator for name, run in loaded.items()}
    asked = Asked(wanted, len(given), extractors, mirrored=mirrored(dataset))
    return image_report(generators, source, dataset.store, stream.images, asked)


def _require_use(options: Options, *used: str) -> None:
    """Raises: ValueError for an option that was given and that this run's measures do not read."""
    if not options.strict:
        return
    others = {"count": options.drawn is not None, "download": options.download}
    for name in [*options.weights, *(other for other, given in others.items() if given)]:
        if name not in used:
            reads = ", ".join(f"--{one}" for one in used) or "none"
            raise ValueError(
                f"--{name}: this recipe on this data is not measured with it (options that are "
                f"read: {reads}): leave it out"
            )


def _references(options: Options, device: torch.device) -> list[Extractor]:
    """The reference networks that were asked for."""
    files = {
        name: options.weights.get(name) or downloaded(name)
        for name in REFERENCES
        if name in options.weights or options.download
    }
    return [*reference_networks(files, device).values()]
