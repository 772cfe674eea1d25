"""From noise to images."""

from torch import Tensor, nn


class NoiseToImage(nn.Module):
    """A generator of images [B, C, H, W] from noise [B, latent]."""

    latent: int


class FromNoise:
    """How a recipe comes from noise to images: in play, in samples, in measures, and once loaded.

    A recipe that has other noise, or a generator that gives more than images, overrides it.
    """

    generator: NoiseToImage

    @staticmethod
    def noise(normal: Tensor) -> Tensor:
        """What images are made of, from standard normal numbers [N, latent]: these themselves."""
        return normal

    @staticmethod
    def draw(generator: nn.Module, *given: Tensor) -> Tensor:
        """Images [N, C, H, W] of noise [N, latent] and, where it reads any, labels [N]."""
        images: Tensor = generator(*given)
        return images
