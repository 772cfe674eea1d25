"""`gan sample`: which pictures it makes, and what seed, classes, arcs and truncation do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gan
from gan.commands import main
from gan.commands.sample import FRAMES, LEGS, class_sheet, spherical
from gan.images import to_bytes

CONDITIONAL = ["recipe=conditional", "data.label=style", "discriminator.norm=none"]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_kind_of_picture_is_made_and_fixed_by_the_seed(trained, capsys):
    trained("dcgan", *CONDITIONAL)
    assert main(["sample", "run", "--count", "6"]) == 0
    out = Path("run/sampled")
    assert capsys.readouterr().out.split() == [
        str((out / name).resolve())
        for name in ("grid.png", "images", "interpolation.png", "interpolation.gif", "classes.png")
    ]
    made = to_bytes(gan.load("run").sample(6))
    assert [path.name for path in sorted((out / "images").iterdir())][-1] == "0005.png"
    assert (pixels(out / "images" / "0003.png") == made[3, ..., 0]).all()
    with Image.open(out / "interpolation.gif") as animation:
        assert animation.n_frames == LEGS * FRAMES
        assert animation.info["loop"] == 0
    for seed, equal in (("0", True), ("1", False)):
        main(["sample", "run", "--only", "grid", "--count", "6", "--seed", seed, "--out", "again"])
        assert np.array_equal(pixels("again/grid.png"), pixels(out / "grid.png")) == equal
    assert not Path("again/images").exists()


def test_a_class_sheet_has_a_row_for_each_class_and_one_noise_for_each_column(trained):
    trained("dcgan", *CONDITIONAL)
    loaded = gan.load("run")
    sheet = class_sheet(loaded, seed=4)
    noise = loaded.noise(10, 4)
    cell = (sheet.shape[1] - 2) // 10
    assert (sheet.shape[0] - 2) // cell == loaded.classes
    expected = to_bytes(loaded.draw(noise[3:4], torch.tensor([2])))[0, ..., 0]
    top, left = 2 * cell + 2, 3 * cell + 2
    shown = sheet[top : top + cell - 2 : 6, left : left + cell - 2 : 6, 0]  # enlarged six times
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_arcs_keep_the_length_that_straight_lines_lose():
    random = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 50, 400, generator=random)
    start, end = (20 * torch.nn.functional.normalize(x) for x in (start, end))
    for share in (0.0, 0.3, 0.5, 1.0):
        assert torch.allclose(spherical(start, end, share).norm(dim=1), torch.tensor(20.0))
    assert torch.lerp(start, end, 0.5).norm(dim=1).max() < 16  # the control
    angle = torch.acos(torch.cosine_similarity(start, end))
    third = torch.acos(torch.cosine_similarity(start, spherical(start, end, 1 / 3)))
    assert torch.allclose(third, angle / 3, atol=1e-4)
    assert torch.allclose(spherical(start, end, 0.0), start, atol=1e-4)
    assert torch.allclose(spherical(start, start, 0.5), start)


def test_a_wnet_shows_what_training_has_shown(trained):
    trained("wnet")
    assert main(["sample", "run", "--out", "out"]) == 0
    names = {path.name for path in Path("out").iterdir()}
    assert {"new-style-new-character.png", "interpolation.gif"} <= names
    with Image.open("out/interpolation.gif") as animation:
        assert animation.n_frames > FRAMES


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("wnet", ["--truncation", "0.7"], "--truncation is for generators that draw from noise"),
        ("wnet", ["--only", "classes"], "are what a W-Net draws"),
        ("dcgan", ["--only", "classes"], "trained without classes"),
        ("dcgan", ["--truncation", "-1"], "truncation must be greater than 0"),
        ("dcgan", ["--weights", "mean"], "keeps no weights 'mean'"),
    ],
)
def test_what_does_not_apply_is_refused(trained, capsys, model, arguments, words):
    trained(model)
    assert main(["sample", "run", "--out", "out", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()
