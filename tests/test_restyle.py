"""Styles made from real ones, shared by a sample's glyphs, and characters made of two."""

import pytest
import torch
from torch.nn.functional import cross_entropy, max_pool2d

from gan import restyle
from gan.build import build
from gan.orientations import ORIENTATIONS, oriented, upright
from gan.restyle import bent, extremes, hollowed, mixed, restyled, spliced, turned

KINDS = {
    "SLANT": 0.0,
    "SCALE": 0.0,
    "BEND": 0.0,
    "ROUGH": 0.0,
    "WEIGHT": (0.0, 0.0),
    "CONTRAST": 0.0,
}


@pytest.fixture
def cross():
    """Four samples of three equal glyphs: a cross of two strokes, black on white."""
    image = torch.ones(32, 32)
    image[15:17, 6:26] = image[6:26, 15:17] = -1
    return image.expand(4, 3, 1, 32, 32).clone()


@pytest.fixture
def only(monkeypatch):
    """Leave one kind of change, in every sample."""

    def left(**kinds):
        monkeypatch.setattr(restyle, "OFTEN", 1.0)
        for name, amount in {**KINDS, **kinds}.items():
            monkeypatch.setattr(restyle, name, amount)

    return left


@pytest.fixture
def two_references(tiny):
    """A batch with two references to a target, and the recipe that it is for."""
    trainer = build(tiny("wnet", "data.references=2"))
    batch = next(trainer.stream)
    trainer.stream.close()
    return batch, trainer.recipe


def halves(*edges, height=32, width=24):
    """Samples of three glyphs [B, 3, 1, H, W] that are black left of a column."""
    column = torch.arange(width)
    ink = torch.stack([(column < edge).float() for edge in edges])
    return (1 - 2 * ink)[:, None, None, None].expand(-1, 3, 1, height, width)


def test_a_sample_shares_its_change_and_samples_do_not(cross):
    torch.manual_seed(0)
    before = cross.clone()
    glyphs, made = restyled(cross, 1.0)
    assert torch.equal(cross, before)
    assert glyphs.shape == cross.shape
    assert made.tolist() == [True] * 4
    for sample in glyphs:
        assert torch.allclose(sample, sample[:1].expand_as(sample), atol=1e-6)
    assert all((glyphs[0] - glyphs[n]).abs().max() > 0.1 for n in range(1, 4))
    assert -1 <= glyphs.min() < -0.2
    assert glyphs.max() == 1
    torch.manual_seed(0)
    assert torch.equal(restyled(cross, 1.0)[0], glyphs)


@pytest.mark.parametrize("change", ["restyled", "hollowed", "mixed", "spliced"])
def test_a_share_of_the_samples_is_changed_and_said_to_be(change):
    torch.manual_seed(0)
    glyphs, others = torch.rand(2, 600, 3, 1, 8, 8) * 2 - 1

    def changed(share):
        if change == "spliced":
            *images, made = spliced(glyphs[:, 0], glyphs[:, 1], others[:, :2], share)
            return torch.stack(images, 1), glyphs[:, :2], made
        alone = {"restyled": restyled, "hollowed": hollowed}
        given = (glyphs,) if change in alone else (glyphs, others)
        images, made = alone.get(change, mixed)(*given, share)
        return images, glyphs, made

    images, before, made = changed(0.25)
    assert made.shape == (600,)
    assert 0.2 < made.float().mean() < 0.3
    same = (images == before).flatten(1).all(1)
    assert same[~made].all()
    assert same[made].float().mean() < 0.06  # a restyled one may be left without any kind of change
    assert torch.equal(changed(0.0)[0], before)


def test_without_any_change_the_glyphs_come_back(cross, only):
    only()
    assert torch.allclose(restyled(cross, 1.0)[0], cross, atol=1e-4)


def test_every_kind_of_change_is_left_out_of_some_samples(cross, monkeypatch):
    for name, none in KINDS.items():
        monkeypatch.setattr(restyle, name, none)
    monkeypatch.setattr(restyle, "WEIGHT", (0.5, 0.5))
    torch.manual_seed(0)
    glyphs, _ = restyled(cross[:1].expand(400, 3, 1, 32, 32), 1.0)
    changed = (glyphs - cross[:1]).abs().flatten(1).amax(1) > 0.1
    assert 0.4 < changed.float().mean() < 0.6


