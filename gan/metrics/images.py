"""Measures of one image against the true one, each a value per sample.

Images are ink [N, C, H, W] in [0, 1], paper 0, or any other pair whose range is 1. Results are [N].
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

PIXEL = (1, 2, 3)
HALF_STEP = 1 / 510  # of a byte


def l1(image: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (image - truth).abs().mean(PIXEL)


def l1_per_ink(image: Tensor, truth: Tensor) -> Tensor:
    """L1 divided by the mean ink of the truth: 1 for a blank page, whatever the font's weight.

    A blank truth gives inf or nan.
    """
    return l1(image, truth) / truth.mean(PIXEL)


def rmse(image: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared difference."""
    return (image - truth).square().mean(PIXEL).sqrt()


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels for a peak of 1, at most 54.15.

    That is a difference of half a byte's step everywhere. Equal images would have an infinite
    one, and a mean of several would say nothing.
    """
    return -10 * (image - truth).square().mean(PIXEL).clamp_min(HALF_STEP**2).log10()


def ssim(image: Tensor, truth: Tensor, window: int = 7) -> Tensor:
    """Structural similarity, the mean over windows that lie inside the image, and over channels.

    Uniform window, data range 1, K1 = 0.01, K2 = 0.03, variances divided by the pixels less one: as
    scikit-image computes it unless told otherwise. torchmetrics divides by the pixels and counts
    mirrored borders too. Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13.

    Raises:
        ValueError: an image is smaller than the window.
    """
    if min(image.shape[-2:]) < window:
        raise ValueError(
            f"window={window} does not fit into images of {image.shape[-2]}x{image.shape[-1]} "
            "pixels; give larger images or a smaller window"
        )
    c1, c2 = 0.01**2, 0.03**2
    unbiased = window**2 / (window**2 - 1)
    mean_x, mean_y = avg_pool2d(image, window, 1), avg_pool2d(truth, window, 1)
    var_x = unbiased * (avg_pool2d(image * image, window, 1) - mean_x * mean_x)
    var_y = unbiased * (avg_pool2d(truth * truth, window, 1) - mean_y * mean_y)
    covariance = unbiased * (avg_pool2d(image * truth, window, 1) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(PIXEL)


def pdar(image: Tensor, truth: Tensor) -> Tensor:
    """Share of pixels that differ once both are ink or paper, cut at 0.5."""
    return ((image > 0.5) != (truth > 0.5)).to(image.dtype).mean(PIXEL)


def sharpness(image: Tensor, truth: Tensor) -> Tensor:
    """How sharp the image is next to the truth: 1 as sharp, less when blurred, 0 for a blank page.

    The lower of two ratios, since each alone can be fooled:

    - pixels in (0.2, 0.8), the truth's over the image's, one pixel added to both. Blur makes greys;
      but once it has washed thin strokes out, as on a blank page, there is no grey left to count;
    - the darkness of the ink, `sum x^2 / sum x`, the image's over the truth's. Every blur lowers
      it, since squares shrink and the sum stays; but it hardly sees soft edges of heavy strokes.

    The second is also the bound: pure black and white has darkness 1. Places do not count: a sharp
    drawing of another character is sharp. The truth must have ink.
    """
    greys = (_greys(truth) + 1) / (_greys(image) + 1)
    return torch.minimum(greys, _darkness(image) / _darkness(truth))


def _greys(image: Tensor) -> Tensor:
    return ((image > 0.2) & (image < 0.8)).to(image.dtype).sum(PIXEL)


def _darkness(image: Tensor) -> Tensor:
    tiny = torch.finfo(image.dtype).tiny  # of a blank page the darkness is 0
    return image.square().sum(PIXEL) / image.sum(PIXEL).clamp_min(tiny)
