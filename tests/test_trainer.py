"""The game: whose turn it is, what a turn leaves alone, and that stopping changes nothing."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from gan.build import build
from gan.registry import ConfigError, names
from gan.run import state

LOSSES = names("adversarial")
PENALTIES = names("penalty")
SLOW = pytest.mark.slow
QUICK = {  # a loss that compares and one that does not; each way to a penalty's gradient
    *(("rpgan", None), ("hinge", None), ("rpgan", "wgan_gp"), ("rpgan", "dragan")),
    *(("rpgan", "r1"), ("rpgan", "pgd")),
}
PAIRS = [  # every loss with every penalty and with none; all but these in the slow tier
    pytest.param(loss, penalty, marks=() if (loss, penalty) in QUICK else SLOW)
    for loss in LOSSES
    for penalty in (None, *PENALTIES)
]
OWN = ("wasserstein", "wgan_gp")  # W-Net's; all others with it in the slow tier
TURNS = [
    *(pytest.param(*pair.values, "dcgan", marks=pair.marks) for pair in PAIRS),
    *(
        pytest.param(*pair.values, "wnet", marks=() if pair.values == OWN else SLOW)
        for pair in PAIRS
    ),
    *(pytest.param("lsgan", None, model, marks=SLOW) for model in ("pix2pix", "cyclegan")),
]


def everything(trainer):
    networks, optimizers, rest = state.gather(trainer.recipe, trainer.averages, trainer.players)
    return {**networks, **optimizers}, {
        **rest,
        **trainer.counts(),
        "position": trainer.stream.position,
    }


def assert_same(first, second):
    for tensors, others in ((first[0], second[0]),):
        assert tensors.keys() == others.keys()
        for name in tensors:
            assert torch.equal(tensors[name], others[name]), name
    assert first[1] == second[1]


def trace(trainer):
    """Record who updates, in order."""
    turns = []
    for player in (trainer.generator, trainer.discriminator):
        update = player.update
        player.update = lambda *a, u=update, n=player.name: turns.append(n[0]) or u(*a)
    return turns


# -- turns


@pytest.mark.parametrize(  # the first of all, and what holds the others
    ("overrides", "turns"),
    [
        ([], "dgdgdgdg"),
        pytest.param(["trainer.n_critic=3"], "dddg" * 4, marks=SLOW),
        pytest.param(["trainer.discriminator_warmup=3"], "ddd" + "dg" * 4, marks=SLOW),
        (["trainer.n_critic={0: 3, 2: 1}"], "dddgdddgdgdg"),
        (["trainer.n_critic=2", "trainer.discriminator_warmup=1"], "d" + "ddg" * 4),
        pytest.param(["trainer.order=generator"], "gdgdgdgd", marks=SLOW),
        pytest.param(["trainer.order=generator", "trainer.n_critic=3"], "gddd" * 4, marks=SLOW),
        (
            [
                "trainer.order=generator",
                "trainer.n_critic={0: 3, 2: 1}",
                "trainer.discriminator_warmup=2",
            ],
            "dd" + "gddd" * 2 + "gd" * 2,
        ),
    ],
)
@pytest.mark.row("N7", "updates, penalties and rates by their counts, also across a resume")
def test_turns_follow_n_critic_and_warmup(tiny, overrides, turns):
    trainer = build(tiny("dcgan", *overrides))
    played = trace(trainer)
    trainer.train()
    assert "".join(played) == turns
    assert (
        trainer.discriminator_updates
        == turns.count("d")
        == trainer.settings.discriminator_updates()
    )
    assert trainer.stream.position == turns.count("d")  # a fresh batch each


@pytest.mark.parametrize("overrides", [[], ["trainer.order=generator"], ["trainer.micro_batch=2"]])
def test_an_average_that_draws_for_its_statistics_leaves_the_game_as_it_is(tiny, overrides):
    states = []
    for average in ("none", "both"):
        apart = f"average={average}", f"run_dir=run-{average}"
        trainer = build(tiny("dcgan", "generator.norm=batch", *apart, *overrides))
        trainer.train()
        states.append({name: value.clone() for name, value in trainer.recipe.state_dict().items()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    uniform, ema = (trainer.averages[name].generator.state_dict() for name in ("uniform", "ema"))
    (mean, *_) = (name for name in ema if name.endswith("running_mean"))
    assert torch.equal(ema[mean], trainer.recipe.generator.state_dict()[mean])
    assert not torch.equal(ema[mean], uniform[mean])


@pytest.mark.parametrize("order", ["discriminator", "generator"])
def test_neighbouring_turns_share_a_batch_and_its_fakes(tiny, order, monkeypatch):
    """Fakes are the first player's, and reach the discriminator detached."""
    trainer = build(tiny("dcgan", f"trainer.order={order}", "trainer.n_critic=3"))
    seen, recipe = [], trainer.recipe
    for side in ("generator", "discriminator"):
        losses = getattr(recipe, f"{side}_losses")

        def watched(batch, fakes, count, side=side, losses=losses):
            seen.append((side, batch["real"], fakes["image"]))
            return losses(batch, fakes, count)

        monkeypatch.setattr(recipe, f"{side}_losses", watched)
    trainer.play()
    trainer.play()
    trainer.stream.close()
    sides = [side for side, _, _ in seen]
    step = ["generator", *["discriminator"] * 3]
    assert sides == (step if order == "generator" else step[::-1]) * 2
    for place, (side, real, image) in enumerate(seen):
        assert image.requires_grad == (side == "generator")
        for other, (_, real_then, image_then) in enumerate(seen[:place]):
            together = {place % 4, other % 4} == ({0, 1} if order == "generator" else {2, 3})
            together = together and place // 4 == other // 4
            assert (real is real_then) == together
            assert torch.equal(image, image_then) == together


