"""A trained run as a generator that draws: no data, no optimizer, no discriminator.

    import gan

    images = gan.load("runs/dcgan-folder").sample(16, seed=1)  # [16, C, H, W] in [-1, 1]

A stored configuration is data: only registered names are built from it, and modules that it names
as plugins are imported where the caller allows it.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from gan import checkpoint, registry
from gan.checkpoint import Checkpoint, restore
from gan.config.plain import parsed
from gan.config.signature import Count, Positive, Whole, coerce, listed, nearest
from gan.noise import FromNoise
from gan.recipe import Recipe
from gan.recipes.wnet import WNet
from gan.references import paired
from gan.registry import ConfigError, Entry
from gan.run.best import path_of, weights_of
from gan.step.buffers import settled
from gan.styles import STEPS, Relatives, adapted, repeated

CHUNK = 64  # images drawn at once
T = TypeVar("T")
CLOCKS = ("step", "images", "discriminator_updates")


@dataclass(frozen=True)
class Run:
    """A generator in evaluation mode, and what is known of it.

    Attributes:
        path: the checkpoint's folder.
        step: generator updates behind it.
        clocks: `step`, `images` and `discriminator_updates`, as a log has them.
        content: hash of the store that it was trained on, or None.
        config: the stored configuration.
        weights: `raw`, or the name of the average that the generator holds.
        generator: its parameters need no gradient.
        recipe: the class whose game it was trained in.
        classes: labels that the generator reads, or 0.
    """

    path: Path
    step: int
    clocks: Mapping[str, int]
    content: str | None
    config: Mapping[str, Any]
    weights: str
    generator: nn.Module
    recipe: type[Recipe]
    classes: int

    @property
    def folder(self) -> Path:
        """The run's directory, or the checkpoint's where it lies in no run."""
        inside = self.path.resolve().parent.name == "checkpoints"
        return self.path.resolve().parents[1] if inside else self.path.parent

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.generator.parameters()).device

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.config["image"]["size"]

    @property
    def latent(self) -> int:
        """Numbers that a generator draws an image from."""
        return cast(int, self.generator.latent)  # a module's attribute

    def sample(
        self,
        count: int = 64,
        seed: int = 0,
        label: int | Sequence[int] | Tensor | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Images [count, C, H, W] in [-1, 1]; with seed 0 those that training has shown.

        Args:
            seed: everything random follows from it.
            label: a class for all or one for each; by default each class in turn gets its share.
            truncation: the largest absolute value of the noise, see `noise`.

        Raises:
            ValueError: a recipe that does not draw from noise, or an argument out of range.
        """
        return self.draw(self.noise(count, seed, truncation), self.labels(count, label))

    def noise(self, count: int, seed: int = 0, truncation: float | None = None) -> Tensor:
        """Latent vectors [count, latent] of a standard normal distribution, for `draw`.

        With `truncation` it is the one whose values beyond that size are drawn again (Brock et al.
        2018, arXiv:1809.11096, section 3.1): the smaller, the more typical and the more alike.
        """
        self._like(FromNoise, "synthesis", "samples and truncation are")
        shape = coerce(Count, count, "count"), self.latent
        random = torch.Generator().manual_seed(coerce(Whole, seed, "seed"))
        if truncation is None:
            return torch.randn(shape, generator=random)
        most = coerce(Positive, truncation, "truncation")
        return nn.init.trunc_normal_(torch.empty(shape), 0, 1, -most, most, random)

    def labels(
        self, count: int, label: int | Sequence[int] | Tensor | None = None
    ) -> Tensor | None:
        """Classes [count] as `sample` takes them, or None where the generator reads none."""
        if not self.classes:
            if label is not None:
                raise ValueError(f"label={label}, but {self.path} was trained without classes")
            return None
        if label is None:
            return torch.arange(count) * self.classes // count
        given = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
        if given.dtype.kind not in "iu" or given.shape not in ((), (count,)):
            raise ValueError(f"label must be one class or {count} of them, not {label!r}")
        chosen = torch.as_tensor(given.astype(np.int64)).expand(count)
        if chosen.min() < 0 or chosen.max() >= self.classes:
            raise ValueError(f"label={label} must be from 0 to {self.classes - 1}")
        return chosen

    @torch.no_grad()
    def draw(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W] of latent vectors [N, latent] and classes [N], on the CPU."""
        recipe = self._like(FromNoise, "synthesis", "samples are")
        given = [recipe.noise(noise), *([] if label is None else [label])]
        parts = zip(*(torch.split(t.to(self.device), CHUNK) for t in given), strict=True)
        return torch.cat([recipe.draw(self.generator, *part).float().cpu() for part in parts])

    def write(self, prototypes: Tensor, references: Tensor, shown: Tensor | None = None) -> Tensor:
        """The characters of prototypes [N, C, H, W] in the style of references [K, C, H, W].

        All are in [-1, 1], the prototypes in the standard font, the references of one style. Their
        characters in the standard font are `shown` [K, C, H, W] to a paired generator.
        """
        return self.dressed(prototypes, self.style(references, shown))

    @torch.no_grad()
    def style(self, references: Tensor, shown: Tensor | None = None) -> Any:
        """What a W-Net takes from references [K, C, H, W] of one style, for `dressed`."""
        self._like(WNet, "wnet", "characters are written")
        writer: Any = self.generator
        return writer.encode_style(paired(writer, references, shown).to(self.device)[None])

    @torch.no_grad()
    def dressed(self, prototypes: Tensor, style: Any) -> Tensor:
        """The prototypes' characters [N, C, H, W] in a style, on the CPU."""
        writer: Any = self.generator
        made = []
        for part in torch.split(prototypes.to(self.device), CHUNK):
            content = writer.encode_content(part)
            made.append(writer.decode(content, repeated(style, len(part))).float().cpu())
        return torch.cat(made)

    def adapted(
        self,
        shown: Tensor,
        references: Tensor,
        steps: int = STEPS,
        enough: float = 0.0,
        others: Tensor | None = None,
        relatives: Relatives | None = None,
    ) -> "Run":
        """This run with a generator that has learnt references of one style.

        The same characters in the standard font are `shown`, both [K, C, H, W] in [-1, 1]; what is
        learnt beside them, and for how long, `gan.styles.adapted` says.
        """
        self._like(WNet, "wnet", "styles are learnt")
        writer: Any = self.generator
        pair = shown.to(self.device), references.to(self.device), coerce(Whole, steps, "steps")
        kept = None if others is None else others.to(self.device)
        return replace(self, generator=adapted(writer, *pair, enough, kept, relatives))

    def _like(self, kind: type[T], example: str, what: str) -> type[T]:
        if not issubclass(self.recipe, kind):
            raise ValueError(
                f"{what} for recipe={example} and its like; {self.path} was trained with "
                f"recipe={self.config['recipe']['name']}"
            )
        return self.recipe


