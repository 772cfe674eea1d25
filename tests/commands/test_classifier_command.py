"""`gan classifier`: trains on a store, tells how well, keeps the result."""

import re
from pathlib import Path

import pytest
import torch

from gan.commands import main
from gan.networks.pretrained import stored


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return main(["classifier", *map(str, arguments)])


def test_a_classifier_of_all_fields_is_kept_and_its_accuracy_told(glyph_store, capsys):
    options = ("--epochs", 1, "--width", 4, "--device", "cpu", "--out", "kept")
    assert run(glyph_store, *options) == 0
    first = capsys.readouterr().out
    assert "training a classifier of style, character on 252 images, once" in first
    assert f"kept: style, character of {glyph_store}; training images named rightly: " in first
    assert "held-out images named rightly: style" in first
    logits = stored(Path("kept"), channels=1)(torch.zeros(1, 1, 16, 16))
    assert {name: value.shape[1] for name, value in logits.items()} == {
        "style": 14,
        "character": 20,
    }
    assert run(glyph_store, *options) == 0
    assert capsys.readouterr().out == first[first.index("kept: ") :]  # nothing is trained again
    assert run(glyph_store, *options, "--fields", "style") == 2
    assert "kept holds another classifier" in capsys.readouterr().err


def test_fields_and_split_are_chosen(glyph_store, capsys, tmp_path):
    options = ("--epochs", 1, "--width", 4, "--fields", "style", "--held-out", 0)
    assert run(glyph_store, *options, "--loss", "focal") == 0
    out = capsys.readouterr().out
    assert "held-out" not in out
    assert "character" not in out
    assert [path.parts[-3:-1] for path in tmp_path.rglob("step-*")][0][0] == "classifiers"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fields", "stile"), "stile is no field of .*did you mean 'style'"),
        (("--epochs", 0), "--epochs must be at least 1, not 0"),
        (("--held-out", 1.5), "--held-out must be at least 0 and at most 1, not 1.5"),
        (("--width", 0), "width must be at least 1, not 0"),
    ],
)
def test_mistakes_are_named(glyph_store, capsys, options, message):
    assert run(glyph_store, *options) == 2
    assert re.search(message, capsys.readouterr().err)
