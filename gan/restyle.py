"""More glyphs than there are: styles made from real ones, and characters made of two.

A one-shot font needs many styles to learn from, and a store has few. `restyled` changes the glyphs
of a sample together, references and target alike, so that they still share a style, though one that
no font has, and `hollowed` leaves their outlines; `mixed` finds a style between two fonts.
`spliced` cuts two characters of a style and puts the halves together, in the standard font as well:
characters that no font has. `bent` bends a character in both fonts alike, and `turned` shows all of
a sample turned or mirrored. Each sample draws its own changes; what comes last, [B], says which
were changed. Nothing needs a gradient.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

from gan import draws
from gan.orientations import CHANGES, ORIENTATIONS

OFTEN = 0.5  # how probable each of the following changes is in a changed sample
SLANT = 0.25  # of a glyph's height that its top moves at most
SCALE = 0.15  # of its width or height that it grows or shrinks at most
UNIT = 1 / 32  # of the side: what edges move in, a pixel of 32
WEIGHT = (-0.4, 0.8)  # units that all edges move, inwards and outwards
CONTRAST = 0.4  # units that edges of upright strokes move, and those of level ones the other way
MOST = WEIGHT[1] + CONTRAST  # units that any edge moves
BEND = 0.05  # of the side that a place moves at most, together with a fourth of the glyph
ROUGH = 0.012  # of the side that a place moves at most, together with its close surroundings

OUTSIDE = (0.2, 1.0)  # units that the outer edges of a hollow glyph move
LINE = (0.9, 1.2)  # units between its outer and inner edges
SWAY = ((0.06, 2), (0.06, 4))  # of the side that places of a bent character move at most, and how
# many places there are on a side; between them a bicubic surface overshoots

SOFT = 1 / 32  # of the side: the blur under which strokes of two fonts meet
EDGE = 4.0  # how much steeper than the blur the edges of a mixture are
CUT = (0.35, 0.65)  # of the side: where a character is cut


@torch.no_grad()
def restyled(glyphs: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Glyphs [B, N, C, H, W] in [-1, 1], ink -1, a `share` of the samples in a new style."""
    batch, many, _, *size = glyphs.shape
    made = draws.uniform(batch, device=glyphs.device) < share
    flat = glyphs.flatten(0, 1)
    moved = _sampled(1 - flat, _warps(batch, size, glyphs.device).repeat_interleave(many, 0))
    weight = _sometimes(*WEIGHT, batch, glyphs.device)
    contrast = _sometimes(-CONTRAST, CONTRAST, batch, glyphs.device)
    edges = (_of_each(edge, glyphs) for edge in (weight + contrast, weight - contrast))
    ink = _thickened(moved / 2, *edges)
    return torch.where(_broad(made), (1 - 2 * ink).view_as(glyphs), glyphs), made


