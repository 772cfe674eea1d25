"""Classification losses: formulas, gradients, and probabilities caught where logits belong."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from gan.registry import ConfigError, create, names

CLASSES = 10


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([0, 3, 9, 3, 1, 7])


@pytest.fixture(params=names("classification"))
def loss(request):
    return create("classification", request.param)


def test_uniform_logits_give_the_logarithm_of_the_number_of_classes():
    label = torch.arange(CLASSES)
    for name in ("cross_entropy", "nll"):
        value = create("classification", name)(torch.zeros(CLASSES, CLASSES), label)
        assert value.item() == pytest.approx(math.log(CLASSES))


def test_confident_logits_cost_nothing_and_their_softmax_at_least_the_bound(loss):
    label = torch.arange(CLASSES)
    logits = 20 * one_hot(label).float()
    assert loss(logits, label) < 1e-6
    doubled = cross_entropy(logits.softmax(1), label)  # the known wrong variant, unchecked
    assert doubled >= math.log(1 + 9 / math.e) - 1e-6
    assert math.log(1 + 9 / math.e) == pytest.approx(1.46, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_probabilities_are_refused_with_the_bound(loss, sample, dtype):
    logits, label = sample
    with pytest.raises(ValueError, match=r"above 1\.46 for 10 classes .* remove the softmax"):
        loss(logits.to(dtype).softmax(1), label)


def test_sure_logits_in_bf16_cost_and_teach_what_their_values_say(loss):
    label = torch.arange(CLASSES)
    noise = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0))
    logits = 10 * one_hot(label) + noise  # log p is about -1e-3
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        given = logits.bfloat16().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(given, label)
        found[dtype] = value.double(), torch.autograd.grad(value, given)[0].double()
    (value, gradient), (true, slope) = found.values()
    torch.testing.assert_close(value, true, rtol=1e-2, atol=0)
    assert (gradient - slope).norm() < 1e-2 * slope.norm()


def test_what_merely_resembles_probabilities_passes(loss, sample):
    logits, label = sample
    for batch in (logits.sigmoid(), logits * 0, logits.softmax(1) * 2, logits.softmax(1) - 0.1):
        assert create("classification", "nll")(batch, label).isfinite()
    assert loss(logits, label).isfinite()


def test_only_the_first_batch_is_read(loss, sample, monkeypatch):
    logits, label = sample
    loss(logits, label)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: pytest.fail("a tensor was read"))
    loss(logits.softmax(1), label)


def test_cross_entropy_smooths_towards_all_classes(sample):
    logits, label = sample
    p = log_softmax(logits, 1)
    right = p.gather(1, label[:, None]).squeeze(1)
    expected = -(0.9 * right + 0.1 * p.mean(1)).mean()
    got = create("classification", "cross_entropy", label_smoothing=0.1)(logits, label)
    torch.testing.assert_close(got, expected)
    with pytest.raises(ConfigError, match="label_smoothing must be at least 0 and at most 1"):
        create("classification", "cross_entropy", label_smoothing=1.5)


def test_nll_equals_cross_entropy_and_leaves_log_probabilities_as_they_are(sample):
    logits, label = sample
    nll = create("classification", "nll")
    torch.testing.assert_close(nll(logits, label), cross_entropy(logits, label))
    torch.testing.assert_close(nll(log_softmax(logits, 1), label), cross_entropy(logits, label))


def test_focal_without_focus_is_cross_entropy(sample):
    logits, label = sample
    focal = create("classification", "focal", gamma=0.0)
    torch.testing.assert_close(focal(logits, label), cross_entropy(logits, label))


@pytest.mark.parametrize("alpha", [None, [0.1 * (k + 1) for k in range(CLASSES)]])
@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_value_and_gradient_of_focal_equal_their_closed_forms(sample, gamma, alpha):
    """d/dz_k = alpha (1-p)^gamma (gamma p log p / (1-p) - 1) (1[k = label] - p_k)."""
    logits, label = sample
    value = create("classification", "focal", gamma=gamma, alpha=alpha)(logits, label)
    (gradient,) = torch.autograd.grad(value, logits)
    every = logits.detach().softmax(1)
    p = every.gather(1, label[:, None])  # [B, 1]
    weight = torch.ones(CLASSES) if alpha is None else torch.tensor(alpha)
    scale = weight.double()[label][:, None] * (1 - p) ** gamma / len(label)
    torch.testing.assert_close(value, (-scale * p.log()).sum(), rtol=1e-6, atol=0)
    expected = scale * (gamma * p * p.log() / (1 - p) - 1) * (one_hot(label, CLASSES) - every)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_stays_finite_at_extreme_logits(gamma, dtype):
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype=dtype, requires_grad=True)
    value = create("classification", "focal", gamma=gamma)(logits, torch.tensor([0, 0]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_focal_needs_one_weight_for_each_class(sample):
    with pytest.raises(ValueError, match=r"each of the 10 classes, not 2"):
        create("classification", "focal", alpha=[1.0, 2.0])(*sample)


def test_a_loss_has_no_state(loss):
    assert not loss.state_dict()
    assert not create("classification", "focal", alpha=[1.0]).state_dict()
