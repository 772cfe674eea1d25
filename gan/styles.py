"""What a W-Net takes from references: a style to draw in, to blend, and to learn by heart.

An encoder has one look at a style that it never met. Where it is known which characters the
references show, the standard font says what they were to be drawn from, and a few steps on these
pairs bring what is drawn closer to the style, the more the stranger it is.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from gan import draws
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.orientations import ORIENTATIONS, oriented
from gan.recipes.modules import GlyphWriter
from gan.restyle import bent

STEPS = 40  # of an adaptation at most
RATE = 1e-4  # of its optimizer, Adam
ROWS = 8  # least pairs in its batch, which has each reference in each orientation
BENT = 0.9  # share of them that is bent: shapes change, the style stays
KEPT = 0.5  # weight of what other characters lose, beside a difference of ink
PALE = 0.25  # weight of how grey they are
HOW = {
    "optimizer": "Adam",
    "lr": RATE,
    "least_batch": ROWS,
    "bent": BENT,
    "kept": KEPT,
    "pale": PALE,
}
KNOWN = 128  # glyphs that say how well a generator draws what it was trained on


def adapted(
    writer: GlyphWriter,
    shown: Tensor,
    references: Tensor,
    steps: int = STEPS,
    enough: float = 0.0,
    others: Tensor | None = None,
    seed: int = 0,
) -> GlyphWriter:
    """A copy of a W-Net's generator that has learnt the references of one style by heart.

    The encoders stay as they are; what puts their codes together takes steps on the mean absolute
    difference between the references and what it draws in their place, in each orientation that it
    draws in, each pair bent anew every time. It stops where the difference is `enough`: to draw
    them better than it draws what it was trained on would be at the cost of other characters.
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
        steps: at most.
        enough: a difference of ink, from 0 to 1.
        others: more characters in the standard font, [N, C, H, W], some of them at every step.

    Raises:
        ValueError: shapes differ, or there is no reference.
    """
    if shown.shape != references.shape or not len(shown):
        raise ValueError(
            "there must be a reference, and for each its character in the standard font, of the "
            f"same shape: shown {[*shown.shape]}, references {[*references.shape]}"
        )
    ways = ORIENTATIONS if getattr(writer, "self_ensemble", False) else 1
    fixed: Any = deepcopy(writer).requires_grad_(False)
    fixed.self_ensemble = False  # it learns every orientation by itself
    own: Any = deepcopy(fixed).requires_grad_(True)
    rows = torch.arange(max(ROWS // ways, len(shown)), device=shown.device)
    with torch.no_grad():
        style = fixed.encode_style(_turned(references[None], ways))
        style = mapped(lambda code: code.repeat_interleave(len(rows), 0), style)
    optimizer = torch.optim.Adam(own.parameters(), RATE)
    with torch.enable_grad(), draws.shared(draws.Share(0, len(rows), len(rows)), seed):
        for step in range(steps):
            same = rows % len(shown)
            pair = bent(shown[same], references[same], BENT)
            prototype, target = (_turned(images, ways) for images in pair)
            content = fixed.encode_content(prototype)
            loss = l1_loss(own.decode(content, style), target) / 2  # of ink
            if loss.item() <= enough:
                break
            if others is not None:
                some = others[(rows + step * len(rows)) % len(others)]
                loss = loss + _harm(fixed, own, _turned(some, ways), style)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    own.self_ensemble = ways > 1
    learnt: GlyphWriter = own.requires_grad_(False)
    return learnt


def _turned(images: Tensor, ways: int) -> Tensor:
    """Images [N, ...] in the first orientations, [ways * N, ...]."""
    return torch.cat([oriented(images, way) for way in range(ways)])


def _harm(reader: GlyphWriter, writer: GlyphWriter, prototypes: Tensor, style: Any) -> Tensor:
    """How far prototypes drawn in a style are from their own content to a reader, and how pale."""
    content = reader.encode_content(prototypes)
    drawn = writer.decode(content, style)
    pale = (1 - drawn.square()).mean() / 4  # ink is (1 - drawn) / 2
    return KEPT * mse_loss(reader.encode_content(drawn).code, content.code) + PALE * pale


def known(dataset: Glyphs, device: torch.device) -> dict[str, Tensor]:
    """Prototypes, references and targets of glyphs that were trained on, 128 at most."""
    reads = ("prototype", "reference", "target")
    plan = dataset.shown(reads, KNOWN)["seen-style-seen-character"]
    return Stream(dataset, 1, 0, device, reads).read(plan)


@torch.no_grad()
def accuracy(writer: nn.Module, glyphs: Mapping[str, Tensor]) -> float:
    """How far glyphs that it was trained on are drawn from the truth: a mean difference of ink.

    That is a rule of thumb for how well references may be learnt; a self-ensemble is nearer to the
    truth than its single orientations, which learn.
    """
    return l1_loss(writer(glyphs["prototype"], glyphs["reference"]), glyphs["target"]).item() / 2


def repeated(codes: Any, count: int) -> Any:
    """The codes of one image as those of so many."""
    return mapped(lambda code: code.expand(count, *code.shape[1:]), codes)


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
