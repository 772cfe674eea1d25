"""Whether a character that was drawn reads as that character, in that font."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gan.data.triples import Glyphs
from gan.metrics.claims import FIELDS
from gan.metrics.glyphs import Cells, Control, Pairs
from gan.metrics.judges import Judge, judge_of
from gan.metrics.scores import distances

Say = Callable[[str], None]


class Judged:
    """Distances to the truth, and whether judges read what was drawn as it was meant."""

    def __init__(
        self,
        judge: Judge,
        characters: np.ndarray,
        device: torch.device,
        shown: Control | None = None,
    ) -> None:
        """`characters` are the numbers by which the judge knows those of the cells.

        With the control that says what was `shown`, `followed` is whether that character is read.
        """
        self.judge, self.characters, self.device, self.shown = judge, characters, device, shown

    def __call__(self, cells: Cells, pairs: Pairs, image: Tensor) -> dict[str, Tensor]:
        """Values [M] by metric."""
        right = self._right(pairs, image)
        judged = {name: right[field] for name, field in FIELDS.items()}
        if self.shown is not None:
            judged["followed"] = self._right(self.shown(cells, pairs), image)["character"]
        return {**distances(cells, pairs, image), **judged}

    def _right(self, pairs: Pairs, image: Tensor) -> dict[str, Tensor]:
        named = {"character": self.characters[pairs.characters], "style": pairs.styles}
        labels = {f: torch.from_numpy(label).to(self.device) for f, label in named.items()}
        right = self.judge.right((1 - 2 * image).to(self.device), labels)
        return {field: found.float().cpu() for field, found in right.items()}


def glyph_judge(
    dataset: Glyphs, read: Callable[[np.ndarray], Tensor], device: torch.device, say: Say
) -> Judge:
    """A judge of characters and styles, of nine tenths of all glyphs that take part in measures.

    That it knows the truth of the test cells is no advantage to what it judges.
    """
    parts = dataset.measured
    among = np.concatenate([parts.train, parts.validation, parts.test])
    rows = np.flatnonzero(np.isin(dataset.store.fields["character"], among))
    labels = {field: dataset.store.fields[field][rows] for field in FIELDS.values()}
    return judge_of(dataset.store, read, rows, labels, device, say)
