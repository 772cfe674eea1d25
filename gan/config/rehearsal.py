"""A first step without memory: what a configuration names is built and played on the meta device.

Tensors there have shapes and no values, so that parts which do not fit together are found within
milliseconds, before a store is opened. What cannot be judged so is left to the first real step.
"""

import inspect
import math
import os
import re
import reprlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from gan import distributed, optimizers, registry, system
from gan.config.signature import ConfigError
from gan.explain import require_logits
from gan.noise import FromNoise
from gan.recipe import Batch, Recipe, detached
from gan.step import parts
from gan.step.gradients import trained
from gan.step.guard import SIDES, require_owned
from gan.step.replay import PACKAGE, user_line

if TYPE_CHECKING:
    from gan.config.check import Checked

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
IMAGES = (
    "real",
    "prototype",
    "reference",
    "shown",
    "target",
    "mate",
    "other",
    "input",
    "real_a",
    "real_b",
)
FIELDS = ("style", "character", "label")
MISFITS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
COPIES = 4  # of every parameter in training: itself, its gradient, two moments


def rehearse(checked: "Checked") -> None:
    """Build what a configuration names and play one step with imagined data.

    Raises: ConfigError for parts that cannot be built, are too large or do not fit together.
    """
    _require_recipe(checked)
    classes = len(_class_weights(checked)) or 2
    facts = {"styles": classes, "characters": classes, "classes": classes, **checked.facts}
    _require_facts_taken(checked)
    networks = _networks(checked, facts)
    _require_parts(checked, networks)
    _rehearse_optimizers(checked, networks)
    _require_memory(checked, networks)
    require_logits(networks["discriminator"], "discriminator")
    _mind_the_norm(checked, networks["discriminator"])
    _mind_the_slope(checked, networks["discriminator"])
    _mind_the_cost(checked)
    _mind_the_split(checked, networks)
    if set(checked.reads) <= {*IMAGES, *FIELDS}:
        _play(checked, facts, networks, _imagined(checked))


def rehearse_classes(checked: "Checked", facts: Mapping[str, int]) -> None:
    """Play again where a setting has one number for each class, now that the classes are known.

    Raises: ConfigError where these are not as many.
    """
    if _class_weights(checked):
        _play(checked, facts, _networks(checked, facts), _imagined(checked))


def _require_recipe(checked: "Checked") -> None:
    """Refuse what is registered as a recipe and is none."""
    chosen = checked.entries["recipe"][0]
    if not (isinstance(chosen.build, type) and issubclass(chosen.build, Recipe)):
        raise ConfigError(
            f"recipe={chosen.name} must be a class that inherits from gan.recipe.Recipe, which has "
            "what the trainer asks of a recipe"
        )


def _require_facts_taken(checked: "Checked") -> None:
    """Refuse a discriminator that does not take what the recipe builds its networks with."""
    recipe, chosen = (checked.entries[section][0] for section in ("recipe", "discriminator"))
    for fact, value in recipe.build.facts.items():
        if fact not in chosen.given:
            kinds = registry.names(chosen.kind)
            takers = [n for n in kinds if fact in registry.entry(chosen.kind, n).given]
            raise ConfigError(
                f"recipe={recipe.name} needs a discriminator of {fact}={value}, which "
                f"discriminator={chosen.name} cannot be; choose {' or '.join(takers)}"
            )


