"""What every registered network keeps, new ones included."""

import inspect
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gan.registry import create, entry, names

import_module("gan.networks")  # fills the registry

SIZE, BATCH = 32, 3
FACTS = {"size": SIZE, "width": 4, "styles": 3, "characters": 4}
NETWORKS = [(kind, name) for kind in ("generator", "discriminator") for name in names(kind)]
ALL = [*NETWORKS, *(("classifier", name) for name in names("classifier"))]
DISCRIMINATORS = [name for kind, name in NETWORKS if kind == "discriminator"]
GENERATORS = [name for kind, name in NETWORKS if kind == "generator"]


def build(kind: str, name: str, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    found = entry(kind, name)
    known = FACTS | {
        "channels": channels,
        "classes": {"a": 2, "b": 3} if kind == "classifier" else 0,
    }
    accepted = {*found.parameters, *found.given}
    return create(kind, name, **{key: value for key, value in known.items() if key in accepted})


def inputs(network: nn.Module, channels: int = 1) -> list[Tensor]:
    """One tensor for each argument that `forward` needs; all but latent vectors are images."""
    needed = [
        p for p in inspect.signature(network.forward).parameters.values() if p.default is p.empty
    ]
    image = (BATCH, channels, SIZE, SIZE)
    shapes = [(BATCH, network.latent) if p.name == "z" else image for p in needed]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [
        t
        for part in (output.values() if isinstance(output, dict) else output)
        for t in tensors(part)
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_forward_and_backward_are_finite(kind, name, channels):
    network = build(kind, name, channels)
    given = inputs(network, channels)
    output = tensors(network(*given))
    sum(t.square().mean() for t in output).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(t.isfinite().all() for t in [*output, *gradients, *(x.grad for x in given)])
    assert any(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_images_lie_between_minus_one_and_one_with_both_signs(name, channels):
    network = build("generator", name, channels)
    bounded = name != "resnext"  # whose images are cut where they are shown
    for image in tensors(network.train(bounded)(*[1e3 * x for x in inputs(network, channels)])):
        assert image.shape == (BATCH, channels, SIZE, SIZE)
        assert image.abs().max() <= 1
        assert image.min() < 0 < image.max()


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.row("G4", "no registered network writes in place")
def test_inputs_are_not_modified(kind, name):
    network = build(kind, name)
    assert not writes_in_place(network, [x.detach() for x in inputs(network)])


def writes_in_place(network, given):
    """Whether it changes what it is given, or has a layer that changes its own input."""
    versions = [x._version for x in given]
    network(*given)
    changed = [x._version for x in given] != versions
    return changed or any(getattr(module, "inplace", False) for module in network.modules())


class Adds(nn.Module):
    """Adds to what it is given."""

    def forward(self, x):
        return x.add_(1)


def test_a_network_that_writes_in_place_is_seen():
    assert writes_in_place(Adds(), [torch.zeros(2)])
    overwriting = nn.ReLU(inplace=True)  # the fault that is to be seen
    assert writes_in_place(nn.Sequential(nn.Linear(2, 2), overwriting), [torch.zeros(2)])
    assert not writes_in_place(nn.ReLU(), [torch.zeros(2)])


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_no_network_holds_a_sigmoid_or_softmax(kind, name):
    refused = nn.Sigmoid | nn.LogSigmoid | nn.Softmax | nn.Softmax2d | nn.LogSoftmax
    assert not any(isinstance(module, refused) for module in build(kind, name).modules())


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_convolutional_networks_have_a_width(kind, name):
    if any(
        isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in build(kind, name).modules()
    ):
        assert "width" in entry(kind, name).parameters


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_second_derivative_reaches_the_weights(name):
    network = build("discriminator", name)
    given = inputs(network)
    logits = tensors(network(*given))[0]
    gradient = torch.autograd.grad(logits.sum(), given, create_graph=True, allow_unused=True)
    judged = [g for g in gradient if g is not None]  # of two discriminators, the first's image
    sum(g.flatten(1).norm(dim=1).square().mean() for g in judged).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_logits_depend_on_their_own_sample_unless_batch_norm_mixes_them(name):
    network = build("discriminator", name)
    first = [x.detach() for x in inputs(network)]
    second = [torch.cat([x[:1], 9 * torch.randn_like(x[1:])]) for x in first]
    same = [
        torch.allclose(a[0], b[0], atol=1e-5)
        for a, b in zip(tensors(network(*first)), tensors(network(*second)), strict=True)
    ]
    mixes = any(isinstance(module, _BatchNorm) for module in network.modules())
    assert all(same) or mixes


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_state_survives_a_round_trip(kind, name):
    network, twin = build(kind, name).eval(), build(kind, name).eval()
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.01
    twin.load_state_dict(network.state_dict(), strict=True)
    given = [x.detach() for x in inputs(network)]
    outputs = []
    for one in (network, twin):
        torch.manual_seed(0)  # some draw noise
        outputs.append(tensors(one(*given)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
