"""More styles for training: another folder's glyphs beside those that are split."""

import shutil
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
from gan.data.joined import Extended, Joined, join, open_joined
from gan.data.sheets import GlyphSheets
from gan.data.sources import embedded, open_store
from gan.data.store import Record, Rejected, Store, StoreError
from gan.data.triples import MORE, Glyphs, own
from gan.metrics import glyph_judges
from gan.metrics.glyph_evaluation import cells_of


class More(TinyGlyphs):
    """Styles of other drawings, with the characters in another order and one more."""

    def __init__(self):
        super().__init__()
        styles = ["style03", "new", "twin", "partial", "other"]
        characters = [*reversed(self.names["character"]), "永"]
        self.names = {"style": styles, "character": characters}
        families = ["far", "near", "near", "near", "style05"]
        told = zip(styles, families, strict=True)
        self.facts = {"styles": {s: {"family": f} for s, f in told}, "prototype": "new"}

    def __len__(self):
        return 105

    def __iter__(self):
        glyphs = {item.key: item.image for item in TinyGlyphs()}
        for style, name in enumerate(self.names["style"]):
            for character, drawn in enumerate(self.names["character"]):
                own = glyphs.get(f"style09/{ord(drawn):06x}", np.zeros(self.shape, np.uint8))
                image = own if name == "twin" else np.roll(own, 1 + style, 0)
                if name == "partial" and character % 4 == 3:
                    yield Rejected(f"partial/{ord(drawn):06x}", "not mapped to a glyph")
                    continue
                fields = {"style": style, "character": character}
                yield Record(f"{name}/{ord(drawn):06x}", image, fields)


class Shifted(More):
    """The same styles, drawn elsewhere."""

    by = 5

    def __iter__(self):
        for item in super().__iter__():
            drawn = isinstance(item, Record)
            yield item._replace(image=np.roll(item.image, self.by, 1)) if drawn else item


class Sideways(Shifted):
    by = 1


def joined(path, more=None, **facts):
    more = more or More()
    for style, changed in facts.items():
        more.facts["styles"][style].update(changed)
    build(Joined(TinyGlyphs(), more), path, on_error="skip")
    return Store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return joined(tmp_path_factory.mktemp("joined") / "joined.lmdb")


def test_new_styles_follow_with_the_characters_of_the_first(store):
    first, more = TinyGlyphs(), More()
    assert store.names["character"] == first.names["character"]
    assert store.names["style"] == [*first.names["style"], "style03+", "new", "other"]
    wanted = {item.key: item for item in first}
    for item in more:
        name = item.key.partition("/")[0]
        if name not in ("twin", "partial") and not item.key.endswith("6c38"):
            wanted[item.key.replace("style03", "style03+")] = item
    assert store.count == len(wanted) == 17 * 20
    images = np.empty((store.count, *store.shape), np.uint8)
    store.read(np.arange(store.count), images)
    styles, characters = (
        [store.names[field][value] for value in store.fields[field]]
        for field in ("style", "character")
    )
    for image, style, character in zip(images, styles, characters, strict=True):
        np.testing.assert_array_equal(image, wanted[f"{style}/{ord(character):06x}"].image)
    assert [tuple(one) for one in store.rejected] == [
        ("partial", "tiny glyphs: draws 15 of the 20 characters"),
        ("twin", "tiny glyphs: near-duplicate of style00 of tiny glyphs"),  # as all of these are
    ]


def test_only_styles_of_the_first_are_held_out_and_their_families_with_them(store, glyph_store):
    plain, seen = Glyphs(Store(glyph_store)), set()
    for split in range(40):
        more, plain = Glyphs(store, split=split), Glyphs(Store(glyph_store), split=split)
        for part in ("validation", "test"):
            np.testing.assert_array_equal(getattr(more.styles, part), getattr(plain.styles, part))
        held_out = {*plain.styles.validation, *plain.styles.test}
        new = {14, 15} if 5 in held_out else {14, 15, 16}  # 16 is of the family of 5
        assert {*more.styles.train} == {*plain.styles.train} | new
        assert (np.diff(more.styles.train) > 0).all()
        assert set(more.pairs[:, 0]) == {*more.styles.train}
        seen.add(5 in held_out)
    assert seen == {False, True}
    assert plain.facts["styles"] + len(new) == more.facts["styles"]
    assert Glyphs(store, style="new").styles.train.tolist() == [15]