@torch.no_grad()
def mixed(glyphs: Tensor, others: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Glyphs [B, N, C, H, W], a `share` of the samples between two fonts' drawings.

    Both are blurred, so that strokes a little apart meet, averaged with weights 1 - t and t, and
    cut at the level that leaves as much ink as the average has: a mean of pixels would be grey.
    """
    batch, height = len(glyphs), glyphs.shape[-2]
    made = draws.uniform(batch, device=glyphs.device) < share
    between = _broad(draws.uniform(batch, device=glyphs.device).to(glyphs.dtype))
    mean = torch.lerp((1 - glyphs) / 2, (1 - others) / 2, between)  # ink
    soft = _blurred(mean.flatten(0, 2)[:, None], SOFT * height)
    ink = _cut(soft, mean.mean((3, 4)).view(-1, 1, 1, 1), EDGE * SOFT * height)
    return torch.where(_broad(made), (1 - 2 * ink).view_as(glyphs), glyphs), made


@torch.no_grad()
def hollowed(glyphs: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Glyphs [B, N, C, H, W], a `share` of the samples drawn in outline.

    Paper is in the place of the ink, and a line around it; strokes of one or two units may stay
    filled, and become double lines where the line lies outside.
    """
    batch = len(glyphs)
    made = draws.uniform(batch, device=glyphs.device) < share
    outer = _between(*OUTSIDE, batch, glyphs.device)
    inner = outer - _between(*LINE, batch, glyphs.device)
    ink = (1 - glyphs.flatten(0, 1)) / 2
    around, inside = (_thickened(ink, *2 * [_of_each(edge, glyphs)]) for edge in (outer, inner))
    hollow = (1 - 2 * (around - inside)).view_as(glyphs)
    return torch.where(_broad(made), hollow, glyphs), made


@torch.no_grad()
def spliced(
    prototype: Tensor, target: Tensor, mate: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes and targets [B, C, H, W], a `share` of them partly of another character.

    `mate` [B, 2, C, H, W] is that other character in the standard font and in the target's style.
    One cut, upright or level, divides all of a sample's glyphs at the same place.
    """
    batch, _, height, width = target.shape
    made, level, swap = (
        draws.uniform(batch, 1, 1, 1, device=target.device) < chance for chance in (share, 0.5, 0.5)
    )
    place = _between(*CUT, batch, target.device)[:, None]
    rows, columns = (
        (torch.arange(side, device=target.device) + 0.5) / side < place for side in (height, width)
    )
    first = torch.where(level, rows[:, None, :, None], columns[:, None, None, :])  # [B, 1, H, W]
    taken = made & (first ^ swap)
    prototype = torch.where(taken, mate[:, 0], prototype)
    return prototype, torch.where(taken, mate[:, 1], target), made.flatten()


@torch.no_grad()
def bent(prototype: Tensor, target: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Prototypes and targets [B, C, H, W], a `share` of them bent, both of a sample alike.

    It is the same character, of the same style, in another shape.
    """
    batch, channels, *size = target.shape
    made = draws.uniform(batch, 1, 1, 1, device=target.device) < share
    grid = _still(batch, size, target.device)
    for most, places in SWAY:
        field = _field(batch, places, target.device)
        grid = grid + _moved(field, _between(0, most, batch, target.device), size)
    both = torch.cat([prototype, target], 1)
    prototype, target = torch.where(made, 1 - _sampled(1 - both, grid), both).split(channels, 1)
    return prototype, target


@torch.no_grad()
def turned(glyphs: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Square glyphs [B, N, C, S, S], a `share` of the samples in one of seven other orientations.

    All glyphs of a sample are turned alike. That makes styles and characters at once, the way
    turned characters serve as new classes in few-shot learning (Santoro et al. 2016,
    arXiv:1605.06065).
    """
    batch = len(glyphs)
    made = draws.uniform(batch, device=glyphs.device) < share
    chosen = draws.integers(1, ORIENTATIONS, batch, device=glyphs.device)
    for bit, change in enumerate(CHANGES):
        stays = _broad(~(made & (chosen >> bit & 1).bool()))
        glyphs = torch.where(stays, glyphs, change(glyphs))  # the layout is the first's
    return glyphs, made


def turned_alike(batch: Mapping[str, Tensor], share: float) -> tuple[dict[str, Tensor], Tensor]:
    """Prototypes, targets, references and what these show, where it is told, by name, turned."""
    pair = torch.stack([batch["prototype"], batch["target"]], 1)
    several = {name: batch[name] for name in ("reference", "shown") if name in batch}
    glyphs, made = turned(torch.cat([pair, *several.values()], 1), share)
    counts = [2, *(glyphs.shape[1] for glyphs in several.values())]
    pair, *others = glyphs.split(counts, 1)
    both = {"prototype": pair[:, 0], "target": pair[:, 1]}
    return {**both, **dict(zip(several, others, strict=True))}, made


def _between(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return low + (high - low) * draws.uniform(count, device=device)


def _sometimes(low: float, high: float, count: int, device: torch.device) -> Tensor:
    """A change of each sample, none in some."""
    return _between(low, high, count, device) * (draws.uniform(count, device=device) < OFTEN)


def _of_each(change: Tensor, glyphs: Tensor) -> Tensor:
    """A change of each sample [B] for all of its glyphs [B, N, C, H, W], [B * N, 1, 1, 1]."""
    return change.to(glyphs.dtype).repeat_interleave(glyphs.shape[1])[:, None, None, None]


def _broad(x: Tensor) -> Tensor:
    return x[:, None, None, None, None]


def _warps(count: int, size: list[int], device: torch.device) -> Tensor:
    """Where each pixel of a sample comes from, [B, H, W, 2]: slanted, scaled, bent and rough."""
    slant = _sometimes(-SLANT, SLANT, count, device)
    across, down = (1 + _sometimes(-SCALE, SCALE, count, device) for _ in range(2))
    none = torch.zeros_like(slant)
    matrix = torch.stack(
        [torch.stack([across, slant, none], 1), torch.stack([none, down, none], 1)], 1
    )
    grid = affine_grid(matrix, [count, 1, *size], align_corners=False)
    for most, places in ((BEND, 4), (ROUGH, 16)):
        field = _field(count, places, device)
        grid = grid + _moved(field, _sometimes(0, most, count, device), size)
    return grid


def _still(count: int, size: list[int], device: torch.device) -> Tensor:
    """The place of each pixel, [B, H, W, 2]; the side is from -1 to 1."""
    matrix = torch.eye(2, 3, device=device).expand(count, 2, 3)
    return affine_grid(matrix, [count, 1, *size], align_corners=False)


def _field(count: int, places: int, device: torch.device) -> Tensor:
    """Which way so many places a side move, [B, 2, places, places] in [-1, 1]."""
    return 2 * draws.uniform(count, 2, places, places, device=device) - 1


def _moved(field: Tensor, most: Tensor, size: list[int]) -> Tensor:
    """How far each pixel moves, [B, H, W, 2]; the places of a field by `most` [B] of the side."""
    field = 2 * most[:, None, None, None] * field  # the side is 2 long
    return interpolate(field, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _sampled(ink: Tensor, grid: Tensor) -> Tensor:
    """Ink [N, C, H, W] in [0, 2] at the places of the grid [N, H, W, 2], none around it."""
    moved = grid_sample(ink, grid.to(ink.dtype), mode="bicubic", align_corners=False)
    return moved.clamp(0, 2)


def _thickened(ink: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Ink in [0, 1] whose edges move by so many units, inwards where it is negative.

    A pass over the neighbours moves them by a pixel at most, of `MOST` units.
    """
    pixels = UNIT * ink.shape[-1]
    for moved in range(math.ceil(MOST * pixels)):
        for change, dim in ((across, 3), (down, 2)):
            left = (change.abs() * pixels - moved).clamp(0, 1)
            ink = _pass(ink, left * change.sign(), dim)
    return ink


def _pass(ink: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Ink whose edges move by a share of a pixel, from -1 to 1, along one dimension."""
    least, most = extremes(ink, dim)
    return ink + weight.clamp(min=0) * (most - ink) + weight.clamp(max=0) * (ink - least)


def extremes(ink: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The least and most of each pixel and its two neighbours along a dimension of [N, C, H, W].

    On a CPU a fifteenth of the time of pooling windows of three.
    """
    beside = pad(ink, (1, 1, 0, 0) if dim == 3 else (0, 0, 1, 1), mode="replicate")
    before, after = (beside.narrow(dim, start, ink.shape[dim]) for start in (0, 2))
    least = torch.minimum(torch.minimum(before, after), ink)
    return least, torch.maximum(torch.maximum(before, after), ink)


def _blurred(ink: Tensor, deviation: float) -> Tensor:
    """Ink [N, 1, H, W] under a Gaussian of this standard deviation in pixels."""
    reach = math.ceil(3 * deviation)
    line = torch.arange(-reach, reach + 1, device=ink.device, dtype=ink.dtype)
    bell = (-0.5 * (line / deviation).square()).exp()
    bell = bell / bell.sum()
    ink = conv2d(ink, bell.view(1, 1, 1, -1), padding=(0, reach))
    return conv2d(ink, bell.view(1, 1, -1, 1), padding=(reach, 0))


def _cut(soft: Tensor, dark: Tensor, slope: float) -> Tensor:
    """Soft ink [N, 1, H, W] steeper around the level that leaves a mean of `dark` [N, 1, 1, 1].

    Ink falls as the level rises, which a bisection finds.
    """
    reach = 0.5 / slope
    low, high = torch.full_like(dark, -reach), torch.full_like(dark, 1 + reach)
    for _ in range(12):
        level = (low + high) / 2
        more = ((soft - level) * slope + 0.5).clamp(0, 1).mean((2, 3), keepdim=True) > dark
        low, high = torch.where(more, level, low), torch.where(more, high, level)
    return ((soft - (low + high) / 2) * slope + 0.5).clamp(0, 1)
