"""Parts of a user's own: trained, kept, measured, drawn from on what they say, or refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import gan
from gan import draws, registry
from gan.average import Average
from gan.build import build
from gan.config.check import check
from gan.data.datasets import Plan
from gan.data.store import Store
from gan.losses.adversarial import Adversarial
from gan.metrics import evaluation, image_evaluation
from gan.recipe import Recipe
from gan.recipes.synthesis import Synthesis
from gan.registry import ConfigError, Count, register
from gan.run import rundir, state
from gan.step.guard import SIDES

GIVEN = ("generator", "discriminator", "adversarial", "penalties")
ARGUMENTS = ("size", "channels")


class Layers(nn.Module):
    """A picture and how much of it is seen."""

    def __init__(self, size: Count, channels: Count, latent: Count = 8):
        super().__init__()
        self.latent = latent
        self.paint = nn.Linear(latent, (channels + 1) * size * size)
        self.shape = channels + 1, size, size

    def forward(self, noise):
        made = self.paint(noise).unflatten(1, self.shape)
        return made[:, 1:].tanh(), made[:, :1].sigmoid()


class Painted(nn.Module):
    """A generator whose only layer is made by `layer(latent, pixels)`."""

    def __init__(self, layer):
        super().__init__()
        self.latent, self.layer = 8, layer(8, 256)

    def forward(self, noise):
        return self.layer(noise).unflatten(1, (1, 16, 16)).tanh()


class Turned(nn.Linear):
    """A layer of complex weights."""

    def __init__(self, *sizes):
        super().__init__(*sizes, dtype=torch.complex64)

    def forward(self, x):
        return super().forward(x.to(torch.complex64)).real


class Sparse(nn.Embedding):
    """A layer that reads a few of its rows."""

    def __init__(self, count, size):
        super().__init__(count, size, sparse=True)

    def forward(self, x):
        return super().forward(x.argmax(1))


class Masked(Synthesis):
    """A generator that gives more than images."""

    @staticmethod
    def draw(generator, *given):
        picture, seen = generator(*given)
        return picture * seen


class Unmasked(Synthesis):
    """The same slip that everybody makes: only play knows how images are made."""

    def generate(self, batch):
        noise = draws.normal(len(batch["real"]), self.generator.latent, device=batch["real"].device)
        picture, seen = self.generator(noise)
        return {"image": picture * seen}

    def samples(self, generator, batch):
        return {"generated": generator(self.shown)[0]}


class Flat(Synthesis):
    """Noise between -1 and 1 instead of a normal one."""

    @staticmethod
    def noise(normal):
        return torch.erf(normal / 2**0.5)


class Stubborn(Synthesis):
    """Noise that measures know nothing of."""

    def generate(self, batch):
        real = batch["real"]
        noise = draws.uniform(len(real), self.generator.latent, device=real.device)
        return {"image": self.generator(noise)}


class Known(Stubborn):
    """The same noise, told."""

    @staticmethod
    def noise(normal):
        return (1 + torch.erf(normal / 2**0.5)) / 2


class Plain(Recipe):
    """From nothing but the interface."""

    def __init__(self, generator, discriminator, adversarial, penalties):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.adversarial = adversarial

    def generate(self, batch):
        noise = draws.normal(len(batch["real"]), self.generator.latent, device=batch["real"].device)
        return {"image": self.generator(noise)}

    def discriminator_losses(self, batch, fakes, update):
        real, fake = self.discriminator(batch["real"]), self.discriminator(fakes["image"])
        return {"adversarial": self.adversarial.discriminator(real, fake)}

    def generator_losses(self, batch, fakes, step):
        fake = self.discriminator(fakes["image"])
        return {"adversarial": self.adversarial.generator(fake, lambda: fake)}

    def samples(self, generator, batch):
        return {"generated": generator(torch.zeros(4, generator.latent))}


class Encoding(Synthesis):
    """A third network beside the players."""

    def __init__(self, generator, discriminator, adversarial, penalties):
        super().__init__(generator, discriminator, adversarial, penalties)
        self.encoder = nn.Linear(1, generator.latent)


class Tempered(Adversarial, nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.ones(()))

    def discriminator(self, real_logits, fake_logits):
        return (self.scale * (fake_logits - real_logits)).mean()

    def generator(self, fake_logits, real_logits_of):
        return -(self.scale * fake_logits).mean()


class Cooled(Adversarial):
    """The same as a plain class, which is no module."""

    discriminator, generator = Tempered.discriminator, Tempered.generator

    def __init__(self):
        self.scale = nn.Parameter(torch.ones(()))


@pytest.fixture
def own(tiny, monkeypatch):
    """Registers a part for this test alone; composes a run with it."""
    monkeypatch.setattr(evaluation, "LEAST", image_evaluation.LEAST)
    kinds = {kind: dict(entries) for kind, entries in registry._entries.items()}
    monkeypatch.setattr(registry, "_entries", kinds)

    def add(kind, build, given=()):
        register(kind, "own", given=given)(build)

    def compose(*overrides, **changes):
        config = tiny("dcgan", "average=ema", "trainer.steps=2", *overrides)
        for section, values in changes.items():
            config[section] = values
        return config

    return add, compose


def recipe(own, kind, **changes):
    add, compose = own
    add("recipe", kind, GIVEN)
    return compose(recipe={"name": "own"}, **changes)


def masks(own):
    own[0]("generator", Layers, ())
    return {"name": "own", "size": 16, "channels": 1, "latent": 8}


def measured():
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {tag for line in lines for tag in line if tag.startswith("metric/")}


def test_a_generator_that_gives_more_than_images_is_measured_and_loaded(own):
    config = recipe(own, Masked, generator=masks(own))
    trainer = build(config, lambda _: None)
    assert trainer.train()
    assert "metric/fd_classifier" in measured()
    loaded = gan.load("run", "raw")
    shown = trainer.recipe.samples(trainer.recipe.generator, {})["generated"]
    torch.testing.assert_close(loaded.sample(64), shown)
    assert shown.shape == (64, 1, 16, 16)


def test_a_generator_that_gives_more_than_images_is_refused_where_nobody_says_which(own):
    config = recipe(own, Unmasked, generator=masks(own))
    with pytest.raises(ConfigError, match=r"`draw` must give images .*, not a tuple: override"):
        build(config, lambda _: None)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda latent, pixels: nn.LazyLinear(pixels), r"layer is a LazyLinear, .* give all its"),
        (Sparse, r"layer: sparse gradients are .*: set sparse=False"),
        (Turned, r"layer\.weight is complex, and the fused optimizer\.generator .* rmsprop"),
    ],
)
def test_weights_that_cannot_be_trained_are_refused_at_the_start(own, layer, said):
    add, compose = own
    add("generator", lambda: Painted(layer))
    with pytest.raises(ConfigError, match=rf"^generator\.{said}"):
        check(compose(generator={"name": "own"}))


def test_complex_weights_are_trained_by_an_optimizer_that_takes_them(own):
    add, compose = own
    add("generator", lambda: Painted(Turned))
    config = compose(generator={"name": "own"})
    config["optimizer"]["generator"] = {"name": "rmsprop"}
    assert build(config, lambda _: None).train()


class Extra(Layers):
    """State that torch keeps beside tensors."""

    def get_extra_state(self):
        return torch.tensor(3)

    def set_extra_state(self, state):
        raise AssertionError


def test_state_that_a_resumed_run_would_lack_is_refused_at_the_start(own):
    own[0]("generator", Extra, ())
    config = recipe(own, Masked, generator={"name": "own", "size": 16, "channels": 1})
    with pytest.raises(ConfigError, match=r"generator\._extra_state is kept by no checkpoint"):
        build(config, lambda _: None)


class Doubled(nn.Sequential):
    """Images of twice the size."""

    def __init__(self, size: Count, channels: Count, latent: Count = 8):
        shape = channels, 2 * size, 2 * size
        super().__init__(nn.Linear(latent, math.prod(shape)), nn.Tanh(), nn.Unflatten(1, shape))
        self.latent = latent


def test_images_of_another_size_are_refused_whatever_the_discriminator_says_of_them(own):
    add, compose = own
    add("generator", Doubled)
    config = compose(generator={"name": "own", "size": 16, "channels": 1})
    said = r"generator=own: `draw` must give images \[2, 1, 16, 16\], not \[2, 1, 32, 32\]"
    with pytest.raises(ConfigError, match=said):
        check(config)


class Each(Plain):
    """One loss for each sample."""

    def generator_losses(self, batch, fakes, step):
        return {"adversarial": -self.discriminator(fakes["image"])}


class Silent(Plain):
    """Nothing that the discriminator could learn of."""

    def discriminator_losses(self, batch, fakes, update):
        return {"logits_fake": self.discriminator(fakes["image"]).mean()}


class Bare(Plain):
    """A loss without a name."""

    def generator_losses(self, batch, fakes, step):
        return -self.discriminator(fakes["image"]).mean()


class Misspelt(Plain):
    """A slip of the user's."""

    def generator_losses(self, batch, fakes, step):
        return {"adversarial": -self.discriminator(fakes["imgae"]).mean()}


