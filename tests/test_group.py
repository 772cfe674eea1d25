"""How processes that train together start, wait for the first one, and share what they do."""

import json
import os
import re
import signal
import socket
import sys
import time

import pytest
import torch
from ranks import forked
from small import Generator, Numbers, Pooled, newest, trainer
from test_ranks import Shares, started
from torch import nn

from gan import checkpoint, distributed
from gan.config.signature import ConfigError
from gan.run import peers

pytestmark = pytest.mark.usefixtures("quick_disk")


# -- meeting

MISFITS = {
    "RANK, MASTER_ADDR and MASTER_PORT do not say which": {"WORLD_SIZE": "2"},
    "RANK=2 must be below WORLD_SIZE=2": {
        "WORLD_SIZE": "2",
        "RANK": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    },
}


@pytest.mark.row("D10", "processes that cannot meet: a clear message, <= 10 s")
@pytest.mark.parametrize("said", MISFITS)
def test_variables_that_contradict_each_other_are_refused(monkeypatch, said, tried):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in MISFITS[said].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said), distributed.group():
        pass
    tried(1)


@pytest.mark.row("D10")
@pytest.mark.parametrize("fault", ["port taken", "one is missing"])
def test_processes_that_do_not_meet_say_so(monkeypatch, fault, tried):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        if fault == "port taken":
            taken.listen()
        port = str(taken.getsockname()[1])
        if fault == "one is missing":
            taken.close()
        told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(distributed, "START", 1.0)
        begun = time.monotonic()
        with pytest.raises(ConnectionError) as error, distributed.group():
            pass
    assert f"the 2 processes did not meet at localhost:{port}" in str(error.value)
    assert "WORLD_SIZE" in str(error.value)
    assert "--master-port" in str(error.value)
    assert ("rank 1 did not come" in str(error.value)) == (fault == "one is missing")
    assert time.monotonic() - begun < 10
    tried(1)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.group():
        assert not torch.distributed.is_initialized()


def test_a_node_with_fewer_devices_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this node has no CUDA device.*are 2"):
        distributed.device("cuda")
    assert distributed.device("cpu") == torch.device("cpu")


def test_cuda_where_there_is_none_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="there is no CUDA device here; use auto or cpu"):
        distributed.device("cuda")


def test_batch_norm_is_synchronised_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    here, there = Generator(), Generator()
    distributed.synchronise(here, torch.device("cpu"))
    distributed.synchronise(there, torch.device("cuda"))
    assert [type(m) for m in here.modules() if "Norm" in type(m).__name__] == [nn.BatchNorm1d]
    assert [type(m) for m in there.modules() if "Norm" in type(m).__name__] == [nn.SyncBatchNorm]
    assert here.state_dict().keys() == there.state_dict().keys()  # checkpoints fit both


# -- the first process


@pytest.mark.slow
@pytest.mark.row("D7", "work of the first process beyond the time-out aborts nothing")
def test_the_others_wait_for_the_first_without_a_time_out(tmp_path, tried):
    """With a collective in its place the others would give up after a second."""

    class Slow:
        def measure(self, generator):
            time.sleep(1.5)
            return {"rank": float(distributed.rank())}

        def report(self, generator):
            time.sleep(1.5)
            return "measured"

    def work(rank):
        distributed.limit(1.0)
        run = started(tmp_path, steps=1, measure_every=1, timeout=1.0)
        run.monitor.evaluation = Slow()
        return run.train()

    assert forked(work) == [True, True]
    assert (tmp_path / "report.txt").read_text() == "measured\n"
    tried(1)


def test_the_others_come_when_the_first_is_through_and_find_what_it_has_made(tmp_path):
    def work(rank):
        seen = []
        for turn in range(3):
            with distributed.first():
                seen.append((tmp_path / f"{turn}").exists())
                if not rank:
                    time.sleep(0.05)
                    (tmp_path / f"{turn}").touch()
        distributed.by_first(lambda: seen.append("alone"))
        return seen

    assert forked(work) == [[False, False, False, "alone"], [True, True, True]]


