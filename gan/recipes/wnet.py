"""A font from one character: W-Net after Figure 2 and Equations 1 and 2 of its paper.

Jiang et al. 2018, "W-Net: One-Shot Arbitrary-Style Chinese Character Generation with Deep Neural
Networks", ICONIP, arXiv:2406.06122. `prototype` is the wanted character in a standard font,
`reference` one or several other characters of a style, `target` the wanted character in that style.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from gan import draws
from gan.losses.adversarial import Adversarial
from gan.losses.classification import Classification
from gan.losses.reconstruction import Reconstruction, feature_distance
from gan.recipe import Batch, Penalty, Recipe
from gan.recipes.modules import GlyphCritic, GlyphWriter, Observer
from gan.references import paired, references_of
from gan.registry import Fraction, NonNegative, register
from gan.restyle import bent, hollowed, mixed, restyled, spliced, turned_alike
from gan.step.looks import Looks

SURE = 30.0  # the logit of a class beyond doubt


@register(
    "recipe",
    "wnet",
    given=(
        "generator",
        "discriminator",
        "adversarial",
        "penalties",
        "classification",
        "reconstruction",
        "classifier",
    ),
)
class WNet(Recipe):
    """prototype, reference -> the prototype's character in the reference's style.

    Eight named terms with the published weights; a weight of zero leaves its term out.
    """

    generator: GlyphWriter
    discriminator: GlyphCritic
    reads = ("prototype", "reference", "target", "style", "character")
    least = 2  # images in a batch: the codes are one pixel, which has no variance alone

    def __init__(
        self,
        generator: GlyphWriter,
        discriminator: GlyphCritic,
        adversarial: Adversarial,
        penalties: Mapping[str, Penalty],
        classification: Classification,
        reconstruction: Mapping[str, Reconstruction],
        classifier: Observer | None,
        weight: NonNegative = 3.0,
        style_class: NonNegative = 1.0,
        encoder_character: NonNegative = 0.2,
        encoder_style: NonNegative = 0.2,
        l1: NonNegative = 50.0,
        feature: NonNegative = 75.0,
        feature_source: str = "classifier",
        constant_content: NonNegative = 3.0,
        constant_style: NonNegative = 5.0,
        restyle: Fraction = 0.0,
        mix: Fraction = 0.0,
        splice: Fraction = 0.0,
        bend: Fraction = 0.0,
        turn: Fraction = 0.0,
        hollow: Fraction = 0.0,
    ) -> None:
        """`weight` scales the adversarial term; `reconstruction` losses come on top of the eight.

        `classifier` is a frozen glyph classifier; it is neither trained nor part of a checkpoint.
        `feature_source` is `classifier` for one of the training glyphs, `discriminator`, or a
        folder that `gan classifier` wrote. `restyle` and `mix` are shares of samples whose
        references and target are changed together into a style that no font has, made of one font
        or between two, and `hollow` the share that is drawn in outline; `splice` is the share whose
        target and prototype are of two characters, cut and joined, `bend` the share whose two are
        bent alike, and `turn` that in which all is turned or mirrored. What is made has no class;
        bent characters keep theirs.
        """
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.adversarial, self.penalties = adversarial, penalties
        self._classifier = (classifier,)  # in a tuple, so that it is no submodule
        self.weight, self.style_class, self.l1, self.feature = weight, style_class, l1, feature
        self.encoder_character, self.encoder_style = encoder_character, encoder_style
        self.constant_content, self.constant_style = constant_content, constant_style
        self.reconstruction, self.classification = reconstruction, classification
        self.restyle, self.mix, self.splice = restyle, mix, splice
        self.bend, self.turn, self.hollow = bend, turn, hollow

    @staticmethod
    def needs_classifier(settings: Mapping[str, Any]) -> bool:
        """Whether the feature loss of these settings looks through a classifier."""
        return bool(settings["feature"]) and settings["feature_source"] != "discriminator"

    @staticmethod
    def reads_more(settings: Mapping[str, Any]) -> tuple[str, ...]:
        """What styles and characters are made of, where these settings make any."""
        made = settings["restyle"] or settings["mix"] or settings["splice"]
        return ("mate", "other") if made else ()

    def prepare(self, batch: Batch) -> Batch:
        """Some samples in styles made from real ones, and of characters that no font has."""
        if self.restyle or self.mix or self.splice:
            batch = self._made(batch)
        if self.bend:
            prototype, target = bent(batch["prototype"], batch["target"], self.bend)
            batch = {**batch, "prototype": prototype, "target": target}
        if self.hollow:
            batch = self._hollowed(batch)
        return self._turned(batch) if self.turn else batch

    def _made(self, batch: Batch) -> Batch:
        target, mate = batch["target"], batch["mate"]
        glyphs = torch.cat([target[:, None], mate[:, 1:], batch["reference"]], 1)
        glyphs, between = mixed(glyphs, batch["other"], self.mix)
        glyphs, changed = restyled(glyphs, self.restyle)
        target, drawn, reference = glyphs[:, 0], glyphs[:, 1], glyphs[:, 2:]
        mate = torch.stack([mate[:, 0], drawn], 1)
        prototype, target, joined = spliced(batch["prototype"], target, mate, self.splice)
        made = {"made_style": between | changed, "made_character": joined}
        return {**batch, **made, "prototype": prototype, "target": target, "reference": reference}

    def _hollowed(self, batch: Batch) -> Batch:
        glyphs = torch.cat([batch["target"][:, None], batch["reference"]], 1)
        glyphs, made = hollowed(glyphs, self.hollow)
        made = made | batch["made_style"] if "made_style" in batch else made
        return {**batch, "target": glyphs[:, 0], "reference": glyphs[:, 1:], "made_style": made}

    def _turned(self, batch: Batch) -> Batch:
        glyphs, made = turned_alike(batch, self.turn)
        changed = {
            field: made | batch[field] if field in batch else made
            for field in ("made_style", "made_character")
        }
        return {**batch, **changed, **glyphs}

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """The image, and what the encoders made of prototype and references."""
        content = self.generator.encode_content(batch["prototype"])
        style = self.generator.encode_style(references_of(self.generator, batch))
        return {
            "image": self.generator.decode(content, style),
            "content_code": content.code,
            "content_logits": content.logits,
            "style_code": style.code,
            "style_logits": style.logits,
        }

    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """Adversarial term, style class of truth and fake, and the penalties that are due."""
        prototype, reference = batch["prototype"], one_of(batch["reference"])
        critic = partial(self._critique, prototype, reference)
        looks = Looks(critic, self.penalties, update, batch["target"], fakes["image"])
        real, fake = looks.real(), looks.fake()
        terms = {
            "adversarial": self.weight * self.adversarial.discriminator(real.logits, fake.logits),
            **looks.terms(real.logits, fake.logits),
        }
        if self.style_class:
            on_real = self._named("style", real.style_logits, batch)
            on_fake = self._named("style", fake.style_logits, batch)
            terms["style_class"] = self.style_class * 0.5 * (on_real + on_fake)
        return terms

    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """The eight terms of Equation 1."""
        prototype, target = batch["prototype"], batch["target"]
        reference, image = one_of(batch["reference"]), fakes["image"]
        critic = partial(self._critique, prototype, reference)
        critique = critic(image)
        terms = {}
        if self.weight:
            loss = self.adversarial.generator(critique.logits, lambda: critic(target).logits)
            terms["adversarial"] = self.weight * loss
        if self.style_class:
            loss = self._named("style", critique.style_logits, batch)
            terms["style_class"] = self.style_class * loss
        if self.encoder_character:
            loss = self._named("character", fakes["content_logits"], batch)
            terms["encoder_character"] = self.encoder_character * loss
        if self.encoder_style:
            loss = self._named("style", fakes["style_logits"], batch)
            terms["encoder_style"] = self.encoder_style * loss
        if self.l1:
            terms["l1"] = self.l1 * l1_loss(image, target)
        critic = partial(self._critic_features, prototype, reference)
        if self.feature:
            (classifier,) = self._classifier
            features = critic if classifier is None else classifier.features
            terms["feature"] = self.feature * feature_distance(features, image, target)
        if self.constant_content:
            code = self.generator.encode_content(image).code
            loss = mse_loss(code, fakes["content_code"])
            terms["constant_content"] = self.constant_content * loss
        if self.constant_style:
            drawn = paired(self.generator, image, prototype)
            code = self.generator.encode_style(drawn).code
            terms["constant_style"] = self.constant_style * mse_loss(code, fakes["style_code"])
        for name, reconstruction in self.reconstruction.items():
            terms[f"reconstruction_{name}"] = reconstruction(image, target, critic)
        return terms

    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Prototype, first reference, what was drawn, and the truth where the batch has it."""
        drawn = generator(batch["prototype"], references_of(generator, batch))
        shown = {
            "prototype": batch["prototype"],
            "reference": batch["reference"][:, 0],
            "generated": drawn,
        }
        return {**shown, "truth": batch["target"]} if "target" in batch else shown

    def _named(self, field: str, logits: Tensor, batch: Batch) -> Tensor:
        """The class loss; what is made counts among the samples, and adds nothing."""
        label = batch[field]
        if f"made_{field}" not in batch:
            return self.classification(logits, label)
        made = batch[f"made_{field}"]
        sure = SURE * (label[:, None] == torch.arange(logits.shape[1], device=label.device))
        named = self.classification(torch.where(made[:, None], sure, logits), label)
        return named - made.float().mean() * self.classification(sure, label)  # smoothed labels

    def _critique(self, prototype: Tensor, reference: Tensor, image: Tensor) -> Any:
        return self.discriminator(prototype, image, reference)

    def _critic_features(
        self, prototype: Tensor, reference: Tensor, image: Tensor
    ) -> Sequence[Tensor]:
        return self.discriminator.features(prototype, image, reference)


def one_of(references: Tensor) -> Tensor:
    """One of the K references [B, K, C, H, W] of each sample, drawn uniformly, [B, C, H, W]."""
    batch, many = references.shape[:2]
    if many == 1:
        return references[:, 0]
    place = draws.integers(0, many, batch, device=references.device)
    return references[torch.arange(batch, device=references.device), place]
