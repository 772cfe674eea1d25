import numpy as np
import pytest
import torch
from synthetic_glyphs import CHARACTERS, SIZE, STYLES, make_cells

from gan.data.triples import Split
from gan.metrics import images
from gan.metrics.glyphs import (
    CELLS,
    CONTROLS,
    common_characters,
    constant_reference,
    shuffled_reference,
    wrong_prototype,
)
from gan.metrics.scores import CellScores, Scores, bootstrap, compare, score
from gan.metrics.tables import table


def copy_prototype(prototype, *_):
    return prototype


def copy_reference(_, references, shown):
    return references[:, 0]


def scores_of(l1, families=None):
    """The scores of fonts whose L1 is given, in one cell."""
    l1 = np.asarray(l1, dtype=float)
    families = np.arange(len(l1)) if families is None else np.asarray(families)
    values = {"l1": l1, "ssim": 1 - l1, "sharpness": l1 / 2}
    return Scores({"UFUC": CellScores(np.arange(len(l1)), families, l1 + 0.1, values, 7)})


def test_cells_cross_the_parts_of_both_splits_and_share_no_target():
    cells, seen = make_cells(), set()
    for cell, (style_part, character_part) in CELLS.items():
        pairs = cells.pairs(cell)
        targets = set(zip(pairs.styles.tolist(), pairs.characters.tolist(), strict=True))
        styles, characters = (
            getattr(cells.style_split, style_part),
            getattr(cells.character_split, character_part),
        )
        assert targets == {(s, c) for s in styles.tolist() for c in characters.tolist()}
        assert len(pairs) == len(targets)
        assert not targets & seen
        seen |= targets


@pytest.mark.parametrize("count", [1, 3, 5])
def test_references_are_different_training_characters_and_never_the_target(count):
    cells = make_cells()
    for cell in CELLS:
        pairs = cells.pairs(cell, count)
        assert pairs.references.shape == (len(pairs), count)
        assert np.isin(pairs.references, cells.references).all()
        assert (pairs.references != pairs.characters[:, None]).all()
        assert all(len(set(row)) == count for row in pairs.references.tolist())


def test_one_reference_each_still_uses_the_whole_list():
    cells = make_cells()
    assert set(cells.pairs("UFUC").references[:, 0]) == set(cells.references)


def test_limit_is_shared_evenly_by_fonts_and_what_one_lacks_goes_to_the_others():
    usable = np.ones((STYLES, CHARACTERS), dtype=bool)
    usable[5, 34:] = False  # two of the eight test characters are left
    cells = make_cells(usable=usable, limit=12)
    pairs = cells.pairs("UFUC")
    assert np.unique(pairs.styles, return_counts=True)[1].tolist() == [5, 2, 5]
    assert usable[pairs.styles, pairs.characters].all()
    again = cells.pairs("UFUC")
    assert again.characters.tolist() == pairs.characters.tolist()


def test_limited_cells_cover_the_characters_from_end_to_end():
    pairs = make_cells(limit=30).pairs("UFSC")
    assert len(set(pairs.characters.tolist())) > 20  # of 28, though each font has ten
    assert pairs.characters.min() < 3
    assert pairs.characters.max() > 24


def test_target_that_no_other_training_font_has_is_left_out():
    usable = np.ones((STYLES, CHARACTERS), dtype=bool)
    usable[[0, 2, 4, 6, 8], 3] = False  # of the training fonts only style 9 has it
    cells = make_cells(usable=usable)
    assert 3 not in cells.pairs("SFSC").characters
    assert 3 in cells.pairs("UFSC").characters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": np.zeros(STYLES, int)}, r"families \[0\] are in both train and validation"),
        ({"families": np.arange(3)}, r"families must have the shape \(10,\)"),
        (
            {"character_split": Split(np.arange(28), np.array([28]), np.array([5, 30]))},
            r"characters \[5\] are in both train and test",
        ),
        ({"references": np.array([2, 33])}, r"must be training characters, but \[33\] are not"),
        ({"references": np.array([2, 2])}, "two or more different characters"),
    ],
)
def test_cells_that_would_leak_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_cells(**changes)


def test_reference_that_a_style_lacks_is_refused():
    usable = np.ones((STYLES, CHARACTERS), dtype=bool)
    usable[7, 12] = False
    with pytest.raises(ValueError, match="reference character 12 is not usable in style 7"):
        make_cells(usable=usable)