class Demanding(Plain):
    """Wants what no recipe is given."""

    def __init__(self, generator, discriminator, adversarial, penalties, teacher):
        super().__init__(generator, discriminator, adversarial, penalties)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Each, r"the generator's loss 'adversarial' has the shape \[2\]: take its mean"),
        (Silent, "gives the discriminator no loss that trains it"),
        (Bare, "generator_losses must give losses by name, not a Tensor"),
        (Misspelt, r"recipe=own, .* fail at test_own_parts\.py:\d+: KeyError: 'imgae'"),
    ],
)
def test_losses_that_no_player_could_minimise_are_refused_before_anything_is_written(
    own, kind, said
):
    with pytest.raises(ConfigError, match=said):
        check(recipe(own, kind))


def test_what_a_kind_is_not_given_is_named_with_what_it_is_given(own):
    add, compose = own
    add("recipe", Demanding, (*GIVEN, "teacher"))
    with pytest.raises(
        ConfigError, match=r"recipe=own wants teacher, but a recipe is given .*pena"
    ):
        check(compose(recipe={"name": "own"}))
    add("schedule", lambda steps: lambda update: 1.0, ("steps",))
    with pytest.raises(ConfigError, match=r"generator=own wants steps, .* is given nothing"):
        check(compose(schedule={side: {"name": "own"} for side in SIDES}))


