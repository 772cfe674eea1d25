"""What simpler methods score: copies and blends that a glyph generator has to beat.

A generator gets one glyph of the prototype and the references; in training it saw the training
characters of the training fonts. Rows marked * see more: the training fonts' glyphs of the target
character, more references, or the truth. A target's own font is never among the fonts looked at.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, one_hot

from gan.metrics.glyphs import CELLS, Cells, Pairs
from gan.metrics.scores import Measure, Scores, distances, score_pairs
from gan.restyle import extremes

MANY = 16  # references in the rows that see many
STEPS = 6  # by which strokes are drawn thinner, and as many by which they are thicker
FLOATS = 2**24  # numbers of a table of pairs and fonts: 64 MB, of which up to three are held


def baselines(
    cells: Cells, among: Sequence[str] = tuple(CELLS), measure: Measure = distances
) -> dict[str, Scores]:
    """The scores of every baseline, by the name of its row in the table.

    The rows with many references show 16, or as many as the list of references allows.
    """
    many = min(MANY, len(cells.references) - 1)
    fonts, strokes = Fonts(cells), Strokes(cells, among)
    rows: dict[str, tuple[Callable[[Pairs], Tensor], int]] = {
        "blank page": (lambda pairs: torch.zeros_like(cells.prototypes(pairs.characters)), 1),
        "prototype copy": (lambda pairs: cells.prototypes(pairs.characters), 1),
        "prototype, stroke-matched": (strokes.matched, 1),
        "mean glyph *": (fonts.mean, 1),
        "nearest font *": (fonts.nearest, 1),
        f"nearest font, {many} references *": (fonts.nearest, many),
        "nearest font to the truth *": (fonts.oracle, 1),
        "ridge blend *": (fonts.ridge, 1),
        f"ridge blend, {many} references *": (fonts.ridge, many),
    }
    return {
        row: score_pairs(cells, draw, n, among=among, measure=measure)
        for row, (draw, n) in rows.items()
    }


class Fonts:
    """Target characters copied or blended from the training fonts that resemble the references.

    All comparisons of styles [S] with training fonts [J] are made once for each character in the
    list of references [R]. Every method takes pairs [M] to ink [M, 1, H, W], as many at a time as
    `FLOATS` allow.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.place = _places(cells.references, cells.glyphs.shape[1])
        glyphs = cells.ink(np.arange(len(cells.glyphs)), cells.references[:, None]).flatten(2)
        train = glyphs[:, torch.from_numpy(cells.style_split.train)]  # [R, J, H*W]
        pixels = glyphs.shape[-1]
        self.distances = torch.cdist(glyphs, train, p=1) / pixels  # [R, S, J]
        self.products = glyphs @ train.mT / pixels  # [R, S, J]
        self.squares = train @ train.mT / pixels  # [R, J, J]
        self.most = max(1, FLOATS // (train.shape[1] * max(train.shape[1], pixels)))  # pairs

    def mean(self, pairs: Pairs) -> Tensor:
        """The mean over the training fonts, which no reference changes."""
        return self._blend(pairs, self._uniform(pairs))

    def nearest(self, pairs: Pairs) -> Tensor:
        """The target character of the font whose reference characters are closest in L1."""
        return self._closest(pairs, self._of_references(self.distances, pairs).mean(1))

    def oracle(self, pairs: Pairs) -> Tensor:
        """The closest in L1 to the truth itself: what a perfect choice of font would reach."""
        apart = torch.cat([self._from_truth(part) for part in pairs.batches(self.most)])
        return self._closest(pairs, apart)

    def ridge(self, pairs: Pairs, penalty: float = 0.01) -> Tensor:
        """The blend of fonts that best gives the references, clamped to [0, 1].

        Weights w [J] of any sign minimise `sum_k |R_k - sum_j w_j T_jk|^2 + penalty |w - u|^2`;
        T_jk is font j's glyph of reference character k, |.|^2 of an image a mean over pixels, and
        u the mean glyph, 1/J each.
        """
        weights = [self._weights(part, penalty) for part in pairs.batches(self.most)]
        return self._blend(pairs, torch.cat(weights)).clamp(0, 1)

    def _weights(self, pairs: Pairs, penalty: float) -> Tensor:
        use = torch.from_numpy(self.cells.candidates(pairs)).float()  # [M, J], no weight for others
        products = self._of_references(self.products, pairs).sum(1) * use  # [M, J]
        matrix = self._squares(pairs).mul_(use[:, :, None]).mul_(use[:, None])  # [M, J, J]
        matrix.diagonal(dim1=1, dim2=2).add_(penalty)
        return torch.linalg.solve(matrix, products + penalty * self._uniform(pairs))

    def _squares(self, pairs: Pairs) -> Tensor:
        """Those of the references summed, [M, J, J]: not gathered, which takes K times as much."""
        place = torch.from_numpy(self.place[pairs.references])
        shown = one_hot(place, len(self.squares)).sum(1).float()  # [M, R]
        return (shown @ self.squares.flatten(1)).unflatten(1, self.squares.shape[1:])

    def _from_truth(self, pairs: Pairs) -> Tensor:
        truth = self.cells.ink(pairs.styles, pairs.characters)[:, None]
        return self._targets(pairs).sub_(truth).abs_().mean((2, 3, 4))  # [M, J]

    def _of_references(self, values: Tensor, pairs: Pairs) -> Tensor:
        return values[self.place[pairs.references], pairs.styles[:, None]]  # [M, K, J]

    def _closest(self, pairs: Pairs, distances: Tensor) -> Tensor:
        allowed = torch.from_numpy(self.cells.candidates(pairs))
        choice = distances.masked_fill(~allowed, torch.inf).argmin(1).numpy()
        return self.cells.ink(self.cells.style_split.train[choice], pairs.characters)

    def _uniform(self, pairs: Pairs) -> Tensor:
        allowed = torch.from_numpy(self.cells.candidates(pairs)).float()
        return allowed / allowed.sum(1, keepdim=True)  # [M, J]

    def _blend(self, pairs: Pairs, weights: Tensor) -> Tensor:
        parts = zip(pairs.batches(self.most), weights.split(self.most), strict=True)
        blended = [torch.einsum("mj,mjchw->mchw", w, self._targets(part)) for part, w in parts]
        return torch.cat(blended)

    def _targets(self, pairs: Pairs) -> Tensor:
        return self.cells.ink(
            self.cells.style_split.train, pairs.characters[:, None]
        )  # [M,J,1,H,W]


class Strokes:
    """The prototype's glyphs with strokes as thin or thick as the references'.

    How much thinner or thicker is found on the reference characters, where prototype and style can
    be compared, and the same is done to the target: no other font is seen.
    """

    def __init__(self, cells: Cells, among: Sequence[str] = tuple(CELLS)) -> None:
        self.cells = cells
        targets = [cells.pairs(cell).characters for cell in among]
        characters = np.unique(np.concatenate([*targets, cells.references]))
        self.place = _places(characters, cells.glyphs.shape[1])
        batches = np.array_split(characters, -(-len(characters) // 256))
        drawn = [_stroke_weights(cells.prototypes(batch)) for batch in batches]
        self.weights = torch.cat(drawn, 1)  # [2 * STEPS + 1, characters, H, W], from thin to thick

    def matched(self, pairs: Pairs) -> Tensor:
        """The target character with the references' ink, between the two nearest weights."""
        wanted = self.cells.ink(pairs.styles[:, None], pairs.references).mean((1, 2, 3, 4))[:, None]
        inks = self.weights.mean((2, 3))[:, self.place[pairs.references]].mean(2).T  # [M, weights]
        level = torch.searchsorted(inks.contiguous(), wanted).clamp(1, len(self.weights) - 1)
        low, high = inks.gather(1, level - 1), inks.gather(1, level)
        part = ((wanted - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)  # [M, 1]
        thicker, target = level[:, 0], self.place[pairs.characters]
        thin, thick = self.weights[thicker - 1, target], self.weights[thicker, target]
        return torch.lerp(thin, thick, part[:, :, None])[:, None]


def _stroke_weights(ink: Tensor) -> Tensor:
    """Glyphs [N, 1, H, W] from thin to thick [2 * STEPS + 1, N, H, W]; a step moves edges by H/128.

    Outlines are redrawn on a grid of 128 pixels or more, eroded or dilated there, and reduced by
    area, so that a step may be a fraction of a pixel.
    """
    finer, coarser = max(1, 128 // ink.shape[-2]), max(1, ink.shape[-2] // 128)
    fine = interpolate(ink, scale_factor=finer, mode="bicubic")
    fine = ((fine - 0.5) * finer + 0.5).clamp(0, 1)
    thick = _grown(fine, coarser)
    thin = [1 - paper for paper in _grown(1 - fine, coarser)]
    return torch.stack([avg_pool2d(x, finer)[:, 0] for x in [*reversed(thin), fine, *thick]])


def _grown(ink: Tensor, pixels: int) -> list[Tensor]:
    """The ink with its edges moved by so many pixels once, twice, and so on."""
    grown = []
    for step in range(STEPS * pixels):
        (_, tall), (_, wide) = extremes(ink, 2), extremes(ink, 3)
        square = extremes(tall, 3)[1]
        ink = square if step % 2 else torch.maximum(tall, wide)  # by turns: nearly a disc
        grown.append(ink)
    return grown[pixels - 1 :: pixels]


def _places(items: np.ndarray, size: int) -> np.ndarray:
    """The place of each number below `size` in a list of numbers, -1 where it is not."""
    places = np.full(size, -1)
    places[items] = np.arange(len(items))
    return places
