"""`gan sample`: which pictures it makes, and what seed, classes, arcs and truncation do."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import gan
from gan import runs
from gan.commands import main, sample
from gan.commands.sample import COLUMNS, FRAMES, LEGS, class_sheet, spherical
from gan.images import grid, to_bytes
from gan.trained.reports import TRANSLATIONS
from gan.trained.sheets import sheets

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
    capsys.readouterr()
    assert main(["sample", "run", "--only", "images", "--count", "2"]) == 2
    assert "images holds 4 pictures of another sample, as 0002.png" in capsys.readouterr().err
    assert main(["sample", "run", "--only", "classes", "--label", "1"]) == 2
    assert "--label is for grid and images and interpolation" in capsys.readouterr().err
    assert main(["sample", "run", "--only", "interpolation", "--count", "9"]) == 2
    assert "--count is for grid and images, of which --only draws none" in capsys.readouterr().err


def test_a_class_is_chosen_by_number_or_by_name(trained, capsys):
    trained("dcgan", *CONDITIONAL)
    run = gan.load("run")
    names, shown = runs.dataset(run).store.names["style"], grid(run.sample(4, label=1))
    for said in ("1", names[1]):
        arguments = ["--only", "grid", "--count", "4", "--out", said, "--label", said]
        assert main(["sample", "run", *arguments]) == 0
        np.testing.assert_array_equal(pixels(f"{said}/grid.png"), shown)
    capsys.readouterr()
    assert main(["sample", "run", "--label", f"{names[1]}x"]) == 2
    said = capsys.readouterr().err
    assert f"--label={names[1]}x is no class of " in said
    assert f"did you mean {names[1]!r}?" in said
    assert main(["sample", "run", "--label", "999"]) == 2
    assert "label=999 must be from 0 to" in capsys.readouterr().err


def test_a_name_of_digits_goes_before_a_number(trained, monkeypatch, capsys):
    """Folders 0 to 19 as classes: in the order of their names the second one is 1, the third 10."""
    trained("dcgan", *CONDITIONAL)
    digits, run = ["0", "1", "10", "2"], gan.load("run")
    store = SimpleNamespace(names={"style": digits})
    monkeypatch.setattr(runs, "dataset", lambda run: SimpleNamespace(store=store, label="style"))
    for said in ("2", "3"):  # of the class 3 there is no name
        arguments = ["--only", "grid", "--count", "4", "--out", said, "--label", said]
        assert main(["sample", "run", *arguments]) == 0
        shown = grid(run.sample(4, label=3))
        np.testing.assert_array_equal(pixels(f"{said}/grid.png"), shown)

    def gone(run):
        raise ValueError("there is nothing at photos")

    monkeypatch.setattr(runs, "dataset", gone)
    assert main(["sample", "run", *arguments]) == 0
    assert "--label=3 is taken as a number, not as a name: there is" in capsys.readouterr().err


def test_a_class_sheet_shows_no_more_classes_than_can_be_looked_at(trained, monkeypatch, capsys):
    trained("dcgan", *CONDITIONAL)
    monkeypatch.setattr(sample, "ROWS", 2)
    assert main(["sample", "run", "--only", "classes"]) == 0
    assert "classes.png has the first 2 of" in capsys.readouterr().out
    loaded = gan.load("run")
    made = loaded.draw(loaded.noise(COLUMNS, 0).repeat(2, 1), torch.arange(2).repeat_interleave(10))
    np.testing.assert_array_equal(pixels("run/sampled/classes.png"), grid(made, COLUMNS))


def test_names_of_classes_are_asked_for_only_where_there_are_classes(trained, capsys):
    trained("dcgan")
    assert main(["sample", "run", "--label", "cat"]) == 2
    assert "was trained without classes" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classes", "interpolation"])
def test_no_images_are_drawn_that_nobody_has_asked_for(trained, monkeypatch, kind):
    trained("dcgan", *CONDITIONAL)
    monkeypatch.setattr(runs.Run, "sample", lambda *given: pytest.fail("nobody has asked"))
    assert main(["sample", "run", "--only", kind]) == 0
    assert {path.stem for path in Path("run/sampled").iterdir()} == {kind}


def test_pictures_of_a_large_sample_are_in_order_by_their_names(tmp_path):
    made = torch.linspace(-1, 1, 10_002).view(-1, 1, 1, 1)
    folder = sample._one_by_one([made], sample._numbered(tmp_path / "images", {"": len(made)}))
    names = sorted(path.name for path in folder.iterdir())
    assert (names[0], names[-1], len(names)) == ("00000.png", "10001.png", 10_002)
    assert pixels(folder / names[-1]).item() == 255


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


def test_a_wnet_shows_what_training_has_shown_and_other_pairs_when_asked(trained):
    trained("wnet")
    assert main(["sample", "run", "--out", "out"]) == 0
    names = {path.name for path in Path("out").iterdir()}
    assert {"new-style-new-character.png", "interpolation.gif", "interpolation.png"} <= names
    with Image.open("out/interpolation.gif") as animation:
        assert animation.n_frames > FRAMES
    rows, columns = ((side - 2) / 98 for side in pixels("out/interpolation.png").shape[:2])
    assert (rows, columns) == (4, COLUMNS)  # held-out characters, on the way between two styles
    sheet = pixels("out/seen-style-seen-character.png")
    assert len([*Path("out/images").glob("seen-style-seen-character-*.png")]) == 8
    for seed, folder in (("3", "one"), ("3", "same"), ("4", "other")):
        given = ["--count", "2", "--seed", seed, "--out", folder]
        assert main(["sample", "run", "--only", "grid", *given]) == 0
    one, same, other = (
        pixels(f"{folder}/seen-style-seen-character.png") for folder in ("one", "same", "other")
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(other) < len(sheet) / 2
    assert not np.array_equal(other[20:], sheet[20 : len(other)])  # other pairs, and not the first


@pytest.mark.parametrize(
    ("model", "given", "columns"), [("pix2pix", "input", 3), ("cyclegan", "real_a", 4)]
)
def test_translations_are_shown_beside_what_they_were_made_of(trained, model, given, columns):
    trainer = trained(model, "data.style=style05")
    assert main(["sample", "run", "--count", "3", "--only", "grid", "--out", "out"]) == 0
    loaded = gan.load("run")
    (name, shown), *_ = sheets(loaded, runs.dataset(loaded), 3, 0)
    assert pixels(f"out/{name}.png").shape[1] % columns == 0
    plan = trainer.stream.dataset.shown(loaded.recipe.reads, 3)[name]
    expected = trainer.stream.images(plan.images[given])
    first, made, truth, *_ = shown
    torch.testing.assert_close(shown[first], expected)
    expected = TRANSLATIONS[loaded.recipe](loaded.generator, {given: expected})
    if model == "cyclegan":  # without dropout
        torch.testing.assert_close(shown[made], expected)
    assert (shown[truth] - shown[made]).abs().mean() > 0.1  # two steps teach nothing
    assert main(["sample", "run", "--count", "3", "--only", "images", "--out", "out"]) == 0
    assert (pixels(f"out/images/{name}-0002.png") == to_bytes(shown[made])[2, ..., 0]).all()
    assert not Path("out/images", f"{name}-0003.png").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("wnet", ["--truncation", "0.7"], "--truncation is for generators that draw from noise"),
        ("wnet", ["--only", "classes"], "of which gan sample draws grid, images, interpolation"),
        ("wnet", ["--count", "0"], "--count must be at least 1"),
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


@pytest.mark.parametrize("command", ["sample", "export", "evaluate", "compare"])
def test_a_file_is_no_folder_to_write_to_and_that_is_said_before_the_work(
    tmp_path, capsys, command
):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(SystemExit, match="2"):
            main([command, "nowhere", "--out", str(tmp_path / place)])
        assert f"{tmp_path / 'file'} is a file, not a folder to write to" in capsys.readouterr().err
    assert main([command, "nowhere", "--out", str(tmp_path / "new/folder")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_one_sentence(trained, capsys, monkeypatch):
    trained("dcgan")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "out")

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(["sample", "run", "--out", "out"]) == 2
    assert capsys.readouterr().err == "gan: [Errno 13] Permission denied: 'out'\n"
