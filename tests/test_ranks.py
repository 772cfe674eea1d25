"""Processes that train together: the same step in all of them, whatever happens to one."""

import json
import os
import signal
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from ranks import forked
from small import Numbers, everything, newest, ring, trainer
from test_guard import BAD, PLACES, poisoned_step_changes_nothing
from torch import nn

from gan import checkpoint, distributed
from gan.registry import create, entry, names
from gan.run import diagnosis, state
from gan.step import guard
from gan.step.guard import DivergedError

pytestmark = pytest.mark.usefixtures("quick_disk")


class Shares(Numbers):
    """This process's share of batches that are a function of their position."""

    def __next__(self):
        batch = super().__next__()
        share = self.batch_size // distributed.size()
        first = distributed.rank() * share
        return {key: value[first : first + share] for key, value in batch.items()}


def started(folder, **options):
    return trainer(folder, Shares(alter=options.pop("alter", None)), **options)


def weights(run):
    return {name: p.detach().clone() for name, p in run.recipe.named_parameters()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# -- gradients


class Head(nn.Module):
    """Two heads, of which a process may use one."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.idle = nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x, rank):
        return self.one(x).mean() + (self.two(x).mean() if rank else 0)


@pytest.mark.row("G3", "as in one process; absent everywhere stays None")
def test_a_head_used_in_one_process_gets_its_share_of_the_gradient(tried):
    torch.manual_seed(0)
    module, x = Head(), torch.randn(2, 4, 2)
    parameters = list(module.parameters())

    def work(rank):
        module(x[rank], rank).backward()
        said = distributed.average_gradients(parameters, torch.tensor(float(rank + 1)))
        gone = [p.grad is None for p in module.idle.parameters()]
        return {"grad": [p.grad for p in parameters[:4]], "gone": gone, "said": said.item()}

    results = forked(work)
    (0.5 * (module(x[0], 0) + module(x[1], 1))).backward()
    for result in results:
        assert result["gone"] == [True, True]
        assert result["said"] == 3.0
        for mine, expected in zip(result["grad"], parameters[:4], strict=True):
            torch.testing.assert_close(mine, expected.grad, rtol=1e-6, atol=1e-7)
    tried(2)


LOSSES = [name for name in names("adversarial") if name != "ragan"]  # its means span the batch


@pytest.mark.row("D1", "the gradient of one process on the joined batch, <= 1e-6")
def test_two_processes_have_the_gradient_of_the_joined_batch(tried, monkeypatch):
    """Every loss and penalty, paid with the loss; a share's own noise is that of its samples."""
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    parameters = list(judge.parameters())
    real, fake = (ring(8, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    noise = torch.rand(8, 2, 1, 1, generator=torch.Generator().manual_seed(3))
    cases = [(loss, penalty) for loss in LOSSES for penalty in (None, *names("penalty"))]
    cases = [case for case in cases if case[0] == "hinge" or case[1] is None]

    def drawn(share):
        def draw(*size, **options):
            size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            return (
                noise[share][: size[0]]
                .reshape(-1, 2)[:, :1]
                .reshape(size[0], *[1] * (len(size) - 1))
                .expand(size)
            )

        for name in ("rand", "randn"):
            monkeypatch.setattr(torch, name, draw)

        def like(images):  # one set of samples, or real and fake ones in a row
            own = noise[share]
            return own.repeat(len(images) // len(own), 1, 1, 1).expand_as(images)

        monkeypatch.setattr(torch, "rand_like", like)
        monkeypatch.setattr(torch, "randn_like", like)

    def gradients(case, share):
        drawn(share)
        loss, penalty = case
        for parameter in parameters:
            parameter.grad = None
        value = create("adversarial", loss).discriminator(judge(real[share]), judge(fake[share]))
        if penalty:
            taken = {"adversarial": create("adversarial", loss)}
            given = {key: taken[key] for key in entry("penalty", penalty).given}
            made = create("penalty", penalty, **given)
            value = value + made(judge, real[share], fake[share], 0)
        value.backward()

    def work(rank):
        found = []
        for case in cases:
            gradients(case, slice(4 * rank, 4 * rank + 4))
            distributed.average_gradients(parameters, torch.zeros(()))
            found.append([p.grad for p in parameters])
        return found

    for result in forked(work):
        for case, mine in zip(cases, result, strict=True):
            gradients(case, slice(0, 8))
            for one, expected in zip(mine, parameters, strict=True):
                torch.testing.assert_close(one, expected.grad, rtol=1e-5, atol=1e-6, msg=str(case))
    tried(len(cases))


# -- one process has a problem


@pytest.mark.row("D5", "all processes skip, and stay equal: difference 0")
def test_a_bad_value_in_one_process_is_skipped_in_all(tmp_path, tried):
    def spoil(batch, position):
        bad = distributed.rank() == 1 and position == 4
        return {"real": batch["real"] * (torch.nan if bad else 1)}

    def work(rank):
        run = started(tmp_path, steps=20, save_every=20, alter=spoil)
        run.train()
        return {"weights": weights(run), "skipped": run.guard.skipped}

    first, second = forked(work)
    assert first["skipped"] == second["skipped"] == {"generator": [], "discriminator": [4]}
    assert same(first["weights"], second["weights"])
    assert all(tensor.isfinite().all() for tensor in first["weights"].values())
    tried(1)


@pytest.mark.row("N1", "of two processes one is spoilt: nothing changes in either, 36 of 36")
@pytest.mark.parametrize(
    ("spoilt", "values"),
    [(1, ["nan"]), *(pytest.param(rank, BAD, marks=pytest.mark.slow) for rank in (0, 1))],
)
def test_a_value_that_is_bad_in_one_process_changes_nothing_in_any(tmp_path, spoilt, values, tried):
    def work(rank):
        found = {}
        for place, name in product(PLACES, values):
            run, here = started(tmp_path), rank == spoilt
            changed = poisoned_step_changes_nothing(tmp_path, place, BAD[name], run, here)
            found[f"{place}, {name}"] = [sorted(changed), run.guard.skipped, weights(run)]
        return found

    first, second = forked(work)
    assert len(first) == len(PLACES) * len(values)
    for case, (changed, skipped, mine) in first.items():
        other, also, theirs = second[case]
        assert (changed, other) == ([], []), case
        assert skipped == also, case
        assert same(mine, theirs), case
    tried(len(first))


@pytest.mark.row("N1", "an infinite term of one process alone, gradients finite: all skip")
def test_a_term_without_gradient_that_is_infinite_in_one_process_is_seen_by_all(tmp_path, tried):
    def work(rank):
        run = started(tmp_path)
        run.play()
        losses = run.recipe.discriminator_losses

        def spoiled(*given):
            terms = losses(*given)
            return {**terms, "odd": terms["adversarial"] * 0 + (torch.inf if rank else 0.0)}

        run.recipe.discriminator_losses = spoiled
        before = weights(run)
        with pytest.warns(UserWarning, match="skipped"):
            run.discriminate(shared=False)
        return same(before, weights(run))

    assert forked(work) == [True, True]
    tried(1)


@pytest.mark.row("N2", "of two processes that meet in a forward: rank and term are named")
def test_the_diagnosis_of_two_processes_names_the_one_at_fault(tmp_path, tried):
    def spoil(batch, position):
        bad = distributed.rank() == 1 and position >= 2
        return {"real": batch["real"].index_fill(0, torch.tensor(7), torch.nan)} if bad else batch

    def work(rank):
        run = started(tmp_path, steps=9, save_every=1, log_every=1, timeout=5.0, alter=spoil)
        losses = run.recipe.discriminator_losses

        def meeting(*given):  # as batch norms and adaptive augmentation of all processes do
            distributed.mean(torch.ones(()))
            return losses(*given)

        run.recipe.discriminator_losses = meeting
        with pytest.raises(DivergedError) as caught:
            run.train()
        return str(caught.value)

    said = forked(work)
    named = "discriminator, update 5: rank 1: adversarial, logits_real; every rank: gradient_norm"
    assert said[0].startswith(f"{named} is not finite")
    assert said[0].endswith(f"see {tmp_path / diagnosis.NAME}")
    assert said[1].startswith(named)
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert stopped["reason"] == "non-finite"
    assert named in stopped["detail"]
    told = json.loads((tmp_path / diagnosis.NAME).read_text())
    assert named in told["what"]
    first, second = told["processes"]
    assert (first["terms"]["adversarial"], second["terms"]["adversarial"])[1] == "nan"
    assert isinstance(first["terms"]["adversarial"], float)
    assert first["batch"]["real"]["samples_not_finite"] == []
    assert second["batch"]["real"]["samples_not_finite"] == [3]
    assert told["first_module_not_finite"].startswith("not looked for")
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("update 2: rank 1: adversarial" in event.get("text", "") for event in events)
    tried(1)


@pytest.mark.row("P2", "the same last step in both processes")
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path, tried):
    def work(rank):
        run = started(tmp_path, steps=10_000, save_every=10_000, log_every=10_000)
        batches = run.stream.alter

        def alter(batch, position):
            if rank == 1 and position == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return batches(batch, position)

        run.stream.alter = alter
        return {"finished": run.train(), "step": run.step}

    assert forked(work) == [{"finished": False, "step": 8}] * 2
    assert checkpoint.load(newest(tmp_path)).step == 8
    assert json.loads((tmp_path / "stopped.json").read_text())["detail"] == "SIGTERM"
    tried(1)


class Counted:
    """Measures in three batches; the first process may be asked to stop in the second."""

    better = {"mean": "less"}

    def __init__(self, asked):
        self.asked = asked

    def measure(self, generator):
        found = 0.0
        for batch in range(3):
            if self.asked and batch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            found += float(generator(torch.full((2, 2), float(batch))).mean())
        return {"mean": found}

    def report(self, generator):
        return "done"


@pytest.mark.row("P2", "asked where a measure is due: no process waits, none goes ahead")
@pytest.mark.parametrize(
    ("asked", "place", "owed"),
    [(0, "measure", True), (0, "step", True), (1, "step", False)],
)
def test_a_signal_to_one_process_where_a_measure_is_due(tmp_path, asked, place, owed, tried):
    def alter(batch, position):
        if distributed.rank() == asked and position == 3 and place == "step":
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    def work(rank, again=False):
        options = {"steps": 5, "save_every": 10, "measure_every": 4, "timeout": 5.0}
        run = started(tmp_path, alter=None if again else alter, **options)
        run.monitor.evaluation = Counted(place == "measure" and not again)
        if again:
            run.resume(newest(tmp_path))
        return [run.train(), run.step, run.monitor.owed]

    assert forked(work) == [[False, 4, owed]] * 2
    assert checkpoint.load(newest(tmp_path)).state["owed"] is owed
    assert forked(lambda rank: work(rank, again=True)) == [[True, 5, False]] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "metric/mean" in line] == [4, 5]
    tried(1)


@pytest.mark.row("D6", "found at the next save, the parameter named; no false alarm")
def test_weights_that_drift_apart_are_found_at_a_save(tmp_path, tried):
    def work(rank, drift):
        run = started(tmp_path / str(drift), steps=6, save_every=3)
        if drift:
            run.play()
            with torch.no_grad():
                run.recipe.generator[0].bias[0] += 1e-6 * rank
        run.train() if not drift else run.save()

    first, second = forked(lambda rank: work(rank, drift=True))
    for said in (first, second):
        assert "before saving: the processes differ in generator.0.bias" in said
    assert forked(lambda rank: work(rank, drift=False)) == [None, None]
    tried(2)


def test_weights_are_compared_however_they_lie():
    """Such as those of 1 x 1 pixels with channels last, and single numbers."""
    network = nn.Conv2d(16, 2, 1).to(memory_format=torch.channels_last)
    network.scale = nn.Parameter(torch.tensor(1.0))
    run = SimpleNamespace(recipe=network)
    before = state.fingerprints(run)
    assert before.keys() == {"weight", "bias", "scale"}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 1e-6)
    assert all(before[name] != after for name, after in state.fingerprints(run).items())


@pytest.mark.row("D8", "another configuration, store or step in a process is named at the start")
@pytest.mark.parametrize(
    ("field", "value"), [("config", "run-1"), ("data", "numbers-1"), ("step", 1)]
)
def test_processes_that_are_set_up_differently_are_refused(tmp_path, field, value, tried):
    from gan.run import rundir

    def work(rank):
        run = started(tmp_path, **({"run_id": f"run-{rank}"} if field == "config" else {}))
        run.stream.content += f"-{rank}" if field == "data" else ""
        run.step = rank if field == "step" else 0
        rundir.begin(run, None, print)

    first, second = forked(work)
    assert f"start: the processes differ in {field}=" in first
    assert f"differ in {field}={value!r} (as rank 1 has it)" in second
    assert not (tmp_path / "config.yaml").exists()
    tried(1)


@pytest.mark.row("D8", "processes start with the same weights, whatever they drew")
def test_weights_are_those_of_the_first_process(tmp_path, tried):
    def work(rank):
        run = trainer(tmp_path, Shares(), seed=rank, steps=1)
        run.train()
        return weights(run)

    first, second = forked(work)
    assert same(first, second)
    tried(1)


# -- going on


def halves(folder, same_seed=False):
    def whole(rank):
        run = started(folder / "whole", steps=8, save_every=8)
        run.train()
        return everything(run)[0]

    def first(rank):
        started(folder / "parts", steps=4, save_every=4).train()

    def second(rank):
        if same_seed:
            seed = distributed.seed
            distributed.seed = lambda root, side, count, device: _as_first(seed, root, count)
        run = started(folder / "parts", steps=8, save_every=8)
        run.resume(newest(folder / "parts"))
        run.train()
        return everything(run)[0]

    expected = forked(whole)
    assert forked(first) == [None, None]
    return expected, forked(second)


def _as_first(seed, root, count):
    rank, distributed.rank = distributed.rank, lambda: 0
    try:
        seed(root, "either", count, torch.device("cpu"))
    finally:
        distributed.rank = rank


@pytest.mark.row("C9", "resumed on two processes: difference 0; one seed for all must fail")
def test_two_processes_go_on_bit_for_bit(tmp_path, tried):
    expected, found = halves(tmp_path / "a")
    assert same(expected[0], found[0])
    assert same(expected[1], found[1])
    assert not torch.equal(found[0]["recipe/pool"], found[1]["recipe/pool"])  # each has its own
    tried(1)


@pytest.mark.slow
@pytest.mark.row("C9")
def test_two_processes_with_one_seed_do_not(tmp_path, tried):
    expected, found = halves(tmp_path / "b", same_seed=True)
    assert not same(expected[0], found[0])
    tried(1)


@pytest.mark.row("D5", "power: decided by each process alone, they part")
def test_deciding_alone_would_part_the_processes(tmp_path, monkeypatch, tried):
    average = distributed.average_gradients

    def alone(parameters, said):
        average(parameters, said)
        return said

    monkeypatch.setattr(distributed, "average_gradients", alone)
    monkeypatch.setattr(guard, "IN_A_ROW", 10)

    def work(rank):
        run = started(tmp_path)
        losses = run.recipe.discriminator_losses

        def spoiled(*given):
            return {
                **(terms := losses(*given)),
                "odd": terms["adversarial"] * 0 + (torch.inf if rank else 0.0),
            }

        run.recipe.discriminator_losses = spoiled
        run.discriminate(shared=False)
        return run.guard.skipped["discriminator"]

    first, second = forked(work)
    assert first != second
    tried(1)