def _require_parts(checked: "Checked", networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks without what the recipe calls on them, as its annotations say."""
    recipe = checked.entries["recipe"][0]
    for side, network in networks.items():
        hints = [inspect.get_annotations(kind) for kind in recipe.build.__mro__]
        wanted = next(hint[side] for hint in hints if side in hint)
        needed = inspect.get_annotations(wanted) if isinstance(wanted, type) else {}
        missing = [part for part in needed if not hasattr(network, part)]
        if missing:
            raise ConfigError(
                f"recipe={recipe.name} calls {', '.join(missing)} of its {side}, which "
                f"{side}={checked.entries[side][0].name} does not have; choose another {side}, or "
                "the model of that recipe"
            )


def _class_weights(checked: "Checked") -> Sequence[float]:
    return checked.entries["classification"][1].get("alpha") or ()


def _networks(checked: "Checked", facts: Mapping[str, int]) -> dict[str, nn.Module]:
    networks = {}
    for side in SIDES:
        part = f"{side}={checked.entries[side][0].name}"
        with torch.device("meta"), _PowerIterations(), _built(part):
            networks[side] = checked.create(side, **facts)
    return networks


class _PowerIterations(TorchFunctionMode):
    """Those of spectral norms have no values to find, and torch is slow to tell their shapes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What a function gives."""
        given = kwargs or {}
        if func is normalize and getattr(given.get("out"), "is_meta", False):
            return given["out"]
        alone = func is torch.mv and not (given or torch.is_grad_enabled())
        if alone and args[0].is_meta and args[0].shape[1:] == args[1].shape:
            return args[0].new_empty(len(args[0]))
        return func(*args, **given)


@contextmanager
def _built(part: str) -> Iterator[None]:
    """Turns what torch says of sizes beyond all measure into a mistake of the configuration."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or "it is too large"
        raise ConfigError(f"{part} cannot be built: {reason}; choose other sizes") from error


def _play(
    checked: "Checked", facts: Mapping[str, int], networks: Mapping[str, nn.Module], batch: Batch
) -> None:
    """Both turns of one step; the random state stays as it was."""
    with torch.random.fork_rng(devices=[]), _PowerIterations():
        try:
            recipe = _recipe(checked, facts, networks)
            require_owned(recipe)
            for norm in (m for m in recipe.modules() if isinstance(m, BATCH_NORMS)):
                vars(norm)["forward"] = partial(_normed, checked)  # torch is slow to tell shapes
            fakes = recipe.generate(batch)
            _draw(checked, recipe)
            terms = {
                "discriminator": recipe.discriminator_losses(batch, detached(fakes), 0),
                "generator": recipe.generator_losses(batch, fakes, 0),
            }
        except (*MISFITS, RuntimeError) as error:
            if _conclusive(error):
                raise ConfigError(_misfit(checked, error)) from error
            return
    asleep = parts.freeze(recipe, checked.freeze)
    for side in SIDES:
        parts.groups(recipe, side, parts.rates(checked, side), asleep[side])
        trained(side, terms[side], recipe.get_submodule(side), recipe.statistics)


def _draw(checked: "Checked", recipe: Recipe) -> None:
    """Draw as measures will, which call the generator on their own."""
    if not isinstance(recipe, FromNoise):
        return
    name, count, image = checked.entries["recipe"][0].name, _few(checked), checked.values["image"]
    for part in ("noise", "draw"):
        if not isinstance(inspect.getattr_static(recipe, part), staticmethod):
            raise ValueError(
                f"recipe={name}: its `{part}` must be a @staticmethod, as a trained run has no "
                "recipe to call it on"
            )
    normal = torch.empty(count, recipe.generator.latent, device="meta")
    label = [_field(count)] if "label" in recipe.reads else []
    made = recipe.draw(recipe.generator, recipe.noise(normal), *label)
    wanted = count, image["channels"], image["size"], image["size"]
    if (shape := getattr(made, "shape", None)) != wanted:
        found = f"a {type(made).__name__}" if shape is None else [*shape]
        raise ValueError(
            f"recipe={name}, generator={checked.entries['generator'][0].name}: `draw` must give "
            f"images {[*wanted]}, not {found}: override `draw` where a generator gives more"
        )
    own = [getattr(recipe, part) is not getattr(FromNoise, part) for part in ("noise", "draw")]
    if not any(own) and not type(recipe).generate.__module__.startswith("gan."):
        checked.notes.append(
            f"recipe={name} has a `generate` of its own: measures, and samples of the trained run, "
            "call the generator on normal noise, unless `noise` and `draw` say otherwise"
        )


def _recipe(
    checked: "Checked", facts: Mapping[str, int], networks: Mapping[str, nn.Module]
) -> Recipe:
    """The recipe as it will be, without penalties and without losses that read a disk."""
    chosen, settings = checked.entries["recipe"]
    classifier = None
    with torch.device("meta"):
        if "classifier" in chosen.given and chosen.build.needs_classifier(settings):
            counts = {name: facts[f"{name}s"] for name in ("style", "character")}
            classifier = checked.create("classifier", classes=counts).eval().requires_grad_(False)
    reconstruction = {
        on.partition(".")[2]: checked.create(on)
        for on in checked.switched_on("reconstruction")
        if checked.entries[on][1].get("network", "discriminator") == "discriminator"
    }
    given = {"penalties": {}, "reconstruction": reconstruction, "classifier": classifier}
    return checked.recipe(facts, **networks, **given).to("meta")


def _normed(checked: "Checked", x: Tensor) -> Tensor:
    """What batch norm would be given; Raises: ValueError for one value, which has no variance."""
    rows = checked.settings.rows(distributed.size())
    if rows * x.numel() == _few(checked) * x.shape[1]:
        raise ValueError(
            f"a batch norm would see one value of {rows} image: raise trainer.batch_size (and "
            "trainer.micro_batch), or set norm to layer, instance or none"
        )
    return x


def _conclusive(error: Exception) -> bool:
    """Whether an error tells of parts that do not fit, and not of the meta device."""
    if "meta" in str(error):
        return False
    return isinstance(error, MISFITS) or bool(
        re.search("shape|size|channels|dim|overflow", str(error))
    )


def _misfit(checked: "Checked", error: Exception) -> str:
    said = str(error).partition("\n")[0]
    if isinstance(error, ConfigError):  # it names its settings
        return said
    chosen = ", ".join(f"{p}={checked.entries[p][0].name}" for p in ("recipe", *SIDES))
    line = user_line(reversed([*traceback.walk_tb(error.__traceback__)]))
    if line and not line.file.startswith(str(PACKAGE)):
        place = f"{os.path.basename(line.file)}:{line.number}"
        return f"{chosen} fail at {place}: {type(error).__name__}: {said}"
    if isinstance(error, ValueError):  # ours: it names its settings
        return said
    return (
        f"{chosen} do not fit together: {said}; choose parts that are made for each other, as the "
        "presets under model= do (GAN_TRACEBACK=1 shows the line)"
    )


def _imagined(checked: "Checked") -> dict[str, Tensor]:
    """A batch as the configured data would give it."""
    image, count = checked.values["image"], _few(checked)
    shape = image["size"], image["size"], image["channels"]
    references = checked.entries["data"][1].get("references", 1)
    several = {"reference": references, "shown": references, "mate": 2, "other": references + 2}
    lead = {n: (count, several[n]) if n in several else (count,) for n in checked.reads}
    return {n: _image(lead[n], *shape) if n in IMAGES else _field(count) for n in checked.reads}


def _few(checked: "Checked") -> int:
    return max(2, getattr(checked.entries["recipe"][0].build, "least", 1))


def _image(lead: tuple[int, ...], height: int, width: int, channels: int) -> Tensor:
    with _built(f"an image of {width} pixels a side"):
        return torch.empty(*lead, channels, height, width, device="meta")


def _field(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device="meta")


def _rehearse_optimizers(checked: "Checked", networks: Mapping[str, nn.Module]) -> None:
    for side in SIDES:
        parts.schedule(checked, side)
        chosen, weight = checked.entries[f"optimizer.{side}"][0], torch.zeros(1, requires_grad=True)
        try:
            optimizer = checked.create(f"optimizer.{side}", parameters=[weight])
            if chosen.build not in vars(optimizers).values():
                _require_storable(optimizer, weight)
        except ValueError as error:
            raise ConfigError(f"optimizer.{side}={chosen.name}: {error}") from error
        parts.require_movable(side, networks[side], optimizer)


def _require_storable(optimizer: torch.optim.Optimizer, weight: Tensor) -> None:
    """Refuse a state that no checkpoint keeps, as found by steps like that of a resumed run."""
    weight.grad = torch.zeros_like(weight)
    try:
        for _ in range(2):
            optimizer.step()
    except Exception as error:
        raise ValueError(
            "its step fails on a gradient of 0, by which a resumed run learns what its state is "
            f"like: {error!r}"
        ) from error
    for owner, state in optimizer.state.items():
        for key, value in state.items() if owner is weight else [(owner, state)]:
            number = type(value) in (bool, int, float) and math.isfinite(value)
            if owner is not weight or not (number or isinstance(value, Tensor)):
                raise ValueError(
                    f"{key!r} in its state is {reprlib.repr(value)}, but a checkpoint keeps only "
                    "tensors and finite numbers of each parameter"
                )


def _require_memory(checked: "Checked", networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that this machine cannot train, before it tries."""
    there = system.memory()
    if checked.settings.device != "cpu" and torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
    for side, network in networks.items():
        needed = COPIES * sum(p.numel() * p.element_size() for p in network.parameters())
        if needed > there:
            raise ConfigError(
                f"{side}={checked.entries[side][0].name} would take {needed / 2**30:,.0f} GiB to "
                f"train, of {there / 2**30:,.0f} GiB that there are: lower {side}.width or "
                "image.size"
            )


def _mind_the_norm(checked: "Checked", discriminator: nn.Module) -> None:
    penalties = checked.slope_penalties()
    if penalties and any(isinstance(m, BATCH_NORMS) for m in discriminator.modules()):
        penalty = penalties[0]
        raise ConfigError(
            f"{penalty} needs each logit to depend on its own sample alone, but batch norm in the "
            "discriminator mixes the batch: set discriminator.norm to layer, instance, group, "
            f"spectral or none, or {penalty}.weight to 0"
        )


def _mind_the_slope(checked: "Checked", discriminator: nn.Module) -> None:
    normed = any(is_parametrized(module) for module in discriminator.modules())
    loss = checked.entries["adversarial"][0]
    limited = (
        checked.slope_penalties() or checked.clip["discriminator"].weights is not None or normed
    )
    if getattr(loss.build, "constrained", False) and not limited:
        checked.notes.append(
            f"adversarial={loss.name}: nothing keeps the discriminator Lipschitz, so training may "
            "diverge; try penalties.wgan_gp.weight=10, clip.discriminator.weights=0.01 or "
            "discriminator.norm=spectral"
        )


def _mind_the_cost(checked: "Checked") -> None:
    on = {f"penalties.{name}" for name in ("r1", "r2")} & {*checked.slope_penalties()}
    always = sorted(path for path in on if checked.entries[path][1]["every"] == 1)
    if len(always) == 2:
        checked.notes.append(
            f"{' and '.join(always)} at every update nearly double what a step costs; "
            f"{' '.join(f'{path}.every=16' for path in always)} costs next to nothing"
        )


def _mind_the_split(checked: "Checked", networks: Mapping[str, nn.Module]) -> None:
    """Note what sees a part of a batch that is split over processes or micro-batches."""
    settings, processes = checked.settings, distributed.size()
    rows = settings.rows(processes)
    if rows == settings.batch_size:
        return
    loss = checked.entries["adversarial"][0]
    modules = [module for network in networks.values() for module in network.modules()]
    joined = rows * processes == settings.batch_size and settings.device != "cpu"
    joined = joined and torch.cuda.is_available()  # where batch norm is synchronised
    seen = ["batch norm"] if any(isinstance(m, BATCH_NORMS) for m in modules) and not joined else []
    seen += [f"adversarial={loss.name}"] if getattr(loss.build, "of_batch", False) else []
    extra = checked.entries.get("reconstruction.perceptual", (None, {}))[1]
    seen += ["reconstruction.perceptual.criterion=moments"] * (extra.get("criterion") == "moments")
    if seen:
        checked.notes.append(
            f"{' and '.join(seen)} will see {rows} images at a time, a part of "
            f"trainer.batch_size={settings.batch_size}: results depend on how a batch is split"
        )
