"""Class-conditional games: each term by hand, every way to see the label, and who is judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from gan.build import build
from gan.metrics.evaluation import LabelEvaluation
from gan.metrics.judges import Judge
from gan.noise import FromNoise
from gan.recipe import detached
from gan.recipes.conditional import Conditional
from gan.registry import ConfigError, create

CLASSES, SIZE = 3, 8
CONDITIONS = ["projection", "auxiliary", "both"]


def recipe(condition="both", norm="none", loss="nonsaturating", penalties=(), **settings):
    torch.manual_seed(0)
    shape = {"size": SIZE, "channels": 2, "width": 4, "classes": CLASSES}
    return Conditional(
        create("generator", "resnet", latent=4, **shape),
        create("discriminator", "resnet", condition=condition, norm=norm, **shape),
        create("adversarial", loss),
        {name: create("penalty", name) for name in penalties},
        create("classification", "cross_entropy"),
        CLASSES,
        **settings,
    )


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"real": torch.rand(4, 2, SIZE, SIZE) * 2 - 1, "label": torch.tensor([2, 0, 1, 2])}


def turn(game, batch):
    torch.manual_seed(2)
    fakes = game.generate(batch)
    return fakes, game.discriminator_losses(batch, detached(fakes), 0)


def test_fakes_have_the_labels_of_the_reals(batch):
    game = recipe().eval()
    for name, parameter in game.generator.named_parameters():
        if name.endswith("gain"):  # all classes start alike
            nn.init.normal_(parameter)
    fakes, _ = turn(game, batch)
    torch.manual_seed(2)
    noise = torch.randn(4, 4)
    expected = game.generator(noise, batch["label"])
    assert torch.equal(fakes["image"], expected)
    assert not torch.allclose(fakes["image"], game.generator(noise, batch["label"].flip(0)))


def test_every_term_of_ac_gan_equals_its_definition(batch):
    game = recipe("auxiliary", class_real=2.0, class_fake=0.5, class_generator=3.0, weight=0.7)
    fakes, terms = turn(game, batch)
    label, image = batch["label"], fakes["image"]
    real, fake = (game.discriminator.critique(x, label) for x in (batch["real"], image))
    expected = {
        "adversarial": 0.7 * (softplus(-real.logits).mean() + softplus(fake.logits).mean()),
        "class_real": 2.0 * cross_entropy(real.class_logits, label),
        "class_fake": 0.5 * cross_entropy(fake.class_logits, label),
        "logits_real": real.logits.mean(),
        "logits_fake": fake.logits.mean(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(terms[name], value), name
    made = game.generator_losses(batch, fakes, 0)
    assert torch.allclose(made["adversarial"], 0.7 * softplus(-fake.logits).mean())
    assert torch.allclose(made["class"], 3.0 * cross_entropy(fake.class_logits, label))
    assert made.keys() == {"adversarial", "class"}


def test_class_logits_are_raw(batch):
    """Confident ones cost nothing, even ones ln K: a softmax before would keep both apart."""
    game = recipe("auxiliary")
    head = game.discriminator.critic.heads[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    label = torch.full_like(batch["label"], 1)
    fakes = game.generate(batch)
    terms = game.generator_losses({**batch, "label": label}, fakes, 0)
    assert terms["class"].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())
    with torch.no_grad():
        head.bias.copy_(torch.tensor([-20.0, 20.0, -20.0]))
    assert game.generator_losses({**batch, "label": label}, fakes, 0)["class"] < 1e-6


@pytest.mark.parametrize("name", ["class_real", "class_fake", "class_generator"])
def test_a_weight_of_zero_leaves_its_term_out(batch, name):
    fakes, terms = turn(recipe("auxiliary", **{name: 0.0}), batch)
    game = recipe("auxiliary", **{name: 0.0})
    made = game.generator_losses(batch, fakes, 0)
    found = {*terms, *("class_generator" for key in made if key == "class")}
    assert found & {"class_real", "class_fake", "class_generator"} == {
        "class_real",
        "class_fake",
        "class_generator",
    } - {name}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("loss", ["hinge", "rpgan"])
def test_terms_train_their_own_player_and_no_other(batch, condition, loss):
    game = recipe(condition, loss=loss)
    fakes, terms = turn(game, batch)
    for name, term in terms.items():
        if name not in game.statistics:
            term.backward(retain_graph=True)  # each term alone: they share one forward
            assert any(p.grad is not None for p in game.discriminator.parameters()), name
            assert all(p.grad is None for p in game.generator.parameters()), name
            game.discriminator.zero_grad()
    for name, term in game.generator_losses(batch, fakes, 0).items():
        term.backward(retain_graph=True)  # each alone: all share the fakes' graph
        assert any(p.grad.abs().sum() > 0 for p in game.generator.parameters()), name
        game.generator.zero_grad()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_penalties_see_the_critic_with_the_labels_bound(batch, condition):
    game = recipe(condition, penalties=["r1"])
    _, terms = turn(game, batch)
    image = batch["real"].clone().requires_grad_()
    logits = game.discriminator(image, batch["label"])
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    expected = 10.0 / 2 * gradient.square().sum((1, 2, 3)).mean()
    assert torch.allclose(terms["r1"], expected)
    game.discriminator.zero_grad()
    terms["r1"].backward()
    heads = [p.grad for head in game.discriminator.critic.heads for p in head.parameters()]
    assert all(gradient is None for gradient in heads)  # the penalty is the critic's alone


def test_the_grid_is_drawn_class_by_class():
    game = recipe(shown=7)
    assert game.shown_label.tolist() == [0, 0, 0, 1, 1, 2, 2]
    game.eval()
    grid = game.samples(game.generator, {})["generated"]
    assert torch.equal(grid, game.samples(game.generator, {})["generated"])
    assert torch.allclose(grid, game.generator(game.shown, game.shown_label))


# -- the judge


class Bright(nn.Module):
    """Names an image by the sign of its first pixel."""

    def forward(self, image):
        return {"label": torch.stack([-image[:, 0, 0, 0], image[:, 0, 0, 0]], 1)}


class Painted(FromNoise, nn.Module):
    """A game whose generator paints class 1 bright, and so many per mille of class 0 too."""

    def __init__(self, wrong):
        super().__init__()
        self.generator, self.wrong, self.seen = nn.Module(), wrong, 0
        self.generator.latent = 2

    def draw(self, generator, noise, label):
        place = self.seen + torch.arange(len(label))
        self.seen += len(label)
        value = torch.where((label == 0) & (place < self.wrong), 1.0, 2.0 * label - 1)
        return value[:, None, None, None].expand(-1, 1, 4, 4)


def test_label_accuracy_counts_what_the_judge_sees():
    evaluation = LabelEvaluation(
        Painted(wrong=512),
        lambda: Judge(Bright(), {"label": 0.98}),
        np.array([0, 1]),
        torch.device("cpu"),
        1024,
    )
    found = evaluation.measure(nn.Module())
    assert found == {"label_accuracy": 0.75, "worst_class": 0.5}
    assert "98.0%" in evaluation.report(nn.Module())


@pytest.mark.parametrize("preset", ["acgan", pytest.param("cgan", marks=pytest.mark.slow)])
def test_a_run_measures_how_many_labels_are_right(composed, glyph_store, preset):
    sizes = ["generator.width=2", "discriminator.width=2", "trainer.batch_size=8"]
    data = ["data=lmdb", f"data.path={glyph_store}", "image.size=16", "image.channels=1"]
    common = [*data, *sizes, "trainer.steps=2", "run_dir=run", f"model={preset}"]
    assert build(composed(*common, "data.label=style")).train()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert 0 <= lines[-1]["metric/label_accuracy"] <= 1
    assert "have the label they were asked for" in Path("run/report.txt").read_text()


@pytest.mark.parametrize(
    "norm", ["conditional", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adain", "batch"))]
)
@pytest.mark.parametrize(
    "condition", [c if c == "both" else pytest.param(c, marks=pytest.mark.slow) for c in CONDITIONS]
)
@pytest.mark.parametrize("network", ["dcgan", "resnet"])
def test_every_way_to_see_the_label_trains_from_the_command_line(tiny, norm, condition, network):
    chosen = [f"generator={network}", f"discriminator={network}", f"generator.norm={norm}"]
    values = tiny("dcgan", "recipe=conditional", *chosen, f"discriminator.condition={condition}")
    trainer = build(values)
    assert trainer.recipe.discriminator.critic.classes == trainer.stream.dataset.facts["classes"]
    before = [p.detach().clone() for p in trainer.recipe.parameters()]
    trainer.play()
    moved = zip(before, trainer.recipe.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved if b.requires_grad and b.grad.any())
    trainer.stream.close()


def test_sub_folders_are_labels(composed, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    sizes = ["generator.width=2", "discriminator.width=2", "image.size=16"]
    data = ["data=folder", "data.path=photos", "trainer.batch_size=4"]
    trainer = build(composed("model=acgan", *data, *sizes))
    assert trainer.stream.dataset.facts == {"classes": 2}
    assert set(next(trainer.stream)) == {"real", "label"}
    trainer.stream.close()


def test_without_labels_a_conditional_game_is_refused(composed, glyph_store):
    data = ["data=lmdb", f"data.path={glyph_store}", "image.size=16", "image.channels=1"]
    with pytest.raises(ConfigError, match=r"recipe=conditional reads label.*data\.label"):
        build(composed("model=acgan", *data, "generator.width=2", "discriminator.width=2"))
