"""Sections of the configuration that are plain values: their signatures are their schema."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_

from gan.config.signature import Bounds, Count, Positive, Whole
from gan.step.gradients import total_norm

Watched = Literal["data", "discriminator", "collapse", "disk"]


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

    def bound_gradients(self, parameters: Sequence[Tensor], norm: Tensor) -> None:
        """Bound the gradients, whose total norm is given, by value and then by norm."""
        if self.value is not None:
            clip_grad_value_(parameters, self.value)
            norm = total_norm(parameters)
        if self.norm is not None:
            clip_grads_with_norm_(parameters, self.norm, norm)

    @torch.no_grad()
    def bound_weights(self, parameters: Sequence[Tensor]) -> None:
        """Bound the weights that have just moved."""
        moved = [p for p in parameters if p.grad is not None]
        if self.weights is not None and moved:
            torch._foreach_clamp_min_(moved, -self.weights)
            torch._foreach_clamp_max_(moved, self.weights)


UNCLIPPED = Clip()


@dataclass(frozen=True)
class Settings:
    """The `trainer` section: lengths and cadences are in generator updates (steps)."""

    steps: Count = 10_000
    batch_size: Count = 64
    micro_batch: Whole | None = None
    order: Literal["discriminator", "generator"] = "discriminator"  # who plays first in a step
    n_critic: Count | dict[Whole, Count] = 1
    discriminator_warmup: Whole = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # what the recipe calls while it trains
    graphs: Literal["auto", True, False] = "auto"  # turns recorded and replayed, on CUDA
    profile: Whole = 0  # steps to trace, once a run has warmed up
    log_every: Annotated[int, Bounds(1, 1000)] = 20  # a checkpoint has the terms between two
    sample_every: Count = 500
    measure_every: Count = 500
    save_every: Count = 500
    keep: Annotated[int, Bounds(2)] = 2
    failed_saves: Count = 3
    rollbacks: Annotated[int, Bounds(0, 2)] = 0  # to the newest checkpoint, where numbers stay bad
    judges: bool = True  # measures look through classifiers of the real images, trained once
    inception: str | None = None  # files of weights, for FID and KID; for precision and recall;
    vgg16: str | None = None
    lpips: str | None = None  # and for LPIPS of pairs
    measured: Annotated[int, Bounds(16)] = 1024  # images that a measure draws from noise
    best: str | None = None  # the measure whose best checkpoint is kept: metric/NAME
    evaluate: bool = False  # at the end, as `gan evaluate` does
    timeout: Positive = 100.0
    watch: tuple[Watched, ...] = ("data", "discriminator", "collapse", "disk")

    @property
    def weights(self) -> dict[str, Path]:
        """The files of weights by the name of their network."""
        named = {"inception": self.inception, "vgg16": self.vgg16, "lpips": self.lpips}
        return {name: Path(file) for name, file in named.items() if file is not None}

    def rows(self, processes: int) -> int:
        """Images that a backward sees: a process's share of the batch, or a micro-batch of it."""
        share = self.batch_size // processes
        return min(share, self.micro_batch or share)

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
        """The precision of forward passes on a device; `auto` is bf16 where it has units for that.

        Without weight cache: a cast kept across an optimizer step would be stale.
        """
        if self.precision == "bf16" or (self.precision == "auto" and multiplies_bf16(device)):
            return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
        return nullcontext()


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has matrix units for bf16: CUDA ones from Ampere on, CPUs with AMX.

    Elsewhere it is slower than float32, and cuDNN has no such convolutions before Ampere.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # older ones lack it
    return device.type == "cpu" and bool(capabilities.get("amx_bf16"))


@contextmanager
def exact() -> Iterator[None]:
    """Inside the block float32 is float32: no TF32 in products or convolutions."""
    tf32, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
