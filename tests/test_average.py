"""Averages equal their formulas; buffers are copied; the spectral norm stays 1."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gan.registry import create


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        module[1].running_mean += 1.0
        module[1].num_batches_tracked += 1


@pytest.mark.parametrize("batch", [32, 50, 64])
def test_half_the_weight_is_gone_after_one_halflife(batch):
    module = network()
    first = copy.deepcopy(module)
    average = create("average", "ema", generator=module, halflife=3200.0, rampup=None)["ema"]
    moved(module)
    for _ in range(3200 // batch):
        average.update(batch)
    halfway = [0.5 * (a + b) for a, b in zip(first.parameters(), module.parameters(), strict=True)]
    for got, expected in zip(average.generator.parameters(), halfway, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.row("C18", "averages equal their recursion, buffers are copied, norms refreshed")
def test_ema_equals_the_recursion_and_its_first_ramped_update_copies():
    module = network()
    average = create("average", "ema", generator=module, halflife=100.0, rampup=0.5)["ema"]
    expected = None
    for count in range(6):
        moved(module)
        average.update(20)
        beta = 0.5 ** (20 / min(100.0, 0.5 * 20 * count)) if count else 0.0
        now = [p.detach().clone() for p in module.parameters()]
        expected = (
            now
            if expected is None
            else [beta * e + (1 - beta) * n for e, n in zip(expected, now, strict=True)]
        )
    for got, wanted in zip(average.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.row("C18")
def test_uniform_is_the_arithmetic_mean_from_its_start(start):
    module = network()
    average = create("average", "uniform", generator=module, start=start)["uniform"]
    seen = []
    for _ in range(6):
        moved(module)
        average.update(8)
        seen.append([p.detach().clone() for p in module.parameters()])
    means = [torch.stack(values).mean(0) for values in zip(*seen[start - 1 :], strict=True)]
    for got, expected in zip(average.generator.parameters(), means, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.row("C18")
def test_buffers_are_copied():
    module = network()
    average = create("average", "ema", generator=module)["ema"]
    for _ in range(3):
        moved(module)
        average.update(8)
    for got, expected in zip(average.generator.buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_uniform_has_the_running_statistics_of_its_own_weights():
    module, images = network(), torch.randn(16, 2, 9, 9, dtype=torch.float64)
    average = create("average", "uniform", generator=module)["uniform"]
    start = [parameter.detach().clone() for parameter in module.parameters()]
    for _ in range(300):
        with torch.no_grad():  # about where they were, as weights are at the end of a training
            for parameter, there in zip(module.parameters(), start, strict=True):
                parameter.copy_(there + torch.randn_like(there))
        module(images)
        before = copy.deepcopy(module.state_dict())
        average.update(16, lambda: module(images))
        assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    exact = copy.deepcopy(average.generator).train()
    exact[1].reset_running_stats()
    exact[1].momentum = None
    exact(images)
    for name in ("running_mean", "running_var"):
        own, wanted, copied = (getattr(m[1], name) for m in (average.generator, exact, module))
        torch.testing.assert_close(own, wanted, rtol=0.1, atol=0.1)
        with pytest.raises(AssertionError, match="not close"):  # those of the newest weights
            torch.testing.assert_close(copied, wanted, rtol=0.1, atol=0.1)


def largest(module):
    return max(
        torch.linalg.matrix_norm(m.weight.detach(), 2).item()
        for m in module.modules()
        if isinstance(m, nn.Linear)
    )


@pytest.mark.row("C18")
def test_spectral_norm_of_the_average_is_one_once_refreshed():
    torch.manual_seed(0)
    module = nn.Sequential(*(spectral_norm(nn.Linear(64, 64, bias=False)) for _ in range(12)))
    halflife = 8 * math.log(0.5) / math.log(0.99)  # images: a decay of 0.99 in an update of 8
    average = create("average", "ema", generator=module, halflife=halflife, rampup=None)["ema"]
    left_alone, averaged = copy.deepcopy(module), copy.deepcopy(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (module(torch.randn(8, 64)) - torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        average.update(8)
        for mean, now in zip(averaged.buffers(), module.buffers(), strict=True):
            mean.lerp_(now, 0.01)
    assert largest(average.refreshed()) <= 1.01
    for wrong in (left_alone, averaged):  # what is done to the buffers by mistake
        wrong.load_state_dict(dict(average.generator.named_parameters()), strict=False)
        assert largest(wrong.eval()) > 1.3
    before = [b.clone() for b in module.buffers()]
    average.refreshed()
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


def test_none_is_no_average():
    assert create("average", "none", generator=network()) == {}
