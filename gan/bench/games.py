"""Trainers on one batch that never changes: what a step costs, apart from data."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan import distributed
from gan.config.check import Checked, check
from gan.run.monitor import Monitor
from gan.step import parts, pieces
from gan.step.compiling import compile_calls
from gan.step.guard import SIDES
from gan.trainer import Trainer

Compose = Callable[..., dict[str, Any]]  # overrides to the values of a configuration

COMMON = (
    "data=lmdb",
    "data.path=none.lmdb",
    "schedule@schedule.generator=constant",
    "schedule@schedule.discriminator=constant",
    "trainer.n_critic=1",
)
MODELS: Mapping[str, tuple[str, ...]] = {  # small enough for two cores, with the presets' graphs
    "dcgan": ("model=dcgan", "image.channels=3", "trainer.batch_size=32"),
    "dcgan64": ("model=dcgan", "image.size=64", "image.channels=3", "trainer.batch_size=16"),
    "resnet": (
        "model=sngan",
        "discriminator.norm=none",
        "image.channels=3",
        "generator.width=32",
        "discriminator.width=32",
        "trainer.batch_size=16",
    ),
    "sngan": (
        "model=sngan",
        "image.channels=3",
        "generator.width=64",
        "discriminator.width=64",
        "trainer.batch_size=8",
    ),
    "r3gan": (
        "model=r3gan",
        "image.channels=3",
        "generator.width=64",
        "discriminator.width=64",
        "trainer.batch_size=8",
    ),
    "wnet": ("model=wnet",),
    "tiny": (
        "model=dcgan",
        "image.size=8",
        "generator.width=4",
        "discriminator.width=4",
        "trainer.batch_size=4",
    ),
    "tiny_sngan": (
        "model=sngan",
        "image.size=8",
        "generator.width=4",
        "discriminator.width=4",
        "trainer.batch_size=4",
    ),
    "tiny_wnet": (
        "model=wnet",
        "image.size=8",
        "generator.width=2",
        "discriminator.width=2",
        "trainer.batch_size=4",
    ),
}
STYLES, CHARACTERS = 22, 179  # as many as the embedded glyphs have for training


class Still:
    """A stream that gives the same batch for ever, at no cost."""

    content = "still"

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch, self.position, self.waited = dict(batch), 0, 0.0

    def __next__(self) -> dict[str, Tensor]:
        """The batch."""
        self.position += 1
        return self.batch

    def again(self) -> dict[str, Tensor]:
        """The batch."""
        return self.batch

    def close(self) -> None:
        """Nothing reads ahead."""


def trainer(values: Mapping[str, Any]) -> Trainer:
    """A trainer of these settings on random images."""
    return trainer_of(check(values))


def trainer_of(checked: Checked, networks: Mapping[str, nn.Module] | None = None) -> Trainer:
    """The same of checked settings; a classifier that it needs is untrained.

    `networks` play in place of the configured ones. Nothing is written: its log is never opened.
    """
    settings, device = checked.settings, distributed.device(checked.settings.device)
    torch.set_float32_matmul_precision("high")  # as in a run
    distributed.seed(checked.seed, "start", 0, device)
    counts = {"styles": STYLES, "characters": CHARACTERS, "classes": STYLES}
    facts = {**counts, **checked.facts}
    networks = networks or {side: checked.create(side, **facts) for side in SIDES}
    chosen, arguments = checked.entries["recipe"]
    classifier = None
    if "classifier" in chosen.given and chosen.build.needs_classifier(arguments):
        heads = {"style": STYLES, "character": CHARACTERS}
        classifier = checked.create("classifier", classes=heads).eval().requires_grad_(False)
        classifier = classifier.to(device)
    recipe = checked.recipe(
        facts, **networks, reconstruction=checked.named("reconstruction"), classifier=classifier
    )
    recipe = recipe.to(device).to(memory_format=torch.channels_last)
    asleep = parts.freeze(recipe, checked.freeze)
    if settings.compile:
        compile_calls(recipe, _say)
    generator, discriminator = (parts.player(checked, recipe, side, asleep) for side in SIDES)
    return pieces.trainer_for(settings, device, _say, checked.ours)(
        recipe,
        generator,
        discriminator,
        Still(batch(checked.reads, checked.values, device)),
        checked.create("average", generator=recipe.generator),
        settings,
        Monitor(Path("unused"), settings.steps),
        checked.seed,
    )


def batch(
    reads: tuple[str, ...], values: Mapping[str, Any], device: torch.device
) -> dict[str, Tensor]:
    """Random images and labels of the configured shape, for every key that a recipe reads."""
    size, channels = values["image"]["size"], values["image"]["channels"]
    many = values["trainer"]["batch_size"]
    bounds = {"style": STYLES, "label": STYLES, "character": CHARACTERS}
    several = {"reference": 1, "shown": 1, "mate": 2, "other": 3}  # glyphs of a sample
    made = {}
    for key in reads:
        if key in bounds:
            made[key] = torch.randint(bounds[key], (many,), device=device)
            continue
        lead = (many, several[key]) if key in several else (many,)
        image = torch.rand(*lead, channels, size, size, device=device) * 2 - 1
        made[key] = image if key in several else image.to(memory_format=torch.channels_last)
    return made


def _say(text: str) -> None:
    print(text, file=sys.stderr)
