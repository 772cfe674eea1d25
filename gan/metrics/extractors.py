"""What makes features of images: a classifier of them, or an untrained network.

The names `fid`, `kid`, `is`, `precision`, `recall` belong to the reference networks alone; of any
other the same formula is named after it, as in `fd_classifier`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gan.config.settings import exact
from gan.metrics.judges import Judge
from gan.recipe import Batch
from gan.registry import create

PORTION = 64  # images that a network sees, or draws, at once


def portions(batch: Batch) -> Iterator[dict[str, Tensor]]:
    """A batch, so many samples at a time."""
    for start in range(0, len(next(iter(batch.values()))), PORTION):
        yield {key: value[start : start + PORTION] for key, value in batch.items()}


class Extractor(Protocol):
    """Images [N, C, H, W] in [-1, 1] to features, with what has to be said of them.

    Attributes:
        name: the suffix of its numbers; those of `inception` and `vgg16` are plain.
        key: hash of its weights.
        resize: how images get its size.
    """

    name: str
    key: str
    resize: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and logits [N, L], on the CPU; L is 0 where there are none."""


class OfClassifier:
    """The last features of a classifier of the same images, and its logits of the first field."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.resize = judge, "classifier", "none"
        self.network: Any = judge.network
        self.key = weights_hash(self.network.state_dict())

    @torch.no_grad()
    @exact()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits; in float32, whatever TF32 is set to."""
        found = []
        for part in torch.split(images, PORTION):
            code = self.network.embed(part)
            found.append((code.float().cpu(), self.network.heads[0](code).float().cpu()))
        features, logits = zip(*found, strict=True)
        return torch.cat(features), torch.cat(logits)


class OfNothing:
    """The last features of the same network untrained: fixed by a seed, for images without labels.

    Naeem et al. 2020, arXiv:2002.09797, section 4.3, find such embeddings useful where images are
    far from photographs. A fall says that images come nearer; the value says nothing by itself.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.name, self.resize = "random", "none"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = create("classifier", "small", channels=channels, classes={}, width=32)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.network: Any = network.eval().requires_grad_(False).to(device)
        self.key = weights_hash(self.network.state_dict())

    @torch.no_grad()
    @exact()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, in float32 likewise, and no logits."""
        parts = [self.network.embed(part).float().cpu() for part in torch.split(images, PORTION)]
        return torch.cat(parts), torch.empty(len(images), 0)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Changes with any weight or its name."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
