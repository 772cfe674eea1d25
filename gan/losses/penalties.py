"""Penalties on the discriminator's input gradient.

A penalty is called as `penalty(judge, real, fake, update) -> scalar`. `judge` maps images
[B, C, H, W] to logits with every condition bound, so the gradient is that of the candidate image
alone. The norm is the full L2 norm of each sample, over C, H and W; one number a sample, never one
a pixel or one a batch.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from gan import draws
from gan.recipe import Judge
from gan.registry import Count, NonNegative, register
from gan.step.looks import falling, input_gradient


class GradientPenalty(ABC):
    """weight * every * E term(gradient at chosen points), outside autocast: fp32, on CUDA TF32."""

    def __init__(
        self,
        weight: NonNegative = 10.0,
        every: Count = 1,
        end: NonNegative = 1.0,
        images: Count = 500_000,
    ) -> None:
        """The papers' lambda or gamma, paid at every `every`-th update and scaled by it; along half
        a cosine it goes to `end` times as much over so many `images`.
        """
        self.weight, self.every, self.end, self.images = weight, every, end, images

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor, update: int) -> Tensor:
        """The penalty of this update, whether or not it is due."""
        points = self.points(real.detach().float(), fake.detach().float())
        paid = self.weight * self.every * self.term(input_gradient(judge, points)).mean()
        return falling(self.end, self.images, update, len(real)) * paid

    @abstractmethod
    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """The images at which the gradient is taken."""

    @abstractmethod
    def term(self, gradient: Tensor) -> Tensor:
        """One number a sample [B] from its gradient [B, C, H, W]."""


def norm(gradient: Tensor) -> Tensor:
    """L2 norm [B] over C, H and W; the constant keeps its derivative finite at zero."""
    return (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()


@register("penalty", "wgan_gp")
class WganGp(GradientPenalty):
    """(norm - 1)^2 between reals and fakes. Gulrajani et al. 2017, arXiv:1704.00028, eq. 3."""

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """e x + (1 - e) G(z), with one e per sample."""
        share = draws.uniform(len(real), *(1,) * (real.ndim - 1), device=real.device)
        return share * real + (1 - share) * fake

    def term(self, gradient: Tensor) -> Tensor:
        """(norm - 1)^2."""
        return (norm(gradient) - 1).square()


@register("penalty", "wgan_gp_one_sided")
class WganGpOneSided(WganGp):
    """Only norms above 1 are penalised. Petzka et al. 2017, arXiv:1709.08894."""

    def term(self, gradient: Tensor) -> Tensor:
        """max(0, norm - 1)^2."""
        return (norm(gradient) - 1).relu().square()


@register("penalty", "dragan")
class Dragan(WganGp):
    """(norm - k)^2 around the reals, which needs no fakes. Kodali et al. 2017, arXiv:1705.07215."""

    def __init__(
        self,
        weight: NonNegative = 10.0,
        every: Count = 1,
        noise: NonNegative = 0.1,
        target: NonNegative = 1.0,
        end: NonNegative = 1.0,
        images: Count = 500_000,
    ) -> None:
        """`noise` is the standard deviation per element in half data ranges, `target` the k."""
        super().__init__(weight, every, end, images)
        self.noise, self.target = noise, target

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Reals with Gaussian noise."""
        return real + self.noise * draws.normal_like(real)

    def term(self, gradient: Tensor) -> Tensor:
        """(norm - k)^2."""
        return (norm(gradient) - self.target).square()


@register("penalty", "r1")
class R1(GradientPenalty):
    """(weight / 2) E norm^2 on the reals. Mescheder et al. 2018, arXiv:1801.04406, eq. 9."""

    at = "real"

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """The reals, for R2 the fakes."""
        return {"real": real, "fake": fake}[self.at]

    def term(self, gradient: Tensor) -> Tensor:
        """Half the squared norm."""
        return 0.5 * gradient.flatten(1).square().sum(1)


@register("penalty", "r2")
class R2(R1):
    """R1 on the fakes. Mescheder et al. 2018, arXiv:1801.04406, eq. 10."""

    at = "fake"
