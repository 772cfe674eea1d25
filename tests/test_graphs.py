"""Recorded turns compute what played ones do, with the recording itself replaced on the CPU."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from games import SCHEDULES, TOTAL, doubles, error, started

from gan.average import Uniform
from gan.recipe import penalise
from gan.step import graphs
from gan.step.graphs import WARM, GraphedTrainer, Number
from gan.step.guard import DivergedError

STEPS = 2 * WARM + 4


class Again:
    """Records by remembering the work, which runs once without leaving anything behind."""

    def __init__(self):
        self.run, self.recorded, self.replayed = None, [], 0

    def __call__(self, work):
        self.recorded.append(work)
        if work.__name__ == "_differentiate":
            self._rehearse(work)
        return partial(self._replay, work)

    def _rehearse(self, work):
        buffers = [*self.run.recipe.buffers()]
        kept, chance = [buffer.clone() for buffer in buffers], torch.get_rng_state()
        backward = torch.autograd.backward
        torch.autograd.backward = partial(backward, retain_graph=True)  # for the replay to come
        try:
            work()
        finally:
            torch.autograd.backward = backward
            torch.set_rng_state(chance)
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.data.copy_(value)

    def _replay(self, work):
        self.replayed += 1
        work()


def graphed(recorder):
    def made(*args, **kwargs):
        run = recorder.run = GraphedTrainer(*args, recorder=recorder, **kwargs)
        return run

    return made


def played(run, steps=STEPS):
    """Gradients of every update in order, and the terms' values."""
    found = []

    def note(player):
        named = player.module.named_parameters()
        grads = {f"{player.name}/{name}": p.grad for name, p in named}
        found.append({name: g if g is None else g.clone() for name, g in grads.items()})

    for player in run.players:
        player.optimizer.register_step_pre_hook(lambda *_, player=player: note(player))
    while run.step < steps:
        if run.discriminator_updates < run.settings.discriminator_warmup:
            run.discriminate(shared=False)
        else:
            run.play()
    return found, {tag: torch.stack(kept) for tag, kept in run.monitor.terms().items()}


@pytest.mark.parametrize("way", ["whole", "pieces", "recorded"])
def test_an_average_draws_what_is_played(way, monkeypatch):
    """The prepared batch, in pieces as large as those that are played."""
    with doubles():
        micro = 2 if way == "pieces" else None
        kind = graphed(Again()) if way == "recorded" else None
        settings = SCHEDULES["plain"]
        run = started("wnet", "wasserstein", "wgan_gp", micro=micro, graphed=kind, **settings)
        drawn, generate = [], run.recipe.generate
        average = Uniform(run.recipe.generator)
        monkeypatch.setattr("gan.average.normed", lambda module: True)  # the game's are at rest

        def update(images, draw):
            monkeypatch.setattr(run.recipe, "generate", lambda b: drawn.append(b) or generate(b))
            Uniform.update(average, images, draw)
            monkeypatch.setattr(run.recipe, "generate", generate)

        run.averages = {"uniform": SimpleNamespace(update=update)}
        for _ in range(6):
            run.play()
    assert len(drawn) == 6
    assert all(
        "made_style" in batch and len(batch["target"]) == (micro or TOTAL) for batch in drawn
    )


CASES = [
    ("synthesis", "bce", "r1", "lazy"),
    ("synthesis", "rpgan", "pgd", "plain"),
    ("conditional", "hinge", "wgan_gp", "critic"),
    ("pix2pix", "lsgan", "dragan", "generator first"),
    ("cyclegan", "nonsaturating", None, "warm-up"),
    ("wnet", "wasserstein", "wgan_gp", "frozen"),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id="-".join(map(str, case)), marks=[pytest.mark.slow] * (place in (1, 3, 4, 5))
        )
        for place, case in enumerate(CASES)
    ],
)
def test_a_replayed_run_is_the_played_one(case):
    kind, loss, penalty, schedule = case
    recorder = Again()
    with doubles():
        settings = SCHEDULES[schedule]
        expected, terms = played(started(kind, loss, penalty, **settings))
        run = started(kind, loss, penalty, graphed=graphed(recorder), **settings)
        found, kept = played(run)
    kinds = len(run._turns)
    assert len(recorder.recorded) == 2 * kinds >= 4
    assert recorder.replayed > 2 * kinds
    assert error(found, expected) < 1e-12
    for tag, values in terms.items():
        assert torch.allclose(kept[tag], values, rtol=1e-10), tag


