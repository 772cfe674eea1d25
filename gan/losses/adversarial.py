"""Adversarial losses on logits: one class each, `discriminator` and `generator`.

Logits are [B] or a patch map [B, 1, h, w]; losses are means over both. `real_logits_of` is a
function, so that only a loss that compares pays for the discriminator's second forward.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import relu, softplus

from gan.registry import register

RealLogits = Callable[[], Tensor]


class Adversarial(ABC):
    """The two sides of one game."""

    constrained = False  # whether a penalty, clipping or norm must keep the discriminator Lipschitz

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What the discriminator minimises."""

    @abstractmethod
    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """What the generator minimises."""


@register("adversarial", "minimax")
class Minimax(Adversarial):
    """The original game, which saturates. Goodfellow et al. 2014, arXiv:1406.2661, eq. 1."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E softplus(-r) + E softplus(f)."""
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """-E softplus(f)."""
        return -softplus(fake_logits).mean()


@register("adversarial", "nonsaturating")
class Nonsaturating(Minimax):
    """The generator maximises log D(G(z)). Goodfellow et al. 2014, arXiv:1406.2661, section 3."""

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E softplus(-f)."""
        return softplus(-fake_logits).mean()


@register("adversarial", "lsgan")
class LeastSquares(Adversarial):
    """Squared distance to a target. Mao et al. 2016, arXiv:1611.04076, eq. 2."""

    def __init__(self, real: float = 1.0, fake: float = 0.0, aim: float = 1.0) -> None:
        """The paper's b, a and c."""
        self.real, self.fake, self.aim = real, fake, aim

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E (r - b)^2 / 2 + E (f - a)^2 / 2."""
        both = (real_logits - self.real).square().mean() + (fake_logits - self.fake).square().mean()
        return 0.5 * both

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """E (f - c)^2 / 2."""
        return 0.5 * (fake_logits - self.aim).square().mean()


@register("adversarial", "wasserstein")
class Wasserstein(Adversarial):
    """Mean difference, for a Lipschitz discriminator. Arjovsky et al. 2017, arXiv:1701.07875."""

    constrained = True

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E f - E r."""
        return fake_logits.mean() - real_logits.mean()

    def generator(self, fake_logits: Tensor, real_logits_of: RealLogits) -> Tensor:
        """-E f."""
        return -fake_logits.mean()


@register("adversarial", "hinge")
class Hinge(Wasserstein):
    """Margins for the discriminator only. Lim and Ye 2017, arXiv:1705.02894; arXiv:1802.05957."""

    constrained = False

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """E max(0, 1 - r) + E max(0, 1 + f)."""
        return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()