def test_families_are_known_by_series_and_copyright_as_well(tmp_path):
    first = TinyGlyphs()
    first.facts["styles"]["style05"].update(name="Betaface Black", copyright="2001 A. Drawer")
    first.facts["styles"]["style07"].update(name="Gamma", copyright="(c) Someone Else")
    more = More()
    told = more.facts["styles"]
    told["new"].update(name="Betaface Thin", copyright="nobody")
    told["other"].update(family="alone", name="Delta", copyright="copyright Else, Someone 2024")
    training = {
        name: style.get("training") for name, style in Joined(first, more).facts["styles"].items()
    }
    assert training.pop("style03+") == []
    assert training.pop("new") == ["style05"]
    assert training.pop("other") == ["style07"]
    assert set(training.values()) == {None}
    told["twin"].update(name="Gamma Bold")  # is not used, but of the family of `new`
    assert Joined(first, more).facts["styles"]["new"]["training"] == ["style05", "style07"]
    build(Joined(first, more), tmp_path / "a.lmdb", on_error="skip")
    for split in range(20):
        glyphs = Glyphs(Store(tmp_path / "a.lmdb"), split=split)
        held_out = {*glyphs.styles.validation, *glyphs.styles.test}
        assert (15 in glyphs.styles.train) == (not held_out & {5, 7})
        assert (16 in glyphs.styles.train) == (7 not in held_out)


def test_what_relates_a_family_counts_for_all_of_it_in_several_sources(tmp_path):
    """`new` of the second folder is a sibling of that of the first, which is by a known drawer."""

    def facts(drawer, sibling):
        first, more, other = TinyGlyphs(), More(), Sideways()
        first.facts["styles"]["style05"].update(name="Beta", copyright="2001 A. Drawer")
        more.facts["styles"]["new"].update(name="Alpha", copyright=drawer)
        other.facts["styles"]["new"].update(name="Alpha Bold", copyright=sibling)
        both = Joined(Joined(first, more), other)
        path = tmp_path / f"{drawer}{sibling}.lmdb"
        build(both, path, on_error="skip")
        found = {id: told.get("training") for id, told in both.facts["styles"].items()}
        return found, Store(path)

    for drawer, sibling in (("A. Drawer 2001", "nobody"), ("nobody", "A. Drawer 2001")):
        found, store = facts(drawer, sibling)
        assert found["new"] == found["new+"] == ["style05"]
        assert found["other"] == found["other+"] == ["style05"]  # its family
        assert found["style03+"] == []
        assert found["style05"] is None
        for split in range(20):
            glyphs = Glyphs(store, split=split)
            trained = {glyphs.style_names[n] for n in glyphs.styles.train}
            held_out = 5 in {*glyphs.styles.validation, *glyphs.styles.test}
            assert {"new", "new+"} <= trained or held_out
            assert not ({"new", "new+"} & trained and held_out)
    found, _ = facts("nobody", "somebody")
    assert found["new"] == found["new+"] == []
    first, more = TinyGlyphs(), More()
    first.facts["styles"]["style05"].update(name="Beta", copyright="2001 A. Drawer")
    more.facts["styles"]["twin"].update(copyright="A. Drawer 2001")  # is not used: it is left out
    one = Joined(first, more)
    for both in (one, Joined(one, Sideways())):
        assert both.facts["styles"]["new"]["training"] == ["style05"]


def test_the_prototype_is_of_the_first_and_its_family_is_never_trained_on(store, tmp_path):
    same = joined(tmp_path / "a.lmdb", new={"family": "style00"})
    assert 15 not in Glyphs(same).styles.train
    with pytest.raises(StoreError, match=r"data\.prototype=new is a style of data\.more"):
        Glyphs(store, prototype="new")


