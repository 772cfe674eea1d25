"""Trained runs side by side: groups that repeat each other, and how far apart they are."""

import glob
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gan.config.plain import parsed
from gan.config.signature import nearest
from gan.log import LINES
from gan.metrics.report import FOLDER, NUMBERS
from gan.metrics.scores import bootstrap
from gan.run.ending import STOPPED
from gan.run.rundir import FINISHED, LATER, fixed, general
from gan.runs import CLOCKS

ASIDE = "seed", "data.split"  # what runs of one group may differ in, beside what is free to change
HEADLINE = [f"UFUC/{name}" for name in ("l1", "ssim", "sharpness", "content", "style")]
Scores = dict[str, dict[str, dict[str, float]]]  # cell -> font -> metric -> value
Repeat = tuple[int, int]  # the seed, and the split of what is held out


@dataclass(frozen=True)
class Record:
    """What a run directory says of a run, finished or not.

    Attributes:
        path: the run's directory.
        repeat: its seed and its split.
        settings: the other settings that a result depends on, by dotted key.
        steps: how many it is to train.
        step: how many its log has.
        curves: values by step, for each tag.
        scores: values by cell, font and metric, where they were taken.
        families: the family of each font, where it is known.
    """

    path: Path
    repeat: Repeat
    settings: Mapping[str, Any]
    steps: int
    step: int
    curves: Mapping[str, Mapping[int, float]]
    scores: Scores = field(default_factory=dict)
    families: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has come to its last step."""
        return self.step >= self.steps and not (self.path / STOPPED).exists()

    def last(self, tag: str) -> float | None:
        """The last value of a tag such as `metric/fid`; for `UFUC/l1`, the mean over fonts."""
        if tag in self.curves:
            return self.curves[tag][max(self.curves[tag])]
        fonts = self.fonts(tag)
        return math.fsum(fonts.values()) / len(fonts) if fonts else None

    def fonts(self, tag: str) -> dict[str, float]:
        """Values by font of a tag such as `UFUC/l1`; empty where it is not of that kind."""
        cell, _, metric = tag.rpartition("/")
        fonts = self.scores.get(cell, {})
        return {font: values[metric] for font, values in fonts.items() if metric in values}

    @property
    def tags(self) -> list[str]:
        """Every tag that it has values of."""
        cells = [
            f"{cell}/{metric}"
            for cell, fonts in self.scores.items()
            for metric in next(iter(fonts.values()), {})
        ]
        return [*cells, *self.curves]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed and what is held out.

    Attributes:
        settings: those in which the groups differ.
        runs: by seed and split.
        others: those left out, since another one has all their settings and has come as far.
    """

    settings: Mapping[str, Any]
    runs: dict[Repeat, Record]
    others: list[Record] = field(default_factory=list)

    def values(self, tag: str) -> dict[Repeat, float]:
        """The last value of each run that has one, by seed and split."""
        found = {repeat: run.last(tag) for repeat, run in self.runs.items()}
        return {repeat: value for repeat, value in found.items() if value is not None}

    @property
    def unfinished(self) -> list[Record]:
        """The runs that have not come to their last step."""
        return [run for run in self.runs.values() if not run.finished]


class Difference(NamedTuple):
    """A mean difference and its 95 % interval, whose ends are None where one pair gives none."""

    mean: float
    low: float | None
    high: float | None
    pairs: int  # of fonts, of splits or, in one split, of seeds


def found(patterns: Iterable[str | Path]) -> list[Path]:
    """The run directories that paths and glob patterns name, or that lie in the folders they name.

    Raises: ValueError for a name without a run.
    """
    runs: dict[Path, None] = {}
    for pattern in patterns:
        names = [str(pattern)] if Path(pattern).exists() else sorted(glob.glob(str(pattern)))
        here = [path for name in names for path in _inside(Path(name))]
        if not here:
            raise ValueError(
                f"{pattern} holds no run: name runs' directories, such as runs/wnet-hanzi, or a "
                "multirun's folder, such as runs/multirun"
            )
        runs |= dict.fromkeys(here)
    return list(runs)


def _inside(folder: Path) -> list[Path]:
    """The folder itself if it is a run, or the runs at any depth below it."""
    runs = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files:
            folders.clear()
            if LINES in files:
                runs.append(Path(place))
    return runs


