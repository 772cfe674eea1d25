"""One image into another, learned from pairs."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from gan.config.signature import SHAPE
from gan.losses.adversarial import Adversarial
from gan.losses.reconstruction import Reconstruction
from gan.pool import ImagePool
from gan.recipe import Batch, Penalty, Recipe
from gan.recipes.modules import ImageCritic
from gan.registry import Count, NonNegative, Whole, register
from gan.step.looks import Looks


@register(
    "recipe",
    "pix2pix",
    given=("generator", "discriminator", "adversarial", "penalties", "reconstruction"),
    **SHAPE,
)
class Pix2Pix(Recipe):
    """input -> target. Isola et al. 2016, arXiv:1611.07004, equation 4.

    The discriminator sees input and output as one image of twice the channels; the noise of the
    generator is its dropout.
    """

    discriminator: ImageCritic
    reads = ("input", "target")
    facts = {"images": 2}

    def __init__(
        self,
        generator: nn.Module,
        discriminator: ImageCritic,
        adversarial: Adversarial,
        penalties: Mapping[str, Penalty],
        reconstruction: Mapping[str, Reconstruction],
        size: Count,
        channels: Count,
        weight: NonNegative = 1.0,
        discriminator_weight: NonNegative = 0.5,
        l1: NonNegative = 100.0,
        pool: Whole = 0,
    ) -> None:
        """`weight` scales both adversarial terms, `discriminator_weight` its own once more.

        `reconstruction` losses come on top of L1. `pool` is the number of earlier pairs of input
        and output that the discriminator is shown again; penalties see the newest.
        """
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.adversarial, self.penalties = adversarial, penalties
        self.reconstruction, self.weight, self.l1 = reconstruction, weight, l1
        self.discriminator_weight = discriminator_weight
        self.pool = ImagePool(pool, 2 * channels, size, size)

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """One image for each input."""
        return {"image": self.generator(batch["input"])}

    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """The adversarial term on true and pooled pairs, and the penalties that are due."""
        judge = partial(self._judge, batch["input"])
        looks = Looks(judge, self.penalties, update, batch["target"], fakes["image"])
        logits_real = looks.real()
        logits_fake = self.discriminator(self.pool(joined(batch["input"], fakes["image"])))
        loss = self.adversarial.discriminator(logits_real, logits_fake)
        return {
            "adversarial": self.discriminator_weight * self.weight * loss,
            **looks.terms(logits_real, logits_fake),
        }

    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """The adversarial term, L1, and more reconstruction losses."""
        image, target = fakes["image"], batch["target"]
        judge = partial(self._judge, batch["input"])
        terms = {}
        if self.weight:
            loss = self.adversarial.generator(judge(image), lambda: judge(target))
            terms["adversarial"] = self.weight * loss
        if self.l1:
            terms["l1"] = self.l1 * l1_loss(image, target)
        features = partial(self._critic_features, batch["input"])
        for name, distance in self.reconstruction.items():
            terms[f"reconstruction_{name}"] = distance(image, target, features)
        return terms

    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Input, what was made of it, and the truth where the batch has it."""
        shown = {"input": batch["input"], "generated": generator(batch["input"])}
        return {**shown, "truth": batch["target"]} if "target" in batch else shown

    def _judge(self, condition: Tensor, image: Tensor) -> Tensor:
        return self.discriminator(joined(condition, image))

    def _critic_features(self, condition: Tensor, image: Tensor) -> Sequence[Tensor]:
        return self.discriminator.features(joined(condition, image))


def joined(condition: Tensor, image: Tensor) -> Tensor:
    """Both as one image, [B, 2*C, H, W]."""
    return torch.cat([condition, image], 1)