def test_every_style_has_an_id_of_its_own():
    more = More()
    more.names["style"][:2] = ["style03", "style03+"]
    more.facts["styles"]["style03+"] = {"family": "near"}
    twice = Joined(Joined(TinyGlyphs(), more), Shifted())
    names = twice.names["style"]
    assert names[14:] == ["style03+", "style03++", "other", "style03+++", "new", "twin", "other+"]
    assert set(twice.facts["styles"]) == set(names)
    keys = [item.key for item in twice if isinstance(item, Record)]
    assert len(keys) == len(set(keys)) == 21 * 20


def test_a_copy_under_an_id_with_a_sign_is_known():
    first, more = TinyGlyphs(), More()
    first.names["style"][9] = "+b"
    first.facts["styles"]["+b"] = {"family": "b"}
    assert Joined(first, more).refused["twin"].startswith("near-duplicate of")


def test_fingerprint_changes_with_both():
    first, more = TinyGlyphs(), More()
    plain = Joined(first, more).fingerprint()
    assert Joined(TinyGlyphs(), More()).fingerprint() == plain
    more.fingerprint = lambda: "other"
    changed = Joined(first, more).fingerprint()
    first.fingerprint = lambda: "another"
    assert len({plain, changed, Joined(first, more).fingerprint()}) == 3


def test_a_font_of_the_embedded_sheets_drawn_anew_is_not_new():
    """Ink moved by 0.3 of a pixel, as hinting may move it at another size."""
    glyphs = GlyphSheets(embedded("hanzi"), 32)
    moved = GlyphSheets(embedded("hanzi"), 32)
    moved._cells = lambda id, entry: _moved(GlyphSheets._cells(moved, id, entry))
    first = {item.key: item.image.astype(int) for item in glyphs}
    distances = [abs(first[item.key] - item.image).mean() / 255 for item in moved]
    assert np.reshape(distances, (32, 256)).mean(1).max() > 0.03  # of one font 0.02 is far
    with pytest.raises(ValueError, match="near-duplicate of aoyagi-kouzan"):
        Joined(glyphs, moved)


def _moved(cells):
    return (0.7 * cells + 0.3 * np.roll(cells, 1, 2)).astype(np.uint8)


class Others(TinyGlyphs):
    """Other characters of the same styles, one in three in each but the first; and a new style."""

    def __init__(self, first=0x5000):
        super().__init__()
        self.first = first
        self.names["style"] = [*reversed(self.names["style"]), "nobody's"]
        self.names["character"] = [chr(first + n) for n in range(12)]

    def __iter__(self):
        for style, name in enumerate(self.names["style"]):
            for character in range(12):
                if name == "style00" or character % 3 == style % 3:
                    image = np.full(self.shape, 16 * character + style, np.uint8)
                    fields = {"style": style, "character": character}
                    yield Record(f"{name}/{self.first + character:06x}", image, fields)
                elif character == 0:
                    yield Rejected(f"{name}/{self.first:06x}", "drawn empty")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    path = tmp_path_factory.mktemp("extended") / "extended.lmdb"
    build(join(TinyGlyphs(), Others()), path, on_error="skip")
    return Store(path)


def test_other_characters_of_the_same_styles_are_added(extended):
    first, more = TinyGlyphs(), Others()
    assert extended.names["style"] == first.names["style"]
    assert extended.names["character"] == first.names["character"] + more.names["character"]
    assert extended.facts[MORE] == "".join(more.names["character"])
    added = [item for item in more if isinstance(item, Record) and "nobody" not in item.key]
    assert extended.count == len(first) + len(added) == 280 + 12 + 13 * 4
    images = np.empty((extended.count, *extended.shape), np.uint8)
    extended.read(np.arange(extended.count), images)
    numbers = zip(extended.fields["style"], extended.fields["character"], strict=True)
    found = {
        f"{extended.names['style'][s]}/{ord(extended.names['character'][c]):06x}": image
        for (s, c), image in zip(numbers, images, strict=True)
    }
    for item in [*first, *added]:
        np.testing.assert_array_equal(found[item.key], item.image)
    assert not extended.rejected  # a sheet's blanks are no faults of the joined glyphs