class Rows:
    """The least that the stream needs: the first images of a store."""

    resident, gives, facts = "off", ("real",), {}

    def __init__(self, path: str):
        self.store = Store(path)

    def __len__(self):
        return 16

    def plan(self, seed, epoch, indices):
        return Plan({"real": indices}, {})

    def labelled(self):
        return np.arange(len(self)), {}

    def shown(self, keys):
        return {"train": self.plan(0, 0, np.arange(4))}


def test_a_source_of_ones_own_trains_or_is_told_what_it_lacks(own, tiny, glyph_store, monkeypatch):
    add, compose = own
    add("source", Rows)
    config = compose(data={"name": "own", "path": str(glyph_store)})
    trainer = build(config, lambda _: None)
    trainer.train()
    assert (trainer.step, trainer.stream.content) == (2, trainer.stream.dataset.store.content_hash)
    monkeypatch.delattr(Rows, "labelled")
    with pytest.raises(ValueError, match="but Rows has no `labelled`, which gives their rows and"):
        build(config | {"run_dir": "other"}, lambda _: None)
    monkeypatch.setattr(Rows, "gives", ("input", "target"))
    with pytest.raises(ValueError, match="but Rows has no `held_out`, which gives `validation`"):
        build(tiny("pix2pix", "run_dir=other") | {"data": config["data"]}, lambda _: None)
    monkeypatch.delattr(Rows, "plan")
    monkeypatch.delattr(Rows, "gives")
    with pytest.raises(ConfigError, match="data=own gives a Rows without gives, plan: gan"):
        build(config | {"run_dir": "other"}, lambda _: None)
    assert not Path("other/checkpoints").exists()


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf"), None])
def test_a_schedule_that_would_climb_is_refused(own, factor):
    add, compose = own
    add("schedule", lambda: lambda update: 1.0 if update < late else factor)
    sides, late = {side: {"name": "own"} for side in SIDES}, 0
    with pytest.raises(ConfigError, match=rf"schedule\.generator=own gives {factor} for update 0"):
        check(compose(schedule=sides))
    late = 1
    trainer = build(compose(schedule=sides), lambda _: None)
    with pytest.raises(ConfigError, match=rf"own gives {factor} for update 1: the learning rate"):
        trainer.train()


