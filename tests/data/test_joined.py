"""More styles for training: another folder's glyphs beside those that are split."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_fonts import BAR, CROSS, FRAME, SQUARE, make_font, save
from tiny_glyphs import TinyGlyphs

from gan.data.building import build
from gan.data.entries import fonts as fonts_entry
from gan.data.entries import hanzi
from gan.data.joined import Joined, open_joined
from gan.data.sources import embedded, open_store
from gan.data.store import Record, Rejected, Store
from gan.data.triples import Glyphs


class More(TinyGlyphs):
    """Three styles of other weights and of fewer characters in another order, and one twin."""

    def __init__(self):
        super().__init__()
        styles = ["style03", "new", "twin", "other"]
        characters = [self.names["character"][n] for n in (19, 4, 7, 0, 1, 2)] + ["永"]
        self.names = {"style": styles, "character": characters}
        families = ["far", "near", "near", "style05"]
        told = zip(styles, families, strict=True)
        self.facts = {"styles": {s: {"family": f} for s, f in told}, "prototype": "new"}

    def __len__(self):
        return 28

    def __iter__(self):
        glyphs = {item.key: item.image for item in TinyGlyphs()}
        for style, name in enumerate(self.names["style"]):
            for character, drawn in enumerate(self.names["character"]):
                own = glyphs.get(f"style09/{ord(drawn):06x}", np.zeros(self.shape, np.uint8))
                image = own if name == "twin" else np.roll(own, 1 + style, 0)
                if (name, drawn) == ("other", self.names["character"][0]):
                    yield Rejected(f"other/{ord(drawn):06x}", "not mapped to a glyph")
                    continue
                fields = {"style": style, "character": character}
                yield Record(f"{name}/{ord(drawn):06x}", image, fields)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("joined") / "joined.lmdb"
    build(Joined(TinyGlyphs(), More()), path, on_error="skip", progress=False)
    return Store(path)


def test_new_styles_follow_with_the_glyphs_that_both_have(store):
    first, more = TinyGlyphs(), More()
    assert store.names["character"] == first.names["character"]
    assert store.names["style"] == [*first.names["style"], "style03+", "new", "other"]
    wanted = {item.key: item for item in first}
    for item in more:
        name = item.key.partition("/")[0]
        if isinstance(item, Record) and name != "twin" and not item.key.endswith("6c38"):
            wanted[item.key.replace("style03", "style03+")] = item
    assert store.count == len(wanted) == 280 + 6 + 6 + 5
    images = np.empty((store.count, *store.shape), np.uint8)
    store.read(np.arange(store.count), images)
    styles, characters = (
        [store.names[field][value] for value in store.fields[field]]
        for field in ("style", "character")
    )
    for image, style, character in zip(images, styles, characters, strict=True):
        np.testing.assert_array_equal(image, wanted[f"{style}/{ord(character):06x}"].image)
    assert [tuple(one) for one in store.rejected] == [
        ("twin+", "near-duplicate of style00"),  # as all of these are of each other
        ("other/004e13", "not mapped to a glyph"),
    ]


def test_only_styles_of_the_first_are_held_out_and_their_families_with_them(store, glyph_store):
    plain, seen = Glyphs(Store(glyph_store)), set()
    for split in range(40):
        joined, plain = Glyphs(store, split=split), Glyphs(Store(glyph_store), split=split)
        for part in ("validation", "test"):
            np.testing.assert_array_equal(getattr(joined.styles, part), getattr(plain.styles, part))
        held_out = {*plain.styles.validation, *plain.styles.test}
        new = {14, 15} if 5 in held_out else {14, 15, 16}  # 16 is of the family of 5
        assert {*joined.styles.train} == {*plain.styles.train} | new
        assert (np.diff(joined.styles.train) > 0).all()
        assert set(joined.pairs[:, 0]) == {*joined.styles.train}
        seen.add(5 in held_out)
    assert seen == {False, True}
    assert plain.facts["styles"] + len(new) == joined.facts["styles"]
    assert Glyphs(store, style="new").styles.train.tolist() == [15]


def test_the_prototypes_family_is_never_trained_on(tmp_path):
    more = More()
    more.facts["styles"]["new"]["family"] = "style00"
    build(Joined(TinyGlyphs(), more), tmp_path / "a.lmdb", on_error="skip", progress=False)
    assert 15 not in Glyphs(Store(tmp_path / "a.lmdb")).styles.train


def test_what_cannot_be_joined_is_refused():
    images = SimpleNamespace(name="image folder photos", names={})
    with pytest.raises(ValueError, match="image folder photos holds none"):
        Joined(TinyGlyphs(), images)
    foreign = More()
    foreign.names = {**foreign.names, "character": ["永"]}
    with pytest.raises(ValueError, match="tiny glyphs draws none of the characters"):
        Joined(TinyGlyphs(), foreign)
    with pytest.raises(ValueError, match="tiny glyphs has no style that tiny glyphs lacks"):
        list(Joined(TinyGlyphs(), TinyGlyphs()))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of fonts; no font of the second draws all characters of the first."""
    first, more = tmp_path / "first", tmp_path / "more"
    save(make_font({"一": BAR, "丁": CROSS, "三": FRAME}, name="Whole"), first / "a.ttf")
    save(make_font({"一": SQUARE, "丁": BAR}, name="Half"), first / "b.ttf")
    save(make_font({"一": SQUARE, "丁": BAR, "上": BAR}, name="Twin"), more / "a.ttf")
    save(make_font({"丁": FRAME}, name="Less"), more / "c.ttf")
    return first, more


