"""The report on images: numbers of all of them, and of as many drawn as training images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gan import images
from gan.data.datasets import shuffled
from gan.metrics import image_report as module
from gan.metrics import populations
from gan.metrics.distances import frechet, moments
from gan.metrics.image_evaluation import mirrored
from gan.metrics.image_report import Asked, image_report
from gan.metrics.populations import Translations


class Squares:
    """Features: the means of 16 squares of an image, and no logits."""

    name, key, resize = "squares", "1" * 16, "none"

    def __call__(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1), torch.empty(len(images), 0)


def pictures(count, seed):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """A report on so many fresh images of the same kind as the training images."""
    monkeypatch.chdir(tmp_path)

    def report(drawn, trained, copied=(), mirrored=False):
        fresh, real = pictures(drawn, 1), pictures(trained, 2)
        fresh[: len(copied)] = real[[*copied]].flip(-1) if mirrored else real[[*copied]]
        source = Translations(lambda _, image: image, lambda rows: fresh[rows], np.arange(drawn))
        store = SimpleNamespace(content_hash="abc", shape=(8, 8, 1))
        asked = Asked(np.arange(trained), drawn, [Squares()], mirrored=mirrored)
        generators = {"raw": nn.Identity(), "ema": nn.Identity()}
        return image_report(generators, source, store, lambda rows: real[rows], asked), fresh, real

    return report


def fd(*sides):
    return frechet(*(moments([Squares()(side)[0]]) for side in sides))


def test_fresh_images_are_as_far_from_training_images_as_those_are_from_one_another(reported):
    report, fresh, real = reported(800, 800)
    whole = report.numbers["fd_squares"]
    assert whole == pytest.approx(fd(fresh, real), rel=1e-5)
    floor, beside = report.facts["floor"]["fd_squares"], report.facts["beside_floor"]["fd_squares"]
    assert whole < 0.7 * floor  # twice as many images alone bring it below
    assert beside == pytest.approx(floor, rel=0.2)


@pytest.mark.parametrize(("drawn", "trained", "equal"), [(90, 120, 60), (40, 201, 40)])
def test_the_generator_and_the_floor_are_measured_on_as_many_images(
    reported, drawn, trained, equal
):
    report, fresh, real = reported(drawn, trained)
    one, other = real[shuffled(trained)][: 2 * equal].split(equal)
    fresh = fresh[shuffled(drawn)][:equal]
    assert report.facts["floor_images"] == equal
    floor, beside = report.facts["floor"]["fd_squares"], report.facts["beside_floor"]["fd_squares"]
    assert floor == pytest.approx(fd(one, other), rel=1e-5)
    assert beside == pytest.approx(fd(fresh, other), rel=1e-5)
    assert report.text.splitlines()[0].endswith(f" ema, {equal}  training images, {equal}")
    assert f"each beside the same {equal} other training images" in report.text
    assert (
        f"({equal} of them beside as many training images: {beside:.3f}; as many other training "
        f"images beside those: {floor:.3f})"
    ) in report.verdict


def test_training_images_that_come_by_turns_are_near_one_another(monkeypatch, tmp_path):
    """Light and dark ones in files by turns: every other one is a half of one kind."""
    monkeypatch.chdir(tmp_path)
    real = pictures(400, 2) / 4 + torch.tensor([0.7, -0.7]).repeat(200)[:, None, None, None]
    fresh = pictures(200, 1) / 4 + torch.tensor([0.7, -0.7]).repeat(100)[:, None, None, None]
    source = Translations(lambda _, image: image, lambda rows: fresh[rows], np.arange(200))
    store, asked = SimpleNamespace(content_hash="abc", shape=(8, 8, 1)), np.arange(400)
    given = nn.Identity(), source, store, lambda rows: real[rows], Asked(asked, 200, [Squares()])
    report = image_report({"raw": given[0]}, *given[1:])
    assert fd(real[::2], real[1::2]) > 20  # the control
    assert report.facts["floor"]["fd_squares"] < 1
    assert report.facts["beside_floor"]["fd_squares"] < 1


def test_copies_are_looked_for_among_all_training_images(reported, monkeypatch):
    for where in (module, populations):
        monkeypatch.setattr(where, "NEIGHBOURS", 50)
    shown, table = [], images.table
    monkeypatch.setattr(images, "table", lambda *given: shown.append(given[0]) or table(*given))
    copied = [*range(1, 21)]  # of 500, of which every tenth or so is compared one by one
    report, _, real = reported(40, 500, copied)
    assert report.numbers["memorised"] == report.numbers["raw_weights/memorised"]
    assert report.numbers["memorised"] == pytest.approx(0.5, abs=0.05)
    measure = report.facts["measures"]["ema"]
    assert measure["memorised"]["compared_one_by_one"] == [40, 500]
    assert measure["duplicates"]["compared_one_by_one"] == [40, 50]
    assert (
        "Copies in 40 drawn images are looked for among all 500 training images; what is near is "
        "told by 50 of these, each beside all others."
    ) in report.text
    (sheet,) = shown
    assert torch.equal(sheet["drawn"], sheet["nearest training image"])
    apart = torch.cdist(sheet["drawn"].flatten(1), real.flatten(1))
    assert {*apart.argmin(1).tolist()} <= {*copied}


def test_mirrored_copies_are_looked_for_where_training_mirrors(reported, monkeypatch):
    shown, table = [], images.table
    monkeypatch.setattr(images, "table", lambda *given: shown.append(given[0]) or table(*given))
    report, *_ = reported(40, 500, [*range(20)], mirrored=True)
    assert report.numbers["memorised"] == pytest.approx(0.5, abs=0.05)
    assert report.facts["measures"]["ema"]["memorised"]["mirrored"]
    assert "among all 500 training images and their mirror images; what is near" in report.text
    (sheet,) = shown
    assert torch.equal(sheet["drawn"], sheet["nearest training image"].flip(-1))
    plain, *_ = reported(40, 500, [*range(20)])
    assert not plain.facts["measures"]["ema"]["memorised"]["mirrored"]


@pytest.mark.parametrize(
    ("facts", "expected"), [({}, False), ({"flip": False}, False), ({"flip": True}, True)]
)
def test_training_mirrors_where_the_dataset_flips(facts, expected):
    assert mirrored(SimpleNamespace(**facts)) is expected
