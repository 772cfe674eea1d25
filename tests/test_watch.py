"""Watchdogs: what they know is seen, healthy runs are left in peace, nothing is changed."""

import json
from types import SimpleNamespace

import pytest
import torch
from small import Discriminator, Numbers, differing, everything, ring, trainer
from torch import nn

from gan.player import Player
from gan.recipes.synthesis import Synthesis
from gan.registry import create
from gan.run import watch
from gan.run.monitor import Monitor
from gan.run.watch import Watch

pytestmark = pytest.mark.usefixtures("quick_disk")
SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(10)]


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == f"watch {kind}"]


class Wide(nn.Sequential):
    """Noise to points."""

    latent = 2

    def __init__(self):
        hidden = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)]
        super().__init__(*hidden, nn.Unflatten(1, (2, 1, 1)))


class Judge(nn.Sequential):
    """Points to logits."""

    def __init__(self):
        hidden = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)]
        super().__init__(nn.Flatten(), *hidden, nn.Flatten(0))


class Blind(Monitor):
    """Draws no pictures: points are none."""

    def _show(self, step, name, columns):
        pass


def healthy(folder, seed, **options):
    """A game that finds the ring's modes."""
    shown = {"images": {"target": ring(64, torch.Generator().manual_seed(99))}}
    chosen = {"steps": 1500, "log_every": 20, "sample_every": 250, "save_every": 1500, **options}
    monitor = Blind(folder, chosen["steps"], shown, watch=chosen.get("watch", ALL))
    run = trainer(
        folder,
        Numbers(batch_size=64, seed=seed),
        seed=seed,
        recipe=Synthesis,
        networks=chosen.pop("networks", (Wide, Judge)),
        rates=chosen.pop("rates", (2e-3, 2e-3)),
        adversarial=chosen.pop("adversarial", "nonsaturating"),
        monitor=monitor,
        batch_size=64,
        **chosen,
    )
    for player in run.players:
        player.schedule = lambda count: 1.0
    return run


ALL = ("data", "discriminator", "collapse", "disk")


@pytest.mark.row("N14", "0 alarms in 10 healthy runs; collapse is seen")
@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_runs_are_left_in_peace(tmp_path, seed, tried):
    run = healthy(tmp_path, seed)
    run.train()
    for kind in ("discriminator", "collapse", "disk", "data"):
        assert events(tmp_path, kind) == [], kind
    with torch.no_grad():
        points = run.recipe.generator(torch.randn(1000, 2)).flatten(1)
    assert points.var(0).sum() > 0.2, "not healthy"
    tried(1)


class Frozen(Wide):
    """A generator whose points lie far from the ring."""

    def forward(self, z):
        return super().forward(z) * 0.01 + 5


@pytest.mark.row("N13", "10 of 10 seeds warned")
@pytest.mark.parametrize("seed", [0, *SEEDS[1:]])
def test_a_discriminator_that_has_won_is_seen(tmp_path, seed, tried):
    """A separable toy: the generator stands still, its gradient dies."""
    options = {"steps": 400, "networks": (Frozen, Judge), "adversarial": "minimax"}
    options |= {"rates": (0.0, 2e-2), "sample_every": 400, "log_every": 5}
    run = healthy(tmp_path, seed, **options)
    run.recipe.penalties = {}
    run.train()
    (event,) = events(tmp_path, "discriminator")
    for word in ("gradient", "has won", "adversarial=nonsaturating", "optimizer.discriminator.lr"):
        assert word in event["text"]
    tried(1)


@pytest.mark.parametrize(
    ("real", "fake", "said"),
    [
        ({"real": 9.0}, {"fake": -9.0}, "says 9.0 to real and -9.0 to generated"),
        ({"real_a": 9.0, "real_b": 7.0}, {"fake_a": -9.0, "fake_b": -3.0}, "8.0 to real and -6.0"),
        ({"real_a": -9.0, "real_b": 7.0}, {"fake_a": -9.0, "fake_b": 9.0}, None),
        ({"real": 9.0}, {}, None),
        ({}, {}, None),
    ],
)
def test_what_the_discriminator_says_is_as_it_was_measured(real, fake, said):
    logits = {f"discriminator/logits_{kind}": value for kind, value in {**real, **fake}.items()}
    dog = Watch(ALL)
    told = [
        dog.game(step, {"generator/gradient_norm": 1e-6 if step > 400 else 1.0, **logits})
        for step in range(0, 801, 20)
    ]
    texts = [text for answer in told for text in answer.values()]
    assert len(texts) == (said is not None)
    assert all(said in text for text in texts)


