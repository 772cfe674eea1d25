"""What training measures of images: by whose features, under which names, and at no cost to it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import random_inception
import torch
from PIL import Image
from tiny_glyphs import SIZE

from gan.build import build
from gan.commands import main
from gan.commands.train import job_folder
from gan.metrics import evaluation, image_evaluation
from gan.metrics.image_evaluation import ImageEvaluation, Real
from gan.metrics.judges import Judge
from gan.metrics.populations import Translations
from gan.networks import reference
from gan.networks.reference import OfReference
from gan.noise import FromNoise
from gan.run import rundir

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
        data += ["trainer.measured=32"]
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


def test_images_of_one_class_are_measured_with_that_label(unlabelled, capsys):
    values = unlabelled(image_evaluation.LEAST, "model=cgan")
    Path("photos/only").mkdir()
    for file in Path("photos").glob("*.png"):
        file.rename(f"photos/only/{file.name}")
    trainer = build(values)
    found = trainer.monitor.evaluation.measure(trainer.recipe.generator)
    assert found.keys() == {f"{name}_random" for name in NAMES}
    trainer.save()
    trainer.stream.close()
    assert main(["evaluate", "run", "--count", "16"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--count", "15"]) == 2
    assert "--count=15 is too few: distances need 16 images or more" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.arange(2048) % 2, np.arange(2048) // 1024])
def test_training_images_that_come_by_turns_or_by_kind_are_looked_at_alike(kind):
    rows = np.arange(2048)
    seen = ImageEvaluation(None, None, Real(None, rows, None), 1024).images.rows
    assert len(np.unique(seen)) == 1024
    for chosen in (seen, *image_evaluation.halves(rows)):
        assert kind[chosen].mean() == pytest.approx(0.5, abs=0.05)
    assert sorted(np.concatenate(image_evaluation.halves(rows))) == rows.tolist()


class Painter(FromNoise):
    """Paints every class in its own grey."""

    generator = torch.nn.Module()
    generator.latent = 2

    def draw(self, generator, noise, label):
        return label.float()[:, None, None, None].expand(-1, 1, 4, 4)


class Greys(torch.nn.Module):
    """Reads them, but for class 1, which it has never met."""

    def forward(self, image):
        named = torch.nn.functional.one_hot(image[:, 0, 0, 0].long(), 4).float()
        return {"label": named * torch.tensor([1.0, -1.0, 1.0, 1.0])}


def test_labels_are_judged_of_classes_that_occur():
    def measured(labels):
        return evaluation.LabelEvaluation(
            Painter(), lambda: Judge(Greys(), {"label": 1.0}), labels, torch.device("cpu"), 10
        )

    some = measured(np.array([3, 0, 2, 2, 0]))
    assert some.measure(None) == {"label_accuracy": 1.0, "worst_class": 1.0}
    assert some.labels.tolist() == [0, 2, 3] * 4
    assert "12 samples, as many of each of 3 classes: 100.0% have" in some.report(None)
    every = measured(np.arange(4))
    assert every.measure(None) == {"label_accuracy": 0.75, "worst_class": 0.0}
    assert every.labels.tolist() == [0, 1, 2, 3] * 3


def test_a_class_whose_images_were_all_refused_is_not_asked_for(unlabelled):
    values = unlabelled(18, "model=cgan", "data.on_error=skip")
    for name in ("a", "b", "c"):
        Path("photos", name).mkdir()
    for number, file in enumerate(sorted(Path("photos").glob("*.png"))):
        file.rename(f"photos/{'ac'[number % 2]}/{file.name}")
    Path("photos/b/broken.png").write_bytes(b"none")
    trainer = build(values)
    labels, *_ = trainer.monitor.evaluation.parts
    assert trainer.stream.dataset.facts["classes"] == 3
    assert {*labels.labels.tolist()} == {0, 2}
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


class Means(OfReference):
    """Stands for a reference network: means of rows and columns, and two logits."""

    def __init__(self, name, weights, device):
        self.name, self.key, self.resize = name, "0123456789abcdef0123", "none"
        self.weights, self.looked = weights, 0

    def network(self, pixels):
        self.looked += len(pixels)
        images = pixels.float() / 255
        features = torch.cat([images.mean((1, 2)), images.mean((1, 3))], 1)
        return features, features[:, :2]


class Furthest:
    """Stands for LPIPS: the largest difference of a pixel."""

    name, key = "furthest", "0123456789abcdef0123"

    def __init__(self, weights, device):
        self.sizes = []

    def require_size(self, image):
        self.sizes.append(image.shape[-1])

    def __call__(self, image, truth):
        return (image - truth).abs().flatten(1).max(1).values


@pytest.fixture
def stands(monkeypatch):
    monkeypatch.setattr(reference, "OfReference", Means)
    monkeypatch.setattr(reference, "Lpips", Furthest)


def test_weights_of_reference_networks_give_the_reserved_names_while_training(unlabelled, stands):
    weights = ["trainer.inception=a.pth", "trainer.vgg16=b.pth", "trainer.best=metric/fid"]
    trainer = build(unlabelled(20, "trainer.measured=16", *weights))
    assert trainer.train()
    among = ("precision", "recall", "density", "coverage")
    inception = {"fid", "kid", "kid_deviation", "is", "is_deviation"}
    named = {*inception, *among, *(f"{name}_inception" for name in among)}
    assert {name.removeprefix("metric/") for name in tags() if "raw" not in name} == {
        *(f"{name}_random" for name in NAMES),
        *named,
    }
    whole, *others = trainer.monitor.evaluation.parts
    assert [part.extractor.weights for part in others] == [Path("a.pth"), Path("b.pth")]
    assert [len(part.images.rows) for part in (whole, *others)] == [16, 20, 20]
    said = Path("run/report.txt").read_text()
    assert "beside 20 training images, on features of inception (weights 0123456789abcdef," in said
    assert len([*Path("data/statistics").iterdir()]) == 2
    before = others[0].extractor.looked
    del others[0].real  # as in a later run: read, not seen again
    assert others[0].real.moments.images == 20
    assert others[0].extractor.looked == before
    assert "is the best by metric/fid" in said


def test_it_is_said_once_of_what_reference_numbers_are(unlabelled, stands):
    said = []
    given = ["trainer.inception=a.pth", "trainer.vgg16=b.pth", "trainer.measured=16"]
    trainer = build(unlabelled(20, *given), said.append)
    assert not [line for line in said if "metric/" in line]
    for _ in range(2):
        trainer.monitor.evaluation.measure(trainer.recipe.generator.eval())
    of = "are of 16 drawn images beside all 20 training images, unflipped, on features of"
    weights = "(weights 0123456789abcdef)"
    assert [line for line in said if "metric/" in line] == [
        f"metric/fid and its kin {of} inception {weights}: of no more images than features, which "
        "are 32, a covariance is singular and FID compares only with FID of as many",
        f"metric/precision and its kin {of} vgg16 {weights}",
    ]
    trainer.stream.close()


@pytest.mark.parametrize(("count", "singular"), [(32, True), (33, False)])
def test_fid_of_more_images_than_features_is_said_to_be_no_worse(count, singular, tmp_path):
    random = np.random.default_rng(0)
    held = torch.from_numpy(random.uniform(-1, 1, (40, 3, 16, 16))).float()
    rows, said = np.arange(40), []
    source = Translations(lambda _, image: image, lambda some: held[some], rows)
    store = SimpleNamespace(content_hash="abc", shape=(16, 16, 3))
    real = image_evaluation.Real(store, rows, lambda some: held[some])
    network = Means("inception", None, None)
    image_evaluation.ReferenceEvaluation(source, network, real, count, said.append).measure(None)
    assert [("singular" in line) for line in said] == [singular]


def test_a_diverged_generator_has_no_fid(unlabelled, stands):
    trainer = build(unlabelled(20, "trainer.inception=a.pth"))
    measure, generator = trainer.monitor.evaluation.measure, trainer.recipe.generator
    expected = {*measure(generator.eval())} - {"kid_deviation", "is_deviation"}
    with torch.no_grad():
        next(generator.parameters()).fill_(torch.nan)
    found = measure(generator)
    assert found.keys() == expected
    assert np.isnan([*found.values()]).all()
    trainer.stream.close()


def test_statistics_that_cannot_be_kept_are_done_without(unlabelled, stands):
    Path("data").mkdir()
    Path("data/statistics").touch()
    trainer = build(unlabelled(20, "trainer.inception=a.pth"))
    with pytest.warns(UserWarning, match="data/statistics.* cannot be written"):
        found = trainer.monitor.evaluation.measure(trainer.recipe.generator.eval())
    assert found["fid"] > 0
    trainer.stream.close()


def test_as_many_images_are_compared_one_by_one_as_are_drawn(unlabelled, stands):
    trainer = build(unlabelled(20, "trainer.inception=a.pth", "trainer.measured=16"))
    whole = trainer.monitor.evaluation.parts[-1]
    assert len(whole.real.features) == 16
    assert whole.real.moments.images == 20
    trainer.stream.close()


def test_a_run_that_began_without_these_settings_goes_on_with_them(composed):
    now = composed("model=dcgan", "trainer.inception=a.pth", "trainer.measured=16")
    before = composed("model=dcgan")
    for name in ("inception", "vgg16", "lpips", "measured"):
        del before["trainer"][name]
    assert rundir.run_id(before) == rundir.run_id(now)
    assert rundir.differences(before, now) == []
    jobs = [job_folder(f"seed=1,trainer.{name}=a.pth") for name in ("inception", "vgg16", "lpips")]
    assert jobs == 3 * ["seed=1"]


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("wnet", "trainer.inception=a.pth", "not measured through that network .none is"),
        ("pix2pix", "trainer.vgg16=a.pth", "trainer.lpips would be"),
        ("dcgan", "trainer.lpips=a.pth", "trainer.inception and trainer.vgg16 would be"),
        ("few", "trainer.inception=a.pth", "not measured through that network"),
        ("dcgan", "trainer.measured=15", "trainer.measured must be at least 16"),
    ],
)
def test_weights_that_serve_nothing_are_refused_at_the_start(
    tiny, stands, model, weights, words, monkeypatch
):
    if model == "few":
        monkeypatch.setattr(evaluation, "LEAST", 10**9)
    with pytest.raises(ValueError, match=words):
        build(tiny("dcgan" if model == "few" else model, weights))
    assert not Path("run").exists()


def test_pairs_are_measured_by_lpips_where_its_weights_are_given(tiny, stands):
    given = ["trainer.lpips=a.pth", "trainer.best=metric/lpips", "average=none"]
    trainer = build(tiny("pix2pix", *given, "trainer.steps=1"))
    evaluation, generator = trainer.monitor.evaluation, trainer.recipe.generator.eval()
    assert evaluation.better["lpips"] == "less"
    assert evaluation.measures["lpips"].sizes == [SIZE]  # asked at the start
    with torch.no_grad():
        torch.manual_seed(0)
        measured = evaluation.measure(generator)
        torch.manual_seed(0)
        found = evaluation.each("validation", lambda batch: evaluation.translate(generator, batch))[
            "lpips"
        ]
        said = evaluation.report(generator)
    assert "LPIPS" in said
    assert "lpips: furthest, weights 0123456789abcdef" in said
    assert measured["lpips"] == pytest.approx(found.mean())
    assert measured["lpips"] > measured["l1"] > 0
    trainer.stream.close()


def test_weights_that_are_not_there_are_missed_before_a_store_is_built(unlabelled):
    with pytest.raises(ValueError, match="inception=a.pth: there is no such file"):
        build(unlabelled(16, "trainer.inception=a.pth"))
    assert not Path("data").exists()
    assert not Path("run").exists()


@pytest.mark.slow
def test_fid_while_training_is_that_of_gan_evaluate(unlabelled, monkeypatch):
    random_inception.written(Path("weights.pth"), monkeypatch)
    given = ["trainer.measured=16", "trainer.inception=weights.pth", "average=none"]
    assert build(unlabelled(16, *given)).train()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    *_, last = (line["metric/fid"] for line in lines if "metric/fid" in line)
    assert main(["evaluate", "run", "--count", "16", "--inception", "weights.pth"]) == 0
    found = json.loads(Path("run/evaluation/evaluation.json").read_text())
    assert found["numbers"]["fid"] == pytest.approx(last, rel=1e-6)
    assert last > 0
