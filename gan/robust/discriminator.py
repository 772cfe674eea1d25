"""A robust discriminator: its own loss at the images that raise it most, as a penalty.

Liu and Hsieh 2018, arXiv:1807.10454, move the reals; here reals and fakes move together, so that a
loss that compares them is climbed in both at once. Compare Zhou and Kraehenbuehl, "Don't let your
Discriminator be fooled", ICLR 2019.
"""

from functools import partial

import torch
from torch import Tensor

from gan.losses.adversarial import Adversarial
from gan.recipe import Judge
from gan.registry import Count, NonNegative, Positive, register
from gan.robust.perturb import Fgm, Fgsm, Norm, Pgd


class RobustDiscriminator:
    """weight * every * L(judge(real + a), judge(fake + b)), outside autocast: fp32, on CUDA TF32.

    L is the discriminator's side of the configured adversarial loss, a and b raise it within the
    perturbation's ball of each image. Only the outer L has a gradient, for the judge's weights.
    """

    of_gradient = False  # judges images, not slopes: a norm over the batch does no harm

    def __init__(
        self, adversarial: Adversarial, perturbation: Pgd, weight: float, every: int
    ) -> None:
        self.adversarial, self.perturbation = adversarial, perturbation
        self.weight, self.every = weight, every

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor, update: int) -> Tensor:
        """The term of this update, whether or not it is due."""
        loss_of = partial(self.loss, judge, len(real))
        images = torch.cat([real.float(), fake.float()])
        with torch.autocast(images.device.type, enabled=False):
            return self.weight * self.every * loss_of(self.perturbation(loss_of, images))

    def loss(self, judge: Judge, reals: int, images: Tensor) -> Tensor:
        """The discriminator's loss of images of which the first ones are real."""
        return self.adversarial.discriminator(judge(images[:reals]), judge(images[reals:]))


@register("penalty", "pgd", given=("adversarial",))
class RobustToPgd(RobustDiscriminator):
    """Against projected steps from a random start. Madry et al. 2017, arXiv:1706.06083."""

    def __init__(
        self,
        adversarial: Adversarial,
        weight: NonNegative = 1.0,
        every: Count = 1,
        radius: NonNegative = 0.03,
        steps: Count = 3,
        step: Positive | None = None,
        norm: Norm = "linf",
        random_start: bool = True,
    ) -> None:
        """`radius` is in units of images in [-1, 1]; `step` is 2.5 radius / steps unless given."""
        perturbation = Pgd(radius, steps, step, norm, random_start)
        super().__init__(adversarial, perturbation, weight, every)


@register("penalty", "fgsm", given=("adversarial",))
class RobustToFgsm(RobustDiscriminator):
    """Against one step of the gradient's sign. Goodfellow et al. 2014, arXiv:1412.6572."""

    def __init__(
        self,
        adversarial: Adversarial,
        weight: NonNegative = 1.0,
        every: Count = 1,
        radius: NonNegative = 0.03,
    ) -> None:
        """`radius` is how far each pixel of images in [-1, 1] moves."""
        super().__init__(adversarial, Fgsm(radius), weight, every)


@register("penalty", "fgm", given=("adversarial",))
class RobustToFgm(RobustDiscriminator):
    """Against one step along the normalised gradient. Miyato et al. 2016, arXiv:1605.07725."""

    def __init__(
        self,
        adversarial: Adversarial,
        weight: NonNegative = 1.0,
        every: Count = 1,
        radius: NonNegative = 0.5,
    ) -> None:
        """`radius` is the L2 length of each image's step."""
        super().__init__(adversarial, Fgm(radius), weight, every)
