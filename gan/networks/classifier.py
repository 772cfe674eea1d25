"""A small classifier: features for losses and metrics, judge of styles and characters."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from gan.networks.blocks import widths
from gan.registry import Count, register


@register("classifier", "small", channels="${image.channels}", given=("classes",))
class Classifier(nn.Module):
    """Images of any size from 16 pixels on to the logits of several fields at once.

    `classes` maps each field to its number of classes. The stem and the first of four stages have
    `width` channels; each stage halves the map, and each later one doubles the channels. Batch norm
    runs in the module's mode: put a frozen classifier into eval mode, or it keeps changing.
    """

    def __init__(self, channels: Count, classes: Mapping[str, int], width: Count = 32) -> None:
        super().__init__()
        stages = widths(width, 4)
        self.stem = _stage(channels, width, stride=1)
        self.stages = nn.ModuleList(_stage(a, b, stride=2) for a, b in pairwise([width, *stages]))
        self.relu = nn.ReLU()
        self.fields = sorted(classes)  # a list beside the heads: a module may not be called `type`
        self.heads = nn.ModuleList(nn.Linear(stages[-1], classes[name]) for name in self.fields)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] in [-1, 1] to logits [B, classes] per field."""
        code = self.embed(image)
        return {name: head(code) for name, head in zip(self.fields, self.heads, strict=True)}

    def embed(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] to one vector each, [B, 8 * width]: the mean of the last map."""
        return self.relu(self.features(image)[-1]).mean((2, 3))

    def features(self, image: Tensor) -> list[Tensor]:
        """The normalised map of each stage before its ReLU, finest first.

        Before the ReLU every channel has about unit variance and a gradient everywhere.
        """
        maps = [self.stem(image)]
        for stage in self.stages:
            maps.append(stage(self.relu(maps[-1])))
        return maps[1:]


def _stage(before: int, after: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    # While it learns, attacks see it in eval mode. The last maps have few pixels: by statistics of
    # about 10 batches (momentum 0.1) its accuracy moves by several percent from batch to batch.
    return nn.Sequential(convolution, nn.BatchNorm2d(after, momentum=0.02))
