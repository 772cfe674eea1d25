"""The same games as loops written by hand, which the framework is measured against.

`bare` does the tensor work of a trainer's step and nothing else: shared fakes, the opponent frozen
in the generator's turn, fused Adam, weights normalised once a turn, the average. Seeds, checks,
statistics and logs are left out. `usual` is the loop that most code has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    conv2d,
    cross_entropy,
    interpolate,
    l1_loss,
    mse_loss,
    relu,
    softplus,
)
from torch.nn.utils import parametrize

from gan.losses.reconstruction import feature_distance
from gan.networks.penalised import PenalisedConv2d
from gan.networks.resample import (
    BilinearHalf,
    PooledConv2d,
    StridedConv2d,
    StridedConvTranspose2d,
    UpsampledConv2d,
)
from gan.references import paired, references_of
from gan.trainer import Trainer

Step = Callable[[], None]
Losses = tuple[Callable[[], Any], Callable[[Any], Tensor], Callable[[Any], Tensor]]

FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {  # on reals, on fakes, to fool
    "Nonsaturating": (
        lambda logits: softplus(-logits).mean(),
        lambda logits: softplus(logits).mean(),
        lambda logits: softplus(-logits).mean(),
    ),
    "Hinge": (
        lambda logits: relu(1 - logits).mean(),
        lambda logits: relu(1 + logits).mean(),
        lambda logits: -logits.mean(),
    ),
}


def bare(game: Trainer) -> Step:
    """One step of a trainer's game as a loop by hand, on the trainer's own parts."""
    wnet = "prototype" in game.recipe.reads
    losses = _wnet_losses(game) if wnet else _synthesis_losses(game)
    return _lean(game, *losses)


def _lean(
    game: Trainer,
    make: Callable[[], Any],
    judged: Callable[[Any], Tensor],
    fooled: Callable[[Any], Tensor],
) -> Step:
    """Discriminator, generator and average in turn."""
    generator, optimizers = game.recipe.generator, [p.optimizer for p in game.players]
    seen = 0
    judge = list(game.recipe.discriminator.parameters())
    average: Any = next(iter(game.averages.values()))
    weights: list[Tensor] = list(generator.parameters())
    averaged: list[Tensor] = list(average.generator.parameters())
    buffers, copied = list(generator.buffers()), list(average.generator.buffers())
    images, precision = game.settings.batch_size, partial(game.settings.autocast, game.device)

    def step() -> None:
        nonlocal seen
        with precision():
            made = make()
        optimizers[1].zero_grad(set_to_none=True)
        with precision():
            loss = judged(made)
        torch.autograd.backward(loss)
        optimizers[1].step()
        optimizers[0].zero_grad(set_to_none=True)
        for weight in judge:
            weight.requires_grad = False
        with precision():
            loss = fooled(made)
        torch.autograd.backward(loss)
        for weight in judge:
            weight.requires_grad = True
        optimizers[0].step()
        with torch.no_grad():
            halflife = min(average.halflife, 0.05 * seen)
            share = 1 - 0.5 ** (images / halflife) if seen else 1.0
            torch._foreach_lerp_(averaged, weights, share)
            torch._foreach_copy_(copied, buffers)
        seen += images

    return step


def _synthesis_losses(game: Trainer) -> Losses:
    recipe: Any = game.recipe
    generator, judge = recipe.generator, recipe.discriminator
    on_real, on_fake, fool = _formulas(recipe)
    real = next(game.stream)["real"]

    def make() -> Tensor:
        return generator(torch.randn(len(real), generator.latent, device=real.device))

    def judged(fake: Tensor) -> Tensor:
        with parametrize.cached():
            logits = judge(real), judge(fake.detach())
        return on_real(logits[0]) + on_fake(logits[1])

    def fooled(fake: Tensor) -> Tensor:
        return fool(judge(fake))

    return make, judged, fooled


def _wnet_losses(game: Trainer) -> Losses:
    """The preset's losses and weights (Jiang et al. 2018, arXiv:2406.06122, equations 1 and 2)."""
    recipe: Any = game.recipe
    writer, critic, (classifier,) = recipe.generator, recipe.discriminator, recipe._classifier
    given = next(game.stream)
    prototype, seen, target = given["prototype"], references_of(writer, given), given["target"]
    reference, style, character = given["reference"][:, 0], given["style"], given["character"]

    def make() -> tuple[Tensor, Any, Any]:
        content, look = writer.encode_content(prototype), writer.encode_style(seen)
        return writer.decode(content, look), content, look

    def judged(made: tuple[Tensor, Any, Any]) -> Tensor:
        fake = made[0].detach()
        on_real, real_style = critic(prototype, target, reference)
        on_fake, fake_style = critic(prototype, fake, reference)
        share = torch.rand(len(fake), 1, 1, 1, device=fake.device)
        between = (share * target + (1 - share) * fake.float()).requires_grad_()
        with torch.autocast(fake.device.type, enabled=False):
            logits = critic(prototype, between, reference).logits
            (slope,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        norm = (slope.flatten(1).square().sum(1) + 1e-12).sqrt()
        classes = cross_entropy(real_style, style) + cross_entropy(fake_style, style)
        return (
            3 * (on_fake.mean() - on_real.mean()) + 10 * (norm - 1).square().mean() + 0.5 * classes
        )

    def fooled(made: tuple[Tensor, Any, Any]) -> Tensor:
        image, content, look = made
        logits, classes = critic(prototype, image, reference)
        return (
            -3 * logits.mean()
            + cross_entropy(classes, style)
            + 0.2 * cross_entropy(content.logits, character)
            + 0.2 * cross_entropy(look.logits, style)
            + 50 * l1_loss(image, target)
            + 75 * feature_distance(classifier.features, image, target)
            + 3 * mse_loss(writer.encode_content(image).code, content.code)
            + 5 * mse_loss(writer.encode_style(paired(writer, image, prototype)).code, look.code)
        )

    return make, judged, fooled


def usual(game: Trainer) -> Step:
    """The loop of pytorch/examples:dcgan/main.py on a trainer's networks, batch and losses.

    Two backward passes for the discriminator, fakes made once, nothing frozen, Adam as torch has
    it, float32 and maps as they come (NCHW), weights normalised at every forward pass, pooling and
    doubling as steps of their own; no average.

    Raises: ValueError for a game that does not start from noise, or has other losses.
    """
    recipe: Any = game.recipe
    generator, judge = recipe.generator, recipe.discriminator
    on_real, on_fake, fool = _formulas(recipe)
    real = next(game.stream)["real"].contiguous()
    optimizers = []
    for network in (judge, generator):
        as_written(network)
        network.to(memory_format=torch.contiguous_format)
        optimizers.append(torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)))

    def step() -> None:
        judge.zero_grad()
        torch.autograd.backward(on_real(judge(real)))
        fake = generator(torch.randn(len(real), generator.latent, device=real.device))
        torch.autograd.backward(on_fake(judge(fake.detach())))
        optimizers[0].step()
        generator.zero_grad()
        torch.autograd.backward(fool(judge(fake)))
        optimizers[1].step()

    return step


