"""Many images together: what is seen, kept, named, copied; and the reference networks' guards."""

import hashlib
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import random_inception
import torch
from torch import nn
from torch_fidelity import metric_prc

from gan.data.datasets import sampled
from gan.metrics import populations
from gan.metrics.distances import moments, precision_recall, radii
from gan.metrics.extractors import OfClassifier, OfNothing
from gan.metrics.judges import Judge
from gan.metrics.populations import (
    Sampler,
    Seen,
    Translations,
    classes_hit,
    copies,
    distances,
    reference,
    seen,
)
from gan.networks.reference import REFERENCES, OfReference, downloaded
from gan.noise import FromNoise
from gan.registry import create

CPU = torch.device("cpu")
NAMES = ("fd", "kd", "precision", "recall", "density", "coverage")


class Means:
    """Features: the mean of each quarter of an image; logits: bright or dark."""

    name, key, resize = "means", "1", "none"

    def __init__(self):
        self.looked = 0

    def __call__(self, images):
        self.looked += len(images)
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return quarters, torch.stack([-images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)


def pictures(count, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def store():
    return SimpleNamespace(content_hash="abc", shape=(8, 8, 1))


def test_parts_make_the_whole_and_some_features_are_kept():
    images, extractor = pictures(50), Means()
    whole, _ = extractor(images)
    found = seen(images.split(7), extractor, keep=20)
    torch.testing.assert_close(found.features, whole[:20])
    assert len(found.logits) == found.moments.images == 50
    torch.testing.assert_close(found.moments.covariance, moments([whole]).covariance)


def test_statistics_are_kept_by_content_rows_and_extractor(store, tmp_path, monkeypatch):
    monkeypatch.setattr(populations, "NEIGHBOURS", 10)
    images, extractor, rows = pictures(200), Means(), np.arange(0, 200, 2)

    def read(places):
        return images[torch.from_numpy(places)]

    def looked(**changes):
        before = extractor.looked
        given = {"store": store, "rows": rows, "extractor": extractor, **changes}
        found = reference(read=read, folder=tmp_path, **given)
        return found, given["extractor"].looked - (before if "extractor" not in changes else 0)

    first, times = looked()
    assert times == 100
    assert (first.moments.images, len(first.features)) == (100, 10)
    again, times = looked()
    assert times == 0  # read back, and equal
    assert torch.equal(again.features, first.features)
    assert all(map(torch.equal, again.moments[:2], first.moments[:2]))
    assert again.moments.images == 100
    torch.testing.assert_close(first.features, Means()(images[sampled(rows, 10)])[0])
    other = Means()
    other.key = "2"
    assert looked(extractor=other)[1] == 100
    assert looked(rows=rows + 1)[1] == 100
    changed = SimpleNamespace(content_hash="abd", shape=(8, 8, 1))
    assert looked(store=changed)[1] == 100
    assert looked(store=SimpleNamespace(content_hash="abc", shape=(4, 4, 1)))[1] == 100
    monkeypatch.setattr(Means, "resize", "to 4 px")
    assert looked()[1] == 100
    monkeypatch.setattr(populations, "FORMAT", populations.FORMAT + 1)
    assert looked()[1] == 100
    assert looked()[1] == 0
    assert len(list(tmp_path.iterdir())) == 7
    assert all(path.suffix == ".npz" for path in tmp_path.iterdir())


def test_distances_are_named_after_what_made_the_features():
    images, extractor = pictures(60), Means()
    fake, real = (seen([part], extractor) for part in images.split(30))
    found = distances(fake, real, extractor)
    assert found.keys() == {f"{name}_means" for name in (*NAMES, "is")}
    assert not {"fid", "kid", "is", "precision", "recall"} & found.keys()
    shifted = distances(seen([images[:30] + 0.5], extractor), real, extractor)
    assert shifted["fd_means"] > 3 * found["fd_means"]
    assert shifted["precision_means"] < found["precision_means"]
    images[29] *= float("nan")
    for kept in (20, 30):  # whether or not it is among those that are compared one by one
        broken = seen([images[:30]], extractor, kept)
        assert np.isnan(distances(broken, real, extractor)["fd_means"])  # and training goes on


def test_the_same_noise_every_time_and_labels_in_the_shares_of_the_training():
    class Shifted(FromNoise):
        @staticmethod
        def draw(generator, noise, label):
            return generator(noise + label[:, None])

    labels = np.array([2, 0, 0, 0])
    sampler = Sampler(Shifted, 3, labels, CPU)
    asked = sampler.asked(100)
    assert sorted(asked.tolist()) == [0] * 75 + [2] * 25
    assert torch.equal(sampler.asked(100), asked)
    first = sampler.asked(10_000)[:1000]
    assert 0.2 < (first == 2).double().mean() < 0.3  # the first are a fair sample of all
    drawn = torch.cat(list(sampler.drawn(nn.Identity(), 100)))
    which = torch.tensor([99, 3])
    torch.testing.assert_close(sampler.some(nn.Identity(), 100, which), drawn[which])
    assert drawn[asked == 2].mean() > drawn[asked == 0].mean() + 1
    before = torch.random.get_rng_state()
    assert torch.equal(torch.cat(list(sampler.drawn(nn.Identity(), 100))), drawn)
    assert torch.equal(torch.random.get_rng_state(), before)  # training draws on as if not measured


def copied_from(fake, real, *mirrored):
    """`fake` beside training images of these features, of which `reference` has kept some."""
    rows = np.arange(len(real))
    kept = torch.from_numpy(sampled(rows, populations.NEIGHBOURS))
    looks = [features.split(7) for features in (real, *mirrored)]
    return copies({"raw": fake}, real[kept], rows, looks)["raw"]


def test_copies_are_told_from_fresh_images():
    random = torch.Generator().manual_seed(0)
    real, fresh = torch.randn(2, 600, 5, generator=random)
    clean = copied_from(fresh, real)
    assert clean.memorised < 0.04
    assert clean.duplicates < 0.04
    copied = torch.cat([real[:150] + 1e-4, fresh[150:]])
    found = copied_from(copied, real)
    assert found.memorised == pytest.approx(0.25 + 0.75 * clean.memorised, abs=0.01)
    assert found.which[:150].tolist() == list(range(150))
    assert found.distance[:150].max() < 1e-3
    twice = copied_from(torch.cat([fresh[:300], fresh[:300] + 1e-4]), real)
    assert twice.duplicates == 1
    assert twice.memorised < 0.04


def test_copies_of_any_training_image_are_found_and_fresh_ones_are_the_share_that_is_said(
    monkeypatch,
):
    """Fresh images are as near to the nearest of many as these are to each other, not as few."""
    monkeypatch.setattr(populations, "NEIGHBOURS", 2000)
    random = torch.Generator().manual_seed(0)
    real, fresh = (torch.randn(count, 4, generator=random) for count in (8000, 4000))
    found = copied_from(fresh, real)
    assert found.memorised == pytest.approx(0.01, abs=0.005)
    kept = real[torch.from_numpy(sampled(np.arange(8000), 2000))]
    assert (found.distance <= radii(kept, 1).quantile(0.01)).double().mean() > 0.025  # the control
    several = copies({"raw": fresh, "ema": real[100:200]}, kept, np.arange(8000), [[real]])
    torch.testing.assert_close(several["raw"].distance, found.distance)
    assert several["raw"].memorised == pytest.approx(found.memorised)
    assert several["ema"].memorised == 1
    assert several["ema"].which.tolist() == [*range(100, 200)]


@pytest.mark.parametrize("apart", [0.01, 1.0])
def test_mirrored_copies_are_found_and_fresh_images_are_the_share_that_is_said(apart):
    """Also where every image is nearly its own mirror image, which says nothing of others."""
    random = torch.Generator().manual_seed(0)

    def images(count):
        half = torch.randn(count, 2, generator=random)
        other = half.flip(1) + apart * torch.randn(count, 2, generator=random)
        return torch.cat([half, other], 1)

    real, fresh = images(4000), images(4000)
    assert copied_from(fresh, real, real.flip(1)).memorised == pytest.approx(0.01, abs=0.005)
    copied = torch.cat([real[:1000].flip(1), fresh[1000:]])
    found = copied_from(copied, real, real.flip(1))
    assert found.memorised == pytest.approx(0.25 + 0.75 * 0.01, abs=0.005)
    assert found.which[:1000].tolist() == [*range(1000)]
    assert found.distance[:1000].max() == 0
    if apart == 1:
        assert copied_from(copied, real).memorised < 0.03  # the control


def test_copies_are_looked_for_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(populations, "NEIGHBOURS", 50)
    monkeypatch.setattr(populations, "HELD", 3)
    real = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    held, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, y: held.append(len(y)) or cdist(x, y))
    found = copied_from(real[:60], real)
    assert max(held) == 50  # drawn images beside each other, and three parts of seven
    assert held.count(21) == 500 // 21
    assert found.which.tolist() == [*range(60)]


def test_copies_are_found_where_training_images_occur_twice():
    """The closest 1 % of pairs are at distance 0 then, and so are copies; rounding is not."""
    random = torch.Generator().manual_seed(0)
    real, fresh = (torch.randn(2, 1000, 256, generator=random) + 1).relu()
    real[-20:] = real[:20]
    found = copied_from(torch.cat([real[:300], fresh[:100]]), real)
    assert found.memorised == 0.75
    assert found.which[:300].tolist() == list(range(300))
    assert copied_from(fresh[:200].repeat(2, 1), real).duplicates == 1
    assert copied_from(fresh, real)[:2] == (0, 0)


def test_duplicates_are_judged_beside_as_many_real_images_as_were_drawn():
    """The more images, the nearer the nearest: all of them would make the measure too strict."""
    real = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    few = real[torch.from_numpy(sampled(np.arange(2000), 20))]
    usual, of_all = (float(radii(side, 1).quantile(0.01)) for side in (few, real))
    assert usual > 3 * of_all
    first = 1000 * torch.arange(10.0)[:, None].expand(10, 3)
    apart = torch.tensor([1.0, 0, 0])
    assert copied_from(torch.cat([first, first + 0.9 * usual * apart]), real).duplicates == 1
    assert copied_from(torch.cat([first, first + 1.1 * usual * apart]), real).duplicates == 0


def test_classes_hit_counts_what_is_read_among_what_there_is():
    labels = np.array([0, 0, 2, 2, 5, 5])
    logits = nn.functional.one_hot(torch.tensor([0, 0, 0, 2]), 6).float()
    hit, classes, divergence = classes_hit(logits, labels)
    assert (hit, classes) == (2, 3)
    expected = 0.75 * np.log(0.75 * 3) + 0.25 * np.log(0.25 * 3)
    assert divergence == pytest.approx(expected)
    even = nn.functional.one_hot(torch.tensor([0, 2, 5]), 6).float()
    assert classes_hit(even, labels)[2] == pytest.approx(0)


def test_an_untrained_network_is_the_same_everywhere_and_tells_noise_from_flat():
    one, other = OfNothing(3, CPU), OfNothing(3, CPU)
    images = pictures(40).expand(-1, 3, -1, -1)
    assert one.key == other.key
    assert torch.equal(one(images)[0], other(images)[0])
    assert one(images)[1].shape == (40, 0)
    real = seen([images[:20]], one)
    near, far = (seen([x], one) for x in (images[20:], images[20:] * 0.2))
    assert distances(far, real, one)["fd_random"] > 2 * distances(near, real, one)["fd_random"]


def test_a_classifier_gives_its_last_features_and_logits():
    network = create("classifier", "small", channels=1, classes={"label": 3}, width=2).eval()
    images = pictures(70)
    features, logits = OfClassifier(Judge(network, {"label": 1.0}))(images)
    torch.testing.assert_close(features, network.embed(images))
    torch.testing.assert_close(logits, network(images)["label"])
    other = create("classifier", "small", channels=1, classes={"label": 3}, width=2).eval()
    assert OfClassifier(Judge(other, {})).key != OfClassifier(Judge(network, {})).key


def of_classifier():
    network = create("classifier", "small", channels=1, classes={"label": 3}, width=2).eval()
    return OfClassifier(Judge(network, {"label": 1.0}))


@pytest.mark.parametrize("made", [of_classifier, lambda: OfNothing(1, CPU)])
def test_features_are_in_float32_where_a_run_plays_in_tf32(made, precisions):
    extractor = made()
    assert precisions(extractor.network, lambda: extractor(pictures(3))) == {("highest", False)}


def test_other_weights_have_no_right_to_the_name(tmp_path):
    with pytest.raises(ValueError, match="inception=.*nothing: there is no such file"):
        OfReference("inception", tmp_path / "nothing", CPU)
    (tmp_path / "some.pth").write_bytes(b"some")
    with pytest.raises(ValueError, match="begins with a6b46dd0, not 6726825d"):
        OfReference("inception", tmp_path / "some.pth", CPU)


class Hostile:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_file_of_weights_runs_no_code(tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"a": Hostile()}, path)
    known = REFERENCES["inception"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(REFERENCES, "inception", known._replace(digest=digest[:8]))
    with pytest.raises(ValueError, match="cannot be read"):
        OfReference("inception", path, CPU)(torch.zeros(2, 1, 4, 4))
    assert "unpickled" not in capsys.readouterr().out


def test_weights_are_fetched_by_their_hash_and_once(tmp_path, monkeypatch):
    asked = []

    def fetch(url, path, digest):
        asked.append((url.rpartition("/")[2], digest))
        open(path, "wb").close()

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for name in ("inception", "vgg16", "alexnet"):
        assert downloaded(name) == downloaded(name)
    assert asked == [
        ("weights-inception-2015-12-05-6726825d.pth", "6726825d"),
        ("vgg16-397923af.pth", "397923af"),
        ("alexnet-owt-7be5be79.pth", "7be5be79"),
    ]


def test_without_the_library_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"needs torch_fidelity: pip install 'gan\[metrics\]'"):
        downloaded("inception")


