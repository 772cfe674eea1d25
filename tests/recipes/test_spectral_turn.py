"""A discriminator's turn evaluates its spectral norm once, for reals and fakes alike."""

import pytest
import torch
from torch.nn.utils.parametrizations import _SpectralNorm

from gan.recipes.conditional import Conditional
from gan.recipes.synthesis import Synthesis
from gan.registry import create


def recipe(kind):
    networks = {
        side: create(side, "resnet", size=8, channels=1, width=4, classes=classes, **more)
        for side, more in (("generator", {"latent": 3}), ("discriminator", {"norm": "spectral"}))
        for classes in ({Synthesis: 0, Conditional: 2}[kind],)
    }
    extra = {} if kind is Synthesis else {"classes": 2}
    if extra:
        extra["classification"] = create("classification", "cross_entropy")
    hinge = create("adversarial", "hinge")
    return kind(**networks, adversarial=hinge, penalties={}, **extra)


@pytest.fixture
def evaluated(monkeypatch):
    """Evaluations of each spectral norm: {id: times}."""
    times, forward = {}, _SpectralNorm.forward

    def counting(norm, weight):
        times[id(norm)] = times.get(id(norm), 0) + 1
        return forward(norm, weight)

    monkeypatch.setattr(_SpectralNorm, "forward", counting)
    return times


@pytest.mark.parametrize("kind", [Synthesis, Conditional])
def test_one_evaluation_serves_reals_and_fakes(kind, evaluated):
    torch.manual_seed(0)
    game = recipe(kind)
    batch = {"real": torch.randn(3, 1, 8, 8), "label": torch.tensor([0, 1, 0])}
    fakes = game.generate(batch)
    evaluated.clear()
    terms = game.discriminator_losses(batch, {"image": fakes["image"].detach()}, 1)
    assert set(evaluated.values()) == {1}
    terms["adversarial"].backward()
    weights = list(game.discriminator.parameters())
    assert all(weight.grad is not None for weight in weights)
    evaluated.clear()
    game.discriminator_losses(batch, {"image": fakes["image"].detach()}, 2)
    assert set(evaluated.values()) == {1}  # and anew in the next turn


def test_the_gradient_is_the_sum_of_both_passes():
    """At weights whose power iteration has settled, one evaluation and two give the same."""
    torch.manual_seed(0)
    game = recipe(Synthesis)
    game.discriminator.eval()  # no iteration: the direction stays
    real, fake = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    judge, weights = game.discriminator, list(game.discriminator.parameters())
    terms = game.discriminator_losses({"real": real}, {"image": fake}, 1)
    once = torch.autograd.grad(terms["adversarial"], weights)
    loss = game.adversarial.discriminator(judge(real), judge(fake))
    twice = torch.autograd.grad(loss, weights)
    assert not any(torch.isnan(g).any() for g in once)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b)