class Constant(Wide):
    """Every noise gives the same point."""

    def forward(self, z):
        return super().forward(z * 0) + 0 * z.mean()


class OneMode(Wide):
    """Points of one mode of the ring."""

    def forward(self, z):
        return 0 * super().forward(z) + (0.05 * z + torch.tensor([1.0, 0.0]))[:, :, None, None]


@pytest.mark.row("N14")
@pytest.mark.parametrize("collapsed", [Constant, OneMode])
@pytest.mark.parametrize("seed", ["in little", *SEEDS])
def test_a_collapsed_generator_is_seen(tmp_path, seed, collapsed, monkeypatch, tried):
    options = {"steps": 750, "networks": (collapsed, Judge), "rates": (0.0, 1e-4)}
    if seed == "in little":
        seed = 0
        monkeypatch.setattr(watch, "GROWN", 5)
        options |= {"steps": 15, "sample_every": 5}
    healthy(tmp_path, seed, log_every=1000, **options).train()
    (event,) = events(tmp_path, "collapse")
    assert "as much as real ones" in event["text"]
    assert "penalties.r1.weight" in event["text"]
    tried(1)


@pytest.mark.row("N14")
def test_collapse_is_not_seen_where_there_is_none(tried):
    generator = torch.Generator().manual_seed(0)
    real = ring(64, generator)
    dog = Watch(ALL)
    assert dog.samples(0, torch.zeros(64, 2, 1, 1), real) == {}  # nothing is learnt yet
    for _ in range(3):
        assert dog.samples(1000, ring(64, generator), real) == {}
        assert dog.samples(1000, ring(64, generator, modes=2), real) == {}
        assert dog.samples(1000, torch.zeros(64, 2, 1, 1), None) == {}
    assert dog.samples(1000, torch.zeros(64, 2, 1, 1), real) == {}  # once is chance
    assert dog.samples(1500, torch.zeros(64, 2, 1, 1), real)
    assert dog.samples(2000, torch.zeros(64, 2, 1, 1), real) == {}  # said once
    tried(12)


class Slow(Numbers):
    """Batches that were awaited for an hour each, as the stream says."""

    def __next__(self):
        self.waited += 3600.0
        return super().__next__()


@pytest.mark.row("T5", "waiting for data is seen, 1 of 1 slow, 0 of 1 quick")
def test_waiting_for_data_is_seen(tmp_path, tried):
    for name, stream in (("slow", Slow()), ("quick", None)):
        trainer(tmp_path / name, stream, steps=102, log_every=51, save_every=200).train()
    (event,) = events(tmp_path / "slow", "data")
    assert "of the time was spent waiting for data" in event["text"]
    assert "gan data build" in event["text"]
    assert events(tmp_path / "quick", "data") == []
    tried(2)


@pytest.mark.row("K2", "little room is told before a save fails")
def test_a_disk_running_full_is_seen(tmp_path, monkeypatch, tried):
    trainer(tmp_path / "roomy", steps=4, save_every=2).train()
    assert events(tmp_path / "roomy", "disk") == []
    monkeypatch.setattr(watch, "room", lambda path: 50 << 20)
    trainer(tmp_path / "full", steps=4, save_every=2).train()
    (event,) = events(tmp_path / "full", "disk")
    assert "50 MiB are free" in event["text"]
    assert "trainer.keep" in event["text"]
    tried(2)


def test_each_can_be_switched_off():
    for name in ALL:
        dog = Watch(set(ALL) - {name})
        assert dog._once(name, "text") == {}
        assert Watch([name])._once(name, "text") == {name: "text"}


def test_watching_changes_nothing(tmp_path, monkeypatch):
    runs = []
    for number, names in enumerate([ALL, ()]):
        monkeypatch.setattr(watch, "GROWN", 0)
        monkeypatch.setattr(watch, "COLLAPSED", 1e9)
        run = healthy(tmp_path / str(number), 0, steps=30, sample_every=5, watch=names)
        run.train()
        runs.append(everything(run))
        assert len(events(tmp_path / str(number), "collapse")) == len(names) // 4
    assert differing(*runs) == set()


