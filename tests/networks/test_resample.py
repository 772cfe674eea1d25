"""Joined convolutions are the two steps that they stand for, to the last border and derivative."""

from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate

from gan.bench.by_hand import PLAIN, as_written
from gan.networks.blocks import Padding, reparametrise
from gan.networks.penalised import PenalisedConv2d
from gan.networks.resample import (
    BilinearHalf,
    BilinearTwice,
    PooledConv2d,
    StridedConv2d,
    StridedConvTranspose2d,
    UpsampledConv2d,
)

SHAPE = (3, 2, 6, 10)  # B, C, H, W
JOINED = (PooledConv2d, UpsampledConv2d)


def penalised(call, layer, x):
    """Output, and the gradients of a penalty on the slope of its squares: a double backward."""
    out = call(layer, x)
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    weights = list(layer.parameters())
    return [out, slope, *torch.autograd.grad(slope.square().sum(), [x, *weights])]


SIZES = [(2, 2), (2, 4), (4, 2), (6, 10)]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *product([StridedConv2d], SIZES),
        *product([StridedConvTranspose2d], [(1, 1), *SIZES]),
    ],
)
@pytest.mark.parametrize(("kernel", "bias"), [*product([4, 5], [True, False])])
def test_a_small_map_meets_the_middle_of_the_weights(kind, size, kernel, bias):
    layer = kind(2, 5, kernel, bias).double()
    x = torch.randn(3, 2, *size, dtype=torch.double, requires_grad=True)
    ours, theirs = penalised(kind.__call__, layer, x), penalised(PLAIN[kind], layer, x)
    factor = 2 if kind is StridedConvTranspose2d else 0.5
    assert ours[0].shape == (3, 5, *(int(factor * side) for side in size))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kernel", [4, 5])
def test_other_weights_than_the_middle_are_seen(kernel):
    layer, x = StridedConv2d(2, 5, kernel), torch.randn(3, 2, 2, 2)
    corner = conv2d(x, layer.weight[:, :, :2, :2], layer.bias)
    assert (corner - PLAIN[StridedConv2d](layer, x)).abs().max() > 0.1


@pytest.mark.parametrize(("kind", "padding"), [*product(JOINED, get_args(Padding))])
def test_is_its_two_steps(kind, padding):
    layer = kind(2, 5, padding).double()
    x = torch.randn(SHAPE, dtype=torch.double, requires_grad=True)
    ours, steps = penalised(kind.__call__, layer, x), penalised(PLAIN[kind], layer, x)
    for one, other in zip(ours, steps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_known_wrong_ways_are_seen():
    x, layer = torch.randn(SHAPE), UpsampledConv2d(2, 5)
    unturned = 4 * layer.spread().transpose(0, 1)
    means = layer.spread().flip(2, 3).transpose(0, 1)
    for weight in (unturned, means):
        wrong = conv_transpose2d(x, weight, layer.bias, stride=2, padding=1)
        assert (wrong - PLAIN[UpsampledConv2d](layer, x)).abs().max() > 0.1
    layer = PooledConv2d(2, 5)
    skipping = conv2d(x, layer.weight, layer.bias, stride=2, padding=1)  # a stride is no mean
    assert (skipping - PLAIN[PooledConv2d](layer, x)).abs().max() > 0.1


@pytest.mark.parametrize("kind", JOINED)
def test_weights_are_those_of_a_plain_convolution(kind):
    shapes = {name: weight.shape for name, weight in nn.Conv2d(2, 5, 3).state_dict().items()}
    assert {name: weight.shape for name, weight in kind(2, 5).state_dict().items()} == shapes


@pytest.mark.parametrize("kind", JOINED)
def test_a_normalised_weight_is_the_one_that_is_spread(kind):
    layer = nn.Sequential(kind(2, 5))
    with torch.no_grad():
        layer[0].weight.mul_(30)
    reparametrise(layer, "spectral")
    layer(torch.randn(SHAPE))  # one power iteration
    layer.eval()
    x = torch.randn(SHAPE)
    torch.testing.assert_close(layer(x), PLAIN[kind](layer[0], x), rtol=1e-4, atol=1e-5)
    assert layer[0].weight.flatten(1).norm() < layer[0].parametrizations.weight.original.norm() / 9


@pytest.mark.parametrize("kind", JOINED)
def test_most_code_takes_two_steps(kind):
    layer, x = kind(2, 5), torch.randn(SHAPE)
    expected = layer(x)
    as_written(layer)
    layer.spread = None  # nothing asks for it any more
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("side", [1, 2, 4])
def test_half_precision_stays_half(kind, side):
    arguments = {StridedConv2d: (2, 5, 4), StridedConvTranspose2d: (2, 5, 4), BilinearHalf: (2,)}
    layer = kind(2, 5, 1) if kind is PenalisedConv2d else kind(*arguments.get(kind, (2, 5)))
    side *= 2 if kind in (PooledConv2d, StridedConv2d, BilinearHalf) else 1
    x = torch.randn(3, 2, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = layer(x), PLAIN[kind](layer, x)
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05)


def test_bilinear_maps_are_torchs_inside_the_border():
    x = torch.randn(SHAPE, dtype=torch.double)
    twice = BilinearTwice(2).double()(x)
    expected = interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(twice[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    half = BilinearHalf(2).double()(x)
    expected = interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(half[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    assert (half - avg_pool2d(x, 2)).abs().max() > 0.1  # control: means of 2 x 2 alone


def test_bilinear_maps_are_mirrored_with_their_images_and_each_others_transposes():
    x, y = torch.randn(SHAPE), torch.randn(3, 2, 3, 5)
    for layer in (BilinearTwice(2), BilinearHalf(2)):
        torch.testing.assert_close(layer(x.flip(3)), layer(x).flip(3))
        assert not layer.state_dict()  # nothing that a checkpoint would hold
    half, twice = BilinearHalf(2)(x), BilinearTwice(2)(y)
    torch.testing.assert_close((half * y).sum(), (x * twice).sum() / 4)


def test_halves_are_differentiated_twice_as_torch_would():
    layer, x = BilinearHalf(2).double(), torch.randn(SHAPE, dtype=torch.double, requires_grad=True)
    plain = penalised(PLAIN[BilinearHalf], layer, x)
    for one, other in zip(penalised(BilinearHalf.__call__, layer, x), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