@pytest.mark.slow
def test_reference_numbers_are_those_of_the_library_on_the_reference_protocol(
    tmp_path, monkeypatch
):
    from torch_fidelity import calculate_metrics

    path = tmp_path / "weights.pth"
    digest = random_inception.written(path, monkeypatch)
    extractor = OfReference("inception", path, CPU)
    assert extractor.key == digest
    images = pictures(22, seed=1)
    fake, real = (seen([part], extractor) for part in images.split(11))
    found = distances(fake, real, extractor)

    class Bytes(torch.utils.data.Dataset):
        def __init__(self, part):
            self.part = part.mul(127.5).add(128).clamp(0, 255).to(torch.uint8)

        def __len__(self):
            return len(self.part)

        def __getitem__(self, place):
            return self.part[place].expand(3, -1, -1)

    library = calculate_metrics(
        input1=Bytes(images[:11]),
        input2=Bytes(images[11:]),
        **dict.fromkeys(("fid", "kid", "isc"), True),
        **{"kid_subset_size": 11, "cuda": False, "cache": False, "verbose": False},
        feature_extractor_weights_path=str(path),
        save_cpu_ram=True,
    )
    assert found["fid"] == pytest.approx(library["frechet_inception_distance"], rel=1e-4)
    assert found["kid"] == pytest.approx(library["kernel_inception_distance_mean"], rel=1e-4)
    assert found["is"] == pytest.approx(library["inception_score_mean"], rel=1e-4)
    assert {"precision_inception", "coverage_inception"} <= found.keys()
    assert "precision" not in found


