"""NaN and infinity: no weight, moment, average or running statistic ever meets them."""

import ast
import json
import time
from pathlib import Path

import pytest
import torch
from small import Numbers, Pooled, differing, everything, newest, trainer
from torch import nn

import gan
from gan import checkpoint, draws, player
from gan.run import diagnosis
from gan.step import guard
from gan.step.guard import DivergedError, NonFiniteError

pytestmark = pytest.mark.usefixtures("quick_disk")
BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def in_data(run, value):
    stream = run.stream
    stream.alter = lambda batch, position: {
        "real": batch["real"].index_fill(0, torch.tensor([3, 7]), value)  # one of each of two
    }


def in_term(side):
    def spoil(run, value):
        losses = getattr(run.recipe, f"{side}_losses")

        def spoiled(*given):
            terms = losses(*given)
            return {**terms, "adversarial": terms["adversarial"] * value}

        setattr(run.recipe, f"{side}_losses", spoiled)

    return spoil


def in_penalty(run, value):
    penalty = run.recipe.penalties["r1"]
    run.recipe.penalties = {"r1": lambda *given: value * penalty(*given)}


def in_gradient(run, value):
    """The loss is finite, one element of one gradient is not."""

    def spoil(gradient):
        return gradient.index_fill(0, torch.tensor(0), value)

    run.discriminator.parameters[0].register_hook(spoil)
    run.generator.parameters[0].register_hook(spoil)


def in_activation(run, value):
    layer = run.recipe.generator[0]
    layer.register_forward_hook(
        lambda module, given, made: made.index_fill(1, torch.tensor(0), value)
    )


PLACES = {
    "data": in_data,
    "discriminator's term": in_term("discriminator"),
    "penalty": in_penalty,
    "generator's term": in_term("generator"),
    "gradient": in_gradient,
    "activation": in_activation,
}
SIDES = {
    "discriminator's term": {"discriminator"},
    "data": {"discriminator", "generator"},  # the running mean of the recipe is put back
    "generator's term": {"generator"},
    "penalty": {"discriminator"},
}


def poisoned_step_changes_nothing(tmp_path, place, value, run=None, here=True):
    """Play healthy steps, then one that is not; returns what of the spoilt sides has changed.

    Of several processes some may have sound values of their own: not `here`.
    """
    run = run or trainer(tmp_path)
    for _ in range(3):
        run.play()  # so that moments, pool and statistics have values, and the penalty is due
    before = everything(run)
    if here:
        PLACES[place](run, value)
    with pytest.warns(UserWarning, match="skipped"):
        run.play()
    changed = differing(before, everything(run))
    changed -= {"step", "discriminator_updates", "images", "position", "skipped"}
    changed -= {"optimizers"}  # the rates of this update, functions of its number
    spoilt = [side for side, updates in run.guard.skipped.items() if updates]
    assert spoilt
    assert set(spoilt) <= SIDES.get(place, {"discriminator", "generator"})
    if len(spoilt) < 2:  # the other player's turn was sound, and counts
        (side,) = spoilt
        others = {"discriminator": ["recipe/pool"], "generator": ["average/"]}
        own = (f"{side}/", f"recipe/{side}", *others[side])
        changed = {name for name in changed if name.startswith(own)}
        # the sound turn has used the spoilt side's module in training mode
        used = ("_u", "_v", "running_mean", "running_var", "num_batches_tracked")
        changed = {name for name in changed if not name.endswith(used)}
    return changed


@pytest.mark.row("N1", "weights, moments, averages and statistics bit-identical, 18 of 18")
@pytest.mark.parametrize("place", PLACES)
def test_nothing_takes_in_a_value_that_is_not_finite(tmp_path, place, tried):
    for name, value in BAD.items():
        assert poisoned_step_changes_nothing(tmp_path, place, value) == set(), name
    tried(len(BAD))


@pytest.mark.parametrize("protection", ["decision", "buffers"])
def test_without_its_protection_a_bad_value_gets_in(tmp_path, protection, monkeypatch):
    if protection == "decision":
        monkeypatch.setattr(player, "isfinite", lambda number: True)
        monkeypatch.setattr(guard.Guard, "_restore", lambda guard: None)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            poisoned_step_changes_nothing(tmp_path, "data", torch.nan)
    else:
        monkeypatch.setattr(guard.Guard, "_restore", lambda guard: None)
        assert poisoned_step_changes_nothing(tmp_path, "activation", torch.nan)


