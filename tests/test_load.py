"""A run as a generator: what it draws, which weights it takes, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import gan
from gan import checkpoint, registry, runs
from gan.data.store import Store
from gan.registry import create
from gan.step.buffers import settled
from gan.styles import mixed

CONDITIONAL = ["recipe=conditional", "data.label=style", "discriminator.norm=none"]


def shown(trainer):
    """What training shows of the average, in evaluation mode."""
    generator = list(trainer.generators().values())[-1]
    with torch.no_grad():
        return trainer.recipe.samples(generator, {})["generated"]


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [([], 0.0), (CONDITIONAL, 0.0), (["generator.norm=spectral"], 1e-4)],
    ids=["noise", "labels", "spectral"],
)
def test_the_images_are_those_that_training_shows(trained, monkeypatch, overrides, tolerance):
    trainer = trained("dcgan", *overrides)
    monkeypatch.setattr(Store, "__init__", lambda *_: pytest.fail("the data were opened"))
    loaded = gan.load("run")
    assert (loaded.weights, loaded.step) == ("uniform", 2)
    assert not any(module.training for module in loaded.generator.modules())
    torch.testing.assert_close(loaded.sample(64), shown(trainer), rtol=0, atol=tolerance)
    with torch.no_grad():
        raw = trainer.recipe.samples(trainer.recipe.generator.eval(), {})["generated"]
    assert (gan.load("run", "raw").sample(64) - raw).abs().max() <= tolerance
    assert not torch.allclose(loaded.sample(64), raw)


def test_an_averaged_spectral_norm_needs_its_power_iterations(trained):
    trained("dcgan", "generator.norm=spectral")
    loaded = gan.load("run")
    unsettled = loaded.sample(4)
    assert torch.allclose(unsettled, gan.load("run").sample(4))
    for module in loaded.generator.modules():  # a stale direction, as an average's copies are
        if hasattr(module, "_u"):
            module._u.copy_(torch.nn.functional.normalize(torch.randn_like(module._u), dim=0))
    stale = loaded.sample(4)
    settled(loaded.generator)
    assert (loaded.sample(4) - unsettled).abs().max() < (stale - unsettled).abs().max() / 10


def test_seed_decides_and_nothing_else_is_seeded(trained):
    trained("dcgan")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = gan.load("run")
    one, same, other = (loaded.sample(5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_truncated_noise_has_the_bounds_and_the_variance_of_its_distribution(trained):
    trained("dcgan")
    loaded = gan.load("run")
    noise = loaded.noise(20_000, truncation=0.5)
    assert noise.abs().max() <= 0.5
    density = np.exp(-0.125) / np.sqrt(2 * np.pi)
    inside = torch.erf(torch.tensor(0.5 / 2**0.5)).item()
    assert noise.var().item() == pytest.approx(1 - density / inside, rel=0.01)  # 2 * 0.5 = 1
    assert noise.var().item() != pytest.approx(0.25, rel=0.5)  # scaling by 0.5 is another thing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"truncation": 0.0}, "truncation must be greater than 0, not 0.0"),
        ({"label": 14}, "label=14 must be from 0 to"),
        ({"count": 3, "label": [0, 1]}, "one class or 3 of them"),
        ({"label": "x"}, "one class or 64 of them, not 'x'"),
        ({"label": True}, "one class or 64 of them, not True"),
        ({"label": 0.0}, "one class or 64 of them, not 0.0"),
    ],
)
def test_arguments_out_of_range_are_named(trained, arguments, words):
    trained("dcgan", *CONDITIONAL)
    with pytest.raises(ValueError, match=words):
        gan.load("run").sample(**arguments)


def test_labels_choose_the_class(trained):
    trained("dcgan", *CONDITIONAL)
    loaded = gan.load("run")
    twos = loaded.sample(3, label=2)
    assert torch.allclose(twos, loaded.sample(3, label=[2, 2, 2]))
    assert not torch.allclose(twos, loaded.sample(3, label=1))


@pytest.mark.parametrize("norm", ["batch", "conditional"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u4", ">i8"])
def test_labels_are_of_any_type_of_integer(trained, norm, kind):
    trained("dcgan", *CONDITIONAL, f"generator.norm={norm}")
    loaded = gan.load("run")
    wanted = loaded.sample(4, label=[0, 1, 2, 3])
    assert torch.equal(wanted, loaded.sample(4, label=np.arange(4).astype(kind)))


def test_a_label_without_classes_is_refused(trained):
    trained("dcgan")
    with pytest.raises(ValueError, match="trained without classes"):
        gan.load("run").sample(2, label=0)


@pytest.mark.parametrize("ensemble", [False, True])
def test_written_characters_are_the_generators(trained, monkeypatch, ensemble):
    trainer = trained("wnet", f"generator.self_ensemble={ensemble}")
    loaded = gan.load("run")
    torch.manual_seed(0)
    prototypes, references = torch.rand(5, 1, 16, 16) * 2 - 1, torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        generator = list(trainer.generators().values())[-1]
        expected = generator(prototypes, references.expand(5, 3, 1, 16, 16))
    monkeypatch.setattr(runs, "CHUNK", 2)
    made = loaded.write(prototypes, references)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(made, loaded.write(prototypes, references.flip(-1)), atol=1e-4)
    with pytest.raises(ValueError, match="recipe=synthesis and its like; .* recipe=wnet"):
        loaded.sample(2)


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_style_half_way_is_between_both(trained, ensemble):
    trained("wnet", f"generator.self_ensemble={ensemble}")
    loaded = gan.load("run")
    both = [loaded.style(torch.full((1, 1, 16, 16), ink)) for ink in (-1.0, 1.0)]
    ways = zip(mixed(*both, 0.25), *both, strict=True) if ensemble else []
    for middle, *ends in ways or [(mixed(*both, 0.25), *both)]:
        assert torch.allclose(middle.code, 0.75 * ends[0].code + 0.25 * ends[1].code)
        between = torch.lerp(*(end.shortcuts[0] for end in ends), 0.25)
        assert torch.allclose(middle.shortcuts[0], between)


SHAPES = {"size": 16, "channels": 1}


@pytest.mark.parametrize("classes", [0, 1, 5])
@pytest.mark.parametrize("name", ["dcgan", "resnet", "mlp"])
def test_the_number_of_classes_is_read_off_the_weights(name, classes):
    entry = registry.entry("generator", name)
    state = create("generator", name, **SHAPES, width=4, classes=classes).state_dict()
    assert runs._facts(entry, {**SHAPES, "width": 4}, state) == {"classes": classes}


def test_the_numbers_of_styles_and_characters_are_read_off_the_weights():
    entry = registry.entry("generator", "wnet")
    state = create("generator", "wnet", **SHAPES, width=2, styles=7, characters=4).state_dict()
    facts = runs._facts(entry, {**SHAPES, "width": 2}, state)
    assert facts == {"styles": 7, "characters": 4}


def written(stored, step, **changed):
    """Save what was read as another checkpoint of the folder `run`."""
    parts = ("networks", "optimizers", "state", "config")
    given = {part: getattr(stored, part) for part in parts} | changed
    checkpoint.save(Path("run/checkpoints"), step, run_id="another", **given)


@pytest.fixture
def altered(trained):
    """Rewrite the stored configuration of a fresh run."""

    def alter(change):
        trained("dcgan")
        path = checkpoint.newest(Path("run/checkpoints"))
        stored = checkpoint.load(path)
        config = yaml.safe_load(stored.config)
        change(config)
        shutil.rmtree(path)
        written(stored, stored.step, config=yaml.safe_dump(config))

    return alter


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["generator"].update(name="dcgam"), "did you mean 'dcgan'"),
        (lambda c: c["generator"].update(_target_="os.system"), "only registered names are built"),
        (lambda c: c["generator"].update(width=8), "does not fit in"),
        (lambda c: c.pop("generator"), "names no image, generator, recipe"),
        (
            lambda c: (c["generator"].update(name="flat"), c.update(plugins=["evil"])),
            r"with plugins=\['evil'\]: load it with plugins allowed \(plugins=True, --plugins\)",
        ),
    ],
    ids=["name", "target", "width", "section", "plugin"],
)
def test_a_stored_configuration_is_data(altered, monkeypatch, change, words):
    altered(change)
    imported = []
    monkeypatch.setattr("gan.commands.train.import_plugins", imported.extend)
    with pytest.raises(ValueError, match=words):
        gan.load("run")
    assert not imported


def test_plugins_are_imported_where_they_are_allowed(altered, monkeypatch):
    altered(lambda config: config.update(plugins=["mine"]))
    imported = []
    monkeypatch.setattr("gan.commands.train.import_plugins", imported.extend)
    gan.load("run")
    assert not imported
    gan.load("run", plugins=True)
    assert imported == ["mine"]


def test_a_damaged_checkpoint_is_passed_over_with_a_word(trained):
    trained("dcgan")
    written(checkpoint.load(Path("run/checkpoints/step-00000002")), 3)
    with open("run/checkpoints/step-00000003/networks.safetensors", "r+b") as file:
        file.seek(2000)
        file.write(b"????")
    with pytest.warns(UserWarning, match="step-00000003: networks.safetensors has SHA-256"):
        assert gan.load("run").step == 2
    with pytest.raises(ValueError, match="step-00000003"):
        gan.load("run/checkpoints/step-00000003")


def test_unknown_weights_and_empty_folders_are_refused(trained, tmp_path):
    trained("dcgan")
    with pytest.raises(ValueError, match="keeps no weights 'uniforms'; did you mean 'uniform'"):
        gan.load("run", "uniforms")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        gan.load(tmp_path / "nothing")


def test_an_average_can_be_named(trained):
    trained("dcgan", "average=both")
    assert gan.load("run").weights == "ema"
    assert gan.load("run", "uniform").weights == "uniform"