@pytest.mark.parametrize("base", [2.0, 2])
def test_a_schedule_whose_factor_overflows_is_refused(own, base):
    add, compose = own
    add("schedule", lambda: lambda update: base ** (20_000 * update))
    trainer = build(compose(schedule={side: {"name": "own"} for side in SIDES}), lambda _: None)
    with pytest.raises(ConfigError, match=r"schedule\.\w+=own gives inf for update 1: the"):
        trainer.train()


def test_a_rate_that_overflows_is_refused(tiny):
    for key in ("optimizer.generator.lr=1e308", "rates={generator.grow: 1e39}"):
        with pytest.raises(ConfigError, match=r"rate of optimizer\.generator or rates, 1e\+\d+, "):
            check(tiny("dcgan", key))
    later = "schedule@schedule.generator=exponential", "schedule.generator.end=1e308"
    trainer = build(tiny("dcgan", "schedule.generator.length=2", *later), lambda _: None)
    with pytest.raises(ConfigError, match=r"0\.0002, times 1e\+154 .* for update 1: lower it"):
        trainer.train()


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_a_schedules_factor_is_any_number(own, half):
    add, compose = own
    add("schedule", lambda: lambda update: half)
    trainer = build(compose(schedule={side: {"name": "own"} for side in SIDES}), lambda _: None)
    trainer.stream.close()
    for player in trainer.players:
        given = player.schedule(0)
        assert (type(given), given) == (float, 0.5)


@pytest.mark.parametrize("part", ["noise", "draw"])
def test_what_a_loaded_run_could_not_call_is_refused(own, part):
    kind = type("Bound", (Synthesis,), {part: lambda self, *given: getattr(Flat, part)(*given)})
    with pytest.raises(ConfigError, match=f"its `{part}` must be a @staticmethod"):
        build(recipe(own, kind), lambda _: None)


def test_other_noise_is_that_of_play_of_samples_of_measures_and_of_the_loaded_run(own):
    trainer = build(recipe(own, Flat), lambda _: None)
    seen = []
    hook = trainer.recipe.generator.register_forward_pre_hook(lambda _, given: seen.append(given))
    average = trainer.averages["ema"].generator.register_forward_pre_hook(
        lambda _, given: seen.append(given)
    )
    assert trainer.train()
    hook.remove()
    average.remove()
    sizes = {len(noise) for (noise,) in seen}
    assert {8, 32, 64} <= sizes  # of play, measures and samples
    assert all(noise.abs().max() <= 1 for (noise,) in seen)
    loaded = gan.load("run")
    seen = []
    loaded.generator.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loaded.sample(1000, seed=1)
    noise = torch.cat(seen)
    assert noise.abs().max() <= 1
    assert noise.std() == pytest.approx(3**-0.5, abs=0.02)
    torch.testing.assert_close(Flat.noise(loaded.noise(64)), trainer.recipe.shown)


@pytest.mark.parametrize(("kind", "said"), [(Stubborn, 1), (Known, 0), (Flat, 0)])
def test_noise_that_measures_do_not_know_is_said(own, kind, said):
    notes = check(recipe(own, kind)).notes
    assert sum("recipe=own has a `generate` of its own: measures" in n for n in notes) == said


def test_a_recipe_that_does_not_say_how_it_draws_trains_unmeasured_and_says_so(own):
    said = []
    trainer = build(recipe(own, Plain), said.append)
    assert trainer.train()
    assert any("nothing is measured: Plain" in line for line in said)
    assert not measured()


