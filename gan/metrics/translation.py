"""How well a font is translated without pairs: judges of character and style, and the truth."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from gan import images as pictures
from gan.data.datasets import evenly
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.metrics import images
from gan.metrics.claims import FIELDS, doubts
from gan.metrics.extractors import PORTION
from gan.metrics.glyph_judges import glyph_judge
from gan.metrics.judges import Judge
from gan.metrics.pairs import Translate
from gan.metrics.report import SHOWN, Report
from gan.metrics.tables import listed, tagged
from gan.run.best import Better


class GlyphTranslation:
    """Shares of translated held-out characters that judges read as the character, and the style.

    Judges learn from nine tenths of all measured glyphs; that they know the truth is no advantage
    to the generator. Beside them stands L1 to the true glyph, which no recipe of this kind is shown
    next to its input.
    """

    better: Mapping[str, Better] = {"content": "more", "style": "more", "l1": "less"}

    def __init__(
        self,
        translate: Translate,
        dataset: Glyphs,
        stream: Stream,
        device: torch.device,
        say: Callable[[str], None] = print,
        judges: bool = True,
    ) -> None:
        """The judge is trained when it is first needed, once; without `judges` L1 is all."""
        self.translate, self.dataset, self.device = translate, dataset, device
        self._images, self._say = stream.images, say
        self.fields = FIELDS if judges else {}
        if not judges:
            self.better = {"l1": "less"}

    @cached_property
    def judge(self) -> Judge:
        """A classifier of characters and styles."""
        return glyph_judge(self.dataset, self._images, self.device, self._say)

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """`content`, `style` and `l1` on validation characters."""
        return self.scores("validation", lambda image: self.drawn(generator, image))

    def report(self, generator: nn.Module) -> str:
        """A table on test characters: translated, as they are, and the truth; and the ceilings."""
        return self.table(self.rows({"translated": generator}))

    def rows(self, generators: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        """Scores on test characters of generators, of the input as it is, and of the truth."""
        made = {
            name: self.scores("test", partial(self.drawn, generator))
            for name, generator in generators.items()
        }
        as_it_is = self.scores("test", lambda image: image)
        return {"input as it is": as_it_is, **made, "truth": self.scores("test", None)}

    def table(self, rows: Mapping[str, Mapping[str, float]]) -> str:
        """Rows as lines of text, with the ceilings."""
        count = len(self.dataset.held_out("test").images["real_a"])
        lines = listed(f"{count} held-out characters", rows, 26)
        if not self.fields:
            return "\n".join(lines)
        named = {name: self.judge.ceiling[field] for name, field in FIELDS.items()}
        ceilings = (f"{name} {share:.1%}" for name, share in named.items())
        lines.append(f"Shares that a judge reads rightly; of real held-out: {', '.join(ceilings)}.")
        return "\n".join([*lines, *doubts(named)])

    def drawn(self, generator: nn.Module, image: Tensor) -> Tensor:
        """Translations [N, C, H, W] of images in the standard font."""
        parts = torch.split(image, PORTION)
        return torch.cat([self.translate(generator, {"real_a": part}) for part in parts])

    def scores(self, part: Any, draw: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """Shares read rightly and mean L1 of what is drawn of a part, or of the truth itself."""
        plan = self.dataset.held_out(part)
        truth = self._images(plan.images["real_b"])
        made = truth if draw is None else draw(self._images(plan.images["real_a"]))
        fields = self.dataset.store.fields
        labels = {
            field: torch.from_numpy(fields[field][plan.images["real_b"]]).to(self.device)
            for field in self.fields.values()
        }
        right = self.judge.right(made, labels) if labels else {}
        shares = {name: float(right[field].float().mean()) for name, field in self.fields.items()}
        return {**shares, "l1": float(images.l1((1 + made) / 2, (1 + truth) / 2).mean())}


def translation_report(
    generators: Mapping[str, nn.Module],
    translate: Translate,
    dataset: Glyphs,
    stream: Stream,
    device: torch.device,
) -> Report:
    """Shares and distances of every generator, by the name of its weights; the last counts."""
    evaluation = GlyphTranslation(translate, dataset, stream, device)
    *_, chosen = generators
    with torch.no_grad():
        rows = evaluation.rows({f"{name} weights": g for name, g in generators.items()})
        plan = dataset.held_out("test")
        given, truth = (
            stream.images(evenly(plan.images[key], SHOWN)) for key in ("real_a", "real_b")
        )
        drawn = evaluation.drawn(generators[chosen], given)
    ours, ceiling = rows[f"{chosen} weights"], evaluation.judge.ceiling
    read = " and ".join(
        f"{ours[name]:.1%} as the right {name} (of real held-out glyphs: {ceiling[field]:.1%})"
        for name, field in FIELDS.items()
    )
    columns = {"input": given, chosen: drawn, "truth": truth}
    return Report(
        "How well a font is translated",
        f"Of translated held-out characters judges read {read}; L1 to the truth {ours['l1']:.3f}, "
        f"untranslated {rows['input as it is']['l1']:.3f}.",
        evaluation.table(rows),
        tagged(rows, f"{chosen} weights"),
        {"judges": dict(ceiling)},
        {"Held-out characters.": pictures.table(columns)},
    )