def _formulas(recipe: Any) -> tuple[Callable[[Tensor], Tensor], ...]:
    name = type(getattr(recipe, "adversarial", None)).__name__
    if "real" not in recipe.reads or name not in FORMULAS or recipe.penalties:
        raise ValueError(
            "this loop by hand draws from noise and pays no penalty, with nonsaturating or hinge "
            "losses: choose model=dcgan, resnet or sngan for this case"
        )
    return FORMULAS[name]


def as_written(network: nn.Module) -> None:
    """Have convolutions do all the arithmetic that most code does: that of their plain forms."""
    for module in network.modules():
        for kind, forward in PLAIN.items():
            if isinstance(module, kind):
                vars(module)["forward"] = partial(forward, module)


PLAIN: dict[type[nn.Module], Callable[..., Tensor]] = {
    PooledConv2d: lambda layer, x: avg_pool2d(nn.Conv2d.forward(layer, x), 2),
    UpsampledConv2d: lambda layer, x: nn.Conv2d.forward(layer, interpolate(x, scale_factor=2)),
    StridedConv2d: nn.Conv2d.forward,
    StridedConvTranspose2d: nn.ConvTranspose2d.forward,
    PenalisedConv2d: nn.Conv2d.forward,
    BilinearHalf: lambda layer, x: conv2d(x, layer.weight / 4, None, 2, 1, 1, x.shape[1]),
}
