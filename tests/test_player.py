"""One update of one side: what moves, what gets a gradient, what stays."""

import pytest
import torch
from torch import nn

from gan.config.settings import UNCLIPPED, Clip
from gan.player import Player
from gan.registry import ConfigError
from gan.step.gradients import frozen


def sides(clip=UNCLIPPED, schedule=lambda count: 1.0, lr=0.1):
    torch.manual_seed(0)
    mine, other = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(mine.parameters(), lr=lr)
    return mine, other, Player("generator", mine, other, optimizer, schedule, clip, {"mean"})


def losses(mine, other, scale=1.0):
    output = other(mine(torch.ones(3, 4)))
    return lambda: {
        "adversarial": scale * other(mine(torch.ones(3, 4))).mean(),
        "mean": output.detach().mean(),
    }


def test_update_descends_the_sum_of_the_losses_and_leaves_statistics_out():
    mine, other, player = sides()
    expected = torch.autograd.grad(other(mine(torch.ones(3, 4))).mean(), mine.weight)[0]
    before = mine.weight.detach().clone()
    returned = player.update(losses(mine, other), 0)
    torch.testing.assert_close(mine.weight.detach(), before - 0.1 * expected)
    assert set(returned) == {"adversarial", "mean", "gradient_norm"}
    assert not returned["adversarial"].requires_grad


@pytest.mark.row("N5")
def test_opponent_gets_no_gradient_and_its_flags_back():
    mine, other, player = sides()
    other.bias.requires_grad_(False)
    player.update(losses(mine, other), 0)
    assert other.weight.grad is None
    assert other.weight.requires_grad
    assert not other.bias.requires_grad


@pytest.mark.row("N5")
def test_flags_come_back_when_a_loss_raises():
    _, other, player = sides()

    def broken():
        raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        player.update(broken, 0)
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.row("G1", "a declared term without gradient is refused by name at its first use")
def test_loss_without_gradient_is_refused_by_name():
    mine, other, player = sides()
    loss = losses(mine, other)
    for cut in (
        torch.Tensor.detach,
        torch.no_grad()(torch.clone),
        lambda t: torch.tensor(t.item()),
    ):
        with pytest.raises(ValueError, match="generator's loss 'cut' has no gradient"):
            player.update(lambda cut=cut: {**loss(), "cut": cut(loss()["adversarial"])}, 0)


def test_loss_that_is_a_number_is_refused_by_name():
    mine, other, player = sides()
    with pytest.raises(ValueError, match="generator's loss 'cut' is a float, which has no gradi"):
        player.update(lambda: {**losses(mine, other)(), "cut": 1.0}, 0)


def test_a_player_without_a_loss_is_named():
    *_, player = sides()
    with pytest.raises(ConfigError, match="gives the generator no loss that trains it"):
        player.update(lambda: {"mean": torch.ones(())}, 0)


def test_loss_that_is_not_reduced_is_refused_by_name():
    mine, other, player = sides()
    with pytest.raises(ValueError, match=r"generator's loss 'adversarial' has the shape \[3, 1\]"):
        player.update(lambda: {"adversarial": other(mine(torch.ones(3, 4)))}, 0)


@pytest.mark.row("N7")
def test_learning_rate_follows_the_schedule_by_the_number_of_the_update():
    mine, other, player = sides(schedule=lambda count: 0.5**count)
    for count in (0, 3, 1):
        player.update(losses(mine, other), count)
        assert player.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**count)


def test_clipping_by_norm_keeps_the_direction():
    mine, other, player = sides()
    player.update(losses(mine, other, 100.0), 0)
    free = torch.cat([p.grad.flatten() for p in mine.parameters()])
    mine, other, player = sides(Clip(norm=0.5))
    player.update(losses(mine, other, 100.0), 0)
    clipped = torch.cat([p.grad.flatten() for p in mine.parameters()])
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1.0, abs=1e-6)


def test_clipping_by_value_bounds_each_element():
    mine, other, player = sides(Clip(value=0.01))
    player.update(losses(mine, other, 100.0), 0)
    assert max(p.grad.abs().max() for p in mine.parameters()) <= 0.01


def test_weights_are_clipped_after_the_step_and_buffers_are_not():
    torch.manual_seed(0)
    mine, other = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 1)
    mine[1].running_var.fill_(3.0)
    optimizer = torch.optim.SGD(mine.parameters(), lr=1.0)
    player = Player("discriminator", mine, other, optimizer, lambda count: 1.0, Clip(weights=0.01))
    player.update(lambda: {"adversarial": other(mine(torch.randn(3, 4))).mean()}, 0)
    assert max(p.abs().max() for p in mine.parameters()) <= 0.01
    assert mine[1].running_var.max() > 1
    assert other.weight.abs().max() > 0.01


@pytest.mark.row("N7")
def test_first_adam_steps_move_by_the_learning_rates():
    """Two time scales: the ratio of the moves is the ratio of the rates."""
    moves = []
    for lr in (1e-4, 4e-4):
        mine, other, _ = sides()
        optimizer = torch.optim.Adam(mine.parameters(), lr=lr)
        player = Player("generator", mine, other, optimizer, lambda n: 1.0, statistics={"mean"})
        before = mine.weight.detach().clone()
        player.update(losses(mine, other), 0)
        moves.append((mine.weight.detach() - before).abs().mean())
    assert (moves[1] / moves[0]).item() == pytest.approx(4.0, rel=1e-3)


def test_frozen_parameters_keep_a_graph_that_was_built_before():
    """The shared fakes: made first, their generator frozen and thawed, then differentiated."""
    generator, discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
    fake = generator(torch.ones(3, 2))
    with frozen(list(generator.parameters())):
        discriminator(fake.detach()).mean().backward()
    discriminator(fake).mean().backward()
    assert generator.weight.grad is not None
