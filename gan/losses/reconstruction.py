"""Losses between an image and the one it should be."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Features = Callable[[Tensor], Sequence[Tensor]]


def feature_distance(features: Features, image: Tensor, target: Tensor) -> Tensor:
    """Mean over layers and samples of the root mean squared difference of feature maps.

    mean_l mean_i sqrt(mean_CHW (phi_l(F_i) - phi_l(T_i))^2 + 1e-9); no gradient through the target.
    """
    with torch.no_grad():
        wanted = features(target)
    pairs = zip(features(image), wanted, strict=True)
    return torch.stack([_rms(made - truth) for made, truth in pairs]).mean()


def _rms(difference: Tensor) -> Tensor:
    return (difference.flatten(1).square().mean(1) + 1e-9).sqrt().mean()
