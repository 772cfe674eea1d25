"""Penalties whose gradient is taken where the adversarial term has looked share its forward."""

from contextlib import nullcontext

import pytest
import torch
from games import NETWORKS, Batches, doubles, game
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from gan.augment import Augmentation
from gan.recipe import detached
from gan.registry import create
from gan.step import looks

POOLED = {"pix2pix", "cyclegan"}  # their fakes are shown through a pool, and looked at for R2 alone


def turn(kind, paid, alone=False, cast=False, norm=lambda layer: layer, points=None):
    """Terms, gradients and the passes of a discriminator's turn; `alone`: penalties share none."""
    with nullcontext() if cast else doubles():
        torch.manual_seed(0)
        recipe = game(kind, "hinge")
        recipe.augment = Augmentation({})  # a look of one's own draws other changes
        recipe.penalties = {name: create("penalty", name) for name in paid}
        for penalty in recipe.penalties.values():
            if points or alone:
                seen = points or (lambda images: images)
                made = (lambda images, seen=seen: seen(images).clone()) if alone else seen
                penalty.points = lambda *images, at=penalty.at, made=made: made(
                    images[at == "fake"]
                )
        passes = []
        convolutions = [m for m in recipe.discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
        for convolution in convolutions:
            norm(convolution)
        batch = next(Batches(recipe.reads))
        fakes = detached(recipe.generate(batch))
        for convolution in convolutions:
            convolution.register_forward_hook(lambda *_: passes.append(1))
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast), parametrize.cached():
            terms = recipe.discriminator_losses(batch, fakes, 0)
        sum(terms[name] for name in terms if not name.startswith("logits")).backward()
        assert not any(image.requires_grad for image in (*batch.values(), *fakes.values()))
    gradients = [p.grad for p in recipe.discriminator.parameters()]
    return terms, gradients, len(passes) / len(convolutions)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("paid", [("r1",), ("r2",), ("r1", "r2"), ("r2", "r1")])
def test_sharing_a_forward_changes_no_number(kind, paid):
    terms, gradients, passes = turn(kind, paid)
    expected, slopes, more = turn(kind, paid, alone=True)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-9, atol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient, slope, rtol=1e-9, atol=1e-12)
    assert more == 2 + len(paid)
    assert passes == 2 + (kind in POOLED and "r2" in paid)


def test_sharing_a_forward_changes_no_number_under_spectral_norms():
    """Whose weights are one graph for all looks of a turn."""
    paid = "r1", "r2"
    terms, gradients, passes = turn("synthesis", paid, norm=spectral_norm)
    expected, slopes, _ = turn("synthesis", paid, alone=True, norm=spectral_norm)
    assert passes == 2
    torch.testing.assert_close(terms, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients, slopes, rtol=1e-9, atol=1e-12)


def test_a_view_of_the_same_images_is_not_taken_for_them():
    def turned(images):
        return images.transpose(-1, -2)

    terms, _, passes = turn("synthesis", ("r1",), points=turned)
    expected, _, _ = turn("synthesis", ("r1",), alone=True, points=turned)
    assert passes == 3
    torch.testing.assert_close(terms, expected, rtol=1e-9, atol=1e-12)


def test_a_look_at_other_images_gives_other_numbers(monkeypatch):
    """As where it is found by shape alone: R2's gradient is then taken at the reals."""
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda image: 0)
    with pytest.raises(AssertionError):
        test_sharing_a_forward_changes_no_number("synthesis", ("r1", "r2"))


def test_penalties_elsewhere_look_for_themselves():
    assert turn("synthesis", ("wgan_gp",))[2] == 3
    assert turn("synthesis", ("wgan_gp", "r1"))[2] == 3


def test_a_penalty_that_is_not_due_changes_no_look():
    made = game("synthesis", "hinge")
    images = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    lazy = {"r1": create("penalty", "r1", every=4)}
    for update, kept in ((0, 1), (1, 0), (4, 1)):
        taken = looks.Looks(made.judge({}), lazy, update, *images)
        taken.real(), taken.fake()
        assert len(taken.kept) == kept


def test_under_autocast_penalties_look_for_themselves_in_exact_numbers():
    terms, _, passes = turn("synthesis", ("r1",), cast=True)
    expected, _, _ = turn("synthesis", ("r1",), alone=True, cast=True)
    assert passes == 3
    torch.testing.assert_close(terms["r1"], expected["r1"], rtol=1e-6, atol=0)