def read(path: Path) -> Record:
    """What a run directory says.

    Values by font are those of `evaluation/evaluation.json`, unless the training has ended later:
    then those taken at its end (`finished.json`).

    Raises: ValueError where its configuration cannot be read.
    """
    config = parsed((path / "config.yaml").read_text(encoding="utf-8"))
    match config:
        case {"seed": int(seed), "trainer": {"steps": int(steps)}}:
            pass
        case _:
            raise ValueError(f"{path / 'config.yaml'} is no configuration of a run")
    curves: dict[str, dict[int, float]] = {}
    step = 0
    for line in _lines(path / LINES):
        step = max(step, line["step"])
        for tag, value in line.items():
            if tag not in CLOCKS and (number := _number(value)) is not None:
                curves.setdefault(tag, {})[line["step"]] = number
    scores, families = _scores(path)
    values = {**fixed(config), "trainer.steps": steps}
    settings = {k: v for k, v in values.items() if k not in ASIDE and not _idle(k, values)}
    repeat = seed, values.get("data.split", 0)
    return Record(path, repeat, settings, steps, step, curves, scores, families)


def _idle(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting changes nothing, as the length of a constant schedule."""
    part, _, last = key.rpartition(".")
    return last == "length" and values.get(f"{part}.name") == "constant"


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The log's lines, without a half one that a killed run has left."""
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield values


def _number(value: Any) -> float | None:
    """A logged number, which may be a word such as `nan`; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _scores(path: Path) -> tuple[Scores, dict[str, Any]]:
    """Values by cell, font and metric, and the fonts' families.

    An evaluation may say `{"scores": {cell: {font: {metric: value}}}, "families": {font: family}}`
    or `{"rows": {"W-Net": {cell: {"fonts": [...], metric: {"by_font": [...]}}}}, "split":
    {"families": ...}}`; anything else is passed over.
    """
    found: list[tuple[float, Scores, dict[str, Any]]] = []
    for file in (path / FINISHED, path / FOLDER / NUMBERS):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            rows = said.get("rows", {}).get("W-Net", {})
            scores = said.get("scores", {}) | {cell: _by_font(row) for cell, row in rows.items()}
            families = said.get("families") or said.get("split", {}).get("families", {})
            found.append((float(said.get("step", math.inf)), {**scores}, {**families}))
        except (OSError, ValueError, AttributeError, TypeError, KeyError):
            continue
    scores, families = {}, {}
    latest = max((step for step, *_ in found), default=0)
    for step, theirs, kinds in found:
        if step == latest:
            scores |= theirs
            families |= kinds
    return scores, families


def _by_font(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    measured = {
        metric: value["by_font"]
        for metric, value in row.items()
        if isinstance(value, dict) and "by_font" in value
    }
    return {
        font: {metric: float(values[place]) for metric, values in measured.items()}
        for place, font in enumerate(row["fonts"])
    }


def grouped(records: Sequence[Record]) -> list[Group]:
    """Groups in the order of their first runs; of two runs alike, the one that has come further."""
    keys = dict.fromkeys(key for record in records for key in record.settings)
    differing = [k for k in keys if len({repr(r.settings.get(k)) for r in records}) > 1]
    groups: dict[str, Group] = {}
    for record in records:
        settings = {key: record.settings.get(key, LATER.get(general(key))) for key in differing}
        group = groups.setdefault(repr(settings), Group(settings, {}))
        known = group.runs.get(record.repeat)
        if known is None or known.step < record.step:
            group.runs[record.repeat] = record
            group.others.extend(() if known is None else [known])
        else:
            group.others.append(record)
    return list(groups.values())


def named(group: Group, baseline: Group) -> str:
    """The settings in which a group differs from the baseline; of the baseline itself, all."""
    keys = list(group.settings)
    apart = [key for key in keys if group.settings[key] != baseline.settings[key]]
    shown = keys if group is baseline else apart
    return ", ".join(f"{_short(key, keys)}={_value(group.settings[key])}" for key in shown) or "all"


def _short(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a dotted key, two or more, that no other key ends with."""
    parts = key.split(".")
    for count in range(2, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def chosen(groups: Sequence[Group], wanted: str | None) -> Group:
    """The baseline: the first group, or the one with such settings (`KEY=VALUE,...`) or such a run.

    Raises: ValueError where it is none, or several.
    """
    if wanted is None:
        return groups[0]
    fitting = [g for g in groups if Path(wanted) in {r.path for r in (*g.runs.values(), *g.others)}]
    if not fitting:
        pairs = [part.partition("=")[::2] for part in wanted.split(",")]
        fitting = [g for g in groups if all(_has(g, key, value) for key, value in pairs)]
    if len(fitting) != 1:
        names = [", ".join(f"{k}={_value(v)}" for k, v in g.settings.items()) for g in groups]
        raise ValueError(
            f"--baseline {wanted} fits {len(fitting)} groups of runs, not one: give a run's "
            f"directory, or settings of one of these: {'; '.join(names)}"
        )
    return fitting[0]


def _has(group: Group, key: str, value: str) -> bool:
    """Whether a setting, named by the last parts of its key, has this value, however written."""
    settings = [v for known, v in group.settings.items() if f".{known}".endswith(f".{key}")]
    shown = {text for setting in settings for text in (_value(setting), str(setting))}
    alike = not shown.isdisjoint((value, value.rstrip(f"/{os.sep}")))
    return alike or ((number := _number(value)) is not None and number in settings)


def measures(records: Sequence[Record], wanted: Sequence[str] = ()) -> list[str]:
    """The tags to compare: those wanted, with or without `metric/`; else all measures there are.

    Measures are values by font, and `metric/NAME` of the generator to use; where there is none, the
    terms of the losses.

    Raises: ValueError for a tag that no run has, with the nearest.
    """
    known = list(dict.fromkeys(tag for record in records for tag in record.tags))
    if wanted:
        full = [tag if tag in known else f"metric/{tag}" for tag in wanted]
        for tag, given in zip(full, wanted, strict=True):
            if tag not in known:
                raise ValueError(f"no run has the metric {given!r}; {nearest(tag, known)}")
        return full
    kept = {tag for record in records for tag in record.tags if not _of_another(tag, record.tags)}
    own = [tag for tag in known if tag.startswith("metric/") and tag in kept]
    fonts = [tag for tag in known if any(record.fonts(tag) for record in records)]
    headline = [tag for tag in fonts if tag.removeprefix("best/") in HEADLINE]
    if headline + own:
        return headline + own
    terms = [tag for tag in known if tag.startswith(("generator/", "discriminator/"))]
    return [tag for tag in terms if not tag.endswith(("learning_rate", "gradient_norm"))]


def _of_another(tag: str, known: Sequence[str]) -> bool:
    """Whether a measure is of another generator than the one to use, as `metric/raw_fid`."""
    head, _, name = tag.removeprefix("metric/").partition("_")
    return bool(head and name) and f"metric/{name}" in known


def spread(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; of one value there is none."""
    numbers = np.array(list(values), dtype=np.float64)
    with np.errstate(invalid="ignore"):  # of infinite ones the deviation is no number
        return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def paired(group: Group, baseline: Group, tag: str) -> Difference | None:
    """The group less the baseline, paired over the repeats of both, with Student's interval.

    Two runs are compared at the last step that both have measured. Seeds of one split share what
    it holds out, so of several splits each counts once, with the mean of its seeds.
    """
    apart: dict[int, list[float]] = {}  # split -> its seeds' differences
    for repeat in sorted(group.runs.keys() & baseline.runs.keys()):
        difference = _apart(group.runs[repeat], baseline.runs[repeat], tag)
        apart.setdefault(repeat[1], []).extend(() if difference is None else [difference])
    splits = [seeds for seeds in apart.values() if seeds]
    if not splits:
        return None
    values = [spread(seeds)[0] for seeds in splits] if len(splits) > 1 else splits[0]
    mean, deviation = spread(values)
    if deviation is None:
        return Difference(mean, None, None, 1)
    reach = student(len(values) - 1) * deviation / math.sqrt(len(values))
    return Difference(mean, mean - reach, mean + reach, len(values))


def _apart(mine: Record, other: Record, tag: str) -> float | None:
    if tag in mine.curves and tag in other.curves:
        common = mine.curves[tag].keys() & other.curves[tag].keys()
        return mine.curves[tag][max(common)] - other.curves[tag][max(common)] if common else None
    a, b = mine.last(tag), other.last(tag)
    return None if a is None or b is None else a - b


def by_font(group: Group, baseline: Group, tag: str) -> Difference | None:
    """The group less the baseline, paired by font: means over the common repeats, whole families
    drawn again; None where fewer than two families were scored.
    """
    apart: dict[str, list[float]] = {}
    families: dict[str, Any] = {}
    for repeat in sorted(group.runs.keys() & baseline.runs.keys()):
        mine, other = group.runs[repeat], baseline.runs[repeat]
        ours, theirs = mine.fonts(tag), other.fonts(tag)
        families |= {**other.families, **mine.families}
        for font in ours.keys() & theirs.keys():
            apart.setdefault(font, []).append(ours[font] - theirs[font])
    fonts = sorted(apart)
    kinds = np.array([str(families.get(font, font)) for font in fonts])
    if len(set(kinds)) < 2:
        return None
    values = np.array([spread(apart[font])[0] for font in fonts])
    with np.errstate(invalid="ignore"):
        return Difference(*bootstrap(values, kinds), len(fonts))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution with so many degrees of freedom.

    With t = sqrt(freedom) * tan(angle) its density is that of cos(angle) ** (freedom - 1).
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, share / share[-1], angle)))