@pytest.mark.parametrize(
    "kind", [type("Alone", (nn.Module,), dict(vars(Plain))), lambda generator: Plain]
)
def test_a_recipe_that_does_not_inherit_from_one_is_refused(own, kind):
    with pytest.raises(ConfigError, match=r"recipe=own must be a class that inherits from gan\."):
        check(recipe(own, kind))


class Headed(Cooled):
    """A loss that is no module and holds one."""

    def __init__(self):
        self.scale = nn.Linear(1, 1)


class Matching(Synthesis):
    """A part of the discriminator by another name, which is trained all the same."""

    def __init__(self, generator, discriminator, adversarial, penalties):
        nn.Module.__init__(self)
        self.features = discriminator
        super().__init__(generator, discriminator, adversarial, penalties)
        self.features, adversarial.peek = discriminator, next(discriminator.parameters())


def test_what_the_players_share_with_a_recipe_or_a_loss_is_trained(own):
    assert build(recipe(own, Matching), lambda _: None)


def test_what_nobody_trains_is_refused_before_anything_is_written(own):
    with pytest.raises(ConfigError, match="would never be trained"):
        check(recipe(own, Encoding))
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", [Tempered, Cooled, Headed])
def test_parameters_of_a_loss_are_refused_since_nothing_trains_them(own, kind):
    add, compose = own
    add("adversarial", kind)
    with pytest.raises(ValueError, match=r"adversarial\.scale.* would never be trained"):
        build(compose(adversarial={"name": "own"}), lambda _: None)


def test_a_third_network_beside_the_players_is_refused_since_nothing_trains_it(own):
    with pytest.raises(ValueError, match=r"encoder\.weight, encoder\.bias would never be trained"):
        build(recipe(own, Encoding), lambda _: None)


class Counting(Optimizer):
    """Steps whose length depends on plain numbers in each parameter's state."""

    def __init__(self, parameters, more):
        super().__init__(parameters, {"lr": 1e-3})
        self.more = more

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                state = self.state[weight]
                if not state:
                    state.update(step=0, warm=False, length=1, mean=torch.zeros_like(weight))
                    state.update(self.more)
                state["step"] += 1
                state["warm"] = state["step"] > 2
                state["length"] *= 0.7 if state["step"] > 1 else 1
                state["mean"].lerp_(weight.grad, 0.1 + 0.8 * state["warm"])
                weight.sub_(state["mean"] * state["length"] / state["step"] ** 0.5)


@pytest.fixture
def counting(own):
    """A run of both players with that optimizer, and what more their states hold."""
    (add, compose), more = own, {}
    add("optimizer", lambda parameters: Counting(parameters, more), ("parameters",))
    sides = {side: {"name": "own"} for side in ("generator", "discriminator")}
    return compose("trainer.steps=4", optimizer=sides), more


def played(config, folder, steps):
    """All of a run and the numbers of its optimizers, after so many more steps."""
    run = build({**config, "run_dir": folder}, lambda _: None)
    for _ in range(steps):
        run.play()
    assert run.save()
    run.stream.close()
    rundir.release(Path(folder))
    kept = [player.optimizer.state_dict()["state"] for player in run.players]
    numbers = [
        {key: value for key, value in named.items() if not isinstance(value, torch.Tensor)}
        for several in kept
        for named in several.values()
    ]
    return state.gather(run.recipe, run.averages, run.players), numbers


def assert_same(first, second):
    for tensors, others in zip(first[:2], second[:2], strict=True):
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert first[2] == second[2]


def test_numbers_in_an_optimizers_state_are_kept_to_the_bit_and_stay_numbers(counting):
    config, _ = counting
    whole, numbers = played(config, "whole", 4)
    for steps in (1, 2):
        played(config, "parts", steps)
    again, others = played(config, "parts", 1)
    assert_same(whole, again)
    assert (
        numbers == others == [{"step": 4, "warm": True, "length": 0.7 * 0.7 * 0.7}] * len(numbers)
    )
    assert {tuple(map(type, named.values())) for named in others} == {(int, bool, float)}


