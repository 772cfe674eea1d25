"""The loop: discriminator and generator play in turn; logs, samples, measures and checkpoints keep time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gan import checkpoint, distributed, images
from gan.average import Average
from gan.log import Log
from gan.player import Losses, Player
from gan.recipe import Batch, Recipe, detached
from gan.registry import Count, Whole
from gan.signals import Stop

Batches = Mapping[str, Batch]


@dataclass(frozen=True)
class Settings:
    """The `trainer` section: lengths and cadences are in generator updates (steps)."""

    steps: Count = 10_000
    batch_size: Count = 64
    n_critic: Count | dict[int, Count] = 1
    discriminator_warmup: Whole = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: Count = 20
    sample_every: Count = 500
    measure_every: Count = 500
    save_every: Count = 500
    keep: Count = 2

    def critic(self, step: int) -> int:
        """Discriminator updates before this generator update: the newest entry of a piecewise `n_critic`."""
        if isinstance(self.n_critic, int):
            return self.n_critic
        return self.n_critic[max(start for start in self.n_critic if start <= step)]

    def discriminator_updates(self) -> int:
        """Discriminator updates of the whole run."""
        return self.discriminator_warmup + sum(self.critic(step) for step in range(self.steps))


class Stream(Protocol):
    """Endless batches with a position that can be stored."""

    position: int

    def __next__(self) -> Batch:
        """The next batch."""

    def close(self) -> None:
        """Stop reading ahead."""


class Evaluation(Protocol):
    """Measures of a generator that a run logs, and its last word."""

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Numbers by name, quick enough to be taken during training."""

    def report(self, generator: nn.Module) -> str:
        """What to print and keep at the end."""


