"""Convolutions that halve and double maps, without the arithmetic that changes nothing.

A 3 x 3 convolution and the mean of 2 x 2 pixels are one 4 x 4 convolution of stride 2, and a 3 x 3
convolution of maps doubled to their nearest neighbours is one transposed 4 x 4 convolution: both
exactly, borders too, with 4/9 of the arithmetic and no map at the larger size between the two
(Karras et al. 2018, arXiv:1710.10196, join them likewise). And from 2 x 2 pixels to one, or back, a
convolution of stride 2 meets the middle of its weights alone: all others would multiply zeros.
Weights keep the shape that they have in the papers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, linear, pad

from gan.networks.blocks import Padding
from gan.networks.penalised import convolved


class _Joined(nn.Conv2d):
    """A convolution of 3 x 3 that keeps sizes, `spread` over the two steps that it stands for."""

    def __init__(self, before: int, after: int, padding: Padding = "zeros") -> None:
        super().__init__(before, after, 3, padding=1, padding_mode=padding)

    def spread(self) -> Tensor:
        """The weight over the 2 x 2 pixels that it meets, [after, before, 4, 4], as means."""
        return avg_pool2d(self.weight, 2, stride=1, padding=1)


class PooledConv2d(_Joined):
    """`nn.Conv2d(before, after, 3, padding=1)`, then `nn.AvgPool2d(2)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, H // 2, W // 2]."""
        weight = self.spread()
        if self.padding_mode == "zeros":
            return conv2d(input, weight, self.bias, stride=2, padding=1)
        return conv2d(_padded(input, self.padding_mode), weight, self.bias, stride=2)


class UpsampledConv2d(_Joined):
    """Nearest neighbours at twice the size, then `nn.Conv2d(before, after, 3, padding=1)`."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, 2 * H, 2 * W]."""
        weight = 4 * self.spread().flip(2, 3).transpose(0, 1)  # sums, turned to where they go
        if self.padding_mode == "zeros":
            return conv_transpose2d(input, weight, self.bias, stride=2, padding=1)
        # the pixel that doubled maps reflect at their border is its own neighbour
        mode = "replicate" if self.padding_mode == "reflect" else self.padding_mode
        return conv_transpose2d(_padded(input, mode), weight, self.bias, stride=2, padding=3)


class StridedConv2d(nn.Conv2d):
    """`nn.Conv2d(before, after, kernel, 2, (kernel - 1) // 2)`: maps of even sizes, halved."""

    def __init__(self, before: int, after: int, kernel: int, bias: bool = True) -> None:
        super().__init__(before, after, kernel, 2, (kernel - 1) // 2, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, H // 2, W // 2]."""
        if input.shape[2:] != (2, 2):
            return super().forward(input)
        pixels = input.permute(0, 2, 3, 1).flatten(1)
        return linear(pixels, _middle(self), self.bias)[:, :, None, None]


class StridedConvTranspose2d(nn.ConvTranspose2d):
    """The same the other way, with `output_padding` where an odd kernel needs it: maps, doubled."""

    def __init__(self, before: int, after: int, kernel: int, bias: bool = True) -> None:
        super().__init__(before, after, kernel, 2, (kernel - 1) // 2, kernel % 2, bias=bias)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, 2 * H, 2 * W]."""
        if input.shape[2:] != (1, 1) or output_size is not None:
            return super().forward(input, output_size)
        bias = None if self.bias is None else self.bias.repeat(4)
        pixels = linear(input.flatten(1), _middle(self).mT, bias)
        return pixels.unflatten(1, (2, 2, -1)).permute(0, 3, 1, 2)


class _Bilinear(nn.Module):
    """Weights of the nearest 2 x 2 pixels, at half pixels; beyond the border is nothing."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        weight = (line[:, None] * line).repeat(channels, 1, 1, 1)
        self.register_buffer("weight", weight, persistent=False)


class BilinearTwice(_Bilinear):
    """Maps at twice the size, by bilinear interpolation."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, C, H, W] to maps [B, C, 2 * H, 2 * W]."""
        return conv_transpose2d(input, self.weight, stride=2, padding=1, groups=input.shape[1])


class BilinearHalf(_Bilinear):
    """Maps at half the size, by bilinear interpolation between means: what doubles, transposed."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, C, H, W] to maps [B, C, H // 2, W // 2]."""
        return convolved(input, self.weight / 4, (2, 1, input.shape[1]))


def _middle(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The weights between one pixel and 2 x 2, as a matrix: a row for each of the first channels.

    A row has pixels, then channels, the order in which weights and gradients lie (channels last).
    """
    first = int(layer.padding[0])
    taps = layer.weight.permute(0, 2, 3, 1)
    return taps[:, first : first + 2, first : first + 2].flatten(1)


def _padded(x: Tensor, mode: Any) -> Tensor:
    return pad(x, (1, 1, 1, 1), mode)
