"""CycleGAN's terms: each by hand on linear networks, and whose gradient it is."""

import pytest
import torch
from torch import nn

from gan.networks.translator import Pair
from gan.recipe import detached
from gan.recipes.cyclegan import CycleGAN
from gan.registry import create

B, C, SIZE = 3, 2, 8
GENERATOR = {f"{term}_{kind}" for term in ("adversarial", "cycle", "identity") for kind in "ab"}


class Times(nn.Module):
    """Images times a number, plus a number."""

    def __init__(self, factor=1.0, offset=0.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, image):
        return self.factor * image + self.offset


class Critics(nn.Module):
    """Two linear discriminators with maps of logits."""

    def __init__(self):
        super().__init__()
        self.of_a, self.of_b = nn.Conv2d(C, 1, 3), nn.Conv2d(C, 1, 3)


def game(to_b=None, to_a=None, loss="lsgan", penalties=(), **settings):
    torch.manual_seed(0)
    recipe = CycleGAN(
        Pair(to_b or Times(0.5, 0.25), to_a or Times(-2.0, 0.125)),
        Critics(),
        create("adversarial", loss),
        {name: create("penalty", name) for name in penalties},
        size=SIZE,
        channels=C,
        **{"pool": 0, **settings},
    )
    return recipe.double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    shape = (B, C, SIZE, SIZE)
    return {
        key: torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        for key in ("real_a", "real_b")
    }


def test_each_term_equals_its_definition(batch):
    recipe, a, b = game(weight=2.0, cycle=7.0, identity=3.0), batch["real_a"], batch["real_b"]
    fakes = recipe.generate(batch)
    fake_b, fake_a = 0.5 * a + 0.25, -2 * b + 0.125
    torch.testing.assert_close(fakes["fake_a"], fake_a)
    torch.testing.assert_close(fakes["fake_b"], fake_b)
    of_a, of_b = recipe.discriminator.of_a, recipe.discriminator.of_b
    terms = recipe.generator_losses(batch, fakes, 0)
    expected = {
        "adversarial_a": (of_a(fake_a) - 1).square().mean(),  # without the half, by the weight
        "adversarial_b": (of_b(fake_b) - 1).square().mean(),
        "cycle_a": 7 * (-2 * fake_b + 0.125 - a).abs().mean(),
        "cycle_b": 7 * (0.5 * fake_a + 0.25 - b).abs().mean(),
        "identity_a": 3 * (-2 * a + 0.125 - a).abs().mean(),
        "identity_b": 3 * (0.5 * b + 0.25 - b).abs().mean(),
    }
    assert terms.keys() == expected.keys() == GENERATOR
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_the_presets_weights_are_those_of_the_authors_code(batch):
    """There: mean squares without a half for G, and for D half the sum of both."""
    recipe = game(weight=2.0, discriminator_weight=0.5)
    fakes = detached(recipe.generate(batch))
    terms = recipe.discriminator_losses(batch, fakes, 0)
    for kind, critic in (("a", recipe.discriminator.of_a), ("b", recipe.discriminator.of_b)):
        real, fake = critic(batch[f"real_{kind}"]), critic(fakes[f"fake_{kind}"])
        halved = 0.5 * ((real - 1).square().mean() + fake.square().mean())
        torch.testing.assert_close(terms[f"adversarial_{kind}"], halved)
        torch.testing.assert_close(terms[f"logits_real_{kind}"], real.mean())
        torch.testing.assert_close(terms[f"logits_fake_{kind}"], fake.mean())
    assert terms.keys() - {f"adversarial_{kind}" for kind in "ab"} == {*recipe.statistics}


def test_translators_that_change_nothing_have_no_cycle_and_no_identity_loss(batch):
    recipe = game(Times(), Times())
    terms = recipe.generator_losses(batch, recipe.generate(batch), 0)
    for name in GENERATOR - {"adversarial_a", "adversarial_b"}:
        assert terms[name] == 0, name


def test_inverse_translators_have_no_cycle_loss_but_an_identity_loss(batch):
    recipe = game(Times(0.5, 0.25), Times(2.0, -0.5))
    terms = recipe.generator_losses(batch, recipe.generate(batch), 0)
    assert terms["cycle_a"].item() == pytest.approx(0, abs=1e-12)
    assert terms["cycle_b"].item() == pytest.approx(0, abs=1e-12)
    assert terms["identity_a"] > 1
    assert terms["identity_b"] > 1


