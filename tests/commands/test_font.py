"""`gan font`: from a run and a picture to a font that shows what was drawn."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from gan import runs
from gan.commands import main
from gan.data.entries import hanzi
from gan.data.glyphs import area_reduce
from gan.data.sheets import GlyphSheets
from gan.data.sources import embedded
from gan.font import outlines, prototypes, truetype
from gan.font.specimen import EDGE, specimen
from gan.font.truetype import LICENCES, Names
from gan.images import to_floats
from gan.styles import Relatives, accuracy, known

CHARACTERS = [chr(0x4E00 + number) for number in range(20)]


@pytest.fixture
def command(trained, monkeypatch, capsys):
    """Call the command on a tiny run that draws the prototypes in black: status, both outputs."""
    trained("wnet")
    page = Image.new("L", (80, 80), 255)
    ImageDraw.Draw(page).rectangle((20, 30, 60, 40), fill=0)
    page.save("glyph.png")

    def black(self, prototypes, style):
        return torch.where(prototypes < 0.7, -1.0, 1.0)

    monkeypatch.setattr(runs.Run, "dressed", black)

    def call(*arguments):
        status = main(["font", "run", "--reference", "glyph.png", *arguments])
        return status, *capsys.readouterr()

    return call


def test_the_font_holds_every_character_as_it_was_drawn(command):
    names = ["--name", "Meine Schrift", "--licence", "OFL-1.1", "--author", "A. Author"]
    status, out, _ = command("--out", "out/MyFont.ttf", *names)
    assert status == 0
    assert "MyFont.ttf: 20 characters" in out
    scores, worst = out.split("rendered as drawn to an SSIM of ")[1].splitlines()[0].split(": ")
    assert re.fullmatch(r"[01]\.\d{4}, \d+ of 20 below 0\.95; the worst", scores)
    listed = [float(score) for score in worst.split()[1::2]]
    assert listed == sorted(listed)
    assert len(listed) == 5
    assert sum(score < 0.95 for score in listed) == min(5, int(scores.split()[1]))
    assert {path.name for path in Path("out").iterdir()} == {
        "MyFont.ttf",
        "MyFont-references.png",
        "MyFont-specimen.png",
        "MyFont-specimen.pdf",
    }
    with TTFont("out/MyFont.ttf") as made:
        assert {chr(code) for code in made.getBestCmap()} == {*CHARACTERS, " ", "\u3000"}
        text = {key: made["name"].getDebugName(key) for key in (0, 1, 4, 6, 9, 13, 14)}
        assert text == {
            0: "Copyright A. Author",
            1: "Meine Schrift",
            4: "Meine Schrift",
            6: "MeineSchrift-Regular",
            9: "A. Author",
            13: LICENCES["OFL-1.1"][0],
            14: LICENCES["OFL-1.1"][1],
        }
        assert made["hmtx"][made.getBestCmap()[0x4E00]][0] == made["head"].unitsPerEm == 1024
        assert made["hhea"].ascent - made["hhea"].descent == 1024
        assert (made["OS/2"].sTypoAscender, made["OS/2"].fsType) == (made["hhea"].ascent, 0)
        assert made["OS/2"].ulUnicodeRange2 >> 27 & 1  # CJK unified ideographs, bit 59
        assert made.getGlyphOrder()[0] == ".notdef"
    loaded = ImageFont.truetype("out/MyFont.ttf", 40)
    assert loaded.getname() == ("Meine Schrift", "Regular")
    assert loaded.getlength("一丁 ") == 100


@pytest.mark.parametrize("moved", [False, True])
def test_a_font_unlike_the_drawings_is_not_written(command, monkeypatch, moved):
    real = outlines.glyph

    def shifted(contours):
        by = EM_STEP if moved else 0
        return real([[tuple(p + by for p in c) for c in curves] for curves in contours])

    monkeypatch.setattr(outlines, "glyph", shifted)
    status, _, err = command("--out", "moved.ttf")
    assert (status, Path("moved.ttf").exists()) == ((1, False) if moved else (0, True))
    assert ("moved.ttf was not written" in err) == moved
    assert "--shows" not in err  # nothing was learnt
    assert not list(Path().glob(".moved*"))
    _, _, err = command("--out", "moved.ttf", "--shows", "一", "--adapt", "1")
    assert ("without --shows strokes may fade less" in err) == moved


def test_a_font_that_cannot_be_written_leaves_nothing_behind(command, monkeypatch):
    def full(self, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(TTFont, "save", full)
    status, _, err = command("--out", "font.ttf")
    assert (status, "gan: no space left" in err) == (2, True)
    assert not [path for path in Path().iterdir() if path.suffix in (".ttf", ".partial")]


EM_STEP = 2 * outlines.EM / 16  # two pixels to the right


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--name", " ", "--name must name a family, not ' '"),
        ("--name", "My\nFont", r"--name holds what is no character: 'My\nFont'"),
        ("--style", "Bold\0", r"--style holds what is no character: 'Bold\x00'"),
        ("--author", "A\udcff", r"--author holds what is no character: 'A\udcff'"),
        ("--licence", 40_000 * "x", "--licence has 40000 characters, a font holds 30000 at most"),
        ("--out", "folder.ttf", "--out names a file, and folder.ttf is a folder"),
    ],
)
def test_what_a_font_cannot_hold_is_said_first(option, text, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder.ttf").mkdir()
    assert main(["font", "no-run", "--reference", "no.png", option, text]) == 2
    assert capsys.readouterr().err == f"gan: {said}\n"


def test_characters_come_from_a_file_and_missing_ones_are_named(command):
    Path("few.txt").write_text("丁一\n一 龍", encoding="utf-8")
    status, _, err = command("--characters", "few.txt", "--out", "few.ttf")
    assert status == 2
    assert "does not draw 1 of the 3 characters (龍): give a --prototype-font" in err
    assert not Path("few.ttf").exists()
    status, out, _ = command("--characters", "few.txt", "--out", "few.ttf", "--skip-missing")
    assert (status, "2 characters" in out) == (0, True)


def test_the_embedded_standard_font_has_further_characters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = hanzi(16, 1)
    found = prototypes.from_store(dataset).images
    large = GlyphSheets(embedded("hanzi-more")).glyphs("wqy-zenhei").images
    assert {*found} == {*dataset.characters} | {*large}
    assert len(found) == 1583
    np.testing.assert_array_equal(found["世"], area_reduce(large["世"], 16))
    odd = SimpleNamespace(shape=(12, 12, 1), facts=dataset.store.facts)  # no part of 64 pixels
    monkeypatch.setattr(dataset, "store", odd)
    assert prototypes._further(dataset) == {}
    monkeypatch.undo()
    dataset.store.facts["styles"]["wqy-zenhei"]["sha256"] = "another"
    assert {*prototypes.from_store(dataset).images} == {*dataset.characters}


def test_a_prototype_font_draws_what_the_store_lacks(command, tmp_path):
    from tiny_fonts import CROSS, FRAME, make_font, save

    save(make_font({"龍": CROSS, "虎": FRAME}), tmp_path / "other.ttf")
    given = ["--prototype-font", str(tmp_path / "other.ttf"), "--characters", "龍虎"]
    status, out, err = command(*given, "--out", "two.ttf")
    assert (status, err) == (0, "")
    assert "2 characters" in out


def test_a_comma_stands_as_low_as_in_the_prototype_font(command, tmp_path):
    from tiny_fonts import CROSS, FRAME, make_font, save

    comma = [(100, -100, 350, 150)]
    save(make_font({"龍": CROSS, "虎": FRAME, "，": comma}), tmp_path / "other.ttf")
    given = ["--prototype-font", str(tmp_path / "other.ttf"), "--characters", "龍虎，"]
    assert command(*given, "--out", "low.ttf")[0] == 0
    with TTFont("low.ttf") as made:
        low, dragon = (made["glyf"][made.getBestCmap()[ord(c)]] for c in "，龍")
        assert low.yMin < dragon.yMin
        assert low.yMax < (dragon.yMin + dragon.yMax) / 2
        assert low.xMax < outlines.EM / 2


@pytest.mark.parametrize("known", ["", "".join(CHARACTERS[:18])])
def test_a_prototype_font_must_draw_all_characters_of_the_run(command, tmp_path, known):
    """The first ten differ, as no more than two characters may be drawn alike."""
    from tiny_fonts import CROSS, make_font, save

    boxes = {c: [(100, 0, 200 + 40 * number, 800)] for number, c in enumerate(known)}
    save(make_font({"龍": CROSS, **boxes}), tmp_path / "other.ttf")
    given = ["--prototype-font", str(tmp_path / "other.ttf"), "--out", "few.ttf"]
    status, _, err = command(*given)
    assert (status, Path("few.ttf").exists()) == (2, False)
    missing = CHARACTERS[len(known) :]
    assert f"does not draw {len(missing)} of the 20 characters ({''.join(missing)}" in err
    status, out, err = command(*given, "--skip-missing")
    assert (status, "few.ttf: 18 characters" in out) == ((0, True) if known else (2, False))


def test_a_prototype_font_draws_all_characters_that_come_with_the_data(
    command, tmp_path, monkeypatch
):
    from tiny_fonts import CROSS, FRAME, make_font, save

    boxes = {c: [(100, 0, 200 + 30 * number, 800)] for number, c in enumerate(CHARACTERS)}
    save(make_font({"龍": CROSS, "虎": FRAME, **boxes}), tmp_path / "other.ttf")
    monkeypatch.setattr(prototypes, "_further", lambda dataset: {"龍": None})
    given = ["--prototype-font", str(tmp_path / "other.ttf"), "--out", "all.ttf"]
    status, _, err = command(*given)
    assert (status, err) == (0, "")
    with TTFont("all.ttf") as made:
        assert {chr(code) for code in made.getBestCmap()} == {*CHARACTERS, "龍", " ", "\u3000"}


@pytest.mark.parametrize(
    ("name", "font"), [("Mine (2)", "default"), ("一丁", "own"), ("一 鑾", ""), ("Ä", "")]
)
def test_a_specimen_has_its_name_where_a_font_draws_it(tmp_path, name, font):
    glyphs = {c: outlines.glyph([]) for c in "一丁"}
    bar = [(100.0 + 300j), (900.0 + 300j), (900.0 + 500j), (100.0 + 500j)]
    glyphs["一"] = outlines.glyph([list(zip(bar[::-1], [*bar[-2::-1], bar[-1]], strict=True))])
    truetype.write(tmp_path / "x.ttf", glyphs, Names("X"))
    head = np.asarray(specimen(tmp_path / "x.ttf", name, "一"))[: EDGE + 40]
    plain = ImageFont.load_default(28)
    drawn = {"default": plain, "own": ImageFont.truetype(tmp_path / "x.ttf", 28), "": None}[font]
    page = Image.new("L", head.shape[::-1], 255)
    left = EDGE
    if drawn:
        ImageDraw.Draw(page).text((left, EDGE + 28), name, 0, drawn, anchor="ls")
        left += drawn.getlength(name) + 28
    ImageDraw.Draw(page).text((left, EDGE + 28), "1 character", 0, plain, anchor="ls")
    assert np.array_equal(head, np.asarray(page))


def test_what_the_references_show_is_learnt_before_anything_is_drawn(command, monkeypatch):
    learnt = []

    def adapted(self, *given):
        learnt.append(given)
        return self

    monkeypatch.setattr(runs.Run, "adapted", adapted)
    few = ["--characters", "丁一", "--out", "few.ttf"]
    assert command(*few)[0] == 0
    with Image.open("few-references.png") as picture:
        narrow = picture.width
    assert not learnt
    status, out, _ = command(*few, "--reference", "glyph.png", "--shows", "七 丂")
    assert (status, "2 characters" in out) == (0, True)
    with Image.open("few-references.png") as picture:
        assert picture.width * 3 == narrow * 4  # the character in the standard font as well
    run = runs.load("run")
    data = prototypes.trained_on(run)
    glyphs = prototypes.from_store(data).images
    expected = to_floats(np.stack([glyphs["七"], glyphs["丂"]])[..., None])
    (shown, references, steps, enough, others, relatives), *_ = learnt
    assert torch.equal(shown, expected)
    assert references.shape == shown.shape
    assert steps == 40
    trained = known(data, run.device)
    assert enough == pytest.approx(accuracy(run.generator, trained))
    assert torch.equal(others, trained["prototype"])
    expected_relatives = Relatives(data, run.device, "七丂", references)
    assert relatives.names == expected_relatives.names
    assert relatives.distance == expected_relatives.distance
    assert f"learning 七丂, and most beside it {', '.join(relatives.names[:3])}" in out
    Path("七").write_text("丁")  # a file of that name says nothing of it
    assert command(*few, "--shows", "七", "--adapt", "3")[0] == 0
    assert torch.equal(learnt[-1][0], expected[:1])
    assert learnt[-1][2] == 3
    assert command(*few, "--reference", "glyph.png", "--shows", "丁丁")[0] == 0
    assert torch.equal(learnt[-1][0][0], learnt[-1][0][1])


def test_a_prototype_font_says_what_a_reference_shows(command, tmp_path, monkeypatch):
    from tiny_fonts import CROSS, FRAME, make_font, save

    learnt = []
    monkeypatch.setattr(runs.Run, "adapted", lambda self, *given: learnt.append(given) or self)
    save(make_font({"龍": CROSS, "虎": FRAME}), tmp_path / "other.ttf")
    given = ["--prototype-font", str(tmp_path / "other.ttf"), "--characters", "龍"]
    status, out, err = command(*given, "--shows", "虎", "--out", "one.ttf")
    assert (status, "1 characters" in out) == (0, True)
    assert "no style that was trained on has 虎: the references are learnt alone" in err
    drawn = prototypes.from_font(tmp_path / "other.ttf", 0, 16, ["虎"]).images
    assert torch.equal(learnt[0][0], to_floats(drawn["虎"][None, ..., None]))
    assert learnt[0][5] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shows", "一丁"], "--shows must name one character for each --reference, 1 in"),
        (["--shows", " "], "--shows must name one character for each --reference, 1 in"),
        (["--shows", "龍"], "does not draw 龍 of --shows: give a --prototype-font"),
        (["--adapt", "3"], "--adapt needs --shows"),
        (["--shows", "一", "--adapt", "-3"], "--adapt must be at least 0"),
        (["--out", "font.otf"], "--out must end in .ttf"),
        (["--style", " "], "--style must name a style, as Regular or Bold do, not ' '"),
        (["--prototype-face", "0"], "--prototype-face needs --prototype-font"),
        (["--reference", "absent.png"], "absent.png"),
        (["--weights", "ema"], "keeps no weights 'ema'"),
    ],
)
def test_mistakes_are_named(command, arguments, words):
    status, _, err = command(*arguments)
    assert status == 2
    assert words in err


def test_libraries_that_are_missing_are_named(command, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name)
    )
    status, _, err = command()
    assert status == 2
    assert "gan font needs scipy: pip install 'gan[font]'" in err


def test_another_recipe_has_no_font(trained, capsys):
    trained("dcgan")
    assert main(["font", "run", "--reference", "glyph.png"]) == 2
    assert "a font takes a run with recipe=wnet" in capsys.readouterr().err


def test_names_are_ascii_where_they_must_be_and_plain_where_they_are_empty():
    table = Names("文鼎 體", "Bold").table()
    assert table["fullName"] == "文鼎 體 Bold"
    assert table["psName"].isascii()
    assert "licenseDescription" not in table
    assert Names("A", licence="mine", licence_url="there").table()["licenseInfoURL"] == "there"


@pytest.mark.parametrize(
    ("style", "said", "weight", "selection", "mac"),
    [
        ("Regular", ("X", "Regular", None, None), 400, 1 << 6, 0),
        ("Bold", ("X", "Bold", None, None), 700, 1 << 5, 1),
        ("Bold Italic", ("X", "Bold Italic", None, None), 700, 1 << 5 | 1, 3),
        ("Light", ("X Light", "Regular", "X", "Light"), 300, 1 << 6, 0),
        (
            "Extra Light Italic",
            ("X Extra Light", "Italic", "X", "Extra Light Italic"),
            200,
            1,
            2,
        ),
        ("bold", ("X", "Bold", None, None), 700, 1 << 5, 1),
        ("BOLD-italic", ("X", "Bold Italic", None, None), 700, 1 << 5 | 1, 3),
        ("regular", ("X", "Regular", None, None), 400, 1 << 6, 0),
        ("Regular Italic", ("X", "Italic", "X", "Regular Italic"), 400, 1, 2),
        ("light italic", ("X light", "Italic", "X", "light italic"), 300, 1, 2),
        ("Oblique", ("X", "Italic", "X", "Oblique"), 400, 1 << 9 | 1, 2),
        ("Bold Oblique", ("X", "Bold Italic", "X", "Bold Oblique"), 700, 1 << 9 | 1 << 5 | 1, 3),
        ("Light oblique", ("X Light", "Italic", "X", "Light oblique"), 300, 1 << 9 | 1, 2),
    ],
)
def test_a_style_is_what_programs_choose_the_face_by(tmp_path, style, said, weight, selection, mac):
    truetype.write(tmp_path / "x.ttf", {"一": outlines.glyph([])}, Names("X", style))
    with TTFont(tmp_path / "x.ttf") as made:
        assert tuple(made["name"].getDebugName(key) for key in (1, 2, 16, 17)) == said
        assert made["OS/2"].usWeightClass == weight
        assert made["OS/2"].fsSelection == selection | 1 << 7
        assert made["head"].macStyle == mac


def test_a_usual_style_has_its_usual_name_however_it_is_written():
    table = Names("X", " bold").table()
    assert (table["fullName"], table["psName"]) == ("X Bold", "X-Bold")
    assert Names("X", "REGULAR").table()["fullName"] == "X"


@pytest.mark.parametrize(
    ("weight", "styles"),
    [
        (100, ["Thin"]),
        (200, ["Extra Light", "ultralight"]),
        (300, ["LIGHT"]),
        (400, ["Regular", "Normal", "Italic"]),
        (500, ["Medium Oblique"]),
        (600, ["SemiBold", "Demi-Bold"]),
        (700, ["bold italic"]),
        (800, ["Extra Bold", "UltraBold"]),
        (900, ["Black", "heavy"]),
        (950, ["ExtraBlack", "Ultra Black"]),
    ],
)
def test_a_style_has_the_weight_that_it_is_named_for(weight, styles):
    assert {Names("X", style).weight for style in styles} == {weight}


def test_families_of_other_names_have_other_names_for_postscript():
    said = [("我的字", "Regular"), ("他的字", "Regular"), ("我的字", "細"), ("我的字", "粗")]
    names = [Names(*one).table()["psName"] for one in said]
    assert len({*names}) == 4
    assert all(re.fullmatch(r"Font[0-9a-f]{8}-(Regular|Style)", name) for name in names)
    assert Names("我的 Hand").table()["psName"].startswith("Hand")


def test_characters_that_are_drawn_blank_are_not_taken_for_good(command, monkeypatch):
    def blank(self, prototypes, style):
        drawn = torch.where(prototypes < 0.7, -1.0, 1.0)
        drawn[blanks] = 1.0
        return drawn

    monkeypatch.setattr(runs.Run, "dressed", blank)
    blanks = slice(0, 1)
    status, out, err = command("--out", "a.ttf", "--characters", "".join(CHARACTERS))
    assert (status, Path("a.ttf").exists()) == (1, False)  # one of twenty
    assert f"the worst: {CHARACTERS[0]} 0.000" in err
    blanks = slice(None)
    status, _, err = command("--out", "b.ttf")
    assert (status, Path("b.ttf").exists()) == (1, False)
    assert "to an SSIM of 0.000" in err


def test_freetype_leaves_the_outlines_where_they_are(tmp_path):
    """Without a program of its own FreeType would fit the outlines to the pixel grid."""
    middle = [(100.0 + 300j), (900.0 + 300j), (900.0 + 340j), (100.0 + 340j)]
    bar = [[(a, b) for a, b in zip(middle[::-1], [*middle[-2::-1], middle[-1]], strict=True)]]
    truetype.write(tmp_path / "bar.ttf", {"一": outlines.glyph(bar)}, Names("Bar"))
    ink = truetype.rendered(tmp_path / "bar.ttf", ["一"], 32)[0, 0]
    rows = ink[:, 16]  # 300 to 340 of 1024: from row 18.625 to 17.375 below the top of 28
    assert rows[17].item() == pytest.approx(0.625, abs=0.02)
    assert rows[18].item() == pytest.approx(0.625, abs=0.02)
    assert rows.sum().item() == pytest.approx(1.25, abs=0.03)


def test_the_stack_of_the_program_is_as_deep_as_is_said(tmp_path):
    truetype.write(tmp_path / "x.ttf", {"一": outlines.glyph([])}, Names("X"))
    takes = {"SCANCTRL": 1, "SCANTYPE": 1, "INSTCTRL": 2}
    depths = [0]
    with TTFont(tmp_path / "x.ttf") as made:
        for word in made["prep"].program.getAssembly():
            change = 1 if word.isdigit() else -takes.get(word.split("[")[0], 0)
            depths.append(depths[-1] + change)
        assert made["maxp"].maxStackElements == max(depths) == 2
    assert depths[-1] == 0


def test_a_likeness_counts_every_character(tmp_path):
    truetype.write(tmp_path / "one.ttf", {"一": outlines.glyph([])}, Names("One"))
    blank = torch.zeros(1, 32, 32)
    with pytest.raises(ValueError, match="lacks 1 characters: 丁"):
        truetype.likeness(tmp_path / "one.ttf", {"一": blank, "丁": blank})