def test_warnings_stand_in_tensorboard_as_text(tmp_path, monkeypatch, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(watch, "room", lambda path: 1 << 20)
    trainer(tmp_path, steps=2).train()
    assert "watch disk: 1 MiB are free" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "event/watch disk/text_summary" in events.Tags()["tensors"]


# -- slips that are looked for in the first steps


def played(folder, recipe):
    run = trainer(folder, recipe=recipe)
    run.play()
    run.play()
    return run


@pytest.mark.row("G6", "a kept graph is refused by name within the first 2 steps")
def test_a_kept_graph_is_refused_by_name(tmp_path, tried):
    class Keeps(Synthesis):
        def generator_losses(self, batch, fakes, step):
            terms = super().generator_losses(batch, fakes, step)
            self.last = terms["adversarial"]
            return terms

    with pytest.raises(ValueError, match=r"recipe\.last keeps the graph of a past update.*detach"):
        played(tmp_path, Keeps)

    class Detaches(Keeps):
        def generator_losses(self, batch, fakes, step):
            terms = Synthesis.generator_losses(self, batch, fakes, step)
            self.last = terms["adversarial"].detach()
            return terms

    played(tmp_path, Detaches)
    tried(2)


@pytest.mark.parametrize("first", [None, torch.zeros(())])
def test_a_buffer_that_a_start_could_not_take_from_a_checkpoint_is_refused_by_name(tmp_path, first):
    class Remembers(Synthesis):
        persistent = True

        def __init__(self, **parts):
            super().__init__(**parts)
            self.register_buffer("last", first, persistent=self.persistent)

        def generator_losses(self, batch, fakes, step):
            self.last = fakes["image"].detach()
            return super().generator_losses(batch, fakes, step)

    before = "no tensor" if first is None else r"\[\]"
    with pytest.raises(ValueError, match=rf"recipe\.last was {before} at the start and is \[8, 2"):
        played(tmp_path, Remembers)
    Remembers.persistent = False
    played(tmp_path, Remembers)


def test_a_weight_that_is_made_anew_for_every_pass_is_no_kept_graph(tmp_path):
    class Normed(Discriminator):
        def __init__(self):
            super().__init__()
            nn.utils.spectral_norm(self[3])

    run = trainer(tmp_path, networks=(Wide, Normed), recipe=Synthesis)
    run.play()
    run.discriminate(shared=False)
    assert run.recipe.discriminator[3].weight.grad_fn is not None


@pytest.mark.row("G2", "weights that no loss reaches are listed once, by name")
def test_weights_that_nothing_trains_are_listed_once(tmp_path, tried):
    class Idle(Discriminator):
        def __init__(self):
            super().__init__()
            self[3].head = nn.Linear(3, 3)

    run = trainer(tmp_path, networks=(Wide, Idle), recipe=Synthesis)
    with pytest.warns(
        UserWarning, match=r"no loss reaches discriminator\.3\.head\.weight"
    ) as caught:
        [run.play() for _ in range(2)]
    assert len(caught) == 1
    whole = trainer(tmp_path, networks=(Wide, Discriminator), recipe=Synthesis)
    whole.play()  # warnings are errors here
    tried(2)


def test_a_step_reads_one_number_of_each_update(tmp_path):
    """The hot path: a device waits for the decision of each update, and for nothing else."""
    run = trainer(tmp_path)
    run.play()
    reads = []
    counted = SimpleNamespace(bool=torch.Tensor.__bool__)

    def read(tensor):
        reads.append(tensor)
        return counted.bool(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", read)
        for name in ("item", "tolist", "cpu", "numpy"):
            original = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor,
                name,
                lambda tensor, *a, o=original, **k: reads.append(tensor) or o(tensor, *a, **k),
            )
        losses_read = len(reads)
        for player in run.players:
            assert isinstance(player, Player)
        run.play()
    assert len(reads) - losses_read == 2
    assert create("optimizer", "adam", parameters=[torch.zeros(1, requires_grad=True)])
