"""What is measured of translated images: by the truth where there are pairs, by judges else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gan.build import build
from gan.config.settings import Settings
from gan.data.store import Store
from gan.data.stream import Stream
from gan.data.triples import Glyphs
from gan.metrics import glyph_judges, translation
from gan.metrics.evaluation import evaluation_for
from gan.metrics.images import l1
from gan.metrics.judges import Judge
from gan.metrics.pairs import PairEvaluation
from gan.metrics.translation import GlyphTranslation

CPU = torch.device("cpu")
STYLE = "style05"


class Nearest(nn.Module):
    """An oracle: reads an image as the glyph of the store that it is nearest to."""

    def __init__(self, store, images):
        super().__init__()
        self.known = images(np.arange(store.count)).flatten(1)
        self.fields = {name: torch.tensor(store.fields[name]) for name in store.names}

    def forward(self, image):
        nearest = torch.cdist(image.flatten(1), self.known).argmin(1)
        return {name: nn.functional.one_hot(field[nearest]) for name, field in self.fields.items()}


@pytest.fixture
def oracle(monkeypatch):
    def judge_of(store, images, rows, labels, device, say):
        assert len(rows) == store.count
        assert labels.keys() == {"style", "character"}
        return Judge(Nearest(store, images), {"character": 0.75, "style": 0.5})

    monkeypatch.setattr(glyph_judges, "judge_of", judge_of)


class Draws:
    """A recipe without networks: what its generator makes of images a."""

    reads = ("real_a", "real_b")

    def samples(self, generator, batch):
        return {"generated": generator(batch["real_a"])}


@pytest.fixture
def evaluation(glyph_store, oracle):
    dataset = Glyphs(Store(glyph_store), style=STYLE)
    stream = Stream(dataset, 4, 0, CPU, Draws.reads)
    return evaluation_for(Draws(), dataset, stream, CPU, print, Settings(), {})


def test_glyphs_without_pairs_are_judged(evaluation):
    assert isinstance(evaluation, GlyphTranslation)


def test_the_input_is_the_right_character_in_the_wrong_style(evaluation):
    found = evaluation.measure(nn.Identity())
    assert (found["content"], found["style"]) == (1.0, 0.0)
    plan = evaluation.dataset.held_out("validation")
    given, truth = (evaluation._images(plan.images[key]) for key in ("real_a", "real_b"))
    assert found["l1"] == pytest.approx(l1((1 + given) / 2, (1 + truth) / 2).mean().item())
    assert found["l1"] > 0.01


def test_without_judges_l1_is_all(evaluation):
    dataset, stream = evaluation.dataset, Stream(evaluation.dataset, 4, 0, CPU, Draws.reads)
    settings = Settings(judges=False)
    unjudged = evaluation_for(Draws(), dataset, stream, CPU, pytest.fail, settings, {})
    found = evaluation.measure(nn.Identity())
    assert unjudged.measure(nn.Identity()) == {"l1": found["l1"]}
    assert [*unjudged.better] == ["l1"]
    assert "content" not in unjudged.report(nn.Identity())


def test_a_perfect_translator_and_one_that_always_draws_the_same(evaluation):
    dataset, images = evaluation.dataset, evaluation._images
    style, prototype = dataset.style_names.index(STYLE), dataset.prototype
    known = images(dataset.rows[prototype]).flatten(1)

    def perfect(given):
        character = torch.cdist(given.flatten(1), known).argmin(1)
        return images(dataset.rows[style][character.numpy()])

    assert evaluation.measure(perfect) == {"content": 1.0, "style": 1.0, "l1": 0.0}
    (first,) = images(dataset.rows[style, dataset.split.test[:1]])
    found = evaluation.scores("test", lambda given: first.expand_as(given))
    assert found["style"] == 1.0
    assert found["content"] == pytest.approx(1 / len(dataset.split.test))


def test_the_report_sets_translations_beside_controls_and_ceilings(evaluation):
    report = evaluation.report(lambda given: -given)
    rows = {line[:26].strip(): line[26:].split() for line in report.splitlines()[:4]}
    assert list(rows) == ["4 held-out characters", "input as it is", "translated", "truth"]
    assert rows["4 held-out characters"] == ["content", "style", "l1"]
    assert rows["input as it is"][:2] == ["1.000", "0.000"]
    assert rows["truth"] == ["1.000", "1.000", "0.000"]
    assert "content 75.0%, style 50.0%" in report
    assert "The content judge is right about 75.0% of held-out real glyphs, below 95%" in report
    evaluation.judge = Judge(evaluation.judge.network, {"character": 0.96, "style": 0.5})
    report = evaluation.report(lambda given: -given)
    assert "The style judge is right about 50.0%" in report
    assert "The content judge" not in report


def test_cyclegan_shows_both_ways_of_every_generator_and_ends_with_the_table(tiny, oracle):
    overrides = ["data=fonts", f"data.style={STYLE}", "average=ema", "trainer.steps=2"]
    trainer = build(tiny("cyclegan", *overrides))
    columns = []
    trainer.monitor._show = lambda step, name, shown: columns.append([*shown])
    trainer.train()
    raw = ["real_a", "generated", "cycled_a", "real_b", "generated_a", "cycled_b"]
    averaged = [f"{key} (ema)" for key in raw if not key.startswith("real")]
    assert columns[0] == raw + averaged
    assert "translated" in Path("run/report.txt").read_text()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    tags = {tag for line in lines for tag in line}
    assert {"metric/content", "metric/style", "metric/l1", "metric/raw_content"} <= tags


@pytest.fixture
def pairs(tmp_path):
    """Thirty pairs, each the negative of the other."""
    rng = np.random.default_rng(0)
    for n in range(30):
        image = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([image, 255 - image], 1)).save(tmp_path / f"pairs/{n}.png")
    return tmp_path / "pairs"


def test_pix2pix_learns_pairs_of_a_folder_and_is_measured_on_held_out_ones(tiny, pairs):
    data = ["data=pairs", f"data.path={pairs}", "image.channels=1", "data.held_out=0.2"]
    trainer = build(tiny("pix2pix", *data, "trainer.steps=2", "trainer.log_every=1"))
    evaluation = trainer.monitor.evaluation
    assert isinstance(evaluation, PairEvaluation)
    assert {part: len(batch["target"]) for part, batch in evaluation.parts.items()} == {
        "validation": 3,
        "test": 3,
    }
    for batch in evaluation.parts.values():
        torch.testing.assert_close(batch["target"], -batch["input"])
    right = evaluation.distances("test", lambda batch: -batch["input"])
    assert right["l1"] == pytest.approx(0, abs=1e-6)
    assert right["ssim"] == pytest.approx(1, abs=1e-4)
    assert trainer.train()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    tags = {tag for line in lines for tag in line}
    assert {"metric/l1", "metric/psnr", "metric/ssim", "generator/l1"} <= tags
    assert "copy of the input" in Path("run/report.txt").read_text()
    shown = {path.name for path in Path("run/samples").iterdir()}
    assert shown == {
        f"{part}-{step:08d}.png" for part in ("training", "held-out") for step in (0, 2)
    }


def test_a_report_on_a_font_translated_without_pairs(glyph_store, oracle):
    dataset = Glyphs(Store(glyph_store), style=STYLE)
    stream = Stream(dataset, 4, 0, CPU, Draws.reads)
    generators = {"raw": nn.Identity(), "ema": nn.Identity()}
    report = translation.translation_report(
        generators, lambda g, batch: g(batch["real_a"]), dataset, stream, CPU
    )
    assert report.numbers["content"] == report.numbers["raw_weights/content"] == 1
    assert report.numbers["style"] == 0
    assert report.numbers["truth/style"] == 1
    assert report.numbers["l1"] == report.numbers["input_as_it_is/l1"] > 0
    assert "of real held-out glyphs: 75.0%" in report.verdict
