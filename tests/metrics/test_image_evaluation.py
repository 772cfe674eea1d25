"""What training measures of images: by whose features, under which names, and at no cost to it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan.build import build
from gan.commands import main
from gan.metrics import evaluation, image_evaluation

NAMES = ("fd", "kd", "precision", "recall", "density", "coverage")


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    monkeypatch.setattr(evaluation, "LEAST", image_evaluation.LEAST)


def tags():
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {tag for line in lines for tag in line if tag.startswith("metric/")}


def test_images_with_labels_are_measured_through_a_classifier_of_them(tiny):
    assert build(tiny("dcgan", "average=ema", "trainer.steps=2")).train()
    named = {f"{name}_classifier" for name in (*NAMES, "is")} | {"classes_hit"}
    assert tags() == {f"metric/{raw}{name}" for raw in ("", "raw_") for name in named}
    assert "features of a classifier of the training images" in Path("run/report.txt").read_text()


@pytest.fixture
def unlabelled(composed, tmp_path):
    def compose(count, *overrides):
        rng = np.random.default_rng(0)
        (tmp_path / "photos").mkdir()
        for number in range(count):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        sizes = ["generator.width=2", "discriminator.width=2", "image.size=16"]
        data = ["data=folder", "data.path=photos", "trainer.batch_size=4", "run_dir=run"]
        return composed("model=dcgan", *data, *sizes, "trainer.steps=2", *overrides)

    return compose


def test_images_without_labels_are_measured_through_an_untrained_network(unlabelled):
    trainer = build(unlabelled(image_evaluation.LEAST))
    measure = trainer.monitor.evaluation
    assert measure.measure(trainer.recipe.generator).keys() == {f"{name}_random" for name in NAMES}
    report = measure.report(trainer.recipe.generator)
    assert "16 training images" in report
    assert "untrained network, which tell better from worse and no more" in report
    assert not Path("data/classifiers").exists()
    trainer.stream.close()


@pytest.mark.slow
def test_too_few_images_are_not_measured(unlabelled):
    trainer = build(unlabelled(image_evaluation.LEAST - 1))
    assert trainer.monitor.evaluation is None
    trainer.stream.close()


def test_measuring_changes_nothing_and_gives_the_same_again(tiny):
    trainer = build(tiny("dcgan", "average=none"))
    measure, generator = trainer.monitor.evaluation.measure, trainer.recipe.generator
    before = {name: value.clone() for name, value in trainer.recipe.state_dict().items()}
    state = torch.random.get_rng_state()
    generator.eval()
    first, again = measure(generator), measure(generator)
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), state)
    after = trainer.recipe.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with torch.no_grad():
        next(generator.parameters()).mul_(3)
    assert measure(generator) != first
    with torch.no_grad():
        next(generator.parameters()).fill_(torch.nan)
    assert measure(generator).keys() == first.keys()
    assert np.isnan(measure(generator)["coverage_classifier"])
    trainer.stream.close()


@pytest.fixture
def unpaired(composed, tmp_path):
    """Dark images, and the same ones bright."""
    rng = np.random.default_rng(0)
    for kind, base in (("a", 0), ("b", 120)):
        (tmp_path / "kinds" / kind).mkdir(parents=True)
        for number in range(34):
            pixels = base + rng.integers(0, 120, (16, 16, 1), dtype=np.uint8)
            Image.fromarray(pixels.repeat(3, 2)).save(tmp_path / "kinds" / kind / f"{number}.png")
    sizes = ["generator.width=2", "generator.blocks=1", "discriminator.width=2", "image.size=16"]
    data = ["data=unpaired", "data.path=kinds", "data.held_out=0.5", "trainer.batch_size=4"]
    return composed("model=cyclegan", *data, *sizes, "run_dir=run", "trainer.steps=2")


def test_translations_without_pairs_are_measured_beside_the_other_kind(unpaired):
    trainer = build(unpaired)
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
    assert "17 drawn images beside 17 training images" in trainer.monitor.evaluation.report(
        Brighter(0.0)
    )
    trainer.stream.close()


@pytest.mark.slow
def test_translations_without_pairs_are_reported(unpaired):
    trainer = build(unpaired, lambda _: None)
    trainer.play()
    trainer.save()
    trainer.stream.close()
    assert main(["evaluate", "run"]) == 0
    found = json.loads(Path("run/evaluation/evaluation.json").read_text())
    assert found["measures"]["raw"]["fd_random"]["drawn"] == 17
    assert len(list(Path("run/evaluation").glob("*.png"))) == 2
