"""More styles of glyphs than there are fonts: a real one, slanted, widened, thickened or bent.

A one-shot font needs many styles to learn from, and a store has few. `restyled` changes the glyphs
of a sample together, references and target alike, so that they still share a style, though one that
no font has. Each sample draws its own changes; nothing here needs a gradient.
"""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, max_pool2d

from gan import draws

SLANT = 0.25  # of a glyph's height that its top moves at most
SCALE = 0.15  # of its width or height that it grows or shrinks at most
WEIGHT = (-0.4, 0.8)  # pixels that a stroke's edges move, inwards and outwards
BEND = 0.05  # of the side that a place moves at most


@torch.no_grad()
def restyled(glyphs: Tensor, share: float) -> Tensor:
    """Glyphs [B, N, C, H, W] in [-1, 1], ink -1; a `share` of the samples in a style of its own."""
    batch, many, channels, *size = glyphs.shape
    chosen = draws.uniform(batch, device=glyphs.device) < share
    flat = glyphs.flatten(0, 1)
    warp = _warps(batch, size, glyphs.device).repeat_interleave(many, 0)
    moved = grid_sample(1 - flat, warp.to(flat.dtype), mode="bicubic", align_corners=False)
    weight = _between(*WEIGHT, batch, glyphs.device).repeat_interleave(many)
    ink = _thickened((moved / 2).clamp(0, 1), weight[:, None, None, None].to(flat.dtype))
    return torch.where(chosen[:, None, None, None, None], (1 - 2 * ink).view_as(glyphs), glyphs)


def _between(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return low + (high - low) * draws.uniform(count, device=device)


def _warps(count: int, size: list[int], device: torch.device) -> Tensor:
    """Where each pixel of a sample comes from, [B, H, W, 2]: slanted, scaled and softly bent."""
    slant = _between(-SLANT, SLANT, count, device)
    across, down = (1 + _between(-SCALE, SCALE, count, device) for _ in range(2))
    none = torch.zeros_like(slant)
    matrix = torch.stack(
        [torch.stack([across, slant, none], 1), torch.stack([none, down, none], 1)], 1
    )
    grid = affine_grid(matrix, [count, 1, *size], align_corners=False)
    bend = BEND * 2 * (2 * draws.uniform(count, 2, 4, 4, device=device) - 1)
    smooth = interpolate(bend, size=size, mode="bicubic", align_corners=True)
    return grid + smooth.permute(0, 2, 3, 1)


def _thickened(ink: Tensor, weight: Tensor) -> Tensor:
    """Ink in [0, 1] whose edges move by a weight in pixels, inwards where it is negative."""
    more = max_pool2d(ink, 3, 1, 1) - ink
    less = ink + max_pool2d(-ink, 3, 1, 1)  # ink minus its minimum around
    return ink + weight.clamp(min=0) * more + weight.clamp(max=0) * less