@pytest.mark.parametrize("more", [{"seen": []}, {"best": None}, {"best": float("inf")}])
def test_a_state_that_no_checkpoint_keeps_is_refused_at_the_start(counting, more):
    config, state = counting
    state.update(more)
    (key,) = more
    with pytest.raises(ConfigError, match=rf"optimizer\.generator=own: '{key}' in its state is"):
        check(config)


class Growing(Counting):
    """Remembers more with each step, in tensors and numbers of its own types."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for weight, own in self.state.items():
            weight.mul_(1 + 0.01 * own.get("past", torch.zeros(1)).mean())
            if own["step"] > 1:
                own["late"] = own.get("late", 0) + 1
                own["slow"] = own.get("slow", weight).lerp(weight, 0.5)
                own["seen"] = own.get("seen", torch.zeros(3, dtype=torch.uint8)) + 1
            past = own.get("past", weight.new_zeros(0))
            own["past"] = torch.cat([past, weight.flatten()[:1]])


def test_a_state_that_grows_after_its_first_step_survives_every_resume(own):
    add, compose = own
    add("optimizer", lambda parameters: Growing(parameters, {}), ("parameters",))
    sides = {side: {"name": "own"} for side in ("generator", "discriminator")}
    config = compose("trainer.steps=4", optimizer=sides)
    whole, numbers = played(config, "whole", 4)
    for _ in range(3):
        played(config, "parts", 1)
    again, others = played(config, "parts", 1)
    assert_same(whole, again)
    assert numbers == others
    assert {type(named["late"]) for named in others} == {int}


def test_a_state_that_no_checkpoint_keeps_is_refused_also_of_a_second_step(counting, monkeypatch):
    step = Counting.step

    def later(self):
        for own in self.state.values():
            own["seen"] = []
        step(self)

    monkeypatch.setattr(Counting, "step", later)
    with pytest.raises(ConfigError, match=r"optimizer\.generator=own: 'seen' in its state is \[\]"):
        check(counting[0])


def test_a_state_of_no_parameter_is_refused_at_the_start(counting, monkeypatch):
    step = Counting.step

    def shared(self):
        step(self)
        self.state["updates"] = 1

    monkeypatch.setattr(Counting, "step", shared)
    with pytest.raises(ConfigError, match=r"optimizer\.generator=own: 'updates' in its state is 1"):
        check(counting[0])


def test_an_optimizer_whose_step_cannot_be_tried_is_refused_at_the_start(counting, monkeypatch):
    def failing(self):
        raise ZeroDivisionError("the gradient is 0")

    monkeypatch.setattr(Counting, "step", failing)
    with pytest.raises(ConfigError, match=r"own: its step fails on a gradient of 0.*ZeroDivision"):
        check(counting[0])


def test_optimizers_that_come_with_gan_are_not_tried(tiny, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: pytest.fail("a step was taken"))
    check(tiny("dcgan"))


class Drifting(Average):
    """Remembers in a buffer and in a parameter how far it has come."""

    def __init__(self, generator):
        super().__init__(generator)
        self.register_buffer("drift", torch.zeros(()))
        self.pace = nn.Parameter(torch.ones(()), requires_grad=False)

    def weight(self, images):
        self.drift.mul_(0.9).add_(0.1 * self.pace)
        self.pace.data.mul_(0.8)
        return float(self.drift)


def test_what_an_average_keeps_beside_its_generator_survives_a_resume(own):
    add, compose = own
    add("average", lambda generator: {"slow": Drifting(generator)}, ("generator",))

    config = compose("trainer.steps=4", average={"name": "own"})
    whole, _ = played(config, "whole", 4)
    played(config, "parts", 2)
    again, _ = played(config, "parts", 2)
    assert {"average-state/slow/drift", "average-state/slow/pace"} <= whole[0].keys()
    assert_same(whole, again)
    loaded = gan.load("parts")
    for name, tensor in loaded.generator.state_dict().items():
        assert torch.equal(tensor, whole[0][f"average/slow/{name}"])
