"""The commands themselves: torchrun on one node and on two, stopped, killed and started again."""

import json
import signal
import time

import pytest
import torch
from shared import SMALL, ended, last

TORCHRUN = ["-m", "torch.distributed.run"]
FAULTY = """
import os, signal
from gan.recipes.synthesis import Synthesis
from gan.registry import register

@register("recipe", "faulty", given=("generator", "discriminator", "adversarial", "penalties"))
class Faulty(Synthesis):
    def generator_losses(self, batch, fakes, step):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if step == 5 and first and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generator_losses(batch, fakes, step)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def launched(script):
    """Start the script under torchrun with these options and overrides, in an empty folder."""

    def launch(options, *overrides, alone=False):
        flags = [given for given in overrides if given == "-m"]  # before all overrides
        given = [given for given in overrides if given != "-m"]
        under = [] if alone else [*TORCHRUN, *options]
        return script(*flags, *SMALL, "run_dir=run", *given, under=under)

    return launch


def until(child, line):
    for said in child.stdout:
        if said.startswith(line):
            return
    raise AssertionError(f"{line} was never said")


TWO = ["--standalone", "--nproc-per-node=2"]


@pytest.mark.row("D1", "the weights of one process after 4 steps of Adam, by the command, <= 1e-4")
def test_two_processes_train_what_one_does(launched, tmp_path, tried):
    for name, options in (("one", {"alone": True}), ("two", {})):
        words = f"run_dir={name}", "penalties.r1.every=2", "trainer.precision=fp32"
        child = launched(TWO, "trainer.steps=4", *words, **options)
        status, said = ended(child)
        assert status == 0, said
        assert said.count("step 4/4") == 1  # one process speaks
    one, two = (last(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.networks.items():
        torch.testing.assert_close(two.networks[name], tensor, rtol=1e-4, atol=1e-4)
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for before, after in zip(first, second, strict=True):
        for tag in before.keys() - {"speed/images_per_second"}:
            assert after[tag] == pytest.approx(before[tag], rel=1e-3, abs=1e-3), tag
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one", "two"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["classifiers"]  # of the report
    tried(len(one.networks))


@pytest.mark.row("P3", "SIGTERM to torchrun: saved within its grace, <= 15 s; the command goes on")
def test_torchrun_is_asked_to_stop(launched, tmp_path, tried):
    child = launched(TWO, "trainer.steps=100000")
    until(child, "step 3/")
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    status, said = ended(child)
    seconds = time.monotonic() - begun
    assert status != 0
    assert "stopped by SIGTERM" in said
    told = json.loads((tmp_path / "run/stopped.json").read_text())
    assert (told["reason"], told["step"]) == ("signal", last(tmp_path / "run").step)
    assert seconds < 15
    status, said = ended(launched(TWO, f"trainer.steps={told['step'] + 2}"))
    assert status == 0, said
    assert said.count(f"run goes on at step {told['step']}") == 1
    tried(1)


@pytest.mark.row("D4", "killed under torchrun: named, all end; an elastic restart goes on")
def test_a_killed_process_is_named_and_a_restart_goes_on(launched, tmp_path, tried):
    (tmp_path / "faulty.py").write_text(FAULTY)
    faulty = ["plugins=[faulty]", "recipe=faulty", "trainer.steps=8", "trainer.save_every=2"]
    status, said = ended(launched(TWO, *faulty))
    assert status != 0
    assert "PeerError: rank 0 waited for the others in vain" in said
    assert "rank 1 does not answer (killed, or frozen)" in said
    assert json.loads((tmp_path / "run/stopped.json").read_text())["reason"] == "process"
    assert last(tmp_path / "run").step == 4
    again = [*TWO, "--max-restarts=1"]
    status, said = ended(launched(again, *faulty, "run_dir=again"))
    assert status == 0, said
    assert "again goes on at step 4" in said
    assert last(tmp_path / "again").step == 8
    assert not (tmp_path / "again/stopped.json").exists()
    tried(2)


@pytest.mark.row("D9", "a run folder in use, also by another group of processes: refused by name")
def test_a_second_group_in_one_folder_is_refused(launched, tmp_path, tried):
    child = launched(TWO, "trainer.steps=100000")
    until(child, "step 1/")
    status, said = ended(launched(TWO, "trainer.steps=100000"))
    assert status != 0
    assert said.count("gan: run_dir=run is in use by process") == 1
    child.send_signal(signal.SIGTERM)
    ended(child)
    tried(1)


def test_a_mistake_is_told_once_and_named(launched):
    status, said = ended(launched(TWO, "trainer.batch_size=7"))
    assert status != 0
    assert said.count("gan: trainer.batch_size=7 cannot be split over 2 processes") == 1
    status, said = ended(launched(TWO, "trainer.bach_size=8"))
    assert said.count("gan: trainer.bach_size is unknown; did you mean 'batch_size'") == 1
    assert "Traceback" not in said.split("torch/distributed/elastic")[0]


def test_two_nodes_and_a_multirun_that_is_refused(launched, tmp_path):
    port = "29541"
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    nodes += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test"]
    both = [launched(nodes, "trainer.steps=2") for _ in range(2)]
    for child in both:
        status, said = ended(child)
        assert status == 0, said
    assert last(tmp_path / "run").manifest["facts"]["processes"] == 2
    status, said = ended(launched(TWO, "-m", "seed=0,1", "trainer.steps=2"))
    assert status != 0
    assert said.count("train.py -m processes=2") == 1
    assert "Traceback" not in said.split("torch/distributed/elastic")[0]
    assert not list(tmp_path.glob("run/*seed*"))