def test_folders_of_fonts_are_joined_and_kept(folders, tmp_path, capsys):
    first, more = folders
    data = tmp_path / "data"

    def opened(characters="一丁三"):
        return open_joined(first, [str(more)], 8, 1, characters=characters, folder=data)

    store = opened()
    assert store.names == {"style": ["a", "b", "c"], "character": list("一丁三")}
    told = store.facts["styles"]
    assert [told[id].get("training") for id in "abc"] == [None, None, True]
    assert [store.fields["style"].tolist().count(style) for style in range(3)] == [3, 2, 1]
    assert "building" in capsys.readouterr().err
    store.close()
    again = opened()
    assert again.path == store.path
    assert not capsys.readouterr().err
    others = [open_store(first, 8, 1, characters="一丁三", folder=data), opened("一丁")]
    assert len({one.path for one in (store, *others)}) == 3
    for one in (again, *others):
        one.close()
    save(make_font({"丁": SQUARE}, name="Less"), more / "c.ttf")
    assert "built again" in (opened(), capsys.readouterr().err)[1]


def test_several_folders_are_joined_in_their_order(folders, tmp_path):
    first, more = folders
    third = tmp_path / "third"
    save(make_font({"一": FRAME, "丁": FRAME}, name="Third"), third / "a.ttf")
    save(make_font({"丁": FRAME}, name="Twin"), third / "d.ttf")
    given = [str(more), str(third)]
    store = open_joined(first, given, 8, 1, characters="一丁三", folder=tmp_path)
    assert store.names["style"] == ["a", "b", "c", "a+"]
    told = store.facts["styles"]
    assert [told[id].get("training") for id in ("a", "b", "c", "a+")] == [None, None, True, True]
    assert store.path.name.count("+") == 2


def test_what_more_names_is_said(folders, tmp_path):
    first, more = folders
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for path, other, words in (
        (first, "nowhere", r"nothing at nowhere: data\.more names .*hanzi-web"),
        (first, str(tmp_path / "a.png"), r"data.more joins"),
        (tmp_path / "a.png", str(more), r"data.more joins .* data.path=.*a.png is none"),
    ):
        with pytest.raises(ValueError, match=words):
            open_joined(path, [other], 8, 1, folder=tmp_path / "data")


def test_embedded_styles_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    joined, plain = hanzi(8, 1, more="hanzi-web"), hanzi(8, 1)
    assert hanzi(8, 1, more=["hanzi-web"]).store.path == joined.store.path
    assert joined.store.path.name == "hanzi+hanzi-web-8x8x1.lmdb"
    assert joined.store.count == 66 * 256
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(joined.styles, part), getattr(plain.styles, part))
    assert len(joined.styles.train) >= len(plain.styles.train) + 33
    with pytest.raises(ValueError, match="glyph sheets hanzi-web"):
        fonts_entry(str(embedded("hanzi-web")), 8, 1, more="hanzi-web")
