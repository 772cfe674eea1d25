"""Named parameters moved inside a block: how far, what the block adds, and that all comes back."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from gan.registry import ConfigError, create
from gan.robust.perturb import named, perturbed


class Words(nn.Module):
    """Sums of embeddings to logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.projection = nn.Linear(4, 3)

    def forward(self, words):
        return self.projection(self.embedding(words).sum(1).tanh())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Words()


WORDS = torch.tensor([[0, 1], [2, 0], [4, 4]])
LABELS = torch.tensor([0, 2, 1])


def loss(network):
    return cross_entropy(network(WORDS), LABELS)


def gradients(network):
    network.zero_grad()
    loss(network).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_bits(module, before):
    for name, value in module.state_dict().items():
        assert torch.equal(value.view(torch.int32), before[name].view(torch.int32)), name


DIRECTIONS = {"l2": lambda g: g / g.norm(), "linf": torch.sign}


@pytest.mark.parametrize("norm", DIRECTIONS)
@pytest.mark.parametrize("radius", [0.1, 2.0])
def test_one_step_is_the_radius_along_each_tensors_own_gradient(network, norm, radius):
    clean, before = gradients(network), bits(network)
    with perturbed(named(network, "weight"), radius, norm):
        after = bits(network)
    for name in before:
        moved = DIRECTIONS[norm](clean[name]) if name.endswith("weight") else 0
        torch.testing.assert_close(after[name], before[name] + radius * moved)
    together = torch.cat([clean[name].flatten() for name in clean if name.endswith("weight")])
    wrong = clean["embedding.weight"] / together.norm()  # one ball around all of them
    assert (wrong - DIRECTIONS["l2"](clean["embedding.weight"])).abs().max() > 0.01


@pytest.mark.parametrize("norm", DIRECTIONS)
def test_a_backward_in_the_block_adds_the_other_gradient_exactly(network, norm):
    clean, before = gradients(network), bits(network)
    other = Words()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        direction = DIRECTIONS[norm](clean["embedding.weight"])
        other.embedding.weight.copy_(other.embedding.weight + 0.5 * direction)
    there = gradients(other)
    with perturbed(named(network, "embedding"), 0.5, norm):
        loss(network).backward()
    assert_bits(network, before)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, clean[name] + there[name])
        assert (there[name] - clean[name]).abs().max() > 1e-3  # a second clean one would show


def test_second_and_later_updates_work(network):
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    losses = []
    for _ in range(20):
        gradients(network)
        with perturbed(named(network, "embedding"), radius=0.3):
            losses.append(loss(network))
            losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]  # also at its worst point


@pytest.mark.parametrize("steps", [1, 4])
def test_the_parameters_come_back_when_the_block_fails(network, steps):
    gradients(network)
    before = bits(network)

    def fails():
        assert not torch.equal(network.embedding.weight, before["embedding.weight"])
        raise RuntimeError("in the block")

    block = perturbed(named(network, "*"), 1.0, steps=steps, loss_of=lambda: loss(network))
    with pytest.raises(RuntimeError, match="in the block"), block:
        fails()
    assert_bits(network, before)

    block = perturbed(named(network, "*"), 1.0, steps=2, loss_of=fails)
    with pytest.raises(RuntimeError, match="in the block"), block:
        pass
    assert_bits(network, before)


@pytest.mark.parametrize("norm", DIRECTIONS)
def test_more_steps_follow_projected_ascent_and_leave_the_clean_gradient(network, norm):
    clean, before = gradients(network), bits(network)
    radius, step, start = 0.3, 0.2, before["embedding.weight"]
    with perturbed(
        named(network, "embedding"), radius, norm, 3, step, loss_of=lambda: loss(network)
    ):
        reached = network.embedding.weight.detach().clone()
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter.grad, clean[name])
        loss(network).backward()
    assert_bits(network, before)

    other = Words()
    other.load_state_dict(network.state_dict())
    for _ in range(3):  # written down once more, plainly
        direction = DIRECTIONS[norm](gradients(other)["embedding.weight"])
        offset = other.embedding.weight.detach() + step * direction - start
        if norm == "linf":
            offset = offset.clamp(-radius, radius)
        elif offset.norm() > radius:
            offset = offset * radius / offset.norm()
        other.embedding.weight.data = start + offset
    torch.testing.assert_close(reached, other.embedding.weight.detach())
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(network.get_parameter(name).grad, clean[name] + gradient)


