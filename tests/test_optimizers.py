"""Schedules equal their formulas at chosen updates; optimizers are torch's own."""

import copy
import math
from pathlib import Path

import pytest
import torch

from gan.build import build
from gan.registry import ConfigError, create
from gan.run import rundir
from gan.step.adam import stepping

FORMULAS = {
    "constant": lambda s: 1.0,
    "linear": lambda s: 1 - s,
    "exponential": lambda s: 0.01**s,
    "cosine": lambda s: 0.5 * (1 + math.cos(math.pi * s)),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("update", [0, 1, 25, 50, 99, 100, 200])
def test_factor_equals_the_formula(name, update):
    schedule = create("schedule", name, length=100)
    assert schedule(update) == pytest.approx(FORMULAS[name](min(1.0, update / 100)), abs=1e-12)


def test_linear_waits_for_its_start_and_ends_at_its_end():
    schedule = create("schedule", "linear", length=100, start=0.5, end=0.2)
    values = [schedule(update) for update in (0, 50, 75, 100)]
    assert values == pytest.approx([1.0, 1.0, 0.6, 0.2])


@pytest.mark.parametrize("name", FORMULAS)
def test_warmup_rises_in_a_straight_line(name):
    schedule = create("schedule", name, length=1000, warmup=4)
    plain = create("schedule", name, length=1000)
    rises = [schedule(update) / plain(update) for update in range(6)]
    assert rises == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("name", [pytest.param("linear", marks=pytest.mark.slow), "cosine"])
def test_rates_of_a_resumed_run_follow_the_formula_on_both_clocks(tiny, name):
    kinds = [f"schedule@schedule.{side}={name}" for side in ("generator", "discriminator")]
    lengths = ["schedule.generator.length=10", "schedule.discriminator.length=20"]
    overrides = [*kinds, *lengths, "trainer.n_critic=2", "trainer.discriminator_warmup=3"]
    build(tiny("dcgan", *overrides, "trainer.steps=3")).train()
    trainer = build(tiny("dcgan", *overrides, "trainer.steps=5"))
    trainer.train()
    rates = [player.optimizer.param_groups[0]["lr"] for player in trainer.players]
    last = trainer.step - 1, trainer.discriminator_updates - 1
    assert last == (4, 12)
    expected = [2e-4 * FORMULAS[name](last[0] / 10), 2e-4 * FORMULAS[name](last[1] / 20)]
    assert rates == pytest.approx(expected)


def reference(name, parameters):
    kinds = torch.optim
    return {
        "adam": lambda: kinds.Adam(
            parameters, lr=0.1, betas=(0.3, 0.9), amsgrad=True, weight_decay=0.1
        ),
        "adamw": lambda: kinds.AdamW(parameters, lr=0.1, betas=(0.5, 0.999), weight_decay=0.1),
        "sgd": lambda: kinds.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        "rmsprop": lambda: kinds.RMSprop(parameters, lr=0.1, alpha=0.9, momentum=0.5),
    }[name]()


SETTINGS = {
    "adam": {"betas": [0.3, 0.9], "amsgrad": True, "weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"alpha": 0.9, "momentum": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_option_reaches_torch(name):
    results = []
    for make in (
        lambda p: create("optimizer", name, parameters=p, lr=0.1, **SETTINGS[name]),
        lambda p: reference(name, p),
    ):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = make([weight])
        for _ in range(5):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_steps_over_kept_lists_are_torchs_own_to_the_bit(name):
    torch.manual_seed(0)
    both = [[torch.nn.Parameter(torch.full((2, 3), float(n))) for n in range(4)] for _ in range(2)]
    ours, own = (
        create("optimizer", name, parameters=[{"params": p[:2], "lr": 0.1}, {"params": p[2:]}])
        for p in both
    )
    step = stepping(ours)
    for update in range(9):
        for mine, other in zip(*both, strict=True):
            mine.grad = torch.randn(2, 3)
            other.grad = mine.grad.clone()
        if update in (0, 4):  # a moment that is missing, and a gradient
            both[0][1].grad = both[1][1].grad = None
        if update == 6:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        for group in (*ours.param_groups, *own.param_groups):
            group["lr"] *= 0.9
        step()
        own.step()
        for mine, other in zip(*both, strict=True):
            assert torch.equal(mine, other)
            assert ours.state[mine].keys() == own.state[other].keys()
            for key, kept in own.state[other].items():
                assert torch.equal(ours.state[mine][key], kept), key
    assert step._kept, "the lists were never used"


def test_an_unusual_adam_takes_its_own_step():
    weight = torch.nn.Parameter(torch.ones(3))
    for options in ({"amsgrad": True}, {"fused": False}, {"lr": torch.tensor(0.1)}):
        optimizer = torch.optim.Adam([weight], **{"fused": True, **options})
        step, called = stepping(optimizer), []
        optimizer.step = lambda called=called: called.append(1)
        weight.grad = torch.ones(3)
        step()
        assert called == [1]


def test_hooks_that_come_later_are_called():
    weight, called = torch.nn.Parameter(torch.ones(3)), []
    optimizer = torch.optim.Adam([weight], fused=True)
    step = stepping(optimizer)
    for _ in range(3):
        weight.grad = torch.ones(3)
        step()
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    step()
    assert called == [1]


def test_fewer_steps_than_were_trained_are_refused_and_nothing_is_written(tiny, unreported):
    build(tiny("dcgan", "trainer.steps=3")).train()
    before = Path("run/config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"trainer\.steps=2 lies behind step 3.*run_dir=run"):
        build(tiny("dcgan", "trainer.steps=2"))
    assert Path("run/config.yaml").read_text() == before
    rundir.release(Path("run"))
    build(tiny("dcgan", "trainer.steps=3")).stream.close()


def test_steps_beyond_the_end_of_both_schedules_are_refused(tiny, unreported):
    linear = [f"schedule@schedule.{side}=linear" for side in ("generator", "discriminator")]
    for chosen, folder in ((linear, "ended"), (linear[:1], "half")):
        build(tiny("dcgan", *chosen, f"run_dir={folder}", "trainer.steps=2")).train()
        build(tiny("dcgan", *chosen, f"run_dir={folder}", "trainer.steps=2")).stream.close()
    with pytest.raises(ConfigError, match=r"=3 was 2 until now.*rates would be 0.*init=ended"):
        build(tiny("dcgan", *linear, "run_dir=ended", "trainer.steps=3"))
    build(tiny("dcgan", *linear[:1], "run_dir=half", "trainer.steps=3")).stream.close()
    begun = build(tiny("dcgan", *linear, "run_dir=begun", "trainer.steps=3"))
    begun.play()
    assert begun.save()
    begun.stream.close()
    with pytest.raises(ConfigError, match=r"steps=5 was 3 until now.*begun end before.*init=begun"):
        build(tiny("dcgan", *linear, "run_dir=begun", "trainer.steps=5"))
    rundir.release(Path("begun"))
    build(tiny("dcgan", *linear, "run_dir=begun", "trainer.steps=3")).stream.close()
    elsewhere = [f"resume={Path('begun/checkpoints/step-00000001')}", "run_dir=elsewhere"]
    with pytest.raises(ConfigError, match=r"steps=5 was 3 until now.*run_dir=elsewhere end before"):
        build(tiny("dcgan", *linear, *elsewhere, "trainer.steps=5"))
    short = [f"schedule.{side}.length=1" for side in ("generator", "discriminator")]
    overrides = [*linear, *short, "run_dir=short", "trainer.steps=3"]
    stopped = build(tiny("dcgan", *overrides))
    stopped.play()
    stopped.play()
    assert stopped.save()
    stopped.stream.close()
    build(tiny("dcgan", *overrides)).stream.close()  # the same command goes on


THAWING = {
    **{name: (name, {}) for name in SETTINGS},
    **{f"{name} otherwise": (name, changed) for name, changed in SETTINGS.items()},
    "sgd with all": ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd with momentum": ("sgd", {"momentum": 0.9}),
    "rmsprop with decay": ("rmsprop", {"momentum": 0.9, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("case", THAWING)
def test_a_weight_that_thaws_is_stepped_as_by_torch_one_by_one(case):
    """Also where a checkpoint without its state comes between, and where it sleeps once more."""
    name, options = THAWING[case]
    torch.manual_seed(0)
    both = [[torch.nn.Parameter(torch.full((3,), 1.0 + n)) for n in range(3)] for _ in range(2)]
    ours, own = (create("optimizer", name, parameters=p, lr=0.1, **options) for p in both)
    own.param_groups[0].update(fused=None, foreach=False)
    own._optimizer_step_pre_hooks.clear()
    step = stepping(ours)
    for update in range(9):
        if update == 3:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        for number, pair in enumerate(zip(*both, strict=True)):
            awake = update >= 3 * number and (number, update) != (1, 5)
            gradient = torch.randn(3)
            for weight in pair:
                weight.grad = gradient.clone() if awake else None
        step()
        own.step()
        for mine, other in zip(*both, strict=True):
            torch.testing.assert_close(mine, other)
