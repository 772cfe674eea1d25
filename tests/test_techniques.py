"""Switches of the training, each from the configuration, and what it must and must not move."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from gan.build import build
from gan.checkpoint import CheckpointError
from gan.commands import train
from gan.config.check import check
from gan.config.settings import Settings
from gan.registry import ConfigError
from gan.run import optimizer_state, state

README = Path(__file__).parents[1] / "README.md"


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(before, module):
    pairs = zip(before, module.parameters(), strict=True)
    return [not torch.equal(a, b) for a, b in pairs]


def test_updates_of_a_whole_run_are_counted_without_walking_it():
    pieces = {0: 3, 2: 1, 5: 4}
    settings = Settings(steps=7, n_critic=pieces, discriminator_warmup=2)
    assert settings.discriminator_updates() == 2 + sum(settings.critic(step) for step in range(7))
    assert Settings(steps=10**13, n_critic=5).discriminator_updates() == 5 * 10**13


# -- stopping gradients, four ways


def test_frozen_submodules_are_not_trained_and_the_others_are(tiny, unreported):
    trainer = build(tiny("wnet", "freeze=[generator.style_encoder,discriminator.first]"))
    generator, discriminator = trainer.recipe.generator, trainer.recipe.discriminator
    kept = weights(generator.style_encoder), weights(discriminator.first)
    free = weights(generator.decoder), weights(discriminator.inner)
    trainer.train()
    assert not any(moved(kept[0], generator.style_encoder))
    assert not any(moved(kept[1], discriminator.first))
    assert all(p.grad is None for p in generator.style_encoder.parameters())
    assert any(moved(free[0], generator.decoder))
    assert any(moved(free[1], discriminator.inner))


def test_a_submodule_frozen_until_a_step_is_trained_from_it_on(tiny):
    trainer = build(tiny("wnet", "freeze={generator.decoder: 2}"))
    decoder = trainer.recipe.generator.decoder
    history = []
    for _ in range(4):
        before = weights(decoder)
        trainer.play()
        history.append(any(moved(before, decoder)))
    assert history == [False, False, True, True]
    trainer.stream.close()


@pytest.mark.parametrize("outer", [1, 3])
def test_of_nested_parts_each_wakes_at_its_own_update(tiny, outer):
    updates = {"generator.decoder.levels": 2, "generator.decoder": outer}
    for freeze in (updates, dict(reversed(updates.items()))):
        run = build({**tiny("wnet"), "freeze": freeze})
        run.stream.close()
        decoder = run.recipe.generator.decoder
        inside, whole = ({*part.parameters()} for part in (decoder.levels, decoder))
        woken = [(p, until) for until, several in run.generator.asleep for p in several]
        assert len(woken) == len(whole) > len(inside) > 0
        assert dict(woken) == {p: 2 if p in inside else outer for p in whole}


MOMENTUM = ("optimizer@optimizer.discriminator=sgd", "optimizer.discriminator.momentum=0.9")


@pytest.mark.parametrize("chosen", [(), MOMENTUM])
def test_thawing_survives_a_resume(tiny, chosen):
    def values(run_dir, steps):
        composed = tiny(
            "dcgan", f"run_dir={run_dir}", f"trainer.steps={steps}", "trainer.n_critic=2", *chosen
        )
        composed["freeze"] = {"generator.image": 3, "discriminator.inner": 5}
        composed["schedule"] = {
            side: {"name": "constant"} for side in ("generator", "discriminator")
        }
        return composed

    whole = build(values("whole", 5))
    whole.train()
    build(values("parts", 2)).train()
    again = build(values("parts", 5))
    again.train()
    first, second = (state.gather(r.recipe, r.averages, r.players) for r in (whole, again))
    for tensors, others in zip(first[:2], second[:2], strict=True):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_the_updates_that_a_part_sleeps_are_those_of_its_player(tiny):
    overrides = ["trainer.n_critic=2", "trainer.discriminator_warmup=3"]
    trainer = build(tiny("dcgan", *overrides, "freeze={discriminator.inner: 6}"))
    inner, history = trainer.recipe.discriminator.inner, []
    for turn in range(5):
        before = weights(inner)
        if turn < 3:
            trainer.discriminate(shared=False)
        else:
            trainer.play()
        history.append((trainer.discriminator_updates, trainer.step, any(moved(before, inner))))
    trainer.stream.close()
    assert history == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (5, 1, 0), (7, 2, 1)]


def test_a_rate_of_zero_keeps_a_submodule_and_another_scales_its_first_step(tiny):
    rates = "rates={generator.style_encoder: 0, generator.content_encoder: 5e-6}"
    trainer = build(tiny("wnet", rates))
    generator = trainer.recipe.generator
    before = {name: weights(child) for name, child in generator.named_children()}
    trainer.play()

    def move(name):
        pairs = zip(before[name], getattr(generator, name).parameters(), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    assert move("style_encoder") == 0
    assert move("content_encoder") == pytest.approx(5e-6, rel=0.05)  # Adam's first step is its rate
    assert move("decoder") == pytest.approx(5e-4, rel=0.05)
    trainer.stream.close()


def test_a_rate_of_zero_keeps_a_submodule_that_weight_clipping_would_bound(tiny):
    common = ("clip.discriminator.weights=0.001", "optimizer.discriminator.lr=1e-4")
    trainer = build(tiny("dcgan", *common, "rates={discriminator.first: 0}"))
    discriminator = trainer.recipe.discriminator
    kept = weights(discriminator.first)
    assert max(weight.abs().max() for weight in kept) > 0.001
    trainer.play()
    trainer.stream.close()
    assert not any(moved(kept, discriminator.first))
    first = {*discriminator.first.parameters()}
    bound = [p.abs().max().item() for p in discriminator.parameters() if p not in first]
    assert max(bound) == pytest.approx(0.001)
    still = build(tiny("dcgan", *common, "optimizer.discriminator.lr=0", "run_dir=still"))
    kept = weights(still.recipe.discriminator)
    still.play()
    still.stream.close()
    assert not any(moved(kept, still.recipe.discriminator))


@pytest.mark.parametrize("side", ["generator", "discriminator"])
def test_with_a_rate_of_zero_the_rest_is_clipped_and_trained_as_beside_a_frozen_part(tiny, side):
    part = {"generator": "generator.image", "discriminator": "discriminator.first"}[side]
    common = f"optimizer@optimizer.{side}=sgd", f"clip.{side}.norm=0.01"
    found = []
    for number, kept in enumerate((f"freeze=[{part}]", f"rates={{{part}: 0}}")):
        run = build(tiny("dcgan", *common, kept, f"run_dir=run{number}"))
        for _ in range(2):
            run.play()
        run.stream.close()
        assert all(p.grad is None for p in run.recipe.get_submodule(part).parameters())
        found.append(state.gather(run.recipe, run.averages, run.players))
    for first, second in zip(found[0][:2], found[1][:2], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_inside_a_part_with_a_rate_of_zero_another_may_be_trained(tiny):
    rates = "rates={generator: 0, generator.decoder: 0, generator.decoder.levels: 1e-3}"
    trainer = build(tiny("wnet", rates))
    generator = trainer.recipe.generator
    before, inside = weights(generator), {*generator.decoder.levels.parameters()}
    trainer.play()
    trainer.stream.close()
    pairs = zip(generator.parameters(), moved(before, generator), strict=True)
    assert {p for p, changed in pairs if changed} <= inside
    assert [len(group["params"]) for group in trainer.generator.optimizer.param_groups] == [
        0,
        len(inside),
    ]
    assert {*trainer.generator.parameters} == inside


def test_a_rate_of_zero_outlasts_the_sleep_of_a_part(tiny):
    both = ["freeze={generator.image: 2}", "rates={generator.image: 0}"]
    trainer = build(tiny("dcgan", *both))
    kept = weights(trainer.recipe.generator.image)
    for _ in range(4):
        trainer.play()
    trainer.stream.close()
    assert not any(moved(kept, trainer.recipe.generator.image))
    assert trainer.generator.asleep == []


def test_with_an_optimizers_rate_of_zero_only_parts_with_their_own_are_trained(tiny):
    chosen = ["optimizer.discriminator.lr=0", "rates={discriminator.first: 1e-3}"]
    trainer = build(tiny("dcgan", "clip.discriminator.weights=0.01", *chosen))
    discriminator = trainer.recipe.discriminator
    before, first = weights(discriminator), {*discriminator.first.parameters()}
    trainer.play()
    trainer.stream.close()
    pairs = zip(discriminator.parameters(), moved(before, discriminator), strict=True)
    assert {p for p, changed in pairs if changed} == first == {*trainer.discriminator.parameters}


@pytest.mark.parametrize(
    "rates",
    [
        ["rates={generator.style_encoder: 0, generator.content_encoder: 0}"],
        ["rates={generator.decoder: 1e-3}", "optimizer.generator.lr=0"],
    ],
)
def test_rates_of_zero_leave_something_to_train_while_the_rest_sleeps(tiny, rates):
    with pytest.raises(ConfigError, match=r"rates: generator.*: 0 would leave nothing of the gen"):
        build(tiny("wnet", "freeze={generator.decoder: 5}", *rates))


def test_a_rate_of_zero_beside_freezing_asks_for_the_same(tiny):
    both = ["freeze=[generator.image]", "rates={generator.image: 0}"]
    build(tiny("dcgan", *both)).stream.close()


def test_rates_in_another_order_are_the_same_run(tiny):
    one = ["generator.style_encoder: 1e-3", "generator.content_encoder: 5e-6"]
    first = build(tiny("wnet", f"rates={{{', '.join(one)}}}"))
    first.play()
    assert first.save()
    first.stream.close()
    again = build(tiny("wnet", f"rates={{{', '.join(reversed(one))}}}"))
    assert again.step == 1
    moments = [
        {name: player.optimizer.state[weight]["exp_avg"] for name, weight in part}
        for player, part in (
            (run.generator, run.recipe.generator.named_parameters()) for run in (first, again)
        )
    ]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])
    assert [g["part"] for g in again.generator.optimizer.param_groups] == [
        "generator",
        "generator.content_encoder",
        "generator.style_encoder",
    ]
    again.stream.close()


def test_moments_of_another_part_are_refused():
    live = [{"params": [0], "lr": 1.0, "part": "generator.to_a"}]
    stored = [{"params": [0], "lr": 1.0, "part": "generator.to_b"}]
    with pytest.raises(
        CheckpointError, match=r"of generator\.to_b where they are of generator\.to_a"
    ):
        optimizer_state._merged(live, stored, "optimizers")
    assert optimizer_state._merged(live, live, "optimizers") == live


def test_unknown_submodules_are_refused_with_the_nearest(tiny):
    values = tiny("wnet", "freeze=[generator.decodr]")
    with pytest.raises(
        ConfigError, match=r"freeze: generator\.decodr.*did you mean 'generator\.decoder'"
    ):
        build(values)
    values = tiny("wnet", "rates={generator.decodr: 1}")
    with pytest.raises(
        ConfigError, match=r"rates: generator\.decodr.*did you mean 'generator\.decoder'"
    ):
        build(values)


@pytest.mark.parametrize("named", ["freeze=[{}]", "freeze={{{}: 5}}", "rates={{{}: 0}}"])
def test_a_part_without_parameters_is_refused_and_never_suggested(tiny, named):
    said = r"generator\.activate has no parameters; known: generator\.\w+"
    with pytest.raises(ConfigError, match=said) as refusal:
        build(tiny("dcgan", named.format("generator.activate")))
    assert "activate" not in str(refusal.value).partition("; ")[2]


def test_a_whole_player_cannot_be_frozen(tiny):
    with pytest.raises(ConfigError, match="freeze: generator would leave nothing to train"):
        build(tiny("wnet", "freeze=[generator]"))


def test_detach_and_no_grad_leave_no_graph(tiny):
    trainer = build(tiny("dcgan"))
    _, fakes = trainer.discriminate(shared=False)
    assert not fakes["image"].requires_grad  # made without a graph where the generator has no turn
    _, fakes = trainer.discriminate(shared=True)
    assert fakes["image"].requires_grad
    assert all(p.grad is None for p in trainer.recipe.generator.parameters())
    trainer.stream.close()


# -- clipping, averages, warnings


def test_the_norm_before_clipping_is_logged(tiny):
    free = build(tiny("dcgan", "run_dir=free", "trainer.log_every=1", "trainer.steps=1"))
    free.train()
    overrides = [
        "clip.generator.norm=1e-3",
        "run_dir=clipped",
        "trainer.log_every=1",
        "trainer.steps=1",
    ]
    build(tiny("dcgan", *overrides)).train()
    norms = [
        json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[0])[
            "generator/gradient_norm"
        ]
        for folder in ("free", "clipped")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[1] > 1e-2


def test_both_averages_stand_side_by_side(tiny, unreported):
    overrides = ["average=both", "average.halflife=50", "schedule.generator.length=9"]
    trainer = build(tiny("wnet", *overrides))
    assert list(trainer.generators()) == ["raw", "uniform", "ema"]
    trainer.train()
    line = Path("run/metrics.jsonl").read_text()
    for tag in ("metric/validation_l1", "metric/raw_validation_l1", "metric/uniform_validation_l1"):
        assert f'"{tag}"' in line
    again = build(tiny("wnet", *overrides, "trainer.steps=5"))
    assert again.averages["uniform"].updates == again.averages["ema"].updates == 4


@pytest.mark.parametrize(("every", "said"), [((1, 1), 1), ((1, 16), 0), ((16, 16), 0)])
def test_two_slope_penalties_at_every_update_are_told(tiny, every, said):
    pairs = zip(("r1", "r2"), every, strict=True)
    on = [f"penalties.{n}.{key}" for n, k in pairs for key in ("weight=1", f"every={k}")]
    notes = check(tiny("dcgan", "discriminator.norm=layer", *on)).notes
    assert sum("penalties.r2 at every update nearly double" in note for note in notes) == said


def test_wasserstein_without_any_constraint_warns(tiny, capsys):
    build(tiny("dcgan", "adversarial=wasserstein")).stream.close()
    assert "nothing keeps the discriminator Lipschitz" in capsys.readouterr().out
    for constraint in ("clip.discriminator.weights=0.01", "discriminator.norm=spectral"):
        build(
            tiny("dcgan", "adversarial=wasserstein", constraint, f"run_dir={constraint[:4]}")
        ).stream.close()
        assert "Lipschitz" not in capsys.readouterr().out


# -- losses of W-Net chosen from the configuration


def test_class_and_reconstruction_losses_are_switches(tiny, unreported):
    overrides = ["classification=focal", "reconstruction.l2.weight=3", "recipe.l1=0"]
    overrides += ["reconstruction.perceptual.network=discriminator", "trainer.log_every=1"]
    build(tiny("wnet", *overrides, "trainer.steps=1")).train()
    line = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert line["generator/reconstruction_l2"] > 0
    assert line["generator/reconstruction_perceptual"] > 0
    assert "generator/l1" not in line


# -- a user's own parts


def test_the_readmes_plugin_trains_as_it_stands(monkeypatch, tmp_path, glyph_store):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (plugin,) = (block for block in blocks if "@register" in block)
    assert len(plugin.splitlines()) <= 40
    (command,) = re.findall(r"python train\.py (plugins=.*)", README.read_text())
    (tmp_path / "my_gan.py").write_text(plugin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    small = [f"data.path={glyph_store}", "data=fonts", "image.size=16", "trainer.batch_size=8"]
    status = train.main([*command.split(), *small, "discriminator.width=4", "trainer.steps=2"])
    assert status == 0
    line = json.loads(Path("runs/dcgan-fonts/metrics.jsonl").read_text().splitlines()[-1])
    assert line["generator/moment"] > 0


def test_a_missing_plugin_is_a_mistake(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train.main(["plugins=[nowhere]"]) == 2
    assert "plugins=[nowhere]" in capfd.readouterr().err


def test_a_plugin_that_fails_is_a_mistake_and_its_name_may_stand_in_quotes(
    monkeypatch, tmp_path, capfd
):
    (tmp_path / "failing.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in ("failing", '"failing"', " failing "):
        assert train.main([f"plugins=[{name}]"]) == 2
        assert "plugins=[failing]: RuntimeError: no licence" in capfd.readouterr().err


def test_hparams_hold_the_settings_and_the_final_metrics(tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build(tiny("dcgan", "seed=7")).train()
    summary = EventAccumulator("run/tensorboard").Reload().summary_metadata
    assert any(tag.startswith("_hparams_/session_start_info") for tag in summary)
