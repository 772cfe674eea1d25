"""Images of two kinds: cut in two or in two folders, matched by name, held out, and drawn."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan.data.sources import open_store
from gan.data.store import Store, StoreError
from gan.data.stream import Stream
from gan.data.translation import Halves, Pairs, Unpaired, open_pairs, open_unpaired
from gan.registry import create

CPU = torch.device("cpu")
SIZE = 8


def picture(path, *values, height=SIZE, width=SIZE, gradient=0):
    """Flat images side by side, each darkened towards its right by `gradient` a pixel."""
    parts = [np.full((height, width), value) - gradient * np.arange(width) for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(parts, 1).astype(np.uint8)).save(path, lossless=True)


@pytest.fixture
def beside(tmp_path):
    """Twenty images of two halves: n on the left, 200 - n on the right."""
    for n in range(20):
        picture(tmp_path / "beside" / f"{n:02d}.png", n, 200 - n)
    return tmp_path / "beside"


@pytest.fixture
def folders(tmp_path):
    """The same in two folders, with other suffixes and one folder deeper."""
    for n in range(20):
        picture(tmp_path / "two" / "photos" / "x" / f"{n:02d}.png", n)
        picture(tmp_path / "two" / "sketches" / "x" / f"{n:02d}.webp", 200 - n)
    return tmp_path / "two"


@pytest.fixture
def zipped(folders):
    """The two folders in an archive, inside the one that was packed."""
    path = folders.parent / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folders.rglob("*.*")):
            archive.write(file, file.relative_to(folders.parent))
    return path


def opened(path, **settings):
    return Pairs(open_pairs(path, SIZE, 1, folder=path.parent), **settings)


def values(dataset, rows):
    out = np.empty((len(rows), *dataset.store.shape), np.uint8)
    dataset.store.read(np.asarray(rows), out)
    return out[:, 0, 0, 0].astype(int)


# -- sources


def test_halves_are_cut_before_they_are_fitted(tmp_path):
    """An image scaled as a whole would mix both sides in the middle."""
    picture(tmp_path / "beside" / "a.png", 0, 255, height=32, width=48)
    left, right = Halves(tmp_path / "beside", SIZE, 1)
    assert (left.key, right.key) == ("a/a.png", "b/a.png")
    assert (left.fields, right.fields) == ({"label": 0}, {"label": 1})
    assert left.image.shape == right.image.shape == (SIZE, SIZE, 1)
    assert (left.image == 0).all()
    assert (right.image == 255).all()


def test_an_odd_width_is_named(tmp_path):
    picture(tmp_path / "beside" / "even.png", 0, 255)
    picture(tmp_path / "beside" / "odd.png", 7, width=9)
    with pytest.raises(ValueError, match=r"odd\.png: it is 9 pixels wide"):
        open_pairs(tmp_path / "beside", SIZE, 1, folder=tmp_path)
    store = open_pairs(tmp_path / "beside", SIZE, 1, "skip", folder=tmp_path)
    assert sorted(store.keys) == ["a/even.png", "b/even.png"]


def test_an_archive_gives_what_its_folder_gives(beside, tmp_path):
    with zipfile.ZipFile(tmp_path / "beside.zip", "w") as archive:
        for file in sorted(beside.iterdir()):
            archive.write(file, file.name)
    first = open_pairs(beside, SIZE, 3, folder=tmp_path)
    second = open_pairs(tmp_path / "beside.zip", SIZE, 3, folder=tmp_path)
    assert first.content_hash == second.content_hash


def test_a_store_is_kept_apart_from_that_of_the_whole_images_and_built_once(beside, tmp_path):
    paths = []
    for _ in range(2):
        store = open_pairs(beside, SIZE, 1, folder=tmp_path)
        paths.append((store.path, store.path.stat().st_mtime_ns))
        store.close()
    assert paths[0] == paths[1]
    again = open_pairs(store.path, SIZE, 1)
    assert Pairs(again).store.count == 40
    again.close()
    assert open_store(beside, SIZE, 1, folder=tmp_path).path != store.path
    picture(beside / "99.png", 1, 2)
    assert open_pairs(beside, SIZE, 1, folder=tmp_path).count == 42


@pytest.mark.parametrize(
    ("names", "opener", "message"),
    [
        (["a"], open_pairs, r"data=pairs needs two sub-folders.*has 1: a"),
        (["train", "val", "test"], open_pairs, r"has 3: test, train, val"),
        (["trainA", "trainB", "testA", "testB"], open_pairs, r"has 4: "),
        (["a"], open_unpaired, r"data=unpaired needs two sub-folders.*has 1: a"),
        (["trainA", "testA", "testB"], open_unpaired, r"has 3: testA, testB, trainA"),
        (["."], open_unpaired, r"data=unpaired needs two sub-folders of images, but .* has none"),
    ],
)
def test_other_sub_folders_are_refused_before_anything_is_built(tmp_path, names, opener, message):
    for name in names:
        picture(tmp_path / "images" / name / "1.png", 0, 1)
    with pytest.raises(ValueError, match=message):
        opener(tmp_path / "images", SIZE, 1, folder=tmp_path)
    assert not list(tmp_path.glob("*.lmdb"))


@pytest.mark.parametrize(
    ("opener", "dataset", "wanted"),
    [(open_pairs, Pairs, "data=pairs"), (open_unpaired, Unpaired, "data=unpaired")],
)
@pytest.mark.parametrize(
    "parts", [("test", "train"), ("Train", "VAL"), ("testing", "training"), ("test", "validation")]
)
@pytest.mark.parametrize("inner", [".", "horse"])
def test_parts_of_a_split_are_no_kinds(tmp_path, opener, dataset, wanted, parts, inner):
    """Images of two parts that share a name have nothing in common."""
    for part in parts:
        picture(tmp_path / "maps" / part / inner / "1.png", 0, 1)
    with pytest.raises(StoreError) as refused:
        opener(tmp_path / "maps", SIZE, 1, folder=tmp_path)
    message = str(refused.value)
    assert f"{wanted}: the sub-folders {' and '.join(parts)} of image folder maps are" in message
    assert "data.path must name one of them" in message
    assert ("trainA" in message) == (opener is open_unpaired)
    assert not list(tmp_path.glob("*.lmdb"))
    with pytest.raises(StoreError, match="are parts of a split"):
        dataset(open_store(tmp_path / "maps", SIZE, 1, folder=tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_a_path_that_names_a_part_of_a_split_is_read(tmp_path, packed):
    """Whatever the folders beside it are called, and those within, if not both as parts are."""
    for n in range(4):
        for part in ("train", "test"):
            picture(tmp_path / "maps" / part / f"{n}.png", n, 200 - n)
        for kind in ("a", "test"):
            picture(tmp_path / "kinds" / "train" / kind / f"{n}.png", n)
        picture(tmp_path / "kinds" / "test" / "a" / f"{n}.png", n)
    places = [tmp_path / name for name in ("maps", "kinds")]
    if packed:
        for place in places:
            with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
                for file in sorted(place.rglob("*.png")):
                    archive.write(file, file.relative_to(place))
        places = [place.with_suffix(".zip") for place in places]
    halves = Pairs(open_pairs(places[0] / "train", SIZE, 1, folder=tmp_path))
    assert halves.store.names == {"label": ["a", "b"]}
    assert halves.store.count == 8
    assert len(Pairs(open_pairs(places[1] / "train", SIZE, 1, folder=tmp_path))) == 2
    kinds = Unpaired(open_unpaired(places[1] / "train", SIZE, 1, folder=tmp_path))
    assert kinds.store.names == {"label": ["a", "test"]}


@pytest.mark.parametrize(
    ("opener", "wanted"), [(open_pairs, "data=pairs"), (open_unpaired, "data=unpaired")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_image_beside_the_sub_folders_is_named(folders, zipped, opener, wanted, packed):
    """Cut in two as a whole, none of them would be of a kind."""
    picture(folders / "preview.png", 0, 1)
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.write(folders / "preview.png", "two/preview.png")
    with pytest.raises(
        StoreError, match=rf"{wanted}: .*preview\.png of .* lies beside its sub-fol"
    ):
        opener(zipped if packed else folders, SIZE, 1, folder=folders.parent)
    assert not list(folders.parent.glob("*.lmdb"))


def test_a_store_of_one_kind_is_refused(glyph_store):
    for dataset in (Pairs, Unpaired):
        with pytest.raises(StoreError, match="needs two sub-folders of images.*has none"):
            dataset(Store(glyph_store))


# -- pairs


@pytest.mark.parametrize("layout", ["beside", "folders", "zipped"])
def test_all_layouts_give_the_same_pairs(layout, request):
    dataset = opened(request.getfixturevalue(layout))
    plan = dataset.plan(0, 0, np.arange(len(dataset)))
    inputs, targets = (values(dataset, plan.images[key]) for key in ("input", "target"))
    assert (targets == 200 - inputs).all()
    assert len({*inputs.tolist()}) == len(dataset) == 18
    turned = opened(request.getfixturevalue(layout), direction="ba")
    plan = turned.plan(0, 0, np.arange(18))
    assert (values(turned, plan.images["target"]) == inputs).all()


def test_held_out_pairs_are_never_trained_on_and_follow_the_split(beside):
    dataset = opened(beside, held_out=0.3)
    parts = [dataset.plan(0, 0, np.arange(len(dataset))).images["input"]]
    parts += [dataset.held_out(part).images["input"] for part in ("validation", "test")]
    assert [len(part) for part in parts] == [14, 3, 3]
    assert sorted(values(dataset, np.concatenate(parts)).tolist()) == list(range(20))
    again, other = opened(beside, held_out=0.3), opened(beside, held_out=0.3, split=1)
    held = [d.held_out("test").images["input"].tolist() for d in (dataset, again, other)]
    assert held[0] == held[1] != held[2]
    for plan in (dataset.held_out("test"), dataset.shown([])["held-out"]):
        rows = plan.images
        assert (values(dataset, rows["target"]) == 200 - values(dataset, rows["input"])).all()
    assert opened(beside, held_out=0.0).held_out("test").images["input"].shape == (1,)
    with pytest.raises(StoreError, match=r"data\.held_out=1 of 20 leaves nothing to train on"):
        opened(beside, held_out=1.0)


def test_images_without_a_partner_are_listed_or_left_out(folders):
    picture(folders / "photos" / "x" / "77.png", 77)
    picture(folders / "sketches" / "88.png", 88)
    with pytest.raises(StoreError) as refused:
        opened(folders)
    message = str(refused.value)
    assert "2 images" in message
    assert "photos/x/77.png: no x/77 in sketches" in message
    assert "sketches/88.png: no 88 in photos" in message
    assert "data.on_error=skip" in message
    assert len(opened(folders, on_error="skip")) == 18


def test_folders_without_any_pair_are_refused_in_any_case(tmp_path):
    picture(tmp_path / "two" / "a" / "1.png", 0)
    picture(tmp_path / "two" / "b" / "2.png", 0)
    with pytest.raises(StoreError, match="have no partner"):
        opened(tmp_path / "two", on_error="skip")


@pytest.mark.parametrize("packed", [False, True])
def test_partners_of_another_shape_are_refused_or_left_out(folders, tmp_path, packed):
    """The middles of a wide and a tall image are not of one place."""
    picture(folders / "photos" / "x" / "wide.png", 90, width=100, height=75)
    picture(folders / "sketches" / "x" / "wide.png", 110, width=75, height=100)
    picture(folders / "photos" / "x" / "small.png", 95, width=100, height=75)
    picture(folders / "sketches" / "x" / "small.png", 105, width=199, height=150)  # 0.5 % off
    path = folders
    if packed:
        path = tmp_path / "two.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folders.rglob("*.*")):
                archive.write(file, file.relative_to(folders))
    with pytest.raises(StoreError) as refused:
        opened(path)
    assert "1 image cannot be used" in str(refused.value)
    assert (
        "sketches/x/wide.png: it has 75 x 100 pixels and its partner photos/x/wide.png 100 x 75"
        in str(refused.value)
    )
    store = open_pairs(path, SIZE, 1, "skip", folder=tmp_path)
    left = Pairs(store, on_error="skip")
    assert len(left) == 19  # 21 pairs, 2 of them held out
    held = left.held_out("validation").images["input"], left.held_out("test").images["input"]
    rows = np.concatenate([left.train[:, 0], *held])
    assert {90, 95} & {*values(left, rows)} == {95}


def test_a_turned_photograph_has_the_shape_that_it_is_seen_in(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for name, shape in (("1", (12, 16)), ("2", (12, 16)), ("3", (16, 12))):
        folder = tmp_path / "two" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 12), 9).save(folder / f"{name}.jpg", exif=exif)
        picture(tmp_path / "two" / "b" / f"{name}.png", 9, width=shape[0], height=shape[1])
    with pytest.raises(StoreError, match=r"b/3\.png: it has 16 x 12 .*partner a/3\.jpg 12 x 16"):
        open_pairs(tmp_path / "two", SIZE, 1, folder=tmp_path)
    assert open_pairs(tmp_path / "two", SIZE, 1, "skip", folder=tmp_path).count == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_sides_are_fitted_as_images_of_any_folder(tmp_path, channels):
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 52, 3), np.uint8)
    for folder, pixels in zip("ab", noise, strict=True):
        (tmp_path / "two" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "two" / folder / "1.jpg")
        Image.fromarray(pixels[:SIZE]).save(tmp_path / "two" / folder / "2.png")
    pairs = open_pairs(tmp_path / "two", SIZE, channels, folder=tmp_path)
    plain = open_store(tmp_path / "two", SIZE, channels, folder=tmp_path)
    assert pairs.path != plain.path
    assert pairs.content_hash == plain.content_hash


def test_two_files_of_one_name_are_refused(folders):
    picture(folders / "photos" / "x" / "03.webp", 3)
    with pytest.raises(StoreError, match=r"photos/x/03\.png and photos/x/03\.webp have one name"):
        opened(folders)


def test_a_pair_is_mirrored_as_one(tmp_path):
    """Both images fall off to the right by the same slope: mirrored ones rise, both or neither."""
    for n in range(20):
        picture(tmp_path / "beside" / f"{n}.png", 100, 200, gradient=1 + n // 2)
    dataset = opened(tmp_path / "beside", flip=True)
    stream = Stream(dataset, 8, 0, CPU, ["input", "target"])
    rises = []
    for _ in range(10):
        batch = next(stream)
        slopes = [batch[key][:, 0, 0].diff(dim=-1).mean(-1) for key in ("input", "target")]
        torch.testing.assert_close(*slopes)
        rises += (slopes[0] > 0).tolist()
    stream.close()
    assert 0.25 < sum(rises) / len(rises) < 0.75
    assert dataset.shown([])["training"].flip is None
    assert opened(tmp_path / "beside").plan(0, 0, np.arange(4)).flip is None


# -- unpaired


@pytest.fixture
def kinds(tmp_path):
    for n in range(30):
        picture(tmp_path / "kinds" / "horse" / f"{n}.png", n)
    for n in range(12):
        picture(tmp_path / "kinds" / "zebra" / f"{n}.png", 100 + n)
    return tmp_path / "kinds"


def unpaired(path, **settings):
    return Unpaired(open_unpaired(path, SIZE, 1, folder=path.parent), **settings)


def test_an_epoch_visits_each_a_once_beside_a_b_drawn_anew(kinds):
    dataset = unpaired(kinds, held_out=0.1)
    assert len(dataset) == 27
    epochs = [dataset.plan(0, epoch, np.arange(27)).images for epoch in range(200)]
    assert all(sorted(e["real_a"]) == sorted(epochs[0]["real_a"]) for e in epochs)
    assert (values(dataset, epochs[0]["real_a"]) < 30).all()
    drawn = np.stack([e["real_b"] for e in epochs])  # [epochs, A]
    assert (values(dataset, drawn[0]) >= 100).all()
    rows, counts = np.unique(drawn, return_counts=True)
    assert len(rows) == 11
    expected = drawn.size / 11
    assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-square, 10 degrees: p = 0.0009
    per_image = [len({*column.tolist()}) for column in drawn.T]
    assert min(per_image) == 11  # every a meets every b
    per_epoch = [len({*row.tolist()}) for row in drawn]
    assert len({*per_epoch}) > 1  # no epoch is bound to show all b
    again = dataset.plan(0, 3, np.arange(27)).images["real_b"]
    assert np.array_equal(again, drawn[3])
    assert not np.array_equal(dataset.plan(1, 3, np.arange(27)).images["real_b"], drawn[3])


def test_held_out_images_of_each_kind_are_never_drawn(kinds):
    dataset = unpaired(kinds, held_out=0.25)
    trained = [dataset.plan(0, epoch, np.arange(len(dataset))).images for epoch in range(50)]
    held = dataset.shown([])["held-out"].images
    for kind, count in (("real_a", 30), ("real_b", 12)):
        seen = {row for images in trained for row in images[kind].tolist()}
        assert len(seen) == count - round(count / 4)
        assert not seen & {*held[kind].tolist()}


def test_each_kind_is_mirrored_by_a_coin_of_its_own(tmp_path):
    """All images fall off to the right; mirrored ones rise."""
    for kind in "ab":
        for n in range(20):
            picture(tmp_path / "falling" / kind / f"{n}.png", 100, gradient=1 + n // 2)
    dataset = unpaired(tmp_path / "falling", flip=True)

    def rises(*keys):
        stream = Stream(dataset, 16, 0, CPU, keys)
        batches = [next(stream) for _ in range(25)]
        stream.close()
        return [
            torch.cat([b[key][:, 0, 0].diff(dim=-1).mean(-1) > 0 for b in batches]) for key in keys
        ]

    a, b = rises("real_a", "real_b")
    for share in (a, b, a == b):
        assert 0.4 < share.double().mean() < 0.6  # of 400: four deviations to each side
    assert torch.equal(rises("real_b")[0], b)  # whatever else is read


def test_cyclegans_own_folders_are_known(tmp_path):
    for name, value, count in (
        ("trainA", 0, 9),
        ("trainB", 50, 8),
        ("testA", 100, 3),
        ("testB", 150, 2),
    ):
        for n in range(count):
            picture(tmp_path / "sets" / name / f"{n}.png", value + n)
    dataset = unpaired(tmp_path / "sets")
    images = dataset.plan(0, 0, np.arange(len(dataset))).images
    assert values(dataset, images["real_a"]).tolist() == list(range(9))
    assert {*(values(dataset, images["real_b"]) // 50)} == {1}
    held = dataset.shown([])["held-out"].images
    assert {*(values(dataset, held["real_a"]) // 50)} == {2}
    assert {*(values(dataset, held["real_b"]) // 50)} == {3}
    turned = unpaired(tmp_path / "sets", direction="ba")
    assert len(turned) == 8
    assert {*(values(turned, turned.plan(0, 0, np.arange(8)).images["real_a"]) // 50)} == {1}


def test_sources_are_registered_with_these_datasets(beside, kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(create("source", "pairs", path=str(beside), size=SIZE, channels=1), Pairs)
    made = create("source", "unpaired", path=str(kinds), size=SIZE, channels=1)
    assert isinstance(made, Unpaired)
    assert Path("data").is_dir()
