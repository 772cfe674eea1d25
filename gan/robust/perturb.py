"""Small changes that raise a loss most: of images, within a ball, or of named parameters.

A radius is in the units of what is changed. Images lie in [-1, 1], so 2/255 is one grey level and
an epsilon given for images in [0, 1] counts double here.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from gan import draws
from gan.config.signature import nearest
from gan.registry import Count, NonNegative, Positive, create, register

Norm = Literal["linf", "l2"]
LossOf = Callable[[Tensor], Tensor]


@register("perturbation", "pgd")
class Pgd:
    """Projected steps up the loss. Madry et al. 2017, arXiv:1706.06083, section 2.1.

    Called as `perturbation(loss_of, images) -> images`. `loss_of` maps images [B, ...] to one loss
    a sample [B], or to their sum or mean; each sample moves along its own gradient, normalised over
    all of its pixels. The result is detached, in fp32 or wider, in the ball around the images, and
    no further outside [-1, 1] than they are.

        worst = create("perturbation", "pgd", radius=0.1)
        for images, labels in loader:
            hard = worst(lambda x: cross_entropy(network(x), labels), images)
            optimizer.zero_grad()
            cross_entropy(network(hard), labels).backward()
            optimizer.step()

    No gradient, flag or parameter changes, but what a forward changes does: put a network with
    batch norm into eval mode during the call, or its statistics see every step, and samples mix.
    Autocast is left, as small steps drown in bf16's rounding; `loss_of` may enter it again.
    """

    def __init__(
        self,
        radius: NonNegative = 0.06,
        steps: Count = 10,
        step: Positive | None = None,
        norm: Norm = "linf",
        random_start: bool = True,
    ) -> None:
        """`step` is a step's length, 2.5 radius / steps unless given (the paper's section 5).

        It starts at a point drawn uniformly from the ball, or at the images themselves.
        """
        self.radius, self.steps, self.norm, self.random_start = radius, steps, norm, random_start
        self.step = 2.5 * radius / steps if step is None else step

    def __call__(self, loss_of: LossOf, images: Tensor) -> Tensor:
        """Images [B, ...] that are worse for the loss than the given ones."""
        device = images.device.type
        with torch.inference_mode(False), torch.autocast(device, enabled=False):
            clean = images.detach().to(torch.promote_types(images.dtype, torch.float32)).clone()
            start = in_ball(clean, self.radius, self.norm) if self.random_start else 0
            point = self.bounded(clean, clean + start)
            for _ in range(self.steps):
                rise = steepest(input_gradient(loss_of, point), self.norm)
                point = self.bounded(clean, point + self.step * rise)
        return point

    def bounded(self, clean: Tensor, point: Tensor) -> Tensor:
        """The point, moved into the ball around the clean images and then into the value range.

        The second move brings every pixel nearer to the clean one, so that it stays in the ball.
        """
        point = clean + projected(point - clean, self.radius, self.norm)
        return point.clamp(clean.clamp(max=-1), clean.clamp(min=1))


@register("perturbation", "fgsm")
class Fgsm(Pgd):
    """One step along the gradient's sign. Goodfellow et al. 2014, arXiv:1412.6572, section 4."""

    def __init__(self, radius: NonNegative = 0.06) -> None:
        """The paper's epsilon: every pixel moves by it."""
        super().__init__(radius, steps=1, step=radius, norm="linf", random_start=False)


@register("perturbation", "fgm")
class Fgm(Pgd):
    """One step along the gradient of L2 norm 1. Miyato et al. 2016, arXiv:1605.07725."""

    def __init__(self, radius: NonNegative = 1.0) -> None:
        """The paper's epsilon, the L2 length of each sample's step."""
        super().__init__(radius, steps=1, step=radius, norm="l2", random_start=False)


def input_gradient(loss_of: LossOf, images: Tensor) -> Tensor:
    """Gradient [B, ...] of the summed losses with respect to the images alone."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(images).sum(), images)
    return gradient


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction [B, ...] of norm 1 a sample along which it rises most; 0 where it is flat."""
    if norm == "linf" or not gradient.numel():
        return gradient.sign()
    scaled = _over(gradient, _each(_flat(gradient).abs().amax(1), gradient))
    return _over(scaled, _length(scaled))  # without the scale, squares of 1e-23 would vanish