def test_more_steps_raise_the_loss_at_least_as_much(network):
    reached = []
    for steps in (1, 20):
        gradients(network)
        with perturbed(
            named(network, "embedding"), 2.0, steps=steps, loss_of=lambda: loss(network)
        ):
            reached.append(loss(network).item())
    assert reached[1] > reached[0] > loss(network).item()


def test_a_flat_parameter_stays(network):
    gradients(network)
    network.embedding.weight.grad.zero_()
    before = bits(network)
    with perturbed(named(network, "embedding"), 1.0):
        assert_bits(network, before)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", DIRECTIONS)
def test_a_parameter_that_is_one_number_moves_by_the_radius(norm, steps):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.none = nn.Parameter(torch.tensor(-0.5)), nn.Parameter(torch.ones(0, 3))

        def forward(self):
            return self.gain.square() + self.none.sum()

    network = Scaled()
    network().backward()
    with perturbed(named(network, "*"), 0.25, norm, steps, loss_of=network):
        assert network.gain.item() == pytest.approx(-0.75)
    assert network.gain.item() == -0.5


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_what_a_parametrised_weight_is_made_from_is_moved(network, norm):
    norm(network.projection).eval()  # no power iterations, so that two forwards agree
    gradients(network)
    before, weight = bits(network), network.projection.weight.detach().clone()
    with perturbed(named(network, "projection.*original"), radius=0.5):
        assert (network.projection.weight - weight).abs().max() > 0.01
        loss(network).backward()
    assert_bits(network, before)
    assert torch.equal(network.projection.weight, weight)


def test_a_projection_discriminator_takes_it_on_its_class_embedding():
    torch.manual_seed(0)
    shape = {"size": 16, "channels": 1, "width": 4, "classes": 3, "norm": "spectral"}
    discriminator = create("discriminator", "resnet", **shape).eval()
    images, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 1])
    tables = named(discriminator, "embedding")
    assert tables
    assert all("embedding" in name for name in tables)

    def hinge():
        return (1 - discriminator(images, labels)).relu().mean()

    hinge().backward()
    before, clean = bits(discriminator), hinge().item()
    with perturbed(tables, radius=1.0):
        assert hinge() > clean
    assert_bits(discriminator, before)


def test_names_are_parts_of_names_or_patterns(network):
    assert [*named(network, "embed")] == ["embedding.weight"]
    assert [*named(network, "weight", "embedding")] == ["embedding.weight", "projection.weight"]
    assert [*named(network, "pro*bias")] == ["projection.bias"]
    with pytest.raises(
        ValueError, match=r"no parameter is called 'embeding\.weight'; did you mean 'embedding\.w"
    ):
        named(network, "projection", "embeding.weight")


def test_mistakes_are_named(network):
    with (
        pytest.raises(ValueError, match=r"embedding\.weight has no gradient to follow"),
        perturbed(named(network, "embedding"), 1.0),
    ):
        pass
    gradients(network)
    for settings, message in [
        ({"radius": -1}, "radius must be at least 0, not -1"),
        ({"radius": 1.0, "norm": "l1"}, "norm cannot be 'l1'"),
        ({"radius": 1.0, "steps": 2}, "steps=2 needs loss_of"),
        ({"radius": 1.0, "steps": 0}, "steps must be at least 1"),
    ]:
        with (
            pytest.raises((ConfigError, ValueError), match=message),
            perturbed(named(network, "embedding"), **settings),
        ):
            pass
