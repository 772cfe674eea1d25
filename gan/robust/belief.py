"""What is held to be the class of each image, where some of the given labels are wrong."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

ROUNDS = 50  # of scaling


class Belief(nn.Module):
    """Labels [N, K], distributions, and the predictions behind them.

    Takes 4 (window + 1) N K bytes on the device.
    """

    label: Tensor
    predictions: Tensor
    given: Tensor

    def __init__(
        self,
        given: Tensor,
        classes: int,
        window: int,
        evidence: bool = False,
        groups: np.ndarray | None = None,
    ) -> None:
        """Believes the given labels [N], until it is told others.

        Predictions are weighed with them where they are `evidence`, and are brought together in
        `groups` [N] of images of different classes.
        """
        super().__init__()
        label = one_hot(given, classes).float()
        self.evidence = evidence
        self.register_buffer("label", label)
        self.register_buffer("predictions", label.new_zeros(window, *label.shape))
        self.register_buffer("given", given, persistent=False)
        self.roster = None if groups is None else rostered(groups, classes).to(given.device)

    def record(self, epoch: int, places: Tensor, logits: Tensor) -> None:
        """Keep the predictions for the images at these places, in place of the oldest."""
        self.predictions[epoch % len(self.predictions), places] = logits.detach().softmax(1)

    def average(self, epoch: int) -> Tensor:
        """The mean prediction for each image [N, K] in the last epochs, this one included."""
        return self.predictions[: epoch + 1].mean(0)

    def held(self, epoch: int) -> Tensor:
        """What the labels are held to be after an epoch, [N, K]."""
        soft = self.average(epoch)
        soft = posterior(soft, self.given) if self.evidence else soft
        return soft if self.roster is None else apart(soft, self.roster)


def posterior(prediction: Tensor, given: Tensor) -> Tensor:
    """Predictions [N, K] in the light of the given labels [N]: p(k) p(given | k), normalised.

    Given labels are taken to be wrong with the probability r, then any other alike. r is the share
    of them that the surer half of the predictions contradicts.
    """
    sureness, likeliest = prediction.max(1)
    contradicted = (likeliest != given)[sureness >= sureness.median()]
    wrong = (contradicted.sum() + 1) / (len(contradicted) + 2)  # neither 0 nor 1
    classes = prediction.shape[1]
    right = one_hot(given, classes).bool()
    joint = prediction * torch.where(right, 1 - wrong, wrong / (classes - 1))
    return joint / joint.sum(1, keepdim=True)


def rostered(groups: np.ndarray, classes: int) -> Tensor:
    """The places of the images of each group, [G, K]; N, which is none, fills a group up.

    Raises: ValueError for a group of more images than there are classes.
    """
    sizes = np.bincount(groups)
    if sizes.max() > classes:
        raise ValueError(
            f"{sizes.max()} images are of group {sizes.argmax()}, which cannot have as many "
            f"different ones of {classes} classes"
        )
    roster = np.full((len(sizes), classes), len(groups))
    order = np.argsort(groups, kind="stable")
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    roster[groups[order], rank] = order
    return torch.from_numpy(roster)


def apart(prediction: Tensor, roster: Tensor) -> Tensor:
    """Predictions [N, K] of images that are of different classes within each group of a roster.

    Rows and columns of a group's table are scaled in turn, so that every image has one class in all
    and no class more than one image: towards that of all such tables which is nearest to the
    predictions (Cuturi 2013, arXiv:1306.0895; with inequalities Chizat et al. 2016,
    arXiv:1607.05816). Where these are sharp and wrong the rounds leave a class a tenth too much.
    """
    count, classes = prediction.shape
    least = torch.finfo(prediction.dtype).tiny  # log 0 has no neighbours
    logarithm = torch.cat([prediction.clamp_min(least).log(), prediction.new_zeros(1, classes)])
    table = logarithm[roster]  # [G, K, K]: images, and nobody, by class
    nobody = (roster == count)[:, :, None]
    rows = torch.zeros_like(table[:, :, :1])
    for _ in range(ROUNDS):
        taken = (table + rows).masked_fill(nobody, -math.inf).logsumexp(1, keepdim=True)
        columns = -taken.relu()  # a class that fewer than one image has stays as it is
        rows = -(table + columns).logsumexp(2, keepdim=True)
    result = prediction.new_zeros(count + 1, classes)
    result[roster.flatten()] = (table + columns + rows).exp().flatten(0, 1)
    return result[:-1]


def corrupted(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """Labels [N] of which exactly this share (rounded) is replaced by another class, any alike."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x3A15E]))
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return noisy
