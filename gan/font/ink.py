"""Grey drawings as what a font has of them: ink or paper.

A pixel's grey is the share of it that is ink.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

FINER = 4  # samples of a field per pixel, along each side
ROUNDS, STEEPNESS, RATE = 6, 16.0, 0.5  # of the corrections of a field


def shapes(ink: Tensor) -> Tensor:
    """Fields [N, 1, 4*H, 4*W] above 0.5 within the ink; `ink` [N, 1, H, W] is in [0, 1].

    Each round compares the shares of the present inside with the pixels and corrects the field
    smoothly, so that strokes thinner than a pixel keep their weight instead of vanishing.
    """
    field = _finer(ink)
    for _ in range(ROUNDS):
        inside = torch.sigmoid(STEEPNESS * (field - 0.5))
        field = field + RATE * _finer(ink - avg_pool2d(inside, FINER))
    return field


def inked(ink: Tensor) -> Tensor:
    """Drawings [N, 1, H, W] in [0, 1] as their font looks that large, but for curves and specks."""
    return avg_pool2d((shapes(ink.clamp(0, 1)) > 0.5).float(), FINER)


def _finer(image: Tensor) -> Tensor:
    return interpolate(image, scale_factor=FINER, mode="bicubic", align_corners=False)
