"""How good a W-Net is: four cells, baselines, controls, judges, a verdict, and sheets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan import images
from gan.data.datasets import evenly
from gan.data.triples import Glyphs
from gan.font.ink import inked
from gan.metrics.baselines import Fonts, baselines
from gan.metrics.claims import FIELDS, Verdict, cautions, verdict
from gan.metrics.glyph_evaluation import cells_of
from gan.metrics.glyph_judges import Judged
from gan.metrics.glyphs import (
    CELLS,
    CONTROLS,
    Cells,
    Control,
    Draw,
    Pairs,
    faithful,
    shuffled_reference,
    wrong_prototype,
)
from gan.metrics.judges import TRAINING, Judge
from gan.metrics.report import SHOWN, Report
from gan.metrics.scores import METRICS, Measure, Scores, bootstrap, compare, score, score_pairs
from gan.metrics.tables import LONG, SHORT, body, signed, table
from gan.references import paired as joined

NAME = "W-Net"
WRONG, SHUFFLED = f"{NAME}, wrong prototype", "shuffled reference"
ADAPTED = f"{NAME}, adapted"
FONT = "as a font"
INK = f"{FONT}: drawn as before, with what is grey made ink or paper, as a font's outlines have it."
PAIRED = f"{NAME} sees each reference beside its character in the standard font, in every row."
SEVERAL = 4  # references in the rows beside those of one
AMONG = tuple(cell for cell in CELLS if cell != "validation")
UNSEEN = tuple(cell for cell in AMONG if CELLS[cell][0] == "test")  # styles to adapt to
SECTIONS = {
    "UFUC": "The headline: unseen styles, unseen characters.",
    "SFUC": "Completing a font: seen styles, unseen characters.",
}


def writing(generator: nn.Module, device: torch.device) -> Draw:
    """A W-Net's generator as a function of ink."""

    @torch.no_grad()
    def drawn(prototype: Tensor, references: Tensor, shown: Tensor) -> Tensor:
        given = (prototype, joined(generator, references, shown))
        made = generator(*((1 - 2 * ink).to(device) for ink in given))
        return (1 - made.float().cpu()) / 2

    return drawn


class Adaptation(NamedTuple):
    """How a generator learns references: `learn(shown, references, characters)` gives its like.

    References and what they show in the prototype font are [K, 1, H, W] in [-1, 1], of K characters
    by name. `settings` is what that depends on: so many `steps`, on references while their L1 is
    above `enough`.
    """

    learn: Callable[[Tensor, Tensor, Sequence[str]], nn.Module]
    settings: Mapping[str, Any]


Key = tuple[int, ...]  # a style, a target character, and the references' characters


def glyph_report(
    draws: Mapping[str, Draw],
    dataset: Glyphs,
    judge: Judge,
    device: torch.device,
    adaptation: Adaptation | None = None,
    paired: bool = False,
) -> Report:
    """All that is known of generators of one run, by the name of their weights; the last counts.

    Where there is an `adaptation` of it, the claim is about that one. The report says of `paired`
    generators that they are told which characters the references show.
    """
    cells, characters = cells_of(dataset)
    measure = Judged(judge, characters, device)
    rows = baselines(cells, AMONG, measure)
    *others, chosen = draws
    several = min(SEVERAL, len(cells.references) - 1)
    draw = draws[chosen]
    ways: dict[str, tuple[Draw, dict[str, Any]]] = {
        NAME: (draw, {}),
        f"{NAME}, {FONT}": (lambda *given: inked(draw(*given)), {}),
        f"{NAME}, {several} references": (draw, {"references": several}),
        **{f"{NAME}, {other} weights": (draws[other], {}) for other in others},
        **{f"{NAME}, {name}": (draw, {"control": control}) for name, control in CONTROLS.items()},
    }
    ways[WRONG][1]["measure"] = Judged(judge, characters, device, wrong_prototype)
    for row, (drawing, way) in ways.items():
        rows[row] = score(cells, drawing, among=AMONG, **{"measure": measure, **way})
    names = [dataset.characters[c] for c in characters]
    learnt = Learnt(cells, names, adaptation, device) if adaptation else None
    if learnt:
        rows |= learnt.rows(rows, several, measure)
    also = [learnt.said] if learnt else []
    found, text = told(rows, judge.ceiling, also=also, paired=paired)
    return Report(
        f"How good the {NAME} is",
        found.sentence,
        text,
        _numbers(rows),
        {
            "protocol": {
                **_protocol(dataset, cells, characters, judge, several),
                **({"paired": True} if paired else {}),
            },
            "adaptation": adaptation.settings if adaptation else None,
            "split": _split(dataset),
            "claim": found.claim,
            "tests": {claim: [t._asdict() for t in ts] for claim, ts in found.tests.items()},
            "rows": {row: _facts(scores, dataset) for row, scores in rows.items()},
        },
        {
            f"{cell}. {what} * sees more than a {NAME}.": _sheet(cells, draw, learnt, cell)
            for cell, what in SECTIONS.items()
        },
    )