@pytest.mark.parametrize(("weight", "width"), [(1.0, 4.0), (0.5, 3.0), (0.0, 2.0), (-0.5, 1.0)])
def test_weight_moves_both_edges_by_pixels(cross, only, weight, width):
    only(WEIGHT=(weight, weight))
    ink = (1 - restyled(cross, 1.0)[0]) / 2
    upright = ink[:, :, :, 9].sum(-1)  # a row that only the upright stroke crosses
    level = ink[:, :, :, :, 9].sum(-1)
    assert torch.allclose(upright, torch.full_like(upright, width), atol=1e-3)
    assert torch.allclose(level, torch.full_like(level, width), atol=1e-3)


def test_contrast_thickens_upright_strokes_as_it_thins_level_ones(cross, only):
    only(CONTRAST=0.4)
    torch.manual_seed(0)
    ink = (1 - restyled(cross[:1].expand(100, 3, 1, 32, 32), 1.0)[0][:, 0, 0]) / 2
    upright, level = ink[:, 9].sum(1), ink[:, :, 9].sum(1)
    assert torch.allclose(upright + level, torch.full_like(level, 4.0), atol=1e-3)
    assert 1.2 <= upright.min() < 1.4
    assert 2.6 < upright.max() <= 2.8  # 2 pixels and both edges by 0.4 at most


@pytest.mark.parametrize(("name", "amount"), [("SLANT", 0.25), ("SCALE", 0.15)])
def test_slant_and_scale_keep_to_their_bounds(cross, only, name, amount):
    only(**{name: amount})
    torch.manual_seed(0)
    ink = (1 - restyled(cross[:1].expand(300, 3, 1, 32, 32), 1.0)[0][:, 0, 0]) / 2
    column = torch.arange(32.0)

    def middle(row):
        return (ink[:, row] * column).sum(1) / ink[:, row].sum(1)

    lean = middle(10) - middle(21)  # over 11 rows, the stroke's place
    length = (ink[:, 15:17] > 0.25).any(1).sum(1)  # of the level stroke, 20 pixels
    if name == "SLANT":
        assert 0.8 * 11 * amount < lean.abs().max() <= 11 * amount + 0.1
        assert lean.min() < 0 < lean.max()
    else:
        assert lean.abs().max() < 0.2
        assert 17 <= length.min() < 19
        assert 21 < length.max() <= 24


@pytest.mark.parametrize(("name", "most"), [("BEND", 0.05), ("ROUGH", 0.02)])
def test_places_move_no_farther_than_their_bounds(only, name, most):
    """The place that a pixel comes from; the side is 2 long, and a bicubic surface overshoots."""
    only(**{name: most})
    torch.manual_seed(0)
    still = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, 32, 32], False)
    moved = restyle._warps(200, [32, 32], torch.device("cpu")) - still
    assert 0.7 * 2 * most < moved.abs().max() < 1.3 * 2 * most
    near = (moved[:, 1:] - moved[:, :-1]).abs().max() / moved.abs().max()
    assert near < 0.3 if name == "BEND" else near > 0.5  # with a fourth of the glyph, or alone


def test_a_mixture_of_two_edges_lies_between_them():
    """Ink left of column a and of column b: left of (1 - t) a + t b, and nearly as sharp."""
    torch.manual_seed(0)
    a, b = halves(*[10] * 50), halves(*[12] * 50)
    glyphs, _ = mixed(a, b, 1.0)
    torch.manual_seed(0)
    torch.rand(50)  # who is mixed
    expected = 10 + 2 * torch.rand(50)
    ink = (1 - glyphs).div(2)
    assert torch.allclose(ink.sum((2, 3, 4)) / 32, expected[:, None].expand(-1, 3), atol=0.02)
    width = ink.sum(-1)[:, 0, 0, 8:24]  # away from the upper and lower edge
    assert torch.allclose(width, expected[:, None].expand_as(width), atol=0.25)
    grey = ((ink > 0.1) & (ink < 0.9)).sum(-1)[:, 0, 0, 8:24]
    assert grey.max() <= 2