def test_added_characters_are_trained_on_and_neither_held_out_nor_measured(extended, glyph_store):
    for split in range(5):
        more, plain = Glyphs(extended, split=split), Glyphs(Store(glyph_store), split=split)
        for part in ("train", "validation", "test"):
            for one, other in ((more.measured, plain.split), (more.styles, plain.styles)):
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
        assert more.split.train.tolist() == [*plain.split.train, *range(20, 32)]
        for part in ("validation", "test"):
            np.testing.assert_array_equal(getattr(more.split, part), getattr(plain.split, part))
        assert more.facts["characters"] == plain.facts["characters"] + 12
        trained = {tuple(pair) for pair in more.pairs}
        added = {pair for pair in trained if pair[1] >= 20}
        assert trained - added == {tuple(pair) for pair in plain.pairs}
        assert len(added) == 4 * len(more.styles.train)
        assert {style for style, _ in trained} == {*more.styles.train}
        cells, numbers = cells_of(more)
        wanted, known = cells_of(plain)
        np.testing.assert_array_equal(numbers, known)
        np.testing.assert_array_equal(cells.glyphs, wanted.glyphs)
        np.testing.assert_array_equal(cells.references, wanted.references)


def test_judges_learn_no_added_characters(extended, monkeypatch):
    monkeypatch.setattr(glyph_judges, "judge_of", lambda *given: given)
    _, _, rows, labels, *_ = glyph_judges.glyph_judge(Glyphs(extended), None, None, print)
    assert rows.tolist() == [*range(280)]
    assert [{*labels[field]} for field in ("style", "character")] == [{*range(14)}, {*range(20)}]


def test_another_style_draws_what_few_do(extended):
    glyphs = Glyphs(extended)
    everything = np.arange(len(glyphs))
    plan = glyphs.plan(0, 0, everything)
    style, character = glyphs.pairs.T
    named = [extended.fields[field] for field in ("style", "character")]
    other = plan.images["other"]  # [B, 3]: target, mate, reference
    assert (other >= 0).all()
    assert (named[1][other[:, 0]] == character).all()
    seen = set()
    for epoch in range(30):
        drawn = named[0][glyphs.plan(0, epoch, everything).images["other"][:, 0]]
        seen |= {*zip(character.tolist(), drawn.tolist(), strict=True)}
    for one in glyphs.split.train:
        wanted = [s for s in glyphs.styles.train if glyphs.rows[s, one] >= 0]
        assert {s for c, s in seen if c == one} == {*wanted}, one
    assert (named[1][plan.images["reference"]][character < 20] < 20).all()
    assert (named[1][plan.images["reference"]][character >= 20] >= 20).mean() > 0.1
    changed = named[0][other[:, 0]] != style
    assert changed[character < 20].mean() > 0.8
    assert changed[character >= 20].mean() > 0.3  # one in three or four of a character is its own


def test_shots_are_characters_that_every_style_has(extended):
    glyphs = Glyphs(extended, style="style03", shots=6)
    assert len(glyphs) == 6
    assert (glyphs.split.train < 20).all()