def load(
    path: str | Path,
    weights: str = "average",
    device: str | torch.device = "cpu",
    plugins: bool = False,
    checkpoint: str | int = "last",
) -> Run:
    """The generator of a run's newest checkpoint that verifies, or of another one.

    Args:
        path: a run's directory, or a checkpoint in it.
        weights: `average` (the average to draw with, the raw weights where none was kept), `raw`,
            or one average by name.
        device: where the generator goes.
        plugins: whether to import the modules that the run was trained with: that runs their code.
        checkpoint: which of a run's: the `last`, the `best` (kept by `trainer.best`), or the one of
            a step.

    Raises:
        ValueError: nothing to load, a damaged checkpoint, unknown names, or weights that do not fit
            the network named beside them.
    """
    stored = located(Path(path), checkpoint)
    config = _configuration(stored)
    if plugins and config.get("plugins"):
        from gan.commands.train import import_plugins

        import_plugins(config["plugins"])
    chosen, tensors = _weights(stored, weights)
    try:
        entry, recipe = (
            registry.entry(section, config[section].get("name"), f"{section}.name")
            for section in ("generator", "recipe")
        )
    except ConfigError as error:
        if not config.get("plugins") or plugins:
            raise
        raise ConfigError(
            f"{error}; the run was trained with plugins={config['plugins']}: load it with plugins "
            "allowed (plugins=True, --plugins), if you trust them"
        ) from error
    values = {key: value for key, value in config["generator"].items() if key != "name"}
    facts = _facts(entry, values, tensors)
    with torch.random.fork_rng(devices=[]):  # starting values, which the stored ones replace
        generator = entry.create({**values, **facts}, "generator")
    restore(generator.state_dict(), tensors, f"the generator of {stored.path}")
    generator = generator.eval().requires_grad_(False)
    if chosen != "raw":
        generator = settled(generator)
    classes = facts.get("classes", 0) if "label" in recipe.build.reads else 0
    return Run(
        stored.path,
        stored.step,
        {clock: stored.state.get(clock, 0) for clock in CLOCKS},
        stored.state.get("content"),
        config,
        chosen,
        generator.to(device),
        recipe.build,
        classes,
    )


def every(
    path: str | Path,
    device: str | torch.device = "cpu",
    plugins: bool = False,
    checkpoint: str | int = "last",
) -> dict[str, Run]:
    """The raw generator of one checkpoint and each average of it, by name; the last one counts.

    Where a run's last checkpoint is asked for and it keeps another one as its best, that one's
    average comes first, as `best`.

    Raises: ValueError as `load` does.
    """
    stored = located(Path(path), checkpoint)
    names = "raw", *stored.state.get("averages", {})
    found = {name: load(stored.path, name, device, plugins) for name in names}
    kept = stored.state.get("best")
    if not kept or checkpoint != "last" or stored.path == Path(path) or kept["step"] == stored.step:
        return found
    try:
        other = path_of(stored.path.parent, kept["step"])
        return {"best": load(other, device=device, plugins=plugins), **found}
    except ValueError as error:
        warnings.warn(f"the best checkpoint is left out: {error}", stacklevel=2)
        return found