def test_a_skipped_turn_of_the_discriminator_leaves_the_shared_fakes_their_graph(tmp_path):
    """Running statistics that are put back do not look like values that were overwritten."""
    run = trainer(tmp_path)
    in_penalty(run, torch.nan)
    before = [p.detach().clone() for p in run.recipe.generator.parameters()]
    with pytest.warns(UserWarning, match="skipped"):
        run.play()
    assert run.guard.skipped == {"generator": [], "discriminator": [0]}
    after = run.recipe.generator.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_pool_that_grew_in_a_bad_turn_is_put_back(tmp_path):
    run = trainer(tmp_path)
    run.play()
    kept = run.recipe.pool.clone()

    def grow(batch, fakes, update):
        run.recipe.pool = torch.full((9, 2, 1, 1), torch.nan)
        return {"adversarial": run.discriminator.parameters[0].sum() * torch.nan}

    run.recipe.discriminator_losses = grow
    with pytest.warns(UserWarning, match="skipped"):
        run.play()
    assert torch.equal(run.recipe.pool, kept)


# -- how many are survived


@pytest.mark.row("N2", "stops at step k + 3; the newest checkpoint is finite")
def test_values_that_stay_bad_stop_the_run_with_a_diagnosis(tmp_path, tried):
    def alter(batch, position):
        return {"real": batch["real"] * (torch.nan if position >= 5 else 1)}

    run = trainer(tmp_path, Numbers(alter=alter), steps=50, save_every=1)
    with pytest.raises(DivergedError, match="discriminator, update 8: .* is not finite") as caught:
        run.train()
    assert "optimizer.generator.lr" in str(caught.value)
    assert "diagnosis.json" in str(caught.value)
    stored = checkpoint.load(newest(tmp_path))
    assert stored.step == 8
    assert all(t.isfinite().all() for t in stored.networks.values() if t.is_floating_point())
    assert stored.state["skipped"]["discriminator"] == [5, 6, 7]
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert stopped["reason"] == "non-finite"
    assert stopped["checkpoint"].endswith("step-00000008")
    tried(1)


@pytest.mark.row("N2", "three in a row are survived, and ten of the last 10,000")
def test_a_few_bad_values_are_survived_and_counted_over_a_window(tmp_path, monkeypatch, tried):
    monkeypatch.setattr(guard, "WINDOW", 40)
    bad = [3, 4, 5, *range(10, 24, 2)]  # ten of them, three in a row

    def alter(batch, position):
        return {"real": batch["real"] * (torch.inf if position in bad else 1)}

    run = trainer(tmp_path, Numbers(alter=alter), steps=60, save_every=60)
    assert run.train()
    assert run.guard.skipped["discriminator"] == bad  # none since, so none has left the window
    bad += [43]  # 3 has left it
    trainer(tmp_path / "b", Numbers(alter=alter), steps=60, save_every=60).train()
    bad[-1] = 30  # the eleventh within it
    with pytest.raises(DivergedError, match="update 30: .*the 11th time"):
        trainer(tmp_path / "c", Numbers(alter=alter), steps=60, save_every=60).train()
    tried(3)


@pytest.mark.row("N2")
def test_a_run_goes_back_and_passes_over_the_data_that_broke_it(tmp_path, tried):
    def alter(batch, position):
        return {"real": batch["real"] * (torch.nan if position in bad else 1)}

    bad = range(20, 24)
    options = {"steps": 40, "save_every": 10, "log_every": 5}
    with pytest.raises(DivergedError):
        trainer(tmp_path / "without", Numbers(alter=alter), **options).train()
    run = trainer(tmp_path / "with", Numbers(alter=alter), rollbacks=1, **options)
    assert run.train()
    assert run.stream.position == 44
    lines = [json.loads(li) for li in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "event" not in line] == list(range(5, 41, 5))
    (event,) = [line for line in lines if line.get("event") == "rollback"]
    assert event["text"].startswith("discriminator, update 23: adversarial")
    assert event["text"].endswith("step-00000020, and past the 4 batches since")

    plain = Numbers(alter=lambda batch, position: batch)
    twin = trainer(tmp_path / "twin", plain, steps=20, save_every=10)
    twin.train()
    again = trainer(tmp_path / "twin", plain, **options)
    again.resume(newest(tmp_path / "twin"))
    plain.position = 24
    again.train()
    assert differing(everything(run), everything(again)) == set()

    bad = range(20, 1000)
    with pytest.raises(DivergedError, match="update 23"):
        trainer(tmp_path / "ever", Numbers(alter=alter), rollbacks=2, **options).train()
    assert json.loads((tmp_path / "ever/stopped.json").read_text())["reason"] == "non-finite"
    tried(3)