@pytest.mark.parametrize("wrong", ["", "mean of pixels", "fixed level"])
def test_a_mixture_keeps_the_ink_of_both_and_is_no_grey_mean(monkeypatch, wrong):
    """Lines of one pixel: a fixed level leaves none of them, a mean of pixels shows all in grey."""
    monkeypatch.setattr(restyle.draws, "uniform", lambda n, *s, **k: torch.full((n, *s), 0.25))
    a, b = torch.ones(2, 2, 3, 1, 32, 24)
    a[..., 10, :] = a[..., 20, :] = -1
    b[..., 11, :] = b[..., 19, :] = b[..., 22, :] = b[..., 5, :] = -1
    glyphs, made = mixed(a, b, 1.0)
    mean = (0.75 * (1 - a) + 0.25 * (1 - b)) / 2
    ink = {
        "": (1 - glyphs) / 2,
        "mean of pixels": mean,
        "fixed level": (restyle._blurred(mean.flatten(0, 1), 1.0) > 0.5).float().view_as(mean),
    }[wrong]
    expected = torch.full((2, 3, 1), 0.75 * 2 / 32 + 0.25 * 4 / 32)
    kept = torch.allclose(ink.mean((3, 4)), expected, rtol=0.01)
    white = ink[:, :, :, [5], 12].max() < 0.01  # a stroke of the lesser font that meets none
    assert made.all()
    assert (kept and white) == (not wrong)


def test_a_glyph_mixed_with_itself_keeps_its_edges():
    torch.manual_seed(0)
    glyphs = halves(7, 10, 15)
    again, _ = mixed(glyphs, glyphs, 1.0)
    assert torch.equal((again > 0)[..., 4:28, :], (glyphs > 0)[..., 4:28, :])


@pytest.mark.parametrize(("dim", "window"), [(2, (3, 1)), (3, (1, 3))])
def test_extremes_are_those_of_three_neighbours_within_the_border(dim, window):
    ink = torch.randn(2, 3, 5, 7)
    around = window[0] // 2, window[1] // 2
    least, most = extremes(ink, dim)
    assert torch.equal(most, max_pool2d(ink, window, 1, around))
    assert torch.equal(least, -max_pool2d(-ink, window, 1, around))


def test_a_blur_is_the_gaussian_of_its_deviation():
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    soft = restyle._blurred(point, 2.0)[0, 0]
    assert soft.sum() == pytest.approx(1, abs=1e-5)
    assert (soft[16, 18] / soft[16, 16]).item() == pytest.approx(2.718281828**-0.5, rel=1e-5)
    place = torch.arange(33.0) - 16
    assert (soft.sum(0) * place**2).sum().item() == pytest.approx(4, rel=0.05)


def test_one_cut_divides_prototype_and_target_at_the_same_place():
    """Each glyph is a number of its own, so that every pixel tells where it comes from."""
    torch.manual_seed(0)
    shape = 200, 1, 16, 24
    prototype, target = torch.full(shape, 1.0), torch.full(shape, 2.0)
    mate = torch.stack([torch.full(shape, 3.0), torch.full(shape, 4.0)], 1)
    one, other, made = spliced(prototype, target, mate, 1.0)
    assert made.all()
    assert torch.equal(other, one + 1)
    taken = (one == 3)[:, 0]
    rows, columns = taken.all(2), taken.all(1)  # whole rows, whole columns that come from the mate
    level, upright = rows.any(1), columns.any(1)
    assert torch.equal(level, ~upright)
    assert 0.4 < level.float().mean() < 0.6
    for whole, cut in ((rows[level], level), (columns[upright], upright)):
        share = taken[cut].flatten(1).float().mean(1)
        assert torch.allclose(whole.float().mean(1), share)
        assert 0.3 < share.min() < 0.4
        assert 0.6 < share.max() < 0.7
        assert ((whole[:, 1:] != whole[:, :-1]).sum(1) == 1).all()  # one cut
        assert 0.3 < whole[:, 0].float().mean() < 0.7  # either half


