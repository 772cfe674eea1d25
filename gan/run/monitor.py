"""What a run shows: numbers (terms, norms, rates), pictures of samples, measures, a last word."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from gan import checkpoint, distributed, images
from gan.config.signature import flat
from gan.log import Log
from gan.metrics.report import plain
from gan.player import Losses, Player
from gan.recipe import Batch, Recipe
from gan.run.best import Best, Better
from gan.run.profiling import Profile
from gan.run.signals import Stop
from gan.run.watch import Watch

MADE = ("generated", "cycled")  # how samples begin that differ from generator to generator
Counts = Mapping[str, int]
Generators = Mapping[str, nn.Module]


RECENT = 200  # updates of each player whose terms are kept for a diagnosis


class Evaluation(Protocol):
    """Measures of a generator that a run logs, and its last word.

    One that knows each font's own values has `by_font(generator)` as well, values by cell, font and
    metric, and `families`, that of each font.
    """

    @property
    def better(self) -> Mapping[str, Better]:
        """The names of what is measured, and whether less or more of each is better."""

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Numbers by name, quick enough to be taken during training."""

    def report(self, generator: nn.Module) -> str:
        """What to print and keep at the end."""


class Monitor:
    """Reads terms back every now and then, draws samples of the shown batches, and measures.

    Nothing here changes the training: generators are put into evaluation mode and back, and
    whatever randomness is used is drawn between two seeded updates.

    Attributes:
        chance: makes what is drawn next a function of a purpose and a step; nothing by itself.
        owed: whether a measure, or the report, was due and left because a signal had come.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        shown: Mapping[str, Batch] | None = None,
        evaluation: Evaluation | None = None,
        warmup: int = 0,
        watch: Collection[str] = (),
        best: str | None = None,
        profile: int = 0,
    ) -> None:
        """`shown` are the named batches of which samples are drawn, `watch` names watchdogs.

        `profile` is the number of steps to trace.

        Raises: ConfigError where `best` is no measure of this run.
        """
        self.run_dir, self.steps, self.evaluation = run_dir, steps, evaluation
        self.shown = shown or {}
        self.best = Best(best, evaluation.better if best and evaluation else {})
        self.outcome: dict[str, Any] = {}
        self.owed = False
        self.chance: Callable[[str, int], None] = lambda purpose, step: None
        self._read: dict[str, list[Tensor]] = {}  # from a checkpoint
        self._noted: list[tuple[str, Losses]] = []
        self._recent: dict[str, deque[Losses]] = {}
        self._last: dict[str, float] = {}
        self._warmup, self._watch = warmup, Watch(watch)
        self._waited = 0.0
        self._profile = Profile(run_dir, profile)

    def start(self, clocks: Callable[[], Counts], config: str) -> None:
        """Open the log at this step; show the configuration and, at the start, the real images."""
        self._clocks, counts = clocks, clocks()
        self.log = Log(self.run_dir, counts, self.steps, self._warmup)
        self.log.text(counts["step"], "config", config)
        self._clock, self._seen = time.perf_counter(), counts["images"]
        self._updates = counts["discriminator_updates"]
        if counts["step"] == 0:
            for name, batch in self.shown.items():
                if "real" in batch:
                    self.log.picture(0, f"{name}-real", images.grid(batch["real"]))

    def note(self, player: str, terms: Losses) -> None:
        """Keep an update's terms, as tensors: reading them here would stall the device."""
        self._noted.append((player, terms))
        if player not in self._recent:
            self._recent[player] = deque(maxlen=RECENT)
        self._recent[player].append(terms)
        if player == "generator":  # a step is over
            self._traced(self._profile.step)

    def _traced(self, look: Callable[[], Path | None]) -> None:
        try:
            path = look()
        except (OSError, RuntimeError) as error:  # as little as a log is it worth a run
            self.tell("profile", f"the trace could not be written: {error}")
        else:
            if path is not None:
                self.tell("profile", f"{path}: open it at ui.perfetto.dev or in TensorBoard")

    def terms(self) -> dict[str, list[Tensor]]:
        """Terms noted since the last scalars, as `<player>/<name>`, oldest first."""
        return _by_tag(self._noted, self._read)

    def pending(self) -> dict[str, list[float | str]]:
        """Terms noted since the last scalars: a checkpoint between two of them keeps these.

        A statistic may be NaN, which JSON does not know: it is kept as a word.
        """
        return plain({tag: torch.stack(terms) for tag, terms in self.terms().items()})

    def join(self, device: torch.device) -> None:
        """Put means over the processes in the place of each one's terms: a checkpoint has one."""
        if distributed.size() > 1:
            self.restore(_means(distributed.gathered(self.pending())), device)

    def restore(self, pending: Mapping[str, list[float | str]], device: torch.device) -> None:
        """Go on from the terms of a checkpoint."""
        self._noted = []
        self._read = {
            tag: list(torch.tensor([float(term) for term in terms], device=device))
            for tag, terms in pending.items()
        }

    def history(self) -> dict[str, list[float]]:
        """The values of each term in the last updates, oldest first."""
        recent = [(player, terms) for player, last in self._recent.items() for terms in last]
        return {tag: torch.stack(terms).tolist() for tag, terms in _by_tag(recent, {}).items()}

    def tell(self, kind: str, text: str) -> None:
        """Report something that happened, wherever a run reports."""
        if hasattr(self, "log"):
            self.log.event(self._clocks(), kind, text)
        else:
            warnings.warn(f"{kind}: {text}", stacklevel=2)

    def saved(self, folder: Path, size: int) -> None:
        """Look at the room that a checkpoint of so many bytes has left."""
        self._warn(self._watch.disk(folder, size))

    def close(self) -> None:
        """Close the log, if it was opened."""
        if hasattr(self, "log"):
            self._traced(self._profile.close)
            self.log.close()

    def scalars(self, counts: Counts, players: Iterable[Player], waited: float = 0.0) -> None:
        """Means of the terms since the last time, rates and speed: one read-back.

        `waited` are the seconds that the run has waited for data until now.
        """
        players = list(players)
        means = {tag: torch.stack(terms).float().mean() for tag, terms in self.terms().items()}
        values: dict[str, float] = {}
        if means:  # none where every update since was skipped
            read = distributed.mean(torch.stack(list(means.values())))
            values = dict(zip(means, read.tolist(), strict=True))
        self._warn(self._watch.game(counts["step"], values))
        self._read, self._noted = {}, []
        for player in players:
            for place, group in enumerate(player.optimizer.param_groups):
                name = group.get("part", player.name).replace(".", "_")
                tag = f"{player.name}/learning_rate" + (f"_{name}" if place else "")
                values[tag] = float(group["lr"])
        now = time.perf_counter()
        values["speed/images_per_second"] = (counts["images"] - self._seen) / (now - self._clock)
        updates = counts["discriminator_updates"] - self._updates
        self._warn(self._watch.data(waited - self._waited, now - self._clock, updates))
        self._waited, self._updates = waited, counts["discriminator_updates"]
        self._clock, self._seen = now, counts["images"]
        self._last |= values
        self.log.scalars(counts, values)
        known = [(p.name, values.get(f"{p.name}/gradient_norm")) for p in players]
        norms = " ".join(f"{name} {norm:.2g}" for name, norm in known if norm is not None)
        speed = values["speed/images_per_second"]
        self.log.progress(counts["step"], f"{speed:.0f} images/s  gradient norms: {norms}")

    def sample(self, counts: Counts, recipe: Recipe, generators: Generators) -> None:
        """Pictures of the shown batches, by every generator."""
        self.chance("sample", counts["step"])
        distributed.by_first(partial(self._sample, counts, recipe, generators))

    def _sample(self, counts: Counts, recipe: Recipe, generators: Generators) -> None:
        with self._pause():
            for name, batch in self.shown.items():
                columns: dict[str, Tensor] = {}
                for source, generator in generators.items():
                    with evaluated(generator):
                        made = recipe.samples(generator, batch)
                    if source == "raw" and "generated" in made:
                        real = batch.get("real", batch.get("target"))
                        self._warn(self._watch.samples(counts["step"], made["generated"], real))
                    suffix = "" if source == "raw" else f" ({source})"
                    columns |= {
                        f"{key}{suffix}" if key.startswith(MADE) else key: made[key] for key in made
                    }
                self._show(counts["step"], name, columns)

    def measure(self, counts: Counts, generators: Generators, stop: Stop) -> None:
        """Evaluate: `metric/NAME` of the generator to use, `metric/raw_NAME` beside it."""
        if self.evaluation is not None:
            self.chance("measure", counts["step"])
            self._unless(stop, partial(self._measure, self.evaluation, counts, generators))

    def _unless(self, stop: Stop, work: Callable[[], None]) -> None:
        """Done by the first process, unless that is asked to stop meanwhile: then it is owed."""

        def done() -> None:
            with stop.leaving():
                work()
                self.owed = False

        self.owed = True
        distributed.by_first(done)
        self.owed = distributed.gathered(self.owed)[0]

    def _measure(self, evaluation: Evaluation, counts: Counts, generators: Generators) -> None:
        values: dict[str, float] = {}
        *_, last = generators.values()  # the one to use: averaged, where there is an average
        with self._pause():
            for source, generator in generators.items():
                prefix = "" if generator is last else f"{source}_"
                with evaluated(generator):
                    measured = evaluation.measure(generator)
                values |= {f"metric/{prefix}{key}": value for key, value in measured.items()}
        values |= self.best.offer(counts["step"], values)
        self._last |= values
        self.log.scalars(counts, values)

    def finish(self, counts: Counts, generators: Generators, config: str, stop: Stop) -> None:
        """The row among the runs, and the evaluation's report, printed and kept as `report.txt`.

        Neither where the last measure was left: it comes first.
        """
        if self.owed:
            return
        distributed.by_first(partial(self._settings, config))
        if self.evaluation is not None:
            self.chance("report", counts["step"])
            self._unless(stop, partial(self._finish, counts, generators))

    def _settings(self, config: str) -> None:
        measured = {k: v for k, v in self._last.items() if k.startswith(("metric/", "best/"))}
        metrics = measured or self._last
        if metrics:  # a finished run that was started again has its row
            self.log.settings(flat(yaml.safe_load(config) or {}), metrics)

    def _finish(self, counts: Counts, generators: Generators) -> None:
        report = self._reported(counts["step"], generators)
        self.log.say(report)
        self.log.text(counts["step"], "report", report)
        (self.run_dir / "report.txt").write_text(report + "\n", encoding="utf-8")

    def _reported(self, step: int, generators: Generators) -> str:
        """The evaluation's report on the last generator and, where there is one, on the best."""
        weights, last = list(generators.items())[-1]
        report = self._report(last, "")
        if self.best.step is None:
            return report
        if self.best.step == step:
            scores = self.outcome.get("scores", {})
            scores |= {f"best/{cell}": fonts for cell, fonts in scores.items()}
            return f"{report}\n\nThe last is the {self.best}."
        try:
            kept = self.best.generator(last, weights, self.run_dir / "checkpoints")
        except checkpoint.CheckpointError as error:
            return f"{report}\n\nThe {self.best} is not reported: {error}"
        return f"Last: step {step}\n{report}\n\nThe {self.best}\n{self._report(kept, 'best/')}"

    def _report(self, generator: nn.Module, prefix: str) -> str:
        """The evaluation's report; what it knows by font goes into `outcome`."""
        evaluation: Any = self.evaluation
        with evaluated(generator):
            if hasattr(evaluation, "by_font"):
                scores = self.outcome.setdefault("scores", {})
                found = evaluation.by_font(generator)
                scores |= {f"{prefix}{cell}": values for cell, values in found.items()}
                self.outcome["families"] = dict(evaluation.families)
            return evaluation.report(generator)

    def _warn(self, warned: Mapping[str, str]) -> None:
        for name, text in warned.items():
            self.tell(f"watch {name}", text)

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Time that does not count as training."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def _show(self, step: int, name: str, columns: dict[str, Tensor]) -> None:
        """A table of named columns, or grids where there is nothing but generated images."""
        if all(key.startswith("generated") for key in columns):
            for key, made in columns.items():
                label = name + key.removeprefix("generated").replace(" (", "-").rstrip(")")
                self.log.picture(step, label, images.grid(made))
            return
        ordered = sorted(columns.items(), key=lambda column: column[0] == "truth")  # truth last
        self.log.picture(step, name, images.table(dict(ordered)))


def _by_tag(
    noted: Iterable[tuple[str, Losses]], before: Mapping[str, list[Tensor]]
) -> dict[str, list[Tensor]]:
    """The terms of updates by tag, after those that were there before."""
    found = {tag: [*terms] for tag, terms in before.items()}
    for player, terms in noted:
        for name, term in terms.items():
            found.setdefault(f"{player}/{name}", []).append(term)
    return found


def _means(everywhere: Sequence[Mapping[str, list[float | str]]]) -> dict[str, list[float | str]]:
    """Terms of the first process as means over those that have them, update by update."""
    return {
        tag: [
            sum(map(float, terms)) / len(terms)
            for terms in zip(*(said[tag] for said in everywhere if tag in said), strict=False)
        ]
        for tag in everywhere[0]
    }


@contextmanager
def evaluated(generator: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
