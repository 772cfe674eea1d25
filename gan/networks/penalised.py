"""Convolutions for networks under gradient penalties, which differentiate them twice.

A convolution is linear in its images and in its weights, so the derivatives of its derivatives are
convolutions of its own shape, as NVlabs/stylegan2-ada-pytorch has them too. Torch takes them with
images as kernels instead, and groups one by one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

Shape = tuple[int, int, int]  # stride, padding and groups


class PenalisedConv2d(nn.Conv2d):
    """`nn.Conv2d`, zeros beyond the border, with the same numbers to the second derivative."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, before, H, W] to maps [B, after, H', W']."""
        shape = int(self.stride[0]), int(self.padding[0]), self.groups
        return convolved(input, self.weight, shape, self.bias)


def convolved(images: Tensor, weight: Tensor, shape: Shape, bias: Tensor | None = None) -> Tensor:
    """`conv2d` of images [B, C, H, W] and weights [D, C / groups, K, K]."""
    if torch.compiler.is_compiling() or _cast(images):  # penalties are neither
        return _maps(images, weight, shape, bias)
    maps: Tensor = _Convolve.apply(images, weight, bias, shape)
    return maps


class _Convolve(torch.autograd.Function):
    """Images and weights to maps."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.shape = shape
        return _maps(images, weight, shape, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        wanted = ctx.needs_input_grad
        to_images, to_weight = _Slopes.apply(gradient, *ctx.saved_tensors, ctx.shape, wanted[:2])
        return to_images, to_weight, gradient.sum((0, 2, 3)) if wanted[2] else None, None


class _Slopes(torch.autograd.Function):
    """Gradients of images and weights, of which those that are wanted, out of that of maps."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor, shape: Shape, wanted: Any
    ) -> Any:
        ctx.save_for_backward(gradient, images, weight)
        ctx.set_materialize_grads(False)
        ctx.shape = shape
        return _slopes(gradient, images, weight, shape, *wanted)

    @staticmethod
    def backward(ctx: Any, of_images: Tensor | None, of_weight: Tensor | None) -> Any:
        gradient, images, weight = ctx.saved_tensors
        wanted, shape = ctx.needs_input_grad, ctx.shape
        terms: list[Tensor] = []  # of the gradient of maps
        to_images = to_weight = None
        if of_images is not None:
            terms += [_maps(of_images, weight, shape)] if wanted[0] else []
            _, to_weight = _slopes(gradient, of_images, weight, shape, False, wanted[2])
        if of_weight is not None:
            terms += [_maps(images, of_weight, shape)] if wanted[0] else []
            to_images, _ = _slopes(gradient, images, of_weight, shape, wanted[1], False)
        return sum(terms) if terms else None, to_images, to_weight, None, None


def _cast(images: Tensor) -> bool:
    return not images.is_meta and torch.is_autocast_enabled(images.device.type)


def _maps(images: Tensor, weight: Tensor, shape: Shape, bias: Tensor | None = None) -> Tensor:
    stride, padding, groups = shape
    return conv2d(images, weight, bias, stride, padding, 1, groups)


def _slopes(
    gradient: Tensor, images: Tensor, weight: Tensor, shape: Shape, first: bool, second: bool
) -> tuple[Tensor | None, Tensor | None]:
    if not (first or second):
        return None, None
    stride, padding, groups = shape
    steps, border = [stride] * 2, [padding] * 2
    form = steps, border, [1, 1], False, [0, 0], groups  # dilation, transposed, output_padding
    of = torch.ops.aten.convolution_backward
    to_images, to_weight, _ = of(gradient, images, weight, None, *form, [first, second, False])
    return to_images, to_weight
