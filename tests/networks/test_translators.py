"""U-Net, PatchGAN and the residual translator: sizes, what sees what, noise, refusals."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gan.networks.unet import Dropout
from gan.registry import create


def make(kind, name, size, **settings):
    return create(kind, name, **{"size": size, "channels": 1, "width": 2, **settings})


# -- U-Net


@pytest.mark.parametrize("norm", ["batch", "instance", "spectral", "none"])
@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_unet_keeps_the_shape_and_reaches_one_pixel(size, norm):
    network = make("generator", "unet", size, norm=norm)
    maps = []
    for shrink in network.shrink:
        shrink.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape[1:])))
    image = torch.randn(2, 1, size, size)
    assert network(image).shape == image.shape
    assert [side for _, side, _ in maps] == [size >> n for n in range(2, size.bit_length())]
    assert maps[-1][1:] == (1, 1)
    assert max(channels for channels, _, _ in maps) <= 8 * 2


def test_one_image_alone_trains():
    """The authors' batch is one: no norm may act on the map of one pixel."""
    for norm in ("batch", "instance"):
        network = make("generator", "unet", 16, norm=norm)
        network(torch.randn(1, 1, 16, 16)).mean().backward()


def test_each_level_of_the_decoder_sees_the_encoders_map():
    """With the innermost way cut off, only the skips are left: the image still depends on input."""
    network = make("generator", "unet", 16, dropout=0.0, norm="none").eval()
    for level in range(len(network.grow)):
        nn.init.zeros_(network.grow[level][1].weight)
        image = torch.randn(1, 1, 16, 16, requires_grad=True)
        network(image).sum().backward()
        assert image.grad.abs().sum() > 0, level
    nn.init.zeros_(network.image[1].weight[:2])  # the outermost skip
    image = torch.randn(1, 1, 16, 16, requires_grad=True)
    network(image).sum().backward()
    assert image.grad.abs().sum() == 0


def test_the_three_innermost_levels_are_noisy():
    def noisy(size):
        network = make("generator", "unet", size)
        return [any(isinstance(m, Dropout) for m in level) for level in network.grow]

    assert noisy(64) == [True, True, True, False, False]
    assert noisy(8) == [True, True]
    assert not any(
        isinstance(m, Dropout) for m in make("generator", "unet", 8, dropout=0).modules()
    )


@pytest.mark.parametrize(("settings", "varies"), [({}, True), ({"noise": False}, False)])
def test_noise_stays_on_outside_of_training_unless_it_is_switched_off(settings, varies):
    torch.manual_seed(0)
    network = make("generator", "unet", 16, width=8, norm="instance", **settings)
    image = torch.randn(2, 1, 16, 16)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert (not torch.equal(network(image), network(image))) == varies


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(0)
    x = torch.ones(100, 1000)
    made = Dropout(0.5, always=True).eval()(x)
    assert sorted({*made.flatten().tolist()}) == [0.0, 2.0]
    assert made.mean() == pytest.approx(1, abs=0.02)


# -- PatchGAN


def field(layers, size=256):
    """The patch that one logit sees: rows and columns with a gradient."""
    network = make("discriminator", "patch", size, layers=layers, norm="none").double()
    image = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    logits = network(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    touched = image.grad[0, 0] != 0
    rows, columns = touched.any(1).sum().item(), touched.any(0).sum().item()
    return logits.shape, rows, columns


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_the_published_patch(layers, patch):
    shape, rows, columns = field(layers)
    assert (rows, columns) == (patch, patch)
    assert shape == (1, 1, 256 // 2**layers - 2, 256 // 2**layers - 2)


def test_a_patchgan_doubles_its_width_up_to_eight_times():
    network = make("discriminator", "patch", 256, layers=5)
    channels = [part[0].out_channels for part in network.inner]
    assert channels == [2, 4, 8, 16, 16, 16]
    strides = [part[0].stride[0] for part in network.inner]
    assert strides == [2, 2, 2, 2, 2, 1]


def test_several_images_are_joined():
    network = make("discriminator", "patch", 16, layers=1, images=2, channels=3)
    assert network(torch.randn(2, 6, 16, 16)).shape == (2, 1, 6, 6)


def test_maps_are_those_behind_the_logits():
    network = make("discriminator", "patch", 32, layers=2).eval()
    image = torch.randn(2, 1, 32, 32)
    maps = network.features(image)
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 16, 16), (4, 8, 8), (8, 7, 7)]
    assert torch.equal(network.logits(maps[-1]), network(image))


@pytest.mark.parametrize(("size", "layers", "hint"), [(16, 3, "layers=2"), (8, 2, "layers=1")])
def test_an_image_too_small_for_the_layers_is_refused_with_both_keys(size, layers, hint):
    message = rf"image\.size={size} .*discriminator\.layers={layers}.*use discriminator\.{hint}"
    for name in ("patch", "patches"):
        with pytest.raises(ValueError, match=message):
            make("discriminator", name, size, layers=layers)
        make("discriminator", name, size, layers=layers - 1)


# -- pairs of translators


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", ["translators", "unets"])
def test_two_translators_share_nothing(name, size):
    torch.manual_seed(0)
    network = make("generator", name, size).eval()
    image = torch.randn(2, 1, size, size)
    there, back = network(image, image)
    assert there.shape == back.shape == image.shape
    assert torch.equal(there, network.to_b(image))
    assert torch.equal(back, network.to_a(image))
    assert not torch.equal(there, back)
    of_b, of_a = ({id(p) for p in part.parameters()} for part in (network.to_b, network.to_a))
    assert not of_b & of_a


def test_a_residual_translator_is_the_published_one():
    """c7s1-64, d128, d256, nine R256, u128, u64, c7s1-3: 11.378 million weights of 256 pixels."""
    network = create("generator", "translator", size=256, channels=3)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 3 + 2 * 9 + 3
    weights = sum(m.weight.numel() for m in convolutions)
    expected = [3 * 64 * 49, 64 * 128 * 9, 128 * 256 * 9, 18 * 256 * 256 * 9]
    assert weights == sum(expected) + sum(expected[:3])
    assert not any(isinstance(m, _BatchNorm) for m in network.modules())


def test_more_blocks_refine_more():
    blocks = [len(make("generator", "translator", 8, blocks=n).refine) for n in (1, 6)]
    assert blocks == [1, 6]


def test_weights_start_small():
    torch.manual_seed(0)
    for kind, name in (
        ("generator", "unet"),
        ("generator", "translator"),
        ("discriminator", "patch"),
    ):
        network = make(kind, name, 32, width=16)
        weights = torch.cat(
            [
                m.weight.detach().flatten()
                for m in network.modules()
                if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
            ]
        )
        assert weights.std() == pytest.approx(0.02, rel=0.05)
        assert weights.mean() == pytest.approx(0, abs=1e-3)
