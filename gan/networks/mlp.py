"""Small perceptrons, for points and tiny images."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from gan.config.signature import SHAPE
from gan.networks.blocks import Condition, Critic, Critique, Latent
from gan.registry import Count, register


def _hidden(features: list[int], activation: nn.Module) -> nn.Sequential:
    pairs = pairwise(features)
    return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), activation)))


@register("generator", "mlp", given=("classes",), **SHAPE)
class Generator(nn.Module):
    """Latent vectors to images through `depth` hidden layers of `width` units.

    With `output="linear"` the values are unbounded: points, not images.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        latent: Count = 16,
        width: Count = 128,
        depth: Count = 3,
        output: Literal["tanh", "linear"] = "tanh",
    ) -> None:
        super().__init__()
        self.latent = latent
        self.join = Latent(latent, classes)
        self.hidden = _hidden([self.join.width] + depth * [width], nn.ReLU())
        self.image = nn.Sequential(
            nn.Linear(width, channels * size * size),
            nn.Unflatten(1, (channels, size, size)),
            nn.Tanh() if output == "tanh" else nn.Identity(),
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Latent vectors [B, latent] and labels [B] to images [B, C, size, size]."""
        return self.image(self.hidden(self.join(z, label)))


@register("discriminator", "mlp", given=("classes",), **SHAPE)
class Discriminator(nn.Module):
    """Flattened images to one logit each through `depth` hidden layers of `width` units.

    With `classes` the label is a `condition` of the logit, as in `Critic`; 0: no labels.
    """

    def __init__(
        self,
        size: Count,
        channels: Count,
        classes: int = 0,
        condition: Condition = "projection",
        width: Count = 128,
        depth: Count = 3,
    ) -> None:
        super().__init__()
        self.hidden = _hidden([channels * size * size] + depth * [width], nn.LeakyReLU(0.2))
        self.critic = Critic(width, classes, condition)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [B, C, size, size] and labels [B] to logits [B]."""
        return self.critique(image, label).logits

    def critique(self, image: Tensor, label: Tensor | None = None) -> Critique:
        """The same, with class logits [B, classes] where there is an auxiliary head."""
        return self.critic(self.hidden(image.flatten(1)), label)
