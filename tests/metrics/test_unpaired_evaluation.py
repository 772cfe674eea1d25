"""Translations without pairs: measured on some held-out images, reported on others."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gan.build import build
from gan.commands import main
from gan.data.stream import Stream
from gan.metrics import evaluation, image_evaluation
from gan.trained import reports

NAMES = ("fd", "kd", "precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    monkeypatch.setattr(evaluation, "LEAST", image_evaluation.LEAST)


@pytest.fixture
def unpaired(composed, tmp_path):
    """Dark images, and as many bright ones unless told; half of each are held out."""

    def compose(dark, bright=None):
        rng = np.random.default_rng(0)
        for kind, base, count in (("a", 0, dark), ("b", 120, bright or dark)):
            (tmp_path / "kinds" / kind).mkdir(parents=True)
            for number in range(count):
                pixels = base + rng.integers(0, 120, (16, 16, 1), dtype=np.uint8)
                path = tmp_path / "kinds" / kind / f"{number}.png"
                Image.fromarray(pixels.repeat(3, 2)).save(path)
        sizes = ["generator.width=2", "generator.blocks=1", "discriminator.width=2"]
        data = ["data=unpaired", "data.path=kinds", "data.held_out=0.5", "trainer.batch_size=4"]
        given = ["image.size=16", "run_dir=run", "trainer.steps=2"]
        return composed("model=cyclegan", *data, *sizes, *given)

    return compose


def test_translations_without_pairs_are_measured_beside_the_other_kind(unpaired):
    trainer = build(unpaired(66))
    measure = trainer.monitor.evaluation.measure

    class Brighter(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.to_b, self.to_a = torch.nn.Identity(), torch.nn.Identity()
            self.to_b.register_forward_hook(lambda module, given, made: made + by)

    right, wrong = measure(Brighter(240 / 255)), measure(Brighter(0.0))
    assert right.keys() == {f"{name}_random" for name in NAMES}
    assert right["fd_random"] < 0.2 * wrong["fd_random"]
    assert right["coverage_random"] > wrong["coverage_random"]
    assert "16 drawn images beside 16 training images" in trainer.monitor.evaluation.report(
        Brighter(0.0)
    )
    trainer.stream.close()


def reported(trainer, monkeypatch):
    """The rows that a report of a trainer's generator translates."""
    loaded = {"raw": SimpleNamespace(recipe=type(trainer.recipe), generator=None, config={})}
    with monkeypatch.context() as patch:
        patch.setattr(reports, "image_report", lambda generators, source, *given: source.rows)
        data = trainer.stream.dataset
        return reports.report_of(loaded, data, torch.device("cpu"), reports.Options())


def test_the_best_is_not_chosen_by_the_images_that_are_reported(unpaired, monkeypatch):
    read, images = [], Stream.images

    def seen(stream, rows):
        read.append(rows)
        return images(stream, rows)

    monkeypatch.setattr(Stream, "images", seen)
    trainer = build(unpaired(66))
    held = {*trainer.stream.dataset.held[0].tolist()}

    def looked(work):
        read.clear()
        work(trainer.recipe.generator)
        return held & {*np.concatenate(read).tolist()}

    during, at_its_end = map(
        looked, (trainer.monitor.evaluation.measure, trainer.monitor.evaluation.report)
    )
    assert (len(during), len(at_its_end)) == (17, 16)
    assert not during & at_its_end
    assert {*reported(trainer, monkeypatch).tolist()} == at_its_end
    trainer.stream.close()


@pytest.mark.parametrize(("dark", "bright"), [(62, 62), (66, 30)])
def test_too_few_images_of_either_kind_are_not_measured_in_training(
    unpaired, monkeypatch, dark, bright
):
    said = []
    trainer = build(unpaired(dark, bright), said.append)
    assert trainer.monitor.evaluation is None
    counts = f"there are {dark // 2} and {bright // 2}"
    assert any("nothing is measured in training: it takes 32" in s and counts in s for s in said)
    if bright == dark:  # then all that are held out are left for the report
        assert len(reported(trainer, monkeypatch)) == dark // 2
    else:
        with pytest.raises(ValueError, match="16 of the second are needed"):
            reported(trainer, monkeypatch)
    trainer.stream.close()


@pytest.mark.slow
def test_translations_without_pairs_are_reported(unpaired):
    trainer = build(unpaired(66), lambda _: None)
    trainer.play()
    trainer.save()
    trainer.stream.close()
    assert main(["evaluate", "run"]) == 0
    found = json.loads(Path("run/evaluation/evaluation.json").read_text())
    assert found["measures"]["raw"]["fd_random"]["drawn"] == 16
    assert len(list(Path("run/evaluation").glob("*.png"))) == 2
