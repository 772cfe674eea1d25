"""A batch that is split over processes and micro-batches has the gradient of the whole one."""

import warnings
import weakref
from contextlib import nullcontext
from functools import wraps
from itertools import product

import pytest
import torch
from games import LOSSES, NETWORKS, PENALTIES, SCHEDULES, doubles, error, gradients, started
from ranks import forked
from small import newest
from test_ranks import started as ring_game

from gan import distributed, draws, registry
from gan.bench import games
from gan.build import build
from gan.config.check import check
from gan.config.settings import Settings
from gan.draws import Share
from gan.registry import ConfigError
from gan.step import pieces
from gan.step.graphs import GraphedTrainer
from gan.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_disk")

CPU = torch.device("cpu")

HANDFUL = [
    ("synthesis", "bce", "pgd", "generator first"),
    ("conditional", "hinge", "wgan_gp", "critic"),
]
MORE = [
    ("pix2pix", "lsgan", "r1", "frozen"),
    ("synthesis", "bce", "pgd", "lazy"),
    ("conditional", "nonsaturating", "dragan", "critic"),
    ("cyclegan", "rpgan", None, "warm-up"),
    ("cyclegan", "focal", "r2", "generator first"),
    ("wnet", "wasserstein", "wgan_gp", "plain"),
    ("wnet", "hinge", "fgm", "generator first"),
]


def deviation(cases):
    """The largest deviation of any split of the cases from the whole batch in one process."""

    def work(rank):
        return [[gradients(case, micro)[0] for micro in (None, 2)] for case in cases]

    shares = forked(work, timeout=600.0)
    assert not isinstance(shares[0], str), shares[0]
    worst = {}
    for number, case in enumerate(cases):
        whole, terms = gradients(case)
        pieces, piecewise = gradients(case, micro=2)
        splits = [pieces, *(split for rank in shares for split in rank[number])]
        worst[case] = max(error(split, whole) for split in splits)
        assert piecewise.keys() == terms.keys()
        for name, values in terms.items():
            assert piecewise[name] == pytest.approx(values, rel=1e-6, abs=1e-9), (case, name)
    return worst


@pytest.mark.row("D1", "the gradient of one process on the joined batch, <= 1e-6")
@pytest.mark.parametrize("cases", [HANDFUL, pytest.param(MORE, marks=pytest.mark.slow)])
def test_a_split_batch_has_the_gradient_of_the_whole(cases, tried):
    worst = deviation(cases)
    assert max(worst.values()) < 1e-6, worst
    tried(3 * len(worst))


@pytest.mark.endurance
@pytest.mark.row("D1")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_game_has_the_gradient_of_the_whole_batch(kind, schedule, tried):
    """Two processes for all pairs of loss and penalty; micro-batches for every sixth."""
    cases = [(kind, loss, penalty, schedule) for loss, penalty in product(LOSSES, PENALTIES)]
    turn = list(SCHEDULES).index(schedule)
    micro = dict.fromkeys(cases[turn :: len(SCHEDULES)], 2)

    def work(rank):
        return [gradients(case, micro.get(case))[0] for case in cases] if rank == 0 else _all(rank)

    def _all(rank):
        for case in cases:
            gradients(case, micro.get(case))

    shares, _ = forked(work, timeout=600.0)
    assert not isinstance(shares, str), shares
    worst = {
        case: error(share, gradients(case)[0]) for case, share in zip(cases, shares, strict=True)
    }
    assert max(worst.values()) < 1e-6, worst
    tried(len(cases))


@pytest.mark.row("D1", "power: with noise of each process's own the gradient is another")
def test_noise_of_the_process_would_change_the_gradient(monkeypatch, tried):
    case = ("synthesis", "hinge", "dragan", "plain")
    monkeypatch.setattr(distributed, "share", lambda batch_size: None)
    shares = forked(lambda rank: gradients(case)[0])
    assert error(shares[0], gradients(case)[0]) > 1e-2
    tried(1)


def test_power_iterations_of_pieces_start_where_those_of_a_batch_do(monkeypatch):
    case, options = ("synthesis", "hinge", "r1", "critic"), {"norms": "spectral", "steps": 1}
    whole, _ = gradients(case, **options)
    assert error(gradients(case, micro=4, **options)[0], whole) < 1e-6
    monkeypatch.setattr(pieces, "unmoved", lambda module: nullcontext())
    assert error(gradients(case, micro=4, **options)[0], whole) > 1e-3