def test_eight_orientations_are_those_of_a_square():
    """Each has its own picture of an odd image, and one after another is again one of them."""
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    all_of_it = [oriented(image, way) for way in range(ORIENTATIONS)]
    pictures = {tuple(one.flatten().tolist()) for one in all_of_it}
    assert torch.equal(all_of_it[0], image)
    assert len(pictures) == ORIENTATIONS == 8
    for way, one in enumerate(all_of_it):
        assert torch.equal(upright(one, way), image)
        for other in range(ORIENTATIONS):
            assert tuple(oriented(one, other).flatten().tolist()) in pictures
    quarter = torch.rot90(image, 1, (2, 3))
    assert tuple(quarter.flatten().tolist()) in pictures


def test_a_sample_is_turned_as_one_and_in_every_way():
    torch.manual_seed(0)
    glyphs = torch.arange(800 * 2 * 9.0).reshape(800, 2, 1, 3, 3)
    found, made = turned(glyphs, 0.75)
    assert torch.equal(found[~made], glyphs[~made])
    assert 0.7 < made.float().mean() < 0.8
    counts = dict.fromkeys(range(1, ORIENTATIONS), 0)
    for before, after in zip(glyphs[made], found[made], strict=True):
        (way,) = (w for w in range(ORIENTATIONS) if torch.equal(oriented(before, w), after))
        counts[way] += 1  # fails for 0, its own orientation
    assert min(counts.values()) > 0.7 * made.sum() / 7


def test_what_is_turned_lies_in_memory_as_before():
    glyphs = torch.rand(20, 3, 1, 4, 4)
    found, _ = turned(glyphs, 0.5)
    assert found.is_contiguous()


@pytest.mark.parametrize("outside", [0.0, 0.5, 1.0])
def test_a_hollow_glyph_is_the_line_along_its_edges(monkeypatch, outside):
    monkeypatch.setattr(restyle, "OUTSIDE", (outside, outside))
    monkeypatch.setattr(restyle, "LINE", (1.0, 1.0))
    torch.manual_seed(0)
    glyphs = torch.ones(4, 2, 1, 32, 32)
    glyphs[..., 8:24, 10:20] = -1  # a block of ink, 10 pixels wide
    found, made = hollowed(glyphs, 1.0)
    assert made.all()
    ink = (1 - found[:, :, 0, 16]) / 2  # a row across it
    expected = torch.zeros(32)
    expected[[9, 20]], expected[[10, 19]] = outside, 1 - outside
    torch.testing.assert_close(ink, expected.expand(4, 2, 32), rtol=0, atol=1e-6)
    across = (1 - found[..., 14]) / 2
    torch.testing.assert_close(across.sum(-1), torch.full((4, 2, 1), 2.0), rtol=0, atol=1e-5)


def most_of(low, high, count, device):
    return torch.full((count,), float(high), device=device)


@pytest.mark.parametrize("size", [16, 32, 48, 64, 80, 128, 256])
def test_edges_move_by_the_same_share_of_every_size(only, monkeypatch, size):
    """One glyph at two sizes has the same new style at both: a pixel of 32 is four of 128."""
    unit = size // 16
    glyphs = torch.ones(4, 2, 1, size, size)
    glyphs[..., 4 * unit : 12 * unit, 5 * unit : 10 * unit] = -1

    def width(glyphs):  # of the ink of a row across it, as a share of the side
        assert glyphs.abs().max() <= 1 + 1e-5
        return ((1 - glyphs[..., 7 * unit, :]) / 2).sum(-1) / size

    torch.manual_seed(0)
    monkeypatch.setattr(restyle, "OUTSIDE", (0.5, 0.5))
    monkeypatch.setattr(restyle, "LINE", (1.0, 1.0))
    torch.testing.assert_close(width(hollowed(glyphs, 1.0)[0]), torch.full((4, 2, 1), 2 / 32))
    only(WEIGHT=(0.8, 0.8))
    bold = width(restyled(glyphs, 1.0)[0])
    torch.testing.assert_close(bold, torch.full((4, 2, 1), 5 / 16 + 1.6 / 32), rtol=0, atol=1e-5)
    only(WEIGHT=(-0.4, -0.4))
    thin = width(restyled(glyphs, 1.0)[0])
    torch.testing.assert_close(thin, torch.full((4, 2, 1), 5 / 16 - 0.8 / 32), rtol=0, atol=1e-5)
    monkeypatch.setattr(restyle, "_sometimes", most_of)
    only(WEIGHT=(-0.4, 0.8), CONTRAST=0.4)  # the heaviest: 1.2 units at upright edges
    heavy = width(restyled(glyphs, 1.0)[0])
    torch.testing.assert_close(heavy, torch.full((4, 2, 1), 5 / 16 + 2.4 / 32), rtol=0, atol=1e-5)