def test_what_the_first_cannot_do_ends_the_others(tmp_path):
    def work(rank):
        with distributed.first():
            if not rank:
                raise ValueError("no such folder")

    first, second = forked(work)
    assert "ValueError: no such folder" in first
    assert "FirstError: the first process failed with ValueError: no such folder" in second


@pytest.mark.parametrize("alive", [True, False])
def test_others_wait_for_the_first_while_it_says_that_it_is_alive(alive):
    def first():
        for beat in range(12):
            if alive or not beat:
                distributed.store().set(distributed.PLACE.format(0), str(beat))
            time.sleep(0.1)

    def work(rank):
        distributed.limit(0.6)
        distributed.by_first(first)
        return "done"

    done, waited = forked(work)
    assert done == "done"
    assert waited == "done" if alive else "PeerError: the first process has said" in waited


def test_only_the_first_process_draws_measures_and_writes(tmp_path):
    done = []

    class Noting:
        def measure(self, generator):
            done.append("measure")
            return {"l1": 0.0}

        def report(self, generator):
            done.append("report")
            return "done"

    def work(rank):
        folder = tmp_path / str(rank)
        run = trainer(folder, Shares(), steps=2, sample_every=1, measure_every=2)
        run.monitor.evaluation, run.monitor.shown = Noting(), {"ring": {}}
        run.monitor._show = lambda *given: done.append("sample")
        run.train()
        return [*done, folder.exists()]

    samples = ["sample"] * 3  # before the first step and after each
    assert forked(work) == [[*samples, "measure", "measure", "report", True], [False]]


def test_logged_terms_are_means_over_the_processes(tmp_path):
    class Odd(Shares):
        def __next__(self):
            return {"real": super().__next__()["real"] * 0 + 1 + 2 * distributed.rank()}

    def work(rank):
        run = trainer(tmp_path, Odd(), steps=1, log_every=1)
        run.recipe.register_buffer("pool", torch.zeros(4, 2, 1, 1))
        losses = run.recipe.discriminator_losses
        run.recipe.statistics = (*run.recipe.statistics, "seen")
        run.discriminator.statistics |= {"seen"}
        run.recipe.discriminator_losses = lambda batch, *given: {
            **losses(batch, *given),
            "seen": batch["real"].mean(),
        }
        run.train()
        return run.monitor._last["discriminator/seen"]

    assert forked(work) == [2.0, 2.0]


def test_terms_between_two_lines_are_those_of_all_processes_where_a_run_goes_on(tmp_path):
    """A checkpoint keeps what each of them has noted since the last line, as means over them."""

    def work(rank, resumed=None):
        run = started(tmp_path, steps=8, save_every=4, log_every=8)
        if resumed:
            run.resume(resumed)
        run.train()
        return {k: v for k, v in run.monitor._last.items() if not k.startswith("speed/")}

    whole = forked(work)
    assert forked(lambda rank: work(rank, tmp_path / "checkpoints/step-00000004")) == whole
    assert "generator/adversarial" in whole[0]


# -- averaging


