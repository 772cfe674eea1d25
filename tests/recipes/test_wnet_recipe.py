"""W-Net's eight terms: each by hand, each once, each with its own switch."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from gan.losses.reconstruction import feature_distance
from gan.metrics.extractors import weights_hash
from gan.recipe import detached
from gan.recipes.wnet import WNet, one_of
from gan.registry import create
from gan.run import state

STYLES, CHARACTERS, SIZE = 3, 5, 16
TERMS = {
    "adversarial": "weight",
    "style_class": "style_class",
    "encoder_character": "encoder_character",
    "encoder_style": "encoder_style",
    "l1": "l1",
    "feature": "feature",
    "constant_content": "constant_content",
    "constant_style": "constant_style",
}


def recipe(penalties=("wgan_gp",), smoothing=0.0, reconstruction=(), **weights):
    torch.manual_seed(0)
    shape = {"size": SIZE, "channels": 1, "width": 2}
    classifier = create("classifier", "small", channels=1, width=4, classes={"style": STYLES})
    return WNet(
        create("generator", "wnet", styles=STYLES, characters=CHARACTERS, dropout=0.0, **shape),
        create("discriminator", "wnet", styles=STYLES, **shape),
        create("adversarial", "wasserstein"),
        {name: create("penalty", name) for name in penalties},
        create("classification", "cross_entropy", label_smoothing=smoothing),
        dict(reconstruction),
        None if weights.get("feature_source") else classifier.eval().requires_grad_(False),
        **weights,
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)

    def images(*shape):
        return torch.rand(3, *shape, SIZE, SIZE, generator=generator) * 2 - 1

    return {
        "prototype": images(1),
        "reference": images(2, 1),
        "target": images(1),
        "style": torch.tensor([0, 2, 1]),
        "character": torch.tensor([4, 0, 3]),
    }


def generator_terms(game, batch):
    torch.manual_seed(2)
    fakes = game.generate(batch)
    torch.manual_seed(3)
    return fakes, game.generator_losses(batch, fakes, 0)


def test_each_term_equals_its_definition(batch):
    game = recipe()
    fakes, terms = generator_terms(game, batch)
    torch.manual_seed(3)
    reference = one_of(batch["reference"])
    critique = game.discriminator(batch["prototype"], fakes["image"], reference)
    (classifier,) = game._classifier
    maps = zip(
        classifier.features(fakes["image"]), classifier.features(batch["target"]), strict=True
    )
    distances = [((a - b).square().flatten(1).mean(1) + 1e-9).sqrt().mean() for a, b in maps]
    encoded = game.generator.encode_content(fakes["image"]).code
    styled = game.generator.encode_style(fakes["image"]).code
    expected = {
        "adversarial": -3 * critique.logits.mean(),
        "style_class": cross_entropy(critique.style_logits, batch["style"]),
        "encoder_character": 0.2 * cross_entropy(fakes["content_logits"], batch["character"]),
        "encoder_style": 0.2 * cross_entropy(fakes["style_logits"], batch["style"]),
        "l1": 50 * l1_loss(fakes["image"], batch["target"]),
        "feature": 75 * sum(distances) / len(distances),
        "constant_content": 3 * mse_loss(encoded, fakes["content_code"]),
        "constant_style": 5 * mse_loss(styled, fakes["style_code"]),
    }
    assert terms.keys() == expected.keys() == TERMS.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_discriminator_terms_equal_their_definitions(batch):
    game = recipe()
    fakes = detached(game.generate(batch))
    torch.manual_seed(3)
    terms = game.discriminator_losses(batch, fakes, 0)
    torch.manual_seed(3)
    reference = one_of(batch["reference"])
    real = game.discriminator(batch["prototype"], batch["target"], reference)
    fake = game.discriminator(batch["prototype"], fakes["image"], reference)
    classes = [cross_entropy(c.style_logits, batch["style"]) for c in (real, fake)]
    torch.testing.assert_close(terms["adversarial"], 3 * (fake.logits.mean() - real.logits.mean()))
    torch.testing.assert_close(terms["style_class"], 0.5 * sum(classes))
    assert set(terms) == {"adversarial", "style_class", "wgan_gp", "logits_real", "logits_fake"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("made", [[1, 0, 0], [0, 1, 1], [1, 1, 1]])
def test_samples_that_are_made_add_nothing_to_a_class_term(batch, smoothing, made):
    """Neither a gradient nor what smoothed labels would leave of a class that is named surely."""
    made = torch.tensor(made, dtype=torch.bool)
    game = recipe(smoothing=smoothing)
    plain = generator_terms(game, batch)[1]
    marked = {**batch, "made_style": made, "made_character": made}
    fakes, terms = generator_terms(game, marked)
    for field, term in (("style", "encoder_style"), ("character", "encoder_character")):
        logits = fakes["style_logits" if field == "style" else "content_logits"]
        each = cross_entropy(logits, batch[field], reduction="none", label_smoothing=smoothing)
        expected = 0.2 * (each * ~made).sum() / 3
        torch.testing.assert_close(terms[term], expected, rtol=1e-4, atol=1e-5)
        assert not torch.isclose(terms[term], plain[term])
        (gradient,) = torch.autograd.grad(terms[term], logits)
        assert gradient[made].eq(0).all()
        assert gradient[~made].ne(0).all()


@pytest.mark.parametrize("name", TERMS)
def test_doubling_a_weight_adds_exactly_its_term(batch, name):
    _, terms = generator_terms(recipe(), batch)
    default = getattr(recipe(), TERMS[name])
    _, doubled = generator_terms(recipe(**{TERMS[name]: 2 * default}), batch)
    difference = sum(doubled.values()) - sum(terms.values())
    torch.testing.assert_close(difference, terms[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_a_gradient_into_the_generator_and_a_switch(batch, name):
    game = recipe()
    _, terms = generator_terms(game, batch)
    gradients = torch.autograd.grad(
        terms[name], list(game.generator.parameters()), allow_unused=True
    )
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    _, without = generator_terms(recipe(**{TERMS[name]: 0.0}), batch)
    assert without.keys() == TERMS.keys() - {name}


def test_changing_the_target_leaves_the_constant_terms_unchanged(batch):
    _, before = generator_terms(recipe(), batch)
    _, after = generator_terms(recipe(), {**batch, "target": -batch["target"]})
    for name in ("constant_content", "constant_style"):
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=0)
    assert before["l1"] != after["l1"]


def test_penalty_reaches_the_critic_and_not_the_class_head(batch):
    game = recipe()
    terms = game.discriminator_losses(batch, detached(game.generate(batch)), 0)
    terms["wgan_gp"].backward()
    assert game.discriminator.style.weight.grad is None
    assert game.discriminator.critic.weight.grad.abs().sum() > 0
    assert next(game.discriminator.first.parameters()).grad.abs().sum() > 0


def test_penalty_is_of_the_candidate_channel_alone(batch):
    """The gradient with respect to prototype and reference takes no part in the norm."""
    game = recipe()
    reference = batch["reference"][:, 0]

    def judge(image):
        return game.discriminator(batch["prototype"], image, reference).logits

    image = batch["target"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(image).sum(), image)
    expected = 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    paid = game.penalties["wgan_gp"](judge, batch["target"], batch["target"], 0)
    torch.testing.assert_close(paid, expected, rtol=1e-4, atol=1e-5)


SWITCHES = itertools.product([0.0, 10.0], [0.0, 0.1], [False, True], ["none", "classifier"])


@pytest.mark.parametrize(
    "switches", [pytest.param(s, marks=pytest.mark.slow if s[2] else ()) for s in SWITCHES]
)
def test_the_penalty_hangs_on_its_own_switch_alone(batch, switches):
    """Sixteen combinations of penalty, label smoothing, fast discriminator and feature loss."""
    weight, smoothing, _fast, feature = switches  # the learning rate enters no loss
    settings = {"smoothing": smoothing, "feature": 75.0 if feature == "classifier" else 0.0}
    game = recipe(**settings)
    game.penalties = {"wgan_gp": create("penalty", "wgan_gp", weight=weight)}
    plain = recipe()
    values = []
    for one in (game, plain):
        torch.manual_seed(2)
        fakes = detached(one.generate(batch))
        torch.manual_seed(3)
        values.append(one.discriminator_losses(batch, fakes, 0).get("wgan_gp"))
    if weight == 0:
        assert values[0] is None
    else:
        assert torch.equal(values[0], values[1])


def test_feature_distance_is_zero_for_equal_images_and_reaches_the_image():
    torch.manual_seed(0)
    classifier = create("classifier", "small", channels=1, width=4, classes={"style": 2}).eval()
    classifier.requires_grad_(False)
    before = {n: t.clone() for n, t in classifier.state_dict().items()}
    image = torch.randn(3, 1, SIZE, SIZE, requires_grad=True)
    equal = feature_distance(classifier.features, image, image.detach())
    assert equal.item() == pytest.approx(1e-9**0.5, rel=1e-3)
    target = torch.randn(3, 1, SIZE, SIZE, requires_grad=True)
    feature_distance(classifier.features, image, target).backward()
    assert image.grad.abs().sum() > 0
    assert target.grad is None
    assert all(torch.equal(before[n], t) for n, t in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())


def test_the_classifier_is_neither_trained_nor_stored():
    game = recipe()
    (classifier,) = game._classifier
    assert not any(name.startswith("_classifier") for name in game.state_dict())
    stored = {id(p) for p in game.parameters()}
    assert not stored & {id(p) for p in classifier.parameters()}
    assert state._facts(run_of(game))["looks_through"] == [weights_hash(classifier.state_dict())]
    blind = recipe(feature_source="discriminator")
    assert state._facts(run_of(blind))["looks_through"] == []


def run_of(game):
    return SimpleNamespace(recipe=game, device=torch.device("cpu"))


def test_features_of_the_discriminator_serve_as_well(batch):
    game = recipe(feature_source="discriminator")
    _, terms = generator_terms(game, batch)
    assert terms["feature"].requires_grad


def test_more_reconstruction_losses_come_on_top(batch):
    more = {
        "l2": create("reconstruction", "l2", weight=10.0),
        "critic": create("reconstruction", "perceptual", network="discriminator", weight=2.0),
    }
    fakes, terms = generator_terms(recipe(reconstruction=more), batch)
    assert terms.keys() - TERMS.keys() == {"reconstruction_l2", "reconstruction_critic"}
    expected = 10 * mse_loss(fakes["image"], batch["target"])
    torch.testing.assert_close(terms["reconstruction_l2"], expected)
    assert terms["reconstruction_critic"].requires_grad


def test_one_of_many_references_is_drawn_uniformly():
    references = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(4000, 4, 1, 1, 1)
    torch.manual_seed(0)
    drawn = one_of(references).flatten()
    assert all(0.2 < (drawn == k).float().mean() < 0.3 for k in range(4))


def test_class_terms_take_logits(batch):
    """Where the right class is certain they are 0; a softmax more would leave above 0.1."""
    game = recipe()
    batch |= {"style": torch.full((3,), 1), "character": torch.full((3,), 4)}
    encoders = {"character": game.generator.content_encoder, "style": game.generator.style_encoder}
    for field, encoder in encoders.items():
        nn.init.zeros_(encoder.head.weight)
        nn.init.constant_(encoder.head.bias, -20)
        nn.init.constant_(encoder.head.bias[batch[field][0]], 20)
    _, terms = generator_terms(game, batch)
    assert terms["encoder_character"] < 1e-6
    assert terms["encoder_style"] < 1e-6
