"""The best checkpoint: kept, resumed, reported and loaded; whether more or less is better."""

import json
from pathlib import Path

import pytest
import torch
from small import trainer

import gan
from gan import checkpoint, distributed
from gan.build import build
from gan.commands import main
from gan.registry import ConfigError
from gan.run.best import Best
from gan.run.monitor import Monitor
from gan.run.saves import StorageError

pytestmark = pytest.mark.usefixtures("quick_disk")

SCORES = {1: 0.9, 2: 0.5, 3: 0.2, 4: 0.6, 5: 0.7, 6: 0.4, 7: 0.3, 8: 0.8}


class Scripted:
    """Measures that are a function of the step alone."""

    better = {"l1": "less", "ssim": "more"}

    def __init__(self, scores=SCORES):
        self.scores, self.run, self.reported = scores, None, []

    def measure(self, generator):
        return {"l1": self.scores[self.run.step], "ssim": -self.scores[self.run.step]}

    families = {"one": 0, "two": 1}

    def by_font(self, generator):
        return {"UFUC": {font: {"l1": float(len(self.reported))} for font in self.families}}

    def report(self, generator):
        self.reported.append([p.clone() for p in generator.parameters()])
        return f"report {len(self.reported)}"


def scripted(folder, best="metric/l1", scores=SCORES, **settings):
    evaluation = Scripted(scores)
    common = {"steps": 8, "measure_every": 1, "save_every": 2, "keep": 2}
    monitor = Monitor(folder, 8, evaluation=evaluation, best=best)
    run = trainer(folder, monitor=monitor, **{**common, **settings})
    evaluation.run = run
    return run


def kept(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("best", ["metric/l1", "metric/ssim"])
def test_rotation_keeps_the_best_which_falls_between_two_saves(tmp_path, best):
    scripted(tmp_path, best).train()
    assert kept(tmp_path) == [3, 6, 8]
    newest = checkpoint.load(tmp_path / "checkpoints/step-00000008")
    value = SCORES[3] if best == "metric/l1" else -SCORES[3]
    assert newest.state["best"] == {"metric": best, "step": 3, "value": value, "measured": 1024}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    said = {line["step"]: line["best/step"] for line in lines if "best/step" in line}
    assert said == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3, 8: 3}


def test_without_a_best_nothing_but_the_newest_is_kept(tmp_path):
    scripted(tmp_path, None).train()
    assert kept(tmp_path) == [6, 8]
    assert "best/" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("killed", [2, 3, 4, 6])
def test_a_resumed_run_knows_its_best(tmp_path, killed):
    first = scripted(tmp_path)
    save = first.save
    first.save = lambda last=False: save(last) and (first.step < killed or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first.train()
    second = scripted(tmp_path)
    second.resume(checkpoint.newest(tmp_path / "checkpoints", notice=pytest.fail))
    assert (second.step, second.monitor.best.step) == (killed, min(killed, 3))
    second.train()
    assert kept(tmp_path) == [3, 6, 8]
    assert (second.monitor.best.step, second.monitor.best.value) == (3, 0.2)


def test_another_measure_and_another_folder_start_anew(tmp_path):
    scripted(tmp_path / "one", steps=4).train()
    newest = tmp_path / "one/checkpoints/step-00000004"
    other = scripted(tmp_path / "one", "metric/ssim")
    other.resume(newest)
    assert other.monitor.best.step is None
    elsewhere = scripted(tmp_path / "two")
    elsewhere.resume(newest)
    assert elsewhere.monitor.best.step is None  # its checkpoint is not there to be kept
    elsewhere.train()
    assert kept(tmp_path / "two") == [7, 8]


def test_what_was_measured_on_another_number_of_images_is_no_best(tmp_path):
    """Distances shrink with the number: one of few images would never be beaten, or at once."""
    scripted(tmp_path, steps=4, measured=64).train()
    newest = tmp_path / "checkpoints/step-00000004"
    same = scripted(tmp_path, measured=64)
    same.resume(newest)
    assert same.monitor.best.step == 3
    other = scripted(tmp_path, measured=128)
    with pytest.warns(
        UserWarning, match=r"0\.2 at step 3, .*measured=64, which is now 128"
    ) as told:
        other.resume(newest)
    assert len(told) == 1
    assert other.monitor.best.step is None
    other.train()
    assert (other.monitor.best.step, other.monitor.best.value) == (7, SCORES[7])


def test_a_best_from_before_the_number_of_images_was_kept_stays(tmp_path):
    best = Best("metric/fid", {"fid": "less"})
    (tmp_path / "step-00000003").mkdir()
    kept_before = {"metric": "metric/fid", "step": 3, "value": 5.0}
    best.restore(kept_before, tmp_path, 128, pytest.fail)
    assert best.state(128) == {**kept_before, "measured": 128}


def test_both_the_last_and_the_best_are_reported_with_their_own_weights(tmp_path):
    run = scripted(tmp_path)
    weights = {}
    play = run.play
    run.play = lambda: (
        play(),
        weights.update(
            {run.step: [p.detach().clone() for p in run.generators()["ema"].parameters()]}
        ),
    )
    run.train()
    reported = run.monitor.evaluation.reported
    for step, found in zip((8, 3), reported, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights[step], found, strict=True))
    text = (tmp_path / "report.txt").read_text()
    assert text == "Last: step 8\nreport 1\n\nThe best by metric/l1: 0.2 at step 3\nreport 2\n"
    scores = json.loads((tmp_path / "finished.json").read_text())["scores"]
    assert {cell: fonts["two"]["l1"] for cell, fonts in scores.items()} == {
        "UFUC": 0.0,
        "best/UFUC": 1.0,
    }