def told(
    rows: Mapping[str, Scores],
    ceiling: Mapping[str, float],
    seeds: int = 1,
    splits: int = 1,
    also: Iterable[str] = (),
    paired: bool = False,
) -> tuple[Verdict, str]:
    """The claim that rows allow, about the adapted generator if it is among them, and all tables.

    `ceiling` is that of the judges; what is `also` known comes before the differences. `paired`
    generators see references beside their characters.
    """
    name = ADAPTED if ADAPTED in rows else NAME
    found = verdict(rows, name, f"{name}, {SHUFFLED}", ceiling)
    how = "Told which characters its references show. " if paired else ""
    how += "When it has learnt its references by heart: " if name == ADAPTED else ""
    right = ", ".join(f"{judge} {ceiling[field]:.1%}" for judge, field in FIELDS.items())
    sections = [
        table(rows, SHORT, AMONG),
        *(f"{what}\n{body(rows, LONG, [cell])}" for cell, what in SECTIONS.items()),
        "content, style: share that a judge reads as the right character, the right font.\n"
        f"Of held-out real glyphs the judges read rightly: {right}.\n"
        "Shown another character's prototype, it is that one which is read, as it should be, in "
        f"{rows[WRONG].cells['UFUC'].mean('followed'):.1%} of UFUC.",
        *([PAIRED] if paired else []),
        *([INK] if f"{name}, {FONT}" in rows else []),
        *also,
        _differences(rows, name),
        "\n".join(cautions(rows[name], ceiling, seeds, splits)),
    ]
    return replace(found, sentence=how + found.sentence), "\n\n".join(sections)


class Learnt:
    """What a generator draws of pairs in unseen styles when it has learnt the references by heart.

    Every choice of references is learnt once, for all cells and the control together.
    """

    def __init__(
        self, cells: Cells, names: Sequence[str], adaptation: Adaptation, device: torch.device
    ) -> None:
        """`names` are the cells' characters, `device` is where the generator is."""
        self.cells, self.names, self.adaptation, self.device = cells, names, adaptation, device
        self.images: dict[Key, Tensor] = {}

    def rows(
        self, plain: Mapping[str, Scores], several: int, measure: Measure
    ) -> dict[str, Scores]:
        """Scores by row; in seen styles, where nothing is to learn, those of `plain` rows."""
        ways: dict[str, tuple[int, Control, Callable[[Pairs], Tensor]]] = {
            NAME: (1, faithful, self),
            f"{NAME}, {FONT}": (1, faithful, lambda pairs: inked(self(pairs))),
            f"{NAME}, {several} references": (several, faithful, self),
            f"{NAME}, {SHUFFLED}": (1, shuffled_reference, self),
        }
        self._draw(
            control(self.cells, self.cells.pairs(cell, k))
            for k, control, _ in ways.values()
            for cell in UNSEEN
        )
        found = {}
        for row, (k, control, paint) in ways.items():
            new = score_pairs(self.cells, paint, k, control, UNSEEN, measure=measure)
            cells = {**plain[row].cells, **new.cells}
            found[row.replace(NAME, ADAPTED)] = Scores({cell: cells[cell] for cell in AMONG})
        return found

    def __call__(self, pairs: Pairs) -> Tensor:
        """Ink [B, 1, H, W] of pairs that were drawn."""
        return torch.stack([self.images[key] for key in _keys(pairs)])

    def _draw(self, asked: Iterable[Pairs]) -> None:
        wanted: dict[Key, dict[int, None]] = {}
        for pairs in asked:
            for style, character, *shown in _keys(pairs):
                wanted.setdefault((style, *shown), {})[character] = None
        for (style, *shown), targets in tqdm(wanted.items(), desc="adapting", disable=None):
            standard, references, prototypes = (
                (1 - 2 * ink).to(self.device)
                for ink in (
                    self.cells.prototypes(np.array(shown)),
                    self.cells.ink(np.array(style), np.array(shown)),
                    self.cells.prototypes(np.array([*targets])),
                )
            )
            own = self.adaptation.learn(standard, references, [self.names[c] for c in shown])
            given = joined(own, references, standard)
            with torch.no_grad():
                made = own(prototypes, given.expand(len(targets), *given.shape))
            for character, image in zip(targets, (1 - made.float().cpu()) / 2, strict=True):
                self.images[(style, character, *shown)] = image

    @property
    def said(self) -> str:
        """What an adapted generator is, in words."""
        steps, enough = (self.adaptation.settings[name] for name in ("steps", "enough"))
        return (
            "adapted: has learnt the references of an unseen style by heart, told which they are,\n"
            f"in {steps} steps, while their L1 is above {enough:.3f}, that of what it was trained "
            "on;\nbeside them trained characters of the trained styles that are like them.\n"
            "In seen styles it draws as before."
        )


