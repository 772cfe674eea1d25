"""Normalisation, conditions and sizes against their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gan.networks.blocks import Critic, Latent, levels, normalisation, reparametrise, widths


@pytest.mark.parametrize("size", [0, 4, 12, 33, 100])
def test_sizes_that_are_no_power_of_two_are_refused(size):
    with pytest.raises(ValueError, match=f"image.size.*power of two.*{size}"):
        levels(size)


def test_levels_and_widths_follow_the_rule():
    assert [levels(size) for size in (8, 16, 32, 64, 128)] == [3, 4, 5, 6, 7]
    assert widths(3, 6) == [3, 6, 12, 24, 24, 24]
    assert widths(3, 6, cap=32) == [3, 6, 12, 24, 48, 96]


def test_layer_norm_is_over_channels_and_pixels_of_one_sample():
    x = torch.randn(3, 4, 6, 7)
    norm = normalisation("layer", 4)
    assert torch.allclose(norm(x), functional.layer_norm(x, (4, 6, 7)), atol=1e-6)
    assert [tuple(p.shape) for p in norm.parameters()] == [(4,), (4,)]
    assert not torch.allclose(norm(x), functional.instance_norm(x), atol=1e-2)


def test_instance_norm_forgets_scale_and_shift_of_each_map():
    x = torch.randn(2, 3, 6, 7)
    norm = normalisation("instance", 3)
    scale, shift = torch.rand(2, 3, 1, 1) + 0.5, torch.randn(2, 3, 1, 1)
    assert torch.allclose(norm(scale * x + shift), norm(x), atol=1e-3)
    assert not list(norm.parameters())
    assert not list(norm.buffers())


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (48, 3), (64, 4), (50, 1)])
def test_group_norm_has_groups_of_sixteen_channels_where_they_divide(channels, groups):
    x = torch.randn(2, channels, 3, 4)
    expected = functional.group_norm(x, groups)
    assert torch.allclose(normalisation("group", channels)(x), expected, atol=1e-6)


def test_batch_norm_uses_torch_defaults():
    norm = normalisation("batch", 2)
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize(
    ("layer", "axis", "wrong"),
    [
        (nn.Conv2d(5, 7, 3), 0, 1),
        (nn.ConvTranspose2d(5, 7, 3), 1, 0),
        (nn.Linear(5, 7), 0, None),
    ],
)
def test_spectral_norm_brings_the_largest_singular_value_to_one(layer, axis, wrong):
    nn.init.normal_(layer.weight)
    reparametrise(layer, "spectral")
    x = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(2, 5, 4, 4)
    for _ in range(100):
        layer(x)
    layer.eval()

    def largest(axis):
        return torch.linalg.matrix_norm(layer.weight.transpose(0, axis).flatten(1), 2).item()

    assert largest(axis) == pytest.approx(1, abs=1e-4)
    assert wrong is None or abs(largest(wrong) - 1) > 1e-2
    before = [buffer.clone() for buffer in layer.buffers()]
    layer(x)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Conv2d(3, 5, 3), 0), (nn.ConvTranspose2d(3, 5, 3), 1), (nn.Linear(3, 5), 0)],
)
def test_weight_norm_keeps_the_start_and_gives_each_output_its_length(layer, axis):
    start = layer.weight.detach().clone()
    reparametrise(layer, "weight")
    length, direction = layer.parametrizations.weight.parameters()
    assert torch.allclose(layer.weight, start, atol=1e-6)
    assert length.numel() == 5
    assert torch.allclose(layer.weight.transpose(0, axis).flatten(1).norm(dim=1), length.flatten())
    loss = (layer.weight * torch.randn_like(start)).sum()
    gradient = torch.autograd.grad(loss, direction)[0].transpose(0, axis).flatten(1)
    flat = direction.transpose(0, axis).flatten(1)
    assert torch.allclose((flat * gradient).sum(1), torch.zeros(5), atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "none"])
def test_norms_of_maps_leave_weights_alone(norm):
    layer = nn.Conv2d(2, 2, 3)
    reparametrise(layer, norm)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_projection_adds_the_product_of_features_and_class_embedding():
    critic, features = Critic(4, classes=3), torch.randn(2, 4)
    first, second = critic(features, torch.tensor([0, 1])), critic(features, torch.tensor([2, 2]))
    table = critic.embeddings[0].weight
    expected = ((table[[0, 1]] - table[[2, 2]]) * features).sum(1)
    assert torch.allclose(first - second, expected, atol=1e-6)
    nn.init.zeros_(table)
    assert torch.equal(critic(features, torch.tensor([0, 1])), critic.linear(features).squeeze(1))


def test_latents_carry_the_class_after_the_noise():
    join, z = Latent(4, classes=3), torch.randn(2, 4)
    joined = join(z, torch.tensor([2, 0]))
    assert joined.shape == (2, join.width) == (2, 8)
    assert torch.equal(joined[:, :4], z)
    assert torch.equal(joined[:, 4:], join.embeddings[0].weight[[2, 0]])


@pytest.mark.parametrize("build", [Latent, Critic])
def test_labels_are_neither_ignored_nor_invented(build):
    x, label = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="label must be None.*classes=0"):
        build(4, classes=0)(x, label)
    with pytest.raises(ValueError, match="label must be given"):
        build(4, classes=2)(x)