def projected(offset: Tensor, radius: float, norm: Norm) -> Tensor:
    """The nearest offset [B, ...] in the ball, for each sample."""
    if norm == "linf":
        return offset.clamp(-radius, radius)
    length = _length(offset)
    return torch.where(length > radius, offset * (radius / length), offset)


def in_ball(like: Tensor, radius: float, norm: Norm) -> Tensor:
    """Offsets [B, ...] drawn uniformly from the ball, one for each sample."""
    if norm == "linf":
        return radius * (2 * draws.uniform_like(like) - 1)
    share = draws.uniform(len(like), device=like.device, dtype=like.dtype)
    length = radius * share ** (1 / max(1, math.prod(like.shape[1:])))
    return _each(length, like) * steepest(draws.normal_like(like), norm)


def named(module: nn.Module, *patterns: str) -> dict[str, nn.Parameter]:
    """The parameters whose names contain one of the patterns, in which * and ? are wildcards.

    A weight under spectral or weight norm is named by what it is made from, such as
    `parametrizations.weight.original`.

    Raises: ValueError for a pattern that no name contains.
    """
    known = dict(module.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, f"*{pattern}*") for name in known):
            raise ValueError(f"no parameter is called {pattern!r}; {nearest(pattern, known)}")
    return {
        name: parameter
        for name, parameter in known.items()
        if any(fnmatchcase(name, f"*{pattern}*") for pattern in patterns)
    }


@contextmanager
def perturbed(
    parameters: Mapping[str, Tensor],
    radius: float,
    norm: Norm = "l2",
    steps: int = 1,
    step: float | None = None,
    loss_of: Callable[[], Tensor] | None = None,
) -> Iterator[None]:
    """Named parameters moved up the loss inside the block, each within a ball of its own.

    The first step follows the gradient in `.grad`, any further ones that of `loss_of()`; `step` is
    2.5 radius / steps unless given. Nothing else is written to `.grad`, so a backward in the block
    adds to the clean gradient. Whatever happens there, the parameters get their own bits back.

        network.zero_grad()
        loss().backward()
        with perturbed(named(network, "embedding"), radius=1.0):
            loss().backward()
        optimizer.step()

    Miyato et al. 2016, arXiv:1605.07725, with the ball around each table of embeddings as a whole.

    Raises: ValueError for settings out of range, or a parameter without a gradient.
    """
    settings = {"radius": radius, "steps": steps, "step": step, "norm": norm}
    ball: Pgd = create("perturbation", "pgd", **settings)
    if steps > 1 and loss_of is None:
        raise ValueError(f"steps={steps} needs loss_of, to follow its gradient after the first")
    gradients: Sequence[Tensor] = [_gradient(*item) for item in parameters.items()]
    tensors = list(parameters.values())
    originals = [parameter.detach().clone() for parameter in tensors]
    try:
        for number in range(steps):
            if number and loss_of:
                with torch.enable_grad():
                    gradients = torch.autograd.grad(loss_of(), tensors)
            _climb(ball, tensors, originals, gradients)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, originals)


def _gradient(name: str, parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError(f"{name} has no gradient to follow: call backward on a loss of it")
    return parameter.grad


@torch.no_grad()
def _climb(
    ball: Pgd, tensors: Sequence[Tensor], originals: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """Move each tensor by one step; a tensor as a whole is one sample."""
    for tensor, original, gradient in zip(tensors, originals, gradients, strict=True):
        offset = tensor - original + ball.step * steepest(gradient[None], ball.norm)[0]
        tensor.copy_(original + projected(offset[None], ball.radius, ball.norm)[0])


def _length(x: Tensor) -> Tensor:
    """L2 norm of each sample, [B, 1, ...]."""
    return _each(torch.linalg.vector_norm(_flat(x), dim=1), x)


def _flat(x: Tensor) -> Tensor:
    """Each sample as one row, also where it is a single number."""
    return x[..., None].flatten(1)  # [B, N]


def _each(numbers: Tensor, like: Tensor) -> Tensor:
    """One number a sample [B], as [B, 1, ...]."""
    return numbers.view(-1, *(1,) * (like.ndim - 1))


def _over(x: Tensor, by: Tensor) -> Tensor:
    """x / by, and x where that is 0."""
    return x / torch.where(by > 0, by, 1)
