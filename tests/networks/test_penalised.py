"""Convolutions under penalties: torch's numbers to the second derivative, in fewer operations."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gan.losses.penalties import input_gradient
from gan.networks import penalised
from gan.networks.penalised import PenalisedConv2d

FORMS = [  # before, after, kernel, stride, padding, groups, bias
    (6, 4, 1, 1, 0, 1, True),
    (6, 4, 3, 1, 1, 1, True),
    (6, 4, 3, 1, 1, 2, False),
    (4, 4, 4, 2, 1, 4, True),
    (4, 4, 4, 1, 0, 4, False),
]


def made(before, after, kernel, stride, padding, groups, bias):
    layer = PenalisedConv2d(before, after, kernel, stride, padding, groups=groups, bias=bias)
    x = torch.randn(3, before, 6, 4, dtype=torch.double, requires_grad=True)
    return layer.double(), x


def derivatives(call, layer, x):
    """Maps, and first and second derivatives by images and weights, each on its own way."""
    weights = list(layer.parameters())
    out = call(layer, x)
    first = torch.autograd.grad(out.sin().sum(), [x, *weights], create_graph=True)
    size = sum(g.square().sum() for g in first)
    slope = first[0].square().sum()
    every = {"retain_graph": True, "allow_unused": True}  # `size` is differentiated after it
    of_slope = torch.autograd.grad(slope, [x, *weights], **every)
    return [out, *first, *of_slope, *torch.autograd.grad(size, [x, *weights])]


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_torchs_to_the_second_derivative(form):
    layer, x = made(*form)
    ours, torchs = (derivatives(c, layer, x) for c in (PenalisedConv2d.__call__, nn.Conv2d.forward))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_central_differences(form):
    layer, x = made(*form)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), [x, *layer.parameters()])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_derivative_is_seen(lost, monkeypatch):
    """By the gradient of maps, of images, of weights."""
    whole = penalised._Slopes.backward

    def partly(ctx, *given):
        found = list(whole(ctx, *given))
        found[lost] = None if found[lost] is None else torch.zeros_like(found[lost])
        return tuple(found)

    layer, x = made(*FORMS[1])
    right = derivatives(PenalisedConv2d.__call__, layer, x)
    monkeypatch.setattr(penalised._Slopes, "backward", staticmethod(partly))
    wrong = derivatives(PenalisedConv2d.__call__, layer, x)
    assert any((a - b).abs().max() > 0.1 for a, b in zip(right, wrong, strict=True))


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_what_is_not_trained_gets_no_gradient(trained):
    layer, x = made(*FORMS[2])
    x, weight = (
        t.detach().requires_grad_(on) for t, on in zip((x, layer.weight), trained, strict=True)
    )
    penalised.convolved(x, weight, (1, 1, 2)).square().sum().backward()
    assert (x.grad is not None, weight.grad is not None) == trained


class Operations(TorchDispatchMode):
    """Counts what is not a view."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


def test_groups_are_not_differentiated_one_by_one():
    def operations(call, groups):
        layer = PenalisedConv2d(32, 32, 3, padding=1, groups=groups, bias=False)
        with Operations() as seen:
            slope = input_gradient(lambda x: call(layer, x).square(), torch.randn(3, 32, 6, 4))
            slope.square().sum().backward()
        return seen.count

    assert operations(PenalisedConv2d.__call__, 16) == operations(PenalisedConv2d.__call__, 1)
    more = operations(nn.Conv2d.forward, 16) - operations(nn.Conv2d.forward, 1)
    assert more >= 16  # the control


def test_under_autocast_it_is_torchs_own():
    layer = PenalisedConv2d(2, 4, 1)
    x = torch.randn(3, 2, 4, 4)
    assert "Convolve" in layer(x).grad_fn.name()
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x)
    assert cast.dtype == torch.bfloat16
    assert "Convolve" not in cast.grad_fn.name()
