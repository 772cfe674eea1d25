"""Classifiers that are trained once and kept: found again, missed, waited for, read back."""

import threading

import numpy as np
import pytest
import torch
import yaml

from gan import checkpoint, features
from gan.config.check import check
from gan.features import Lesson, Training, fitted, in_words, shifted
from gan.losses.reconstruction import Perceptual
from gan.networks.pretrained import stored

SMALL = {"name": "small", "channels": 1, "width": 4}
ROWS = np.arange(40, 80)
CPU = torch.device("cpu")
QUICK = Training(epochs=2)


def lesson(**labels):
    """Images whose upper half is bright or dark, with labels that say which."""
    side = np.arange(80) % 2
    images = torch.rand(80, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    images[side == 1, :, :8] += 0.5
    return Lesson(lambda rows: images[rows], ROWS, labels or {"side": side[ROWS]}, "content")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trainings(monkeypatch):
    """How often a classifier was trained."""
    counted, fit = [], features._fit
    monkeypatch.setattr(features, "_fit", lambda *given: (counted.append(1), fit(*given)))
    return counted


@pytest.fixture
def said():
    return []


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_what_is_learnt_holds_for_images_that_were_held_out():
    result = fitted(SMALL, lesson(), CPU, Training(epochs=30, held_out=0.25))
    assert result.accuracy["training"]["side"] > 0.9
    assert result.accuracy["held_out"]["side"] > 0.9
    assert "held-out images named rightly: side" in in_words(result.accuracy)


@pytest.mark.parametrize(
    ("strength", "against"), [(0.2, {}), (0.25, {"name": "fgsm", "radius": 0.02})], ids=["", "hard"]
)
def test_few_updates_suffice_for_images_that_were_held_out(strength, against):
    """In 42 updates running statistics alone would still hold nearly half of where they started."""
    side, random = np.arange(200) % 2, torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(200, 1, 16, 16, generator=random)
    stripes = strength * torch.tensor([1.0, 1, -1, -1]).repeat(4).expand(16, 16)
    images[side == 0] += stripes
    images[side == 1] += stripes.T
    few = Lesson(lambda rows: images[rows], np.arange(200), {"side": side}, "content")
    result = fitted(SMALL, few, CPU, Training(held_out=0.1, against=against))
    assert result.accuracy["training"]["side"] > 0.9
    assert result.accuracy["held_out"]["side"] > 0.9


def test_the_same_lesson_is_learnt_once(trainings, said):
    first = fitted(SMALL, lesson(), CPU, QUICK, say=said.append)
    again = fitted(SMALL, lesson(), CPU, QUICK, say=said.append)
    assert len(trainings) == 1
    assert same(first.network, again.network)
    assert first.accuracy == again.accuracy
    assert said[0] == "training a classifier of side on 40 images, once"
    assert all(line.startswith("classifier epoch ") for line in said[1:])
    assert not again.network.training
    assert not any(p.requires_grad for p in again.network.parameters())


@pytest.mark.parametrize(
    "changed",
    [
        {"lesson": lesson(side=1 - np.arange(40) % 2)},
        {"lesson": lesson(type=np.arange(40) % 2)},
        {"lesson": lesson()._replace(rows=ROWS[::-1])},
        {"lesson": lesson()._replace(content="other")},
        {"settings": {**SMALL, "width": 5}},
        {"training": QUICK._replace(epochs=1)},
        {"training": QUICK._replace(loss="focal")},
        {"training": QUICK._replace(held_out=0.1)},
        {"training": QUICK._replace(against={"name": "fgsm", "radius": 0.1})},
    ],
    ids=["labels", "field", "rows", "images", "network", "epochs", "loss", "split", "against"],
)
def test_any_change_is_another_classifier(trainings, changed):
    common = {"settings": SMALL, "lesson": lesson(), "device": CPU, "training": QUICK}
    first, other = fitted(**common), fitted(**{**common, **changed})
    assert first.path != other.path
    assert len(trainings) == 2
    with pytest.raises(ValueError, match="holds another classifier"):
        fitted(**{**common, **changed}, folder=first.path)


def test_a_damaged_classifier_is_trained_again_with_a_notice(trainings, said):
    first = fitted(SMALL, lesson(), CPU, QUICK, say=said.append)
    (file,) = first.path.glob("step-*/networks.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = fitted(SMALL, lesson(), CPU, QUICK, say=said.append)
    assert len(trainings) == 2
    assert same(first.network, again.network)
    notices = [line for line in said if line.startswith("skipped")]
    assert len(notices) == 1
    assert "networks.safetensors has SHA-256" in notices[0]
    fitted(SMALL, lesson(), CPU, QUICK, say=said.append)
    assert len(trainings) == 2


def test_one_trains_while_the_others_wait(trainings, said):
    """Each open file has a lock of its own, so threads stand for processes."""
    path = features.FOLDER / features._key({**SMALL, "classes": {"side": 2}}, lesson(), QUICK)
    waits = threading.Event()

    def say(line):
        said.append(line)
        waits.set()

    results = []
    with features.alone(path, print):
        other = threading.Thread(
            target=lambda: results.append(fitted(SMALL, lesson(), CPU, QUICK, say=say))
        )
        other.start()
        assert waits.wait(20)
        assert said == [f"waiting for the process that trains the classifier in {path}"]
        description = {**SMALL, "classes": {"side": 2}}
        features._train_and_keep(description, lesson(), QUICK, CPU, path, path.name, print)
    other.join(20)
    assert len(trainings) == 1
    assert results[0].path == path


def test_training_leaves_the_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    fitted(SMALL, lesson(), CPU, QUICK)
    assert torch.equal(torch.rand(2), expected)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 2 images to learn from, not 0 of 40"):
        fitted(SMALL, lesson(), CPU, Training(held_out=1.0))


def test_each_image_is_shifted_on_its_own_and_its_edge_repeated():
    torch.manual_seed(0)
    ramp = torch.arange(8.0).expand(8, 8)
    images = (ramp + 100 * ramp.T).expand(200, 1, 8, 8)  # pixel = column + 100 * row
    moved = shifted(images)
    assert moved.shape == images.shape
    corner = moved[:, 0, 4, 4] - 404
    assert {(int(c + 250) // 100 - 2, int(c + 250) % 100 - 50) for c in corner.tolist()} == {
        (row, column) for row in range(-2, 3) for column in range(-2, 3)
    }
    places = torch.arange(8)[None] + (corner % 100 + 50).long()[:, None] % 100 - 50
    assert torch.equal(moved[:, 0, 4] % 100, places.clamp(0, 7).float())


def test_a_kept_classifier_is_a_source_of_features():
    """The perceptual loss takes a folder; its network stays as it is."""
    result = fitted(SMALL, lesson(), CPU, QUICK)
    loss = Perceptual(str(result.path), layers=[0, 2])
    image = torch.rand(2, 1, 16, 16, requires_grad=True)
    target = torch.rand(2, 1, 16, 16)
    value = loss(image, target)
    maps = zip(result.network.features(image), result.network.features(target), strict=True)
    expected = [(a - b).abs().mean() for a, b in maps]
    torch.testing.assert_close(value, expected[0] + expected[2])
    value.backward()
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()
    assert same(loss.network, result.network)
    assert all(p.grad is None for p in loss.network.parameters())


def test_only_a_classifier_of_such_images_is_read(tmp_path):
    result = fitted(SMALL, lesson(), CPU, QUICK)
    assert same(stored(result.path, channels=1), result.network)
    with pytest.raises(ValueError, match="sees images of 1 channels, but image.channels=3"):
        stored(result.path, channels=3)
    with pytest.raises(ValueError, match="holds no classifier: `gan classifier STORE"):
        stored(tmp_path)
    parts = {"networks": {}, "optimizers": {}, "state": {}, "config": yaml.safe_dump({"seed": 0})}
    checkpoint.save(tmp_path / "run", 1, run_id="run", **parts)
    with pytest.raises(ValueError, match="is no classifier: name a folder"):
        stored(tmp_path / "run")


def test_a_recipe_looks_through_the_classifier_it_names(tiny, said):
    result = fitted(SMALL, lesson(), CPU, QUICK)

    def source(name):
        checked = check(tiny("wnet", "recipe.feature=75", f"recipe.feature_source={name}"))
        return features.classifier_for(checked, None, None, CPU, said.append)

    assert same(source(result.path), result.network)
    assert source("discriminator") is None
    with pytest.raises(ValueError, match="feature_source=clasifier is neither classifier nor"):
        source("clasifier")
