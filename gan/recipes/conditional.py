"""Images from noise and a label."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gan import draws
from gan.augment import Change
from gan.losses.adversarial import Adversarial
from gan.losses.classification import Classification
from gan.noise import NoiseToImage
from gan.recipe import Batch, Judge, Penalty
from gan.recipes.modules import Critique, LabelCritic
from gan.recipes.synthesis import Synthesis
from gan.registry import Count, NonNegative, Positive, register
from gan.step.looks import Looks


@register(
    "recipe",
    "conditional",
    given=(
        "generator",
        "discriminator",
        "adversarial",
        "penalties",
        "augment",
        "classification",
        "classes",
    ),
)
class Conditional(Synthesis):
    """noise, label -> image. Mirza and Osindero 2014, arXiv:1411.1784.

    Fakes have the labels of the reals beside them, hence the classes' own frequencies. Where the
    discriminator has an auxiliary head, both players also minimise its classification loss, as in
    AC-GAN (Odena et al. 2016, arXiv:1610.09585, equations 2 and 3).
    """

    discriminator: LabelCritic
    shown_label: Tensor
    reads = ("real", "label")

    def __init__(
        self,
        generator: NoiseToImage,
        discriminator: LabelCritic,
        adversarial: Adversarial,
        penalties: Mapping[str, Penalty],
        classification: Classification,
        classes: int,
        weight: Positive = 1.0,
        shown: Count = 64,
        class_real: NonNegative = 1.0,
        class_fake: NonNegative = 1.0,
        class_generator: NonNegative = 1.0,
        augment: Mapping[str, Change] | None = None,
    ) -> None:
        """Weights of the auxiliary head's loss: the discriminator's on reals and on fakes, and the
        generator's. `shown` samples are drawn, class by class.
        """
        super().__init__(generator, discriminator, adversarial, penalties, weight, shown, augment)
        self.classification = classification
        self.class_real, self.class_fake = class_real, class_fake
        self.class_generator = class_generator
        label = torch.arange(shown) * classes // shown
        self.register_buffer("shown_label", label, persistent=False)

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """One image for each real one, with its label."""
        label = batch["label"]
        normal = draws.normal(len(label), self.generator.latent, device=label.device)
        return {"image": self.draw(self.generator, self.noise(normal), label)}

    def judge(self, batch: Batch) -> Judge:
        """Image -> logits through the augmentation, with the labels bound."""
        label = batch["label"]
        return lambda image: self.discriminator(self.augment(image), label)

    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """The adversarial term, the penalties that are due, and the classes of both."""
        label = batch["label"]
        critic = partial(self._critique, label)
        looks = Looks(critic, self.penalties, update, batch["real"], fakes["image"])
        with parametrize.cached():  # one spectral norm for both
            real, fake = looks.real(), looks.fake()
        terms = {
            "adversarial": self.weight * self.adversarial.discriminator(real.logits, fake.logits),
            **looks.terms(real.logits, fake.logits),
            **self.augment.learnt(real.logits),
        }
        if real.class_logits is not None and self.class_real:
            loss = self.classification(real.class_logits, label)
            terms["class_real"] = self.class_real * loss
        if fake.class_logits is not None and self.class_fake:
            loss = self.classification(fake.class_logits, label)
            terms["class_fake"] = self.class_fake * loss
        return terms

    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """The adversarial term and the class of the fakes."""
        fake = self._critique(batch["label"], fakes["image"])
        loss = self.adversarial.generator(fake.logits, lambda: self.judge(batch)(batch["real"]))
        terms = {"adversarial": self.weight * loss}
        if fake.class_logits is not None and self.class_generator:
            loss = self.classification(fake.class_logits, batch["label"])
            terms["class"] = self.class_generator * loss
        return terms

    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Images of the same noise and labels every time."""
        return {"generated": self.draw(generator, self.shown, self.shown_label)}

    def _critique(self, label: Tensor, image: Tensor) -> Critique:
        return self.discriminator.critique(self.augment(image), label)
