"""What turns leave as it was, and how often each thing happens, in the smallest game."""

import copy

import pytest
import torch
from small import Numbers, differing, everything, newest, resumed, trainer

pytestmark = pytest.mark.usefixtures("quick_disk")


def forwards(module):
    """The inputs of a module's forward passes in training mode, from now on."""
    seen = []
    module.register_forward_pre_hook(
        lambda m, given: seen.append([x.detach().clone() for x in given]) if m.training else None
    )
    return seen


@pytest.mark.row("N6")
@pytest.mark.parametrize("side", ["generator", "discriminator"])
def test_a_turn_moves_the_opponents_buffers_by_its_forwards_alone(tmp_path, side):
    run = trainer(tmp_path)
    run.play()
    opponent = getattr(run.recipe, "discriminator" if side == "generator" else "generator")
    twin, seen = copy.deepcopy(opponent).train(), forwards(opponent)
    before = [buffer.clone() for buffer in opponent.buffers()]
    dealt = run.discriminate(shared=True)
    if side == "generator":
        twin, before = copy.deepcopy(opponent), [b.clone() for b in opponent.buffers()]
        twin._forward_pre_hooks.clear()
        seen.clear()
        run.generate(dealt)
    with torch.no_grad():
        for given in seen:
            twin(*given)
    assert len(seen) == 1
    moved = [*opponent.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(moved, twin.buffers(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(moved, before, strict=True))


GAME = {"n_critic": {0: 2, 300: 1}, "discriminator_warmup": 7, "save_every": 400}


def counted(run, found):
    """Adds each update's player, number, rate and whether its lazy penalty was due."""
    for player in run.players:

        def update(losses, count, player=player, original=player.update):
            terms = original(losses, count)
            rates = [group["lr"] for group in player.optimizer.param_groups]
            found.append((player.name, count, *rates, "r1" in terms))
            return terms

        player.update = update
    return run


@pytest.mark.slow
@pytest.mark.row("N7")
def test_a_thousand_steps_have_their_updates_penalties_and_rates(tmp_path, tried):
    """Two time scales, a schedule, a warm-up, a lazy penalty, and a resume in between."""
    options = {"rates": (1e-3, 4e-3), "log_every": 1000, **GAME}
    whole, broken = [], []
    run = counted(trainer(tmp_path / "whole", Numbers(), steps=1000, **options), whole)
    run.train()
    counted(trainer(tmp_path / "broken", Numbers(), steps=400, **options), broken).train()
    again = counted(resumed(tmp_path / "broken", Numbers(), steps=1000, **options), broken)
    again.train()
    critics = [count for name, count, *_ in whole if name == "discriminator"]
    steps = [count for name, count, *_ in whole if name == "generator"]
    assert critics == list(range(7 + 2 * 300 + 700))
    assert steps == list(range(1000))
    dues = [due for name, *_, due in whole if name == "discriminator"]
    assert dues == [count % 3 == 0 for count in critics]
    cosine = 0.5 * (1 + torch.linspace(0, torch.pi, 201, dtype=torch.float64).cos())
    for name, count, rate, _ in whole:
        top = 4e-3 if name == "discriminator" else 1e-3
        assert rate == pytest.approx(top * cosine[min(count, 200)].item(), abs=1e-9)
    assert broken == whole
    assert differing(everything(run), everything(again)) == set()
    assert newest(tmp_path / "broken").name == "step-00001000"
    tried(len(whole))
