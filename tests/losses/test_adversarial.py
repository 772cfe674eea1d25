"""Every adversarial loss equals its formula, on scalar and on patch logits."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from gan.registry import ConfigError, create, names

torch.manual_seed(0)
LOGITS = {
    "scalar": (torch.randn(5), torch.randn(5)),
    "patch": (torch.randn(5, 1, 2, 3), torch.randn(5, 1, 2, 3)),
}


def ones(x):
    return torch.ones_like(x)


FORMULAS = {
    "minimax": (
        lambda r, f: bce(r, ones(r)) + bce(f, 0 * f),
        lambda f, r: torch.log(1 - f.sigmoid()).mean(),
    ),
    "nonsaturating": (lambda r, f: bce(r, ones(r)) + bce(f, 0 * f), lambda f, r: bce(f, ones(f))),
    "bce": (lambda r, f: bce(r, ones(r)) + bce(f, 0 * f), lambda f, r: bce(f, ones(f))),
    "focal": (
        lambda r, f: (
            ((1 - r.sigmoid()) ** 2 * -r.sigmoid().log()).mean()
            + (f.sigmoid() ** 2 * -(1 - f.sigmoid()).log()).mean()
        ),
        lambda f, r: ((1 - f.sigmoid()) ** 2 * -f.sigmoid().log()).mean(),
    ),
    "lsgan": (
        lambda r, f: 0.5 * ((r - 1) ** 2).mean() + 0.5 * (f**2).mean(),
        lambda f, r: 0.5 * ((f - 1) ** 2).mean(),
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda f, r: -f.mean()),
    "hinge": (
        lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(),
        lambda f, r: -f.mean(),
    ),
    "rpgan": (lambda r, f: bce(r - f, ones(r)), lambda f, r: bce(f - r, ones(r))),
    "ragan": (
        lambda r, f: 0.5 * (bce(r - f.mean(), ones(r)) + bce(f - r.mean(), 0 * f)),
        lambda f, r: 0.5 * (bce(f - r.mean(), ones(f)) + bce(r - f.mean(), 0 * r)),
    ),
}


def test_every_registered_loss_has_a_formula_here():
    assert set(FORMULAS) == set(names("adversarial"))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", LOGITS)
def test_loss_and_gradient_equal_the_formula(name, kind):
    loss, (of_discriminator, of_generator) = create("adversarial", name), FORMULAS[name]
    for ours, formula in (
        (loss.discriminator, of_discriminator),
        (lambda a, b: loss.generator(a, lambda: b), of_generator),
    ):
        results = []
        for function in (ours, formula):
            first, second = (x.double().clone().requires_grad_() for x in LOGITS[kind])
            value = function(first, second)
            grads = torch.autograd.grad(
                value, [first, second], allow_unused=True, materialize_grads=True
            )
            results.append((value.detach(), *grads))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    loss = create("adversarial", name)
    real = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    fake = torch.tensor([-1e4, 1e4, 0.0], dtype=dtype, requires_grad=True)
    for value in (loss.discriminator(real, fake), loss.generator(fake, lambda: real)):
        value.backward()
        assert value.isfinite()
        assert real.grad is None or real.grad.isfinite().all()
        assert fake.grad.isfinite().all()


def test_nonsaturating_gradient_survives_a_confident_discriminator():
    fake = torch.full((4,), -30.0, requires_grad=True)
    create("adversarial", "nonsaturating").generator(fake, lambda: fake).backward()
    torch.testing.assert_close(fake.grad, torch.full((4,), -0.25))
    control = torch.full((4,), -30.0, requires_grad=True)
    (-(control.sigmoid() + 1e-8).log().mean()).backward()  # the known wrong variant
    assert control.grad.abs().max() < 1e-4


def test_values_at_zero_logits():
    zero = torch.zeros(3)
    at_zero = {
        "minimax": 2 * math.log(2),
        "focal": 0.5 * math.log(2),
        "hinge": 2.0,
        "rpgan": math.log(2),
    }
    for name, value in at_zero.items():
        assert create("adversarial", name).discriminator(zero, zero).item() == pytest.approx(value)
    assert create("adversarial", "minimax").generator(zero, lambda: zero).item() == pytest.approx(
        -math.log(2)
    )


def test_focal_without_gamma_is_the_plain_loss():
    real, fake = LOGITS["patch"]
    plain, focal = create("adversarial", "nonsaturating"), create("adversarial", "focal", gamma=0.0)
    torch.testing.assert_close(focal.discriminator(real, fake), plain.discriminator(real, fake))
    torch.testing.assert_close(
        focal.generator(fake, lambda: real), plain.generator(fake, lambda: real)
    )


def test_hinge_margin_acts_on_samples_and_not_on_their_mean():
    real = torch.tensor([3.0, -1.0])
    value = create("adversarial", "hinge").discriminator(real, torch.full((2,), -2.0))
    assert value.item() == pytest.approx(1.0)  # a clamp of the mean would give 0


@pytest.mark.row("N11", "smoothing is one-sided; losses without labels refuse it")
def test_one_sided_smoothing_moves_the_optimum_and_leaves_the_generator():
    loss = create("adversarial", "bce", real=0.9)
    logit = torch.tensor(0.9).logit().repeat(3).requires_grad_()
    loss.discriminator(logit, torch.full((3,), -1e4)).backward()
    torch.testing.assert_close(logit.grad, torch.zeros(3), atol=1e-6, rtol=0)
    fake = LOGITS["scalar"][1]
    plain = create("adversarial", "bce").generator(fake, lambda: fake)
    torch.testing.assert_close(loss.generator(fake, lambda: fake), plain)
    for name in ("wasserstein", "hinge", "rpgan", "nonsaturating"):  # which have no labels
        with pytest.raises(ConfigError, match=rf"adversarial\.{name}\.real is unknown"):
            create("adversarial", name, real=0.9)


def test_noisy_labels_are_drawn_per_sample_and_average_to_their_mean():
    loss = create("adversarial", "bce", real=[0.7, 1.0], fake=[0.0, 0.3])
    labels = loss.labels(torch.zeros(64, 1, 2, 2), loss.real)
    assert labels.shape == (64, 1, 1, 1)
    assert len(labels.unique()) == 64
    assert ((labels >= 0.7) & (labels <= 1.0)).all()
    real, fake = LOGITS["patch"]
    mean = torch.stack([loss.discriminator(real, fake) for _ in range(2000)]).mean()
    fixed = create("adversarial", "bce", real=0.85, fake=0.15).discriminator(real, fake)
    assert mean.item() == pytest.approx(fixed.item(), abs=0.01)


def test_flips_are_two_sided_smoothing_in_expectation():
    real, fake = torch.randn(20_000) + 1, torch.randn(20_000) - 1
    flipped = create("adversarial", "bce", flip=0.2).discriminator(real, fake)
    smoothed = create("adversarial", "bce", real=0.8, fake=0.2).discriminator(real, fake)
    assert flipped.item() == pytest.approx(smoothed.item(), abs=0.02)


def test_labels_above_one_are_refused():
    with pytest.raises(ConfigError, match=r"adversarial\.bce\.real.*at most 1, not 1\.2"):
        create("adversarial", "bce", real=1.2)


def test_relativistic_losses_ignore_a_constant():
    real, fake = LOGITS["scalar"]
    for name in ("rpgan", "ragan", "wasserstein"):
        loss = create("adversarial", name)
        torch.testing.assert_close(
            loss.discriminator(real + 7, fake + 7), loss.discriminator(real, fake)
        )


def test_pairing_depends_on_the_pairs_and_refuses_unequal_batches():
    real, fake = LOGITS["scalar"]
    loss = create("adversarial", "rpgan")
    assert loss.discriminator(real, fake.flip(0)) != loss.discriminator(real, fake)
    with pytest.raises(ValueError, match="as many fakes as reals"):
        loss.discriminator(real[:, None], fake)


def test_only_comparing_losses_ask_for_the_real_logits():
    fake = LOGITS["scalar"][1]
    asked = []
    for name in names("adversarial"):
        create("adversarial", name).generator(fake, lambda name=name: asked.append(name) or fake)
    assert set(asked) == {"rpgan", "ragan"}