def test_outlines_differ_between_samples_and_not_within_one(cross):
    torch.manual_seed(0)
    found, _ = hollowed(cross, 1.0)
    for sample in found:
        assert torch.equal(sample, sample[:1].expand_as(sample))
    assert all((found[0] - found[n]).abs().max() > 0.02 for n in range(1, 4))
    assert -1 <= found.min() < 0
    assert found.max() <= 1


def test_a_hollow_sample_has_no_style_and_keeps_prototype_and_character(two_references):
    batch, recipe = two_references
    recipe.hollow = 1.0
    torch.manual_seed(0)
    made = recipe.prepare(batch)
    torch.manual_seed(0)
    glyphs, _ = hollowed(torch.cat([batch["target"][:, None], batch["reference"]], 1), 1.0)
    assert torch.equal(made["target"], glyphs[:, 0])
    assert torch.equal(made["reference"], glyphs[:, 1:])
    assert made["made_style"].all()
    assert made["prototype"] is batch["prototype"]
    assert "made_character" not in made
    recipe.hollow = 1e-9
    before = torch.arange(len(batch["style"])) % 2 == 0
    assert torch.equal(recipe.prepare({**batch, "made_style": before})["made_style"], before)


def test_a_character_is_bent_alike_in_both_fonts(cross):
    torch.manual_seed(0)
    glyphs = cross[:1, 0].expand(200, 1, 32, 32)
    prototype, target = bent(glyphs, glyphs, 0.5)
    assert torch.allclose(prototype, target, atol=1e-5)
    away = (prototype - glyphs).abs().flatten(1).amax(1)
    assert 0.4 < (away == 0).float().mean() < 0.6
    assert (away[away > 0] > 0.1).float().mean() > 0.95
    assert -1 <= prototype.min() < prototype.max() <= 1
    assert (prototype[away > 0][:, 0, :2] > 0.99).all()  # the paper around the cross stays


def test_a_bent_place_moves_no_farther_than_its_bounds(monkeypatch):
    moved = []
    sampled = restyle._sampled
    monkeypatch.setattr(
        restyle, "_sampled", lambda glyphs, grid: moved.append(grid) or sampled(glyphs, grid)
    )
    torch.manual_seed(0)
    image = torch.ones(300, 1, 32, 32)
    bent(image, image, 1.0)
    still = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, 32, 32], False)
    far = (moved[0] - still).abs().flatten(1).amax(1) / 2  # in sides
    assert 0.06 < far.max() < 1.3 * 0.12
    assert far.min() < 0.03
    assert all((far < edge).any() for edge in (0.05, 0.1))


def test_what_is_turned_or_bent_keeps_references_and_classes_right(two_references):
    """Bent: the same character, its references as they are. Turned: all, without classes."""
    batch, recipe = two_references
    recipe.bend = 1.0
    torch.manual_seed(0)
    made = recipe.prepare(batch)
    torch.manual_seed(0)
    assert torch.equal(made["target"], bent(batch["prototype"], batch["target"], 1.0)[1])
    assert made["reference"] is batch["reference"]
    assert not {"made_style", "made_character"} & set(made)
    recipe.bend, recipe.turn = 0.0, 1.0
    made = recipe.prepare(batch)
    for place in range(len(batch["style"])):
        images = [
            torch.stack([b["prototype"][place], b["target"][place], *b["reference"][place]])
            for b in (batch, made)
        ]
        ways = [w for w in range(1, ORIENTATIONS) if torch.equal(oriented(images[0], w), images[1])]
        assert len(ways) == 1
    assert made["made_style"].all()
    assert made["made_character"].all()


