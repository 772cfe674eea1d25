"""`gan evaluate`: what it writes, where, and of which checkpoint."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gan import registry, runs
from gan.commands import main
from gan.data.datasets import Images
from gan.data.store import Store
from gan.data.stream import Stream
from gan.data.translation import Unpaired
from gan.data.triples import Glyphs
from gan.font.prototypes import trained_on
from gan.locks import Lock
from gan.metrics import report
from gan.recipes.cyclegan import CycleGAN
from gan.recipes.pix2pix import Pix2Pix
from gan.recipes.synthesis import Synthesis
from gan.styles import accuracy, known
from gan.trained import reports


def lines(run="run"):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_wnet_is_measured_with_every_weight_and_its_numbers_join_the_log(trained, capsys):
    trained("wnet")
    assert main(["evaluate", "run", "--adapt", "2"]) == 0
    out = Path("run/evaluation")
    found = json.loads((out / "evaluation.json").read_text())
    assert (found["step"], found["recipe"]) == (2, "wnet")
    assert found["weights"] == "uniform, beside raw"
    assert found["versions"]["torch"]
    assert {"W-Net", "W-Net, 4 references", "W-Net, raw weights"} <= found["rows"].keys()
    assert found["rows"]["W-Net"] != found["rows"]["W-Net, raw weights"]
    assert found["rows"]["W-Net"] != found["rows"]["W-Net, adapted"]
    assert found["adaptation"]["steps"] == 2
    page = (out / "evaluation.md").read_text()
    assert found["verdict"] in page
    assert found["verdict"] in capsys.readouterr().out
    for picture in out.glob("*.png"):
        assert f"({picture.name})" in page
        with Image.open(picture) as image:
            assert image.width > 100
    last = lines()[-1]
    assert last["step"] == 2
    assert last["evaluation/UFUC/l1"] == found["numbers"]["UFUC/l1"]
    assert list(Path("run/tensorboard").iterdir())


def test_references_are_learnt_beside_their_relatives(trained, monkeypatch):
    trained("wnet")
    run = runs.load("run")
    dataset = trained_on(run)
    taught = []
    monkeypatch.setattr(reports, "adapted", lambda *given: taught.append(given))
    adaptation = reports._adaptation(run, dataset, 3)
    style, shows = dataset.styles.train[2], dataset.split.train[:2]
    images = Stream(dataset, 1, 0, run.device, ()).images
    shown, references = (
        images(dataset.rows[dataset.prototype, shows]),
        images(dataset.rows[style, shows]),
    )
    adaptation.learn(shown, references, [dataset.characters[c] for c in shows])
    (writer, *pair, steps, enough, others, relatives), *_ = taught
    assert writer is run.generator
    assert all(torch.equal(*both) for both in zip(pair, (shown, references), strict=True))
    trained_glyphs = known(dataset, run.device)
    assert (steps, enough) == (3, accuracy(writer, trained_glyphs))
    assert torch.equal(others, trained_glyphs["prototype"])
    assert relatives.names[0] == dataset.style_names[style]
    assert relatives.distance < 1e-5
    assert adaptation.settings["enough"] == enough


def test_what_is_not_there_is_named(trained, capsys):
    trained("dcgan")
    for arguments, words in (
        (["run", "--adapt", "2"], "--adapt is for a W-Net on glyphs"),
        (["run", "--adapt", "-1"], "--adapt must be at least 0"),
        (["run", "--lpips", "weights.pth"], "--lpips: this recipe on this data is not measured"),
        (["nowhere"], "nowhere holds no checkpoint"),
        (["run", "--checkpoint", "7"], "checkpoint=7 is none of run"),
        (["run", "--checkpoint", "elsewhere"], "checkpoint=elsewhere is none of run"),
        (["run", "--inception", "weights.pth"], "there is no such file"),
        (["run", "--count", "0"], "--count must be at least 1"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--inception=f", "--vgg16=f", "--lpips=f", "--count=9"])
def test_options_that_a_wnet_is_not_measured_with_are_refused(trained, capsys, option):
    trained("wnet")
    assert main(["evaluate", "run", option]) == 2
    name = option.partition("=")[0]
    assert f"{name}: this recipe on this data is not measured with it (options that are read: " in (
        capsys.readouterr().err
    )


def test_numbers_are_plain_json_whatever_they_were(tmp_path):
    facts = {"a": np.float32(0.5), "b": float("nan"), "c": np.arange(2), "d": {1: (2, None)}}
    given = report.Report("title", "verdict", "text", {"x": float("inf")}, facts)
    report.write(given, {"run": "run"}, tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [found[key] for key in "abcd"] == [0.5, "nan", [0, 1], {"1": [2, None]}]
    assert found["numbers"] == {"x": "inf"}


@pytest.mark.parametrize("conditional", [pytest.param(False, marks=pytest.mark.slow), True])
def test_images_are_measured_beside_the_training_images(trained, capsys, monkeypatch, conditional):
    def refuse(*arguments):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    asked = ["recipe=conditional", "data.label=style", "discriminator.norm=none", "average=both"]
    trained("dcgan", *(asked if conditional else []))
    assert main(["evaluate", "run", "--count", "70", "--out", "out"]) == 0
    found = json.loads(Path("out/evaluation.json").read_text())
    every = ["raw", "uniform", "ema"] if conditional else ["raw", "uniform"]
    assert [*found["measures"]] == every  # the last one counts
    measure = found["measures"][every[-1]]["fd_classifier"]
    assert measure["value"] == found["numbers"]["fd_classifier"]
    assert (measure["drawn"], measure["reference_images"]) == (70, 9 * 14)
    assert measure["resize"] == "none"
    assert len(measure["extractor_hash"]) == 16
    beside = {f"{name}_weights/fd_classifier" for name in every[:-1]}
    assert {"memorised", "duplicates", "classes_hit", *beside} <= {*found["numbers"]}
    assert ("label_accuracy" in found["numbers"]) == conditional
    assert "fid" not in found["numbers"]
    assert 0 < found["floor"]["fd_classifier"] < found["numbers"]["fd_classifier"]
    said = capsys.readouterr().out
    assert "FID needs --inception" in said
    (right,) = found["classifier_right"]
    assert right < 0.95  # after the few steps that it has here
    assert f"classifier: it names {right:.1%} of held-out real images rightly." in said
    assert f"The label judge is right about {right:.1%} of held-out real images, below 95%" in said
    assert not Path("run/metrics.jsonl").exists()  # --out leaves the run as it is
    assert len(list(Path("data/statistics").iterdir())) == 1


def test_pairs_are_measured_and_a_run_in_training_is_left_alone(trained, capsys):
    trained("pix2pix", "data.style=style05")
    holder = Lock(Path("run/.lock").resolve())
    try:
        assert main(["evaluate", "run"]) == 0
    finally:
        holder.release()
    assert "not added to the run's log" in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()
    assert main(["evaluate", "run", "--checkpoint", "2"]) == 0
    found = json.loads(Path("run/evaluation-2/evaluation.json").read_text())
    assert found["numbers"].keys() >= {"l1", "psnr", "ssim", "raw_weights/l1"}
    assert "lpips" not in found["numbers"]  # no weights were given
    assert lines()[-1]["evaluation/l1"] == found["numbers"]["l1"]


def test_the_best_checkpoint_stands_beside_the_last_and_neither_report_writes_over_it(
    trained, capsys
):
    trainer = trained("pix2pix", "data.style=style05", "trainer.best=metric/l1")
    trainer.monitor.best.offer(2, {"metric/l1": 0.1})
    trainer.step = 3
    with torch.no_grad():
        for network in trainer.generators().values():
            for weight in network.parameters():
                weight.mul_(0.5)
    trainer.save()

    def measured(folder, *arguments):
        assert main(["evaluate", "run", *arguments]) == 0
        found = json.loads(Path("run", folder, "evaluation.json").read_text())
        return found["step"], found["numbers"]["l1"], found

    _, last, found = measured("evaluation")
    assert found["best"] == "the uniform weights of step-00000002"
    assert f"best: {found['best']}" in capsys.readouterr().out
    step, best, alone = measured("evaluation-best", "--checkpoint", "best")
    assert (step, alone.get("best")) == (2, None)
    assert found["numbers"]["best_weights/l1"] == best != last
    assert measured("evaluation-2", "--checkpoint", "2")[:2] == (2, best)
    step_3 = Path("run/checkpoints/step-00000003")
    assert main(["evaluate", str(step_3)]) == 0
    assert {path.name for path in Path("run").glob("evaluation*")} == {
        *("evaluation", "evaluation-best", "evaluation-2", "evaluation-3")
    }
    assert json.loads(Path("run/evaluation/evaluation.json").read_text()) == found
    Path("run/checkpoints/step-00000002/networks.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="the best checkpoint is left out: "):
        assert [*runs.every("run")] == ["raw", "uniform"]


def test_a_report_reads_through_one_stream(monkeypatch, glyph_store):
    opened, store = [], Store(glyph_store)

    class Two(Unpaired):
        def __init__(self):
            self.store, self.flip, self.resident = store, False, "off"
            self.train = self.held = (np.arange(16), np.arange(16))

    def stream(*given):
        opened.append(Stream(*given))
        return opened[-1]

    monkeypatch.setattr(reports, "Stream", stream)
    for name in ("image_report", "translation_report", "pair_report"):
        monkeypatch.setattr(reports, name, lambda *given: given)
    glyphs = Glyphs(store, style="style05")
    for recipe, data in ((CycleGAN, Two()), (CycleGAN, glyphs), (Pix2Pix, glyphs)):
        opened.clear()
        loaded = {"raw": SimpleNamespace(recipe=recipe, generator=nn.Identity(), config={})}
        reports.report_of(loaded, data, torch.device("cpu"), reports.Options())
        assert [one.keys for one in opened] == [recipe.reads]


@pytest.mark.parametrize("flip", [False, True])
def test_copies_are_looked_for_as_training_mirrors_images(monkeypatch, glyph_store, flip):
    monkeypatch.setattr(reports, "image_report", lambda *given: given[-1])
    store, cpu = Store(glyph_store), torch.device("cpu")
    noise = SimpleNamespace(recipe=Synthesis, classes=0, latent=2, generator=None)
    asked = reports.report_of({"raw": noise}, Images(store, flip=flip), cpu, reports.Options())
    assert asked.mirrored is flip
    two = Unpaired.__new__(Unpaired)
    two.store, two.flip, two.resident = store, flip, "off"
    two.train = two.held = (np.arange(16), np.arange(16))
    cycle = SimpleNamespace(recipe=CycleGAN, generator=nn.Identity(), config={})
    assert reports.report_of({"raw": cycle}, two, cpu, reports.Options()).mirrored is flip


def test_other_images_than_those_trained_on_are_refused_and_none_are_fetched(trained, monkeypatch):
    trained("pix2pix", "data.style=style05")
    loaded = runs.load("run")
    data = runs.dataset(loaded)
    assert len(data.split.test) == 4
    asked = []

    class Fetched:
        def build(self) -> Glyphs: ...

        def create(self, values, where):
            asked.append(values)
            return data

    for opened in (runs.dataset, trained_on):
        with pytest.raises(ValueError, match="holds other images than"):
            opened(replace(loaded, content="other"))
        with monkeypatch.context() as patch:
            patch.setattr(registry, "entry", lambda *_: Fetched())
            stored = {**loaded.config, "data": {"name": "fetched", "download": True}}
            assert opened(replace(loaded, config=stored)) is data
    assert asked == [{"download": False}] * 2
    folder = {**loaded.config, "data": {"name": "folder", "path": "absent"}}
    with pytest.raises(ValueError, match="data=folder, which has no glyphs"):
        trained_on(replace(loaded, config=folder))