def test_more_references_than_the_list_allows_are_refused():
    with pytest.raises(ValueError, match="references must be between 1 and 5"):
        make_cells().pairs("UFUC", references=6)


def test_common_characters_are_usable_everywhere_and_evenly_spaced():
    usable = np.ones((3, 12), dtype=bool)
    usable[1, [0, 5]] = False
    found = common_characters(usable, np.array([0, 1]), np.arange(11), count=3)
    assert found.tolist() == [1, 4, 8]  # of 1 2 3 4 6 7 8 9 10
    with pytest.raises(ValueError, match="only 1 of 2 characters"):
        common_characters(usable, np.array([1, 2]), np.array([0, 1]))


def test_score_is_the_mean_over_fonts_of_means_over_their_targets():
    usable = np.ones((STYLES, CHARACTERS), dtype=bool)
    usable[5, 34:] = False
    cells = make_cells(usable=usable)
    scores = score(cells, copy_prototype, among=["UFUC"], batch=5).cells["UFUC"]
    ink, prototype = 1 - cells.glyphs / 255, 1 - cells.prototype / 255
    by_font = [
        np.mean([np.abs(ink[s, c] - prototype[c]).mean() for c in range(32, 40) if usable[s, c]])
        for s in (1, 5, 7)
    ]
    assert scores.styles.tolist() == [1, 5, 7]
    assert scores.pairs == 18
    np.testing.assert_allclose(scores.values["l1"], by_font, rtol=1e-5)
    assert scores.mean("l1") == pytest.approx(np.mean(by_font))
    assert scores.ink[0] == pytest.approx(ink[1, 32:].mean())


def test_every_metric_is_averaged_from_its_values_per_sample():
    cells = make_cells()
    means = score(cells, copy_prototype, among=["validation"]).means()
    truth, prototype = (
        cells.ink(np.array([3]), np.arange(28, 32)),
        cells.prototypes(np.arange(28, 32)),
    )
    for name in ("l1", "rmse", "ssim", "pdar", "l1_per_ink", "sharpness"):
        expected = getattr(images, name)(prototype, truth).mean().item()
        assert means[f"validation/{name}"] == pytest.approx(expected, rel=1e-5)


def test_drawing_the_truth_is_perfect():
    cells = make_cells()
    perfect = make_cells(glyphs=np.repeat(cells.prototype[None], STYLES, 0))
    means = score(perfect, copy_prototype).means()
    for tag, value in means.items():
        assert value == pytest.approx(float(tag.endswith(("ssim", "sharpness"))), abs=1e-5)


def test_generator_is_given_prototype_references_of_its_style_and_what_they_show():
    cells, seen = make_cells(), []

    def draw(prototype, references, shown):
        seen.append((prototype, references, shown))
        return prototype

    score(cells, draw, references=4, among=["UFSC"], batch=1000)
    pairs = cells.pairs("UFSC", 4)
    prototype, references, shown = seen[0]
    assert references.shape == (84, 4, 1, SIZE, SIZE)
    for i in (0, 41, 83):
        torch.testing.assert_close(
            prototype[i, 0].numpy(), 1 - cells.prototype[pairs.characters[i]] / np.float32(255)
        )
        expected = cells.glyphs[pairs.styles[i], pairs.references[i, 3]]
        np.testing.assert_allclose(references[i, 3, 0], 1 - expected / 255, atol=1e-6)
        standard = cells.prototype[pairs.references[i, 3]]
        np.testing.assert_allclose(shown[i, 3, 0], 1 - standard / 255, atol=1e-6)


def test_draw_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"draw must return the shape \[8, 1, 16, 16\]"):
        score(make_cells(), lambda p, *_: p[:, 0], among=["UFUC"], batch=8)


@pytest.mark.parametrize("cell", ["SFSC", "UFUC"])
def test_shuffled_reference_is_another_font_of_another_family_and_each_font_once(cell):
    cells = make_cells()
    pairs = cells.pairs(cell)
    shown = shuffled_reference(cells, pairs)
    assert (cells.families[shown.styles] != cells.families[pairs.styles]).all()
    taken = dict(zip(pairs.styles.tolist(), shown.styles.tolist(), strict=True))
    assert sorted(taken.values()) == sorted(taken)
    assert shown.characters is pairs.characters
    assert shown.references is pairs.references


