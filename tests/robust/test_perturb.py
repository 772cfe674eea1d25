"""Perturbations equal their closed form on a linear model, stay in their ball, and leave no trace.

Batch 3, 4-D, height and width differ; what public code is known to get wrong fails the same checks.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gan.registry import ConfigError, create, names
from gan.robust.perturb import in_ball, projected, steepest

SHAPE = (3, 2, 4, 5)
RADIUS = 0.25
METHODS = {
    "fgsm": ("fgsm", {}, "linf"),
    "fgm": ("fgm", {}, "l2"),
    "pgd linf": ("pgd", {"norm": "linf", "random_start": False}, "linf"),
    "pgd l2": ("pgd", {"norm": "l2", "random_start": False}, "l2"),
    "pgd linf, random start": ("pgd", {"norm": "linf"}, "linf"),
}
SIGNS = torch.tensor([1.0, -1.0, -1.0])  # the loss rises along w in one sample and falls in two


def method(which, radius=RADIUS, **more):
    name, given, _ = METHODS[which]
    return create("perturbation", name, radius=radius, **given, **more)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight():
    return numbers(*SHAPE[1:], seed=1)


def images(shape=SHAPE):
    """Within [-0.5, 0.5], where no step of this radius meets the value range."""
    return numbers(*shape, seed=2).clamp(-0.5, 0.5)


def linear(x: Tensor) -> Tensor:
    """A loss a sample [B]."""
    return SIGNS * (x * weight()).flatten(1).sum(1)


def highest(norm: str, radius: float = RADIUS) -> Tensor:
    """The offset [B, C, H, W] of a ball that raises the linear loss most."""
    direction = weight().sign() if norm == "linf" else weight() / weight().norm()
    return radius * SIGNS.view(-1, 1, 1, 1) * direction


def lengths(offset: Tensor, norm: str) -> Tensor:
    flat = offset.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


# -- closed form


def test_every_registered_perturbation_has_a_closed_form_here():
    assert {name for name, _, _ in METHODS.values()} == set(names("perturbation"))


@pytest.mark.parametrize("which", METHODS)
@pytest.mark.parametrize("reduced", [lambda loss: loss, Tensor.sum, Tensor.mean])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e3])
def test_linear_loss_gives_the_closed_form(which, reduced, scale):
    clean = images()
    moved = method(which)(lambda x: reduced(scale * linear(x)), clean)
    assert moved.shape == clean.shape
    assert not moved.requires_grad
    torch.testing.assert_close(moved - clean, highest(METHODS[which][2]), rtol=1e-4, atol=1e-6)


def test_l2_steps_from_a_random_start_close_in_on_the_closed_form():
    """The way that is left across the direction shrinks by 1 + step / radius, here to a half."""
    clean = images()
    worst = create("perturbation", "pgd", radius=RADIUS, norm="l2", steps=24, step=RADIUS)
    torch.testing.assert_close(worst(linear, clean) - clean, highest("l2"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", ["fgsm", "pgd linf", "pgd linf, random start"])
def test_at_the_edge_of_the_value_range_the_closed_form_is_cut_there(which):
    clean = images().sign()  # every pixel is black or white
    moved = method(which)(linear, clean)
    torch.testing.assert_close(moved, (clean + highest("linf")).clamp(-1, 1))


def wrong(variant: str, gradient: Tensor) -> Tensor:
    """Steps as known public code takes them; all gradients are those of the summed losses."""
    return (
        RADIUS
        * {
            "norm of the batch": gradient / gradient.norm(),
            "norm per pixel": gradient / gradient.norm(dim=1, keepdim=True),
            "norm per channel": gradient / gradient.flatten(2).norm(dim=2)[..., None, None],
            "the batch's mean gradient": steepest(gradient.mean(0, keepdim=True), "l2").expand(
                SHAPE
            ),
            "sign of the batch's mean": gradient.mean(0, keepdim=True).sign().expand(SHAPE),
            "downwards": -gradient.sign(),
            "not normalised": gradient,
        }[variant]
    )


@pytest.mark.parametrize(
    ("variant", "norm"),
    [
        ("norm of the batch", "l2"),
        ("norm per pixel", "l2"),
        ("norm per channel", "l2"),
        ("the batch's mean gradient", "l2"),
        ("sign of the batch's mean", "linf"),
        ("downwards", "linf"),
        ("not normalised", "l2"),
    ],
)
def test_wrong_steps_miss_the_closed_form(variant, norm):
    gradient = SIGNS.view(-1, 1, 1, 1) * weight()
    assert (wrong(variant, gradient) - highest(norm)).abs().max() > 0.1 * RADIUS


def test_each_sample_moves_as_it_would_alone():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1))
    for which in ("fgsm", "fgm", "pgd linf", "pgd l2"):
        together = method(which)(network, images())
        alone = [method(which)(network, image[None]) for image in images()]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


# -- the ball and the value range


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    norm=st.sampled_from(["linf", "l2"]),
    radius=st.sampled_from([0.0, 1e-3, 0.1, 0.7, 5.0]),
    step=st.sampled_from([None, 1e-3, 10.0]),
    steps=st.integers(1, 5),
    start=st.booleans(),
)
def test_neither_the_ball_nor_the_value_range_is_ever_left(seed, norm, radius, step, steps, start):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3))
    clean = torch.rand(3, 2, 4, 7) * 2 - 1
    made = {"radius": radius, "norm": norm, "step": step, "steps": steps, "random_start": start}
    visited = []

    def loss_of(x):
        visited.append(x.detach())
        return cross_entropy(10 * network(x), torch.arange(3), reduction="none")

    visited.append(create("perturbation", "pgd", **made)(loss_of, clean))
    assert len(visited) == steps + 1
    for moved in visited:
        assert (lengths(moved - clean, norm) <= radius * (1 + 1e-5) + 1e-6).all()
        assert (moved.abs() <= 1).all()


def test_a_long_step_or_one_past_white_would_leave_it():
    """The check above can fail: one step of 10, neither projected nor cut."""
    clean = images().sign()
    free = clean + 10 * steepest(weight().expand(SHAPE), "linf")
    assert (lengths(free - clean, "linf") > RADIUS * (1 + 1e-5)).all()
    assert (free.abs() > 1).any()


def test_pixels_outside_the_value_range_go_no_further_out_but_may_come_in():
    clean = torch.full(SHAPE, 1.5)
    up = create("perturbation", "fgsm", radius=0.25)(lambda x: x.sum(), clean)
    down = create("perturbation", "fgsm", radius=0.25)(lambda x: -x.sum(), clean)
    assert torch.equal(up, clean)
    assert torch.equal(down, clean - 0.25)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_nearest_point_of_the_ball(norm):
    offset = numbers(*SHAPE, seed=4) * torch.tensor([0.01, 1.0, 100.0]).view(-1, 1, 1, 1)
    near = projected(offset, 1.0, norm)
    assert torch.equal(near[0], offset[0])  # inside: nothing moves
    assert (lengths(near, norm) <= 1 + 1e-6).all()
    others = projected(near + 0.1 * numbers(*SHAPE, seed=5), 1.0, norm)
    distance, other = ((offset - x).flatten(1).norm(dim=1) for x in (near, others))
    assert (distance <= other).all()
    assert torch.equal(projected(torch.zeros(SHAPE), 0.0, norm), torch.zeros(SHAPE))


def test_random_starts_fill_the_ball_evenly():
    torch.manual_seed(0)
    cube = in_ball(torch.zeros(4000, 1, 1, 2), 0.5, "linf").flatten()
    assert abs(cube.mean()) < 0.02
    assert cube.var() == pytest.approx(0.5**2 / 3, rel=0.05)
    disc = in_ball(torch.zeros(4000, 1, 1, 2), 0.5, "l2").flatten(1)
    assert (disc.norm(dim=1) <= 0.5 + 1e-6).all()
    inner = (disc.norm(dim=1) < 0.25).float().mean()  # half the radius holds a quarter of a disc
    assert inner == pytest.approx(0.25, abs=0.03)
    assert disc.mean(0).norm() < 0.02


def test_more_steps_never_raise_the_loss_less():
    """On many random networks: PGD reaches at least what FGSM and FGM reach."""
    for seed in range(10):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))
        labels = torch.arange(3)

        def loss_of(x, network=network, labels=labels):
            return cross_entropy(5 * network(x), labels, reduction="none")

        clean = images()
        for norm, once in (("linf", "fgsm"), ("l2", "fgm")):
            single = create("perturbation", once, radius=0.5)
            many = {"radius": 0.5, "steps": 20, "norm": norm, "random_start": False}
            reached = loss_of(create("perturbation", "pgd", **many)(loss_of, clean))
            assert (reached >= loss_of(single(loss_of, clean)) - 0.02).all()
            assert (reached > loss_of(clean)).all()


# -- what it leaves alone, and where it works


def small():
    torch.manual_seed(6)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def class_loss(network):
    return lambda x: cross_entropy(network(x), torch.arange(3), reduction="none")


@pytest.mark.parametrize("which", METHODS)
def test_gradients_flags_and_weights_stay_and_later_calls_give_the_same(which):
    network = small()
    network[0].weight.requires_grad = False
    class_loss(network)(images()).sum().backward()
    before = [(p.detach().clone(), p.grad, p.requires_grad) for p in network.parameters()]
    held = [None if g is None else g.clone() for _, g, _ in before]
    clean = images()
    results = []
    for _ in range(3):
        torch.manual_seed(7)
        results.append(method(which)(class_loss(network), clean))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], clean)
    assert torch.equal(clean, images())
    assert not clean.requires_grad
    for p, (value, gradient, flag), copy in zip(network.parameters(), before, held, strict=True):
        assert torch.equal(p, value)
        assert p.grad is gradient
        assert gradient is None or torch.equal(gradient, copy)
        assert p.requires_grad == flag


@pytest.mark.parametrize("which", METHODS)
def test_its_own_results_leaves_and_results_of_networks_are_all_taken(which):
    network, perturbation = small(), method(which)

    def moved(given):
        torch.manual_seed(8)
        return perturbation(class_loss(network), given)

    plain = moved(images())
    leaf = images().requires_grad_()
    assert torch.equal(moved(leaf), plain)
    assert leaf.grad is None
    made = leaf * 1  # a result, as a generator's image
    assert torch.equal(moved(made), plain)
    assert made.requires_grad
    again = moved(moved(images()))
    assert again.isfinite().all()
    made.sum().backward()  # its own graph is whole
    assert torch.equal(leaf.grad, torch.ones(SHAPE))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("which", METHODS)
def test_it_works_where_gradients_are_off(which, mode):
    network, results = small(), []
    for context in (torch.enable_grad, mode):
        torch.manual_seed(9)
        with context():
            enabled = torch.is_grad_enabled()
            results.append(method(which)(class_loss(network), images()))
            assert torch.is_grad_enabled() == enabled
    assert torch.equal(*results)


@pytest.mark.parametrize("which", METHODS)
def test_autocast_is_left_and_comes_back(which):
    network, results = small(), []
    for enabled in (False, True):
        torch.manual_seed(10)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(method(which)(class_loss(network), images()))
            assert torch.is_autocast_enabled("cpu") == enabled
    assert torch.equal(*results)
    half = method(which)(class_loss(network), images().bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("which", METHODS)
def test_a_loss_may_enter_autocast_again(which):
    network = small()

    def loss_of(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return class_loss(network)(x)

    moved = method(which)(loss_of, images())
    assert moved.dtype == torch.float32
    assert (lengths(moved - images(), METHODS[which][2]) <= RADIUS + 1e-6).all()
    assert (class_loss(network)(moved) > class_loss(network)(images())).all()


@pytest.mark.parametrize("which", ["fgsm", "fgm", "pgd linf", "pgd l2"])
def test_a_flat_loss_moves_nothing_and_a_flat_sample_alone_stays(which):
    clean = images()
    assert torch.equal(method(which)(lambda x: 0 * x.sum(), clean), clean)
    mask = torch.tensor([1.0, 0.0, 1.0])
    moved = method(which)(lambda x: mask * linear(x), clean)
    assert torch.equal(moved[1], clean[1])
    assert (lengths(moved - clean, METHODS[which][2])[[0, 2]] > 0.9 * RADIUS).all()


def test_a_radius_of_zero_gives_the_images_back():
    for name in names("perturbation"):
        assert torch.equal(create("perturbation", name, radius=0)(linear, images()), images())


@pytest.mark.parametrize("which", METHODS)
def test_samples_of_one_number_each_move_by_the_radius(which):
    worst = method(which)(lambda x: (x * torch.tensor([2.0, -3.0, 0.0])).sum(), torch.zeros(3))
    torch.testing.assert_close(worst[:2], RADIUS * torch.tensor([1.0, -1.0]))
    assert worst[2].abs() <= RADIUS


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (0,), (3, 0)])
def test_none_of_no_images_move(shape, norm, start):
    perturbation = create("perturbation", "pgd", norm=norm, random_start=start)
    assert perturbation(lambda x: x.square().sum(), torch.zeros(shape)).shape == shape


def test_double_precision_stays():
    clean = images().double()
    moved = method("pgd l2")(linear, clean)
    assert moved.dtype == torch.float64
    torch.testing.assert_close(moved - clean, highest("l2").double(), rtol=1e-7, atol=1e-8)


def test_default_steps_reach_across_the_ball():
    made = create("perturbation", "pgd", radius=0.3, steps=4)
    assert made.step == pytest.approx(2.5 * 0.3 / 4)
    assert create("perturbation", "pgd", radius=0.3, step=0.01).step == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": -1}, "radius must be at least 0, not -1"),
        ({"radius": math.inf}, "radius must be a finite number"),
        ({"norm": "l1"}, "norm cannot be 'l1'; .*linf, l2"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"step": 0}, "step must be greater than 0, not 0"),
        ({"radios": 1}, "radios is unknown; did you mean 'radius'"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        create("perturbation", "pgd", **given)


# -- in anybody's loop


def test_a_bare_loop_trains_a_network_that_holds_out():
    """Two classes told apart by one pixel of 0.9 or by sixty faint ones of 0.1.

    Plain training leans on all of them; an attack of 0.25 turns the faint ones round and leaves the
    clear one standing, which the loop below therefore learns to trust.
    """
    labels = torch.arange(64) % 2
    side = (2.0 * labels - 1).view(-1, 1, 1, 1)
    clean = 0.1 * side.expand(64, 1, 8, 8).clone()
    clean[:, :, 0, 0] = 0.9 * side[:, 0, 0]
    worst = create("perturbation", "pgd", radius=0.25, steps=3)

    def accuracy_under_attack(hardened):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
        nn.init.zeros_(network[1].weight)
        optimizer = torch.optim.SGD(network.parameters(), 0.3)
        for _ in range(20):
            batch = worst(lambda x: cross_entropy(network(x), labels), clean) if hardened else clean
            optimizer.zero_grad()
            cross_entropy(network(batch), labels).backward()
            optimizer.step()
        hit = worst(lambda x: cross_entropy(network(x), labels), clean)
        assert (network(clean).argmax(1) == labels).all()
        return (network(hit).argmax(1) == labels).float().mean()

    assert accuracy_under_attack(hardened=False) == 0
    assert accuracy_under_attack(hardened=True) == 1