def _keys(pairs: Pairs) -> list[Key]:
    return [
        (int(style), int(character), *map(int, shown))
        for style, character, shown in zip(
            pairs.styles, pairs.characters, pairs.references, strict=True
        )
    ]


def _differences(rows: Mapping[str, Scores], name: str) -> str:
    """The generator less every baseline and control, on UFUC."""
    others = [row for row in rows if row != name]
    wide = max(map(len, others))
    lines = [
        f"{name} minus the row on UFUC, paired by font, 95 % intervals over families",
        f"{'':{wide}}  {'L1 (less is better)':<28}  style (more is better)",
    ]
    for row in others:
        try:
            shown = [signed(compare(rows[name], rows[row], m)) for m in ("l1", "style")]
        except ValueError as error:  # one family
            return f"No intervals: {error}"
        lines.append(f"{row:{wide}}  {shown[0]:<28}  {shown[1]:<28}".rstrip())
    return "\n".join(lines)


def _numbers(rows: Mapping[str, Scores]) -> dict[str, float]:
    """Means of the generator's rows by tag, such as `UFUC/l1` and `ema_weights/UFUC/l1`."""
    numbers = {}
    for row in (row for row in rows if row.startswith(NAME)):
        prefix = row.removeprefix(NAME).lstrip(", ").replace(",", "").replace(" ", "_")
        for tag, value in rows[row].means().items():
            numbers["/".join(filter(None, [prefix, tag]))] = value
    return numbers


def _facts(scores: Scores, dataset: Glyphs) -> dict[str, Any]:
    """A row's means, intervals and values by font, cell by cell."""
    facts = {}
    for name, cell in scores.cells.items():
        several = len(set(cell.families.tolist())) > 1
        facts[name] = {
            "targets": cell.pairs,
            "fonts": [dataset.style_names[style] for style in cell.styles],
            "ink": cell.ink,
            **{
                metric: {
                    "mean": cell.mean(metric),
                    "interval": bootstrap(values, cell.families)[1:] if several else None,
                    "by_font": values,
                }
                for metric, values in cell.values.items()
            },
        }
    return facts


def _protocol(
    dataset: Glyphs, cells: Cells, characters: np.ndarray, judge: Judge, several: int
) -> dict[str, Any]:
    return {
        "size": cells.glyphs.shape[-1],
        "ink": "1 - byte / 255",
        "ssim": "7x7 uniform window, data range 1, as scikit-image",
        "metrics": [*METRICS, *FIELDS, "followed"],
        "prototype": dataset.style_names[dataset.prototype],
        "references": [1, several],
        "reference_characters": [dataset.characters[c] for c in characters[cells.references]],
        "targets_of_a_cell": cells.limit,
        "judges": {
            "trained_on": f"{1 - TRAINING.held_out:.0%} of the measured glyphs, test included",
            "epochs": TRAINING.epochs,
            "held_out_accuracy": dict(judge.ceiling),
        },
        "intervals": "95 %, percentile bootstrap of 2000 draws of whole families, paired by font",
    }


def _split(dataset: Glyphs) -> dict[str, Any]:
    return {
        "styles": {
            part: [dataset.style_names[style] for style in styles]
            for part, styles in asdict(dataset.styles).items()
        },
        "characters": {
            part: "".join(dataset.characters[character] for character in split)
            for part, split in asdict(dataset.split).items()
        },
        "families": dict(zip(dataset.style_names, dataset.families.tolist(), strict=True)),
    }


def _sheet(cells: Cells, draw: Draw, learnt: Learnt | None, cell: str) -> np.ndarray:
    """Prototype, reference, what was drawn, the truth, the nearest font's copy; evenly chosen."""
    every = cells.pairs(cell)
    chosen = evenly(np.arange(len(every)), SHOWN)
    pairs = Pairs(every.styles[chosen], every.characters[chosen], every.references[chosen])
    prototype, references, shown = cells.given(pairs)
    columns = {
        "prototype": prototype,
        "reference": references[:, 0],
        NAME: (drawn := draw(prototype, references, shown)),
        **({ADAPTED: (drawn := learnt(pairs))} if learnt and cell in UNSEEN else {}),
        FONT: inked(drawn),
        "truth": cells.ink(pairs.styles, pairs.characters),
        "nearest font *": Fonts(cells).nearest(pairs),
    }
    return images.table({name: 1 - 2 * ink.clamp(0, 1) for name, ink in columns.items()})
