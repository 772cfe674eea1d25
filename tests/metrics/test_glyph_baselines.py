import numpy as np
import pytest
import torch
from synthetic_glyphs import CHARACTERS, STYLES, make_cells, write
from torch.utils._python_dispatch import TorchDispatchMode

from gan.metrics import baselines as module
from gan.metrics.baselines import Fonts, Strokes, _stroke_weights, baselines
from gan.metrics.glyphs import Pairs
from gan.metrics.scores import score_pairs

TRAIN = [0, 2, 4, 6, 8, 9]


def with_test_style(glyphs):
    """Cells whose three test styles all look like this."""
    cells = make_cells()
    changed = cells.glyphs.copy()
    changed[[1, 5, 7]] = glyphs
    return make_cells(glyphs=changed)


def one_pair(style, character, *references):
    return Pairs(np.array([style]), np.array([character]), np.array([references]))


def means_of(cells, draw, cell="UFUC", references=1):
    return score_pairs(cells, draw, references, among=[cell]).cells[cell]


def test_blank_page_and_prototype_rows_are_what_they_say():
    cells = make_cells()
    rows = baselines(cells, among=["UFUC"])
    blank, copy = rows["blank page"].cells["UFUC"], rows["prototype copy"].cells["UFUC"]
    np.testing.assert_allclose(blank.values["l1"], blank.ink, rtol=1e-5)
    np.testing.assert_allclose(blank.values["l1_per_ink"], 1, rtol=1e-5)
    assert blank.mean("sharpness") == 0
    difference = np.abs(cells.glyphs[[1, 5, 7], 32:].astype(float) - cells.prototype[32:]) / 255
    np.testing.assert_allclose(copy.values["l1"], difference.mean((1, 2, 3)), rtol=1e-5)


def test_every_row_is_scored_in_every_cell_and_looking_closer_never_hurts():
    rows = baselines(make_cells())
    assert [name.endswith("*") for name in rows] == [False] * 3 + [True] * 6
    assert "nearest font, 5 references *" in rows
    assert all(list(scores.cells) == [*rows["blank page"].cells] for scores in rows.values())
    l1 = {name: scores.means()["UFUC/l1"] for name, scores in rows.items()}
    assert l1["nearest font to the truth *"] == min(
        l1[name] for name in l1 if name.startswith("nearest")
    )
    assert l1["mean glyph *"] > l1["nearest font *"]


def test_mean_glyph_is_the_mean_of_usable_training_fonts_but_the_targets_own():
    usable = np.ones((STYLES, CHARACTERS), dtype=bool)
    usable[4, 33] = False
    cells = make_cells(usable=usable)
    ink, fonts = 1 - cells.glyphs / 255, Fonts(cells)
    unseen, seen = fonts.mean(one_pair(1, 33, 2)), fonts.mean(one_pair(6, 33, 2))
    np.testing.assert_allclose(unseen[0, 0], ink[[0, 2, 6, 8, 9], 33].mean(0), atol=1e-6)
    np.testing.assert_allclose(seen[0, 0], ink[[0, 2, 8, 9], 33].mean(0), atol=1e-6)


def test_nearest_font_finds_a_twin():
    cells = make_cells()
    twin = np.clip(cells.glyphs[8].astype(int) + 9, 0, 255).astype(np.uint8)
    cells = with_test_style(twin)
    fonts = Fonts(cells)
    for draw in (fonts.nearest, fonts.oracle):
        drawn = draw(cells.pairs("UFUC"))
        torch.testing.assert_close(drawn, cells.ink(np.array([8]), cells.pairs("UFUC").characters))


def test_nearest_font_is_chosen_on_all_references():
    cells = make_cells()
    style = cells.glyphs[8].copy()
    style[2] = cells.glyphs[0, 2]  # the first reference alone points to another font
    cells = with_test_style(style)
    fonts = Fonts(cells)
    one, many = fonts.nearest(one_pair(1, 35, 2)), fonts.nearest(one_pair(1, 35, 2, 7, 12))
    torch.testing.assert_close(one, cells.ink(np.array([0]), np.array([35])))
    torch.testing.assert_close(many, cells.ink(np.array([8]), np.array([35])))


def test_seen_font_is_never_its_own_nearest():
    cells = make_cells()
    fonts = Fonts(cells)
    assert (means_of(cells, fonts.oracle, "SFSC").values["l1"] > 0.005).all()
    pairs = cells.pairs("SFUC")
    for i, allowed in enumerate(cells.candidates(pairs)):
        assert np.array(TRAIN)[~allowed].tolist() == [pairs.styles[i]]


def test_glyph_that_a_training_font_lacks_is_never_used():
    cells = make_cells()
    usable, glyphs = cells.usable.copy(), cells.glyphs.copy()
    usable[4, 33], glyphs[4, 33] = False, 0  # a black square
    fonts = Fonts(make_cells(usable=usable, glyphs=glyphs))
    pair = one_pair(5, 33, 2)  # its pen lies between those of 4 and 6
    for draw in (fonts.mean, fonts.nearest, fonts.oracle, fonts.ridge):
        assert draw(pair)[0, 0, 0, 0] < 0.01