def test_every_combination_of_due_penalties_is_a_turn_of_its_own():
    recorder = Again()
    run = started("synthesis", "bce", "r1", every=3, graphed=graphed(recorder))
    played(run, steps=3 * WARM + 3)
    kinds = [kind for kind in run._turns if kind[0] == "discriminator"]
    assert sorted(kind[-1] == "r1" for kind in kinds) == [False, True]


def test_a_weight_that_falls_falls_in_replays():
    found = {}
    for way, options in (("played", {}), ("replayed", {"graphed": graphed(Again())})):
        with doubles():
            run = started("synthesis", "bce", "r1", **options)
            run.recipe.penalties["r1"].end, run.recipe.penalties["r1"].images = 0.0, TOTAL * STEPS
            _, terms = played(run)
        found[way] = terms["discriminator/r1"]
    assert torch.allclose(found["replayed"], found["played"], rtol=1e-10)
    assert found["played"][-1] < 0.1 * found["played"][0]


def test_rates_of_a_schedule_reach_the_tensor_that_a_recorded_step_reads():
    run = started("synthesis", "hinge", None, graphed=graphed(Again()))
    groups = [group for player in run.players for group in player.optimizer.param_groups]
    read = [group["lr"] for group in groups]
    for player in run.players:
        player.schedule = lambda update: 1 / (1 + update)
    played(run)
    assert all(group["lr"] is rate for group, rate in zip(groups, read, strict=True))
    assert [rate.item() for rate in read] == pytest.approx([1e-2 / STEPS] * 2)


def test_turns_are_recorded_anew_after_going_back(monkeypatch):
    """The optimizer's moments have been put into other tensors."""
    recorder = Again()
    run = started("synthesis", "hinge", None, graphed=graphed(recorder))
    for _ in range(STEPS):
        run.play()
    before = len(recorder.recorded)
    monkeypatch.setattr("gan.run.state.resume", lambda run, path: {**run.counts(), "position": 0})
    run.resume(None)
    for _ in range(STEPS):
        run.play()
    assert len(recorder.recorded) == 2 * before > 0


def test_a_recipe_that_computes_with_the_number_of_the_update_stays_eager(told):
    recorder = Again()
    with doubles():
        runs = [
            started("synthesis", "hinge", None, graphed=made) for made in (None, graphed(recorder))
        ]
        for run in runs:
            _fade(run.recipe)
        expected, _ = played(runs[0])
        found, _ = played(runs[1])
    assert error(found, expected) < 1e-12
    assert "number of the update" in told[0]
    assert "discriminator's turn stays eager" in told[0]
    assert not [turn for turn in runs[1]._turns.values() if turn.recorded]


def _fade(recipe):
    losses = recipe.discriminator_losses

    def faded(batch, fakes, update):
        return {name: term / (1 + update) for name, term in losses(batch, fakes, update).items()}

    recipe.discriminator_losses = faded


def test_a_generator_that_cannot_be_recorded_keeps_its_dealer_eager_too(told):
    recorder = Again()
    with doubles():
        runs = [
            started("synthesis", "hinge", None, graphed=made) for made in (None, graphed(recorder))
        ]
        for run in runs:
            losses = run.recipe.generator_losses
            run.recipe.generator_losses = lambda batch, fakes, step, losses=losses: {
                name: term / (1 + step) for name, term in losses(batch, fakes, step).items()
            }
        expected, _ = played(runs[0])
        found, _ = played(runs[1])
    assert "generator's turn stays eager" in told[0]
    assert len(found) == len(expected)
    before = 2 * WARM + 1  # the generator's turn that failed has fakes of its own noise
    assert error(found[:before], expected[:before]) < 1e-12
    assert all(turn.eager for turn in runs[1]._turns.values())


def test_a_buffer_in_anothers_place_is_noticed(told):
    recorder = Again()
    run = started("synthesis", "hinge", None, graphed=graphed(recorder))
    run.recipe.discriminator.register_buffer("seen", torch.zeros(()))
    run.guard = type(run.guard)(run.recipe, run.monitor.tell)
    run.recipe.discriminator.register_forward_hook(
        lambda module, *_: setattr(module, "seen", module.seen + 1)
    )
    played(run)
    assert "use copy_" in told[0]


