"""Residual networks: the layers of the papers, and what every norm and padding keeps."""

import math
from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, relu

from gan.networks import dcgan, resnet
from gan.networks.blocks import ConditionalBatchNorm, GeneratorNorm, Norm, Padding
from gan.registry import create

NORMS, GENERATOR_NORMS, PADDINGS = map(get_args, (Norm, GeneratorNorm, Padding))
BUILDS = [dcgan.Generator, resnet.Generator]


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def convolution(before, after, side=3):
    return before * after * side**2 + after


def meta(build, *arguments, **values):
    with torch.device("meta"):
        return build(*arguments, **values)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_every_power_of_two_builds_from_four_pixels(size):
    generator = resnet.Generator(size, 3, latent=5, width=2)
    assert generator.project(torch.randn(2, 5)).shape[2:] == (4, 4)
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, size, size)
    critic = resnet.Discriminator(size, 3, width=2)
    assert critic.halve(critic.first(image)).shape[2:] == (min(8, size // 2),) * 2
    assert critic(image).shape == (2,)


@pytest.mark.parametrize("build", [resnet.Generator, resnet.Discriminator])
def test_other_sizes_are_refused(build):
    with pytest.raises(ValueError, match="image.size.*28"):
        build(28, 1)


def test_parameters_at_32_pixels_are_those_of_the_paper():
    generator, critic = meta(resnet.Generator, 32, 3), meta(resnet.Discriminator, 32, 3)
    block = 2 * convolution(256, 256) + convolution(256, 256, 1) + 4 * 256
    ends = 129 * 16 * 256 + 2 * 256 + convolution(256, 3)
    assert count(generator) == ends + 3 * block == 4_276_739
    first = convolution(3, 128) + convolution(128, 128) + convolution(3, 128, 1)
    halving = 2 * convolution(128, 128) + convolution(128, 128, 1)
    assert count(critic) == first + halving + 4 * convolution(128, 128) + 129


def test_channels_double_up_to_the_cap():
    generator = meta(resnet.Generator, 128, 3, width=64, cap=16)
    assert [b.second.out_channels for b in generator.blocks] == [1024, 512, 256, 128, 64]
    critic = meta(resnet.Discriminator, 128, 3, width=64, cap=16)
    assert [b.shortcut[1].out_channels for b in critic.halve] == [128, 256, 512]


def test_critic_is_the_formula_of_the_paper():
    critic, image = resnet.Discriminator(16, 1, width=4).double(), torch.randn(2, 1, 16, 16)
    image = image.double()

    def wide(layer, x):
        return conv2d(x, layer.weight, layer.bias, padding=1)

    one, two = (layer for layer in critic.first.change if isinstance(layer, nn.Conv2d))
    narrow = critic.first.shortcut[1]
    x = avg_pool2d(conv2d(image, narrow.weight, narrow.bias), 2)  # the other order is the same
    x = x + avg_pool2d(wide(two, relu(wide(one, image))), 2)
    for block in critic.refine:
        one, two = (layer for layer in block.change if isinstance(layer, nn.Conv2d))
        x = x + wide(two, relu(wide(one, relu(x))))
    expected = critic.critic.linear(relu(x).sum((2, 3))).squeeze(1)
    assert torch.allclose(critic(image), expected)
    average = critic.critic.linear(relu(x).mean((2, 3))).squeeze(1)
    assert not torch.allclose(critic(image), average)  # control: averaged features


def test_generator_block_is_the_formula_of_the_paper():
    generator = resnet.Generator(8, 1, latent=2, width=3, norm="none")
    block, x, code = generator.blocks[0], torch.randn(2, 3, 4, 4), torch.randn(2, 2)
    first, twice = block.first, interpolate(relu(x), scale_factor=2)
    change = block.second(relu(conv2d(twice, first.weight, first.bias, padding=1)))
    expected = block.shortcut(interpolate(x, scale_factor=2)) + change
    assert torch.allclose(block(x, code), expected, atol=1e-6)


def test_weights_start_xavier_uniform_with_zero_biases():
    for network in (resnet.Generator(16, 1, width=64), resnet.Discriminator(16, 1, width=64)):
        for name, module in network.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            assert not module.bias.any(), name
            taps = module.weight[0, 0].numel()
            fans = taps * sum(module.weight.shape[:2])
            gain = 2 if taps == 9 and name != "image.1" else 1
            assert module.weight.abs().max() <= math.sqrt(gain * 6 / fans), name
            if module.weight.numel() > 4000:
                assert module.weight.std().item() == pytest.approx(
                    math.sqrt(gain * 2 / fans), rel=0.05
                )


def test_slope_is_that_of_every_activation():
    for network in (
        meta(resnet.Generator, 16, 1, width=2, slope=0.2),
        meta(resnet.Discriminator, 16, 1, width=2, slope=0.2),
    ):
        slopes = [m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)]
        assert set(slopes) == {0.2}


# -- norms


@pytest.mark.parametrize(("build", "norm"), [*product(BUILDS, GENERATOR_NORMS)])
def test_generators_take_every_norm(build, norm):
    classes = 3 if norm == "conditional" else 0
    generator = build(16, 1, classes=classes, latent=4, width=2, norm=norm)
    label = torch.tensor([0, 2, 1]) if classes else None
    image = generator(100 * torch.randn(3, 4), label)
    assert image.shape == (3, 1, 16, 16)
    assert image.abs().max() <= 1
    assert image.min() < 0 < image.max()
    (image * torch.randn_like(image)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize(("build", "norm"), [*product(BUILDS, GENERATOR_NORMS)])
def test_no_generator_has_a_bias_that_its_norm_undoes_nor_a_wrong_eps(build, norm):
    generator = meta(build, 16, 1, classes=2, width=2, norm=norm)
    eps = [m.eps for m in generator.modules() if hasattr(m, "eps")]
    assert all(value <= 1e-3 for value in eps)
    if build is dcgan.Generator:
        centred = norm in ("batch", "instance", "conditional", "adain")
        assert all((layer.bias is None) == centred for layer in generator.grow)


def labelled(build, **values):
    """A generator in eval mode whose classes have gains and biases of their own."""
    generator = build(16, 1, classes=3, latent=4, width=4, **values).eval()
    for module in generator.modules():
        if isinstance(module, ConditionalBatchNorm):
            nn.init.normal_(module.gain)
            nn.init.normal_(module.bias)
    return generator


@pytest.mark.parametrize(("build", "norm"), [*product(BUILDS, ["conditional", "adain", "batch"])])
def test_swapped_labels_swap_the_images(build, norm):
    generator, z = labelled(build, norm=norm), torch.randn(1, 4).expand(2, 4)
    one, two = (generator(z, torch.tensor(label)) for label in ([0, 1], [1, 0]))
    scale = one.abs().max().item()
    assert torch.allclose(one, two.flip(0), atol=1e-5 * scale)
    assert (one[0] - one[1]).abs().max() > 1e-3 * scale


def test_residual_generator_reads_labels_through_its_norms():
    kinds = [
        sum(isinstance(m, ConditionalBatchNorm) for m in meta(resnet.Generator, 16, 1, n).modules())
        for n in (0, 3)
    ]
    assert kinds == [0, 4]


def test_adaptive_norms_read_the_latent_vector_at_every_level():
    generator = resnet.Generator(16, 1, latent=4, width=4, norm="adain").eval()
    nn.init.zeros_(generator.project[0].weight)  # nothing else lets the vector in
    first, second = generator(torch.randn(2, 4))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_projection_of_the_residual_critic_is_linear_in_the_class_embedding(norm):
    critic = resnet.Discriminator(16, 1, classes=3, width=4, norm=norm).eval()
    image = torch.randn(2, 1, 16, 16)
    x = critic.activate(critic.refine(critic.halve(critic.first(image)))).sum((2, 3))
    first, second = critic(image, torch.tensor([0, 1])), critic(image, torch.tensor([2, 2]))
    table = critic.critic.embeddings[0].weight
    assert torch.allclose(first - second, ((table[[0, 1]] - table[[2, 2]]) * x).sum(1), atol=1e-5)
    assert norm == "none" or torch.linalg.matrix_norm(table, 2) < 1.1


def test_gradient_penalty_reaches_the_class_embedding():
    critic = resnet.Discriminator(8, 1, classes=3, width=4)
    image = torch.randn(2, 1, 8, 8, requires_grad=True)
    logits = critic(image, torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    gradient.square().sum().backward()
    rows = critic.critic.embeddings[0].weight.grad.abs().sum(1)
    assert (rows > 0).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("norm", "padding"), [*product(NORMS, ["zeros"]), *product(["none"], PADDINGS)]
)
@pytest.mark.parametrize("build", [dcgan.Discriminator, resnet.Discriminator])
def test_second_derivatives_agree_with_differences(build, norm, padding):
    critic = build(8, 1, width=2, norm=norm, padding=padding).double().eval()
    for module in critic.modules():  # smooth, so that differences mean something
        for name, part in module.named_children():
            if isinstance(part, nn.LeakyReLU):
                setattr(module, name, nn.Softplus())
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    way = torch.randn_like(image)

    def slope(x):
        return torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0]

    (second,) = torch.autograd.grad((slope(image) * way).sum(), image)
    step = 1e-5
    above, below = (slope((image + s * way).detach().requires_grad_()) for s in (step, -step))
    assert torch.allclose(second, (above - below) / (2 * step), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_logit_depends_on_its_sample_alone_but_for_batch_norm(norm):
    critic, image = resnet.Discriminator(16, 1, width=4, norm=norm), torch.randn(3, 1, 16, 16)
    critic(image)  # a batch norm's and a spectral norm's state may move before the comparison
    if norm == "spectral":
        critic.eval()
    other = torch.cat([image[:1], 9 * torch.randn(2, 1, 16, 16)])
    same = torch.allclose(critic(image)[0], critic(other)[0], atol=1e-4)
    assert same == (norm != "batch")


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_that_of_every_convolution(padding):
    networks = [
        meta(resnet.Generator, 16, 1, width=2, padding=padding),
        meta(resnet.Discriminator, 16, 1, width=2, padding=padding),
        meta(dcgan.Discriminator, 16, 1, width=2, padding=padding),
    ]
    for network in networks:
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and any(m.padding)]
        assert {layer.padding_mode for layer in layers} == {padding}
        assert layers


def test_circular_padding_makes_the_critic_blind_to_turns():
    image = torch.randn(2, 1, 16, 16)
    turned = image.roll((4, 6), (2, 3))
    for padding, blind in (("circular", True), ("zeros", False)):
        critic = resnet.Discriminator(16, 1, width=4, padding=padding)
        assert torch.allclose(critic(image), critic(turned), atol=1e-4) == blind


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_dilated_blocks_see_further_and_keep_the_size(dilation):
    """How far a pixel's influence reaches through one of the two blocks of two convolutions."""
    torch.manual_seed(0)
    network = create(
        "discriminator", "resnet", size=64, channels=1, classes=0, width=4, dilation=dilation
    )
    block = network.refine[0]
    pixel = torch.zeros(1, 4, 25, 25)
    pixel[:, :, 12, 12] = 5.0
    changed = block(pixel) != block(torch.zeros_like(pixel))
    assert changed.shape == pixel.shape
    rows = changed.any(1).any(2).nonzero()[:, 1]
    assert (rows.max() - rows.min()).item() == 2 * 2 * dilation
