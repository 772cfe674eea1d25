"""Multiruns: killed and repeated, one job failing, in parallel, resubmitted, as a search."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf
from shared import TRAIN, ended, waited_for

from gan.build import build
from gan.commands import composing, sweep, train
from gan.commands.composing import UsageError
from gan.run.signals import Stop

SMALL = ["data=fonts", "image.size=16", "trainer.batch_size=8", "trainer.log_every=1"]
DCGAN = ["model=dcgan", "generator.width=4", "discriminator.width=4", "generator.latent=8"]
WNET = ["model=wnet", "generator.width=2", "discriminator.width=2", "recipe.feature=0"]


@pytest.fixture
def command(script):
    """Start `train.py -m` as a process of its own, in an empty directory."""
    return partial(script, "-m", *SMALL, "sweep=all")


def runs(folder):
    """The steps whose terms every run has logged, by seed."""
    found = {}
    for path in (folder / "runs/all").glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line[-1] == "}"]
        steps = [line["step"] for line in lines if "generator/adversarial" in line]
        found[int(path.parent.name.split("seed=")[1].split(",")[0])] = steps
    return found


# -- the parts


def test_what_a_job_prints_and_how_it_ends_is_kept(tmp_path, capsys):
    call = sweep.begin()
    with sweep.recorded(tmp_path, "good"):
        print("fine")
        print("\rbar", end="", file=sys.stderr)
        assert sweep.jobs(tmp_path, call) == {"good": "cut off"}  # if it were killed now
    with pytest.raises(sweep.JobError, match="bad: 1 is no 2"), sweep.recorded(tmp_path, "bad"):
        raise UsageError("1 is no 2")
    with pytest.raises(sweep.JobError), sweep.recorded(tmp_path, "worse"):
        raise RuntimeError("broken")
    with pytest.raises(KeyboardInterrupt), sweep.recorded(tmp_path, "asked"):
        raise KeyboardInterrupt
    assert sweep.jobs(tmp_path, call) == {
        "asked": "stopped",
        "bad": "mistake",
        "good": "done",
        "worse": "failed",
    }
    assert (tmp_path / "good.log").read_text() == "fine\n"
    assert "fine" in capsys.readouterr().out
    assert (tmp_path / "worse.log").read_text().splitlines()[-1] == "RuntimeError: broken"
    assert sweep.jobs(tmp_path, sweep.begin()) == {}  # those of another call


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["done", "done"], 0),
        (["done", "mistake"], 2),
        (["mistake", "failed"], 1),
        (["cut off", "done"], 1),
        (["stopped", "done"], 1),
    ],
)
def test_the_exit_status_is_that_of_the_worst_job(tmp_path, states, status, capsys):
    call = sweep.begin()
    for number, state in enumerate(states):
        sweep._note(tmp_path, f"job{number}", state)
        (tmp_path / f"job{number}.log").write_text("".join(f"line {n}\n" for n in range(20)))
    assert sweep.ended(tmp_path, call, 0) == status
    said = capsys.readouterr().err
    assert ("line 19" in said) == bool(set(states) & {"mistake", "failed", "cut off"})
    assert "line 11\n" not in said


def of_sweeper(**values):
    return OmegaConf.create({"sweeper": values})


def test_a_search_goes_by_a_measure_and_in_its_direction():
    sweep.require_search(of_sweeper(), None)  # a sweep that does not search
    sweep.require_search(of_sweeper(direction="minimize"), "metric/validation_l1")
    sweep.require_search(of_sweeper(direction="minimize"), "metric/of_a_plugin")
    with pytest.raises(UsageError, match=r"goes by trainer\.best"):
        sweep.require_search(of_sweeper(direction="minimize"), None)
    with pytest.raises(UsageError, match=r"use hydra\.sweeper\.direction=maximize"):
        sweep.require_search(of_sweeper(direction="minimize"), "metric/validation_ssim")
    for measure in ("fid", "lpips"):
        with pytest.raises(UsageError, match="less is better"):
            sweep.require_search(of_sweeper(direction="maximize"), f"metric/{measure}")
    with pytest.raises(UsageError, match="more is better"):
        sweep.require_search(of_sweeper(direction="minimize"), "metric/recall")
    assert sweep.worst(of_sweeper(direction="minimize")) == float("inf")
    assert sweep.worst(of_sweeper(direction="maximize")) == -float("inf")


@pytest.mark.parametrize(("direction", "of_curve"), [("minimize", 0.2), ("maximize", 0.7)])
def test_a_search_reads_what_a_run_of_another_search_has_measured(tmp_path, direction, of_curve):
    lines = [
        {"step": step, "images": step, "metric/a": a, "metric/never": "nan", "best/b": 5.0}
        for step, a in enumerate([0.7, "nan", 0.2, 0.5], 1)
    ]
    (tmp_path / "config.yaml").write_text("seed: 0\ntrainer: {steps: 4}\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hydra = of_sweeper(direction=direction)
    assert sweep.value(hydra, tmp_path, "metric/b") == 5.0
    assert sweep.value(hydra, tmp_path, "metric/a") == of_curve
    assert sweep.value(hydra, tmp_path, "metric/never") == sweep.worst(hydra)
    assert sweep.value(hydra, tmp_path, "metric/nowhere") == sweep.worst(hydra)
    assert sweep.value(of_sweeper(), tmp_path, "metric/a") is None
    assert sweep.value(hydra, tmp_path, None) is None


def test_every_worker_of_joblib_has_a_device_of_its_own():
    numbers = [sweep.devices_of(f"LokyProcess-{n}", 2, 1) for n in (1, 2, 3)]
    assert numbers == [[0], [1], [0]]
    assert sweep.devices_of("LokyProcess-2", 1, 1) == []
    assert sweep.devices_of("MainProcess", 8, 1) == []


def asked(number):
    """What a stop has heard when the training has saved; then it ends as training does."""
    with sweep.stoppable() as stop:
        os.kill(os.getpid(), number)
        if not stop.name:
            raise AssertionError("not heard")
        raise KeyboardInterrupt


def test_submitits_own_handler_comes_after_the_stop(monkeypatch):
    """It ends the process, so that it must not run before the run has saved."""
    heard = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            asked(signal.SIGTERM)
        assert not heard
        with pytest.raises(SystemExit) as raised:  # in a task whose handler returns: all but one
            asked(signal.SIGUSR2)
        assert (heard, raised.value.code) == ([signal.SIGUSR2], 0)
        monkeypatch.delenv("SUBMITIT_EXECUTOR")
        with sweep.stoppable() as stop:
            assert signal.SIGUSR2 not in stop.signals
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_a_trainer_listens_to_the_stop_that_it_is_given(tiny):
    """One that has not been asked yet is false, and yet no other one will do."""
    stop = Stop()
    trainer = build(tiny("dcgan"), lambda said: None, stop)
    trainer.stream.close()
    assert trainer.stop is stop


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("sampler", {"_target_": "optuna.samplers.TPESampler"}, False),
        ("sampler", {"_target_": "os.system"}, True),
        ("custom_search_space", "os.system", True),
        ("custom_search_space", None, False),
    ],
)
def test_a_search_calls_nothing_but_its_samplers(key, value, refused):
    config = {"hydra": {"sweeper": {key: value}}}
    if refused:
        with pytest.raises(UsageError, match="is refused"):
            composing.require_values(config)
    else:
        composing.require_values(config)


def test_the_folder_of_a_sweep_may_be_chosen_by_run_dir():
    given = {"sweep": SimpleNamespace(dir="runs/all", subdir="seed=0")}
    overrides = SimpleNamespace(task=["seed=0"])
    assert sweep.place(SimpleNamespace(**given, overrides=overrides))[0] == Path("runs/all")
    overrides.task.append("run_dir=elsewhere")
    assert sweep.place(SimpleNamespace(**given, overrides=overrides))[0] == Path("elsewhere")
    for named in ("run_dir='my sweep'", "++run_dir='my sweep'"):
        overrides.task.append(named)
        assert sweep.place(SimpleNamespace(**given, overrides=overrides))[0] == Path("my sweep")


def test_the_folder_of_a_sweep_is_told_from_overrides_as_they_are_written(monkeypatch):
    monkeypatch.setenv("RUN", "runs/multirun/model=dcgan,seed=0")
    task = ["init=${oc.env:RUN}", "data.path=${oc.env:NOWHERE}", "run_dir=all"]
    hydra = OmegaConf.create({"overrides": {"task": task}})
    assert sweep.folder(hydra) == Path("all")


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("run_dir=runs/x-${model}", "run_dir"),
        ("++run_dir='x-${model}'", "run_dir"),
        ("run_dir=a,b", "run_dir"),
        ("sweep=a,b", "sweep"),
    ],
)
def test_a_sweep_has_one_folder(monkeypatch, tmp_path, capfd, given, key):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train.main(["-m", "model=dcgan", "seed=0,1", given]) == 2
    said = f"gan: {key}={given.partition('=')[2]} cannot be the folder of a multirun"
    error = capfd.readouterr().err
    assert error.startswith(said)
    assert "sweep=NAME" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_whose_folder_cannot_be_told_is_refused_in_a_sentence(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train.main(["-m", "model=dcgan", "seed=0,1", "sweep=${nope}"]) == 2
    assert capfd.readouterr().err == "gan: hydra.sweep.dir: Interpolation key 'nope' not found\n"
    assert not list(tmp_path.iterdir())


# -- whole sweeps


@pytest.mark.slow
def test_a_sweep_killed_in_its_second_job_finishes_what_is_missing(command, tmp_path):
    steps = ["trainer.steps=300", "trainer.save_every=5", "seed=0,1,2"]
    child = command(*DCGAN, *steps)
    for line in child.stdout:
        if line.startswith("step 20/") and len(runs(tmp_path)) == 2:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    first = runs(tmp_path)
    assert first[0] == [*range(1, 301)]
    assert 20 <= first[1][-1] < 300
    status, said = ended(command(*DCGAN, *steps))
    assert status == 0, said
    assert said.count(" is finished") == 1
    assert "goes on at step" in said
    assert runs(tmp_path) == dict.fromkeys(range(3), [*range(1, 301)])
    assert "| all  | 3 " in said
    assert (tmp_path / "runs/all/compare.png").exists()
    status, said = ended(command(*DCGAN, *steps))  # all of them are
    assert (status, said.count(" is finished")) == (0, 3)


PLUGIN = """
import torch
from gan.registry import register