def test_ridge_weights_solve_the_regression():
    cells = make_cells()
    pair, penalty = one_pair(5, 35, 7, 22), 0.02
    ink = (1 - cells.glyphs / 255).reshape(STYLES, CHARACTERS, -1)
    pixels = ink.shape[-1]
    columns = ink[TRAIN][:, [7, 22]].reshape(len(TRAIN), -1).T  # [2 * pixels, fonts]
    rows = np.vstack([columns / pixels**0.5, penalty**0.5 * np.eye(len(TRAIN))])
    mean = np.full(len(TRAIN), 1 / len(TRAIN))
    goal = np.concatenate([ink[5, [7, 22]].ravel() / pixels**0.5, penalty**0.5 * mean])
    weights = np.linalg.lstsq(rows, goal)[0]
    expected = (weights @ ink[TRAIN, 35]).clip(0, 1)
    drawn = Fonts(cells).ridge(pair, penalty)
    np.testing.assert_allclose(drawn.flatten(), expected, atol=1e-4)


def test_ridge_weights_are_those_of_the_summed_references():
    cells = make_cells()
    fonts, pairs, penalty = Fonts(cells), cells.pairs("SFUC", 4), 0.01
    use = torch.from_numpy(cells.candidates(pairs)).float()
    place = fonts.place[pairs.references]
    squares = fonts.squares[place].sum(1) * use[:, :, None] * use[:, None]  # [M, J, J]
    products = fonts.products[place, pairs.styles[:, None]].sum(1) * use
    goal = products + penalty * use / use.sum(1, keepdim=True)
    weights = torch.linalg.solve(squares + penalty * torch.eye(len(TRAIN)), goal)
    targets = cells.ink(np.array(TRAIN), pairs.characters[:, None])
    expected = torch.einsum("mj,mjchw->mchw", weights, targets).clamp(0, 1)
    torch.testing.assert_close(fonts.ridge(pairs, penalty), expected, rtol=1e-5, atol=1e-5)
    repeated = one_pair(5, 35, 7, 7)
    torch.testing.assert_close(fonts.ridge(repeated, 0.02), fonts.ridge(one_pair(5, 35, 7), 0.01))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("name", ["mean", "oracle", "ridge"])
def test_no_table_of_pairs_and_fonts_outgrows_its_bound(name, monkeypatch):
    cells = make_cells(glyphs=make_cells().glyphs[..., ::8, ::8], prototype=np.zeros((40, 2, 2)))
    pairs = cells.pairs("SFUC", 5)
    whole = getattr(Fonts(cells), name)(pairs)
    bound = 300  # 48 pairs have 1152 numbers of all fonts' targets, and 8640 of their references
    monkeypatch.setattr(module, "FLOATS", bound)
    fonts = Fonts(cells)
    with Largest() as largest:
        parts = getattr(fonts, name)(pairs)
    assert largest.numbers <= bound
    torch.testing.assert_close(parts, whole)


def test_ridge_blend_reproduces_a_blend():
    cells = make_cells()
    blend = 0.3 * cells.glyphs[0] + 0.7 * cells.glyphs[6]
    cells = with_test_style(np.round(blend).astype(np.uint8))
    fonts = Fonts(cells)
    blended = means_of(cells, lambda pairs: fonts.ridge(pairs, 1e-5)).mean("l1")
    assert blended < 0.01 < 0.02 < means_of(cells, fonts.nearest).mean("l1")


def test_strong_penalty_leaves_the_mean_glyph():
    fonts, pair = Fonts(make_cells()), one_pair(5, 35, 7)
    torch.testing.assert_close(fonts.ridge(pair, 1e4), fonts.mean(pair), rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [1.2, pytest.param(3.2, marks=pytest.mark.slow)])
def test_stroke_matching_beats_the_copy_of_a_thinner_or_thicker_prototype(width):
    cells = with_test_style(write(width))
    matched = means_of(cells, Strokes(cells).matched)
    copied = means_of(cells, lambda pairs: cells.prototypes(pairs.characters))
    assert (matched.values["l1"] < 0.5 * copied.values["l1"]).all()
    assert (matched.values["ssim"] > copied.values["ssim"]).all()


def test_stroke_matching_gives_the_references_the_ink_they_have():
    cells = with_test_style(write(2.6))
    strokes = Strokes(cells)
    drawn = strokes.matched(one_pair(1, 7, 7))  # the reference in place of the target
    wanted = cells.ink(np.array([1]), np.array([7]))
    assert drawn.mean().item() == pytest.approx(wanted.mean().item(), rel=1e-3)


def test_stroke_matching_a_style_of_the_prototypes_weight_changes_little():
    cells = with_test_style(write(2.0))
    assert means_of(cells, Strokes(cells).matched).mean("l1") < 0.02


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_step_of_stroke_weights_is_as_large_a_share_at_every_size(size):
    bar = torch.zeros(1, 1, size, size)
    bar[..., 3 * size // 8 : 5 * size // 8] = 1
    widths = _stroke_weights(bar)[:, 0, size // 2].sum(1) / size
    expected = 0.25 + torch.arange(-6, 7) / 64  # both edges by 1/128 of the side
    torch.testing.assert_close(widths, expected, rtol=0, atol=2e-3)


def test_stroke_weights_rise_and_end_at_the_thickest():
    cells = with_test_style(np.zeros_like(write(2.0)))
    strokes = Strokes(cells, among=["UFUC"])
    inks = strokes.weights.mean((1, 2, 3))
    assert (inks.diff() > 0).all()
    drawn = strokes.matched(one_pair(1, 35, 7))
    torch.testing.assert_close(drawn[0, 0], strokes.weights[-1, strokes.place[35]])