def test_averaged_gradients_lie_in_memory_as_their_weights():
    """Fused Adam goes through both by memory and would move the wrong weights."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 1, 3, 5, 5)

    def work(rank):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
        layer(x[rank]).square().mean().backward()
        distributed.average_gradients(list(layer.parameters()), torch.zeros(()))
        optimizer.step()
        return [p.detach().contiguous() for p in layer.parameters()]

    found = forked(work)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(x.flatten(0, 1)).square().mean().backward()
    optimizer.step()
    for result in found:
        for mine, expected in zip(result, layer.parameters(), strict=True):
            torch.testing.assert_close(mine, expected.detach(), rtol=1e-5, atol=1e-6)


def test_gradients_of_any_memory_format_are_averaged_in_one_buffer():
    """One of a process is laid out unlike its weight, one is missing, one belongs to a 1 x 1."""
    shapes = (4, 3, 2, 2), (4, 3, 1, 1), (5,)
    given = [[torch.randn(shape) for shape in shapes] for _ in range(2)]
    formats = torch.contiguous_format, torch.channels_last

    def work(rank):
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for weight, gradient in zip(weights, given[rank], strict=True):
            if weight.ndim == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)
                gradient = gradient.to(memory_format=formats[rank])
            weight.grad = gradient
        weights[2].grad = None if rank else weights[2].grad
        distributed.average_gradients(weights, torch.zeros(()))
        assert len({w.grad.untyped_storage().data_ptr() for w in weights}) == 1
        assert weights[0].grad.is_contiguous(memory_format=torch.channels_last)
        return [weight.grad.contiguous() for weight in weights]

    given[1][2].zero_()
    for found in forked(work):
        for mine, one, other in zip(found, *given, strict=True):
            torch.testing.assert_close(mine, (one + other) / 2)


def test_weights_of_any_memory_format_reach_the_others():
    def work(rank):
        torch.manual_seed(rank)
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        distributed.replicate(layer.state_dict().values())
        return layer.weight.detach().contiguous()

    first, second = forked(work)
    assert torch.equal(first, second)


# -- faults


def test_what_is_drawn_for_the_discriminator_is_of_its_update(tmp_path):
    """Two functions are called `generate`: one is the generator's turn, one makes fakes."""
    found = []

    class Seen(Pooled):
        def generate(self, batch):
            found.append(("fakes", peers.place(run, sys._getframe())["phase"]))
            return super().generate(batch)

        def generator_losses(self, batch, fakes, step):
            found.append(("losses", peers.place(run, sys._getframe())["phase"]))
            return super().generator_losses(batch, fakes, step)

    def read(batch, position):
        found.append(("batch", peers.place(run, sys._getframe())["phase"]))
        return batch

    run = trainer(tmp_path, Numbers(alter=read), recipe=Seen)
    run.play()
    assert found == [
        ("batch", "waiting for data"),
        ("fakes", "the discriminator's update"),
        ("losses", "the generator's update"),
    ]


def spoiled(fault, at=12):
    def alter(batch, position):
        if distributed.rank() == 1 and position == at:
            fault()
        return batch

    return alter


def raise_planned():
    raise ValueError("planned")


NAMED = r"rank 1 does not answer \(killed, or frozen\): last heard of at step 12 in waiting for"
FAULTS = {
    "raises": (raise_planned, r"rank 1 at step 12 in waiting for data .*: ValueError: planned"),
    "dies": (lambda: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGKILL)), NAMED),
    "freezes": (lambda: time.sleep(4), NAMED),
}
ROWS = {
    "raises": ("D2", "all end, the culprit is named, both tracebacks are kept, <= 10 s"),
    "dies": ("D4", "as D2, the checkpoint is whole, <= 15 s"),
    "freezes": ("D3", "rank, step, phase, seconds and stack, <= time-out + 5 s"),
}


SLOW = {"freezes": [pytest.mark.slow]}  # it takes as long as the others wait


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[pytest.mark.row(*ROWS[f]), *SLOW.get(f, [])]) for f in FAULTS],
)
def test_the_process_at_fault_is_named_with_step_and_phase(tmp_path, monkeypatch, fault, tried):
    monkeypatch.setattr(peers, "BEAT", 0.05)
    monkeypatch.setattr(peers, "PATIENCE", 0.5)
    act, said = FAULTS[fault]

    def work(rank):
        begun = time.monotonic()
        try:
            started(tmp_path, steps=100, save_every=4, alter=spoiled(act), timeout=1.0).train()
        except distributed.PeerError as error:
            return {"said": str(error), "seconds": time.monotonic() - begun}

    first, second = forked(work)
    assert first["seconds"] < 10
    assert re.search(f"rank 0 waited for the others in vain .*: {said}", first["said"])
    assert (second == "killed") == (fault == "dies")
    assert ("ValueError: planned" in second) == (fault == "raises")
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert told["reason"] == "process"
    assert re.search(said, told["detail"])
    assert "alter" in told["processes"]["1"]["stack"]
    assert "all_reduce" in told["processes"]["0"]["traceback"]
    assert ("planned" in told["processes"]["1"].get("traceback", "")) == (fault == "raises")
    assert checkpoint.load(newest(tmp_path)).step == 12
    tried(1)
