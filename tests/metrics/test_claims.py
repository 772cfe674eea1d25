import itertools

import numpy as np
import pytest

from gan.metrics.claims import cautions, verdict
from gan.metrics.scores import CellScores, Scores

COPY, MATCHED, NEAREST = "prototype copy", "prototype, stroke-matched", "nearest font *"
CEILING = {"character": 0.98, "style": 0.96}
FONTS = 10
ROWS = {  # l1, style, content: what a good generator is ahead of
    COPY: (0.20, 0.0, 1.0),
    MATCHED: (0.19, 0.1, 1.0),
    NEAREST: (0.16, 0.1, 1.0),
    "shuffled": (0.21, 0.0, 0.9),
    "ours": (0.12, 0.7, 0.95),
}


def scores_of(values, families=FONTS, unseen=None):
    """Scores of ten seen and ten unseen fonts that differ a little from font to font.

    They are of so many `families` each, the unseen ones of another number if it is given.
    """
    noise = np.random.default_rng(len(values)).normal(scale=0.01, size=FONTS)
    cells = {}
    for place, cell in enumerate(("SFUC", "UFUC")):
        l1, style, content = values[cell]
        metrics = {
            "l1": l1 + noise,
            "style": np.full(FONTS, style),
            "content": np.full(FONTS, content),
        }
        many = unseen if cell == "UFUC" and unseen else families
        named = np.arange(FONTS) % many + place * 100
        cells[cell] = CellScores(np.arange(FONTS), named, l1 + 0 * noise, metrics, 50)
    return Scores(cells)


def judged(changes=None, **families):
    """The verdict on a good generator, but for changes by (row, cell)."""
    changes = changes or {}
    rows = {
        row: scores_of(
            {cell: changes.get((row, cell), values) for cell in ("SFUC", "UFUC")}, **families
        )
        for row, values in ROWS.items()
    }
    return verdict(rows, "ours", "shuffled", CEILING)


def test_everything_that_it_needs_makes_the_largest_claim():
    found = judged()
    assert found.claim == "generalises"
    assert "10 test fonts of 10 families" in found.sentence
    assert all(test.holds for tests in found.tests.values() for test in tests)
    assert len(found.tests["generalises"]) == 3 * 2 + 3


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ((NEAREST, (0.11, 0.1, 1.0)), "ahead of nearest font on L1 (UFUC)"),
        ((NEAREST, (0.16, 0.7, 1.0)), "ahead of nearest font on judged style (UFUC)"),
        (("ours", (0.12, 0.7, 0.85)), "content judged right at 90% of the ceiling"),
    ],
)
def test_each_lack_of_generality_leaves_the_transfer_of_weight_and_is_named(change, lacking):
    row, values = change
    found = judged({(row, "UFUC"): values})
    assert found.claim == "transfers"
    assert lacking in found.sentence
    assert "weight and coarse shape" in found.sentence


@pytest.mark.parametrize(
    ("row", "values", "lacking"),
    [
        (COPY, (0.11, 0.0, 1.0), "ahead of prototype copy on L1"),
        (MATCHED, (0.19, 0.9, 1.0), "ahead of prototype, stroke-matched on judged style"),
        ("shuffled", (0.11, 0.7, 1.0), "shuffled reference worse on L1"),
    ],
)
def test_without_the_prototype_rows_or_the_reference_only_fonts_are_completed(row, values, lacking):
    found = judged({(row, "UFUC"): values})
    assert found.claim == "completes"
    assert "not one-shot" in found.sentence
    assert lacking in found.sentence


@pytest.mark.parametrize(
    ("row", "values"),
    [(MATCHED, (0.1, 0.1, 1.0)), (COPY, (0.2, 0.9, 1.0)), ("ours", (0.12, 0.7, 0.5))],
)
def test_nothing_is_claimed_of_what_completes_no_font_either(row, values):
    found = judged({(COPY, "UFUC"): (0.11, 0.0, 1.0), (row, "SFUC"): values})
    assert found.claim == "nothing"
    assert found.sentence.startswith("Nothing may be claimed")
    assert "(SFUC)" in found.sentence


def test_an_interval_that_holds_zero_is_no_advance():
    values = dict.fromkeys(("SFUC", "UFUC"), (0.12, 0.7, 0.95))
    rows = {row: scores_of(dict.fromkeys(values, ROWS[row])) for row in ROWS}
    spread = np.tile([0.3, -0.28], FONTS // 2)  # ahead on the mean, by fonts that disagree
    rows[NEAREST].cells["UFUC"].values["l1"][:] = rows["ours"].cells["UFUC"].values["l1"] + spread
    assert rows[NEAREST].cells["UFUC"].mean("l1") > rows["ours"].cells["UFUC"].mean("l1")
    assert verdict(rows, "ours", "shuffled", CEILING).claim == "transfers"


def test_few_families_and_a_single_held_out_one_allow_nothing():
    few = judged(families=3)
    assert few.claim == "nothing"
    assert "6 families are too few" in few.sentence
    alone = judged(unseen=1)
    assert alone.claim == "nothing"
    assert "UFUC are of one family" in alone.sentence


def test_a_claim_needs_six_families_in_its_own_cell_and_says_how_many_there_are():
    assert judged(families=6).claim == "generalises"
    few = judged(unseen=5)
    assert few.claim == "completes"
    assert "for lack of: fonts of 6 families or more (UFUC), 5 there." in few.sentence
    assert sum(not test.holds for test in few.tests["generalises"]) == 1  # the intervals are kept
    assert judged(families=5, unseen=6).claim == "generalises"
    both = judged(families=5)
    assert both.claim == "nothing"
    assert "lacks: fonts of 6 families or more (SFUC), 5 there." in both.sentence


def test_no_larger_claim_holds_where_a_smaller_one_fails():
    order = ["nothing", "completes", "transfers", "generalises"]
    worse = {COPY: (0.1, 0.9, 1.0), MATCHED: (0.1, 0.9, 1.0), NEAREST: (0.1, 0.9, 1.0)}
    claims = {
        lost: order.index(judged({(row, "UFUC"): worse[row] for row in lost}).claim)
        for many in range(4)
        for lost in itertools.combinations(worse, many)
    }
    for some, more in itertools.product(claims, claims):
        assert claims[some] >= claims[more] or not {*some} <= {*more}


def test_judges_below_95_percent_and_few_families_are_told():
    scores = scores_of(dict.fromkeys(("SFUC", "UFUC"), (0.1, 0.5, 0.9)), families=4)
    told = "\n".join(cautions(scores, {"character": 0.96, "style": 0.818}))
    assert "The style judge is right about 81.8%" in told
    assert "content judge" not in told
    assert "4 families held out" in told
    assert "Of fewer than 6 nothing is claimed about unseen styles" in told
    six = scores_of(dict.fromkeys(("SFUC", "UFUC"), (0.1, 0.5, 0.9)), families=6)
    assert "nothing is claimed" not in "\n".join(cautions(six, CEILING))
    assert "too narrow" not in "\n".join(
        cautions(scores_of(dict.fromkeys(("SFUC", "UFUC"), (0.1, 0.5, 0.9))), CEILING)
    )
