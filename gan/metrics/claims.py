"""What may be said of a glyph generator after its scores, and no more.

Every test is a difference paired by font whose 95 % interval, over families, must leave 0 out. Over
few families intervals are too narrow: of equal generators one is ahead by chance in 26 % of cases
at 2, 8 % at 5 and 5 % at 13, where 2.5 % are meant. So a claim needs several.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gan.metrics.scores import Interval, Scores, compare
from gan.metrics.tables import FAMILIES, FEW, families, signed

Claim = Literal["generalises", "transfers", "completes", "nothing"]

COPIES = ("prototype copy", "prototype, stroke-matched")
NEAREST = "nearest font *"
FIELDS = {"content": "character", "style": "style"}  # a judged metric, and what its judge reads
SHARE = 0.9  # of its ceiling that the content judge has to reach
LEAST = 6  # families that a claim needs in its own cell
CONFIDENT = 0.95  # below this accuracy on real glyphs a judge is called unreliable


class Need(NamedTuple):
    """One thing that a claim needs: what it is, whether it holds, and the numbers."""

    what: str
    holds: bool
    numbers: str


@dataclass(frozen=True)
class Verdict:
    """The largest claim whose tests all hold, as a sentence, and all tests by claim."""

    claim: Claim
    sentence: str
    tests: Mapping[str, list[Need]]


def verdict(
    rows: Mapping[str, Scores], generator: str, shuffled: str, ceiling: Mapping[str, float]
) -> Verdict:
    """The claim that scores allow a row of the table; `ceiling` is that of the judges, by field.

    - "generalises": on UFUC ahead of both prototype rows and of the nearest font by one reference,
      on L1 and judged style; content at least 0.9 of its ceiling; the shuffled reference worse.
    - "transfers" weight and coarse shape: ahead of the prototype rows, shuffled reference worse.
    - "completes" a font, which is not one-shot: on SFUC ahead of the prototype rows, and content.

    Each needs fonts of LEAST families in that cell.
    """
    ours = rows[generator]
    refused = _too_few(ours)
    if refused:
        return Verdict("nothing", f"Nothing may be claimed: {refused}.", {})

    def ahead(of: Iterable[str], cell: str) -> list[Need]:
        return [_ahead(ours, rows[row], row, m, cell) for row in of for m in ("l1", "style")]

    used = [_worse(rows[shuffled], ours)]
    tests = {
        "generalises": [
            _several(ours, "UFUC"),
            *ahead((*COPIES, NEAREST), "UFUC"),
            _legible(ours, ceiling["character"], "UFUC"),
            *used,
        ],
        "transfers": [_several(ours, "UFUC"), *ahead(COPIES, "UFUC"), *used],
        "completes": [
            _several(ours, "SFUC"),
            *ahead(COPIES, "SFUC"),
            _legible(ours, ceiling["character"], "SFUC"),
        ],
    }
    missing = {claim: [t for t in needed if not t.holds] for claim, needed in tests.items()}
    fonts = f"{len(ours.cells['UFUC'].styles)} test fonts of {_held_out(ours, 'UFUC')} families"
    sentence = {
        "generalises": "It generalises to unseen styles and characters, from one reference each: "
        f"on {fonts} it is ahead of the prototype copy, the stroke-matched prototype and the "
        "nearest font (which sees the test characters) on L1 and judged style, content is judged "
        f"right at {SHARE:.0%} of the ceiling or more, and another font's reference is worse.",
        "transfers": "It transfers weight and coarse shape of an unseen style from one reference, "
        f"no more: on {fonts} it is ahead of the prototype rows and uses the reference. To "
        f"generalise it lacks: {_listed(missing['generalises'])}.",
        "completes": "It completes fonts that it was trained on, which is not one-shot: new "
        "characters of seen styles are ahead of the prototype rows. Nothing may be claimed about "
        f"unseen styles, for lack of: {_listed(missing['transfers'])}.",
        "nothing": "Nothing may be claimed about unseen styles or characters; completing a font "
        f"lacks: {_listed(missing['completes'])}.",
    }
    held: list[Claim] = ["generalises", "transfers", "completes"]
    claim: Claim = next((name for name in held if not missing[name]), "nothing")
    return Verdict(claim, sentence[claim], tests)


def cautions(
    scores: Scores, ceiling: Mapping[str, float], seeds: int = 1, splits: int = 1
) -> list[str]:
    """What weakens any claim: judges that err on real glyphs, few families, one seed or split."""
    found = doubts({name: ceiling[field] for name, field in FIELDS.items()})
    few = _held_out(scores, "UFUC")
    if few < FEW:
        found.append(f"With {few} families held out the intervals are too narrow.")
    if few < LEAST:
        found.append(
            f"Of fewer than {LEAST} nothing is claimed about unseen styles: hold out fonts of more "
            "families, or pool evaluations of other data.split with this one (gan compare --rows)."
        )
    single = " and one ".join(n for n, many in (("seed", seeds), ("split", splits)) if many == 1)
    return [*found, f"One {single}: others may differ by more."] if single else found


def doubts(ceiling: Mapping[str, float], of: str = "glyphs") -> list[str]:
    """A sentence for each judge, by its name, that errs too often on real images."""
    return [
        f"The {name} judge is right about {share:.1%} of held-out real {of}, below "
        f"{CONFIDENT:.0%}: read its shares beside that."
        for name, share in ceiling.items()
        if not share >= CONFIDENT
    ]


def _too_few(scores: Scores) -> str:
    if families(scores) < FAMILIES:
        return f"{families(scores)} families are too few for any held-out claim ({FAMILIES} needed)"
    for name in ("UFUC", "SFUC"):
        if _held_out(scores, name) < 2:
            return f"the fonts of {name} are of one family, which gives no interval"
    return ""


def _held_out(scores: Scores, cell: str) -> int:
    """How many families of fonts there are in a cell."""
    return len(set(scores.cells[cell].families.tolist()))


def _several(ours: Scores, cell: str) -> Need:
    many = _held_out(ours, cell)
    return Need(f"fonts of {LEAST} families or more ({cell})", many >= LEAST, f"{many} there")


def _ahead(ours: Scores, other: Scores, row: str, metric: str, cell: str) -> Need:
    difference = compare(ours, other, metric, cell)
    holds = difference.high < 0 if metric == "l1" else difference.low > 0
    words = {"l1": "L1", "style": "judged style"}[metric]
    return Need(f"ahead of {row.rstrip(' *')} on {words} ({cell})", holds, signed(difference))


def _worse(shuffled: Scores, ours: Scores) -> Need:
    difference: Interval = compare(shuffled, ours, "l1", "UFUC")
    return Need("shuffled reference worse on L1 (UFUC)", difference.low > 0, signed(difference))


def _legible(ours: Scores, ceiling: float, cell: str) -> Need:
    share = ours.cells[cell].mean("content")
    what = f"content judged right at {SHARE:.0%} of the ceiling ({cell})"
    return Need(what, share >= SHARE * ceiling, f"{share:.3f} of {ceiling:.3f}")


def _listed(missing: Iterable[Need]) -> str:
    return "; ".join(f"{test.what}, {test.numbers}" for test in missing)