class Stand(OfReference):
    """Passes for a reference network of this name."""

    def __init__(self, name):
        self.name, self.key, self.resize = name, "0", "none"


def test_seen_of_a_reference_network_has_the_reserved_names():
    features, real = torch.rand(2, 40, 6, generator=torch.Generator().manual_seed(0))
    looks = [Seen(moments([x]), x, x) for x in (features, real)]
    found = distances(*looks, Stand("inception"))
    assert {"fid", "kid", "is", "density_inception"} <= found.keys()
    vgg = distances(*looks, Stand("vgg16"))
    assert vgg.keys() == {"precision", "recall", "density", "coverage"}
    few = distances(Seen(moments([features[:8]]), features[:8], features[:8]), looks[1], Means())
    fewer = [Seen(moments([x[:8]]), x[:8], x[:8]) for x in (features, real)]
    assert np.isfinite([few["is_means"], distances(*fewer, Stand("inception"))["is"]]).all()


def test_precision_and_recall_of_vgg16_are_those_of_the_library(monkeypatch):
    random = torch.Generator().manual_seed(0)
    real, fake = torch.rand(1200, 3, generator=random), torch.rand(1500, 3, generator=random)
    fake = fake / 2 + 0.4
    sides = [Seen(moments([x]), x, x[:, :0]) for x in (fake, real)]
    library, given = metric_prc.prc_features_to_metric, []

    def asked(*features, **settings):
        given.append(settings)
        return library(*features, **settings)

    monkeypatch.setattr(metric_prc, "prc_features_to_metric", asked)
    found = distances(*sides, Stand("vgg16"))
    assert [settings["prc_neighborhood"] for settings in given] == [3]
    ours = precision_recall(fake, real)
    assert (found["precision"], found["recall"]) == pytest.approx(ours, rel=1e-6)
    assert ours[0] != pytest.approx(ours[1], rel=0.1)
    distances(*sides, Means())
    assert len(given) == 1  # the names of other features are not the library's
    with pytest.raises(ValueError, match="3 features have no 5-th neighbour"):
        distances(*(side._replace(features=side.features[:3]) for side in sides), Stand("vgg16"))


def test_a_connection_fails_a_test_of_measures():
    """It is no exception that code under test might catch."""
    with socket.socket() as one:
        for connect in (socket.create_connection, one.connect, one.connect_ex):
            with pytest.raises(pytest.fail.Exception, match="asked for a connection"):
                connect(("127.0.0.1", 9))
    with pytest.raises(pytest.fail.Exception, match="asked for a connection"):
        downloaded("vgg16")


@pytest.mark.row("L4")
def test_evaluation_looks_at_each_image_once_and_at_the_last_few_too(monkeypatch):
    monkeypatch.setattr(populations, "PORTION", 8)
    held, looked = torch.arange(17.0).view(17, 1, 1, 1), []
    source = Translations(lambda _, image: image, lambda rows: held[rows], np.arange(17))
    for images in source.drawn(nn.Identity(), 17):
        looked += images.flatten().tolist()
    assert looked == held.flatten().tolist()
    read = []
    store = SimpleNamespace(content_hash="a", shape=(4, 4, 1))

    def given(rows):
        read.extend(rows.tolist())
        return torch.zeros(len(rows), 1, 4, 4)

    reference(store, np.arange(17), given, Means(), folder=None)
    assert read == [*range(17)]
