"""DCGAN and the perceptrons: sizes, starts, conditions."""

import pytest
import torch
from torch import nn

from gan.networks import dcgan, mlp


@pytest.mark.parametrize("size", [8, 16, 64])
def test_every_power_of_two_builds_from_four_pixels(size):
    generator = dcgan.Generator(size, 3, latent=5, width=2)
    assert generator.grow[0](torch.randn(2, 5, 1, 1)).shape[2:] == (4, 4)
    image = generator(torch.randn(2, 5))
    assert image.shape == (2, 3, size, size)
    assert dcgan.Discriminator(size, 3, width=2)(image).shape == (2,)


@pytest.mark.parametrize("build", [dcgan.Generator, dcgan.Discriminator])
def test_other_sizes_are_refused(build):
    with pytest.raises(ValueError, match="image.size.*28"):
        build(28, 1)


def test_layers_are_those_of_the_paper_at_64_pixels():
    generator, discriminator = dcgan.Generator(64, 3, latent=100), dcgan.Discriminator(64, 3)
    up = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    down = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in up] == [512, 256, 128, 64, 3]
    assert [m.out_channels for m in down] == [64, 128, 256, 512]
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        for net in (generator, discriminator)
    ]
    assert norms == [4, 3]


def test_weights_start_as_in_the_paper():
    for network in (dcgan.Generator(32, 3, classes=4), dcgan.Discriminator(32, 3, classes=4)):
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif parameter.numel() > 1000:
                assert parameter.mean().abs() < 3e-3, name
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("norm", ["instance", "layer", "group", "spectral", "weight", "none"])
def test_without_batch_norm_a_logit_depends_on_its_sample_alone(norm):
    network = dcgan.Discriminator(16, 1, width=16, norm=norm).eval()
    image = torch.randn(3, 1, 16, 16)
    other = torch.cat([image[:1], torch.randn(2, 1, 16, 16)])
    assert torch.allclose(network(image)[0], network(other)[0], atol=1e-6)


def test_batch_norm_mixes_the_samples():
    network = dcgan.Discriminator(16, 1, width=16, norm="batch")
    image = torch.randn(3, 1, 16, 16)
    other = torch.cat([image[:1], 9 * torch.randn(2, 1, 16, 16)])
    assert not torch.allclose(network(image)[0], network(other)[0], rtol=1e-3)


@pytest.mark.parametrize(
    "norm", ["batch", "instance", "layer", "group", "spectral", "weight", "none"]
)
def test_double_backward_reaches_the_first_layer(norm):
    network = dcgan.Discriminator(16, 1, width=4, norm=norm)
    image = torch.randn(2, 1, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
    gradient.square().sum().backward()
    first = next(
        network.parameters() if norm in ("spectral", "weight") else network.first.parameters()
    )
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert norm in ("spectral", "weight") or first.grad.abs().sum() > 0


@pytest.mark.parametrize("build", [dcgan.Generator, mlp.Generator])
def test_label_changes_the_image(build):
    generator = build(8, 1, classes=3, latent=4, width=4).eval()
    z = torch.randn(2, 4)
    first, second = (generator(z, torch.tensor(label)) for label in ([0, 1], [0, 2]))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_points_are_unbounded():
    generator = mlp.Generator(1, 2, latent=2, width=4, output="linear")
    nn.init.constant_(generator.image[0].bias, 7.0)
    points = generator(torch.zeros(3, 2))
    assert points.shape == (3, 2, 1, 1)
    assert points.min() > 2
    assert mlp.Discriminator(1, 2)(points).shape == (3,)


def test_perceptrons_have_the_given_depth():
    for build in (mlp.Generator, mlp.Discriminator):
        layers = [m for m in build(1, 2, width=8, depth=2).modules() if isinstance(m, nn.Linear)]
        assert [m.out_features for m in layers[:-1]] == [8, 8]
