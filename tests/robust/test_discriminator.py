"""The robust discriminator's term: its closed form, whom its gradient reaches, and in a game."""

import pytest
import torch
from torch import Tensor, nn

from gan.build import build
from gan.registry import ConfigError, create, names

SHAPE = (3, 2, 4, 5)
PENALTIES = {
    "fgsm": ("fgsm", {}, 1),  # and the dual norm of its ball
    "fgm": ("fgm", {}, 2),
    "pgd linf": ("pgd", {}, 1),
    "pgd l2": ("pgd", {"norm": "l2", "random_start": False}, 2),
}


def images(shape=SHAPE):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).clamp(-0.8, 0.8) for _ in range(2)]


def weight() -> Tensor:
    return 0.1 * torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(2))


def judge_of(weight: Tensor):
    return lambda x: (x * weight).flatten(1).sum(1) + 0.2


def term(which, loss, **settings):
    name, given, _ = PENALTIES[which]
    return create("penalty", name, adversarial=create("adversarial", loss), **given, **settings)


def test_every_penalty_that_moves_images_has_a_closed_form_here():
    robust = [n for n in names("penalty") if n in names("perturbation")]
    assert {name for name, _, _ in PENALTIES.values()} == set(robust)


@pytest.mark.parametrize("loss", names("adversarial"))
@pytest.mark.parametrize("which", PENALTIES)
def test_linear_judge_gives_the_closed_form(which, loss):
    """Each logit moves by radius times the weights' dual norm, up the loss."""
    (real, fake), radius = images(), 0.05
    judge, adversarial = judge_of(weight()), create("adversarial", loss)
    real_logits, fake_logits = judge(real).requires_grad_(), judge(fake).requires_grad_()
    rises = torch.autograd.grad(
        adversarial.discriminator(real_logits, fake_logits), [real_logits, fake_logits]
    )
    reach = radius * weight().flatten().norm(PENALTIES[which][2])
    moved = [
        logits + reach * rise.sign()
        for logits, rise in zip((real_logits, fake_logits), rises, strict=True)
    ]
    value = term(which, loss, weight=2.0, radius=radius)(judge, real, fake, 0)
    torch.testing.assert_close(value, 2 * adversarial.discriminator(*moved), rtol=1e-4, atol=1e-6)
    for wrong in (  # one side left alone, or the whole not moved at all
        adversarial.discriminator(moved[0], fake_logits),
        adversarial.discriminator(real_logits, moved[1]),
        adversarial.discriminator(real_logits, fake_logits),
    ):
        assert value > 2 * wrong + 1e-4