def test_styles_and_characters_are_joined_in_their_order(tmp_path):
    both = join(join(TinyGlyphs(), More()), Others())
    assert isinstance(both, Extended)
    assert measured(both) == TinyGlyphs().names["character"]
    assert both.names["style"][14:] == ["style03+", "new", "other"]
    twice = join(both, Others(0x5006))  # six of them are there
    assert measured(twice) == measured(both)
    assert twice.facts[MORE] == "".join(chr(0x5000 + n) for n in range(18))
    build(twice, tmp_path / "twice.lmdb", on_error="skip")
    assert Store(tmp_path / "twice.lmdb").count == 17 * 20 + (12 + 13 * 4) + (6 + 13 * 2)
    with pytest.raises(ValueError, match=r"tiny glyphs has all characters of tiny glyphs"):
        join(twice, Others())
    after = join(join(TinyGlyphs(), Others()), More())  # whose styles have no other characters
    assert isinstance(after, Joined)
    assert after.names["style"] == both.names["style"]
    build(after, tmp_path / "after.lmdb", on_error="skip")
    glyphs = Glyphs(Store(tmp_path / "after.lmdb"))
    assert (glyphs.rows[14:, 20:] < 0).all()
    assert (glyphs.rows[14:, :20] >= 0).all()
    prints = [one.fingerprint() for one in (both, twice, after)]
    assert len({*prints, join(TinyGlyphs(), Others()).fingerprint()}) == 4


def measured(source):
    return own(source.names["character"], source.facts)


def test_styles_of_one_id_and_other_names_are_others():
    more = Others()
    more.facts["styles"]["style03"] = {"name": "Somebody Else's", "family": "else"}
    both = join(TinyGlyphs(), more)
    assert both.styles == {*TinyGlyphs().names["style"]} - {"style03"}
    assert "12 characters of tiny glyphs are for training, in 13 of 14 styles" in both.summary()
    keys = [item.key for item in both if isinstance(item, Record)]
    assert not [key for key in keys if key.startswith("style03/005")]
    assert [key for key in keys if key.startswith("style04/005")]


def test_characters_that_no_trained_style_draws_are_no_classes(extended):
    glyphs = Glyphs(extended, style="style05", label="character")
    drawn = {*glyphs.pairs[:, 1]}
    assert {*glyphs.split.train} == drawn
    assert glyphs.facts["classes"] == len(drawn) == len(glyphs.measured.train) + 4


def test_characters_that_the_standard_font_lacks_are_not_added():
    more = Others()
    more.names["style"][13] = "another"
    with pytest.raises(ValueError, match="not draw them in its standard font, style00"):
        join(TinyGlyphs(), more)


