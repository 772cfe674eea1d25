"""Normalisation, conditions and sizes against their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from gan.networks.blocks import (
    AdaptiveInstanceNorm,
    ConditionalBatchNorm,
    Critic,
    Entrance,
    Latent,
    chosen_norm,
    generator_norm,
    levels,
    normalisation,
    reparametrise,
    widths,
)


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
    assert not torch.allclose(normalisation("layer", 3)(scale * x + shift), norm(x), atol=1e-1)
    assert not list(norm.parameters())
    assert not list(norm.buffers())


@pytest.mark.parametrize("norm", [normalisation("instance", 3), AdaptiveInstanceNorm(3, 2)])
def test_one_pixel_has_no_variance_and_is_refused(norm):
    code = [torch.randn(2, 2)] if isinstance(norm, AdaptiveInstanceNorm) else []
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.randn(2, 3, 1, 1), *code)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (48, 3), (64, 4), (50, 1)])
def test_group_norm_has_groups_of_sixteen_channels_where_they_divide(channels, groups):
    x = torch.randn(2, channels, 3, 4)
    expected = functional.group_norm(x, groups)
    assert torch.allclose(normalisation("group", channels)(x), expected, atol=1e-6)


def moments(x, dims):
    return x.mean(dims), x.var(dims, correction=0)


def follows_batch_norm(norm):
    """Mean 0 and variance 1 of small maps, and statistics that take a tenth of the new value."""
    x = 0.1 * torch.randn(3, 2, 6, 7) + 5
    mean, variance = moments(norm(x), (0, 2, 3))
    kept = 0.9 + 0.1 * x.var((0, 2, 3), correction=1)
    return (
        torch.allclose(mean, torch.zeros(2), atol=1e-5)
        and torch.allclose(variance, torch.ones(2), atol=1e-2)
        and torch.allclose(norm.running_var, kept, atol=1e-6)
        and torch.allclose(norm.running_mean, 0.1 * x.mean((0, 2, 3)), atol=1e-6)
    )


def test_batch_norm_has_unit_variance_and_unbiased_running_statistics():
    assert follows_batch_norm(normalisation("batch", 2))
    assert not follows_batch_norm(nn.BatchNorm2d(2, 0.8))  # control: that is eps, not momentum
    assert not follows_batch_norm(nn.BatchNorm2d(2, momentum=0.9))  # control: weight of the old


@pytest.mark.parametrize(
    ("norm", "mixes"), [("batch", True), ("instance", False), ("layer", False), ("group", False)]
)
def test_only_batch_norm_carries_gradients_between_samples(norm, mixes):
    x = torch.randn(3, 4, 6, 7, requires_grad=True)
    layer = normalisation(norm, 4)
    (gradient,) = torch.autograd.grad((layer(x)[0] * torch.randn(4, 6, 7)).sum(), x)
    assert (gradient[1:].abs().max() > 1e-4) == mixes
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-6) != mixes


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


def test_spectral_norm_of_a_transposed_convolution_on_its_input_axis_is_another_norm():
    control = nn.ConvTranspose2d(5, 7, 3)
    nn.init.normal_(control.weight)
    parametrizations.spectral_norm(control, dim=0)
    for _ in range(100):
        control(torch.randn(2, 5, 4, 4))
    weight = control.eval().weight.transpose(0, 1).flatten(1)
    assert abs(torch.linalg.matrix_norm(weight, 2).item() - 1) > 1e-2


def test_spectral_norm_iterates_once_a_forward_and_only_while_training():
    layer, x = nn.Linear(5, 7), torch.randn(2, 5)
    reparametrise(layer, "spectral")
    state = layer.parametrizations.weight[0]
    assert (state.n_power_iterations, state.eps) == (1, 1e-12)
    v = state._v.clone()
    layer(x)
    u = functional.normalize(layer.parametrizations.weight.original @ v, dim=0)
    assert torch.allclose(state._u, u, atol=1e-6)


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
    before = layer.weight.detach().clone()
    direction.data = 3 * direction.data
    assert torch.allclose(layer.weight, before, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "none"])
def test_norms_of_maps_leave_weights_alone(norm):
    layer = nn.Conv2d(2, 2, 3)
    reparametrise(layer, norm)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


# -- norms that read a condition


def randomised(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_conditional_batch_norm_of_one_class_is_batch_norm_with_its_gain_and_bias():
    norm, x = randomised(ConditionalBatchNorm(4, classes=3)), torch.randn(3, 4, 6, 7)
    for training in (True, False):
        running = norm.norm.running_mean.clone(), norm.norm.running_var.clone()
        y = norm.train(training)(x, torch.full((3,), 2))
        expected = functional.batch_norm(x, *running, norm.gain[2], norm.bias[2], training)
        assert torch.allclose(y, expected, atol=1e-6)
        assert torch.allclose(norm.norm.running_var, running[1])  # batch_norm moved these alike


def test_classes_share_the_statistics_of_conditional_batch_norm():
    norm, x = ConditionalBatchNorm(4, classes=2), torch.randn(4, 4, 6, 7)
    x[2:] += 3
    label = torch.tensor([0, 0, 1, 1])
    assert torch.allclose(norm(x, label), nn.BatchNorm2d(4)(x), atol=1e-6)  # gain 1, bias 0
    each = torch.cat(
        [functional.batch_norm(part, None, None, training=True) for part in x.split(2)]
    )
    assert not torch.allclose(norm(x, label), each, atol=1e-1)  # control: statistics per class


def test_only_classes_in_the_batch_get_gradients():
    norm = ConditionalBatchNorm(4, classes=5)
    (
        norm(torch.randn(3, 4, 2, 3), torch.tensor([1, 3, 1])) * torch.randn(3, 4, 2, 3)
    ).sum().backward()
    for table in (norm.gain, norm.bias):
        assert (table.grad.abs().sum(1) > 0).tolist() == [False, True, False, True, False]


def test_adaptive_instance_norm_sets_mean_and_deviation_of_each_map():
    norm, code = randomised(AdaptiveInstanceNorm(4, features=5)), torch.randn(3, 5)
    gain, bias = norm.style(code).chunk(2, 1)
    for x in (torch.randn(3, 4, 16, 17), 9 * torch.randn(3, 4, 16, 17) + 5):
        mean, variance = moments(norm(x, code), (2, 3))
        assert torch.allclose(mean, bias, atol=1e-4)
        assert torch.allclose(variance.sqrt(), (1 + gain).abs(), rtol=1e-3)


def test_adaptive_instance_norm_is_batch_size_free():
    norm, x, code = AdaptiveInstanceNorm(4, 5), torch.randn(3, 4, 6, 7), torch.randn(3, 5)
    assert torch.allclose(norm(x, code)[:1], norm(x[:1], code[:1]), atol=1e-6)


def test_other_norms_do_not_read_the_code():
    x = torch.randn(3, 4, 6, 7)
    norm = generator_norm("layer", 4, classes=0, features=2)
    assert torch.allclose(norm(x, torch.randn(3, 2)), functional.group_norm(x, 1), atol=1e-6)


def test_auto_norm_is_conditional_only_with_classes():
    assert [chosen_norm("auto", classes) for classes in (0, 3)] == ["batch", "conditional"]
    assert chosen_norm("adain", 0) == "adain"
    with pytest.raises(ValueError, match="generator.norm cannot be conditional without classes"):
        chosen_norm("conditional", 0)


def test_the_label_goes_to_the_norms_or_into_the_latent_vector():
    z, label = torch.randn(2, 4), torch.tensor([2, 0])
    vector, code = Entrance(4, 3, "conditional")(z, label)
    assert vector is not label
    assert torch.equal(vector, z)
    assert code is label
    joined = Entrance(4, 3, "adain")
    vector, code = joined(z, label)
    assert vector.shape == (2, joined.width) == (2, 8)
    assert code is vector


def test_projection_adds_the_product_of_features_and_class_embedding():
    critic, features = Critic(4, classes=3), torch.randn(2, 4)
    first, second = critic(features, torch.tensor([0, 1])), critic(features, torch.tensor([2, 2]))
    table = critic.embeddings[0].weight
    expected = ((table[[0, 1]] - table[[2, 2]]) * features).sum(1)
    assert torch.allclose(first.logits - second.logits, expected, atol=1e-6)
    assert first.class_logits is None
    nn.init.zeros_(table)
    unconditional = critic.linear(features).squeeze(1)
    assert torch.equal(critic(features, torch.tensor([0, 1])).logits, unconditional)


def test_an_auxiliary_head_names_the_class_and_leaves_the_logit_alone():
    critic, features = Critic(4, classes=3, condition="auxiliary"), torch.randn(2, 4)
    first, second = critic(features, torch.tensor([0, 1])), critic(features, torch.tensor([2, 2]))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.class_logits, critic.heads[0](features))
    both = Critic(4, classes=3, condition="both")
    first, second = both(features, torch.tensor([0, 1])), both(features, torch.tensor([2, 2]))
    assert not torch.equal(first.logits, second.logits)
    assert first.class_logits.shape == (2, 3)


@pytest.mark.parametrize("condition", ["auxiliary", "both"])
def test_a_condition_without_classes_is_refused(condition):
    with pytest.raises(ValueError, match=rf"discriminator\.condition={condition} needs classes"):
        Critic(4, classes=0, condition=condition)


def test_latents_carry_the_class_after_the_noise():
    join, z = Latent(4, classes=3), torch.randn(2, 4)
    joined = join(z, torch.tensor([2, 0]))
    assert joined.shape == (2, join.width) == (2, 8)
    assert torch.equal(joined[:, :4], z)
    assert torch.equal(joined[:, 4:], join.embeddings[0].weight[[2, 0]])


def joining(latent, classes):
    return Entrance(latent, classes, "conditional" if classes else "batch")


@pytest.mark.parametrize("build", [Latent, Critic, joining])
def test_labels_are_neither_ignored_nor_invented(build):
    x, label = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="label must be None.*classes=0"):
        build(4, classes=0)(x, label)
    with pytest.raises(ValueError, match="label must be given"):
        build(4, classes=2)(x)
