"""What several networks are made of: levels, normalisation, class conditions, weight starts."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Norm = Literal["batch", "instance", "layer", "group", "spectral", "weight", "none"]
GeneratorNorm = Literal[Norm, "conditional", "adain"]  # the two last read a condition
Padding = Literal["zeros", "reflect", "replicate", "circular"]
Condition = Literal["projection", "auxiliary", "both"]  # how a discriminator sees the class

CENTRING = ("batch", "instance", "conditional", "adain")  # norms that undo a bias before them

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def levels(size: int) -> int:
    """How often an image can be halved down to one pixel.

    Raises: ValueError for a size that is no power of two of at least 8.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(
            f"image.size must be a power of two, 8 or more, for this network, not {size}"
        )
    return size.bit_length() - 1


def widths(first: int, count: int, cap: int = 8) -> list[int]:
    """Channels per level: `first` nearest the image, then doubling up to `cap * first`."""
    return [first * min(2**level, cap) for level in range(count)]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """A layer that normalises maps [B, C, H, W]; the identity for norms that act on weights.

    `layer` normalises each sample over C, H and W with one gain and bias per channel; `group` does
    so for groups of 16 channels where they divide (Wu and He 2018, arXiv:1803.08494).
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    return nn.Identity()


def narrowed(before: int, after: int, stride: int, norm: Norm, padding: Padding) -> nn.Module:
    """A 4 x 4 convolution of maps [B, before, H, W], its norm and a leaky ReLU."""
    bias = norm not in CENTRING
    convolution = nn.Conv2d(before, after, 4, stride, 1, bias=bias, padding_mode=padding)
    return nn.Sequential(convolution, normalisation(norm, after), nn.LeakyReLU(0.2))


def reparametrise(network: nn.Module, norm: GeneratorNorm) -> None:
    """Put spectral or weight normalisation on every weight; other norms change nothing.

    Call it when the weights have their starting values: weight normalisation starts from them.
    Spectral: Miyato et al. 2018, arXiv:1802.05957; one power iteration per forward while training,
    or per block of `torch.nn.utils.parametrize.cached()`.
    Weight: Salimans and Kingma 2016, arXiv:1602.07868; one length per output channel.
    """
    for module in [module for module in network.modules() if isinstance(module, _WEIGHTED)]:
        if norm == "spectral":
            parametrizations.spectral_norm(module)
        elif norm == "weight":
            parametrizations.weight_norm(module, dim=int(isinstance(module, nn.ConvTranspose2d)))


def dcgan_start(module: nn.Module) -> None:
    """Weights from N(0, 0.02), batch norm gains from N(1, 0.02), zero biases (arXiv:1511.06434)."""
    if isinstance(module, _WEIGHTED):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
    _zero_bias(module)


def xavier_start(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases; normalisation keeps its gain 1 and bias 0."""
    if isinstance(module, _WEIGHTED):
        nn.init.xavier_normal_(module.weight)
    _zero_bias(module)


def chosen_norm(norm: GeneratorNorm | Literal["auto"], classes: int) -> GeneratorNorm:
    """A generator's norm; `auto` is conditional batch norm with classes and batch norm without.

    Raises: ValueError for conditional batch norm where there are no classes.
    """
    if norm == "auto":
        return "conditional" if classes else "batch"
    if norm == "conditional" and not classes:
        raise ValueError(
            "generator.norm cannot be conditional without classes: choose a recipe that reads "
            "labels, or another norm, such as batch or adain"
        )
    return norm


def generator_norm(norm: GeneratorNorm, channels: int, classes: int, features: int) -> nn.Module:
    """A layer called with maps [B, C, H, W] and the code that an `Entrance` gives.

    `features` is the length of that code where it is a vector.
    """
    if norm == "conditional":
        return ConditionalBatchNorm(channels, classes)
    if norm == "adain":
        return AdaptiveInstanceNorm(channels, features)
    return Unconditional(normalisation(norm, channels))


