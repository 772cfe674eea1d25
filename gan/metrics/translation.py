"""How well a font is translated without pairs: judges of character and style, and the truth."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gan.best import Better
from gan.data.datasets import Glyphs
from gan.data.stream import Stream
from gan.metrics import images
from gan.metrics.judges import Judge, judge_of
from gan.recipe import Recipe

FIELDS = {"character": "content", "style": "style"}  # what a judge reads, and the name of its share
PORTION = 64  # images that a network draws at once


class GlyphTranslation:
    """Shares of translated held-out characters that judges read as the character, and the style.

    Judges learn from nine tenths of all glyphs there are; that they know the truth is no advantage
    to the generator. Beside them stands L1 to the true glyph, which no recipe of this kind is shown
    next to its input.
    """

    measures: Mapping[str, Better] = {"content": "more", "style": "more", "l1": "less"}

    def __init__(
        self,
        recipe: Recipe,
        dataset: Glyphs,
        stream: Stream,
        device: torch.device,
        say: Callable[[str], None] = print,
    ) -> None:
        """The judge is trained when it is first needed, once."""
        self.recipe, self.dataset, self.device = recipe, dataset, device
        self._images, self._say = stream.images, say

    @cached_property
    def judge(self) -> Judge:
        """A classifier of characters and styles."""
        store = self.dataset.store
        labels = {field: store.fields[field] for field in FIELDS}
        rows = torch.arange(store.count).numpy()
        return judge_of(store, self._images, rows, labels, self.device, self._say)

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """`content`, `style` and `l1` on validation characters."""
        return self.scores("validation", lambda image: self.drawn(generator, image))

    def report(self, generator: nn.Module) -> str:
        """A table on test characters: translated, as they are, and the truth; and the ceilings."""
        rows = {
            "input as it is": self.scores("test", lambda image: image),
            "translated": self.scores("test", lambda image: self.drawn(generator, image)),
            "truth": self.scores("test", None),
        }
        count = len(self.dataset.held_out("test").images["real_a"])
        titles = "".join(f"{name:>9}" for name in next(iter(rows.values())))
        lines = [f"{count} held-out characters".ljust(26) + titles]
        for row, found in rows.items():
            lines.append(row.ljust(26) + "".join(f"{value:9.3f}" for value in found.values()))
        ceilings = (f"{FIELDS[field]} {share:.1%}" for field, share in self.judge.ceiling.items())
        lines.append(f"Shares that a judge reads rightly; of real held-out: {', '.join(ceilings)}.")
        return "\n".join(lines)

    def drawn(self, generator: nn.Module, image: Tensor) -> Tensor:
        """Translations [N, C, H, W] of images in the standard font."""
        parts = torch.split(image, PORTION)
        made = [self.recipe.samples(generator, {"real_a": part})["generated"] for part in parts]
        return torch.cat(made)

    def scores(self, part: Any, draw: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """Shares read rightly and mean L1 of what is drawn of a part, or of the truth itself."""
        plan = self.dataset.held_out(part)
        truth = self._images(plan.images["real_b"])
        made = truth if draw is None else draw(self._images(plan.images["real_a"]))
        fields = self.dataset.store.fields
        labels = {
            field: torch.from_numpy(fields[field][plan.images["real_b"]]).to(self.device)
            for field in FIELDS
        }
        right = self.judge.right(made, labels)
        shares = {name: float(right[field].float().mean()) for field, name in FIELDS.items()}
        return {**shares, "l1": float(images.l1((1 + made) / 2, (1 + truth) / 2).mean())}
