"""R3GAN's networks: their layers, their start, and their size."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu

from gan.networks import resnext
from gan.networks.resnext import Block

LINE = torch.tensor([0.25, 0.75, 0.75, 0.25])
KERNEL = LINE[:, None] * LINE


def started(block):
    """A block that does something."""
    nn.init.normal_(block.narrow.weight, std=0.1)
    nn.init.normal_(block.widen.bias)
    nn.init.normal_(block.convolve.bias)
    return block


def by_hand(block, x, groups):
    inner = leaky_relu(conv2d(x, block.widen.weight, block.widen.bias), 0.2)
    inner = conv2d(inner, block.convolve.weight, block.convolve.bias, padding=1, groups=groups)
    return x + conv2d(leaky_relu(inner, 0.2), block.narrow.weight)


@pytest.mark.parametrize(
    ("width", "expansion", "group", "groups"), [(8, 2, 4, 4), (8, 1, 8, 1), (6, 2, 16, 3)]
)
def test_a_block_is_its_three_convolutions(width, expansion, group, groups):
    block = started(Block(width, expansion, group, 0.2))
    assert block.convolve.groups == groups  # 16 does not divide 12: 4 channels a group
    x = torch.randn(3, width, 4, 4)
    torch.testing.assert_close(block(x), by_hand(block, x, groups))


def test_generator_is_weighed_maps_doubled_and_refined():
    network = resnext.Generator(16, 3, latent=5, width=4, cap=2, blocks=1, group=4)
    blocks = [started(m) for m in network.modules() if isinstance(m, Block)]
    matched = network.stages[3]
    assert [b.narrow.out_channels for b in blocks] == [8, 8, 4]  # 4, 8 and 16 pixels
    z = torch.randn(3, 5)
    x = (z @ network.weigh.weight.T)[:, :, None, None] * network.maps

    def doubled(x):
        kernel = KERNEL.expand(x.shape[1], 1, 4, 4)
        return conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])

    x = by_hand(blocks[1], doubled(by_hand(blocks[0], x, 4)), 4)
    x = by_hand(blocks[2], doubled(conv2d(x, matched.weight)), 2)
    image = conv2d(x, network.image.weight)
    torch.testing.assert_close(network(z), image)
    torch.testing.assert_close(network.eval()(z), image.clamp(-1, 1))


def test_discriminator_is_halved_and_refined_and_gathered():
    network = resnext.Discriminator(16, 3, width=4, cap=2, blocks=1, group=4)
    blocks = [started(m) for m in network.modules() if isinstance(m, Block)]
    assert [b.narrow.out_channels for b in blocks] == [4, 8, 8]
    image = torch.randn(3, 3, 16, 16)

    def halved(x):
        kernel = KERNEL.expand(x.shape[1], 1, 4, 4) / 4
        return conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])

    x = by_hand(blocks[0], conv2d(image, network.first.weight), 2)
    x = conv2d(halved(x), network.stages[2].weight)
    x = by_hand(blocks[2], halved(by_hand(blocks[1], x, 4)), 4)
    features = (x * network.gather.weight[:, 0]).sum((2, 3))
    torch.testing.assert_close(network(image), network.critic.linear(features).squeeze(1))


@pytest.mark.parametrize("blocks", [1, 4])
def test_weights_start_with_the_variance_of_their_inputs(blocks):
    network = resnext.Generator(8, 3, width=128, blocks=blocks)
    total = 2 * blocks
    gain = math.sqrt(2 / (1 + 0.2**2)) * total**-0.25
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is None or not layer.bias.any(), name
            scale = {"widen": gain, "convolve": gain, "narrow": 0.0}.get(name.split(".")[-1], 1.0)
            fan = layer.weight[0].numel()
            spread = layer.weight.std().item()
            assert spread == pytest.approx(scale / math.sqrt(fan), rel=0.08), name
    assert network.maps.std().item() == pytest.approx(1, rel=0.05)


def test_labels_start_smaller_than_noise():
    generator = resnext.Generator(8, 3, classes=25, width=4)
    critic = resnext.Discriminator(8, 3, classes=25, width=64)
    spreads = [
        m.weight.std().item()
        for n in (generator, critic)
        for m in n.modules()
        if isinstance(m, nn.Embedding)
    ]
    assert spreads == pytest.approx([1 / 5, 1 / 5 / 8], rel=0.1)


def test_at_the_start_blocks_change_nothing_and_logits_are_of_order_one():
    network = resnext.Discriminator(16, 3, classes=4, width=64)
    x = torch.randn(3, 64, 8, 8)
    for block in (m for m in network.modules() if isinstance(m, Block)):
        assert torch.equal(block(x), x)
    logits = network(torch.randn(64, 3, 16, 16), torch.arange(64) % 4)
    assert 0.01 < logits.std() < 3


@pytest.mark.parametrize(("size", "width", "cap"), [(32, 768, 1), (64, 384, 2), (256, 96, 8)])
def test_networks_of_the_paper_have_as_many_weights_as_its_layers(size, width, cap):
    with torch.device("meta"):
        pair = [
            kind(size, 3, width=width, cap=cap)
            for kind in (resnext.Generator, resnext.Discriminator)
        ]
    widths = [min(width * 2**level, width * cap) for level in range(int(math.log2(size)) - 1)]
    blocks = sum(2 * (4 * w * w + 2 * w * 16 * 9 + 4 * w) for w in widths)
    between = sum(a * b for a, b in pairwise(widths) if a != b)
    first, last = 3 * width, 768 * 16
    ends = [first + last + 64 * 768, first + last + 768 + 1]
    assert [sum(p.numel() for p in n.parameters()) for n in pair] == [
        blocks + between + end for end in ends
    ]


def test_labels_reach_both_networks():
    generator = resnext.Generator(8, 1, classes=3, latent=4, width=8)
    z = torch.randn(1, 4).expand(2, 4)
    images = generator(z, torch.tensor([0, 2]))
    assert (images[0] - images[1]).abs().max() > 1e-3
    critic = resnext.Discriminator(8, 1, classes=3, width=8, condition="both")
    said = critic.critique(images, torch.tensor([0, 2]))
    assert (said.logits.shape, said.class_logits.shape) == ((2,), (2, 3))
    with pytest.raises(ValueError, match="label must be given"):
        critic(images)
