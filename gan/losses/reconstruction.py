"""Losses between an image and the one it should be, on pixels or through a frozen network.

A loss is called as `loss(image, target, features) -> scalar`. `features` gives the maps that the
discriminator makes of images, with every condition bound; only a loss that asks for them uses it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from gan.networks.pretrained import TorchvisionClassifier, stored
from gan.registry import NonNegative, register

Features = Callable[[Tensor], Sequence[Tensor]]


class Reconstruction(ABC):
    """weight * distance(image, target)."""

    def __init__(self, weight: NonNegative = 1.0) -> None:
        self.weight = weight

    def __call__(self, image: Tensor, target: Tensor, features: Features | None = None) -> Tensor:
        """The weighted distance of images [B, C, H, W]; no gradient through the target.

        Raises: ValueError for images of different shapes.
        """
        if image.shape != target.shape:
            raise ValueError(
                f"an image must have the shape of its target {list(target.shape)}, "
                f"not {list(image.shape)}"
            )
        return self.weight * self.distance(image, target.detach(), features)

    @abstractmethod
    def distance(self, image: Tensor, target: Tensor, features: Features | None) -> Tensor:
        """The formula, without its weight."""


@register("reconstruction", "l1")
class L1(Reconstruction):
    """Mean absolute difference; weights 100 in pix2pix (arXiv:1611.07004) and 50 in W-Net."""

    def distance(self, image: Tensor, target: Tensor, features: Features | None) -> Tensor:
        """E |x - y| over all elements."""
        return l1_loss(image, target)


@register("reconstruction", "l2")
class L2(L1):
    """Mean squared difference."""

    def distance(self, image: Tensor, target: Tensor, features: Features | None) -> Tensor:
        """E (x - y)^2 over all elements."""
        return mse_loss(image, target)


@register("reconstruction", "perceptual")
class Perceptual(Reconstruction):
    """Distance of maps that a frozen network makes of both images.

    Johnson et al. 2016, arXiv:1603.08155. Through the discriminator it is feature matching: paired
    with `l1` (Wang et al. 2018, arXiv:1711.11585, weight 10), of batch means with `moments`
    (Salimans et al. 2016, arXiv:1606.03498; the means are over this process's batch).
    """

    def __init__(
        self,
        network: str,
        weight: NonNegative = 1.0,
        layers: list[int] | list[str] | None = None,
        layer_weights: list[NonNegative] | None = None,
        criterion: Literal["l1", "l2", "rms", "moments"] = "l1",
        weights: str | None = None,
        download: bool = False,
    ) -> None:
        """`network` is `discriminator`, a folder of `gan classifier`, or a name in torchvision.

        `layers` are places in the list of maps, or names in a torchvision network; null takes all
        maps, or the last convolutions of VGG's blocks. Their terms, times `layer_weights` (1 each,
        in the order of `layers`), are summed. `weights` is the file of a torchvision network's
        state dict; without it, `download` must allow torchvision to fetch its own.
        """
        super().__init__(weight)
        self.layers, self.layer_weights = layers, layer_weights
        self.criterion = _CRITERIA[criterion]
        self.network: Any = _network(network, layers, weights, download)

    def distance(self, image: Tensor, target: Tensor, features: Features | None) -> Tensor:
        """sum_l w_l criterion(phi_l(x), phi_l(y))."""
        with torch.no_grad():
            wanted = self.maps(target, features)
        made = self.maps(image, features)
        weights = self.layer_weights or [1.0] * len(made)
        if len(weights) != len(made):
            raise ValueError(
                "reconstruction.perceptual.layer_weights must hold one number for each of the "
                f"{len(made)} maps, not {len(weights)}"
            )
        pairs = zip(weights, made, wanted, strict=True)
        return torch.stack([weight * self.criterion(a, b) for weight, a, b in pairs]).sum()

    def maps(self, image: Tensor, features: Features | None) -> Sequence[Tensor]:
        """The chosen maps of images [B, C, H, W]."""
        if self.network is not None:
            features = self.network.to(image.device).features
        if features is None:
            raise ValueError(
                "perceptual.network=discriminator needs the discriminator's features, which this "
                "recipe does not hand over: name a torchvision network or a classifier's folder"
            )
        maps = features(image)
        places = [place for place in self.layers or [] if isinstance(place, int)]
        if places and not 0 <= min(places) <= max(places) < len(maps):
            raise ValueError(
                f"reconstruction.perceptual.layers={places} must be places from 0 to "
                f"{len(maps) - 1}: the network has {len(maps)} maps"
            )
        return [maps[place] for place in places] if places else maps


def feature_distance(features: Features, image: Tensor, target: Tensor) -> Tensor:
    """Mean over layers and samples of the root mean squared difference of feature maps.

    mean_l mean_i sqrt(mean_CHW (phi_l(F_i) - phi_l(T_i))^2 + 1e-9); no gradient through the target.
    """
    with torch.no_grad():
        wanted = features(target)
    pairs = zip(features(image), wanted, strict=True)
    return torch.stack([_rms(made, truth) for made, truth in pairs]).mean()


def _rms(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over samples; the constant keeps the gradient finite where both are equal."""
    return ((made - wanted).flatten(1).square().mean(1) + 1e-9).sqrt().mean()


def _moments(made: Tensor, wanted: Tensor) -> Tensor:
    return (made.mean(0) - wanted.mean(0)).square().sum()


_CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "l2": mse_loss,
    "rms": _rms,
    "moments": _moments,
}


def _network(
    name: str, layers: list[int] | list[str] | None, weights: str | None, download: bool
) -> nn.Module | None:
    """The network of this name; None for the discriminator, which comes with each call."""
    own = name == "discriminator" or Path(name).is_dir()
    wanted = int if own else str
    if any(not isinstance(layer, wanted) for layer in layers or []):
        kind = "places such as 0" if own else "names such as features.2"
        raise ValueError(f"perceptual.layers must be {kind} for network={name}, not {layers}")
    if not own:
        names = [str(layer) for layer in layers or []]
        return TorchvisionClassifier(name, names, weights, download)
    if weights or download:
        raise ValueError(
            f"perceptual.weights and perceptual.download are for torchvision's networks, not for "
            f"network={name}: leave them out"
        )
    return None if name == "discriminator" else stored(Path(name))
