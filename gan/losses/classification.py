"""Classification losses of logits [B, K] and labels [B]: means over the batch.

All of them apply their own softmax. The first batch is checked for probabilities, since a network
that ends in a softmax trains without a word against a loss that cannot fall.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import log_softmax, nll_loss

from gan.registry import Fraction, NonNegative, register


class Classification(nn.Module, ABC):
    """A loss of logits [B, K] and labels [B], called like a function."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = False

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The mean over the batch, in float32 or finer: a sure sample leaves bf16 no digits.

        Raises: ValueError where the first batch holds probabilities instead of logits.
        """
        if not self.checked and not logits.is_meta:  # once: reading a tensor stalls the device
            require_logits(logits)
            self.checked = True
        return self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), label)

    @abstractmethod
    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The formula."""


@register("classification", "cross_entropy")
class CrossEntropy(Classification):
    """-log p of the right class. `label_smoothing`: Szegedy et al. 2016, arXiv:1512.00567."""

    def __init__(self, label_smoothing: Fraction = 0.0) -> None:
        """`label_smoothing` is the share of a label that is spread evenly over all classes."""
        super().__init__()
        self.label_smoothing = label_smoothing

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """E[-(1 - s) log p_label - s mean_k log p_k]."""
        return functional.cross_entropy(logits, label, label_smoothing=self.label_smoothing)


@register("classification", "nll")
class Nll(Classification):
    """Negative log likelihood of the right class, with the log-softmax inside.

    Log-probabilities are logits too: a log-softmax leaves them as they are.
    """

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """E[-log softmax(z)_label]."""
        return nll_loss(log_softmax(logits, 1), label)


@register("classification", "focal")
class Focal(Classification):
    """Cross entropy that counts sure samples less. Lin et al. 2017, arXiv:1708.02002, eq. 5."""

    alpha: Tensor | None

    def __init__(self, gamma: NonNegative = 2.0, alpha: list[NonNegative] | None = None) -> None:
        """`alpha` weighs the classes, one number each; the mean is over samples, not weights."""
        super().__init__()
        self.gamma = gamma
        weights = None if alpha is None else torch.tensor(alpha)
        self.register_buffer("alpha", weights, persistent=False)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """E[-alpha_label (1 - p_label)^gamma log p_label]."""
        place, total = label[:, None], logits.logsumexp(1)
        hit = logits.gather(1, place)[:, 0] - total  # log p
        others = logits.scatter(1, place, -math.inf)
        miss = others.logsumexp(1) - total  # log (1 - p), finite
        return (-self._weights(label, logits.shape[1]) * (self.gamma * miss).exp() * hit).mean()

    def _weights(self, label: Tensor, classes: int) -> Tensor | float:
        if self.alpha is None:
            return 1.0
        if len(self.alpha) != classes:
            raise ValueError(
                f"classification.alpha must hold one number for each of the {classes} classes, "
                f"not {len(self.alpha)}"
            )
        return self.alpha[label]


def require_logits(logits: Tensor) -> None:
    """Refuse rows that are probabilities already: not negative, with the sum 1.

    Raises: ValueError that says what a second softmax would cost.
    """
    values, classes = logits.detach(), logits.shape[1]
    rounding = 8 * torch.finfo(values.dtype).eps
    total = values.sum(1, dtype=torch.promote_types(values.dtype, torch.float32))
    if (values >= 0).all() and ((total - 1).abs() < rounding).all():
        floor = math.log(1 + (classes - 1) / math.e)
        raise ValueError(
            "the class loss was given probabilities (each row is at least 0 and sums to 1) where "
            f"logits were expected: its own softmax on top keeps it above {floor:.2f} for "
            f"{classes} classes however right they are; remove the softmax that ends the network"
        )