def test_what_cannot_be_joined_is_refused():
    images = SimpleNamespace(name="image folder photos", names={})
    with pytest.raises(ValueError, match="image folder photos holds none"):
        Joined(TinyGlyphs(), images)
    with pytest.raises(
        ValueError, match=r"no style .* style00 \(near-dup.*00 of tiny.*; and 6 more"
    ):
        Joined(TinyGlyphs(), TinyGlyphs())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of fonts: the second has a twin, one that lacks a character, and a new one."""
    first, more = tmp_path / "first", tmp_path / "more"
    save(make_font({"一": BAR, "丁": CROSS, "三": FRAME}, name="Whole"), first / "a.ttf")
    save(make_font({"一": SQUARE, "丁": BAR}, name="Half"), first / "b.ttf")
    save(make_font(dict.fromkeys("一丁三", ()), name="Blank"), more / "0.ttf")
    save(make_font({"一": BAR, "丁": CROSS, "三": FRAME, "上": BAR}, name="Twin"), more / "a.ttf")
    save(make_font({"丁": FRAME}, name="Less"), more / "c.ttf")
    save(make_font({"一": CROSS, "丁": SQUARE, "三": BAR}, name="New"), more / "d.ttf")
    return first, more


def test_folders_of_fonts_are_joined_and_kept(folders, tmp_path, capsys):
    first, more = folders
    data = tmp_path / "data"

    def opened(characters="一丁三"):
        return open_joined(first, [str(more)], 8, 1, characters=characters, folder=data)

    store = opened()
    assert store.names == {"style": ["a", "b", "d"], "character": list("一丁三")}
    told = store.facts["styles"]
    assert [told[id].get("training") for id in "abd"] == [None, None, []]
    assert [store.fields["style"].tolist().count(style) for style in range(3)] == [3, 2, 3]
    said = capsys.readouterr().err
    assert "building" in said
    assert "1 of 3 styles of fonts more are for training; left out: " in said
    for reason in (
        "0 (draws none of 3 samples",
        "a (near-duplicate of a of fonts first)",
        "c (draws 1",
    ):
        assert reason in said
    store.close()
    again = opened()
    assert again.path == store.path
    assert not capsys.readouterr().err
    others = [open_store(first, 8, 1, characters="一丁三", folder=data), opened("一丁")]
    assert len({one.path for one in (store, *others)}) == 3
    for one in (again, *others):
        one.close()
    save(make_font({"一": CROSS, "丁": SQUARE, "三": CROSS}, name="New"), more / "d.ttf")
    assert "built again" in (opened(), capsys.readouterr().err)[1]


def test_several_folders_are_joined_in_their_order(folders, tmp_path):
    first, more = folders
    third = tmp_path / ("third" * 30)
    save(make_font({"一": FRAME, "丁": BAR, "三": CROSS}, name="Third"), third / "a.ttf")
    save(make_font({"一": CROSS, "丁": SQUARE, "三": BAR}, name="Twin"), third / "e.ttf")
    given = [str(more.rename(tmp_path / ("more" * 30))), str(third)]
    store = open_joined(first, given, 8, 1, characters="一丁三", folder=tmp_path)
    assert store.names["style"] == ["a", "b", "d", "a+"]
    many = [*given, str(shutil.copytree(third, tmp_path / "fourth"))]
    less = tmp_path / "less"
    save(make_font({"一": FRAME}, name="Less"), less / "a.ttf")
    with pytest.raises(
        ValueError, match=r"less: no font in .* draws all 3.*with 1, and styles join"
    ):
        open_joined(first, [str(less)], 8, 1, characters="一丁三", folder=tmp_path)
    with pytest.raises(ValueError, match="no style of fonts fourth can join .*near-duplicate"):
        open_joined(first, many, 8, 1, characters="一丁三", folder=tmp_path)
    assert not [path for path in tmp_path.iterdir() if "building" in path.name]
    assert 120 < len(store.path.name) < 145


def test_what_more_names_is_said(folders, tmp_path):
    first, more = folders
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for path, other, words in (
        (first, "nowhere", r"hanzi-web, hanzi-more\); at nowhere there is nothing"),
        (first, "hanzi_web", "there is nothing; did you mean 'hanzi-web'"),
        (first, str(tmp_path / "a.png"), r"at .*a\.png that is none"),
        (tmp_path / "a.png", str(more), r"data\.path=.*a\.png is none: data\.more=null"),
    ):
        with pytest.raises(ValueError, match=words):
            open_joined(path, [other], 8, 1, folder=tmp_path / "data")


def test_embedded_styles_are_joined(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hanzi-web").mkdir()  # not what is meant
    joined, plain = hanzi(16, 1, more="hanzi-web"), hanzi(16, 1)
    assert hanzi(16, 1, more=["hanzi-web"]).store.path == joined.store.path
    assert joined.store.path.name == "hanzi+hanzi-web-16x16x1.lmdb"
    assert joined.store.count == 66 * 256
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(joined.styles, part), getattr(plain.styles, part))
    assert len(joined.styles.train) >= len(plain.styles.train) + 33
    everything = hanzi(16, 1, more=["hanzi-more", "hanzi-web"])  # which is joined first
    drawn = sum(isinstance(item, Record) for item in GlyphSheets(embedded("hanzi-more"), 16))
    assert everything.store.count == 66 * 256 + drawn
    assert (everything.rows[everything.prototype] >= 0).all()
    assert everything.facts["characters"] == plain.facts["characters"] + 1327
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(everything.split, part), getattr(plain.split, part))
        np.testing.assert_array_equal(getattr(everything.styles, part), getattr(plain.styles, part))
    with pytest.raises(ValueError, match="glyph sheets hanzi-web"):
        fonts_entry(str(embedded("hanzi-web")), 16, 1, more="hanzi-web")