def test_generator_stands_still_during_the_warmup(tiny):
    trainer = build(tiny("dcgan", "trainer.discriminator_warmup=5"))
    before = {n: t.clone() for n, t in trainer.recipe.generator.named_parameters()}
    for _ in range(5):
        trainer.discriminate(shared=False)
    assert all(torch.equal(before[n], t) for n, t in trainer.recipe.generator.named_parameters())
    assert not trainer.generator.optimizer.state
    assert trainer.averages["ema"].updates == 0
    trainer.stream.close()


@pytest.mark.row("N7")
def test_lazy_penalty_is_due_by_discriminator_updates(tiny):
    overrides = ["discriminator.norm=layer", "penalties.r1.every=4", "trainer.n_critic=3"]
    trainer = build(tiny("dcgan", *overrides, "trainer.discriminator_warmup=2"))
    paid = []
    update = trainer.discriminator.update
    trainer.discriminator.update = lambda losses, count: (
        paid.append("r1" in (t := update(losses, count))) or t
    )
    trainer.train()
    assert paid == [n % 4 == 0 for n in range(2 + 3 * 4)]


# -- isolation


def side_state(trainer, side):
    player, module = getattr(trainer, side), getattr(trainer.recipe, side)
    moments = [t.clone() for s in player.optimizer.state.values() for t in s.values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    flags = [p.requires_grad for p in module.parameters()]
    return [p.detach().clone() for p in module.parameters()], gradients, moments, flags


def assert_untouched(before, after):
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            assert (a is None and b is None) or (
                torch.equal(a, b) if torch.is_tensor(a) else a == b
            )


@pytest.mark.parametrize(("loss", "penalty", "model"), TURNS)
@pytest.mark.row(
    "N5", "an update leaves the other player's gradients, weights, moments and flags alone"
)
def test_a_turn_leaves_the_other_player_alone(tiny, model, loss, penalty):
    norm = ["discriminator.norm=layer"] if model == "dcgan" else []
    values = tiny(model, f"adversarial={loss}", *norm, "trainer.batch_size=3")
    values["penalties"] = {} if penalty is None else {penalty: {}}
    trainer = build(values)
    trainer.play()  # both players have gradients and moments from here on
    before = side_state(trainer, "generator")
    batch, fakes = trainer.discriminate(shared=True)
    assert_untouched(before, side_state(trainer, "generator"))
    before = side_state(trainer, "discriminator")
    trainer.generator.update(lambda: trainer.recipe.generator_losses(batch, fakes, 1), 1)
    assert_untouched(before, side_state(trainer, "discriminator"))
    assert any(p.grad is not None for p in trainer.recipe.generator.parameters())
    trainer.stream.close()


@pytest.mark.parametrize("model", ["dcgan", pytest.param("wnet", marks=SLOW)])
@pytest.mark.row("N6", "samples and measures change no buffer; an update only as its forwards do")
def test_samples_and_measures_change_nothing(tiny, model):
    never = ["trainer.sample_every=100", "trainer.measure_every=100"]
    quiet = build(tiny(model, "run_dir=quiet", *never))
    quiet.train()
    always = ["trainer.sample_every=1", "trainer.measure_every=1", "trainer.judges=true"]
    loud = build(tiny(model, "run_dir=loud", *always))
    loud.train()
    assert_same(everything(quiet), everything(loud))


# -- stopping and going on


class Interrupted:
    """A stream that asks the process to stop while it delivers its n-th batch."""

    def __init__(self, stream, count):
        self.stream, self.left = stream, count

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return next(self.stream)


def scalars(run_dir, skip=("speed/",)):
    lines = [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(skip)} for line in lines]