@pytest.mark.parametrize("which", PENALTIES)
def test_a_patch_map_is_judged_as_a_whole(which):
    (real, fake), radius = images(), 0.05
    shares = torch.tensor([[0.5, 1.5, 1.0], [1.0, 0.25, 1.75]])  # their mean is 1

    def patches(x):
        return judge_of(weight())(x)[:, None, None, None] * shares

    value = term(which, "wasserstein", radius=radius)(patches, real, fake, 0)
    clean = create("adversarial", "wasserstein").discriminator(patches(real), patches(fake))
    reach = radius * weight().flatten().norm(PENALTIES[which][2])
    torch.testing.assert_close(value, clean + 2 * reach, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", PENALTIES)
def test_lazy_term_is_scaled_by_its_interval_and_weight(which):
    real, fake = images()
    once = term(which, "hinge")(judge_of(weight()), real, fake, 0)
    lazy = term(which, "hinge", weight=3.0, every=4)(judge_of(weight()), real, fake, 0)
    torch.testing.assert_close(lazy, 12 * once)


@pytest.mark.parametrize("loss", ["nonsaturating", "rpgan", "ragan"])
@pytest.mark.parametrize("which", PENALTIES)
def test_the_gradient_is_that_of_the_loss_at_the_moved_images(which, loss):
    """The way there has none: it is as if the moved images had come from the store."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1))
    (real, fake), penalty = images(), term(which, loss, radius=0.3)
    generated = fake.clone().requires_grad_()
    torch.manual_seed(4)
    penalty(network, real, generated * 1, 0).backward()
    assert generated.grad is None
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    torch.manual_seed(4)

    def loss_of(pair):
        return penalty.adversarial.discriminator(*map(network, pair.chunk(2)))

    moved = penalty.perturbation(loss_of, torch.cat([real, fake]))
    assert all(p.grad is None for p in network.parameters())
    loss_of(moved).backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("which", PENALTIES)
def test_the_term_is_computed_in_fp32_under_autocast(which):
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.Softplus(), nn.Linear(8, 1))
    (real, fake), values = images(), []
    for enabled in (False, True):
        torch.manual_seed(6)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(term(which, "hinge")(network, real, fake, 0))
    assert torch.equal(*values)
    assert values[1].dtype == torch.float32


def test_a_flat_judge_gives_a_finite_term_and_gradient():
    for which in PENALTIES:
        flat = torch.zeros(SHAPE[1:], requires_grad=True)
        value = term(which, "nonsaturating")(judge_of(flat), *images(), 0)
        value.backward()
        assert value.isfinite()
        assert flat.grad.isfinite().all()


# -- in a game


def turns(trainer, count):
    """What the discriminator minimised in its first updates."""
    terms = []
    update = trainer.discriminator.update
    trainer.discriminator.update = lambda *given: terms.append(update(*given)) or terms[-1]
    for _ in range(count):
        trainer.play()
    trainer.stream.close()
    return terms


@pytest.mark.parametrize("model", ["dcgan", pytest.param("wnet", marks=pytest.mark.slow)])
def test_it_is_a_switch_of_every_recipe(tiny, model):
    overrides = ["penalties.pgd.weight=1", "penalties.pgd.radius=0.05", "penalties.fgm.weight=2"]
    trainer = build(tiny(model, *overrides, "adversarial=hinge"))
    penalties = trainer.recipe.penalties
    assert penalties["pgd"].adversarial is trainer.recipe.adversarial
    assert penalties["pgd"].perturbation.radius == 0.05
    first = turns(trainer, 2)[0]
    clean = first["adversarial"] / trainer.recipe.weight
    assert clean < first["pgd"] < clean + 1
    assert clean < first["fgm"] / 2 < clean + 1


def test_it_works_in_bf16_and_with_an_interval(tiny):
    overrides = ["penalties.fgsm.weight=1", "penalties.fgsm.every=2", "trainer.precision=bf16"]
    terms = turns(build(tiny("dcgan", *overrides)), 4)
    assert ["fgsm" in term for term in terms] == [True, False, True, False]
    assert all(torch.stack([*term.values()]).isfinite().all() for term in terms)


def test_batch_norm_stands_beside_it_but_not_beside_a_gradient_penalty(tiny):
    build(tiny("dcgan", "penalties.fgsm.weight=1")).stream.close()  # dcgan has batch norm
    both = ["penalties.fgsm.weight=1", "penalties.r1.weight=1"]
    with pytest.raises(ConfigError, match=r"penalties\.r1 needs each logit to depend on its own"):
        build(tiny("dcgan", *both))


def test_it_does_not_stand_for_a_limit_on_the_slope(tiny, capsys):
    build(tiny("dcgan", "adversarial=wasserstein", "penalties.fgsm.weight=1")).stream.close()
    assert "nothing keeps the discriminator Lipschitz" in capsys.readouterr().out


def test_mistakes_are_named(tiny):
    with pytest.raises(ConfigError, match=r"penalties\.pgd\.radios is unknown; .*'radius'"):
        build(tiny("wnet", "penalties.pgd.radios=1"))
    with pytest.raises(ConfigError, match=r"penalties\.fgm\.radius must be at least 0"):
        build(tiny("wnet", "penalties.fgm.radius=-1"))
