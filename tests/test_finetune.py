"""Starting from another run's weights: what is taken, what is listed, what starts anew."""

import shutil
from pathlib import Path

import pytest
import torch

from gan.build import build
from gan.registry import ConfigError
from gan.run import rundir


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The run of `first`, once it was trained, and its folder."""
    return tmp_path_factory.mktemp("kept") / "first", []


@pytest.fixture
def first(tiny, kept):
    """A run in the folder `first`, stopped after two steps; it is looked at alone."""
    folder, runs = kept
    if not runs:
        runs.append(played(build(tiny("wnet", "run_dir=first", "average=both")), 2))
        rundir.release(Path("first"))
        shutil.move("first", folder)
    shutil.copytree(folder, "first")
    return runs[0]


def played(trainer, steps):
    for _ in range(steps):
        trainer.play()
    trainer.save()
    trainer.stream.close()
    return trainer


def tuned(tiny, *overrides, init="first", say=lambda _: None):
    return build(tiny("wnet", "run_dir=second", f"init={init}", *overrides), say)


def test_the_generator_is_the_averaged_one_and_the_discriminator_the_raw_one(tiny, first):
    trainer = tuned(tiny)
    averaged, raw = first.averages["ema"].generator, first.recipe.generator
    live = trainer.recipe.generator.state_dict()
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(live[name], tensor), name
    assert not all(
        torch.equal(a, b)
        for a, b in zip(raw.parameters(), trainer.recipe.generator.parameters(), strict=True)
    )
    for name, tensor in first.recipe.discriminator.state_dict().items():
        assert torch.equal(trainer.recipe.discriminator.state_dict()[name], tensor), name
    trainer.stream.close()


def test_optimizers_averages_and_clocks_start_anew(tiny, first):
    trainer = tuned(tiny)
    assert trainer.counts() == {"step": 0, "images": 0, "discriminator_updates": 0}
    assert not any(player.optimizer.state for player in trainer.players)
    (average,) = trainer.averages.values()
    assert average.updates == 0
    for name, tensor in trainer.recipe.generator.state_dict().items():
        assert torch.equal(average.generator.state_dict()[name], tensor), name
    trainer.stream.close()


def test_other_labels_take_what_fits_and_list_the_rest(tiny, first):
    said = []
    style = first.stream.dataset.style_names[first.stream.dataset.styles.test[0]]
    few = [f"data.style={style}", "data.shots=8", "discriminator.width=4"]
    trainer = tuned(tiny, *few, say=said.append)
    text = "\n".join(said)
    assert "init=first/checkpoints/step-00000002:" in text
    assert "tensors taken, the generator's ema; these were not:" in text
    head = trainer.recipe.generator.style_encoder.head.weight
    assert f"generator.style_encoder.head.weight: {[*first_head(first)]} there" in text
    assert f"{[*head.shape]} here" in text
    decoder = first.averages["ema"].generator.decoder.state_dict()
    for name, tensor in trainer.recipe.generator.decoder.state_dict().items():
        assert torch.equal(decoder[name], tensor), name
    played(trainer, 1)
    listed = {line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  ")}
    kept = {f"discriminator.{name}" for name, _ in trainer.recipe.discriminator.named_parameters()}
    assert kept <= listed | {"discriminator.critic.bias"}  # every other shape follows the width


def first_head(trainer):
    return trainer.recipe.generator.style_encoder.head.weight.shape


def test_a_generator_that_is_told_what_references_show_takes_all_but_what_sees_that(tiny, first):
    said = []
    trainer = tuned(tiny, "generator.paired=true", say=said.append)
    trainer.stream.close()
    (line,) = (line for line in said if line.startswith("init="))
    _, *left = line.splitlines()
    assert left == ["  generator.style_encoder.first.weight: [2, 1, 5, 5] there, [2, 2, 5, 5] here"]
    averaged = first.averages["ema"].generator.state_dict()
    for name, tensor in trainer.recipe.generator.state_dict().items():
        if name != "style_encoder.first.weight":
            assert torch.equal(tensor, averaged[name]), name


def test_other_losses_and_rates_are_free(tiny, first):
    played(tuned(tiny, "adversarial=bce", "recipe.l1=10", "optimizer.generator.lr=1e-5"), 1)


def test_a_started_run_goes_on_without_the_one_it_came_from(tiny, first):
    whole = played(tuned(tiny, "run_dir=whole"), 2)
    played(tuned(tiny), 1)
    shutil.rmtree("first")
    again = tuned(tiny)
    assert again.step == 1
    played(again, 1)
    for name, tensor in whole.recipe.state_dict().items():
        assert torch.equal(again.recipe.state_dict()[name], tensor), name


@pytest.mark.parametrize("init", ["first/checkpoints/step-00000002", "first"])
def test_a_run_or_one_of_its_checkpoints_can_be_named(tiny, first, init):
    tuned(tiny, init=init).stream.close()


def test_nothing_that_fits_is_refused(tiny, first):
    with pytest.raises(ConfigError, match="init=first has no weight that fits.*widths"):
        build(tiny("dcgan", "run_dir=second", "init=first"))


def test_a_place_without_a_checkpoint_is_refused(tiny):
    Path("empty").mkdir()
    for place in ("nowhere", "empty"):
        with pytest.raises(ConfigError, match=f"init={place} holds no checkpoint"):
            tuned(tiny, init=place)
    with pytest.raises(ConfigError, match="init=. holds no checkpoint"):
        tuned(tiny, init="")  # as of a variable that the shell does not know