GAMES = {
    "dcgan": ("dcgan", []),
    "dcgan, n_critic 3, lazy r1, warm-up": (
        "dcgan",
        [
            "trainer.n_critic=3",
            "trainer.discriminator_warmup=4",
            "discriminator.norm=spectral",
            "penalties.r1.every=4",
            "average=uniform",
            "schedule@schedule.generator=cosine",
        ],
    ),
    "dcgan, generator first, n_critic 2": (
        "dcgan",
        ["trainer.order=generator", "trainer.n_critic=2", "trainer.discriminator_warmup=3"],
    ),
    "wnet": ("wnet", []),
    "wnet, n_critic 3, lazy wgan_gp, warm-up": (
        "wnet",
        [
            "trainer.n_critic=3",
            "trainer.discriminator_warmup=4",
            "penalties.wgan_gp.every=2",
            "data.references=2",
            "optimizer@optimizer.discriminator=rmsprop",
        ],
    ),
}


HERE = ("dcgan, n_critic 3, lazy r1, warm-up", 6), ("wnet", 3)
STOPS = [  # after so many batches: in the first step, in the warm-up, in the game, never
    pytest.param(game, stop, marks=() if (game, stop) in HERE else SLOW)
    for game in GAMES
    for stop in (1, 3, 6, 11)
]


@pytest.mark.parametrize(("game", "stop"), STOPS)
@pytest.mark.row("C7")
@pytest.mark.usefixtures("unreported")
def test_stopped_and_continued_is_bit_identical_to_never_stopped(tiny, game, stop):
    model, overrides = GAMES[game]
    overrides = [*overrides, "trainer.steps=5", "trainer.log_every=1"]
    whole = build(tiny(model, *overrides, "run_dir=whole"))
    assert whole.train()
    first = build(tiny(model, *overrides, "run_dir=parts"))
    first.stream = Interrupted(first.stream, stop)
    finished = first.train()
    assert finished == (stop > whole.discriminator_updates)
    second = build(tiny(model, *overrides, "run_dir=parts"))
    assert second.counts() == first.counts()
    assert second.train()
    assert_same(everything(whole), everything(second))
    assert scalars("whole")[-1] == scalars("parts")[-1]


def test_a_longer_run_goes_on_with_the_schedule_of_the_first(tiny):
    cosine = "schedule@schedule.generator=cosine"
    build(tiny("dcgan", cosine, "trainer.steps=2")).train()
    trainer = build(tiny("dcgan", cosine, "trainer.steps=3"))
    assert trainer.step == 2
    assert "length: 2" in trainer.config
    trainer.train()


def test_logged_means_do_not_depend_on_where_the_run_was_stopped(tiny):
    overrides = ["trainer.steps=9", "trainer.log_every=4", "trainer.n_critic=2"]
    build(tiny("dcgan", *overrides, "run_dir=whole")).train()
    first = build(tiny("dcgan", *overrides, "run_dir=parts"))
    first.stream = Interrupted(first.stream, 11)  # inside an interval
    first.train()
    build(tiny("dcgan", *overrides, "run_dir=parts")).train()
    assert scalars("whole") == scalars("parts")
    assert [line["step"] for line in scalars("whole")] == [4, 8, 9]


