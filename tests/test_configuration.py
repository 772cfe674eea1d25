"""Mistakes in a configuration: every one refused in a sentence that names key, value and way out.

The configurations are what `--cfg job` shows, so that a mutated one is a mutated YAML file; a
smaller number goes the whole way through the command line.
"""

import contextlib
import copy
import functools
import inspect
import math
import multiprocessing
import os
import random
import sys
import time
import types
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import hydra
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_glyphs import SIZE

from gan import registry
from gan.build import build
from gan.commands import train
from gan.commands.train import conf_dir, switched_on
from gan.config.check import CHOICES, NAMED, check
from gan.config.settings import Clip, Image, Settings
from gan.locks import HeldError, Lock
from gan.registry import ConfigError
from gan.run import rundir
from gan.step.guard import SIDES

SLOW = pytest.mark.slow
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
PRESETS = (
    ("model=dcgan", "data=folder", "data.path=photos", "optimizer@optimizer.generator=sgd"),
    ("model=wnet", "reconstruction.l2.weight=1", "schedule@schedule.generator=cosine"),
    ("model=wnet", "classification=focal", "adversarial=bce", "average=both"),
    ("model=dragan", "data=torchvision", "data.dataset=mnist", "data.path=there"),
)


@functools.cache
def presets() -> list[dict[str, Any]]:
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = [hydra.compose("config", [*map(switched_on, p)]) for p in PRESETS]
    return [OmegaConf.to_container(one, resolve=True) for one in composed]