def test_what_is_not_finite_is_skipped_between_the_halves(told):
    recorder = Again()
    run = started("synthesis", "hinge", None, graphed=graphed(recorder))
    played(run, steps=WARM + 2)
    assert recorder.replayed
    before = {name: tensor.clone() for name, tensor in run.recipe.state_dict().items()}
    poison = run.recipe.discriminator_losses
    run.recipe.discriminator_losses = lambda *given: {
        name: term * torch.nan for name, term in poison(*given).items()
    }
    run.discriminate(shared=True)
    assert run.guard.skipped["discriminator"] == [run.discriminator_updates - 1]
    after = run.recipe.discriminator.state_dict()
    assert all(
        torch.equal(tensor, before[f"discriminator.{name}"]) for name, tensor in after.items()
    )
    run.discriminate(shared=True)
    run.discriminate(shared=True)
    with pytest.raises(DivergedError):
        run.discriminate(shared=True)


def test_what_diverged_is_told_with_the_batch_that_was_played(told):
    """Styles and characters are made within the recording: a diagnosis must not lack them."""
    run = started("wnet", "wasserstein", "wgan_gp", graphed=graphed(Again()))
    played(run, steps=WARM + 2)
    poison = run.recipe.discriminator_losses
    run.recipe.discriminator_losses = lambda *given: {
        name: term * torch.nan for name, term in poison(*given).items()
    }
    for _ in range(3):
        run.discriminate(shared=True)
    with pytest.raises(DivergedError) as error:
        run.discriminate(shared=True)
    assert {"made_style", "made_character"} <= error.value.batch.keys()


TENSOR = torch.ones(2)
USES = {
    "n % 2": lambda n: n % 2,
    "7 % n": lambda n: 7 % n,
    "1 / (n + 1)": lambda n: 1 / (n + 1),
    "1 / n": lambda n: 1 / n,
    "1000 // n": lambda n: 1000 // n,
    "0.001 * n": lambda n: 0.001 * n,
    "1.0 - n": lambda n: 1.0 - n,
    "0.5**n": lambda n: 0.5**n,
    "-n": lambda n: -n,
    "abs": abs,
    "divmod": lambda n: divmod(n, 2),
    "n & 1": lambda n: n & 1,
    "1 << n": lambda n: 1 << n,
    "n > 3": lambda n: n > 3,
    "3.5 < n": lambda n: n > 3.5,
    "n == 4": lambda n: n == 4,
    "4 != n": lambda n: n != 4,
    "min": lambda n: min(1.0, n),
    "in": lambda n: n in [1, 2],
    "of a table": lambda n: {0: 25}.get(n),
    "of a list": lambda n: [1, 2, 3, 4, 5][n],
    "range": range,
    "bool": bool,
    "int": int,
    "float": float,
    "round": round,
    "math.exp": math.exp,
    "math.floor": math.floor,
    "tensor * n": lambda n: TENSOR * n,
    "n * tensor": lambda n: n * TENSOR,
    "tensor - n": lambda n: TENSOR - n,
    "tensor**n": lambda n: TENSOR**n,
    "tensor < n": lambda n: n > TENSOR,
    "numpy * n": lambda n: np.float64(2) * n,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_number_refuses_to_decide(use):
    assert use(4) is not NotImplemented  # the control: it is something that a number does
    with pytest.raises(TypeError, match="number of the update"):
        use(Number(4))


def test_a_number_makes_no_tensor():
    for make in (torch.tensor, torch.as_tensor, lambda n: torch.full((), n), torch.arange):
        with pytest.raises((TypeError, RuntimeError)):
            make(Number(4))
    with pytest.raises(TypeError):
        TENSOR.mul(Number(4))


def test_a_number_can_be_shown_and_tells_which_penalties_are_due():
    assert f"{Number(4)}" == "4"
    penalties = {"r1": lambda judge, real, fake, update: update}
    for number in (4, Number(4)):
        assert penalise(penalties, None, None, None, number) == {"r1": number}


def test_optimizers_keep_their_rate_on_the_device():
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)], lr=0.25)
    graphs.make_recordable(optimizer, torch.device("cpu"))
    assert optimizer.param_groups[0]["lr"].equal(torch.tensor(0.25))


@pytest.fixture
def told(monkeypatch):
    texts = []
    monkeypatch.setattr("gan.run.monitor.Monitor.tell", lambda self, kind, text: texts.append(text))
    return texts
