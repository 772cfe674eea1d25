"""What only a CUDA device can show: recorded turns, streams, and state that lies on the device."""

import dataclasses

import pytest
import torch
from games import NETWORKS, SCHEDULES, TOTAL, Batches, started
from test_graphs import CASES, STEPS, played
from test_trainer import assert_same, everything

import gan
from gan import runs
from gan.bench import games
from gan.build import build
from gan.data.datasets import Images
from gan.data.store import Store
from gan.data.stream import Stream
from gan.registry import create
from gan.step import pieces
from gan.step.adam import stepping
from gan.step.graphs import GraphedTrainer
from gan.styles import Relatives

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*lazy.*:UserWarning"),
]
CUDA = torch.device("cuda", 0)


class Sent(Batches):
    """The same batches on the device."""

    def __next__(self):
        return {key: tensor.to(CUDA) for key, tensor in super().__next__().items()}


def on_device(kind, loss, penalty, made=None, every=1, asleep=False, **settings):
    """A game of tests/games.py in fp32 on the device."""
    holder = {}

    def kept(recipe, *rest, **named):
        recipe = recipe.to(CUDA).to(memory_format=torch.channels_last)
        generator, discriminator, stream, averages, chosen, monitor = rest
        chosen = dataclasses.replace(chosen, device="cuda")
        for player in (generator, discriminator):
            moved = player.module.parameters()
            player.optimizer = create("optimizer", "sgd", parameters=moved, lr=1e-2)
            player._step = stepping(player.optimizer)
        maker = made or pieces.Trainer
        holder["run"] = maker(
            recipe,
            generator,
            discriminator,
            Sent(stream.reads),
            {name: type(a)(recipe.generator, halflife=30.0) for name, a in averages.items()},
            chosen,
            monitor,
            **named,
        )
        return holder["run"]

    started(kind, loss, penalty, every=every, asleep=asleep, graphed=kept, **settings)
    return holder["run"]


def finite(run):
    tensors = [t for t in run.recipe.state_dict().values() if t.is_floating_point()]
    return all(tensor.isfinite().all() for tensor in tensors)


@pytest.fixture
def unreflected(monkeypatch):
    """No reflected borders, whose gradients are sums in whatever order."""
    (name, settings), *rest = NETWORKS["cyclegan"]
    monkeypatch.setitem(NETWORKS, "cyclegan", ((name, {**settings, "padding": "zeros"}), *rest))


@pytest.fixture
def exact():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_recorded_run_is_the_eager_one(case, exact, unreflected):
    kind, loss, penalty, schedule = case
    settings = SCHEDULES[schedule]
    eager = on_device(kind, loss, penalty, **settings)
    expected, terms = played(eager)
    run = on_device(kind, loss, penalty, GraphedTrainer, **settings)
    played(run)
    assert all(turn.recorded for turn in run._turns.values())
    assert len(run._turns) >= 2
    for name, tensor in eager.recipe.state_dict().items():
        found = run.recipe.state_dict()[name]
        assert torch.allclose(found, tensor, rtol=1e-3, atol=1e-4), name
    kept = {tag: torch.stack(values) for tag, values in run.monitor.terms().items()}
    for tag, values in terms.items():
        assert torch.allclose(kept[tag], values, rtol=1e-2, atol=1e-3), tag
        assert len(kept[tag].unique()) >= len(values.unique()), tag  # each replay's own


def test_reflected_borders_part_recorded_runs_no_more_than_eager_ones(exact):
    kind, loss, penalty, schedule = next(case for case in CASES if case[0] == "cyclegan")
    makers = (None, None, GraphedTrainer)
    runs = [on_device(kind, loss, penalty, maker, **SCHEDULES[schedule]) for maker in makers]
    for run in runs:
        played(run)
    first, again, recorded = (
        torch.cat([weight.detach().flatten() for weight in run.recipe.parameters()]) for run in runs
    )
    assert (recorded - first).norm() <= 10 * (again - first).norm() + 1e-4 * first.norm()


def test_what_reads_the_device_stays_eager_and_trains_on(monkeypatch):
    texts = []
    monkeypatch.setattr("gan.run.monitor.Monitor.tell", lambda self, kind, text: texts.append(text))
    run = on_device("synthesis", "hinge", None, GraphedTrainer)
    losses = run.recipe.discriminator_losses
    run.recipe.discriminator_losses = lambda batch, fakes, update: {
        name: term * float(term.detach().abs().item() < 1e9)
        for name, term in losses(batch, fakes, update).items()
    }
    before = {name: t.clone() for name, t in run.recipe.state_dict().items()}
    played(run)
    assert "discriminator's turn stays eager" in texts[0]
    assert run.step == STEPS
    assert any(not torch.equal(t, before[n]) for n, t in run.recipe.state_dict().items())


