"""Styles made from real ones: shared by a sample's glyphs, drawn for each sample."""

import pytest
import torch

from gan import restyle
from gan.build import build
from gan.restyle import restyled


@pytest.fixture
def cross():
    """Four samples of three equal glyphs: a cross of two strokes, black on white."""
    image = torch.ones(32, 32)
    image[15:17, 6:26] = image[6:26, 15:17] = -1
    return image.expand(4, 3, 1, 32, 32).clone()


def test_a_sample_shares_its_change_and_samples_do_not(cross):
    torch.manual_seed(0)
    before = cross.clone()
    made = restyled(cross, 1.0)
    assert torch.equal(cross, before)
    assert made.shape == cross.shape
    for sample in made:
        assert torch.allclose(sample, sample[:1].expand_as(sample), atol=1e-6)
    assert all((made[0] - made[n]).abs().max() > 0.1 for n in range(1, 4))
    assert -1 <= made.min() < -0.2
    assert made.max() == 1
    torch.manual_seed(0)
    assert torch.equal(restyled(cross, 1.0), made)


def test_a_share_of_the_samples_is_changed():
    torch.manual_seed(0)
    glyphs = torch.rand(400, 2, 1, 8, 8) * 2 - 1
    same = (restyled(glyphs, 0.25) == glyphs).flatten(1).all(1).float().mean()
    assert 0.68 < same < 0.82
    assert torch.equal(restyled(glyphs, 0.0), glyphs)


def test_without_any_change_the_glyphs_come_back(cross, monkeypatch):
    for name, none in (("SLANT", 0.0), ("SCALE", 0.0), ("BEND", 0.0), ("WEIGHT", (0.0, 0.0))):
        monkeypatch.setattr(restyle, name, none)
    assert torch.allclose(restyled(cross, 1.0), cross, atol=1e-4)


@pytest.mark.parametrize(("weight", "width"), [(1.0, 4.0), (0.5, 3.0), (0.0, 2.0), (-0.5, 1.0)])
def test_weight_moves_both_edges_by_pixels(cross, monkeypatch, weight, width):
    for name, none in (("SLANT", 0.0), ("SCALE", 0.0), ("BEND", 0.0)):
        monkeypatch.setattr(restyle, name, none)
    monkeypatch.setattr(restyle, "WEIGHT", (weight, weight))
    ink = (1 - restyled(cross, 1.0)) / 2
    across = ink[:, :, :, 9].sum(-1)  # a row that only the upright stroke crosses
    assert torch.allclose(across, torch.full_like(across, width), atol=1e-3)


@pytest.mark.parametrize(("name", "amount"), [("SLANT", 0.25), ("SCALE", 0.15)])
def test_slant_and_scale_keep_to_their_bounds(cross, monkeypatch, name, amount):
    for other, none in (("SLANT", 0.0), ("SCALE", 0.0), ("BEND", 0.0), ("WEIGHT", (0.0, 0.0))):
        monkeypatch.setattr(restyle, other, none)
    monkeypatch.setattr(restyle, name, amount)
    torch.manual_seed(0)
    ink = (1 - restyled(cross[:1].expand(300, 3, 1, 32, 32), 1.0)[:, 0, 0]) / 2
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


def test_both_players_play_on_the_changed_batch(tiny, monkeypatch):
    """References and target alike; the prototype and the labels stay as they are."""
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
    for key in ("prototype", "style", "character"):
        assert first[key] is before[key]
    for key in ("target", "reference"):
        assert first[key].shape == before[key].shape
        assert (first[key] - before[key]).abs().flatten(1).amax(1).min() > 0.01


def test_it_is_off_by_default(tiny):
    trainer = build(tiny("wnet"))
    batch = next(trainer.stream)
    assert trainer.recipe.prepare(batch) is batch
    trainer.stream.close()
