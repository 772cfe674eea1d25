"""pix2pix's terms: each by hand on linear networks, and whose gradient it is."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from gan.recipe import detached
from gan.recipes.pix2pix import Pix2Pix
from gan.registry import create

B, C, SIZE = 3, 2, 8


class Critic(nn.Sequential):
    """A linear discriminator with a map of logits."""

    def __init__(self):
        super().__init__(nn.Conv2d(2 * C, 1, 3))

    def features(self, image):
        return [2 * image, self(image)]


class Copy(nn.Module):
    """Gives back its input, plus a number."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, image):
        return image + self.offset


def game(generator=None, loss="nonsaturating", penalties=(), reconstruction=None, **settings):
    torch.manual_seed(0)
    recipe = Pix2Pix(
        generator or nn.Conv2d(C, C, 1),
        Critic(),
        create("adversarial", loss),
        {name: create("penalty", name) for name in penalties},
        reconstruction or {},
        size=SIZE,
        channels=C,
        **settings,
    )
    return recipe.double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    shape = (B, C, SIZE, SIZE)
    return {
        key: torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        for key in ("input", "target")
    }


def logits(recipe, condition, image):
    return nn.functional.conv2d(
        torch.cat([condition, image], 1), *recipe.discriminator[0].parameters()
    )


def test_each_term_equals_its_definition(batch):
    recipe = game(weight=3.0)
    fakes = recipe.generate(batch)
    image = nn.functional.conv2d(batch["input"], *recipe.generator.parameters())
    torch.testing.assert_close(fakes["image"], image)
    real, fake = (logits(recipe, batch["input"], x) for x in (batch["target"], image))
    assert real.shape == (B, 1, SIZE - 2, SIZE - 2)
    terms = recipe.discriminator_losses(batch, detached(fakes), 0)
    halved = 0.5 * 3 * (softplus(-real).mean() + softplus(fake).mean())
    assert terms.keys() == {"adversarial", "logits_real", "logits_fake"}
    torch.testing.assert_close(terms["adversarial"], halved)
    torch.testing.assert_close(terms["logits_real"], real.mean())
    torch.testing.assert_close(terms["logits_fake"], fake.mean())
    terms = recipe.generator_losses(batch, fakes, 0)
    assert terms.keys() == {"adversarial", "l1"}
    torch.testing.assert_close(terms["adversarial"], 3 * softplus(-fake).mean())
    torch.testing.assert_close(terms["l1"], 100 * (image - batch["target"]).abs().mean())


@pytest.mark.parametrize("offset", [0.25, -0.5])
def test_a_constant_offset_costs_the_weight_times_its_size(batch, offset):
    recipe = game(Copy(offset), l1=40.0)
    same = {"input": batch["input"], "target": batch["input"]}
    terms = recipe.generator_losses(same, recipe.generate(same), 0)
    assert terms["l1"].item() == pytest.approx(40 * abs(offset), rel=1e-9)


def test_no_term_of_the_discriminator_reaches_the_generator_and_each_reaches_its_own(batch):
    recipe = game(penalties=("r1", "r2", "wgan_gp"))
    fakes = recipe.generate(batch)
    terms = recipe.discriminator_losses(batch, detached(fakes), 0)
    for name in ("adversarial", "r1", "r2", "wgan_gp"):
        recipe.zero_grad()
        terms[name].backward(retain_graph=True)  # each alone: they share D's forward
        assert all(p.grad is None for p in recipe.generator.parameters()), name
        assert recipe.discriminator[0].weight.grad.abs().sum() > 0, name
    terms = recipe.generator_losses(batch, fakes, 0)
    for name in ("adversarial", "l1"):
        recipe.generator.zero_grad()
        terms[name].backward(retain_graph=True)  # each alone: both share the fakes' graph
        assert recipe.generator.weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", ["r1", "r2", "wgan_gp"])
def test_penalties_are_of_the_candidate_alone(batch, name):
    """D is linear, so the gradient is known; that of the condition would make the norm larger."""
    recipe = game(penalties=(name,))
    paid = recipe.discriminator_losses(batch, detached(recipe.generate(batch)), 0)[name]
    weight = recipe.discriminator[0].weight  # [1, 2*C, 3, 3]
    places = torch.ones(1, 1, SIZE - 2, SIZE - 2, dtype=weight.dtype) / (SIZE - 2) ** 2
    gradient = nn.functional.conv_transpose2d(places, weight)
    norms = [part.norm().float() for part in (gradient[:, C:], gradient)]  # penalties are in fp32
    price = {"r1": lambda n: 5 * n**2, "r2": lambda n: 5 * n**2}.get(
        name, lambda n: 10 * (n - 1) ** 2
    )
    torch.testing.assert_close(paid, price(norms[0]), rtol=1e-5, atol=0)
    assert abs(paid - price(norms[1])) > 1e-3  # the known wrong variant


def test_a_pool_keeps_input_and_output_together(batch):
    recipe = game(Copy(0.125), pool=2)
    shown = []
    recipe.discriminator.register_forward_hook(lambda _, given, __: shown.append(given[0]))
    old = 0
    for seed in range(12):
        torch.manual_seed(seed)
        real = {key: torch.rand(B, C, SIZE, SIZE).double() for key in ("input", "target")}
        shown.clear()
        recipe.discriminator_losses(real, detached(recipe.generate(real)), seed)
        pairs = shown[1]
        torch.testing.assert_close(pairs[:, C:], pairs[:, :C] + 0.125, rtol=0, atol=1e-6)
        torch.testing.assert_close(shown[0][:, C:], real["target"])  # reals are the batch's own
        old += (pairs[:, :C] - real["input"]).abs().amax((1, 2, 3)).gt(1e-6).sum().item()
    assert old > 5


def test_more_reconstruction_losses_come_on_top_and_see_the_condition(batch):
    more = {
        "l2": create("reconstruction", "l2", weight=4.0),
        "critic": create("reconstruction", "perceptual", network="discriminator", layers=[0]),
    }
    recipe = game(reconstruction=more)
    fakes = recipe.generate(batch)
    terms = recipe.generator_losses(batch, fakes, 0)
    difference = fakes["image"] - batch["target"]
    torch.testing.assert_close(terms["reconstruction_l2"], 4 * difference.square().mean())
    # the map is twice the joined images, and their first half is equal on both sides
    torch.testing.assert_close(terms["reconstruction_critic"], difference.abs().mean())


def test_a_weight_of_zero_leaves_its_term_out(batch):
    assert game(weight=0.0).generator_losses(batch, game().generate(batch), 0).keys() == {"l1"}
    terms = game(l1=0.0).generator_losses(batch, game().generate(batch), 0)
    assert terms.keys() == {"adversarial"}


def test_samples_stand_beside_input_and_truth(batch):
    recipe = game(Copy(0.5))
    shown = recipe.samples(recipe.generator, batch)
    assert list(shown) == ["input", "generated", "truth"]
    torch.testing.assert_close(shown["generated"], batch["input"] + 0.5)
    assert list(recipe.samples(recipe.generator, {"input": batch["input"]})) == [
        "input",
        "generated",
    ]
