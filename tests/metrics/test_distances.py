"""Distances of features against two reference libraries, closed forms, and known wrong variants."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

from gan.metrics.distances import (
    Moments,
    density_coverage,
    frechet,
    kernel,
    moments,
    nearest,
    precision_recall,
    radii,
    score,
)

EXACT = 1e-6  # relative


def features(count: int, wide: int = 24, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Correlated and skewed, as rectified activations are."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(wide, wide, generator=torch.Generator().manual_seed(9)) / wide**0.5
    return (torch.randn(count, wide, generator=random) @ mix + shift).relu()


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    return features(300, seed=1, shift=0.1), features(350, seed=2)


def test_moments_in_parts_are_those_of_the_whole(pair):
    fake, _ = pair
    for size in (1, 7, 300):
        found = moments(fake.split(size))
        np.testing.assert_allclose(found.mean, fake.double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(fake.double().T), atol=1e-14)
        assert found.images == 300
    with pytest.raises(ValueError, match="needs two features, not 1"):
        moments([fake[:1]])


def library_frechet(fake: Tensor, real: Tensor) -> float:
    stats = [metric_fid.fid_features_to_statistics(x.double()) for x in (fake, real)]
    return metric_fid.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]


@pytest.mark.parametrize("count", [300, 20])  # more and fewer than the features are wide
def test_frechet_distance_equals_the_library(pair, count):
    fake, real = (x[:count] for x in pair)
    mine = [moments([x]) for x in (fake, real)]
    found = frechet(*mine)
    assert found == pytest.approx(library_frechet(fake, real), rel=1e-5 if count < 24 else EXACT)
    biased = [m._replace(covariance=m.covariance * (count - 1) / count) for m in mine]
    assert abs(frechet(*biased) / found - 1) > 1e-4  # a covariance over N is told apart


@pytest.mark.slow  # that it is imported takes seconds
@pytest.mark.parametrize("count", [300, 20])
def test_distances_equal_those_of_another_library(pair, count):
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    fake, real = (x[:count] for x in pair)
    mine = [moments([x]) for x in (fake, real)]
    both = [value for m in mine for value in (m.mean, m.covariance)]
    expected = pytest.approx(float(_compute_fid(*both)), rel=1e-4 if count < 24 else EXACT)
    assert frechet(*mine) == expected
    expected = pytest.approx(float(poly_mmd(real.double(), fake.double())), rel=EXACT)
    assert kernel(fake, real)[0] == expected


def test_frechet_distance_of_two_known_gaussians():
    def gaussian(mean, deviations):
        return Moments(torch.tensor(mean), torch.tensor(deviations).square().diag(), 9)

    a = gaussian([0.0, 1.0, 2.0], [1.0, 2.0, 0.5])
    b = gaussian([3.0, 1.0, 2.0], [2.0, 2.0, 1.5])
    assert frechet(a, b) == pytest.approx(9 + 1 + 0 + 1)  # means, then deviations
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_equals_the_library(pair):
    fake, real = (x[:300] for x in pair)
    found, deviation = kernel(fake, real)
    given = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}
    library = metric_kid.kid_features_to_metric(fake.double(), real.double(), **given)
    assert found == pytest.approx(library["kernel_inception_distance_mean"], rel=EXACT)
    assert deviation == 0
    x, y = ((z.double() @ z.double().T / 24 + 1) ** 3 for z in (fake, real))
    biased = x.mean() + y.mean() - 2 * ((fake @ real.T / 24 + 1) ** 3).double().mean()
    assert abs(float(biased) / found - 1) > 1e-2


def test_kernel_distance_of_sets_of_different_sizes(pair):
    fake, real = (x.double() for x in pair)

    def cubic(x, y):
        return (x @ y.T / 24 + 1) ** 3

    def within(z):
        return (cubic(z, z).sum() - cubic(z, z).trace()) / len(z) / (len(z) - 1)

    expected = within(fake) + within(real) - 2 * cubic(fake, real).mean()
    assert kernel(*pair)[0] == pytest.approx(float(expected), rel=EXACT)


def test_kernel_distance_over_subsets_is_unbiased(pair):
    fake, real = pair
    whole, _ = kernel(fake[:300], real[:300])
    found, deviation = kernel(fake, real, subsets=200, size=60)
    assert deviation > 0
    assert found == pytest.approx(whole, abs=4 * deviation / 200**0.5)
    same, spread = kernel(features(400, seed=5), features(400, seed=6), subsets=200, size=60)
    assert abs(same) < 4 * spread / 20**0.5  # of one distribution it is 0, and may be below


def test_inception_score_equals_the_library_and_its_bounds():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 3
    library = metric_isc.isc_features_to_metric(logits, splits=1)
    assert score(logits, splits=1)[0] == pytest.approx(library["inception_score_mean"], rel=EXACT)
    order = np.random.default_rng(0).permutation(200)
    shuffled = metric_isc.isc_features_to_metric(logits[order], splits=10, shuffle=False)
    assert score(logits) == pytest.approx(tuple(shuffled.values()), rel=EXACT)
    certain = 100 * torch.eye(7).repeat(20, 1)
    assert score(certain, splits=1)[0] == pytest.approx(7)
    assert score(torch.zeros(70, 7))[0] == pytest.approx(1)


def test_inception_score_of_few_images_has_as_many_parts():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    assert score(logits) == score(logits, splits=4)
    assert np.isfinite(score(logits)).all()


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_precision_and_recall_equal_the_library(shift):
    fake, real = features(400, 6, 3, shift), features(300, 6, 4)
    given = {"prc_neighborhood": 3, "prc_batch_size": 100, "verbose": False}
    library = metric_prc.prc_features_to_metric(fake.double(), real.double(), **given)
    found = precision_recall(fake, real)
    assert found == pytest.approx((library["precision"], library["recall"]), rel=EXACT)
    assert found != pytest.approx(found[::-1])  # the two are not mixed up


def test_density_and_coverage_by_hand_and_by_counting():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [0.6], [50.0]])
    assert radii(real, 1).tolist() == [1, 1, 1, 8]
    assert density_coverage(fake, real, k=1) == (4 / 3, 0.5)  # balls of 0 and 1 hold both
    fake, real = features(300, 6, 3), features(400, 6, 4, 0.3)
    distance = torch.cdist(fake.double(), real.double())
    reach = torch.cdist(real.double(), real.double()).sort(1).values[:, 5]
    inside = distance < reach
    expected = (inside.double().sum(1).mean() / 5, inside.any(0).double().mean())
    assert density_coverage(fake, real) == pytest.approx(tuple(map(float, expected)), rel=EXACT)
    assert density_coverage(real, real)[1] == 1


def test_density_does_not_reward_an_outlier_as_precision_does():
    real = torch.cat([features(200, 4, 1), torch.full((1, 4), 30.0)])
    far = torch.full((50, 4), 15.0) + 0.1 * features(50, 4, 2)
    assert precision_recall(far, real)[0] == 1
    assert density_coverage(far, real)[0] <= 0.2


def test_nearest_finds_copies_in_parts():
    members = features(1500, 8, 1)
    those = members[[3, 1400, 77]] + 1e-3
    for size in (1500, 400, 1):
        distance, which = nearest(those, members.split(size))
        assert which.tolist() == [3, 1400, 77]
        assert distance.max() < 0.01


def test_nearest_of_members_are_not_themselves_but_their_equals():
    members = features(300, 8, 1)
    members[7] = members[290]
    own = torch.tensor([5, 7, 290, -1])
    distance, which = nearest(members[[5, 7, 290, 5]], members.split(64), own)
    table = torch.cdist(members[5:6].double(), members.double())[0]
    table[5] = torch.inf
    assert which.tolist() == [int(table.argmin()), 290, 7, 5]
    assert distance.tolist() == pytest.approx([float(table.min()), 0, 0, 0])
    distance, _ = nearest(members, members.split(64), torch.arange(300))
    torch.testing.assert_close(distance, radii(members, 1))


def test_equal_features_are_at_distance_zero_and_others_are_not():
    members = features(400, 256, 1, 1.0)
    members[-20:] = members[:20]
    assert torch.cdist(members.double(), members.double()).diagonal().max() > 0  # the control
    assert nearest(members, [members])[0].max() == 0
    assert (radii(members, 1) == 0).sum() == 40
    near, _ = nearest(members * (1 + 1e-4), [members])
    norms = torch.linalg.vector_norm(members.double(), dim=1)
    torch.testing.assert_close(near, 1e-4 * norms, rtol=1e-2, atol=0.0)
    outlier = torch.full((1, 256), 1e6)  # whose rounding is not that of the rest
    assert (radii(torch.cat([members, outlier]), 1) == 0).sum() == 40


def test_too_few_features_have_no_neighbours():
    with pytest.raises(ValueError, match="3 features have no 3-th neighbour"):
        radii(features(3), 3)