def test_shuffling_needs_two_fonts():
    cells = make_cells()
    with pytest.raises(ValueError, match="at least two fonts"):
        shuffled_reference(cells, cells.pairs("validation"))


def test_constant_reference_is_one_training_font():
    cells = make_cells()
    shown = constant_reference(cells, cells.pairs("UFUC"))
    assert len(set(shown.styles)) == 1
    assert shown.styles[0] in cells.style_split.train


def test_wrong_prototype_is_never_the_target():
    cells = make_cells()
    pairs = cells.pairs("UFUC")
    shown = wrong_prototype(cells, pairs)
    assert (shown.characters != pairs.characters).all()
    assert set(shown.characters) == set(pairs.characters)
    assert shown.styles is pairs.styles


def test_controls_change_exactly_the_input_they_are_named_for():
    cells = make_cells()

    def l1(draw, **options):
        return score(cells, draw, among=["UFUC"], **options).means()["UFUC/l1"]

    for name, control in CONTROLS.items():
        ignores_reference = l1(copy_prototype, control=control) == l1(copy_prototype)
        ignores_prototype = l1(copy_reference, control=control) == l1(copy_reference)
        assert ignores_reference == (name != "wrong prototype")
        assert ignores_prototype == (name == "wrong prototype")
    assert l1(copy_prototype, control=wrong_prototype) > 1.5 * l1(copy_prototype)


def test_bootstrap_interval_holds_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(3)
    intervals = [bootstrap(rng.normal(size=25), np.arange(25), 300, seed) for seed in range(400)]
    held = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.90 <= held <= 0.98


def test_bootstrap_draws_families_whole():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 10)
    families = np.repeat(np.arange(4), 10)
    together = bootstrap(values, families)
    alone = bootstrap(values, np.arange(40))
    assert together.mean == alone.mean == 1.5
    four = bootstrap(np.arange(4.0), np.arange(4))
    assert together == pytest.approx(four)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_bootstrap_counts_fonts_and_not_families():
    sizes = np.tile([9, 1], 10)  # families of nine fonts at 0, others of one font at 1
    values = np.repeat(np.tile([0.0, 1.0], 10), sizes)
    interval = bootstrap(values, np.repeat(np.arange(20), sizes))
    assert interval.mean == pytest.approx(0.1)
    assert 0 < interval.low < 0.1 < interval.high < 0.3


def test_interval_from_one_family_is_refused():
    with pytest.raises(ValueError, match="families must hold at least two, not 1"):
        bootstrap(np.zeros(3), np.zeros(3))


def test_comparison_is_paired_by_font():
    l1 = np.random.default_rng(0).uniform(size=12)
    assert compare(scores_of(l1), scores_of(l1 + 0.01)) == pytest.approx((-0.01,) * 3)
    unpaired = bootstrap(l1, np.arange(12))
    assert unpaired.high - unpaired.low > 0.1


def test_scores_of_other_fonts_are_not_compared():
    with pytest.raises(ValueError, match="of the same fonts in UFUC"):
        compare(scores_of([0.1, 0.2]), scores_of([0.1, 0.2, 0.3]))


def test_table_shows_the_four_cells_and_the_ink():
    lines = table({"prototype copy": score(make_cells(), copy_prototype)}).splitlines()
    means = score(make_cells(), copy_prototype).means()
    assert [name in lines[0] for name in CELLS] == [True] * 4 + [False]
    row = lines[3].split("|")
    for cell, entry in zip(("SFSC", "SFUC", "UFSC", "UFUC"), row[1:], strict=True):
        values = [means[f"{cell}/{metric}"] for metric in ("l1", "ssim", "sharpness")]
        assert [float(x) for x in entry.split()] == pytest.approx(values, abs=5e-4)
    assert max(map(len, lines)) <= 110
    assert "UFUC: 24 targets, 3 fonts, 3 families, mean ink" in "\n".join(lines)


def test_legend_explains_stars_and_warns_of_few_families():
    plain, starred = table({"ours": scores_of([0.1] * 8)}), table({"mean *": scores_of([0.1] * 8)})
    assert "* sees more" in starred
    assert "*" not in plain
    assert "too few" not in plain
    assert "Only 7 families" in table({"ours": scores_of([0.1] * 7)})