def test_a_turn_that_is_not_finite_is_skipped(monkeypatch):
    monkeypatch.setattr("gan.run.monitor.Monitor.tell", lambda self, kind, text: None)
    run = on_device("synthesis", "hinge", None, GraphedTrainer)
    played(run)
    deal = run.stream
    before = {name: t.clone() for name, t in run.recipe.state_dict().items()}

    class Poisoned:
        def __next__(self):
            return {key: tensor * torch.nan for key, tensor in next(deal).items()}

    run.stream = Poisoned()
    run.discriminate(shared=True)
    assert len(run.guard.skipped["discriminator"]) == 1
    for name, tensor in run.recipe.state_dict().items():
        if name.startswith("discriminator"):
            assert torch.equal(tensor, before[name]), name
    run.stream = deal
    run.play()
    assert all(
        t.isfinite().all() for t in run.recipe.state_dict().values() if t.is_floating_point()
    )


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("model", ["wnet", "dcgan", "pix2pix", "cyclegan"])
def test_training_on_the_device_resumes_to_the_bit(tiny, exact, model, graphs):
    common = ["trainer.device=cuda", f"trainer.graphs={graphs}", "trainer.save_every=6"]
    common += [f"schedule.{side}.length=12" for side in ("generator", "discriminator")]
    common += ["generator.padding=zeros"] if model == "cyclegan" else []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = build(tiny(model, *common, "trainer.steps=12", "run_dir=whole"))
        whole.train()
        build(tiny(model, *common, "trainer.steps=6", "run_dir=halves")).train()
        second = build(tiny(model, *common, "trainer.steps=12", "run_dir=halves"))
        assert second.step == 6
        second.train()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(everything(whole), everything(second))


@pytest.mark.parametrize(
    ("model", "modes"),
    [
        ("dcgan64", ["graphs"]),
        ("sngan", ["graphs"]),
        ("r3gan", ["graphs"]),
        ("wnet", ["graphs"]),
        ("wnet", []),
        ("dcgan", ["compile"]),
        ("dcgan", ["graphs", "compile"]),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, list) else given,
)
def test_networks_of_the_presets_in_bf16(composed, model, modes):
    on = [f"trainer.{mode}=true" for mode in modes]
    run = games.trainer(composed(*games.MODELS[model], *games.COMMON, *on))
    for _ in range(8):
        run.play()
    assert finite(run)
    if modes != ["compile"]:  # by themselves, too
        assert [turn.recorded for turn in run._turns.values()] == [True, True]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimizers_take_recorded_steps(composed, exact, optimizer):
    """With bounded weights and gradients, whose rates change: as without recordings."""
    small = ["generator.width=2", "discriminator.width=2"]
    chosen = [f"optimizer@optimizer.{side}={optimizer}" for side in ("generator", "discriminator")]
    rates = [f"optimizer.{side}.lr=1e-3" for side in ("generator", "discriminator")]
    bounds = ["clip.discriminator.weights=0.1", "clip.generator.norm=1"]
    still = [word for word in games.COMMON if not word.startswith("schedule")]
    words = ["model=wgan", "image.size=16", *small, *still, *chosen, *rates, *bounds]
    runs = [
        games.trainer(composed(*words, "trainer.precision=fp32", f"trainer.graphs={on}"))
        for on in ("false", "true")
    ]
    for run in runs:
        for _ in range(10):
            run.play()
    assert all(turn.recorded for turn in runs[1]._turns.values())
    weights, others = (dict(run.recipe.named_parameters()) for run in runs)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_a_resident_set_gives_the_batches_of_a_streamed_one(glyph_store, flip):
    store = Store(glyph_store)
    streams = [
        Stream(Images(store, resident=where, flip=flip), 8, 3, CUDA, ("real",))
        for where in ("on", "off")
    ]
    here = Stream(Images(store, flip=flip), 8, 3, torch.device("cpu"), ("real",))
    for _ in range(40):
        batches = [next(stream)["real"].cpu() for stream in (*streams, here)]
        assert torch.equal(batches[0], batches[2])
        assert torch.equal(batches[1], batches[2])
    for stream in (*streams, here):
        stream.close()


def test_a_stream_under_load_hands_out_what_the_store_holds(glyph_store):
    """Batches are used after many more were sent, while the device is busy."""
    store = Store(glyph_store)
    stream = Stream(Images(store, resident="off", flip=True), 8, 3, CUDA, ("real",))
    here = Stream(Images(store, flip=True), 8, 3, torch.device("cpu"), ("real",))
    busy, kept = torch.randn(2048, 2048, device=CUDA), []
    for _ in range(60):
        for _ in range(4):
            busy = (busy @ busy).clamp(-1, 1)
        kept.append(next(stream)["real"])
    for batch in kept:
        assert torch.equal(batch.cpu(), next(here)["real"])
    stream.close()
    here.close()


def test_half_a_batch_is_half_the_noise():
    """Micro-batches draw the whole batch's numbers on the device too."""
    whole = on_device("synthesis", "hinge", "r1")
    pieces_run = on_device("synthesis", "hinge", "r1", pieces.PiecewiseTrainer, micro=TOTAL // 2)
    found = [played(run, steps=2)[0] for run in (whole, pieces_run)]
    for mine, other in zip(*found, strict=True):
        for name, gradient in other.items():
            if gradient is not None:
                scale = max(float(gradient.abs().max()), 1e-6)
                assert (mine[name] - gradient).abs().max() / scale < 1e-2, name


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_style_is_learnt_on_the_device(trained, ensemble):
    trained("wnet", f"generator.self_ensemble={ensemble}", "trainer.device=cpu")
    run = gan.load("run", device=CUDA)
    shown, references = torch.rand(2, 3, 1, 16, 16) * 2 - 1
    before = torch.cuda.get_rng_state(CUDA)
    dataset = runs.dataset(run)
    shows = [dataset.characters[c] for c in dataset.split.train[:3]]
    relatives = Relatives(dataset, CUDA, shows, references)
    own = run.adapted(shown, references, 3, 0.1, shown, relatives)
    assert torch.equal(torch.cuda.get_rng_state(CUDA), before)
    assert own.device == CUDA
    assert not torch.allclose(own.write(shown, references), run.write(shown, references), atol=1e-4)