def test_skipped_updates_are_told_in_the_log_by_player_and_term(tmp_path):
    def alter(batch, position):
        return {"real": batch["real"] * (torch.nan if position == 2 else 1)}

    trainer(tmp_path, Numbers(alter=alter), log_every=1).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if line.get("event") == "skipped"]
    assert event["text"].startswith(
        "discriminator, update 2: adversarial, logits_real, gradient_norm"
    )
    assert event["step"] == 2
    values = [v for line in lines for tag, v in line.items() if "/" in tag]
    assert all(isinstance(value, float) for value in values)  # no mean has met the NaN


def test_a_gradient_whose_square_overflows_is_not_taken():
    """Adam would keep an infinite moment, and no checkpoint would hold it."""
    module = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Adam(module.parameters())
    side = player.Player("generator", module, nn.Identity(), optimizer, lambda update: 1.0)
    for factor in (1e25, 1e20):
        with pytest.raises(NonFiniteError, match="gradient_norm is too large, as its square"):
            side.update(lambda factor=factor: {"loss": factor * module.weight.sum()}, 0)
    assert not optimizer.state
    side.update(lambda: {"loss": 1e18 * module.weight.sum()}, 0)
    assert all(kept.isfinite().all() for kept in optimizer.state[module.weight].values())


@pytest.mark.row("T3")
def test_a_statistic_may_be_nan_and_survives_a_checkpoint(tmp_path):
    class Odd(Pooled):
        statistics = (*Pooled.statistics, "odd")

        def generator_losses(self, batch, fakes, step):
            return {**super().generator_losses(batch, fakes, step), "odd": torch.tensor(torch.nan)}

    trainer(tmp_path, recipe=Odd, log_every=4, save_every=3, steps=7).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["generator/odd"] for line in lines} == {"nan"}
    stored = checkpoint.load(tmp_path / "checkpoints" / "step-00000006")
    assert stored.state["terms"]["generator/odd"] == ["nan", "nan"]


# -- what is left behind


@pytest.mark.row("N2", "the bundle names term, module, images, history and checkpoint")
def test_the_diagnosis_names_the_first_module_and_the_samples(tmp_path, tried):
    def alter(batch, position):
        bad = {"real": batch["real"].index_fill(0, torch.tensor([2, 6]), torch.nan)}
        return bad if position >= 4 else batch

    run = trainer(tmp_path, Numbers(alter=alter), steps=20, save_every=1)
    with pytest.raises(DivergedError):
        run.train()
    told = json.loads((tmp_path / diagnosis.NAME).read_text())
    assert (told["player"], told["update"], told["step"]) == ("discriminator", 7, 7)
    assert told["terms"]["adversarial"] == "nan"
    assert told["first_module_not_finite"].startswith("discriminator.0, whose input is not")
    assert told["batch"]["real"]["samples_not_finite"] == [2, 6]
    assert len(told["history"]["discriminator/adversarial"]) == 4
    assert told["checkpoint"].endswith("step-00000007")
    assert told["gradient_norms"]
    assert len(told["try"]) == 3
    tried(1)


def test_the_diagnosis_finds_the_layer_that_makes_the_first_bad_value(tmp_path):
    run = trainer(tmp_path)
    run.play()
    in_activation(run, torch.inf)
    next(run.stream)
    before = everything(run)
    assert diagnosis.first_module(run, "generator", 1) == "generator.0"
    assert differing(before, everything(run)) <= {"position"}


