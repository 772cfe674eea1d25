"""The loop: two players in turn; what falls due after a step is done before the next."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gan import distributed
from gan.average import Average
from gan.config.settings import Settings
from gan.explain import explained, strict_gradients
from gan.player import Losses, Player
from gan.recipe import Batch, Recipe, detached
from gan.run import ending, rollback, state
from gan.run.monitor import Monitor
from gan.run.saves import Saves
from gan.run.signals import Stop
from gan.step.guard import Guard
from gan.step.turns import ORDERS, Dealt


class Trainer:
    """Lets two players play a recipe's game over a stream of batches.

    Two clocks: `step` counts generator updates, `discriminator_updates` the discriminator's.
    """

    def __init__(
        self,
        recipe: Recipe,
        generator: Player,
        discriminator: Player,
        stream: state.Stream,
        averages: Mapping[str, Average],
        settings: Settings,
        monitor: Monitor,
        seed: int,
        config: str = "",
        run_id: str = "run",
        stop: Stop | None = None,
    ) -> None:
        """`config` is the resolved configuration as text, kept in every checkpoint."""
        self.recipe, self.stream, self.averages = recipe, stream, averages
        self.players = self.generator, self.discriminator = generator, discriminator
        self.settings, self.monitor, self.seed = settings, monitor, seed
        self.config, self.run_id, self.stop = config, run_id, Stop() if stop is None else stop
        self.guard = Guard(recipe, monitor.tell)
        self.saves = Saves(monitor.run_dir / "checkpoints", settings.failed_saves, monitor.tell)
        self.device = generator.parameters[0].device
        share = distributed.share(settings.batch_size)
        self.seeded = partial(distributed.seeded, seed, self.device, share)
        monitor.chance = partial(distributed.seed, seed, device=self.device)
        self.step = self.discriminator_updates = 0

    def play(self) -> None:
        """One generator update and `n_critic` discriminator updates, each on a fresh batch."""
        self.generator.prepare(self.step)  # before fakes are made: they serve both turns
        ORDERS[self.settings.order](self, self.settings.critic(self.step))
        self.step += 1

    def generate(self, dealt: Dealt | None = None) -> Dealt:
        """One generator update, on what the discriminator was dealt or on a fresh batch."""
        return self._turn(self.generator, self.step, dealt, shared=True)

    def discriminate(self, shared: bool, dealt: Dealt | None = None) -> Dealt:
        """One discriminator update; shared fakes keep their graph for the generator's turn."""
        dealt = self._turn(self.discriminator, self.discriminator_updates, dealt, shared)
        self.discriminator_updates += 1
        return dealt

    def _turn(self, player: Player, count: int, dealt: Dealt | None, shared: bool) -> Dealt:
        with self.seeded(player.name, count):
            batch = dealt[0] if dealt else self._batch()
            with self.guard.turn(batch):
                dealt = dealt or (batch, self._fakes(batch, shared))
                self.monitor.note(player.name, self._update(player, dealt, count))
                for average in self.averages.values() if player is self.generator else ():
                    average.update(self.settings.batch_size, partial(self._redrawn, dealt))
            return dealt

    def _update(self, player: Player, dealt: Dealt, count: int) -> Losses:
        return player.update(self._losses(player, dealt, count), count)

    def _batch(self) -> Batch:
        return self.recipe.prepare(next(self.stream))

    def _fakes(self, batch: Batch, shared: bool) -> dict[str, Tensor]:
        precision = self.settings.autocast(self.device)
        with explained("generator", self.step), torch.set_grad_enabled(shared), precision:
            return self.recipe.generate(batch)

    def _redrawn(self, dealt: Dealt) -> object:
        return Trainer._fakes(self, dealt[0], shared=False)

    def _losses(self, player: Player, dealt: Dealt, count: int) -> Callable[[], Losses]:
        batch, fakes = dealt
        given = fakes if player is self.generator else detached(fakes)
        return partial(getattr(self.recipe, f"{player.name}_losses"), batch, given, count)

    def train(self) -> bool:
        """Train to the last step; False if a signal asked to stop, after a checkpoint."""
        with self.stop, strict_gradients(), ending.told(self):
            self.monitor.start(self.counts, self.config)
            rollback.survived(self, self._run)
        return ending.finished(self)

    def _run(self) -> None:
        saved = self.step, self.discriminator_updates or -1  # before the first, nothing is
        if self.discriminator_updates == 0:
            distributed.replicate(self.recipe.state_dict().values())
            self.monitor.sample(self.counts(), self.recipe, self.generators())
        if self.monitor.owed:
            self.monitor.measure(self.counts(), self.generators(), self.stop)
            if not self.monitor.owed:
                self.save()
        while self.step < self.settings.steps and not self._asked():
            if self.discriminator_updates < self.settings.discriminator_warmup:
                self.discriminate(shared=False)
            else:
                self.play()
            if self.due(self.settings.log_every):
                self.monitor.scalars(self.counts(), self.players, self.stream.waited)
            if self.step and self.due(self.settings.sample_every):
                self.monitor.sample(self.counts(), self.recipe, self.generators())
            if self.step and self.due(self.settings.measure_every):
                self.monitor.measure(self.counts(), self.generators(), self.stop)
            if self.saves.due(self) and self.save():
                saved = self.step, self.discriminator_updates
        if saved != (self.step, self.discriminator_updates):
            self.save(last=True)

    def _asked(self) -> bool:
        return distributed.anywhere(bool(self.stop), self.device)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the last step has all."""
        clock = self.step or self.discriminator_updates  # the second during the warm-up
        return clock % every == 0 or self.step == self.settings.steps

    def counts(self) -> dict[str, int]:
        """Both clocks and the images seen."""
        updates, batch = self.discriminator_updates, self.settings.batch_size
        return {"step": self.step, "images": updates * batch, "discriminator_updates": updates}

    def generators(self) -> dict[str, nn.Module]:
        """The raw generator, then the averaged ones; the last is the one to use."""
        averaged = {name: average.refreshed() for name, average in self.averages.items()}
        return {"raw": self.recipe.generator, **averaged}

    def save(self, last: bool = False) -> bool:
        """Write a checkpoint of all that cannot be recomputed; whether it is there."""
        return self.saves.write(self, last)

    def resume(self, path: Path) -> None:
        """Continue exactly where a checkpoint was written."""
        stored = state.resume(self, path)
        self.step, self.discriminator_updates = stored["step"], stored["discriminator_updates"]
        self.stream.position = stored["position"]
