"""The report that a finished run leaves: when, once, and what becomes of the run without it."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from ranks import forked

from gan.commands import afterwards, main, train
from gan.run.signals import Stop
from gan.trained import reports

REPORT = Path("run/evaluation/evaluation.json")
SIZES = {
    "wnet": ["generator.width=2", "discriminator.width=2", "recipe.feature=0"],
    "pix2pix": ["generator.width=2", "discriminator.width=2", "data.style=style05"],
    "cyclegan": ["generator.width=2", "generator.blocks=1", "discriminator.width=2"],
    "dcgan": ["generator.width=4", "discriminator.width=4", "generator.latent=8"],
}


@pytest.fixture
def finished(trained):
    """What is set in a run that is finished at its second step and is to leave a report."""
    trained("pix2pix", "data.style=style05")
    Path("run/finished.json").write_text('{"step": 2}')
    return {"run_dir": "run", "trainer": {"device": "cpu", "evaluate": True}}


@pytest.fixture
def written(monkeypatch):
    """Counts reports; an entry that is an error is raised, one that is a signal is sent."""
    counted, script, report_of = [], [], reports.report_of

    def count(*given):
        counted.append(given)
        for step in script[:1]:
            script.clear()
            if isinstance(step, signal.Signals):
                os.kill(os.getpid(), step)
            else:
                raise step
        return report_of(*given)

    monkeypatch.setattr(reports, "report_of", count)
    return counted, script


def test_a_finished_run_has_one_report_of_its_last_step(finished, written, capsys):
    counted, _ = written
    off = {**finished, "trainer": {**finished["trainer"], "evaluate": False}}
    afterwards.evaluate(off, Stop())
    assert not REPORT.exists()
    for _ in range(2):
        afterwards.evaluate(finished, Stop())
        found = json.loads(REPORT.read_text())
        assert (found["step"], len(counted)) == (2, 1)
    said = capsys.readouterr().out
    assert said.count("evaluating run, as `gan evaluate` does") == 1
    assert said.endswith(f"{found['verdict']}\nrun/evaluation/evaluation.md\n")
    (line,) = Path("run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["evaluation/l1"] == found["numbers"]["l1"]
    assert main(["evaluate", "run"]) == 0
    assert json.loads(REPORT.read_text())["numbers"] == found["numbers"]
    Path("run/finished.json").write_text('{"step": 3}')  # it has gone on since
    afterwards.evaluate(finished, Stop())
    assert len(counted) == 3


def test_settings_that_were_deleted_are_the_defaults(finished, written):
    counted, _ = written
    for trainer in ({"trainer": None}, {}):
        afterwards.evaluate({"run_dir": "run", **trainer}, Stop())
    assert not counted
    del finished["trainer"]["device"]
    afterwards.evaluate(finished, Stop())
    assert REPORT.exists()


def test_the_report_has_the_weights_that_the_trainer_has(finished, written, capsys):
    finished["trainer"] |= {"inception": "a.pth", "lpips": "b.pth"}
    afterwards.evaluate(finished, Stop())
    ((*_, options),) = written[0]
    assert options.weights == {"inception": Path("a.pth"), "lpips": Path("b.pth")}
    assert "lpips=b.pth: there is no such file" in capsys.readouterr().err


def test_a_report_that_fails_is_told_and_is_written_by_the_next_start(finished, written, capsys):
    counted, script = written
    script.append(RuntimeError("no room"))
    afterwards.evaluate(finished, Stop())
    said = capsys.readouterr().err
    assert "no report was written to run: RuntimeError: no room" in said
    assert not REPORT.exists()
    afterwards.evaluate(finished, Stop())
    assert (REPORT.exists(), len(counted)) == (True, 2)


def test_a_signal_ends_the_report_and_leaves_the_run_finished(finished, written, capsys):
    _, script = written
    script.append(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        afterwards.evaluate(finished, Stop())
    assert "run is finished; SIGTERM came before its report" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert (REPORT.exists(), Path("run/stopped.json").exists()) == (False, False)
    asked = Stop()
    asked.name = "SIGUSR1"
    with pytest.raises(KeyboardInterrupt):  # one that came with the last step
        afterwards.evaluate(finished, asked)
    assert not REPORT.exists()
    afterwards.evaluate(finished, Stop())
    assert REPORT.exists()


@pytest.mark.slow
def test_of_several_processes_the_first_writes_the_report(finished, written):
    counted, _ = written

    def rank(number):
        afterwards.evaluate(finished, Stop())
        return {"written": len(counted), "there": REPORT.exists()}

    assert forked(rank) == [{"written": 1, "there": True}, {"written": 0, "there": True}]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "processes"), [*((m, 1) for m in SIZES), ("pix2pix", 2)])
def test_every_recipe_leaves_its_report(tmp_path, monkeypatch, glyph_store, model, processes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(reports, "FEW", 64)
    common = ["data=fonts", f"data.path={glyph_store}", "image.size=16", "trainer.batch_size=8"]
    command = [f"model={model}", *common, *SIZES[model], "run_dir=run", "trainer.steps=2"]
    command += [f"processes={processes}", "trainer.judges=false"]
    assert train.main(command) == 0
    assert not REPORT.exists()
    assert train.main([*command, "trainer.evaluate=true"]) == 0  # of a run that was finished
    found = json.loads(REPORT.read_text())
    assert (found["step"], found["recipe"]) == (2, {"dcgan": "synthesis"}.get(model, model))
    assert Path("run/finished.json").exists()
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_every_job_of_a_multirun_leaves_its_report(tmp_path, monkeypatch, glyph_store):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(reports, "FEW", 64)
    command = ["--multirun", "model=dcgan", "seed=0,1", "data=fonts", f"data.path={glyph_store}"]
    command += ["image.size=16", "trainer.batch_size=8", *SIZES["dcgan"], "trainer.steps=2"]
    for more, count in (["trainer.judges=false"], 0), (["trainer.evaluate=true"], 2):
        assert train.main([*command, *more]) == 0  # the second time of jobs that were finished
        assert len([*tmp_path.rglob("evaluation.json")]) == count
    assert len([*tmp_path.rglob("finished.json")]) == 2, "nothing was trained again"
