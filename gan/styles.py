"""What a W-Net takes from references: a style to draw in, to blend, and to learn by heart.

An encoder has one look at a style that it never met. Where it is known which characters the
references show, the standard font says what they were to be drawn from, and a few steps on these
pairs bring what is drawn closer to the style, the more the stranger it is.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from gan import draws
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.orientations import oriented
from gan.recipes.modules import GlyphWriter
from gan.restyle import bent

STEPS = 40  # of an adaptation at most
RATE = 1e-4  # of its optimizer, Adam
ROWS = 8  # least pairs in its batch, which has each reference in each orientation
BENT = 0.9  # share of them that is bent: shapes change, the style stays
HOW = {"optimizer": "Adam", "lr": RATE, "least_batch": ROWS, "bent": BENT}
KNOWN = 128  # glyphs that say how well a generator draws what it was trained on


def adapted(
    writer: GlyphWriter,
    shown: Tensor,
    references: Tensor,
    steps: int = STEPS,
    enough: float = 0.0,
    seed: int = 0,
) -> GlyphWriter:
    """A copy of a W-Net's generator that has learnt the references of one style by heart.

    The encoders stay as they are; what puts their codes together takes steps on the mean absolute
    difference between the references and what it draws in their place, in each orientation that it
    draws in, each pair bent anew every time. It stops where the difference is `enough`: to draw
    them better than it draws what it was trained on would be at the cost of other characters.
    Random numbers follow from `seed`. Zakharov et al. 2019, arXiv:1905.08233, tune a generator to
    a few pictures of one head, there with a discriminator.

    Args:
        writer: in evaluation mode; it is left as it is.
        shown: the references' characters in the standard font, [K, C, H, W] in [-1, 1].
        references: the same characters in the style, [K, C, H, W].
        steps: at most.
        enough: a difference of ink, from 0 to 1.

    Raises:
        ValueError: shapes differ, or there is no reference.
    """
    if shown.shape != references.shape or not len(shown):
        raise ValueError(
            "there must be a reference, and for each its character in the standard font, of the "
            f"same shape: shown {[*shown.shape]}, references {[*references.shape]}"
        )
    own = deepcopy(writer).requires_grad_(True)
    with torch.no_grad():
        style, ways = _in_a_row(own.encode_style(references[None]))
    rows = torch.arange(max(ROWS // ways, len(shown)), device=shown.device) % len(shown)
    style = mapped(lambda code: code.repeat_interleave(len(rows), 0), style)
    optimizer = torch.optim.Adam(own.parameters(), RATE)
    with torch.enable_grad(), draws.shared(draws.Share(0, len(rows), len(rows)), seed):
        for _ in range(steps):
            prototype, target = bent(shown[rows], references[rows], BENT)
            with torch.no_grad():
                content, _ = _in_a_row(own.encode_content(prototype))
            wanted = torch.cat([oriented(target, way) for way in range(ways)])
            loss = l1_loss(own.decode(content, style), wanted) / 2  # of ink
            if loss.item() <= enough:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return own.requires_grad_(False)


@torch.no_grad()
def accuracy(writer: nn.Module, dataset: Glyphs) -> float:
    """How far what it was trained on is drawn from the truth: a mean difference of ink.

    That is a rule of thumb for how well references may be learnt; a self-ensemble is nearer to the
    truth than its single orientations, which learn.
    """
    device = next(writer.parameters()).device
    reads = ("prototype", "reference", "target")
    plan = dataset.shown(reads, KNOWN)["seen-style-seen-character"]
    batch = Stream(dataset, 1, 0, device, reads).read(plan)
    return l1_loss(writer(batch["prototype"], batch["reference"]), batch["target"]).item() / 2


def _in_a_row(codes: Any) -> tuple[Any, int]:
    """The codes of images in all orientations as those of more images, and how many there are."""
    if isinstance(codes, tuple) and all(hasattr(code, "_fields") for code in codes):
        return mapped(lambda *ways: torch.cat(ways), *codes), len(codes)
    return codes, 1


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
