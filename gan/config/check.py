"""A configuration against the registered signatures, before anything is built or written."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from gan import distributed, registry
from gan.config import floors
from gan.config.rehearsal import rehearse
from gan.config.settings import Clip, Image, Settings
from gan.config.signature import SHAPE, Bounds, coerce, conform, nearest
from gan.recipe import Recipe
from gan.registry import ConfigError, Entry, NonNegative, Whole
from gan.step.guard import SIDES

Seed = Annotated[int, Bounds(0, 2**63 - 1)]
CHOICES = {  # section of the configuration -> kind of entry
    "data": "source",
    "generator": "generator",
    "discriminator": "discriminator",
    "recipe": "recipe",
    "adversarial": "adversarial",
    "average": "average",
    "classification": "classification",
    "classifier": "classifier",
}
NAMED = {  # any number of each, by name
    "penalties": "penalty",
    "reconstruction": "reconstruction",
    "augment": "augment",
}
OFFERED = "store", "resident", "gives", "facts", "__len__", "plan", "shown"  # by what data= makes
UNSIGNED = ("lsgan", "wasserstein", "rpgan", "ragan")  # losses under which 0 divides no logits
KNOWN = (
    *CHOICES,
    *NAMED,
    "optimizer",
    "schedule",
    "clip",
    "image",
    "trainer",
    "model",
    "seed",
    "run_dir",
    "resume",
    "init",
    "sweep",
    "processes",
    "plugins",
    "freeze",
    "rates",
)


@dataclass(frozen=True)
class Checked:
    """A configuration that passed: entries with their arguments, and plain values."""

    entries: dict[str, tuple[Entry, dict[str, Any]]]  # by section, such as optimizer.generator
    clip: dict[str, Clip]
    settings: Settings
    seed: int
    run_dir: Path
    resume: str
    init: str | None
    freeze: list[str] | dict[str, int]
    rates: dict[str, float]
    notes: list[str]  # what the user should know before training
    values: dict[str, Any]  # the whole configuration, plain, with every default filled in

    def create(self, section: str, **given: Any) -> Any:
        """Build a section's entry from its arguments and from those given ones it takes."""
        chosen, arguments = self.entries[section]
        _require_given(chosen, section, given)
        return chosen.build(
            **arguments, **{key: given[key] for key in chosen.given if key in given}
        )

    @property
    def ours(self) -> bool:
        """Whether all that plays comes with gan: neither networks nor losses of a user's own."""
        played = [entry.build for section, (entry, _) in self.entries.items() if section != "data"]
        return not self.values["plugins"] and all(map(_ours, played))

    @property
    def facts(self) -> dict[str, int]:
        """What the recipe's networks are built with, whatever the data say."""
        recipe = self.entries["recipe"][0].build
        return {**({} if "label" in recipe.reads else {"classes": 0}), **recipe.facts}

    @property
    def reads(self) -> tuple[str, ...]:
        """The keys of each batch that the recipe and its generator read with their settings."""
        reads = [*self.entries["recipe"][0].build.reads]
        for chosen, settings in (self.entries[section] for section in ("recipe", "generator")):
            more = getattr(chosen.build, "reads_more", None)
            reads += more(settings) if more else ()
        return tuple(reads)

    def recipe(self, facts: Mapping[str, int], **given: Any) -> Recipe:
        """The recipe of given networks and other parts, with its losses and penalties."""
        adversarial = self.create("adversarial")
        losses = {
            "adversarial": adversarial,
            "penalties": self.named("penalties", adversarial=adversarial),
            "classification": self.create("classification"),
            "augment": self.named("augment"),
        }
        classes = facts.get("classes", 0)
        recipe: Recipe = self.create("recipe", classes=classes, **{**losses, **given})
        return recipe

    def named(self, section: str, **given: Any) -> dict[str, Any]:
        """What a section of several names builds, without those whose weight is 0."""
        return {on.partition(".")[2]: self.create(on, **given) for on in self.switched_on(section)}

    def switched_on(self, section: str) -> list[str]:
        """The entries of a section of several names whose weight is not 0."""
        inside = [path for path in self.entries if path.startswith(f"{section}.")]
        return [path for path in inside if self.entries[path][1].get("weight") != 0]

    def slope_penalties(self) -> list[str]:
        """The penalties in use that look at the discriminator's input gradient."""
        on = self.switched_on("penalties")
        return [path for path in on if getattr(self.entries[path][0].build, "of_gradient", True)]