@pytest.mark.parametrize("order", ["discriminator", "generator"])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize(
    "chosen", [{}, {"n_critic": 2}, {"discriminator_warmup": 2}, {"micro_batch": 4}]
)
def test_a_turn_is_played_again_on_the_same_draws(tmp_path, order, player, chosen):
    """The generator drops units out and stands still; a turn's batch and losses draw beside."""
    seen = []

    class Seen(Pooled):
        def prepare(self, batch):
            real = batch["real"]
            return {"real": real + draws.normal(*real.shape, device=real.device)}

        def discriminator_losses(self, batch, fakes, update):
            note(update, batch, fakes)
            return spoiled("discriminator", super().discriminator_losses(batch, fakes, update))

        def generator_losses(self, batch, fakes, step):
            note(step, batch, fakes)
            return spoiled("generator", super().generator_losses(batch, fakes, step))

    def note(count, batch, fakes):
        whole = (fakes["image"].detach(), torch.rand(2)) if "micro_batch" not in chosen else ()
        seen.append((count, batch["real"], *whole))  # of pieces each drops out for itself

    def spoiled(side, terms):
        bad = torch.nan if side == player else 1.0
        return {**terms, "adversarial": terms["adversarial"] * bad}

    run = trainer(tmp_path, recipe=Seen, order=order, rates=(0.0, 1e-2), steps=20, **chosen)
    with pytest.raises(DivergedError):
        run.train()
    *pieces, (again, *replayed) = seen[-1 - 8 // len(seen[-2][1]) :]
    assert {count for count, *_ in pieces} == {again}
    for one, other in zip(zip(*(made for _, *made in pieces), strict=True), replayed, strict=True):
        assert torch.equal(torch.cat(one), other)


def test_a_run_tells_its_end_where_no_diagnosis_can_be_made(tmp_path):
    run = trainer(tmp_path, Numbers(alter=lambda batch, position: {"real": batch["real"] / 0}))
    run.stream.keys_at = lambda position: 1 / 0
    with pytest.raises(DivergedError, match=r"no diagnosis, as .* \(ZeroDivisionError"):
        run.train()
    assert json.loads((tmp_path / "stopped.json").read_text())["reason"] == "non-finite"


def test_the_last_two_hundred_values_are_kept(tmp_path):
    run = trainer(tmp_path)
    for number in range(250):
        run.monitor.note("generator", {"adversarial": torch.tensor(float(number))})
    assert run.monitor.history()["generator/adversarial"] == [float(n) for n in range(50, 250)]


@pytest.mark.row("N15", "stops with a bundle; every checkpoint finite")
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_an_absurd_learning_rate_stops_the_run(tmp_path, optimizer, tried):
    run = trainer(tmp_path, optimizer=optimizer, rates=(1e20, 1e20), steps=200, save_every=1)
    began = time.process_time()
    with pytest.raises(DivergedError, match="not finite"):
        run.train()
    assert time.process_time() - began < 10
    stored = checkpoint.load(newest(tmp_path))
    assert all(t.isfinite().all() for t in stored.networks.values() if t.is_floating_point())
    assert (tmp_path / diagnosis.NAME).exists()
    tried(1)


def test_a_bad_update_by_itself_is_an_error_that_names_the_terms():
    from gan.player import Player

    mine, other = nn.Linear(2, 2), nn.Linear(2, 1)
    before = mine.weight.detach().clone()
    player = Player(
        "generator", mine, other, torch.optim.SGD(mine.parameters(), 0.1), lambda n: 1.0
    )
    with pytest.raises(NonFiniteError, match="generator, update 3: adversarial, gradient_norm is"):
        player.update(lambda: {"adversarial": other(mine(torch.ones(1, 2))).mean() * torch.nan}, 3)
    assert torch.equal(mine.weight, before)


# -- never repaired in silence


def repairs(source):
    """Calls that would hide what is not finite, and loss scalers, which none of this needs."""
    return [
        node.func.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("nan_to_num", "nan_to_num_", "GradScaler")
    ]


@pytest.mark.row("N4", "no nan_to_num and no loss scaler in the package")
@pytest.mark.row("N3", "no loss scaler in the package, hence none that collapses")
def test_nothing_in_the_package_hides_bad_values(tried):
    files = sorted(Path(gan.__file__).parent.rglob("*.py"))
    assert [file for file in files if repairs(file.read_text())] == []
    assert repairs("grad = torch.nan_to_num(grad)\nscaler = torch.amp.GradScaler()")
    tried(len(files))
