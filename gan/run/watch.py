"""Watchdogs: what usually has gone wrong when numbers look like this. They warn and change nothing.

They look only at values that were read back for the log anyway, and at samples when those are
drawn. Each speaks once, and is switched off by leaving it out of `trainer.watch`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from gan.disk import room

SHARE = 0.5  # of the time spent waiting for data, over at least PATIENCE updates
PATIENCE = 100
VANISHED = 1e-2  # of the largest median gradient norm that the generator has had
SURE = 200  # steps of a vanished gradient
COLLAPSED = 0.05  # variance of samples over that of real images, twice in a row
GROWN = 500  # steps before which samples may look alike
ROOM = 64 << 20  # bytes that a disk should have beyond two checkpoints


class Watch:
    """Looks at a run's numbers; answers with the warnings that are due, by name of the watchdog."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the watchdogs that are on: `data`, `discriminator`, `collapse`, `disk`."""
        self._quiet = {"data", "discriminator", "collapse", "disk"} - set(names)
        self._waited = self._passed = 0.0
        self._updates = 0
        self._norms: list[float] = []
        self._usual = 0.0
        self._vanished_since: int | None = None
        self._alike = 0

    def data(self, waited: float, passed: float, updates: int) -> dict[str, str]:
        """Seconds spent waiting for batches, of those that passed, during these updates."""
        self._waited, self._passed = self._waited + waited, self._passed + passed
        self._updates += updates
        if self._updates < PATIENCE:
            return {}
        share = self._waited / max(self._passed, 1e-9)
        self._waited = self._passed = 0.0
        self._updates = 0
        if share <= SHARE:
            return {}
        return self._once(
            "data",
            f"{share:.0%} of the time was spent waiting for data: the disk is slow or busy, or "
            "images are decoded for every batch; build a store on a local disk (gan data build), "
            "or keep the data on the device (data.resident=on)",
        )

    def game(self, step: int, values: Mapping[str, float]) -> dict[str, str]:
        """Means of the terms since the last time, at this step; of logits of several kinds one."""
        norm = values.get("generator/gradient_norm")
        logits = [_named(values, f"discriminator/logits_{kind}") for kind in ("real", "fake")]
        if norm is None or not all(logits):
            return {}
        self._norms = [*self._norms[-1000:], norm]
        usual = sorted(self._norms)[len(self._norms) // 2]
        self._usual = max(self._usual, usual)
        real, fake = map(fmean, logits)
        if norm >= VANISHED * self._usual or real < fake:
            self._vanished_since = None
            return {}
        if self._vanished_since is None:
            self._vanished_since = step
        if step - self._vanished_since < SURE:
            return {}
        return self._once(
            "discriminator",
            f"the generator's gradient is {norm:.1e}, once {self._usual:.1e}, while the "
            f"discriminator says {real:.1f} to real and {fake:.1f} to generated images: it has "
            "won, and a saturated loss teaches the generator nothing; try "
            "adversarial=nonsaturating or hinge, a lower optimizer.discriminator.lr, or a penalty "
            "(penalties.r1.weight=10)",
        )

    def samples(self, step: int, made: Tensor, real: Tensor | None) -> dict[str, str]:
        """Generated images beside as varied real ones, [N, ...] each."""
        if real is None or len(made) < 2 or len(real) < 2 or step < GROWN:
            return {}
        variances = torch.stack([_variance(made), _variance(real)]).tolist()
        share = variances[0] / max(variances[1], 1e-12)
        self._alike = self._alike + 1 if share < COLLAPSED else 0
        if self._alike < 2:
            return {}
        return self._once(
            "collapse",
            f"generated images vary {share:.1%} as much as real ones: the generator has collapsed "
            "to a few outputs, usually because one player runs far ahead; try a penalty "
            "(penalties.r1.weight=10), two learning rates (optimizer.discriminator.lr), a smaller "
            "beta1, or an earlier checkpoint",
        )

    def disk(self, folder: Path, size: int) -> dict[str, str]:
        """Whether two more checkpoints of so many bytes find room."""
        free = room(folder)
        if free >= 2 * size + ROOM:
            return {}
        return self._once(
            "disk",
            f"{free >> 20} MiB are free where {folder} is, and two checkpoints take "
            f"{(2 * size + ROOM) >> 20} MiB: saving will soon fail; make room, or keep fewer "
            "(trainer.keep) or save less often (trainer.save_every)",
        )

    def _once(self, name: str, text: str) -> dict[str, str]:
        if name in self._quiet:
            return {}
        self._quiet.add(name)
        return {name: text}


def _named(values: Mapping[str, float], prefix: str) -> list[float]:
    return [value for tag, value in values.items() if tag.startswith(prefix)]


def _variance(images: Tensor) -> Tensor:
    """Mean over positions of the variance over images."""
    return images.detach().float().flatten(1).var(0).mean()