def test_the_last_is_reported_once_if_it_is_the_best(tmp_path):
    scripted(tmp_path, scores={step: 1 / step for step in SCORES}).train()
    text = (tmp_path / "report.txt").read_text()
    assert text == "report 1\n\nThe last is the best by metric/l1: 0.125 at step 8.\n"
    record = json.loads((tmp_path / "finished.json").read_text())
    assert record["scores"]["best/UFUC"] == record["scores"]["UFUC"]
    assert (record["step"], record["families"]) == (8, {"one": 0, "two": 1})


def test_a_damaged_best_is_told_and_the_last_reported(tmp_path):
    run = scripted(tmp_path)
    play = run.play

    def damaging():
        play()
        if run.step == 8:
            (tmp_path / "checkpoints/step-00000003/networks.safetensors").write_bytes(b"")

    run.play = damaging
    run.train()
    text = (tmp_path / "report.txt").read_text()
    assert text.startswith("report 1\n\nThe best by metric/l1: 0.2 at step 3 is not reported: ")
    assert "networks.safetensors has 0 bytes" in text


def test_a_best_that_could_not_be_saved_is_none(tmp_path, monkeypatch):
    run = scripted(tmp_path)
    save = checkpoint.save

    def failing(folder, step, **given):
        if step == 3:
            raise OSError("full")
        return save(folder, step, **given)

    monkeypatch.setattr(checkpoint, "save", failing)
    run.train()
    assert run.monitor.best.step == 7  # step 6 was better than 2, then 7 than 6
    assert kept(tmp_path) == [7, 8]
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(StorageError):
        scripted(tmp_path / "none").train()


def test_nan_is_never_the_best():
    best = Best("metric/fid", {"fid": "less"})
    nan = float("nan")
    assert best.offer(1, {"metric/fid": nan}) == {}
    assert best.offer(2, {"metric/fid": 5.0}) == {"best/fid": 5.0, "best/step": 2}
    assert best.offer(3, {"metric/fid": nan})["best/step"] == 2
    assert best.offer(4, {"metric/fid": 5.0})["best/step"] == 2  # an equal one comes too late


def test_the_first_process_decides(monkeypatch):
    best = Best("metric/fid", {"fid": "less"})
    best.offer(1, {"metric/fid": 5.0})
    assert best.at(1)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert not best.at(1)


@pytest.mark.parametrize(
    ("model", "best", "words"),
    [
        ("wnet", "metric/validation_l2", "did you mean 'metric/validation_l1'"),
        pytest.param("dcgan", "metric/fid", "is not measured", marks=pytest.mark.slow),
    ],
)
def test_an_unknown_measure_is_refused_at_the_start(tiny, model, best, words):
    with pytest.raises(ConfigError, match=f"trainer.best={best} is no measure") as error:
        build(tiny(model, f"trainer.best={best}"))
    assert words in str(error.value)
    assert not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("judges", ["true", "false"])
@pytest.mark.parametrize("model", ["wnet", "pix2pix", "cyclegan", "cgan"])
def test_every_evaluation_says_what_is_better(tiny, model, judges):
    """What is measured is what is declared."""
    sizes = ["generator.width=4", "discriminator.width=4", "data.label=style"]
    overrides = ["model=cgan", *sizes] if model == "cgan" else []
    overrides = [*overrides, f"trainer.judges={judges}"]
    run = build(tiny("dcgan" if model == "cgan" else model, *overrides))
    run.stream.close()
    evaluation = run.monitor.evaluation
    if (model, judges) == ("cgan", "false"):
        assert evaluation is None  # a tiny set is measured by labels alone
        return
    evaluation.judge = Always() if hasattr(type(evaluation), "judge") else None
    run.recipe.eval()
    with torch.no_grad():
        assert evaluation.measure(run.recipe.generator).keys() == evaluation.better.keys()


class Always:
    """A judge to whom everything is right."""

    def right(self, images, labels):
        return {field: torch.ones(len(images), dtype=torch.bool) for field in labels}


@pytest.mark.slow
def test_the_best_is_loaded_and_sampled_when_asked(tiny, capsys):
    overrides = ["trainer.best=metric/validation_l1", "trainer.measure_every=1", "trainer.keep=2"]
    run = build(tiny("wnet", *overrides, "trainer.save_every=2"))
    scores = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3}
    run.monitor.evaluation.measure = lambda generator: {"validation_l1": scores[run.step]}
    run.monitor.evaluation.report = lambda generator: "report"
    run.train()
    assert [gan.load("run", checkpoint=which).step for which in ("last", "best", 2, 4)] == [
        4,
        2,
        2,
        4,
    ]
    with pytest.raises(ValueError, match=r"checkpoint=3 is none of run: .* step-00000002, step-0"):
        gan.load("run", checkpoint=3)
    with pytest.raises(ValueError, match="is no run"):
        gan.load("run/checkpoints/step-00000004", checkpoint="best")
    assert main(["sample", "run", "--only", "grid", "--checkpoint", "best"]) == 0
    assert main(["sample", "run", "--only", "grid", "--checkpoint", "bets"]) == 2
    assert "choose last, best, or the step" in capsys.readouterr().err


def test_a_run_without_a_best_says_how_to_keep_one(trained):
    trained("dcgan")
    with pytest.raises(ValueError, match="train with trainer.best=MEASURE"):
        gan.load("run", checkpoint="best")
