"""Sections of the configuration that are plain values: their signatures are their schema."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch

from gan.signature import Bounds, Count, Positive, Whole


@dataclass(frozen=True)
class Image:
    """The `image` section: pixels along a side, channels."""

    size: Count
    channels: Count


@dataclass(frozen=True)
class Clip:
    """A player's `clip` section, off where None: gradients by value, by norm, and weights."""

    value: Positive | None = None
    norm: Positive | None = None
    weights: Positive | None = None


UNCLIPPED = Clip()


@dataclass(frozen=True)
class Settings:
    """The `trainer` section: lengths and cadences are in generator updates (steps)."""

    steps: Count = 10_000
    batch_size: Count = 64
    order: Literal["discriminator", "generator"] = "discriminator"  # who plays first in a step
    n_critic: Count | dict[Whole, Count] = 1
    discriminator_warmup: Whole = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: Count = 20
    sample_every: Count = 500
    measure_every: Count = 500
    save_every: Count = 500
    keep: Annotated[int, Bounds(2)] = 2

    def critic(self, step: int) -> int:
        """Discriminator updates before this generator update, by the newest entry of `n_critic`."""
        if isinstance(self.n_critic, int):
            return self.n_critic
        return self.n_critic[max(start for start in self.n_critic if start <= step)]

    def discriminator_updates(self) -> int:
        """Discriminator updates of the whole run."""
        pieces = self.n_critic if isinstance(self.n_critic, dict) else {0: self.n_critic}
        starts = [start for start in sorted(pieces) if start < self.steps]
        lengths = [end - start for start, end in pairwise([*starts, self.steps])]
        turns = [length * pieces[start] for start, length in zip(starts, lengths, strict=True)]
        return self.discriminator_warmup + sum(turns)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The precision of forward passes on a device; `auto` is bf16 on CUDA.

        Without weight cache: a cast kept across an optimizer step would be stale.
        """
        if self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda"):
            return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        return nullcontext()
