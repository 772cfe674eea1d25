"""Gradient penalties equal their closed form at batch 3 on 4-D input; known wrong ones do not."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from gan import draws
from gan.losses import penalties
from gan.losses.penalties import input_gradient
from gan.registry import create, names

torch.manual_seed(0)
SHAPES = [(3, 3, 6, 7), (1, 1, 6, 7), (3, 1, 6, 7)]
RTOL = 1e-5  # penalties are computed in fp32 on purpose


def linear(weight: Tensor):
    return lambda x: (x * weight).flatten(1).sum(1)


def patches(weight: Tensor):
    """A map [B, 1, 2, 3] whose mean over patches is the linear score."""
    shares = torch.tensor([[0.5, 1.5, 1.0], [1.0, 0.25, 1.75]])
    return lambda x: linear(weight)(x)[:, None, None, None] * shares


def half_square(x: Tensor) -> Tensor:
    return 0.5 * x.flatten(1).square().sum(1)


def images(shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def pay(name, judge, real, fake, **settings):
    return create("penalty", name, weight=2.0, **settings)(judge, real, fake, 0)


LINEAR = {
    "wgan_gp": lambda n: 2 * (n - 1) ** 2,
    "wgan_gp_one_sided": lambda n: 2 * torch.relu(n - 1) ** 2,
    "dragan": lambda n: 2 * (n - 1) ** 2,
    "r1": lambda n: n**2,  # weight / 2
    "r2": lambda n: n**2,
}


def test_every_gradient_penalty_has_a_closed_form_here():
    assert set(LINEAR) == set(names("penalty")) - set(names("perturbation"))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("judge_of", [linear, patches])
@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.row("N8", "penalties equal their closed form; finite where the judge is flat")
def test_linear_judge_gives_the_closed_form(name, shape, judge_of, scale):
    real, fake = images(shape)
    weight = scale * torch.randn(shape[1:], generator=torch.Generator().manual_seed(2))
    expected = LINEAR[name](weight.norm())
    torch.testing.assert_close(
        pay(name, judge_of(weight), real, fake), expected, rtol=RTOL, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("wgan_gp", {}, lambda x: 2 * (x.flatten(1).norm(dim=1) - 1).square().mean()),
        ("dragan", {"noise": 0.0}, lambda x: 2 * (x.flatten(1).norm(dim=1) - 1).square().mean()),
        ("r1", {}, lambda x: x.flatten(1).square().sum(1).mean()),
        ("r2", {}, lambda x: x.flatten(1).square().sum(1).mean()),
    ],
)
@pytest.mark.row("N8")
def test_quadratic_judge_gives_the_closed_form(name, settings, expected):
    real, _ = images((3, 2, 4, 4))
    torch.testing.assert_close(
        pay(name, half_square, real, real, **settings), expected(real), rtol=RTOL, atol=0
    )


@pytest.mark.row("G5")
@pytest.mark.parametrize("name", LINEAR)
def test_value_is_a_mean_over_samples_whatever_their_number_and_order(name):
    real, _ = images((4, 2, 3, 5))
    settings = {"noise": 0.0} if name == "dragan" else {}

    def value(x: Tensor) -> Tensor:
        return pay(name, half_square, x, x, **settings)

    whole, shares = value(real), [value(real[:1]), value(real[1:2]), value(real[2:])]
    assert not torch.allclose(shares[0], whole)
    for same in (
        value(real[torch.tensor([2, 0, 3, 1])]),
        value(torch.cat([real, real])),
        (shares[0] + shares[1] + 2 * shares[2]) / 4,
    ):
        torch.testing.assert_close(same, whole, rtol=RTOL, atol=0)


def wrong(variant: str, weight: Tensor, real: Tensor) -> Tensor:
    """Gradient norms as known public code computes them."""
    gradient = input_gradient(linear(weight), real)
    return {
        "per pixel": gradient.norm(dim=1),
        "per batch": gradient.norm(),
        "mean over the batch": (gradient / len(real)).flatten(1).norm(dim=1),
        "mean over pixels": gradient.flatten(1).square().mean(1).sqrt(),
    }[variant]


@pytest.mark.parametrize(
    "variant", ["per pixel", "per batch", "mean over the batch", "mean over pixels"]
)
@pytest.mark.parametrize("name", ["wgan_gp", "r1"])
@pytest.mark.row("G5", "penalties: invariances hold, known wrong variants are seen")
def test_wrong_norms_miss_the_closed_form(name, variant):
    real, _ = images((3, 2, 4, 4))
    weight = torch.randn((2, 4, 4), generator=torch.Generator().manual_seed(2))
    norms, right = wrong(variant, weight, real), LINEAR[name](weight.norm())
    value = 2 * (norms - 1).square().mean() if name == "wgan_gp" else norms.square().mean()
    assert abs(value - right) > 0.1 * right


@pytest.mark.row("N8")
def test_gradient_of_r1_with_respect_to_the_weights_is_gamma_times_them():
    weight = torch.randn(2, 4, 4, requires_grad=True)
    real, fake = images((3, 2, 4, 4))
    pay("r1", linear(weight), real, fake).backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.row("N8")
def test_value_and_gradient_are_finite_where_the_judge_is_flat(name):
    weight = torch.zeros(2, 4, 4, requires_grad=True)
    real, fake = images((3, 2, 4, 4))
    value = pay(name, linear(weight), real, fake)
    value.backward()
    assert value.isfinite()
    assert weight.grad.isfinite().all()


@pytest.mark.row("G5")
def test_interpolation_draws_one_share_per_sample():
    penalty = create("penalty", "wgan_gp")
    points = penalty.points(torch.ones(5, 2, 4, 4), torch.zeros(5, 2, 4, 4))
    shares = points.flatten(1)
    assert (shares == shares[:, :1]).all()
    assert len(shares[:, 0].unique()) == 5
    assert ((shares >= 0) & (shares <= 1)).all()


def test_interpolation_lies_between_real_and_fake():
    real, fake = images((3, 2, 4, 4))
    points = create("penalty", "wgan_gp").points(real, fake)
    share = (points - fake) / (real - fake)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share), rtol=1e-3, atol=1e-4)


def test_dragan_noise_is_centred_and_relative_to_the_data_range():
    penalty = create("penalty", "dragan", noise=0.5)
    noise = penalty.points(torch.zeros(64, 3, 16, 16), torch.zeros(64, 3, 16, 16))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 0.5) < 0.02


@pytest.mark.row("G5")
def test_no_gradient_reaches_the_generator_or_the_condition():
    seed = torch.randn(3, 2, 4, 4, requires_grad=True)
    condition = torch.randn(3, 2, 4, 4, requires_grad=True)
    weight = torch.randn(2, 4, 4, requires_grad=True)
    pay(
        "r2", lambda x: linear(weight)(x.square()) + linear(weight)(condition), seed, seed * 2
    ).backward()
    assert seed.grad is None
    assert condition.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.row("G5")
def test_lazy_penalty_is_scaled_by_its_interval(name):
    real, fake = images((3, 2, 4, 4))
    judge = linear(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3)))
    every = create("penalty", name, weight=2.0, every=4)(judge, real, fake, 0)
    torch.testing.assert_close(every, 4 * pay(name, judge, real, fake))


@pytest.mark.parametrize("name", LINEAR)
def test_a_weight_falls_along_half_a_cosine(name):
    real, fake = images((4, 2, 4, 4))
    judge = linear(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3)))
    penalty = create("penalty", name, weight=2.0, end=0.1, images=80)  # of batches of 4
    first = pay(name, judge, real, fake)
    for update, left in [(0, 1.0), (5, 0.55 + 0.45 * 2**-0.5), (10, 0.55), (20, 0.1), (99, 0.1)]:
        torch.testing.assert_close(penalty(judge, real, fake, update), left * first)
    straight = 0.1 + 0.9 * 0.75  # control
    assert (penalty(judge, real, fake, 5) - straight * first).abs() > 0.05 * first


def test_a_weight_falls_with_the_images_of_the_whole_batch():
    penalty = create("penalty", "r1", end=0.0, images=80)
    real, fake = images((2, 2, 4, 4))  # a piece of it, in one of two processes
    judge = linear(torch.ones(2, 4, 4))
    with draws.shared(draws.Share(0, 2, 8), seed=1):
        paid = penalty(judge, real, fake, 5)
    torch.testing.assert_close(paid, 0.5 * create("penalty", "r1")(judge, real, fake, 5))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.row("N9", "second derivatives equal central differences")
def test_second_derivative_is_right(name):
    """A central difference of the penalty in the judge's parameter equals its gradient."""
    real, fake = images((3, 2, 4, 4))
    direction = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(4))

    def value(t: Tensor) -> Tensor:
        torch.manual_seed(5)
        return pay(
            name, lambda x: torch.nn.functional.softplus(linear(direction * t)(x)), real, fake
        )

    at = torch.tensor(0.7, requires_grad=True)
    value(at).backward()
    step = 1e-2
    numeric = (value(at.detach() + step) - value(at.detach() - step)) / (2 * step)
    torch.testing.assert_close(at.grad, numeric, rtol=1e-2, atol=1e-3)


