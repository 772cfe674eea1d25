"""The loop: two players in turn; what falls due after a step is done before the next."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from gan import distributed, state
from gan.average import Average
from gan.explain import explained, strict_gradients
from gan.monitor import Monitor
from gan.player import Player
from gan.recipe import Recipe, detached
from gan.settings import Settings
from gan.signals import Stop
from gan.state import Stream
from gan.turns import ORDERS, Dealt


class Trainer:
    """Lets two players play a recipe's game over a stream of batches.

    Two clocks: `step` counts generator updates, `discriminator_updates` the discriminator's.
    """

    def __init__(
        self,
        recipe: Recipe,
        generator: Player,
        discriminator: Player,
        stream: Stream,
        averages: Mapping[str, Average],
        settings: Settings,
        monitor: Monitor,
        seed: int,
        config: str = "",
        run_id: str = "run",
    ) -> None:
        """`config` is the resolved configuration as text, kept in every checkpoint."""
        self.recipe, self.stream, self.averages = recipe, stream, averages
        self.players = self.generator, self.discriminator = generator, discriminator
        self.settings, self.monitor, self.seed = settings, monitor, seed
        self.config, self.run_id = config, run_id
        self.device = generator.parameters[0].device
        self.step = self.discriminator_updates = 0

    def play(self) -> None:
        """One generator update and `n_critic` discriminator updates, each on a fresh batch."""
        self.generator.prepare(self.step)  # before fakes are made: they serve both turns
        ORDERS[self.settings.order](self, self.settings.critic(self.step))
        for average in self.averages.values():
            average.update(self.recipe.generator, images=self.settings.batch_size)
        self.step += 1

    def generate(self, dealt: Dealt | None = None) -> Dealt:
        """One generator update, on what the discriminator was dealt or on a fresh batch."""
        distributed.seed(self.seed, "generator", self.step, self.device)
        batch, fakes = dealt or self._deal(shared=True)
        losses = partial(self.recipe.generator_losses, batch, fakes, self.step)
        self.monitor.note("generator", self.generator.update(losses, self.step))
        return batch, fakes

    def discriminate(self, shared: bool, dealt: Dealt | None = None) -> Dealt:
        """One discriminator update; shared fakes keep their graph for the generator's turn."""
        update = self.discriminator_updates
        distributed.seed(self.seed, "discriminator", update, self.device)
        batch, fakes = dealt or self._deal(shared)
        losses = partial(self.recipe.discriminator_losses, batch, detached(fakes), update)
        self.monitor.note("discriminator", self.discriminator.update(losses, update))
        self.discriminator_updates += 1
        return batch, fakes

    def _deal(self, shared: bool) -> Dealt:
        batch, precision = next(self.stream), self.settings.autocast(self.device)
        with explained("generator", self.step), torch.set_grad_enabled(shared), precision:
            return batch, self.recipe.generate(batch)

    def train(self) -> bool:
        """Train to the last step; False if a signal asked to stop, after a checkpoint."""
        self.monitor.start(self.counts(), self.config)
        try:
            with Stop() as stop, strict_gradients():
                self._run(stop)
            if stop and self.step < self.settings.steps:
                at = f"the same command goes on at step {self.step}"
                self.monitor.log.say(f"stopped by {stop.name}; {at}")
            else:
                self.monitor.finish(self.counts(), self.generators(), self.config)
        finally:
            self.stream.close()
            self.monitor.log.close()
        return not stop or self.step == self.settings.steps

    def _run(self, stop: Stop) -> None:
        if self.discriminator_updates == 0:
            self.monitor.sample(self.counts(), self.recipe, self.generators())
        saved = self.counts()
        while self.step < self.settings.steps and not stop:
            if self.discriminator_updates < self.settings.discriminator_warmup:
                self.discriminate(shared=False)
                continue
            self.play()
            if self._due(self.settings.log_every):
                self.monitor.scalars(self.counts(), self.players)
            if self._due(self.settings.sample_every):
                self.monitor.sample(self.counts(), self.recipe, self.generators())
            if self._due(self.settings.measure_every):
                self.monitor.measure(self.counts(), self.generators())
            if self._due(self.settings.save_every):
                saved = self.save()
        if saved != self.counts():
            self.save()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def counts(self) -> dict[str, int]:
        """Both clocks and the images seen."""
        updates = self.discriminator_updates
        images = updates * self.settings.batch_size
        return {"step": self.step, "images": images, "discriminator_updates": updates}

    def generators(self) -> dict[str, nn.Module]:
        """The raw generator, then the averaged ones; the last is the one to use."""
        averaged = {name: average.refreshed() for name, average in self.averages.items()}
        return {"raw": self.recipe.generator, **averaged}

    def save(self) -> dict[str, int]:
        """Write a checkpoint of all that cannot be recomputed; returns what it stands for."""
        state.save(self, self.monitor.run_dir / "checkpoints")
        return self.counts()

    def resume(self, path: Path) -> None:
        """Continue exactly where a checkpoint was written."""
        stored = state.resume(self, path)
        self.step, self.discriminator_updates = stored["step"], stored["discriminator_updates"]
        self.stream.position = stored["position"]