def test_what_was_made_before_stays_without_a_class_when_it_is_not_turned(tiny, monkeypatch):
    trainer = build(tiny("wnet", "recipe.mix=1.0"))
    batch, recipe = next(trainer.stream), trainer.recipe
    trainer.stream.close()
    recipe.turn = 1e-9
    made = recipe.prepare(batch)
    assert made["made_style"].all()
    assert not made["made_character"].any()


def test_both_players_play_on_the_changed_batch(tiny, monkeypatch):
    """References and target alike; the prototype and the labels stay as they are."""
    monkeypatch.setattr(restyle, "OFTEN", 1.0)
    trainer = build(tiny("wnet", "recipe.restyle=1.0", "data.references=2"))
    given, seen, recipe = [], [], trainer.recipe
    prepare = recipe.prepare
    monkeypatch.setattr(recipe, "prepare", lambda batch: given.append(batch) or prepare(batch))
    for side in ("generator", "discriminator"):
        losses = getattr(recipe, f"{side}_losses")

        def watched(batch, *rest, losses=losses):
            seen.append(batch)
            return losses(batch, *rest)

        monkeypatch.setattr(recipe, f"{side}_losses", watched)
    trainer.play()
    trainer.stream.close()
    (before,), (first, second) = given, seen
    assert first is second
    for key in ("style", "character"):
        assert first[key] is before[key]
    assert torch.equal(first["prototype"], before["prototype"])
    for key in ("target", "reference"):
        assert first[key].shape == before[key].shape
        assert (first[key] - before[key]).abs().flatten(1).amax(1).min() > 0.01


def test_a_sample_is_changed_as_one(tiny, monkeypatch):
    """What a mixture and a splice take: the same glyphs of the other style, the mate as changed."""
    trainer = build(tiny("wnet", "recipe.mix=1.0", "recipe.splice=1.0", "data.references=2"))
    batch, recipe = next(trainer.stream), trainer.recipe
    trainer.stream.close()
    torch.manual_seed(0)
    made = recipe.prepare(batch)
    torch.manual_seed(0)
    own = torch.cat([batch["target"][:, None], batch["mate"][:, 1:], batch["reference"]], 1)
    glyphs, _ = mixed(own, batch["other"], 1.0)
    restyled(glyphs, 0.0)
    mate = torch.stack([batch["mate"][:, 0], glyphs[:, 1]], 1)
    prototype, target, _ = spliced(batch["prototype"], glyphs[:, 0], mate, 1.0)
    assert torch.equal(made["reference"], glyphs[:, 2:])
    assert torch.equal(made["target"], target)
    assert torch.equal(made["prototype"], prototype)
    assert made["made_style"].all()
    assert made["made_character"].all()


@pytest.mark.parametrize("field", ["style", "character"])
def test_what_is_made_takes_no_part_in_its_class_loss(tiny, field):
    """Controls: with its font's class it would; as a mean over the others the sum would be more."""
    recipe = build(tiny("wnet")).recipe
    logits, label = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 4, 2, 2])
    made = torch.tensor([True, False, False, True])
    loss = recipe._named(field, logits, {field: label, f"made_{field}": made})
    kept = cross_entropy(logits[~made], label[~made])
    torch.testing.assert_close(loss, kept / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[made] == 0).all()
    assert (gradient[~made].abs().sum(1) > 0).all()
    plain = recipe._named(field, logits, {field: label})
    torch.testing.assert_close(plain, cross_entropy(logits, label))
    assert recipe._named(field, logits, {field: label, f"made_{field}": made | True}) < 1e-9


def test_it_is_off_by_default(tiny):
    trainer = build(tiny("wnet"))
    batch = next(trainer.stream)
    assert trainer.recipe.prepare(batch) is batch
    trainer.stream.close()


@pytest.mark.parametrize(
    "share",
    [
        *(None, "mix", "turn"),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("restyle", "splice", "bend", "hollow")),
    ],
)
def test_what_styles_are_made_of_is_read_only_where_some_are(tiny, share):
    overrides = [] if share is None else [f"recipe.{share}=0.5"]
    run = build(tiny("wnet", *overrides))
    more = {"mate", "other"} if share in ("mix", "restyle", "splice") else set()
    read = next(run.stream)
    assert set(read) == {"prototype", "reference", "target", "style", "character"} | more
    run.stream.close()