def test_a_gradient_that_is_a_constant_has_no_second_derivative(monkeypatch):
    """As where `create_graph` is forgotten: the penalty would teach the judge nothing."""
    plain = penalties.input_gradient
    monkeypatch.setattr(penalties, "input_gradient", lambda *given: plain(*given).detach())
    for name in LINEAR:
        with pytest.raises(RuntimeError, match="does not require grad"):
            test_second_derivative_is_right(name)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.row("N10", "penalties under bf16 autocast are computed in fp32")
def test_penalties_are_computed_in_fp32_under_autocast(name):
    torch.manual_seed(6)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(32, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1)
    )
    real, fake = images((3, 2, 4, 4))

    def value():
        torch.manual_seed(7)
        return pay(name, lambda x: network(x).squeeze(1), real, fake)

    plain = value()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = value()
        huge = pay(name, lambda x: network(x).squeeze(1), 1e4 * real, 1e4 * fake)
    torch.testing.assert_close(cast, plain, rtol=1e-6, atol=0)
    assert huge.isfinite()


def test_penalties_under_autocast_would_be_others(monkeypatch):
    """As where the judge is called in what precision the losses have."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, enabled=True, **given: autocast(kind, **given) if enabled else nullcontext(),
    )
    with pytest.raises(AssertionError):
        test_penalties_are_computed_in_fp32_under_autocast("r1")
