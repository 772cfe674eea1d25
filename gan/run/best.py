"""The step at which a measure was best: its checkpoint is kept beside the last ones."""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from gan import checkpoint, distributed
from gan.config.signature import ConfigError, nearest
from gan.step.buffers import settled

Better = Literal["less", "more"]


class Best:
    """When a run's chosen measure was best so far.

    Attributes:
        tag: the measure, such as `metric/validation_l1`, or None to keep no best checkpoint.
        step: generator updates behind the best, or None before the first measure.
        value: what was measured then.
    """

    def __init__(self, tag: str | None, better: Mapping[str, Better]) -> None:
        """`better` says of each measure whether less or more of it is better.

        Raises: ConfigError for a measure that the run does not take.
        """
        known = {f"metric/{name}": which for name, which in better.items()}
        if tag is not None and tag not in known:
            way_out = nearest(tag, known) if known else "this recipe is not measured on these data"
            raise ConfigError(f"trainer.best={tag} is no measure of this run; {way_out}")
        self.tag, self._sign = tag, -1.0 if tag and known[tag] == "more" else 1.0
        self.step: int | None = None
        self.value = math.nan
        self._before: tuple[int | None, float] = (None, math.nan)

    def offer(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Take in the measures of a step; what to log beside them. Of equals the first is best."""
        if self.tag is None:
            return {}
        value = values.get(self.tag, math.nan)
        better = self.step is None or self._sign * value < self._sign * self.value
        if better and math.isfinite(value):
            self._before = self.step, self.value
            self.step, self.value = step, value
        if self.step is None:
            return {}
        return {f"best/{self.tag.removeprefix('metric/')}": self.value, "best/step": self.step}

    def at(self, step: int) -> bool:
        """Whether this step is the best so far, as the first process has measured it."""
        return self.step == step and distributed.rank() == 0

    def undo(self, step: int) -> None:
        """Forget that a step was the best: its checkpoint could not be written."""
        if self.step == step:
            self.step, self.value = self._before

    def state(self, measured: int) -> dict[str, Any] | None:
        """What a checkpoint keeps; so many images are `measured`."""
        if self.step is None:
            return None
        return {"metric": self.tag, "step": self.step, "value": self.value, "measured": measured}

    def restore(
        self,
        kept: Mapping[str, Any] | None,
        folder: Path,
        measured: int,
        tell: Callable[[str, str], None],
    ) -> None:
        """Go on from a checkpoint's best, if it is of the same measure and lies in this folder.

        Measured on another number of images it begins anew, which is told: distances shrink with
        that number.
        """
        if not kept or kept["metric"] != self.tag or not path_of(folder, kept["step"]).exists():
            return
        if (before := kept.get("measured", measured)) != measured:
            tell(
                "best",
                f"the best by {self.tag}, {kept['value']:.4g} at step {kept['step']}, was measured "
                f"with trainer.measured={before}, which is now {measured}: it begins anew, as the "
                f"two do not compare; copy {path_of(folder, kept['step'])} to keep it",
            )
            return
        self.step, self.value = kept["step"], kept["value"]

    def generator(self, like: nn.Module, weights: str, folder: Path) -> nn.Module:
        """A copy of a generator with the best checkpoint's `raw` weights, or those of an average.

        Raises: CheckpointError where it is gone or damaged.
        """
        assert self.step is not None
        stored = checkpoint.load(path_of(folder, self.step), networks_only=True)
        generator = copy.deepcopy(like)
        tensors = weights_of(stored.networks, weights)
        checkpoint.restore(generator.state_dict(), tensors, f"the generator of {stored.path}")
        return generator if weights == "raw" else settled(generator)

    def __str__(self) -> str:
        """The best in words."""
        return f"best by {self.tag}: {self.value:.4g} at step {self.step}"


def path_of(folder: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return folder / f"step-{step:08d}"


def weights_of(networks: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A generator's tensors out of a checkpoint's networks: `raw`, or an average by its name."""
    prefix = "recipe/generator." if name == "raw" else f"average/{name}/"
    return {k.removeprefix(prefix): t for k, t in networks.items() if k.startswith(prefix)}
