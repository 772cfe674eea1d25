"""The paper of a picture: whether it is darker than what is on it, and how it is lit."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import grey_closing
from torch import Tensor
from torch.nn.functional import interpolate

from gan.data.glyphs import Pixels

_COARSE = 160  # pixels of the longer side when the paper is estimated
_FRAME = 0.03  # share of the shorter side that a frame along the border may take
_STEP = 0.2  # least step of light, as a share of the largest
_GRAIN = 5  # least step of light, in middling steps
_WIDEST = 0.2  # share of the picture's side that half a stroke may take
_NEAR = 0.04  # difference of light within the paper

Grey = NDArray[np.float32]


def light_on_dark(grey: Pixels) -> bool:
    """Whether who comes into the picture [H, W] meets a rise of light first.

    It is so from its border and from a little further in, as a dark frame may run along it.
    """
    coarse = _smaller(torch.from_numpy(grey.astype(np.float32))[None, None], _COARSE)[0, 0].numpy()
    edge = round(_FRAME * min(coarse.shape))
    return all(
        _rises(coarse[out : coarse.shape[0] - out, out : coarse.shape[1] - out])
        for out in (0, edge)
    )


def _rises(light: Grey) -> bool:
    """Whether the first step of light [H, W] is up for most who come in from the four sides.

    Each side has one vote, shared by its rows or columns. Light that falls unevenly has no steps.
    """
    light = np.pad(light, 1, "edge")
    steps = [lines[:, 2:] - lines[:, :-2] for lines in (light, light.T)]
    sizes = np.abs(np.concatenate([step.ravel() for step in steps]))
    least = max(_STEP * sizes.max(), _GRAIN * np.median(sizes))
    votes = 0.0
    for step in (*steps, *(-step[:, ::-1] for step in steps)):
        first = (np.abs(step) >= least).argmax(1)
        met = step[np.arange(len(step)), first]
        met = np.sign(met) * (np.abs(met) >= least)  # some lines meet none
        votes += met.sum() / max(np.count_nonzero(met), 1)
    return votes > 0


def levelled(grey: Pixels) -> Grey:
    """The picture [H, W] divided by the light of its paper, which is 1 then, whatever lit it.

    Paper is what a grey closing, which fills dark parts narrower than two fifths of the picture,
    leaves as it is; its light is a polynomial of the third degree in both directions, fitted twice:
    the second time to all that the first found near.
    """
    image = torch.from_numpy(grey.astype(np.float32))[None, None] / 255
    coarse = _smaller(image, _COARSE)
    reach = max(1, round(_WIDEST * max(coarse.shape[-2:])))
    closed = torch.from_numpy(grey_closing(coarse[0, 0].numpy(), 2 * reach + 1))
    light = coarse[0, 0].double().flatten()
    basis = _polynomials(*coarse.shape[-2:])
    paper = (closed - coarse[0, 0]).flatten() <= _NEAR
    for _ in range(2):
        fitted = basis @ torch.linalg.lstsq(basis[paper], light[paper, None], driver="gelsd")[0]
        near = (light - fitted[:, 0]).abs() <= 2 * _NEAR
        paper = near if near.any() else paper
    surface = fitted.float().reshape(coarse.shape).clamp_min(1 / 255)
    surface = interpolate(surface, image.shape[-2:], mode="bilinear", align_corners=False)
    return (image / surface).clamp(0, 1)[0, 0].numpy()


def _polynomials(height: int, width: int, degree: int = 3) -> Tensor:
    """Products of powers of both coordinates, [height * width, 10] for the third degree."""
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return torch.stack([(y[:, None] ** i * x**j).flatten() for i, j in powers], 1)


def _smaller(image: Tensor, longest: int) -> Tensor:
    factor = max(image.shape[-2:]) / longest
    if factor <= 1:
        return image
    size = [max(1, round(side / factor)) for side in image.shape[-2:]]
    return interpolate(image, size, mode="area")