class Unconditional(nn.Module):
    """A norm beside conditional ones: it does not read the code."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Maps [B, C, H, W], normalised."""
        return self.norm(x)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias belong to the class; all classes share its statistics.

    Dumoulin et al. 2016, arXiv:1610.07629; de Vries et al. 2017, arXiv:1707.00683.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Parameter(torch.ones(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Maps [B, C, H, W] and labels [B] to maps of the same shape."""
        return _modulated(self.norm(x), self.gain[label], self.bias[label])


class AdaptiveInstanceNorm(nn.Module):
    """Instance norm with a gain and a bias that are linear in a code, AdaIN.

    Huang and Belongie 2017, arXiv:1703.06868; Karras et al. 2018, arXiv:1812.04948. Gains are
    counted from 1, so that a layer which starts small starts as instance norm.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.style = nn.Linear(features, 2 * channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Maps [B, C, H, W] and codes [B, features] to maps of the same shape."""
        gain, bias = self.style(code).chunk(2, 1)  # [B, C] each
        return _modulated(self.norm(x), 1 + gain, bias)


class Latent(nn.Module):
    """Latent vectors [B, latent], joined with an embedding of the class where there are classes.

    `width` is the length of the result. Mirza and Osindero 2014, arXiv:1411.1784.
    """

    def __init__(self, latent: int, classes: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(classes, latent)] if classes else [])
        self.width = latent * (1 + len(self.embeddings))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to [B, width]."""
        _require_label(label, wanted=bool(self.embeddings))
        return torch.cat([z, *(embedding(label) for embedding in self.embeddings)], 1)


class Entrance(nn.Module):
    """What a generator grows from, and the code that its norms read.

    Conditional batch norm reads the label itself; for any other norm the latent vector carries an
    embedding of the class and is the code as well. `width` is the length of that vector.
    """

    def __init__(self, latent: int, classes: int, norm: GeneratorNorm) -> None:
        super().__init__()
        self.labelled = norm == "conditional"
        self.join = Latent(latent, 0 if self.labelled else classes)
        self.width = self.join.width

    def forward(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent vectors [B, latent] and labels [B] to vectors [B, width] and the norms' code."""
        if self.labelled:
            return self.join(z), _given(label)
        vector = self.join(z, label)
        return vector, vector


class Critique(NamedTuple):
    """What a discriminator says of an image."""

    logits: Tensor  # [B], the larger the more real
    class_logits: Tensor | None  # [B, classes], where it has an auxiliary head


class Critic(nn.Module):
    """One logit per sample, linear in its features; with classes, one or both of two conditions.

    `projection` adds the product of features and class embedding to the logit (Miyato and Koyama
    2018, arXiv:1802.05637); `auxiliary` names the class beside it, from the same features (Odena et
    al. 2016, arXiv:1610.09585).
    """

    def __init__(self, features: int, classes: int, condition: Condition = "projection") -> None:
        super().__init__()
        if condition != "projection" and not classes:
            raise ValueError(
                f"discriminator.condition={condition} needs classes: choose a recipe that reads "
                "labels, such as conditional"
            )
        self.classes = classes
        self.linear = nn.Linear(features, 1)
        projected = classes > 0 and condition != "auxiliary"
        named = classes > 0 and condition != "projection"
        self.embeddings = nn.ModuleList([nn.Embedding(classes, features)] if projected else [])
        self.heads = nn.ModuleList([nn.Linear(features, classes)] if named else [])

    def forward(self, features: Tensor, label: Tensor | None = None) -> Critique:
        """Features [B, F] and labels [B] to logits [B] and class logits [B, classes]."""
        _require_label(label, wanted=bool(self.classes))
        return in_full(partial(self._judge, label), features)

    def _judge(self, label: Tensor | None, features: Tensor) -> Critique:
        logits = self.linear(features).squeeze(1)
        for embedding in self.embeddings:
            logits = logits + (embedding(label) * features).sum(1)
        return Critique(logits, next((head(features) for head in self.heads), None))


Said = TypeVar("Said")


def in_full(head: Callable[[Tensor], Said], features: Tensor) -> Said:
    """What a last layer makes of features, as fp32 at least: losses are differences of logits, of
    which bf16 leaves too few digits.
    """
    device = features.device.type
    if features.is_meta or not torch.is_autocast_enabled(device):
        return head(features)
    with torch.autocast(device, enabled=False):
        return head(features.to(torch.promote_types(features.dtype, torch.float32)))


def _zero_bias(module: nn.Module) -> None:
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)


def _modulated(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return x * gain[:, :, None, None] + bias[:, :, None, None]  # gain and bias [B, C]


def _given(label: Tensor | None) -> Tensor:
    if label is None:
        raise ValueError("label must be given: this network was built for classes")
    return label


def _require_label(label: Tensor | None, wanted: bool) -> None:
    if wanted:
        _given(label)
    elif label is not None:
        raise ValueError("label must be None: this network was built with classes=0")