def reached(term, module):
    weights = list(module.parameters())
    gradients = torch.autograd.grad(
        term,
        weights,
        retain_graph=True,  # each term is asked for several networks, and all share one forward
        allow_unused=True,  # a network that the term does not reach is an answer
    )
    return any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_each_term_reaches_the_networks_it_is_about(batch):
    recipe, batch = game(penalties=("r1",)).float(), {k: x.float() for k, x in batch.items()}
    fakes = recipe.generate(batch)
    terms = recipe.generator_losses(batch, fakes, 0)
    to_a, to_b = recipe.generator.to_a, recipe.generator.to_b
    for kind, own, other in (("a", to_a, to_b), ("b", to_b, to_a)):
        assert reached(terms[f"adversarial_{kind}"], own)
        assert not reached(terms[f"adversarial_{kind}"], other)
        assert reached(terms[f"cycle_{kind}"], own)
        assert reached(terms[f"cycle_{kind}"], other)  # the fake carries its graph
        assert reached(terms[f"identity_{kind}"], own)
        assert not reached(terms[f"identity_{kind}"], other)
    terms = recipe.discriminator_losses(batch, detached(fakes), 0)
    of = {"a": recipe.discriminator.of_a, "b": recipe.discriminator.of_b}
    for kind, other in (("a", "b"), ("b", "a")):
        for name in ("adversarial", "r1"):
            assert reached(terms[f"{name}_{kind}"], of[kind]), name
            assert not reached(terms[f"{name}_{kind}"], of[other]), name
            assert not reached(terms[f"{name}_{kind}"], recipe.generator), name


@pytest.mark.parametrize(
    ("switch", "terms"),
    [("weight", "adversarial"), ("cycle", "cycle"), ("identity", "identity")],
)
def test_a_weight_of_zero_leaves_its_terms_out_and_computes_nothing(batch, switch, terms):
    calls = []
    recipe = game(**{switch: 0.0})
    fakes = recipe.generate(batch)
    for network in (*recipe.generator.children(), *recipe.discriminator.children()):
        network.register_forward_hook(lambda *_: calls.append(1))
    found = recipe.generator_losses(batch, fakes, 0)
    assert found.keys() == GENERATOR - {f"{terms}_a", f"{terms}_b"}
    assert len(calls) == 4  # two for each kind of term


def test_the_pools_hold_their_own_kind_and_show_it_again(batch):
    recipe = game(pool=4)
    seen = {"a": [], "b": []}
    for kind in "ab":
        critic = getattr(recipe.discriminator, f"of_{kind}")
        critic.register_forward_hook(lambda _, given, __, k=kind: seen[k].append(given[0]))
    history = {"a": [], "b": []}
    old = 0
    for seed in range(8):
        torch.manual_seed(seed)
        real = {key: torch.rand(B, C, SIZE, SIZE).double() for key in ("real_a", "real_b")}
        fakes = detached(recipe.generate(real))
        recipe.discriminator_losses(real, fakes, seed)
        for kind in "ab":
            history[kind] += list(fakes[f"fake_{kind}"])
            assert torch.equal(seen[kind][-2], real[f"real_{kind}"])
            for image in seen[kind][-1]:
                same = [torch.equal(image, known) for known in history[kind]]
                assert any(same)
                old += not any(same[-B:])
    assert old > 8


def test_samples_go_there_and_back(batch):
    recipe = game()
    shown = recipe.samples(recipe.generator, batch)
    columns = ["real_a", "generated", "cycled_a", "real_b", "generated_a", "cycled_b"]
    assert list(shown) == columns
    torch.testing.assert_close(shown["generated"], 0.5 * batch["real_a"] + 0.25)
    torch.testing.assert_close(shown["cycled_a"], -2 * shown["generated"] + 0.125)
    torch.testing.assert_close(shown["cycled_b"], 0.5 * shown["generated_a"] + 0.25)
    assert list(recipe.samples(recipe.generator, {"real_a": batch["real_a"]})) == columns[:3]
