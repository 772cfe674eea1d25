"""Images from noise."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan import draws
from gan.augment import Augmentation, Change
from gan.losses.adversarial import Adversarial
from gan.noise import FromNoise, NoiseToImage
from gan.recipe import Batch, Judge, Penalty, Recipe
from gan.registry import Count, Positive, register
from gan.step.looks import Looks


@register(
    "recipe",
    "synthesis",
    given=("generator", "discriminator", "adversarial", "penalties", "augment"),
)
class Synthesis(FromNoise, Recipe):
    """noise -> image. Goodfellow et al. 2014, arXiv:1406.2661."""

    generator: NoiseToImage
    shown: Tensor
    reads: tuple[str, ...] = ("real",)

    def __init__(
        self,
        generator: NoiseToImage,
        discriminator: nn.Module,
        adversarial: Adversarial,
        penalties: Mapping[str, Penalty],
        weight: Positive = 1.0,
        shown: Count = 64,
        augment: Mapping[str, Change] | None = None,
    ) -> None:
        """`weight` scales the adversarial terms, `shown` is the number of samples in a grid."""
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.adversarial, self.penalties, self.weight = adversarial, penalties, weight
        self.augment = Augmentation(augment or {})
        noise = torch.randn(shown, generator.latent, generator=torch.Generator().manual_seed(0))
        self.register_buffer("shown", self.noise(noise), persistent=False)

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """One image for each real one."""
        normal = draws.normal(len(batch["real"]), self.generator.latent, device=self.shown.device)
        return {"image": self.draw(self.generator, self.noise(normal))}

    def judge(self, batch: Batch) -> Judge:
        """Image -> logits, through the augmentation."""
        if not self.augment.changes:
            return self.discriminator
        return lambda image: self.discriminator(self.augment(image))

    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """The adversarial term and the penalties that are due."""
        looks = Looks(self.judge(batch), self.penalties, update, batch["real"], fakes["image"])
        with parametrize.cached():  # one spectral norm for both
            logits_real, logits_fake = looks.real(), looks.fake()
        return {
            "adversarial": self.weight * self.adversarial.discriminator(logits_real, logits_fake),
            **looks.terms(logits_real, logits_fake),
            **self.augment.learnt(logits_real),
        }

    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """The adversarial term."""
        judge = self.judge(batch)
        loss = self.adversarial.generator(judge(fakes["image"]), lambda: judge(batch["real"]))
        return {"adversarial": self.weight * loss}

    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Images of the same noise every time."""
        return {"generated": self.draw(generator, self.shown)}