def check(config: Mapping[str, Any]) -> Checked:
    """Compare a composed configuration with the registered signatures.

    Raises: ConfigError for the first key that is unknown, mistyped, out of range or contradictory.
    """
    _only(config, KNOWN, "")
    for section in ("optimizer", "schedule", "clip"):
        _only(_node(config, section), SIDES, f"{section}.")
    image = _conformed(Image, config, "image")
    entries = {section: _chosen(kind, config, section) for section, kind in CHOICES.items()}
    for kind in ("optimizer", "schedule"):
        entries |= {f"{kind}.{side}": _chosen(kind, config, f"{kind}.{side}") for side in SIDES}
    for section, kind in NAMED.items():
        for name in _node(config, section):
            entries[f"{section}.{name}"] = _chosen(kind, config, f"{section}.{name}", name)
    clip = {side: Clip(**_conformed(Clip, config, f"clip.{side}")) for side in SIDES}
    settings = Settings(**_conformed(Settings, config, "trainer"))
    if not config.get("run_dir"):
        raise ConfigError("run_dir must name a folder, such as runs/mine")
    values: dict[str, Any] = {
        "model": coerce(str, config.get("model"), "model"),
        "seed": coerce(Seed, config.get("seed"), "seed"),
        "run_dir": coerce(str, config.get("run_dir"), "run_dir"),
        "resume": coerce(str, config.get("resume"), "resume"),
        "init": coerce(str | None, config.get("init"), "init"),
        "plugins": coerce(list[str], config.get("plugins") or [], "plugins"),
        "freeze": coerce(list[str] | dict[str, Whole], config.get("freeze") or [], "freeze"),
        "rates": coerce(dict[str, NonNegative], config.get("rates") or {}, "rates"),
        "image": image,
        "trainer": asdict(settings),
        "clip": {side: asdict(clip[side]) for side in SIDES},
        **{section: {} for section in NAMED},
    }
    for section, (chosen, arguments) in entries.items():
        place(values, section, {"name": chosen.name, **arguments})
    checked = Checked(
        entries,
        clip,
        settings,
        values["seed"],
        Path(values["run_dir"]),
        values["resume"],
        values["init"],
        values["freeze"],
        values["rates"],
        floors.below(),
        _plain(values),
    )
    _contradictions(checked)
    rehearse(checked)
    return checked


def readable(checked: Checked, dataset: Any) -> tuple[str, ...]:
    """The keys that the recipe reads from each batch; data that lack one are refused."""
    recipe, data = (checked.entries[section][0] for section in ("recipe", "data"))
    if lacking := [name for name in OFFERED if not hasattr(dataset, name)]:
        raise ConfigError(
            f"data={data.name} gives a {type(dataset).__name__} without {', '.join(lacking)}: "
            "gan.data.datasets.Dataset says what the stream asks of it"
        )
    gives: Collection[str] = dataset.gives
    missing = [key for key in checked.reads if key not in gives]
    if missing:
        hint = "; data.label can name an integer field of the store" if "label" in missing else ""
        raise ConfigError(
            f"recipe={recipe.name} reads {', '.join(missing)} from each batch, which "
            f"data={data.name} does not give (it gives {', '.join(gives)}){hint}"
        )
    return checked.reads


def _chosen(
    kind: str, config: Mapping[str, Any], section: str, key: str | None = None
) -> tuple[Entry, dict[str, Any]]:
    """What a section names; one of several of a kind is named by its key, unless by itself."""
    node = {"name": key, **_node(config, section)} if key else _node(config, section)
    if "name" not in node:
        raise ConfigError(f"{section} must name a {kind}; {nearest('', registry.names(kind))}")
    found = registry.entry(kind, node["name"], section if key else f"{section}.name")
    values = {key: value for key, value in node.items() if key != "name"}
    return found, conform(found.parameters, values, section)


def _conformed(kind: Any, config: Mapping[str, Any], section: str) -> dict[str, Any]:
    return conform(inspect.signature(kind).parameters, _node(config, section), section)


