"""What a W-Net takes from references: a style to draw in, to blend, and to learn by heart.

An encoder has one look at a style that it never met. Where it is known which characters the
references show, the standard font says what they were to be drawn from, and a few steps on these
pairs bring what is drawn closer to the style, the more the stranger it is. So do steps on the
styles that were trained on and are like it, the more the liker they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from gan import draws
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.orientations import ORIENTATIONS, oriented
from gan.recipes.modules import GlyphWriter
from gan.references import paired, references_of
from gan.restyle import bent, turned_alike

STEPS = 40  # of an adaptation
RATE = 3e-4  # of its optimizer, Adam; it falls to zero in a straight line
ROWS = 8  # least pairs in its batch, which has each reference in each orientation
BENT = 0.9  # share of its samples that is bent: shapes change, the style stays
KEPT = 0.5  # weight of what other characters lose, beside a difference of ink
PALE = 0.125  # weight of how grey they are
BESIDE = 24  # samples of related styles in its batch
NEAR = 6.0  # their weight where one is as near as drawings are to what was trained on
FALL = 6  # where the nearest is r times as far as that, NEAR is divided by r to this power
POWER = 8  # a style r times as far as the nearest has fewer samples by r to this power
HOW = {
    "optimizer": "Adam",
    "lr": RATE,
    "schedule": "linear",
    "least_batch": ROWS,
    "bent": BENT,
    "kept": KEPT,
    "pale": PALE,
    "beside": BESIDE,
    "near": NEAR,
    "fall": FALL,
    "power": POWER,
}
KNOWN = 128  # glyphs that say how well a generator draws what it was trained on
READS = ("prototype", "reference", "shown", "target")


class Relatives:
    """Samples of the styles that were trained on, more of those that are like some references.

    A style is as far from the references as its own glyphs of their characters are, by a mean
    difference of ink; a style that has fewer of them than another counts as none. To learn from
    what lies near alone is local learning (Bottou and Vapnik 1992, "Local Learning Algorithms",
    Neural Computation 4). Samples are pairs that were trained on; the references' characters, which
    only choose among styles, may be held out.

    Attributes:
        distance: of the nearest style, from 0 to 1.
        names: of all styles that count, the nearest first.
    """

    def __init__(
        self, dataset: Glyphs, device: torch.device, characters: Sequence[str], references: Tensor
    ) -> None:
        """`references` [K, C, H, W] in [-1, 1] show the `characters`.

        Raises:
            LookupError: no style that was trained on has any of the characters.
        """
        self.dataset, self.stream = dataset, Stream(dataset, 1, 0, device, READS)
        known = [k for k, character in enumerate(characters) if character in dataset.characters]
        columns = [dataset.characters.index(characters[k]) for k in known]
        styles = dataset.styles.train
        rows = dataset.rows[styles][:, columns]  # [S, K]
        drawers = (rows >= 0).sum(0)
        rows[:, 2 * drawers < max(drawers, default=0)] = -1  # few draw it: the others count
        own, shown = np.nonzero(rows >= 0)
        if not len(own):
            raise LookupError(f"no style that was trained on has {''.join(characters)}")
        glyphs = self.stream.images(rows[own, shown])
        off = (glyphs - references.to(device)[np.array(known)[shown]]).abs().mean((1, 2, 3)) / 2
        counts = np.bincount(own, minlength=len(styles))
        sums = np.bincount(own, off.double().cpu().numpy(), len(styles))
        whole = counts == counts.max()
        distances = np.divide(sums, counts, np.full(len(styles), np.inf), where=whole)
        self.distance = max(float(distances.min()), 1e-6)
        order = np.argsort(distances, kind="stable")
        self.names = [dataset.style_names[styles[n]] for n in order if whole[n]]
        nearness = (self.distance / np.maximum(distances, self.distance)) ** POWER  # [S]
        places = np.searchsorted(styles, dataset.pairs[:, 0])
        share = (nearness / np.maximum(np.bincount(places, minlength=len(styles)), 1))[places]
        self._share = share / share.sum()  # of samples, for each pair that is trained on

    def batches(self, size: int, steps: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """So many batches of prototypes, references, what these show, and targets."""
        rng = np.random.default_rng(seed)
        for step in range(steps):
            pairs = rng.choice(len(self._share), size, p=self._share)
            yield self.stream.read(self.dataset.plan(seed, step, pairs))


def adapted(
    writer: GlyphWriter,
    shown: Tensor,
    references: Tensor,
    steps: int = STEPS,
    enough: float = 0.0,
    others: Tensor | None = None,
    relatives: Relatives | None = None,
    seed: int = 0,
) -> GlyphWriter:
    """A copy of a W-Net's generator that has learnt the references of one style by heart.

    The encoders stay as they are; what puts their codes together takes steps on the mean absolute
    difference between the references and what it draws in their place, in each orientation that it
    draws in, each pair bent anew every time. Where the difference is `enough` it learns them no
    more: to draw them better than it draws what it was trained on would be at the cost of other
    characters. Samples of `relatives` are learnt beside, and count the more the nearer those are.
    Where strokes of the style lie elsewhere than the prototype's, it would learn to leave them
    pale. So `others` that it draws in the style must keep their content for the encoder, which is
    W-Net's loss of constant content (Jiang et al. 2018), and be ink or paper: for pixels that are x
    ink, x (1 - x) is small. Random numbers follow from `seed`.
    Zakharov et al. 2019, arXiv:1905.08233, tune a generator to a few pictures of one head, there
    with a discriminator.

    Args:
        writer: in evaluation mode; it is left as it is.
        shown: the references' characters in the standard font, [K, C, H, W] in [-1, 1].
        references: the same characters in the style, [K, C, H, W].
        steps: fewer without relatives, where references are drawn well enough.
        enough: a difference of ink, from 0 to 1, such as `accuracy` finds; relatives need it.
        others: more characters in the standard font, [N, C, H, W], some of them at every step.
        relatives: trained styles that are like the references.

    Raises:
        ValueError: shapes differ, there is no reference, or relatives come without `enough`.
    """
    if shown.shape != references.shape or not len(shown):
        raise ValueError(
            "there must be a reference, and for each its character in the standard font, of the "
            f"same shape: shown {[*shown.shape]}, references {[*references.shape]}"
        )
    if relatives and not enough > 0:
        raise ValueError(
            "relatives count by how near they are beside `enough`, which must be above 0, not "
            f"{enough}: how far drawings are from what was trained on (gan.styles.accuracy)"
        )
    ways = ORIENTATIONS if getattr(writer, "self_ensemble", False) else 1
    fixed: Any = deepcopy(writer).requires_grad_(False)
    fixed.self_ensemble = False  # it learns every orientation by itself
    own: Any = deepcopy(fixed).requires_grad_(True)
    rows = torch.arange(max(ROWS // ways, len(shown)), device=shown.device)
    kept = torch.arange(max(ROWS // ways, 1), device=shown.device)
    with torch.no_grad():
        style = fixed.encode_style(_turned(paired(fixed, references, shown)[None], ways))
    optimizer = torch.optim.Adam(own.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    beside = relatives.batches(BESIDE, steps, seed) if relatives else None
    near = NEAR * min(1, enough / relatives.distance) ** FALL if relatives else 0.0
    with torch.enable_grad(), draws.shared(draws.Share(0, 1, 1), seed):
        for step in range(steps):
            same = rows % len(shown)
            pair = bent(shown[same], references[same], BENT)
            prototypes, truth = (_turned(images, ways) for images in pair)
            loss = _missed(fixed, own, prototypes, truth, style)
            learnt = loss.item() <= enough
            if learnt and beside is None:
                break
            losses = [] if learnt else [loss]
            if others is not None:
                some = others[(kept + step * len(kept)) % len(others)]
                losses.append(_harm(fixed, own, _turned(some, ways), style))
            if beside is not None:
                losses.append(near * _of_relatives(fixed, own, next(beside), ways))
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    own.self_ensemble = ways > 1
    pupil: GlyphWriter = own.requires_grad_(False)
    return pupil


def _turned(images: Tensor, ways: int) -> Tensor:
    """Images [N, ...] in the first orientations, [ways * N, ...]."""
    return torch.cat([oriented(images, way) for way in range(ways)])


def _missed(
    reader: GlyphWriter, writer: GlyphWriter, prototypes: Tensor, truth: Tensor, style: Any
) -> Tensor:
    """The mean difference of ink between characters drawn in a style and the truth."""
    content = reader.encode_content(prototypes)
    return l1_loss(writer.decode(content, repeated(style, len(prototypes))), truth) / 2


def _harm(reader: GlyphWriter, writer: GlyphWriter, prototypes: Tensor, style: Any) -> Tensor:
    """How far prototypes drawn in a style are from their own content to a reader, and how pale."""
    content = reader.encode_content(prototypes)
    drawn = writer.decode(content, repeated(style, len(prototypes)))
    pale = (1 - drawn.square()).mean() / 4  # ink is (1 - drawn) / 2
    return KEPT * mse_loss(reader.encode_content(drawn).code, content.code) + PALE * pale


def _of_relatives(
    reader: GlyphWriter, writer: GlyphWriter, batch: Mapping[str, Tensor], ways: int
) -> Tensor:
    """The difference of samples from their truth, bent, each in an orientation of its own."""
    prototype, target = bent(batch["prototype"], batch["target"], BENT)
    glyphs, _ = turned_alike({**batch, "prototype": prototype, "target": target}, 1 - 1 / ways)
    style = reader.encode_style(references_of(reader, glyphs))
    return _missed(reader, writer, glyphs["prototype"], glyphs["target"], style)


def repeated(codes: Any, count: int) -> Any:
    """The codes of one image, or of several, as those of so many, in runs of one code."""
    return mapped(lambda code: code.repeat_interleave(count // len(code), 0), codes)


def known(dataset: Glyphs, device: torch.device) -> dict[str, Tensor]:
    """Prototypes, references, what these show, and targets that were trained on, 128 at most."""
    plan = dataset.shown(READS, KNOWN)["seen-style-seen-character"]
    return Stream(dataset, 1, 0, device, READS).read(plan)


@torch.no_grad()
def accuracy(writer: nn.Module, glyphs: Mapping[str, Tensor]) -> float:
    """How far glyphs that it was trained on are drawn from the truth: a mean difference of ink.

    That is a rule of thumb for how well references may be learnt; a self-ensemble is nearer to the
    truth than its single orientations, which learn.
    """
    drawn = writer(glyphs["prototype"], references_of(writer, glyphs))
    return l1_loss(drawn, glyphs["target"]).item() / 2


def mixed(one: Any, other: Any, share: float) -> Any:
    """The style at this share of the straight way between two."""
    return mapped(lambda a, b: torch.lerp(a, b, share), one, other)


def mapped(change: Callable[..., Tensor], *codes: Any) -> Any:
    """Codes of one kind, tuples of tensors and of tuples of them, changed tensor by tensor."""
    first = codes[0]
    if isinstance(first, Tensor):
        return change(*codes)
    parts = [mapped(change, *same) for same in zip(*codes, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
