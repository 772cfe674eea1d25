"""Judges: classifiers that say whether an image is what it should be, and how well they know."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gan.data.store import Store
from gan.features import Lesson, Training, fitted

TRAINING = Training(held_out=0.1)  # a tenth of the real images says how good the judge is


@dataclass(frozen=True)
class Judge:
    """A frozen classifier of one or several fields, trained once on real images and kept.

    `ceiling` is the share of held-out real images that it names rightly, by field: no generator
    can be expected to score more.
    """

    network: nn.Module
    ceiling: Mapping[str, float]

    @torch.no_grad()
    def right(self, images: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whether images [N, C, H, W] in [-1, 1] are named as their labels [N] say, bool [N]."""
        logits: dict[str, list[Tensor]] = {field: [] for field in labels}
        for part in torch.split(images, 512):
            found = self.network(part)
            for field in labels:
                logits[field].append(found[field].argmax(1))
        return {field: torch.cat(logits[field]) == label for field, label in labels.items()}


def judge_of(
    store: Store,
    images: Callable[[np.ndarray], Tensor],
    rows: np.ndarray,
    labels: Mapping[str, np.ndarray],
    device: torch.device,
    say: Callable[[str], None] = print,
) -> Judge:
    """A judge of these rows [N] of a store by these labels [N]; `images` gives rows as floats.

    It is never the network of a loss: it is trained for itself, on nine tenths of the rows.
    """
    lesson = Lesson(images, rows, labels, store.content_hash)
    settings = {"name": "small", "channels": store.shape[2], "width": 32}
    result = fitted(settings, lesson, device, TRAINING, say=say)
    return Judge(result.network, result.accuracy["held_out"])
