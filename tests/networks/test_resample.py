"""Joined convolutions are the two steps that they stand for, to the last border and derivative."""

from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate

from gan.bench.by_hand import in_two_steps
from gan.networks.blocks import Padding, reparametrise
from gan.networks.resample import DoubledConv2d, PooledConv2d

SHAPE = (3, 2, 6, 10)  # B, C, H, W


def pooled(layer, x):
    return avg_pool2d(nn.Conv2d.forward(layer, x), 2)


def doubled(layer, x):
    return nn.Conv2d.forward(layer, interpolate(x, scale_factor=2))


STEPS = {PooledConv2d: pooled, DoubledConv2d: doubled}


def penalised(call, layer, x):
    """Output, and the gradients of a penalty on the slope of its squares: a double backward."""
    out = call(layer, x)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    weights = list(layer.parameters())
    return [out, slope, *torch.autograd.grad(slope.square().sum(), [x, *weights])]


@pytest.mark.parametrize(("kind", "padding"), [*product(STEPS, get_args(Padding))])
def test_is_its_two_steps(kind, padding):
    layer = kind(2, 5, padding).double()
    x = torch.randn(SHAPE, dtype=torch.double, requires_grad=True)
    ours, steps = penalised(kind.__call__, layer, x), penalised(STEPS[kind], layer, x)
    for one, other in zip(ours, steps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_known_wrong_ways_are_seen():
    x, layer = torch.randn(SHAPE), DoubledConv2d(2, 5)
    unturned = layer.spread(1).transpose(0, 1)
    means = layer.spread(4).flip(2, 3).transpose(0, 1)
    for weight in (unturned, means):
        wrong = conv_transpose2d(x, weight, layer.bias, stride=2, padding=1)
        assert (wrong - doubled(layer, x)).abs().max() > 0.1
    layer = PooledConv2d(2, 5)
    skipping = conv2d(x, layer.weight, layer.bias, stride=2, padding=1)  # a stride is no mean
    assert (skipping - pooled(layer, x)).abs().max() > 0.1


@pytest.mark.parametrize("kind", STEPS)
def test_weights_are_those_of_a_plain_convolution(kind):
    shapes = {name: weight.shape for name, weight in nn.Conv2d(2, 5, 3).state_dict().items()}
    assert {name: weight.shape for name, weight in kind(2, 5).state_dict().items()} == shapes


@pytest.mark.parametrize("kind", STEPS)
def test_a_normalised_weight_is_the_one_that_is_spread(kind):
    layer = nn.Sequential(kind(2, 5))
    with torch.no_grad():
        layer[0].weight.mul_(30)
    reparametrise(layer, "spectral")
    layer(torch.randn(SHAPE))  # one power iteration
    layer.eval()
    x = torch.randn(SHAPE)
    torch.testing.assert_close(layer(x), STEPS[kind](layer[0], x), rtol=1e-4, atol=1e-5)
    assert layer[0].weight.flatten(1).norm() < layer[0].parametrizations.weight.original.norm() / 9


@pytest.mark.parametrize("kind", STEPS)
def test_the_usual_loop_takes_two_steps(kind):
    layer, x = kind(2, 5), torch.randn(SHAPE)
    expected = layer(x)
    in_two_steps(layer)
    layer.spread = None  # nothing asks for it any more
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