def dataset(run: Run) -> Any:
    """What a run was trained on; its store is built anew where it is missing, never downloaded.

    Raises: ValueError where the data are not there.
    """
    node = run.config.get("data")
    if not isinstance(node, dict):
        raise ConfigError(f"{run.path / checkpoint.CONFIG} names no data")
    source = registry.entry("source", str(node.get("name")), "data.name")
    values = {key: listed(value) for key, value in node.items() if key != "name"}
    if "download" in values:
        values["download"] = False
    found = source.create(values, "data")
    if run.content not in (None, found.store.content_hash, getattr(found, "content", None)):
        raise ValueError(
            f"{found.store.path} holds other images than {run.path} was trained on: put those back"
        )
    return found


def located(path: Path, which: str | int = "last") -> Checkpoint:
    """The networks of a checkpoint, or of a run's newest one that verifies, its best, or a step.

    Raises: ValueError where there is none.
    """
    folder = path / "checkpoints"
    if folder.is_dir():
        found = checkpoint.newest(folder, lambda skipped: warnings.warn(skipped, stacklevel=4))
        path = _chosen(found, which) if found else path
    elif which != "last":
        raise ValueError(f"{path} is no run: checkpoint={which} cannot be chosen from it")
    if not (path / checkpoint.MANIFEST).exists():
        raise ValueError(
            f"{path} holds no checkpoint: name a run's directory, such as runs/wnet-hanzi, or one "
            "of its checkpoints"
        )
    return checkpoint.load(path, networks_only=True)


def _chosen(newest: Path, which: str | int) -> Path:
    """A checkpoint beside the newest one."""
    run, step = newest.parents[1], str(which)
    if step == "last":
        return newest
    if step == "best":
        kept = checkpoint.load(newest, networks_only=True).state.get("best")
        if not kept:
            raise ValueError(
                f"{run} keeps no best checkpoint: train with trainer.best=MEASURE, such as "
                "trainer.best=metric/validation_l1"
            )
        step = str(kept["step"])
    there = sorted(path.name for path in newest.parent.glob("step-*"))
    chosen = path_of(newest.parent, int(step)) if step.isdecimal() else newest.parent / step
    if chosen not in [newest.parent / name for name in there]:
        raise ValueError(
            f"checkpoint={which} is none of {run}: choose last, best, or the step of one of "
            f"{', '.join(there)}"
        )
    return chosen


def _configuration(stored: Checkpoint) -> dict[str, Any]:
    """The stored configuration, with the sections that a generator is built from."""
    try:
        config = parsed(stored.config)
    except ValueError:
        config = None
    sections = ("image", "generator", "recipe")
    if not isinstance(config, dict) or not all(isinstance(config.get(s), dict) for s in sections):
        raise ConfigError(f"{stored.path / checkpoint.CONFIG} names no {', '.join(sections)}")
    coerce(Count, config["image"].get("size"), "image.size")
    return config


def _weights(stored: Checkpoint, weights: str) -> tuple[str, dict[str, Tensor]]:
    """The chosen weights' name, and their tensors by the generator's own names."""
    averages = [*stored.state.get("averages", {})]
    chosen = ["raw", *averages][-1] if weights == "average" else weights
    if chosen not in ("raw", *averages):
        hint = nearest(chosen, ["average", "raw", *averages])
        raise ValueError(f"{stored.path} keeps no weights {weights!r}; {hint}")
    return chosen, weights_of(stored.networks, chosen)


def _facts(entry: Entry, values: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, int]:
    """The numbers of classes that came from the data, read off the stored shapes.

    A size that grows with such a number tells it; where the parts for classes are missing, it is 0.
    """
    few = dict.fromkeys(entry.given, 2)
    shapes = _shapes(entry, values, few)
    if few and shapes.keys() != stored.keys():
        return dict.fromkeys(few, 0)
    facts = dict(few)
    for fact in few:
        more = _shapes(entry, values, {**few, fact: 3})
        for name, shape in shapes.items():
            for place, (two, three) in enumerate(zip(shape, more[name], strict=True)):
                if three != two and stored[name].ndim == len(shape):
                    grown = (stored[name].shape[place] - two) // (three - two)
                    facts[fact] = max(1, 2 + grown)
    return facts


def _shapes(
    entry: Entry, values: Mapping[str, Any], facts: Mapping[str, int]
) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = entry.create({**values, **facts}, "generator")
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
