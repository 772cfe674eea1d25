"""Images of one kind into images of another and back, learned without pairs."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import l1_loss

from gan.config.signature import SHAPE
from gan.losses.adversarial import Adversarial
from gan.pool import ImagePool
from gan.recipe import Batch, Penalty, Recipe
from gan.recipes.modules import TwoCritics, TwoTranslators
from gan.registry import Count, NonNegative, Whole, register
from gan.step.looks import Looks


@register(
    "recipe", "cyclegan", given=("generator", "discriminator", "adversarial", "penalties"), **SHAPE
)
class CycleGAN(Recipe):
    """real_a -> b and real_b -> a. Zhu et al. 2017, arXiv:1703.10593, equation 3 and section 5.2.

    Terms end in the kind of image that they look at: `cycle_a` compares images a with what became
    of them by way of b. A weight of zero leaves its terms out.
    """

    generator: TwoTranslators
    discriminator: TwoCritics
    reads = ("real_a", "real_b")
    statistics = ("logits_real_a", "logits_fake_a", "logits_real_b", "logits_fake_b")

    def __init__(
        self,
        generator: TwoTranslators,
        discriminator: TwoCritics,
        adversarial: Adversarial,
        penalties: Mapping[str, Penalty],
        size: Count,
        channels: Count,
        weight: NonNegative = 1.0,
        discriminator_weight: NonNegative = 1.0,
        cycle: NonNegative = 10.0,
        identity: NonNegative = 5.0,
        pool: Whole = 50,
    ) -> None:
        """`weight` scales all adversarial terms, `discriminator_weight` its own once more.

        `identity` is absolute: authors' code multiplies its 0.5 by the weight of the cycle. `pool`
        is the number of earlier fakes of each kind that the discriminators are shown again;
        penalties see the newest.
        """
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.adversarial, self.penalties = adversarial, penalties
        self.weight, self.discriminator_weight = weight, discriminator_weight
        self.cycle, self.identity = cycle, identity
        self.pool_a = ImagePool(pool, channels, size, size)
        self.pool_b = ImagePool(pool, channels, size, size)

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """Both translations."""
        return {
            "fake_a": self.generator.to_a(batch["real_b"]),
            "fake_b": self.generator.to_b(batch["real_a"]),
        }

    def discriminator_losses(self, batch: Batch, fakes: Batch, update: int) -> dict[str, Tensor]:
        """For each kind the adversarial term on pooled fakes, and the penalties that are due."""
        critic = self.discriminator
        terms: dict[str, Tensor] = {}
        for kind, judge, pool in (("a", critic.of_a, self.pool_a), ("b", critic.of_b, self.pool_b)):
            real, fake = batch[f"real_{kind}"], fakes[f"fake_{kind}"]
            looks = Looks(judge, self.penalties, update, real, fake)
            logits_real, logits_fake = looks.real(), judge(pool(fake))
            loss = self.adversarial.discriminator(logits_real, logits_fake)
            terms[f"adversarial_{kind}"] = self.discriminator_weight * self.weight * loss
            found = looks.terms(logits_real, logits_fake)
            terms |= {f"{name}_{kind}": term for name, term in found.items()}
        return terms

    def generator_losses(self, batch: Batch, fakes: Batch, step: int) -> dict[str, Tensor]:
        """Adversarial, cycle and identity terms of both translators."""
        critic, translate = self.discriminator, self.generator
        real_a, real_b = batch["real_a"], batch["real_b"]
        fake_a, fake_b = fakes["fake_a"], fakes["fake_b"]
        terms: dict[str, Tensor] = {}
        if self.weight:
            of_a = self.adversarial.generator(critic.of_a(fake_a), lambda: critic.of_a(real_a))
            of_b = self.adversarial.generator(critic.of_b(fake_b), lambda: critic.of_b(real_b))
            terms |= {"adversarial_a": self.weight * of_a, "adversarial_b": self.weight * of_b}
        if self.cycle:
            terms["cycle_a"] = self.cycle * l1_loss(translate.to_a(fake_b), real_a)
            terms["cycle_b"] = self.cycle * l1_loss(translate.to_b(fake_a), real_b)
        if self.identity:
            terms["identity_a"] = self.identity * l1_loss(translate.to_a(real_a), real_a)
            terms["identity_b"] = self.identity * l1_loss(translate.to_b(real_b), real_b)
        return terms

    def samples(self, generator: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Images a, `generated` of them, and the way back; the same of b where the batch has it."""
        to_b, to_a = generator.get_submodule("to_b"), generator.get_submodule("to_a")
        shown = _there_and_back(to_b, to_a, batch["real_a"])
        columns = dict(zip(("real_a", "generated", "cycled_a"), shown, strict=True))
        if "real_b" in batch:
            shown = _there_and_back(to_a, to_b, batch["real_b"])
            columns |= zip(("real_b", "generated_a", "cycled_b"), shown, strict=True)
        return columns


def _there_and_back(there: nn.Module, back: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    other = there(image)
    return image, other, back(other)