class Trainer:
    """Lets two players play a recipe's game over a stream of batches."""

    def __init__(
        self,
        recipe: Recipe,
        generator: Player,
        discriminator: Player,
        stream: Stream,
        average: Average | None,
        settings: Settings,
        run_dir: Path,
        seed: int,
        config: str = "",
        run_id: str = "run",
        shown: Batches | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        """`shown` are the named batches of which samples are drawn, `config` the resolved configuration."""
        self.recipe, self.generator, self.discriminator = recipe, generator, discriminator
        self.stream, self.average, self.settings, self.seed = stream, average, settings, seed
        self.run_dir, self.config, self.run_id = run_dir, config, run_id
        self.shown, self.evaluation = shown or {}, evaluation
        self.device = generator.parameters[0].device
        self.step = self.discriminator_updates = 0
        self.terms: dict[str, list[Tensor]] = {}

    # -- one step ---------------------------------------------------------------------------------

    def play(self) -> None:
        """One generator update after `n_critic` discriminator updates, each on a fresh batch."""
        turns = self.settings.critic(self.step)
        for turn in range(turns):
            batch, fakes = self.discriminate(shared=turn == turns - 1)
        distributed.seed(self.seed, "generator", self.step, self.device)
        terms = self.generator.update(self._cast(self.recipe.generator_losses, batch, fakes, self.step), self.step)
        self._note("generator", terms)
        if self.average is not None:
            self.average.update(self.recipe.generator, images=self.settings.batch_size)
        self.step += 1

    def discriminate(self, shared: bool) -> tuple[Batch, Losses]:
        """One discriminator update; shared fakes keep their graph for the generator's turn."""
        update = self.discriminator_updates
        distributed.seed(self.seed, "discriminator", update, self.device)
        batch = next(self.stream)
        with torch.set_grad_enabled(shared), self._autocast():
            fakes = self.recipe.generate(batch)
        losses = self._cast(self.recipe.discriminator_losses, batch, detached(fakes), update)
        self._note("discriminator", self.discriminator.update(losses, update))
        self.discriminator_updates += 1
        return batch, fakes

    def _cast(self, losses: Callable[..., Losses], *arguments: Any) -> Callable[[], Losses]:
        def cast() -> Losses:
            with self._autocast():
                return losses(*arguments)

        return cast

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.settings.precision
        if wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda"):
            # without weight cache: a cast kept across an optimizer step would be stale
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def _note(self, player: str, terms: Losses) -> None:
        for name, term in terms.items():  # kept as tensors: reading them here would stall the device
            self.terms.setdefault(f"{player}/{name}", []).append(term)

    # -- the run ----------------------------------------------------------------------------------

    def train(self) -> bool:
        """Train to the last step, from the newest checkpoint if `resume` was called; False if stopped."""
        self.log = Log(self.run_dir, self.step, self.settings.steps)
        try:
            with Stop() as stop:
                return self._run(stop)
        finally:
            self.stream.close()
            self.log.close()

    def _run(self, stop: Stop) -> bool:
        self.log.text(self.step, "config", self.config)
        if self.discriminator_updates == 0:
            self.sample()
        self._clock = time.perf_counter(), self._images()
        saved = self.step, self.discriminator_updates
        while self.step < self.settings.steps and not stop:
            if self.discriminator_updates < self.settings.discriminator_warmup:
                self.discriminate(shared=False)
                continue
            self.play()
            self._keep_time(stop)
            if self._due(self.settings.save_every):
                saved = self.save()
        if saved != (self.step, self.discriminator_updates):
            self.save()
        if stop:
            self.log.say(f"stopped by {stop.name} at step {self.step}; the same command goes on from there")
            return False
        self.finish()
        return True

    def _keep_time(self, stop: Stop) -> None:
        """What falls due after a step."""
        if self._due(self.settings.log_every):
            self.write_scalars()
        if self._due(self.settings.sample_every) and not stop:
            self.sample()
        if self._due(self.settings.measure_every) and not stop:
            self.measure()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _images(self) -> int:
        return self.discriminator_updates * self.settings.batch_size

    def _counts(self) -> dict[str, int]:
        return {
            "step": self.step,
            "images": self._images(),
            "discriminator_updates": self.discriminator_updates,
        }

    def write_scalars(self) -> None:
        """Means of every term since the last time, gradient norms, rates and speed: the one read-back."""
        means = {tag: torch.stack(terms).float().mean() for tag, terms in self.terms.items()}
        for player in (self.generator, self.discriminator):
            means[f"{player.name}/gradient_norm"] = player.gradient_norm().float()
        values = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        broken = [tag for tag, value in values.items() if value != value or abs(value) == float("inf")]
        if broken:
            raise FloatingPointError(
                f"{', '.join(broken)} became non-finite before step {self.step}; the checkpoints are older and "
                "sound: try a lower learning rate, a gradient penalty or clipping"
            )
        self.terms = {}
        for player in (self.generator, self.discriminator):
            for place, group in enumerate(player.optimizer.param_groups):
                name = group.get("name", "learning_rate" if place == 0 else f"learning_rate_{place}")
                values[f"{player.name}/{name}"] = group["lr"]
        now, before = (time.perf_counter(), self._images()), self._clock
        values["speed/images_per_second"] = (now[1] - before[1]) / (now[0] - before[0])
        self._clock = now
        self.log.scalars(self._counts(), values)
        self.log.progress(self.step, _note(values))

    # -- samples, measures, checkpoints -------------------------------------------------------------

    def generators(self) -> dict[str, nn.Module]:
        """The raw generator and, where there is one, the averaged one."""
        raw: dict[str, nn.Module] = {"raw": self.recipe.generator}
        return raw if self.average is None else {**raw, "averaged": self.average.refreshed()}

    def sample(self) -> None:
        """Pictures of the shown batches, by the raw and by the averaged generator."""
        started = time.perf_counter()
        for name, batch in self.shown.items():
            columns: dict[str, Tensor] = {}
            if self.step == 0 and "real" in batch:
                self.log.picture(0, f"{name}-real", images.grid(batch["real"], enlarge=_enlarge(batch["real"])))
            for source, generator in self.generators().items():
                with evaluated(generator):
                    made = self.recipe.samples(generator, batch)
                suffix = "" if source == "raw" else f" ({source})"
                made = {f"{key}{suffix}" if key == "generated" else key: made[key] for key in made}
                columns = _in_order({**columns, **made})
            self._show(name, columns)
        self._pause(started)

    def _show(self, name: str, columns: dict[str, Tensor]) -> None:
        if all(key.startswith("generated") for key in columns):
            for key, made in columns.items():
                label = f"{name}-averaged" if key.endswith("(averaged)") else name
                self.log.picture(self.step, label, images.grid(made, enlarge=_enlarge(made)))
            return
        first = next(iter(columns.values()))
        self.log.picture(self.step, name, images.table(columns, enlarge=_enlarge(first)))

    def measure(self) -> None:
        """Measures of the evaluation: `metric/NAME` of the generator to use, `metric/raw_NAME` beside it."""
        if self.evaluation is None:
            return
        started, values = time.perf_counter(), {}
        *others, (_, best) = self.generators().items()
        for name, generator in others:
            with evaluated(generator):
                measured = self.evaluation.measure(generator)
            values.update({f"metric/{name}_{key}": value for key, value in measured.items()})
        with evaluated(best):
            values.update({f"metric/{key}": v for key, v in self.evaluation.measure(best).items()})
        self.log.scalars(self._counts(), values)
        self._pause(started)

    def _pause(self, started: float) -> None:
        """Take the time since `started` out of the images per second."""
        clock, count = getattr(self, "_clock", (started, 0))
        self._clock = clock + time.perf_counter() - started, count

    def finish(self) -> None:
        """The evaluation's last word, printed and kept."""
        if self.evaluation is None:
            return
        *_, (_, best) = self.generators().items()
        with evaluated(best):
            report = self.evaluation.report(best)
        self.log.say(report)
        self.log.text(self.step, "report", report)
        if distributed.rank() == 0:
            (self.run_dir / "report.txt").write_text(report + "\n", encoding="utf-8")

    def save(self) -> tuple[int, int]:
        """Write a checkpoint of everything that cannot be recomputed."""
        networks, optimizers, state = self.state()
        checkpoint.save(
            self.run_dir / "checkpoints",
            self.step,
            run_id=self.run_id,
            networks=networks,
            optimizers=optimizers,
            state=state,
            config=self.config,
            facts={"device": str(self.device), "threads": torch.get_num_threads()},
        )
        checkpoint.rotate(self.run_dir / "checkpoints", self.run_id, self.settings.keep)
        return self.step, self.discriminator_updates

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Networks, optimizer tensors and counters, by name."""
        networks = {f"recipe/{name}": value for name, value in self.recipe.state_dict().items()}
        if self.average is not None:
            averaged = self.average.generator.state_dict()
            networks |= {f"average/{name}": value for name, value in averaged.items()}
        optimizers, groups = {}, {}
        for player in (self.generator, self.discriminator):
            tensors, groups[player.name] = checkpoint.flatten(player.optimizer)
            optimizers |= {f"{player.name}/{name}": value for name, value in tensors.items()}
        counters = {**self._counts(), "position": self.stream.position, "optimizers": groups}
        counters["average"] = self.average.counts() if self.average is not None else None
        return networks, optimizers, counters

    def resume(self, path: Path) -> None:
        """Continue exactly where a checkpoint was written."""
        stored = checkpoint.load(path)
        live, _, _ = self.state()
        checkpoint.restore(live, stored.networks, f"checkpoint {path}")
        for player in (self.generator, self.discriminator):
            prefix = f"{player.name}/"
            tensors = {k.removeprefix(prefix): v for k, v in stored.optimizers.items() if k.startswith(prefix)}
            checkpoint.unflatten(player.optimizer, tensors, stored.state["optimizers"][player.name])
        if self.average is not None:
            self.average.resume(stored.state["average"])
        self.step, self.discriminator_updates = stored.state["step"], stored.state["discriminator_updates"]
        self.stream.position = stored.state["position"]


@contextmanager
def evaluated(generator: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training goes on as if it had not been."""
    modes = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _in_order(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was made stands before the truth it is compared with."""
    return dict(sorted(columns.items(), key=lambda column: column[0] == "truth"))


def _enlarge(made: Tensor) -> int:
    return images.enlargement(made.shape[-1])


def _note(values: Mapping[str, float]) -> str:
    speed = f"{values['speed/images_per_second']:.0f} images/s"
    totals = [f"{player[0].upper()} {values[f'{player}/gradient_norm']:.2g}" for player in ("generator", "discriminator")]
    return f"{speed}  gradient norms {' '.join(totals)}"
