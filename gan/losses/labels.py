"""Adversarial cross entropies with changed labels or weights: smoothing, noise, flips, focus."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gan import draws
from gan.losses.adversarial import Adversarial, Nonsaturating, RealLogits
from gan.registry import Fraction, NonNegative, register


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


def _range(label: float | tuple[float, float]) -> tuple[float, float]:
    return label if isinstance(label, tuple) else (label, label)


def _per_sample(logits: Tensor) -> Tensor:
    """Uniform numbers [B, 1, ...]: one a sample, also on a patch map."""
    return draws.uniform(len(logits), *(1,) * (logits.ndim - 1), device=logits.device)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return (softplus(logits) - label * logits).mean()