def test_a_run_in_one_piece_has_the_plain_trainer():
    for settings in ({}, {"micro_batch": 0}, {"micro_batch": 8}, {"micro_batch": 16}):
        assert pieces.trainer_for(Settings(batch_size=8, **settings), CPU, print, True) is Trainer
    assert (
        pieces.trainer_for(Settings(batch_size=8, micro_batch=4), CPU, print, True)
        is pieces.PiecewiseTrainer
    )


@pytest.mark.parametrize(
    ("settings", "ours", "device", "recorded"),
    [
        ({}, True, "cuda", True),
        ({}, False, "cuda", False),
        ({}, True, "cpu", False),
        ({"compile": True}, True, "cuda", False),
        ({"micro_batch": 4}, True, "cuda", False),
        ({"graphs": False}, True, "cuda", False),
        ({"graphs": True}, False, "cuda", True),
        ({"graphs": True, "compile": True}, True, "cuda", True),
    ],
)
def test_what_comes_with_gan_is_recorded_by_itself(settings, ours, device, recorded):
    told = []
    chosen = Settings(batch_size=8, **settings)
    found = pieces.trainer_for(chosen, torch.device(device), told.append, ours)
    assert (found is GraphedTrainer) == recorded
    assert len(told) == (not ours and not recorded)  # who could have it is told


def test_parts_of_a_users_own_are_told_apart(tiny, monkeypatch):
    there = {kind: dict(entries) for kind, entries in registry._entries.items()}
    monkeypatch.setattr(registry, "_entries", there)
    lsgan = registry.entry("adversarial", "lsgan").build

    @registry.register("adversarial", "own")
    class Own(lsgan):
        pass

    @registry.register("adversarial", "wrapped")
    @wraps(lsgan)
    def wrapped(*args, **kwargs):
        return lsgan(*args, **kwargs)

    registry.register("schedule", "flat")(lambda: lambda count: 1.0)
    chosen = tiny("dcgan")
    assert check(chosen).ours
    for name in ("own", "wrapped"):
        assert not check({**chosen, "adversarial": {"name": name}}).ours, name
    flat = {**chosen["schedule"], "generator": {"name": "flat"}}
    assert not check({**chosen, "schedule": flat}).ours
    assert not check({**chosen, "plugins": ["anything"]}).ours


@pytest.mark.parametrize("given", [{}, {"plugins": ["anything"]}])
def test_who_plays_is_chosen_by_whose_parts_they_are(tiny, monkeypatch, given):
    asked, choose = [], pieces.trainer_for

    def noted(settings, device, say, ours):
        asked.append(ours)
        return choose(settings, device, say, ours)

    monkeypatch.setattr(pieces, "trainer_for", noted)
    config = {**tiny("dcgan"), **given}
    build(config).stream.close()
    games.trainer(config)
    assert asked == 2 * [not given]


def test_who_asks_for_recordings_that_cannot_be_made_is_told():
    told = []
    assert pieces.trainer_for(Settings(graphs=True), CPU, told.append, True) is Trainer
    assert "trainer.graphs" in told[0]


def test_one_graph_is_alive_at_a_time():
    """The reason for micro-batches: what the generator makes of a whole batch is never held."""
    with doubles():
        run = started("synthesis", "hinge", None, micro=2)
        sizes = []
        generate = run.recipe.generate
        run.recipe.generate = lambda batch: sizes.append(len(batch["real"])) or generate(batch)
        alive = []

        def look(*_):
            living = [image for image in (fake() for fake in fakes) if image is not None]
            alive.append(sum(image.grad_fn is not None for image in living))

        fakes = []
        make = run.recipe.generator.forward
        run.recipe.generator.forward = lambda z: _kept(make(z), fakes)
        run.recipe.discriminator.register_forward_pre_hook(look)
        run.play()
    assert sizes == [2] * 8  # four pieces, for either player
    assert max(alive) == 1


def _kept(made, fakes):
    fakes.append(weakref.ref(made))
    return made


# -- draws


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_shares_of_draws_are_rows_of_the_whole(form):
    x = torch.empty(6, 3, 2, 2).to(memory_format=form)
    kinds = {
        "normal": lambda x: draws.normal(len(x), 3, device=x.device),
        "uniform": lambda x: draws.uniform(len(x), 1, device=x.device),
        "integers": lambda x: draws.integers(-2, 5, len(x), device=x.device),
        "normal_like": draws.normal_like,
        "uniform_like": draws.uniform_like,
    }
    for name, draw in kinds.items():
        torch.manual_seed(7)
        whole = draw(x)
        parts = []
        for first in (0, 2, 4):
            with draws.shared(Share(first, 2, 6), seed=7):
                parts.append(draw(x[first : first + 2]))
        assert torch.equal(torch.cat(parts), whole), name