@register("adversarial", "broken")
class Broken:
    def __init__(self, from_step: int = 3) -> None:
        self.left = from_step

    def discriminator(self, real_logits, fake_logits):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of paper")
        return (fake_logits - real_logits).mean()

    def generator(self, fake_logits, real_logits_of):
        return -fake_logits.mean()
"""


@pytest.mark.slow
def test_a_job_that_breaks_is_shown_with_the_end_of_its_log(command, tmp_path):
    (tmp_path / "paper.py").write_text(PLUGIN)
    status, said = ended(
        command(*DCGAN, "plugins=[paper]", "trainer.steps=4", "adversarial=broken,bce,broken")
    )
    assert status == 1, said
    assert "gan: 1 of 2 jobs failed" in said
    assert "RuntimeError: out of paper" in said.partition("jobs failed")[2]
    assert len(list((tmp_path / "runs/all").glob("*bce*/finished.json"))) == 1


PARALLEL = {"joblib": "hydra.launcher.n_jobs=2", "ray": "+hydra.launcher.ray.init.num_cpus=2"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL)
def test_jobs_run_in_parallel(command, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    chosen = [f"hydra/launcher={launcher}", PARALLEL[launcher]]
    status, said = ended(command(*DCGAN, *chosen, "trainer.steps=4", "seed=0,-1,1"))
    assert status == 2, said
    assert "gan: 1 of 3 jobs failed" in said
    assert runs(tmp_path) == {0: [1, 2, 3, 4], 1: [1, 2, 3, 4]}


@pytest.mark.slow
def test_a_preempted_job_saves_is_submitted_again_and_goes_on(command, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ["hydra/launcher=submitit_local"]
    steps = ["trainer.steps=800", "trainer.save_every=1000", "seed=0"]
    child = command(*DCGAN, *launcher, *steps)
    (log,) = waited_for(lambda: [*(tmp_path / "runs/all").glob("*seed=0*/metrics.jsonl")])
    waited_for(lambda: log.read_text().count("\n") > 20)
    holder = (log.parent / ".lock").read_text().split()[1]
    os.kill(int(holder), signal.SIGUSR2)
    status, said = ended(child)
    assert status == 0, said
    (path,) = (tmp_path / "runs/all").glob("*.log")
    text = path.read_text()
    assert "stopped by SIGUSR2" in text
    assert "goes on at step" in text
    assert runs(tmp_path) == {0: [*range(1, 801)]}


@pytest.mark.slow
def test_a_search_by_optuna_minimises_the_measure(command, tmp_path):
    pytest.importorskip("optuna")
    search = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler.seed=0",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=1",
        "optimizer.generator.lr=interval(1e-4,1e-2)",
        "trainer.best=metric/validation_l1",
        "trainer.measure_every=1",
        "trainer.steps=2",
    ]
    status, said = ended(command(*WNET, *search))
    assert status == 0, said
    found = OmegaConf.load(tmp_path / "runs/all/optimization_results.yaml")
    lines = [p.read_text().splitlines() for p in (tmp_path / "runs/all").glob("*/metrics.jsonl")]
    values = [json.loads(line).get("best/validation_l1") for one in lines for line in one]
    assert found.best_value == min(value for value in values if value is not None)
    status, said = ended(command(*WNET, *search))  # the same trials, which are finished
    assert (status, said.count(" is finished")) == (0, 2)


@pytest.mark.slow
def test_the_ablation_switches_each_trick_off_alone_and_all_together(composed):
    conf = TRAIN.parent / "conf"
    experiment = yaml.safe_load((conf / "experiment/wnet_ablation.yaml").read_text())
    names = experiment["hydra"]["sweeper"]["params"]["tricks"].split(",")
    assert sorted(names) == sorted(path.stem for path in (conf / "tricks").iterdir())
    found, rest = {}, set()
    for name in names:
        values = composed("experiment=wnet_ablation", f"tricks={name}")
        found[name] = (
            values["penalties"]["wgan_gp"].pop("weight"),
            values["classification"].pop("label_smoothing"),
            values["optimizer"]["discriminator"].pop("lr"),
            values["recipe"].pop("feature"),
        )
        rest.add(json.dumps(values))
    on, off = (10.0, 0.1, 1e-3, 75.0), (0.0, 0.0, 1e-4, 0.0)
    assert found == {
        "all": on,
        **{n: (*on[:k], off[k], *on[k + 1 :]) for k, n in enumerate(names[1:5])},
        "none": off,
    }
    assert names[1:5] == ["no_penalty", "no_smoothing", "no_fast_discriminator", "no_feature"]
    assert len(rest) == 1  # and nothing else differs
