"""Classifiers trained against a perturbation, and measured under one."""

import re

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gan.commands import main
from gan.features import Lesson, Training, accuracy_under, attacked, fitted
from gan.networks.classifier import Classifier
from gan.registry import create

SMALL = {"name": "small", "channels": 1, "width": 4}
CPU = torch.device("cpu")
ATTACK = {"name": "pgd", "radius": 0.4, "steps": 5}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lesson():
    """Four kinds: which corner is bright, which an attack of 0.4 cannot hide, and a faint grain."""
    generator, kind = torch.Generator().manual_seed(0), np.arange(256) % 4
    grain = 0.2 * torch.randn(4, 1, 16, 16, generator=generator).sign()
    images = grain[kind] + 0.1 * torch.randn(256, 1, 16, 16, generator=generator)
    for number, (row, column) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        images[kind == number, :, row : row + 8, column : column + 8] += 0.9
    images = images.clamp(-1, 1)
    return Lesson(lambda rows: images[rows], np.arange(256), {"kind": kind}, "content")


@pytest.mark.slow
def test_training_against_an_attack_holds_out_where_plain_training_breaks():
    plain = fitted(SMALL, lesson(), CPU, Training(60, 0.25))
    hard = fitted(SMALL, lesson(), CPU, Training(60, 0.25, against={**ATTACK, "steps": 3}))
    assert plain.accuracy["held_out"]["kind"] > 0.95
    assert hard.accuracy["held_out"]["kind"] > 0.95
    assert accuracy_under(ATTACK, plain.network, lesson(), 0.25)["kind"] < 0.25
    assert accuracy_under(ATTACK, hard.network, lesson(), 0.25)["kind"] > 0.9


def test_training_sees_the_moved_images_and_only_them():
    """A step of 0 is plain training to the bit, any other is another network."""
    plain, still, hard = (
        fitted(SMALL, lesson(), CPU, Training(1, against=against)).network.state_dict()
        for against in ({}, {"name": "fgsm", "radius": 0.0}, {"name": "fgsm", "radius": 0.1})
    )
    assert all(torch.equal(plain[name], still[name]) for name in plain)
    assert not torch.equal(plain["stages.0.0.weight"], hard["stages.0.0.weight"])


def test_the_attack_climbs_the_sum_of_all_fields_and_leaves_the_network_as_it_was():
    torch.manual_seed(1)
    network = Classifier(1, {"a": 3, "b": 2}, width=2)
    images = torch.randn(3, 1, 16, 20)
    labels = {"a": torch.tensor([0, 2, 1]), "b": torch.tensor([1, 0, 0])}
    state = {key: value.clone() for key, value in network.state_dict().items()}
    worst = create("perturbation", "fgsm", radius=0.1)
    moved = attacked(network, worst, dict.fromkeys(labels, cross_entropy), images, labels)
    assert network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())

    image = images.clone().requires_grad_()
    logits = network.eval()(image)
    sum(cross_entropy(logits[name], label) for name, label in labels.items()).backward()
    low, high = images.clamp(max=-1), images.clamp(min=1)
    expected = (images + 0.1 * image.grad.sign()).clamp(low, high)
    torch.testing.assert_close(moved, expected)
    for name in labels:  # the direction of one field alone is another
        alone = attacked(network, worst, {name: cross_entropy}, images, labels)
        assert (alone != moved).any()


def test_measuring_repeats_itself_and_leaves_the_random_state_alone():
    network = fitted(SMALL, lesson(), CPU, Training(1, 0.25)).network
    torch.manual_seed(2)
    expected = torch.rand(2)
    torch.manual_seed(2)
    first = accuracy_under({**ATTACK, "radius": 0.2}, network, lesson(), 0.25)
    assert torch.equal(torch.rand(2), expected)
    assert accuracy_under({**ATTACK, "radius": 0.2}, network, lesson(), 0.25) == first
    still = accuracy_under({**ATTACK, "radius": 0.0}, network, lesson(), 0.25)
    kept = fitted(SMALL, lesson(), CPU, Training(1, 0.25))
    assert still == kept.accuracy["held_out"]


# -- from the command line


def run(*arguments):
    return main(["classifier", *map(str, arguments)])


OPTIONS = ("--epochs", 1, "--width", 8, "--fields", "character", "--device", "cpu")


def shares(out):
    return [float(share) for share in re.findall(r"held-out .*character (\d+\.\d)%", out)]


def test_attacks_are_measured_on_a_kept_classifier_and_through_another(glyph_store, capsys):
    assert run(glyph_store, *OPTIONS, "--epochs", 16, "--out", "plain") == 0
    capsys.readouterr()
    attacks = ("--attack", "fgsm,radius=0.5", "--attack", "pgd,radius=0.5,steps=3,norm=linf")
    assert run(glyph_store, *OPTIONS, "--epochs", 16, "--out", "plain", *attacks) == 0
    out = capsys.readouterr().out
    assert "training a classifier" not in out
    lines = out.splitlines()
    assert lines[1].startswith("under fgsm,radius=0.5: held-out images named rightly: character ")
    assert lines[2].startswith("under pgd,radius=0.5,steps=3,norm=linf: held-out images named")
    assert max(shares(out)[1:]) < shares(out)[0]

    hard = ("--out", "hard", "--train-against", "pgd,radius=0.1,steps=2")
    assert run(glyph_store, *OPTIONS, *hard, *attacks, "--through", "plain") == 0
    assert "under fgsm,radius=0.5 through plain: held-out" in capsys.readouterr().out
    assert run(glyph_store, *OPTIONS, "--out", "hard") == 2  # trained otherwise
    assert "hard holds another classifier" in capsys.readouterr().err
    spelt_out = ("--train-against", "pgd,steps=2,radius=1e-1,random_start=true,step=null")
    assert run(glyph_store, *OPTIONS, "--out", "hard", *spelt_out) == 0
    assert "training a classifier" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attack", "pdg"), "--attack: there is no perturbation 'pdg'; did you mean 'pgd'"),
        (("--attack", "pgd,radios=1"), "--attack pgd.radios is unknown; did you mean 'radius'"),
        (("--train-against", "fgm,radius=-1"), "--train-against fgm.radius must be at least 0"),
        (("--attack", "pgd,0.2"), "--attack pgd,0.2: '0.2' must be written key=value"),
        (("--attack", "fgsm", "--held-out", 0), "--attack is measured on held-out images"),
        (("--attack", "fgsm", "--through", "none"), "none holds no classifier"),
    ],
)
def test_mistakes_are_named(glyph_store, capsys, options, message):
    assert run(glyph_store, *OPTIONS, *options) == 2
    assert message in capsys.readouterr().err


def test_another_classifier_must_know_the_classes(glyph_store, capsys):
    network = ("--epochs", 1, "--width", 4, "--device", "cpu")
    assert run(glyph_store, *network, "--fields", "style", "--out", "other") == 0
    assert run(glyph_store, *OPTIONS, "--attack", "fgsm", "--through", "other") == 2
    assert "does not know the 20 classes of character: it tells 14 of style" in (
        capsys.readouterr().err
    )
