"""What a glyph generator is asked: seen and unseen styles and characters, references, controls.

A generator is given a character in the prototype font and K characters of a style, and draws the
first in that style. Each style is a font. Images are ink in [0, 1], paper 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from torch import Tensor

from gan.data.triples import Split
from gan.images import to_floats

CELLS = {
    "SFSC": ("train", "train"),
    "SFUC": ("train", "test"),
    "UFSC": ("test", "train"),
    "UFUC": ("test", "test"),
    "validation": ("validation", "validation"),
}
"""The styles and the characters that a cell crosses: UFUC is the headline."""

Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Prototype [B, 1, H, W], references and the prototype font's glyphs of their characters, each
[B, K, 1, H, W], ink on the CPU, to ink [B, 1, H, W]."""

Control = Callable[["Cells", "Pairs"], "Pairs"]
"""What the generator is shown in place of the pairs that it is judged by, in the same order."""


@dataclass(frozen=True)
class Pairs:
    """Styles [M], target characters [M] and the characters shown of the style [M, K]."""

    styles: np.ndarray
    characters: np.ndarray
    references: np.ndarray

    def __len__(self) -> int:
        return len(self.styles)

    def batches(self, size: int) -> list["Pairs"]:
        """The same pairs in order, at most `size` at a time."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [Pairs(self.styles[p], self.characters[p], self.references[p]) for p in parts]


@dataclass(frozen=True, eq=False)
class Cells:
    """Glyphs of all styles, and what of them is seen, held out and shown as reference.

    `glyphs` are bytes [S, N, H, W], ink 0 on paper 255, and those of the prototype font [N, H, W].
    `usable` [S, N] says which exist both in the style and in the prototype font. The splits number
    styles and characters; what they leave out takes part in nothing, so `glyphs` may hold the
    prototype as well. `families` [S] groups related fonts. `references` is the fixed list of
    characters to show: training characters that every style has, as `common_characters` finds them,
    one more than the most references asked for. A cell keeps at most `limit` pairs, spread evenly
    over its fonts and over the characters.

    Raises:
        ValueError: shapes disagree, a split overlaps or parts a family, a reference cannot serve.
    """

    glyphs: np.ndarray
    usable: np.ndarray
    prototype: np.ndarray
    style_split: Split
    character_split: Split
    families: np.ndarray
    references: np.ndarray
    limit: int = 1000

    def __post_init__(self) -> None:
        for name, array, shape in (
            ("usable", self.usable, self.glyphs.shape[:2]),
            ("prototype", self.prototype, self.glyphs.shape[1:]),
            ("families", self.families, self.glyphs.shape[:1]),
        ):
            if array.shape != shape:
                raise ValueError(f"{name} must have the shape {shape} of glyphs, not {array.shape}")
        styles: dict[str, np.ndarray] = vars(self.style_split)
        _check_disjoint("styles", styles)
        _check_disjoint("families", {name: self.families[part] for name, part in styles.items()})
        _check_disjoint("characters", vars(self.character_split))
        self._check_references(np.concatenate([*styles.values()]))

    def _check_references(self, styles: np.ndarray) -> None:
        listed = self.references.tolist()
        if len(listed) < 2 or len(set(listed)) < len(listed):
            raise ValueError(f"references must be two or more different characters, not {listed}")
        unseen = sorted(set(listed) - set(self.character_split.train.tolist()))
        if unseen:
            raise ValueError(f"references must be training characters, but {unseen} are not")
        missing = np.argwhere(~self.usable[np.ix_(styles, self.references)])
        if len(missing):
            style, character = missing[0]
            raise ValueError(
                f"reference character {listed[character]} is not usable in style {styles[style]}; "
                "choose characters that every style has, with common_characters"
            )

    def pairs(self, cell: str, references: int = 1) -> Pairs:
        """The targets of a cell, ordered by style, and the references of each, never the target.

        Target i of a style is shown the list from place i on, so that one reference each uses all
        of it. For the baselines' sake, some training font other than its own must have a target.

        Raises:
            ValueError: more references than the list allows, or no target.
        """
        if not 1 <= references < len(self.references):
            raise ValueError(
                f"references must be between 1 and {len(self.references) - 1}, one less than the "
                f"characters in the list of references, not {references}"
            )
        style_part, character_part = CELLS[cell]
        styles = np.sort(getattr(self.style_split, style_part))
        characters = np.sort(getattr(self.character_split, character_part))
        available = [characters[self._drawn(style)[characters]] for style in styles]
        quotas = _fair([len(one) for one in available], self.limit)
        if not sum(quotas):
            raise ValueError(f"cell {cell} has no target; give its split more styles or characters")
        turns = range(len(styles))
        targets = [_spread(*one, len(styles)) for one in zip(available, quotas, turns, strict=True)]
        starts = np.concatenate([np.arange(quota) for quota in quotas])
        shown = self._shown(np.concatenate(targets), starts)[:, :references]
        return Pairs(np.repeat(styles, quotas), np.concatenate(targets), shown)

    def candidates(self, pairs: Pairs) -> np.ndarray:
        """Which training fonts may stand in for a target [M, J]: all that have it but its own."""
        train = self.style_split.train
        return self.usable[train][:, pairs.characters].T & (train != pairs.styles[:, None])

    def given(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """What a generator draws these pairs from, see `Draw`."""
        references = self.ink(pairs.styles[:, None], pairs.references)
        return self.prototypes(pairs.characters), references, self.prototypes(pairs.references)

    def ink(self, styles: np.ndarray, characters: np.ndarray) -> Tensor:
        """Glyphs as ink [..., 1, H, W] for numbers [...] of styles and characters."""
        return _ink(self.glyphs[styles, characters])

    def prototypes(self, characters: np.ndarray) -> Tensor:
        """The prototype font's glyphs as ink [..., 1, H, W] for numbers [...] of characters."""
        return _ink(self.prototype[characters])

    def _drawn(self, style: np.ndarray) -> np.ndarray:
        train = self.style_split.train
        return self.usable[style] & self.usable[train[train != style]].any(0)  # [N]

    def _shown(self, targets: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The list of references [M, R] from each start on, the target, if in it, at the end."""
        length = len(self.references)
        shown = self.references[(starts[:, None] + np.arange(length)) % length]
        order = np.argsort(shown == targets[:, None], axis=1, kind="stable")
        return np.take_along_axis(shown, order, 1)


def common_characters(
    usable: np.ndarray, styles: np.ndarray, characters: np.ndarray, count: int = 17
) -> np.ndarray:
    """At most `count` characters, evenly spaced, that all these styles have: a list of references.

    The default allows 16 references beside the target.

    Raises:
        ValueError: fewer than two characters are usable in every style.
    """
    common = characters[usable[np.ix_(styles, characters)].all(0)]
    if len(common) < 2:
        raise ValueError(
            f"only {len(common)} of {len(characters)} characters are usable in all {len(styles)} "
            "styles, but a target and its reference need two; leave out the styles with the fewest"
        )
    return _spread(common, min(count, len(common)), 0, 1)


def faithful(cells: Cells, pairs: Pairs) -> Pairs:
    """The pairs themselves: no control."""
    return pairs


def shuffled_reference(cells: Cells, pairs: Pairs) -> Pairs:
    """References by another font of the cell; of another family if none has over half of the fonts.

    Raises:
        ValueError: the cell has one font.
    """
    styles = np.unique(pairs.styles)
    if len(styles) < 2:
        raise ValueError("a shuffled reference needs a cell of at least two fonts, not one")
    styles = styles[np.argsort(cells.families[styles], kind="stable")]
    largest = np.unique(cells.families[styles], return_counts=True)[1].max()
    step = largest if largest < len(styles) else 1  # fonts lie by family: this leaves each of them
    other = np.zeros(len(cells.glyphs), dtype=np.int64)
    other[styles] = np.roll(styles, -step)
    return Pairs(other[pairs.styles], pairs.characters, pairs.references)


def constant_reference(cells: Cells, pairs: Pairs) -> Pairs:
    """References by one training font, the nearest to the mean of them all, whatever the style."""
    train = cells.style_split.train
    glyphs = cells.ink(train[:, None], cells.references).flatten(1)  # [J, R*H*W]
    typical = train[int((glyphs - glyphs.mean(0)).abs().mean(1).argmin())]
    return Pairs(np.full_like(pairs.styles, typical), pairs.characters, pairs.references)


def wrong_prototype(cells: Cells, pairs: Pairs) -> Pairs:
    """Another target character of the cell in place of each: the target must no longer be drawn.

    Raises:
        ValueError: the cell has one character.
    """
    characters = np.unique(pairs.characters)
    if len(characters) < 2:
        raise ValueError("a wrong prototype needs a cell of at least two characters, not one")
    other = np.roll(characters, len(characters) // 2)
    wrong = other[np.searchsorted(characters, pairs.characters)]
    return Pairs(pairs.styles, wrong, pairs.references)


CONTROLS: dict[str, Control] = {
    "shuffled reference": shuffled_reference,
    "constant reference": constant_reference,
    "wrong prototype": wrong_prototype,
}
"""Each must score worse than no control, or the generator does not read that input."""


def _ink(glyphs: np.ndarray) -> Tensor:
    return (1 - to_floats(glyphs[..., None])) / 2  # [..., 1, H, W]


def _check_disjoint(what: str, parts: Mapping[str, np.ndarray]) -> None:
    for a, b in combinations(parts, 2):
        shared = np.intersect1d(parts[a], parts[b]).tolist()
        if shared:
            raise ValueError(f"{what} {shared} are in both {a} and {b}; a split must be disjoint")


def _fair(counts: Sequence[int], limit: int) -> list[int]:
    """As equal shares of the limit as the counts allow."""
    shares, left = [0] * len(counts), limit
    for done, place in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[place] = min(counts[place], left // (len(counts) - done))
        left -= shares[place]
    return shares


def _spread(items: np.ndarray, count: int, turn: int, turns: int) -> np.ndarray:
    """`count` of the items at even distances, starting elsewhere in each turn."""
    offset = len(items) * turn // turns
    return items[(np.arange(count) * len(items) + offset) // max(count, 1)]
