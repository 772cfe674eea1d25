"""A history of generated images, so that the discriminator does not forget what it has seen."""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Gives back images, about half of them from earlier batches once it is full.

    Until `size` images are stored, each is stored and returned. From then on each is, with
    probability 1/2, exchanged for a stored one drawn uniformly. Images that are not finite pass
    and are never stored. Shrivastava et al. 2016, arXiv:1612.07828, section 2.3, in the form of
    Zhu et al. 2017, arXiv:1703.10593. The images and their number are buffers, hence part of a
    checkpoint (of the first process, where several train).
    """

    stored: Tensor
    filled: Tensor

    def __init__(self, size: int, *shape: int) -> None:
        """`size` images of the shape [C, H, W]; 0 gives back what comes."""
        super().__init__()
        self.size = size
        self.register_buffer("stored", torch.zeros(size, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to as many, detached and in memory of their own.

        Nothing is read back from the device: the sequence of exchanges is worked out with tensors.
        """
        if not self.size:
            return images.detach()
        images = images.detach().to(self.stored.dtype)
        place, exchanged = self._places(images)
        order = torch.arange(len(images), device=images.device)
        earlier = (place == place[:, None]) & (order < order[:, None])  # [B, B], of the same place
        found = torch.where(earlier, order, -1).amax(1)  # who was put there last, before me
        stored = self.stored[place.clamp_min(0)]
        before = torch.where(_wide(found >= 0), images[found.clamp_min(0)], stored)
        result = torch.where(_wide(exchanged), before, images)
        slots = torch.arange(self.size, device=images.device)
        last = torch.where(place == slots[:, None], order, -1).amax(1)  # [size]
        self.stored.copy_(torch.where(_wide(last >= 0), images[last.clamp_min(0)], self.stored))
        return result

    def _places(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Where each image is put, -1 for nowhere, and whether it is exchanged; both [B]."""
        sound = images.isfinite().flatten(1).all(1)
        free = self.filled + sound.cumsum(0) - 1
        filling = free < self.size
        drawn = torch.randint(self.size, free.shape, device=images.device)
        taken = torch.rand(free.shape, device=images.device) < 0.5
        place = torch.where(sound & (filling | taken), torch.where(filling, free, drawn), -1)
        self.filled.add_(sound.sum()).clamp_(max=self.size)
        return place, sound & taken & ~filling


def _wide(condition: Tensor) -> Tensor:
    return condition[:, None, None, None]  # [N] to [N, 1, 1, 1]