def _node(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    node: Any = config
    for key in section.split("."):
        node = (node or {}).get(key)
        if node is not None and not isinstance(node, Mapping):
            raise ConfigError(f"{section} must be a section with keys of its own, not {node!r}")
    return node or {}


def _only(node: Mapping[str, Any], allowed: tuple[str, ...], path: str) -> None:
    for key in node:
        if key not in allowed:
            raise ConfigError(f"{path}{key} is unknown; {nearest(key, allowed)}")


def _require_one_shape(checked: Checked) -> None:
    """Refuse data of other images than the networks are built for."""
    image, data = checked.values["image"], checked.entries["data"][1]
    for key in SHAPE if SHAPE.keys() <= data.keys() else ():
        if data[key] != image[key]:
            raise ConfigError(
                f"data.{key}={data[key]} must be image.{key}={image[key]}, which networks are "
                f"built for: leave data.{key} out, and set image.{key}"
            )


def _contradictions(checked: Checked) -> None:
    """Settings that cannot hold together; the message names both keys."""
    settings = checked.settings
    _require_one_shape(checked)
    if settings.batch_size % distributed.size():
        raise ConfigError(
            f"trainer.batch_size={settings.batch_size} cannot be split over "
            f"{distributed.size()} processes: choose a multiple of it, or start another number"
        )
    recipe = checked.entries["recipe"][0]
    least = getattr(recipe.build, "least", 1)
    if settings.batch_size < least * distributed.size():
        raise ConfigError(
            f"trainer.batch_size={settings.batch_size} is too small: recipe={recipe.name} needs at "
            f"least {least} images per process for its batch norm"
        )
    share, rows = settings.batch_size // distributed.size(), settings.rows(distributed.size())
    if share % rows or rows < least:
        raise ConfigError(
            f"trainer.micro_batch={settings.micro_batch} must divide the {share} images of "
            f"trainer.batch_size={settings.batch_size} that each of {distributed.size()} processes "
            f"has, and be at least {least}"
        )
    extra = checked.switched_on("reconstruction")
    if extra and "reconstruction" not in recipe.given:
        raise ConfigError(f"{extra[0]} needs a target, which recipe={recipe.name} does not have")
    changes = checked.switched_on("augment")
    if changes and "augment" not in recipe.given:
        raise ConfigError(
            f"{changes[0]} changes images from noise alone: recipe={recipe.name} shows its "
            "discriminator more than one image, which would have to be changed alike"
        )
    if "augment.ada" in changes:
        _mind_what_adapts(checked, changes)
    average, start = checked.entries["average"][0], checked.entries["average"][1].get("start", 1)
    if start > settings.steps:
        raise ConfigError(
            f"average.start={start} of average={average.name} comes after the last of "
            f"trainer.steps={settings.steps}: lower the one or raise the other"
        )
    if isinstance(settings.n_critic, dict) and 0 not in settings.n_critic:
        raise ConfigError("trainer.n_critic must say from step 0 on, as in {0: 5, 1000: 1}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but there is no CUDA device here; use auto or cpu")


def _require_given(chosen: Entry, section: str, given: Collection[str]) -> None:
    """Refuse a part of a user's own that asks for what its kind is not given."""
    asked = inspect.signature(chosen.build).parameters
    lacking = [key for key in chosen.given if key in asked and key not in given]
    lacking = [key for key in lacking if asked[key].default is inspect.Parameter.empty]
    if lacking:
        raise ConfigError(
            f"{section}={chosen.name} wants {', '.join(lacking)}, but a {chosen.kind} "
            f"is given {', '.join(given) or 'nothing'}: take it out of `given` and annotate it, "
            "which makes it a setting"
        )


def _mind_what_adapts(checked: Checked, changes: Sequence[str]) -> None:
    """Refuse a probability of no changes, or one that follows a logit whose sign says nothing."""
    if not {*changes} - {"augment.ada", "augment.noise"}:
        raise ConfigError(
            "augment.ada says how often other changes are made, and there are none: name some, as "
            "augment.shift.ratio=0.125 augment.cutout.ratio=0.5"
        )
    loss = checked.entries["adversarial"][0].name
    if loss in UNSIGNED:
        raise ConfigError(
            f"augment.ada follows the sign of real images' logits, which says nothing with "
            f"adversarial={loss}: choose adversarial=nonsaturating or hinge, or leave ada out"
        )


def _ours(build: Any) -> bool:
    """Whether a class or function is written in gan; a decorator may hide where a function is."""
    scope = getattr(build, "__globals__", {"__name__": getattr(build, "__module__", "")})
    return str(scope["__name__"]).partition(".")[0] == "gan"


def place(values: dict[str, Any], section: str, node: Any) -> None:
    """Put a value under a dotted key."""
    *parents, last = section.split(".")
    for key in parents:
        values = values.setdefault(key, {})
    values[last] = node


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
