"""How far two sets of features [N, D] are apart, how true the drawn ones are, and how varied.

Everything is computed in float64: float32 covariances alone move a Fréchet distance by 6e-4.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # rows of a table of distances that are held at once
EQUAL = 1e-5  # of a feature's norm: nearer ones differ by rounding alone
SPLITS = 10  # parts that an inception score is the mean of
ELSEWHERE = torch.tensor(-1)  # the place among members of what is none of them


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D], over one less than the images, of their features."""

    mean: Tensor
    covariance: Tensor
    images: int


def moments(parts: Iterable[Tensor]) -> Moments:
    """The moments of features that come in parts [n, D], merged as in Chan et al. 1979.

    Raises:
        ValueError: fewer than two features.
    """
    count, mean, scatter = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in parts:
        part = part.double()
        new = len(part)
        centre = part.mean(0)
        part, shift = part - centre, centre - mean
        scatter = scatter + part.mT @ part
        scatter = scatter + torch.outer(shift, shift) * (count * new / (count + new))
        mean, count = mean + shift * (new / (count + new)), count + new
    if count < 2:
        raise ValueError(f"a covariance needs two features, not {count}")
    return Moments(mean, scatter / (count - 1), count)


def frechet(a: Moments, b: Moments) -> float:
    """Distance of two Gaussians: `|m - n|^2 + tr(A + B - 2 (AB)^(1/2))`.

    Heusel et al. 2017, arXiv:1706.08500, equation 6. The root's trace is that of the symmetric
    `(A^(1/2) B A^(1/2))^(1/2)`, whose eigenvalues are real; those below 0 are rounding.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    trace = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * trace)


def kernel(
    fake: Tensor, real: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared MMD under the kernel `(x.y / D + 1)^3`, mean and deviation over subsets.

    Bińkowski et al. 2018, arXiv:1801.01401, section 3.1. Up to twice the size of a subset, all
    features are taken at once; then the deviation is 0.
    """
    fake, real = fake.double(), real.double()
    if max(len(fake), len(real)) <= 2 * size:
        return _discrepancy(fake, real), 0.0
    random = np.random.default_rng(seed)
    few = min(size, len(fake), len(real))

    def some(features: Tensor) -> Tensor:
        return features[torch.from_numpy(random.choice(len(features), few, replace=False))]

    found = [_discrepancy(some(fake), some(real)) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """Means of the kernel within each set, none with itself, less twice that between them."""
    within = sum(
        (_cubic(z, z).sum() - _cubic_norms(z).sum()) / (len(z) * (len(z) - 1)) for z in (x, y)
    )
    return float(within - 2 * _cubic(x, y).mean())


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def _cubic_norms(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def score(logits: Tensor, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """`exp` of the mean divergence of labels from their average, mean and deviation over splits.

    Salimans et al. 2016, arXiv:1606.03498, section 4. 1 for one label, the number of classes for
    certain labels spread evenly. Logits [N, L] are shuffled before they are split, into one part
    for each image where these are fewer.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(logits)))
    found = []
    for part in logits.double()[order].tensor_split(min(splits, len(logits))):
        logs = part.log_softmax(1)
        average = logs.exp().mean(0).log()
        found.append(float((logs.exp() * (logs - average)).sum(1).mean().exp()))
    return float(np.mean(found)), float(np.std(found))


def precision_recall(fake: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of fakes among reals, and of reals among fakes.

    A set's region is the union of balls around its members, each reaching to the k-th nearest
    other one. Kynkäänniemi et al. 2019, arXiv:1904.06991, equations 1 and 2.
    """
    return _inside(fake, real, k), _inside(real, fake, k)


def _inside(those: Tensor, members: Tensor, k: int) -> float:
    reach = radii(members, k)
    inside = [(part <= reach).any(1) for part in _tables(those, members)]
    return float(torch.cat(inside).double().mean())


def density_coverage(fake: Tensor, real: Tensor, k: int = 5) -> tuple[float, float]:
    """How many balls of reals hold a fake, over k; the share of reals whose ball holds one.

    Naeem et al. 2020, arXiv:2002.09797, equations 3 and 4. Density may exceed 1.
    """
    reach = radii(real, k)
    inside = [part < reach for part in _tables(fake, real)]  # [n, M] each
    held = torch.stack([part.sum(0) for part in inside]).sum(0)  # fakes in each ball
    return float(held.double().sum() / (k * len(fake))), float((held > 0).double().mean())


def radii(features: Tensor, k: int) -> Tensor:
    """The distance of each to its k-th nearest other one, [N].

    Raises:
        ValueError: there are not so many.
    """
    if len(features) <= k:
        raise ValueError(f"{len(features)} features have no {k}-th neighbour: measure more images")
    parts = [part.kthvalue(k + 1).values for part in _tables(features, features)]  # itself first
    return torch.cat(parts)


def nearest(
    those: Tensor, parts: Iterable[Tensor], own: Tensor = ELSEWHERE
) -> tuple[Tensor, Tensor]:
    """The distance [N] of each to the nearest member, and the place [N] of that one.

    Members come in parts [m, D], of which one is held at once. Those that are members themselves
    have a place among them, `own` [N], and are not their own nearest.
    """
    own, start = own.expand(len(those)), 0
    distance, which = torch.full_like(own, torch.inf, dtype=torch.float64), torch.zeros_like(own)
    for members in parts:
        found, place = _nearest(those, members, own - start)
        closer = found < distance
        distance = torch.where(closer, found, distance)
        which = torch.where(closer, place + start, which)
        start += len(members)
    return distance, which


def _nearest(those: Tensor, members: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The same of one part; `own` lies outside it for those that are elsewhere."""
    found = []
    for table, places in zip(_tables(those, members), own.split(CHUNK), strict=True):
        there = (places >= 0) & (places < len(members))
        table[there, places[there]] = torch.inf
        found.append(table.min(1))
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _tables(those: Tensor, members: Tensor) -> Iterator[Tensor]:
    """Distances [n, M] of a few at a time to all members; those of equal features are 0.

    They go by `|x|^2 + |y|^2 - 2 x.y`, which leaves about 1e-8 of the norm where 0 is meant.
    """
    members = members.double()
    for part in torch.split(those, CHUNK):
        part = part.double()
        table = torch.cdist(part, members)
        least = EQUAL * torch.linalg.vector_norm(part, dim=1, keepdim=True)
        yield table.masked_fill_(table < least, 0)