def test_several_numbers_a_sample_lie_one_set_after_the_other():
    torch.manual_seed(7)
    reals, fakes = torch.randn(12, 1).split(6)
    with draws.shared(Share(2, 2, 6), seed=7):
        found = draws.normal(4, 1, device=reals.device)
    assert torch.equal(found, torch.cat([reals[2:4], fakes[2:4]]))


def test_draws_that_belong_to_no_sample_are_refused_in_a_share():
    with draws.shared(Share(0, 4, 8), seed=7), pytest.raises(ValueError, match="3 rows, but 4"):
        draws.normal(3, 2, device=torch.device("cpu"))
    assert draws.normal(3, 2, device=torch.device("cpu")).shape == (3, 2)


def test_what_belongs_to_no_sample_differs_between_processes_and_pieces():
    def drawn(share):
        with distributed.seeded(1, torch.device("cpu"), share, "generator", 3):
            return torch.rand(()).item()

    shares = [None, *(Share(first, 2, 8) for first in (0, 2, 4, 6))]
    assert len({drawn(share) for share in shares}) == 5
    assert drawn(shares[2]) == drawn(shares[2])


# -- runs


@pytest.mark.row("D1", "weights and averages of both are the same after 50 steps: difference 0")
def test_weights_and_averages_are_the_same_everywhere_after_50_steps(tmp_path, tried):
    """Also with batch norm, dropout and pools, which differ."""

    def work(rank):
        run = ring_game(tmp_path, steps=50, save_every=50, log_every=50)
        run.train()
        averaged = run.averages["ema"].generator.named_parameters()
        return {**dict(run.recipe.named_parameters()), **{f"ema/{n}": p for n, p in averaged}}

    first, second = forked(work)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    tried(50)


@pytest.mark.row(
    "C11", "another number of processes: the same samples in the same order, a warning"
)
@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), *(pytest.param(*p, marks=pytest.mark.slow) for p in [(1, 2), (2, 4)])],
)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, before, after, tried):
    """Two steps here and two there are the four steps of one process."""

    def part(rank, goes_on):
        with doubles(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = started("synthesis", "bce", "wgan_gp", folder=tmp_path)
            if goes_on:
                run.resume(newest(tmp_path))
            for _ in range(2):
                run.play()
            if not goes_on:
                run.save()
            weights = dict(run.recipe.named_parameters())
            return {"weights": weights, "said": [str(w.message) for w in caught][:1]}

    forked(lambda rank: part(rank, goes_on=False), count=before)
    found = forked(lambda rank: part(rank, goes_on=True), count=after)
    with doubles():
        whole = started("synthesis", "bce", "wgan_gp")
        for _ in range(4):
            whole.play()
        for result in found:
            assert f"processes was {before}, is {after}" in result["said"][0]
            for name, weight in whole.recipe.named_parameters():
                torch.testing.assert_close(result["weights"][name], weight, rtol=1e-9, atol=1e-12)
    tried(1)


# -- what a user is told


REFUSED = {
    r"trainer\.micro_batch=24 must divide the 64 images": ["trainer.micro_batch=24"],
    r"trainer\.micro_batch must be": ["trainer.micro_batch=-1"],
    r"trainer\.micro_batch=1 must .* and be at least 2": ["model=wnet", "trainer.micro_batch=1"],
}


@pytest.mark.row("F3")
@pytest.mark.parametrize("said", REFUSED)
def test_a_micro_batch_that_cannot_be_is_refused(composed, said):
    with pytest.raises(ConfigError, match=said):
        check(composed(*(["model=dcgan"] if len(REFUSED[said]) == 1 else []), *REFUSED[said]))


ALONE = ["generator.norm=group", "discriminator.norm=layer"]
NOTED = {
    "": ALONE,
    "batch norm will see 16 images": [],
    "adversarial=ragan will see 16 images": [*ALONE, "adversarial=ragan"],
}


@pytest.mark.parametrize("said", NOTED)
def test_what_depends_on_the_split_is_noted(composed, monkeypatch, said):
    processes = 4 if "norm" in said else 1
    micro = [] if processes > 1 else ["trainer.micro_batch=16"]
    config = composed("model=dcgan", "trainer.device=cpu", *NOTED[said], *micro)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "size", lambda: processes)
        notes = check(config).notes
    assert [said in note for note in notes] == [True] * bool(said)