def leaves(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all values, apart from the names that choose what is built."""
    found: list[tuple[str, ...]] = []
    for key, value in node.items():
        inner = (*path, key)
        if isinstance(value, Mapping):
            found += leaves(value, inner)
        elif key not in ("name", "experiment"):
            found.append(inner)
    return found


def within(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        config = config[key]
    return config


# ---- F1: misspelt keys ---------------------------------------------------------------------------


def misspelt(word: str, chance: random.Random) -> str:
    """A word with one letter left out, put in, changed, or two swapped."""
    at = chance.randrange(len(word))
    letter = chance.choice(LETTERS)
    return {
        "delete": word[:at] + word[at + 1 :],
        "insert": word[:at] + letter + word[at:],
        "change": word[:at] + letter + word[at + 1 :],
        "swap": word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
    }[chance.choice(["delete", "insert", "change", "swap"])]


def keys(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """The paths of all keys: sections and values."""
    ends = leaves(config)
    return sorted({path[:length] for path in ends for length in range(1, len(path) + 1)})


def misspellings(count: int, seed: int) -> list[tuple[dict[str, Any], tuple[str, ...], str]]:
    """Configurations with one misspelt key beside the right one: (configuration, path, wrong)."""
    chance, made = random.Random(seed), []
    while len(made) < count:
        config = chance.choice(presets())
        path = chance.choice(keys(config))
        wrong = misspelt(path[-1], chance)
        if len(wrong) > 1 and wrong not in within(config, path[:-1]):
            made.append((config, path, wrong))
    return made


def said_of_keys(count: int, seed: int) -> float:
    """The share of misspelt keys whose message names the right one; all must be refused."""
    right = 0
    for config, path, wrong in misspellings(count, seed):
        changed = copy.deepcopy(config)
        section = within(changed, path[:-1])
        section[wrong] = copy.deepcopy(section[path[-1]])
        with pytest.raises(ConfigError, match=r".") as refused:
            check(changed)
        assert wrong in str(refused.value)
        right += f"did you mean {path[-1]!r}?" in str(refused.value)
    return right / count


@pytest.mark.row("F1", "misspelt keys: all refused, the right one named in 95 %")
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_misspelt_keys_of_a_file_are_refused_with_the_right_one(count, tried):
    assert said_of_keys(count, seed=count) >= 0.95
    tried(count)


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """The command in an empty directory: exit status and what it says of a mistake."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        status = train.main(arguments)
        out = capfd.readouterr()
        assert "Traceback" not in out.err + out.out
        return status, [line for line in out.err.splitlines() if line.startswith("gan: ")]

    return call


@pytest.mark.row("F1")
@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_misspelt_overrides_are_refused_with_the_right_one(count, command, tried):
    chance, right = random.Random(count), 0
    config, chosen = presets()[1], PRESETS[1]
    for number in range(count):
        path = chance.choice([key for key in keys(config) if key not in (("data",), ("model",))])
        wrong = misspelt(path[-1], chance)
        if len(wrong) < 2 or wrong in within(config, path[:-1]) or wrong == path[-1]:
            wrong = path[-1] + "x"
        plus = "+" if number % 2 else ""
        argument = f"{plus}{'.'.join((*path[:-1], wrong))}=1"
        status, said = command(*chosen, argument, "run_dir=run")
        assert (status, len(said)) == (2, 1), argument
        right += f"did you mean {path[-1]!r}?" in said[0]
    assert right >= 0.95 * count
    assert not Path("run").exists()
    tried(count)


# ---- F2: values ----------------------------------------------------------------------------------

ODD = [
    *(math.nan, math.inf, -math.inf, -1, 0, -0.5, 1.5, 1e300, 10**30, 2**62),
    *(True, False, None, "", "nan", "abc", "0", "../..", "a\0b"),
    *([], [1], [1, 2, 3], [math.nan], {}, {0: 1}, {"_target_": "os.system"}, [["x"]]),
]
SECTIONS = {"image": Image, "trainer": Settings, "clip.generator": Clip, "clip.discriminator": Clip}


def annotation(config: dict[str, Any], path: tuple[str, ...]) -> Any:
    """What a signature says of a value; None for the few keys without one."""
    section, key = ".".join(path[:-1]), path[-1]
    if section in SECTIONS:
        return inspect.signature(SECTIONS[section]).parameters[key].annotation
    if not section:
        return None
    top = path[0]
    kind = CHOICES.get(top) or NAMED.get(top) or top
    name = within(config, path[:-1]).get("name", path[-2])
    return registry.entry(kind, name).parameters[key].annotation


def fits(kind: Any, value: Any) -> bool:
    """Whether a value has the annotated type and range: written without the code under test."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        low, high, above = parts[1]
        return fits(parts[0], value) and low <= value <= high and not (above and value == low)
    if origin in (Union, types.UnionType):
        return any(fits(part, value) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts) or (
            isinstance(value, bool) and {"on", "off"} <= set(parts)
        )
    if origin is list or parts[-1:] == (Ellipsis,):
        return isinstance(value, list) and all(fits(parts[0], item) for item in value)
    if origin is tuple:
        same = isinstance(value, list) and len(value) == len(parts)
        return same and all(fits(part, item) for part, item in zip(parts, value, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(parts[0], k) and fits(parts[1], v) for k, v in value.items()
        )
    if kind is types.NoneType:
        return value is None
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is kind


def places() -> list[tuple[int, tuple[str, ...]]]:
    """Every value of every preset, each kind of entry once."""
    seen, found = set(), []
    for number, config in enumerate(presets()):
        for path in leaves(config):
            entry = (path, within(config, path[:-1]).get("name") if len(path) > 1 else None)
            if entry not in seen:
                seen.add(entry)
                found.append((number, path))
    return found


def refused(number: int, path: tuple[str, ...], value: Any) -> str | None:
    """What is said of a preset with another value, None where it passes."""
    changed = copy.deepcopy(presets()[number])
    within(changed, path[:-1])[path[-1]] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gan.config.check.rehearse", lambda _: None
        )  # types and ranges need no networks
        try:
            check(changed)
        except ConfigError as error:
            return str(error)
    return None


def wrong_values() -> list[tuple[int, tuple[str, ...], Any]]:
    """All places with all odd values that do not fit them."""
    kinds = {(n, path): annotation(presets()[n], path) for n, path in places()}
    return [
        (*place, value)
        for place, kind in kinds.items()
        for value in ODD
        if kind is not None and not fits(kind, value)
    ]


@pytest.mark.row("F2", "values of wrong type or range: none accepted, key and value named")
def test_values_that_do_not_fit_are_refused_by_name(tried):
    wrong = wrong_values()
    chosen = random.Random(0).sample(wrong, 400)
    for number, path, value in chosen:
        said = refused(number, path, value)
        assert said is not None, (path, value)
        assert path[-1] in said, (path, value, said)
        assert "\n" not in said
    tried(len(chosen))


@pytest.mark.slow
@pytest.mark.row("F2")
def test_all_values_that_do_not_fit_are_refused_by_name(tried):
    wrong = wrong_values()
    passed = [(path, value) for n, path, value in wrong if refused(n, path, value) is None]
    assert passed == []
    tried(len(wrong))


@pytest.mark.row("F2")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_any_other_value_passes_or_is_refused_in_a_sentence(data):
    number, path = data.draw(st.sampled_from(places()))
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    value = data.draw(plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(), plain))
    kind = annotation(presets()[number], path)
    said = refused(number, path, value)
    assert said is not None or kind is None or fits(kind, value)


@pytest.mark.row("F2")
def test_the_few_keys_without_a_signature(tried):
    wrong = [
        *((("seed",), v) for v in (-1, 1.5, "x", None, math.nan, True, 2**63)),
        *((("run_dir",), v) for v in ("", None, 3, [])),
        *((("resume",), v) for v in (None, 3, True)),
        *((("model",), v) for v in (None, 3)),
        *((("plugins",), v) for v in ("x", [3], {"a": 1})),
        *((("freeze",), v) for v in ("x", [3], {"generator.decoder": -1}, {"x": None})),
        *((("rates",), v) for v in ([1], {"generator.decoder": -1}, {"x": math.nan})),
        *(((part,), v) for part in ("generator", "image", "optimizer") for v in (3, "x", [])),
    ]
    for path, value in wrong:
        said = refused(1, path, value)
        assert said is not None, (path, value)
        assert path[-1] in said
    tried(len(wrong))


VALUES = (0, 1, 2, 7, 0.5, 1e-30, 1e30, None, "auto", True, [1], [])


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    ("model", "share"),
    [
        *(pytest.param(model, 5, marks=pytest.mark.slow) for model in ("dcgan", "wnet")),
        *(pytest.param(model, 1, marks=pytest.mark.endurance) for model in ("dcgan", "wnet")),
    ],
)
def test_what_is_accepted_trains_a_step_or_is_refused_while_building(tiny, model, share, tried):
    """Every value of every key, or one of a `share` of them."""
    config = tiny(model, "trainer.steps=1", "trainer.measure_every=9", "trainer.sample_every=9")
    kept = ("run_dir", "resume", "seed"), ("path", "download")
    paths = [path for path in leaves(config) if path[0] not in kept[0] and path[-1] not in kept[1]]
    count = 0
    for path, value in [*product(paths, VALUES)][::share]:
        changed = copy.deepcopy(config)
        within(changed, path[:-1])[path[-1]] = value
        changed["run_dir"] = f"run{count}"
        try:
            trainer = build(changed, say=lambda _: None)
        except (ValueError, OSError):
            continue
        if trainer.settings.steps > 2 or trainer.settings.critic(0) > 9:
            continue
        count += 1
        try:
            trainer.train()
        except FloatingPointError as stopped:
            assert "non-finite" in str(stopped)  # noqa: PT017 - either way is right
    assert count > 100 // share
    tried(count)


# ---- F3: contradictions --------------------------------------------------------------------------

BOTH = {  # two settings that cannot hold together -> what must be named
    ("model=dcgan", "penalties.r1.weight=1"): ("penalties.r1", "discriminator.norm"),
    ("model=dcgan", "average=uniform", "average.start=20000"): ("average.start", "trainer.steps"),
    ("model=dcgan", "image.size=33"): ("image.size", "33"),
    ("model=wnet", "trainer.batch_size=1"): ("trainer.batch_size", "recipe=wnet"),
    ("model=dcgan", "reconstruction.l1.weight=1"): ("reconstruction.l1", "recipe=synthesis"),
    ("model=dcgan", "generator=wnet"): ("recipe=synthesis", "generator=wnet"),
    ("model=dcgan", "discriminator=wnet"): ("recipe=synthesis", "discriminator=wnet"),
    ("model=wnet", "generator=dcgan"): ("recipe=wnet", "generator=dcgan"),
    ("model=wnet", "discriminator=resnet"): ("recipe=wnet", "discriminator=resnet"),
    ("model=dcgan", "recipe=wnet", "data=hanzi"): ("recipe=wnet", "generator=dcgan"),
    ("model=wnet", "trainer.n_critic={5: 1}"): ("trainer.n_critic", "step 0"),
    ("model=dcgan", "generator.norm=conditional"): ("generator.norm", "classes"),
    ("model=dcgan", "optimizer@optimizer.generator=sgd", "optimizer.generator.nesterov=true"): (
        "optimizer.generator",
        "momentum",
    ),
    ("model=dcgan", "optimizer.discriminator.betas=[1.0,0.9]"): ("optimizer.discriminator", "beta"),
    ("model=wnet", "freeze=[generator.decodr]"): ("freeze", "did you mean 'generator.decoder'"),
    ("model=wnet", "rates={discriminator.frist: 1}"): ("rates", "discriminator.first"),
    ("model=wnet", "freeze=[generator]"): ("freeze", "nothing to train"),
    ("model=cyclegan", "freeze={generator.to_a: 3, generator.to_b: 3}"): (
        "generator.to_a and generator.to_b",
        "first update",
    ),
    ("model=cyclegan", "freeze=[generator.to_a,generator.to_b]"): ("freeze", "first update"),
    ("model=dcgan", "rates={generator: 0}"): ("rates: generator: 0", "nothing of the generator"),
    ("model=cyclegan", "rates={generator.to_a: 0, generator.to_b: 0}"): (
        "generator.to_a: 0 and generator.to_b: 0",
        "first update",
    ),
    ("model=cyclegan", "freeze=[generator.to_a]", "rates={generator.to_b: 0}"): (
        "rates: generator.to_b: 0",
        "nothing of the generator",
    ),
    ("model=dcgan", "freeze=[generator.image]", "rates={generator.image: 1e-3}"): (
        "rates: generator.image has a rate of 0.001",
        "out of freeze",
    ),
    ("model=wnet", "freeze=[generator.decoder]", "rates={generator.decoder.levels: 1}"): (
        "rates: generator.decoder.levels",
        "out of freeze",
    ),
    ("model=dcgan", "freeze={augment: 3}"): ("freeze: augment", "generator or discriminator"),
    ("model=dcgan", "rates={augment: 3}"): ("rates: augment", "generator or discriminator"),
    ("model=dcgan", "generator.width=100000"): ("generator.width", "GiB"),
    ("model=dcgan", "data.size=16"): ("data.size=16", "image.size=32"),
    ("model=dcgan", "data.channels=3"): ("data.channels=3", "image.channels=1"),
    (
        "model=wnet",
        "reconstruction.perceptual.network=discriminator",
        "reconstruction.perceptual.layers=[9]",
    ): ("reconstruction.perceptual.layers", "from 0 to 4"),
    (
        "model=wnet",
        "reconstruction.perceptual.network=discriminator",
        "reconstruction.perceptual.layers=[-1]",
    ): ("reconstruction.perceptual.layers", "from 0 to 4"),
    (
        "model=wnet",
        "reconstruction.perceptual.network=discriminator",
        "reconstruction.perceptual.layer_weights=[1]",
    ): ("reconstruction.perceptual.layer_weights", "5 maps"),
}


LIKE = {  # what one line of code refuses together with another of these
    *(("discriminator=wnet",), ("generator=dcgan",), ("discriminator=resnet",)),
    *(("recipe=wnet", "data=hanzi"), ("rates={discriminator.frist: 1}",)),
    ("reconstruction.perceptual.network=discriminator", "reconstruction.perceptual.layers=[-1]"),
}


@pytest.mark.row("F3", "settings that contradict each other: both named")
@pytest.mark.parametrize(
    "pair",
    [pytest.param(p, id=" ".join(p[1:]), marks=SLOW if p[1:] in LIKE else ()) for p in BOTH],
)
def test_contradictions_name_both_sides_before_data_are_touched(pair, composed):
    with pytest.raises(ValueError, match=r".") as refused:
        build(composed(*pair))
    for named in BOTH[pair]:
        assert named in str(refused.value)
    assert not [*Path().iterdir()]


@pytest.mark.row("F3")
def test_a_number_for_each_class_is_counted_against_the_data(tiny, unreported):
    common = ("recipe.encoder_character=0", "classification=focal", "trainer.steps=1")
    styles = len(build(tiny("wnet", *common)).recipe.generator.style_encoder.head.bias)
    config = tiny("wnet", *common, f"classification.alpha={[1.0] * (styles + 1)}")
    with pytest.raises(ConfigError, match=rf"classification\.alpha .* {styles} classes, not"):
        build({**config, "run_dir": "other"})
    right = tiny("wnet", *common, f"classification.alpha={[1.0] * styles}")
    assert build({**right, "run_dir": "third"}).train()


def test_a_batch_is_divided_evenly_among_processes(composed, monkeypatch):
    monkeypatch.setattr("gan.distributed.size", lambda: 3)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=64 cannot be split over 3"):
        check(composed("model=dcgan"))


def test_a_part_that_the_meta_device_cannot_judge_is_left_to_the_first_step(composed, monkeypatch):
    def reads_values(self, batch):
        return {"image": float(batch["real"].mean())}

    monkeypatch.setattr("gan.recipes.synthesis.Synthesis.generate", reads_values)
    check(composed("model=dcgan"))


# ---- mappings of the command line ----------------------------------------------------------------


@pytest.fixture
def meant(command, monkeypatch):
    """What a command line comes to: the values that a trainer would be built of."""
    seen = []
    monkeypatch.setattr("gan.build.build", lambda values, stop: seen.append(values) or STOP)

    def call(*arguments):
        assert command(*arguments, "run_dir=run")[0] == 0
        return seen[-1]

    return call


def test_a_mapping_on_the_command_line_replaces_that_of_an_experiment(meant):
    arguments = ("experiment=wnet_paper", "generator.width=2", "image.size=16")
    assert meant(*arguments)["trainer"]["n_critic"] == {0: 25, 25: 5, 638: 2}
    assert meant(*arguments, "trainer.n_critic={0: 1}")["trainer"]["n_critic"] == {0: 1}


R1 = "penalties={r1: {weight: 10}}"


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ((), {"wgan_gp": {"weight": 10.0}}),
        (("penalties={}",), {}),
        ((R1,), {"r1": {"weight": 10}}),
        (("penalties.r2.weight=1", R1, "penalties.r1.every=4"), {"r1": {"weight": 10, "every": 4}}),
        (("penalties={}", "penalties.r1.weight=${seed}", "seed=3"), {"r1": {"weight": 3}}),
    ],
)
def test_a_mapping_of_penalties_replaces_a_presets(meant, given_, wanted):
    assert meant("model=wgan_gp", *given_)["penalties"] == wanted


def test_changes_and_reconstruction_losses_are_given_as_mappings_too(meant):
    changes = meant("model=dcgan", "augment.noise.deviation=1", "augment={shift: {ratio: 0.1}}")
    assert changes["augment"] == {"shift": {"ratio": 0.1}}
    extra = meant("model=pix2pix", "reconstruction={l2: {weight: 10}}")
    assert extra["reconstruction"] == {"l2": {"weight": 10}}


def test_a_process_that_composes_a_job_by_itself_means_the_same(meant, monkeypatch):
    monkeypatch.setattr(train, "guarded", lambda: contextlib.nullcontext([]))
    assert meant("model=wgan_gp", "penalties={}")["penalties"] == {}


def test_a_mapping_is_shown_as_it_will_be_meant(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert train.main(["model=wgan_gp", "penalties={}", "--cfg", "job"]) == 0
    assert "penalties: {}" in capfd.readouterr().out


STOP = types.SimpleNamespace(train=lambda: True)


# ---- values that follow others -------------------------------------------------------------------


def test_a_value_of_the_environment_is_taken_as_it_is(meant, monkeypatch):
    monkeypatch.setenv("RUN", "runs/multirun/model=dcgan,seed=0")
    monkeypatch.setenv("PHOTOS", "/data/it's")
    given_ = ("init=${oc.env:RUN}", "data.path=${oc.env:PHOTOS}")
    values = meant("model=dcgan", "data=folder", *given_)
    assert (values["init"], values["data"]["path"]) == (os.environ["RUN"], "/data/it's")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${trainer.steps}", "Recursive interpolation detected"),
        ("${trainer.step}", "trainer.step is unknown; did you mean 'steps'?"),
        ("${trianer.steps}", "trianer is unknown; did you mean 'trainer'?"),
        ("${.step}", "Interpolation key 'step' not found"),
        ("${oc.env:NOSTEPS}", "KeyError raised while resolving interpolation"),
        ("${nope:3}", "Unsupported interpolation type nope"),
    ],
)
def test_a_mistake_in_an_interpolation_names_its_key(command, value, said):
    status, lines = command(f"trainer.steps={value}")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"gan: trainer.steps: {said}")


# ---- what is said of keys and choices that do not exist ------------------------------------------


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("average=null", "average; did you mean 'none'? (known: both, ema, none, uniform)"),
        ("average=[1,2]", "average; known: both, ema, none, uniform"),
        ("experiment=1", "experiment; known: cyclegan_256, "),
        ("optimizer@optimizer.generator=0", "optimizer; known: adam, adamw, rmsprop, sgd"),
    ],
)
def test_what_could_name_no_choice_is_told_with_its_key(command, given_, said):
    status, lines = command(given_)
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"gan: {given_} names no {said}")


@pytest.mark.parametrize("given_", ["optimizer=adam", "optimizer@optimizer.genrator=adam"])
def test_an_optimizer_of_nobody_is_given_to_either_player(command, given_):
    both = "optimizer@optimizer.discriminator=adam or optimizer@optimizer.generator=adam"
    assert command(given_) == (2, [f"gan: {given_} chooses nothing: write {both}"])


@pytest.fixture
def own(tmp_path):
    """A folder of configurations: a model of its own, and a primary one that chooses it."""
    (tmp_path / "own/model").mkdir(parents=True)
    head = "# @package _global_\n"
    choice = "defaults: [dcgan, override /generator: mlp]\nmodel: mine\n"
    (tmp_path / "own/model/mine.yaml").write_text(head + choice)
    (tmp_path / "own/base.yaml").write_text("defaults: [config, override model: mine, _self_]\n")
    loss = "defaults: [{override /optimizer: adam}]\n"
    (tmp_path / "own/experiment").mkdir()
    (tmp_path / "own/experiment/broken.yaml").write_text(head + loss)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("given_", "chosen"),
    [
        ("--config-dir {} model=mine", "mlp"),
        ("--config-dir {} --config-name base", "mlp"),
        ("hydra.searchpath=[file://{}] model=mine", "mlp"),
        ("-m model=dcgan,sngan", "dcgan"),
        ("-m model=sngan,dcgan seed=range(2) hydra.job.chdir=false", "resnet"),
    ],
)
def test_the_hint_for_a_key_is_of_the_part_that_is_chosen(command, own, given_, chosen):
    status, lines = command(*given_.format(own).split(), "image.size=16", "generator.latnt=3")
    assert (status, len(lines)) == (2, 1)
    said = f"gan: generator.latnt is unknown to generator={chosen}; did you mean 'latent'?"
    assert lines[0].startswith(said)


def test_a_key_of_some_jobs_alone_is_added_to_a_sweep(command):
    said = "generator.latent is not there yet where Hydra overrides it: write ++generator.latent="
    status, lines = command("-m", "model=dcgan,sngan", "generator.latent=3")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"gan: {said}")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("~model=dcgna", "Could not delete 'model=dcgna'. No match in the defaults list"),
        (
            "model=3",
            "model=3 names no model; known: acgan, cgan, cyclegan, dcgan, dragan, lsgan, pix2pix, "
            "r3gan, sngan, wgan, wgan_gp, wnet",
        ),
        (
            "--config-dir {} experiment=broken",
            "In 'experiment/broken': optimizer chooses nothing: write "
            "optimizer@optimizer.discriminator or optimizer@optimizer.generator",
        ),
    ],
)
def test_what_cannot_be_composed_without_the_keys_gives_no_hint(command, own, given_, said):
    assert command(*given_.format(own).split(), "trainer.stpes=3") == (2, [f"gan: {said}"])


# ---- what a preset sets for a part that is chosen away -------------------------------------------


def test_values_for_another_optimizer_do_not_stand_in_the_way(meant, monkeypatch):
    said = []
    monkeypatch.setattr("gan.distributed.say", said.append)
    optimizer = meant("model=sngan", "optimizer@optimizer.discriminator=rmsprop")["optimizer"]
    assert "betas" not in optimizer["discriminator"]
    assert optimizer["discriminator"]["lr"] == optimizer["generator"]["lr"] == 2e-4
    assert optimizer["generator"]["betas"] == [0.0, 0.9]
    assert said == [
        "optimizer.discriminator.betas=[0.0, 0.9] of the preset is left out: rmsprop does not "
        "take it"
    ]


@pytest.mark.parametrize(("name", "kept"), [("cosine", {"end": 0.0}), ("exponential", {})])
def test_values_for_another_schedule_do_not_stand_in_the_way(meant, name, kept):
    schedule = meant("model=pix2pix", f"schedule@schedule.generator={name}")["schedule"]
    assert schedule["generator"] == {"name": name, "length": None, "warmup": 0, **kept}
    assert schedule["discriminator"]["start"] == 0.5


@pytest.mark.parametrize(
    ("preset", "choice", "lost"),
    [
        ("model=cyclegan", "generator=unets", ["generator.blocks=4"]),
        ("model=pix2pix", "generator=translator", ["generator.dropout=0.5"]),
        ("model=sngan", "discriminator=mlp", ["discriminator.norm=spectral"]),
        ("model=wgan_gp", "discriminator=mlp", ["discriminator.norm=none"]),
        ("model=cyclegan", "recipe=pix2pix", ["recipe.cycle=10.0", "recipe.identity=5.0"]),
        ("experiment=glyph_styles_both", "average=none", ["average.halflife=20000"]),
    ],
)
def test_values_for_another_part_do_not_stand_in_the_way(meant, monkeypatch, preset, choice, lost):
    said = []
    monkeypatch.setattr("gan.distributed.say", said.append)
    section, _, name = choice.partition("=")
    values = meant(preset, choice)
    assert values[section]["name"] == name
    assert said == [f"{key} of the preset is left out: {name} does not take it" for key in lost]
    if section in SIDES:  # the recipe of that preset plays with them
        check(values)


def test_a_users_own_value_for_another_network_is_refused(meant):
    values = meant("model=cyclegan", "generator=unets", "generator.blocks=4")
    with pytest.raises(ConfigError, match=r"generator\.blocks is unknown"):
        check(values)


def test_what_is_left_out_is_not_shown(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    chosen = ("model=sngan", "optimizer@optimizer.discriminator=rmsprop")
    assert train.main([*chosen, "--cfg", "job", "--package", "optimizer"]) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert shown["discriminator"]["name"] == "rmsprop"
    assert "betas" not in shown["discriminator"]
    assert shown["generator"]["betas"] == [0.0, 0.9]


def test_a_users_own_value_for_another_optimizer_is_refused(meant):
    chosen = ("model=sngan", "optimizer@optimizer.discriminator=rmsprop")
    values = meant(*chosen, "optimizer.discriminator.betas=[0.0,0.9]")
    with pytest.raises(ConfigError, match=r"optimizer\.discriminator\.betas is unknown"):
        check(values)


# ---- F4: what is saved is what was meant ---------------------------------------------------------


@pytest.mark.row("F4", "the saved configuration reads back as itself")
def test_a_saved_configuration_checks_to_itself(tried, monkeypatch):
    checked = [check(config).values for config in presets()]
    monkeypatch.setattr("gan.config.check.rehearse", lambda _: None)  # once is enough
    for values in checked:
        again = yaml.safe_load(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        assert check(again).values == values
    tried(len(presets()))


def shipped() -> list[str]:
    return [
        f"{kind}={file.stem}"
        for kind in ("model", "experiment")
        for file in sorted((conf_dir() / kind).glob("*.yaml"))
    ]


@pytest.mark.slow
@pytest.mark.row("F4")
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_configuration_plays_two_steps(name, composed, glyph_store):
    small = ["generator.width=4", "discriminator.width=4", f"image.size={SIZE}"]
    data = ["data=fonts", f"data.path={glyph_store}", "trainer.batch_size=8", "trainer.steps=2"]
    try:
        config = composed(name, *data, *small)
    except hydra.errors.ConfigCompositionException:
        pytest.skip("not for glyphs")
    if "feature" in config["recipe"]:
        config["recipe"]["feature"] = 0
    if "layers" in config["discriminator"]:
        config["discriminator"]["layers"] = 2
    config["trainer"]["n_critic"], config["run_dir"] = 1, "run"
    assert build(config, say=lambda _: None).train()


# ---- F5: one run per directory -------------------------------------------------------------------


@pytest.mark.row("F5", "a run directory has one trainer at a time")
def test_a_second_trainer_learns_who_is_there(tiny):
    run = Path("run")
    run.mkdir()
    held = Lock(run / ".lock")
    with pytest.raises(ConfigError, match=r"run_dir=run is in use by process \d+ on .*: stop it"):
        build(tiny("dcgan"))
    held.release()
    build(tiny("dcgan"))
    assert Path(run, ".lock").exists()
    rundir.release(run)
    assert not Path(run, ".lock").exists()


def test_a_lock_whose_file_was_removed_leaves_its_successors_alone(tmp_path):
    path = tmp_path / ".lock"
    first = Lock(path)
    path.unlink()
    second = Lock(path)
    first.release()
    with pytest.raises(HeldError, match="process"):
        Lock(path)
    second.release()
    assert not path.exists()
    third = Lock(path)
    path.unlink()
    third.release()  # of a file that is nobody's


def _race(folder, number):
    """A process that takes the lock once it may; its status: 0 for who had it, 3 for the others."""
    Path(folder, str(number)).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.001)
    try:
        Lock(Path(folder, ".lock"))
    except HeldError as error:
        return 3 if "process" in str(error) else 1
    with Path(folder, "won").open("a") as file:
        file.write("x")
    while not Path(folder, "over").exists():
        time.sleep(0.01)
    return 0


@pytest.mark.slow
@pytest.mark.row("F5")
def test_of_fifty_starts_one_wins(tmp_path, tried):
    Path(tmp_path, ".lock").write_text("process 1 on nowhere, yesterday")  # left by a dead one
    fork = multiprocessing.get_context("fork").Process
    starts = [fork(target=lambda n=n: sys.exit(_race(tmp_path, n))) for n in range(50)]
    for one in starts:
        one.start()
    while len([*tmp_path.iterdir()]) < 51:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    while sum(one.exitcode is None for one in starts) > 1:
        time.sleep(0.01)
    (tmp_path / "over").touch()  # while the winner has the lock all others have ended
    for one in starts:
        one.join()
    assert sorted(one.exitcode for one in starts) == [0] + 49 * [3]
    assert (tmp_path / "won").read_text() == "x"
    tried(50)


def test_a_directory_that_cannot_be_made_is_refused_before_data_are_built(command, tmp_path):
    (tmp_path / "file").write_text("")
    status, said = command("model=dcgan", "run_dir=file/run")
    assert status == 2
    assert said[0].startswith("gan: run_dir=file/run cannot be used: ")
    assert "file is no folder; choose another" in said[0]
    assert not Path("data").exists()


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_of_hydra_that_cannot_be_made_is_refused(command, key):
    Path("file").write_text("")
    sweep = ["-m", "seed=0,1"] * (key == "hydra.sweep.dir")
    status, said = command(*sweep, "model=dcgan", f"{key}=file/a")
    assert status == 2
    assert said == [f"gan: {key}=file/a cannot be made (Not a directory): choose another folder"]


@pytest.mark.parametrize(("name", "kind"), rundir.PARTS.items())
def test_a_part_of_another_kind_in_a_run_directory_is_refused(tmp_path, name, kind):
    path = tmp_path / name
    path.touch() if kind == "folder" else path.mkdir()
    with pytest.raises(ConfigError, match=rf"run_dir=.* its {name} is no {kind}; remove that"):
        rundir.previous(tmp_path, "auto", {}, print)


@pytest.mark.parametrize("run_dir", ["link", "link/run"])
def test_a_link_that_leads_nowhere_is_refused_before_anything_is_built(
    tmp_path, monkeypatch, run_dir
):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("gone")
    with pytest.raises(ConfigError, match=rf"run_dir={run_dir} .*link is no folder; choose anoth"):
        rundir.previous(Path(run_dir), "auto", {}, print)


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"run_dir=.* may not be written; choose another"):
        rundir.previous(tmp_path / "run", "auto", {}, print)
