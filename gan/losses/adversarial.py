"""Adversarial losses on logits: one class each, `discriminator` and `generator`.

Logits are [B] or a patch map [B, 1, h, w]; losses are means over both. `real_logits_of` is a function, so
that only a loss that compares pays for the discriminator's second forward.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from gan.registry import Fraction, NonNegative, register

RealLogits = Callable[[], Tensor]


class Adversarial(ABC):
    """The two sides of one game."""

    constrained = (
        False  # whether the discriminator must be kept Lipschitz by a penalty, clipping or a norm
    )

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the discriminator minimises."""

    @abstractmethod
    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """What the generator minimises."""


@register("adversarial", "minimax")
class Minimax(Adversarial):
    """The original game, whose generator saturates. Goodfellow et al. 2014, arXiv:1406.2661, eq. 1."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E softplus(-r) + E softplus(f)."""
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """-E softplus(f)."""
        return -softplus(fake_logits).mean()


@register("adversarial", "nonsaturating")
class Nonsaturating(Minimax):
    """The generator maximises log D(G(z)) instead. Goodfellow et al. 2014, arXiv:1406.2661, section 3."""

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E softplus(-f)."""
        return softplus(-fake_logits).mean()


@register("adversarial", "bce")
class Bce(Nonsaturating):
    """Binary cross entropy with soft, noisy or flipped labels in the discriminator's turn.

    One-sided smoothing is `real=0.9`. Salimans et al. 2016, arXiv:1606.03498, section 3.4.
    """

    def __init__(
        self,
        real: Fraction | tuple[Fraction, Fraction] = 1.0,
        fake: Fraction | tuple[Fraction, Fraction] = 0.0,
        flip: Fraction = 0.0,
    ) -> None:
        """Labels; a pair draws one per sample between the two; `flip` swaps a sample's label."""
        self.real, self.fake, self.flip = _range(real), _range(fake), flip

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E[softplus(r) - t r] + E[softplus(f) - t f] with each sample's label t."""
        real, fake = self.labels(real_logits, self.real), self.labels(fake_logits, self.fake)
        if self.flip:
            swap = _per_sample(real_logits) < self.flip
            real, fake = torch.where(swap, fake, real), torch.where(swap, real, fake)
        return _cross_entropy(real_logits, real) + _cross_entropy(fake_logits, fake)

    def labels(self, logits: Tensor, bounds: tuple[float, float]) -> Tensor:
        """One label per sample, [B, 1, ...], uniform between the bounds."""
        low, high = bounds
        if low == high:
            return logits.new_full((len(logits),) + (1,) * (logits.ndim - 1), low)
        return low + (high - low) * _per_sample(logits)


@register("adversarial", "focal")
class Focal(Adversarial):
    """Cross entropy that counts confident samples less; `gamma=0` is the non-saturating loss.

    Lin et al. 2017, arXiv:1708.02002, without its class weight.
    """

    def __init__(self, gamma: NonNegative = 2.0) -> None:
        """`gamma` is the exponent of one minus the probability of the right answer."""
        self.gamma = gamma

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E focal(r) + E focal(-f)."""
        return self._towards(real_logits) + self._towards(-fake_logits)

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E focal(f)."""
        return self._towards(fake_logits)

    def _towards(self, logits: Tensor) -> Tensor:
        miss = -self.gamma * softplus(logits)  # log (1 - p) ** gamma, finite for any logit
        return (miss.exp() * softplus(-logits)).mean()


@register("adversarial", "lsgan")
class LeastSquares(Adversarial):
    """Squared distance to a target. Mao et al. 2016, arXiv:1611.04076, eq. 2."""

    def __init__(self, real: float = 1.0, fake: float = 0.0, aim: float = 1.0) -> None:
        """The paper's b, a and c."""
        self.real, self.fake, self.aim = real, fake, aim

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E (r - b)^2 / 2 + E (f - a)^2 / 2."""
        return (
            0.5 * (real_logits - self.real).square().mean()
            + 0.5 * (fake_logits - self.fake).square().mean()
        )

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E (f - c)^2 / 2."""
        return 0.5 * (fake_logits - self.aim).square().mean()


@register("adversarial", "wasserstein")
class Wasserstein(Adversarial):
    """Difference of means, for a discriminator kept Lipschitz. Arjovsky et al. 2017, arXiv:1701.07875."""

    constrained = True

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E f - E r."""
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """-E f."""
        return -fake_logits.mean()


@register("adversarial", "hinge")
class Hinge(Wasserstein):
    """Margins for the discriminator only. Lim and Ye 2017, arXiv:1705.02894; Miyato et al., arXiv:1802.05957."""

    constrained = False

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E max(0, 1 - r) + E max(0, 1 + f)."""
        return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()


@register("adversarial", "rpgan")
class RelativisticPairing(Adversarial):
    """Each real against one fake. Jolicoeur-Martineau 2018, arXiv:1807.00734; arXiv:2501.05441."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E softplus(-(r_i - f_i))."""
        if real_logits.shape != fake_logits.shape:
            raise ValueError(
                "rpgan pairs each real with one fake: as many fakes as reals are needed, not "
                f"{tuple(fake_logits.shape)} and {tuple(real_logits.shape)}"
            )
        return softplus(fake_logits - real_logits).mean()

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E softplus(-(f_i - r_i))."""
        return self.discriminator(fake_logits, real_logits_of())


@register("adversarial", "ragan")
class RelativisticAverage(Adversarial):
    """Each side against the mean of the other. Jolicoeur-Martineau 2018, arXiv:1807.00734, section 4.2.

    The means are over this process's batch and carry their gradient.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """(E softplus(-(r - mean f)) + E softplus(f - mean r)) / 2."""
        above = softplus(fake_logits.mean() - real_logits).mean()
        return 0.5 * (above + softplus(fake_logits - real_logits.mean()).mean())

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """The discriminator's, with the roles swapped."""
        return self.discriminator(fake_logits, real_logits_of())


def _range(label: float | tuple[float, float]) -> tuple[float, float]:
    return label if isinstance(label, tuple) else (label, label)


def _per_sample(logits: Tensor) -> Tensor:
    """Uniform numbers [B, 1, ...]: one a sample, also on a patch map."""
    return torch.rand((len(logits),) + (1,) * (logits.ndim - 1), device=logits.device)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return (softplus(logits) - label * logits).mean()