@pytest.mark.row("T2")
def test_tensorboard_keeps_every_point_of_a_stopped_run_once(tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["trainer.steps=6", "trainer.log_every=1"]
    first = build(tiny("dcgan", *overrides))
    first.stream = Interrupted(first.stream, 3)
    first.train()
    for _ in range(2):  # the second one finds a finished run
        build(tiny("dcgan", *overrides)).train()
    events = EventAccumulator("run/tensorboard").Reload()
    steps = [event.step for event in events.Scalars("generator/adversarial")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_configuration_is_refused(tiny):
    build(tiny("dcgan", "run_dir=one")).train()
    stored = "resume=one/checkpoints/step-00000004"
    with pytest.raises(
        ConfigError, match=r"optimizer\.generator\.lr was 0\.0002 and is now 0\.001"
    ):
        build(tiny("dcgan", "run_dir=two", "optimizer.generator.lr=1e-3", stored))


def test_a_damaged_configuration_is_that_of_the_checkpoint_again(tiny):
    run = build(tiny("dcgan"))
    run.play()
    assert run.save()
    run.stream.close()
    for damage in ("", "{", "a: [", "5"):
        Path("run/config.yaml").write_text(damage)
        with pytest.raises(ConfigError, match="lr was 0.0002 and is now 0.001"):
            build(tiny("dcgan", "optimizer.generator.lr=1e-3"))
        build(tiny("dcgan")).stream.close()
        assert Path("run/config.yaml").read_text() == run.config


LEFT_OUT = [  # in a whole game; the default tier has every part of the smallest in test_resume.py
    "recipe/generator",
    "recipe/discriminator",
    "average",
    "optimizers",
    "position",
    "updates",
]


@pytest.mark.slow
@pytest.mark.parametrize("part", LEFT_OUT)
@pytest.mark.row("C8")
def test_resume_needs_every_part_of_the_state(tiny, part, monkeypatch):
    """Leave one part out of what is restored: the run must differ from an unbroken one."""
    overrides = [
        "trainer.steps=6",
        "trainer.log_every=1",
        "discriminator.norm=spectral",
        "penalties.r1.every=2",
    ]
    whole = build(tiny("dcgan", *overrides, "run_dir=whole"))
    whole.train()
    first = build(tiny("dcgan", *overrides, "run_dir=parts"))
    first.stream = Interrupted(first.stream, 3)
    first.train()
    fresh = build(tiny("dcgan", *overrides, "run_dir=fresh"))
    blank = everything(fresh)[0]
    second = build(tiny("dcgan", *overrides, "run_dir=parts"))
    if part == "position":
        second.stream.position = 0
    elif part == "updates":
        second.discriminator_updates = 0
    elif part == "optimizers":
        second.generator.optimizer.state.clear()
    else:
        live = everything(second)[0]
        with torch.no_grad():
            for name in (n for n in live if n.startswith(part)):
                live[name].copy_(blank[name])
    second.train()
    with pytest.raises(AssertionError):
        assert_same(everything(whole), everything(second))


# -- learning


def ring(count, generator):
    angle = torch.randint(8, (count,), generator=generator) * (torch.pi / 4)
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return (centre + 0.05 * torch.randn(count, 2, generator=generator))[:, :, None, None]


class Ring:
    """Batches of points around eight centres, as images of one pixel with two channels."""

    def __init__(self):
        self.position, self.generator = 0, torch.Generator().manual_seed(0)
        self.content, self.waited = "ring", 0.0

    def __next__(self):
        self.position += 1
        return {"real": ring(128, self.generator)}

    def close(self):
        """Nothing to stop."""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nonsaturating", "hinge"])
def test_a_tiny_gan_finds_all_modes_of_a_ring(loss, tmp_path):
    from gan.average import Ema
    from gan.config.settings import Settings
    from gan.player import Player
    from gan.registry import create
    from gan.run.monitor import Monitor
    from gan.trainer import Trainer

    torch.manual_seed(0)
    shape = {"size": 1, "channels": 2, "width": 64, "depth": 3}
    recipe = create(
        "recipe",
        "synthesis",
        generator=create("generator", "mlp", latent=2, output="linear", **shape),
        discriminator=create("discriminator", "mlp", **shape),
        adversarial=create("adversarial", loss),
        penalties={"r1": create("penalty", "r1", weight=0.02)},
    )
    sides = recipe.generator, recipe.discriminator
    players = [
        Player(
            name,
            mine,
            other,
            create("optimizer", "adam", parameters=mine.parameters(), lr=2e-3, betas=[0.0, 0.99]),
            create("schedule", "linear", length=2000),
            statistics=recipe.statistics,
        )
        for name, mine, other in (("generator", *sides), ("discriminator", *sides[::-1]))
    ]
    settings = Settings(
        steps=2000, batch_size=128, save_every=2000, log_every=2000, precision="fp32"
    )  # as the players, which are built by hand
    average = Ema(recipe.generator, halflife=10_000.0)
    trainer = Trainer(
        recipe, *players, Ring(), {"ema": average}, settings, Monitor(tmp_path, 2000), seed=0
    )
    trainer.train()
    with torch.no_grad():
        points = average.refreshed()(torch.randn(4000, 2)).flatten(1)
    angles = torch.arange(8) * (torch.pi / 4)
    distance = torch.cdist(points, torch.stack([angles.cos(), angles.sin()], 1))
    near = distance.min(1).values < 0.2
    assert near.float().mean() >= 0.9
    shares = torch.bincount(distance.argmin(1)[near], minlength=8) / len(points)
    assert (shares > 0.02).all(), shares
