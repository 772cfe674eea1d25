"""Copies of buffers are exact for every kind of tensor, and do not disturb a waiting graph."""

import pytest
import torch
from torch import nn

from gan.average import Ema
from gan.step.buffers import Copies, places
from gan.step.gradients import SMALL, total_norm


def assorted():
    """Buffers of many kinds, some of one value, some not dense."""
    torch.manual_seed(0)
    return [
        torch.randn(3),
        torch.tensor(7),
        torch.randn(()),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(5, 8)[:, ::2],
        torch.zeros(0),
        torch.randn(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.bool),
    ]


def test_copies_are_put_back_whatever_the_layout():
    tensors = assorted()
    copies = Copies(tensors)
    for change in range(2):
        kept = [tensor.clone() for tensor in tensors]
        copies.take()
        for tensor in tensors:
            own = tensor if 0 not in tensor.stride() else tensor[:, :1]
            own.fill_(change == 1)
        copies.put_back()
        for tensor, before in zip(tensors, kept, strict=True):
            assert torch.equal(tensor, before)
    assert copies.serve(tensors)
    assert not copies.serve([tensor.clone() for tensor in tensors])


def test_copying_leaves_a_waiting_graph_usable():
    buffer, weight = torch.randn(3), torch.randn(3, requires_grad=True)
    copies = Copies([buffer])
    loss = (buffer * weight).sum()  # keeps the buffer for its backward
    copies.take()
    copies.put_back()
    loss.backward()
    assert torch.equal(weight.grad, buffer)


def test_an_average_follows_buffers_that_a_module_puts_in_place_of_others():
    module = nn.BatchNorm1d(3)
    average = Ema(module, 10.0)
    module.running_mean = torch.full((3,), 5.0)
    average.update(4)
    assert torch.equal(average.generator.running_mean, torch.full((3,), 5.0))
    assert [name for _, name in places(module)] == [
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]


@pytest.mark.parametrize(
    "sizes", [[], [3], [3, 5], [3, SMALL + 1], [SMALL + 1], [7] * 5 + [3 * SMALL], [SMALL - 1] * 3]
)
def test_the_norm_is_that_of_one_vector(sizes):
    parameters = [torch.zeros(size, requires_grad=True) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    if len(parameters) > 2:
        parameters[1].grad = None
    whole = torch.cat([torch.zeros(1), *(p.grad for p in parameters if p.grad is not None)])
    torch.testing.assert_close(total_norm(parameters), whole.norm())
    if len(sizes) == 2:  # and not the sum, nor the largest, of the norms
        norms = torch.stack([p.grad.norm() for p in parameters])
        assert not torch.isclose(total_norm(parameters), norms.sum())
        assert not torch.isclose(total_norm(parameters), norms.max())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_norm_shows_a_value_that_is_none(value):
    parameters = [torch.zeros(3, requires_grad=True) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    parameters[2].grad[1] = value
    assert not total_norm(parameters).isfinite()


def test_the_norm_takes_mixed_kinds_of_numbers():
    parameters = [
        torch.zeros(3, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64)
    ]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    assert total_norm(parameters).item() == pytest.approx(24**0.5)
