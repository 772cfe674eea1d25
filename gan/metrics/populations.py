"""What is measured of many images together: drawn ones beside those that were trained on."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gan import disk
from gan.data.datasets import sampled
from gan.features import key_of
from gan.metrics.distances import (
    CHUNK,
    ELSEWHERE,
    SPLITS,
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
from gan.metrics.extractors import PORTION, Extractor
from gan.noise import FromNoise

FORMAT = 2  # rises when the arithmetic below changes, so that older statistics are not reused
FOLDER = Path("data/statistics")
NEIGHBOURS = 10_000  # images of each side that are compared one by one
HELD = 128  # portions of training images whose features are held at once: 64 MiB of 2,048 each
TYPICAL = 0.01  # share of training images that are nearer to another one than the rest


class Seen(NamedTuple):
    """What an extractor saw: moments of all, features [n, D] of some, logits [N, L] of all."""

    moments: Moments
    features: Tensor
    logits: Tensor


class Translations(NamedTuple):
    """What a generator makes of given images, of which there are as many as rows."""

    translate: Callable[[nn.Module, Tensor], Tensor]
    read: Callable[[np.ndarray], Tensor]
    rows: np.ndarray

    def drawn(self, generator: nn.Module, count: int) -> Iterator[Tensor]:
        """The translations, a few at a time."""
        for part in torch.split(torch.arange(count), PORTION):
            yield self.some(generator, count, part)

    @torch.no_grad()
    def some(self, generator: nn.Module, count: int, which: Tensor) -> Tensor:
        """Those that are asked for."""
        return self.translate(generator, self.read(self.rows[which.numpy()])).float()

    def asked(self, count: int) -> Tensor | None:
        """No labels."""
        return None


class Sampler(NamedTuple):
    """The same images every time: noise of one seed, and labels in the shares of the training's."""

    recipe: FromNoise | type[FromNoise]
    latent: int
    labels: np.ndarray | None
    device: torch.device
    seed: int = 0

    def drawn(self, generator: nn.Module, count: int) -> Iterator[Tensor]:
        """So many images, a few at a time, on the device."""
        given = self._given(count)
        for part in torch.split(torch.arange(count), PORTION):
            yield self._painted(generator, given, part)

    def some(self, generator: nn.Module, count: int, which: Tensor) -> Tensor:
        """Those of so many images that are asked for."""
        return self._painted(generator, self._given(count), which)

    def asked(self, count: int) -> Tensor | None:
        """The labels of so many images; None where none are asked for.

        They come in a fixed random order: some measures look at the first images alone.
        """
        if self.labels is None:
            return None
        dealt = np.sort(self.labels)[np.arange(count) * len(self.labels) // count]
        return torch.from_numpy(np.random.default_rng(self.seed).permutation(dealt))

    def _given(self, count: int) -> tuple[Tensor, ...]:
        """Noise of so many images, and labels where they are asked for."""
        random = torch.Generator().manual_seed(self.seed)
        noise = self.recipe.noise(torch.randn(count, self.latent, generator=random))
        label = self.asked(count)
        return (noise,) if label is None else (noise, label)

    @torch.no_grad()
    def _painted(self, generator: nn.Module, given: tuple[Tensor, ...], which: Tensor) -> Tensor:
        return self.recipe.draw(generator, *(g[which].to(self.device) for g in given)).float()


Drawn = Translations | Sampler
"""Where drawn images come from: the same every time."""


def seen(parts: Iterable[Tensor], extractor: Extractor, keep: int = NEIGHBOURS) -> Seen:
    """Look at images that come a few at a time; the first `keep` features are kept one by one."""
    kept: list[Tensor] = []
    logits: list[Tensor] = []

    def looked() -> Iterator[Tensor]:
        for part in parts:
            features, named = extractor(part)
            kept.append(features[: max(0, keep - sum(map(len, kept)))])
            logits.append(named)
            yield features

    found = moments(looked())
    return Seen(found, torch.cat(kept), torch.cat(logits))


def reference(
    store: Any,
    rows: np.ndarray,
    read: Callable[[np.ndarray], Tensor],
    extractor: Extractor,
    folder: Path | None = FOLDER,
) -> Seen:
    """What an extractor saw in these rows of a store, now or earlier; logits are not kept.

    Statistics are kept in `folder` under a hash of the store's content, the rows, the images'
    shape and the extractor; moments are of all rows, features of `NEIGHBOURS` of them at random.
    """
    of = [extractor.name, extractor.key, extractor.resize, NEIGHBOURS]
    key = key_of([FORMAT, store.content_hash, store.shape, *of], rows)
    path = folder / f"{key}.npz" if folder else None
    if path and path.exists():
        with np.load(path, allow_pickle=False) as kept:
            arrays = {name: torch.from_numpy(kept[name]) for name in kept.files}
        found = Moments(arrays["mean"], arrays["covariance"], int(arrays["images"]))
        return Seen(found, arrays["features"], torch.empty(0, 0))

    features: list[Tensor] = []
    hidden = None if path else True  # what is kept takes longer: seen where there is a terminal

    def looked() -> Iterator[Tensor]:
        shown = torch.from_numpy(_shown(rows)).split(PORTION)
        for found, some in zip(each(rows, read, extractor, hidden=hidden), shown, strict=True):
            features.append(found[some])
            yield found

    result = Seen(moments(looked()), torch.cat(features), torch.empty(0, 0))
    if path:
        try:
            _keep(path, result)
        except OSError as error:
            warnings.warn(f"{path} cannot be written, so nothing is kept: {error}", stacklevel=2)
    return result


def each(
    rows: np.ndarray,
    read: Callable[[np.ndarray], Tensor],
    extractor: Extractor,
    title: str = "training images",
    hidden: bool | None = None,
) -> Iterator[Tensor]:
    """Features of every image of these rows, a few at a time; progress is shown unless `hidden`."""
    starts = range(0, len(rows), PORTION)
    for start in tqdm(starts, f"{title}, {extractor.name}", disable=hidden):
        yield extractor(read(rows[start : start + PORTION]))[0]


def _shown(rows: np.ndarray) -> np.ndarray:
    """Whether each row's features are among those that are kept one by one."""
    return np.isin(rows, sampled(rows, NEIGHBOURS))


def _keep(path: Path, result: Seen) -> None:
    """Write whole or not at all."""
    mean, covariance, images = result.moments
    arrays = {
        "mean": mean.numpy(),
        "covariance": covariance.numpy(),
        "features": result.features.numpy(),
        "images": np.array(images),
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.put(path, content.getvalue())


def distances(fake: Seen, real: Seen, extractor: Extractor) -> dict[str, float]:
    """Every distance by the name that it has on features of this extractor.

    Raises:
        ValueError: too few images.
    """
    if not torch.isfinite(fake.moments.mean).all():  # of all images; its guard tells why
        first = {"inception": "fid", "vgg16": "precision"}
        return {first.get(extractor.name, f"fd_{extractor.name}"): math.nan}
    dense = dict(zip(("density", "coverage"), density_coverage(*_both(fake, real)), strict=True))
    if extractor.name == "vgg16":
        return {**_library_regions(fake, real), **dense}
    among = dict(zip(("precision", "recall"), precision_recall(*_both(fake, real)), strict=True))
    among |= dense
    if extractor.name == "inception":
        named = {f"{name}_{extractor.name}": value for name, value in among.items()}
        return {**_library(fake, real), **named}
    values = {"fd": frechet(fake.moments, real.moments), "kd": kernel(*_both(fake, real))[0]}
    if fake.logits.shape[1]:
        values["is"] = score(fake.logits)[0]
    return {f"{name}_{extractor.name}": value for name, value in {**values, **among}.items()}


def _both(fake: Seen, real: Seen) -> tuple[Tensor, Tensor]:
    return fake.features, real.features


def _library(fake: Seen, real: Seen) -> dict[str, float]:
    """FID, KID and, where there are logits, inception score, by torch-fidelity itself."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    both = (fake.moments, real.moments)
    given = [{"mu": m.mean.numpy(), "sigma": m.covariance.numpy()} for m in both]
    size = min(1000, len(fake.features), len(real.features))
    features = (x.double() for x in _both(fake, real))
    fid = metric_fid.fid_statistics_to_metric(*given, False)
    kid = metric_kid.kid_features_to_metric(*features, kid_subset_size=size, verbose=False)
    found = {
        "fid": fid[metric_fid.KEY_METRIC_FID],
        "kid": kid[metric_kid.KEY_METRIC_KID_MEAN],
        "kid_deviation": kid[metric_kid.KEY_METRIC_KID_STD],
    }
    if fake.logits.shape[1]:
        named = metric_isc.isc_features_to_metric(fake.logits, min(SPLITS, len(fake.logits)))
        found["is"] = named[metric_isc.KEY_METRIC_ISC_MEAN]
        found["is_deviation"] = named[metric_isc.KEY_METRIC_ISC_STD]
    return found


def _library_regions(fake: Seen, real: Seen) -> dict[str, float]:
    """Precision and recall by torch-fidelity itself, a few rows of distances at a time."""
    from torch_fidelity import metric_prc

    features = (x.double() for x in _both(fake, real))
    few: dict[str, Any] = {"prc_batch_size": CHUNK, "save_cpu_ram": True, "verbose": False}
    found = metric_prc.prc_features_to_metric(*features, prc_neighborhood=3, **few)
    return {
        "precision": found[metric_prc.KEY_METRIC_PRECISION],
        "recall": found[metric_prc.KEY_METRIC_RECALL],
    }


class Copies(NamedTuple):
    """Shares of drawn images that are as near to another image as the closest 1 % of real pairs.

    `memorised` looks at all training images, `duplicates` at other drawn ones; of fresh images of
    the same kind about 1 % would be so. `which` training image is nearest to each drawn one, and
    how far it is.
    """

    memorised: float
    duplicates: float
    distance: Tensor
    which: Tensor

    @property
    def shares(self) -> dict[str, float]:
        """The shares by name."""
        return {"memorised": self.memorised, "duplicates": self.duplicates}


def copies(
    fakes: Mapping[str, Tensor], real: Tensor, rows: np.ndarray, looks: Iterable[Iterable[Tensor]]
) -> dict[str, Copies]:
    """Copies among features of drawn images [N, D], by the name of what drew them.

    `looks` are the features of all training `rows` in their order, a few at a time, which are
    looked through once: as they are stored and, where training mirrors them, mirrored. `real` are
    those that `reference` has kept. As an image is the nearer to its nearest the more there are,
    `real` say how near is usual, each beside all other rows, and none beside its own mirror image.
    """
    members = torch.from_numpy(np.flatnonzero(_shown(rows)))
    sides = [real, *fakes.values()]
    own = torch.cat([members, ELSEWHERE.expand(sum(map(len, fakes.values())))])
    found = [nearest(torch.cat(sides), _gathered(parts), own) for parts in looks]
    distance, which = map(torch.stack, zip(*found, strict=True))  # [looks, N] each
    least = distance.min(0)
    both = least.values, which.gather(0, least.indices[None])[0]
    (usual, *away), (_, *which) = (side.split([*map(len, sides)]) for side in both)
    near = usual.quantile(TYPICAL)
    return {
        name: Copies(_share(distance <= near), _duplicates(fake, real), distance, place)
        for (name, fake), distance, place in zip(fakes.items(), away, which, strict=True)
    }


def _gathered(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same in fewer parts."""
    rest = iter(parts)
    while held := list(islice(rest, HELD)):
        yield torch.cat(held)


def _duplicates(fake: Tensor, real: Tensor) -> float:
    """The share as near to another drawn image as the closest 1 % of as many training images."""
    many = min(len(fake), len(real))
    as_many = real[torch.from_numpy(sampled(np.arange(len(real)), many))]
    return _share(radii(fake[:many], 1) <= radii(as_many, 1).quantile(TYPICAL))


def _share(those: Tensor) -> float:
    return float(those.double().mean())


def classes_hit(logits: Tensor, labels: np.ndarray) -> tuple[int, int, float]:
    """Classes that a classifier reads at least once, of how many, and the divergence of shares.

    The divergence is that of the read shares from the training's, in nats: 0 where they agree.
    """
    present, counts = np.unique(labels, return_counts=True)
    read = np.bincount(logits.argmax(1).numpy(), minlength=int(present.max()) + 1)[present]
    share, wanted = read / max(1, read.sum()), counts / counts.sum()
    hit = read > 0
    divergence = float((share[hit] * np.log(share[hit] / wanted[hit])).sum())
    return int(hit.sum()), len(present), divergence
