"""What the discriminator says of an update's images, and the penalties on how it comes to say so.

R1 and R2 take their gradient where the adversarial term has just looked: one forward serves both.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gan import draws
from gan.recipe import Judge, Penalty, due, penalise
from gan.step.compiling import eager


class Looks:
    """A critic's looks at the real and the fake images [B, C, H, W] of one update.

    A look that a due penalty will differentiate is taken as it needs it, not compiled and down to
    the images, and kept. Under autocast penalties look for themselves: their numbers are exact.
    """

    def __init__(
        self,
        critic: Callable[[Tensor], Any],
        penalties: Mapping[str, Penalty],
        update: int,
        real: Tensor,
        fake: Tensor,
    ) -> None:
        """`critic` gives logits, or what has `logits` beside other things."""
        self.critic, self.penalties, self.update = critic, penalties, update
        self.images = {"real": real, "fake": fake}
        self.kept: list[tuple[Tensor, Any]] = []
        self.differentiated = {getattr(penalties[n], "at", None) for n in due(penalties, update)}
        if self.differentiated and torch.is_autocast_enabled(real.device.type):
            self.differentiated = set()

    def real(self) -> Any:
        """What the critic says of the reals."""
        return self._look("real")

    def fake(self) -> Any:
        """What the critic says of the fakes."""
        return self._look("fake")

    def terms(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The penalties that are due and, as statistics, the means of logits of reals and fakes."""
        images = self.images["real"], self.images["fake"]
        paid = penalise(self.penalties, self, *images, self.update)
        return {**paid, "logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of any images: it is the judge that penalties ask."""
        return _logits(self.critic(images))

    def _look(self, at: str) -> Any:
        images = self.images[at]
        if at not in self.differentiated:
            return self.critic(images)
        images = images.detach().requires_grad_()
        with eager():
            said = self.critic(images)
        self.kept.append((images, said))
        return said


def input_gradient(judge: Judge, images: Tensor) -> Tensor:
    """Gradient [B, C, H, W] of each sample's score (mean over patches), differentiable again."""
    with torch.autocast(images.device.type, enabled=False):
        images, logits = look(judge, images)
        scores = logits.reshape(len(logits), -1).mean(1)  # [B]
        return torch.autograd.grad(scores.sum(), images, create_graph=True)[0]


def falling(end: float, images: int, update: int, rows: int) -> Tensor | float:
    """What is left at an update of a weight that goes along half a cosine to `end` times itself.

    It does so over `images` of batches of which `rows` are played at once; in a recorded turn the
    number of the update is on the device.
    """
    if end == 1:
        return 1.0
    number: Any = getattr(update, "tensor", update)
    share = (torch.as_tensor(number) * (draws.batch(rows) / images)).clamp(max=1)
    return end + (1 - end) * 0.5 * (1 + torch.cos(math.pi * share))


def look(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images as a leaf of the graph, and their logits: of a look that was kept, or of a new one."""
    for leaf, said in judge.kept if isinstance(judge, Looks) else ():
        if _place(leaf) == _place(images):
            return leaf, _logits(said)
    images = images.detach().requires_grad_()
    return images, judge(images)


def _place(images: Tensor) -> tuple[Any, ...]:
    return images.data_ptr(), images.shape, images.stride(), images.dtype


def _logits(said: Any) -> Tensor:
    logits: Tensor = said if isinstance(said, Tensor) else said.logits
    return logits
