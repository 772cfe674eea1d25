"""What is compiled, what is not, and that it computes the same."""

import copy

import pytest
import torch
from test_trainer import everything

from gan.bench import games
from gan.build import build
from gan.step import compiling
from gan.step.compiling import compile_calls, eager

EXACT = "trainer.precision=fp32"  # in bf16 compiled arithmetic is rounded at other places
COMPILED = "trainer.compile=true"


@pytest.fixture
def counted(monkeypatch):
    """Nothing is compiled, but calls that would be are counted by class: {name: times}."""
    calls = {}

    def compiled(call):
        def counting(*args, **kwargs):
            name = type(call.__self__).__name__
            calls[name] = calls.get(name, 0) + 1
            return call(*args, **kwargs)

        return counting

    monkeypatch.setattr(compiling, "_compiled", compiled)
    return calls


def game(composed, model, *overrides):
    return games.trainer(composed(*games.MODELS[model], *games.COMMON, EXACT, *overrides))


def told(recipe):
    said = []
    compile_calls(recipe, said.append)
    return said


@pytest.mark.parametrize(
    ("model", "overrides", "paths"),
    [
        ("tiny", [], ["generator", "discriminator"]),
        pytest.param(
            "tiny",
            ["recipe=conditional"],
            ["generator", *(f"discriminator.{part}" for part in ("first", "inner", "critic"))],
            marks=pytest.mark.slow,
        ),
        (
            "tiny_wnet",
            [],
            [
                *(f"generator.{part}" for part in ("content_encoder", "style_encoder", "decoder")),
                "discriminator",
            ],
        ),
    ],
)
def test_what_the_recipe_calls_first_is_compiled_and_told(
    composed, counted, model, overrides, paths
):
    trainer = game(composed, model, *overrides)
    said = told(trainer.recipe)
    trainer.play()
    trainer.play()
    assert [text.split()[0] for text in said] == paths
    gates = [
        path
        for path, module in trainer.recipe.named_modules()
        if getattr(module._compiled_call_impl, "compiled", None)
    ]
    assert sorted(gates) == sorted(paths)


@pytest.mark.parametrize(("penalty", "compiled"), [("wgan_gp", 3), ("r1", 2), ("r2", 2)])
def test_penalties_samples_and_copies_see_eager_modules(composed, counted, penalty, compiled):
    """Of reals, fakes, and the other's turn; a penalty's own look at one of them is eager."""
    trainer = game(composed, "tiny", "discriminator.norm=layer", f"penalties.{penalty}.weight=1")
    told(trainer.recipe)
    trainer.play()
    assert counted == {"Generator": 1, "Discriminator": compiled}
    generator = trainer.recipe.generator
    noise = torch.randn(2, generator.latent)
    copy.deepcopy(generator)(noise)
    generator.eval()(noise)
    with eager():
        generator.train()(noise)
    assert counted == {"Generator": 1, "Discriminator": compiled}
    generator(noise)
    assert counted["Generator"] == 2


def test_names_of_weights_stay(composed, counted):
    plain, gated = game(composed, "tiny"), game(composed, "tiny", COMPILED)
    gated.play()
    assert [*plain.recipe.state_dict()] == [*gated.recipe.state_dict()]
    assert [n for n, _ in plain.recipe.named_modules()] == [
        n for n, _ in gated.recipe.named_modules()
    ]


def losses(trainer, steps):
    for _ in range(steps):
        trainer.play()
    return {tag: torch.tensor(values) for tag, values in trainer.monitor.pending().items()}


def assert_near(first, second, rtol=2e-4, atol=2e-5):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("tiny", []),
        ("tiny", ["discriminator.norm=layer", "penalties.wgan_gp.weight=10"]),
        ("tiny", ["discriminator.norm=layer", "penalties.r1.every=2"]),
        ("tiny", ["trainer.n_critic=2", "trainer.order=generator"]),
        ("tiny", ["recipe=conditional", "discriminator.condition=both"]),
        ("tiny_sngan", []),
        ("tiny_wnet", ["generator.dropout=0"]),
    ],
)
def test_compiled_steps_have_the_losses_of_eager_ones(composed, model, overrides):
    """Fakes that serve both turns are among them."""
    compiled = losses(game(composed, model, *overrides, COMPILED), 3)
    assert_near(losses(game(composed, model, *overrides), 3), compiled)


@pytest.mark.slow
def test_one_fake_serves_both_turns_and_its_graph_reaches_the_generator(composed):
    """The gradient through a fake that was detached for the other turn first."""
    gradients = []
    for overrides in ([], [COMPILED]):
        trainer = game(composed, "tiny", *overrides)
        batch, fakes = trainer.discriminate(shared=True)
        assert fakes["image"].requires_grad
        trainer.generate((batch, fakes))
        gradients.append({n: p.grad for n, p in trainer.recipe.generator.named_parameters()})
    assert_near(*gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[1].values())


@pytest.mark.slow
def test_two_sizes_of_image_are_compiled_beside_each_other(composed):
    small, large = (
        game(composed, "tiny", COMPILED),
        game(composed, "tiny", COMPILED, "image.size=16"),
    )
    losses(small, 1)
    losses(large, 1)
    assert_near(losses(game(composed, "tiny"), 2), losses(small, 1))
    assert_near(losses(game(composed, "tiny", "image.size=16"), 2), losses(large, 1))


@pytest.mark.slow
def test_a_compiled_run_goes_on_from_an_eager_one_and_back(tiny, tmp_path):
    """Checkpoints do not know of compiling; averages and samples come along."""
    whole = build(tiny("dcgan", EXACT, "trainer.steps=4"))
    whole.train()
    build(tiny("dcgan", EXACT, "trainer.steps=2", "run_dir=other", COMPILED)).train()
    resumed = build(tiny("dcgan", EXACT, "trainer.steps=4", "run_dir=other"))
    assert resumed.step == 2
    resumed.train()
    tensors, plain = everything(whole)
    others, rest = everything(resumed)
    assert plain == rest
    assert_near(tensors, others, rtol=1e-3, atol=1e-4)
