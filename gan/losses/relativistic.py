"""Adversarial losses that compare reals with fakes."""

from torch import Tensor
from torch.nn.functional import softplus

from gan.losses.adversarial import Adversarial, RealLogits
from gan.registry import register


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
        """The discriminator's, with the roles swapped."""
        return self.discriminator(fake_logits, real_logits_of())


@register("adversarial", "ragan")
class RelativisticAverage(RelativisticPairing):
    """Each side against the other's mean. Jolicoeur-Martineau 2018, arXiv:1807.00734, section 4.2.

    The means are over this process's batch, or micro-batch, and carry their gradient.
    """

    of_batch = True  # its value depends on how a batch is split

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """(E softplus(-(r - mean f)) + E softplus(f - mean r)) / 2."""
        above = softplus(fake_logits.mean() - real_logits).mean()
        return 0.5 * (above + softplus(fake_logits - real_logits.mean()).mean())
