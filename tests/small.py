"""The smallest game with every kind of state, quick enough to be broken and resumed often."""

import random
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # noqa: F401 - slow; optimizers import it, and so would every forked child
import torch.utils.tensorboard  # noqa: F401 - likewise
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gan.average import Ema
from gan.config.settings import UNCLIPPED, Settings
from gan.player import Player
from gan.recipes.synthesis import Synthesis
from gan.registry import create
from gan.run.monitor import Monitor
from gan.step.pieces import trainer_for

CENTRES = torch.stack(
    [torch.arange(8).mul(torch.pi / 4).cos(), torch.arange(8).mul(torch.pi / 4).sin()], 1
)


def ring(count, generator, modes=8):
    """Points around centres on a circle, as images [N, 2, 1, 1]."""
    chosen = torch.randint(modes, (count,), generator=generator)
    return (CENTRES[chosen] + 0.05 * torch.randn(count, 2, generator=generator))[:, :, None, None]


class Numbers:
    """Batches that are a function of their position; `alter(batch, position)` may spoil one."""

    content = "numbers"

    def __init__(self, batch_size=8, seed=0, alter=None):
        self.position, self.waited, self.batch_size = 0, 0.0, batch_size
        self.seed, self.alter, self.closed = seed, alter or (lambda batch, position: batch), False

    def __next__(self):
        generator = torch.Generator().manual_seed(10_000 * self.seed + self.position)
        self.position += 1
        batch = {"real": ring(self.batch_size, generator)}
        return self.alter(batch, self.position - 1)

    def again(self):
        """The last batch once more."""
        self.position -= 1
        return next(self)

    def close(self):
        """Nothing reads ahead."""
        self.closed = True


class Pooled(Synthesis):
    """Noise to points, with state of its own: a pool of fakes and a running mean."""

    def __init__(self, **parts):
        super().__init__(**parts)
        self.register_buffer("pool", torch.zeros(4, 2, 1, 1))
        self.register_buffer("mean", torch.zeros(()))

    def discriminator_losses(self, batch, fakes, update):
        mixed = torch.cat([fakes["image"][:-4], self.pool])
        self.pool.copy_(fakes["image"][:4])
        self.mean.lerp_(batch["real"].mean(), 0.1)
        terms = super().discriminator_losses(batch, {"image": mixed}, update)
        loud = 1 + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002 - as users draw
        return {**terms, "adversarial": terms["adversarial"] * loud}

    def generator_losses(self, batch, fakes, step):
        terms = super().generator_losses(batch, fakes, step)
        return {**terms, "mean": 0.1 * (fakes["image"].mean() - self.mean).square()}


class Generator(nn.Sequential):
    """Noise [B, 2] to points [B, 2, 1, 1], with running statistics and dropout."""

    latent = 2

    def __init__(self):
        layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
        super().__init__(*layers, nn.Unflatten(1, (2, 1, 1)))


class Discriminator(nn.Sequential):
    """Points to logits [B], with power iterations."""

    def __init__(self):
        layers = spectral_norm(nn.Linear(2, 8)), nn.Softplus(), nn.Linear(8, 1)
        super().__init__(nn.Flatten(), *layers, nn.Flatten(0))


def trainer(
    run_dir,
    stream=None,
    *,
    seed=0,
    optimizer="adam",
    rates=(1e-2, 1e-2),
    clip=UNCLIPPED,
    adversarial="nonsaturating",
    recipe=Pooled,
    networks=(Generator, Discriminator),
    monitor=None,
    run_id="run",
    **settings,
):
    """A trainer of the ring, with a lazy penalty, schedules and an average."""
    torch.manual_seed(seed)
    game = recipe(
        generator=networks[0](),
        discriminator=networks[1](),
        adversarial=create("adversarial", adversarial),
        penalties={"r1": create("penalty", "r1", weight=0.1, every=3)},
    )
    sides = game.generator, game.discriminator
    players = [
        Player(
            name,
            mine,
            other,
            create("optimizer", optimizer, parameters=mine.parameters(), lr=rate),
            create("schedule", "cosine", length=200),
            clip,
            game.statistics,
        )
        for name, mine, other, rate in zip(
            ("generator", "discriminator"), sides, sides[::-1], rates, strict=True
        )
    ]
    defaults = {"steps": 6, "batch_size": 8, "log_every": 2, "sample_every": 100, "save_every": 2}
    exact = {"device": "cpu", "precision": "fp32"}  # as the players, which are built by hand
    chosen = Settings(**{**defaults, **exact, **settings})
    watching = monitor or Monitor(
        Path(run_dir), chosen.steps, warmup=chosen.discriminator_warmup, watch=chosen.watch
    )
    averages = {"ema": Ema(game.generator, halflife=300.0, rampup=0.5)}
    stream = stream or Numbers(seed=seed)
    kind = trainer_for(chosen, torch.device("cpu"), print, False)
    return kind(game, *players, stream, averages, chosen, watching, seed, "", run_id)


def everything(run):
    """All that training has changed, as copies."""
    from gan.run import state

    networks, optimizers, rest = state.gather(run.recipe, run.averages, run.players)
    tensors = {name: tensor.clone() for name, tensor in {**networks, **optimizers}.items()}
    plain = {**rest, **run.counts(), "position": run.stream.position, "skipped": run.guard.skipped}
    return tensors, plain


def differing(first, second):
    """Names of what differs between two of `everything`."""
    tensors = {
        name
        for name in first[0].keys() | second[0].keys()
        if name not in first[0]
        or name not in second[0]
        or not torch.equal(first[0][name], second[0][name])
    }
    return tensors | {key for key in first[1] if first[1][key] != second[1][key]}


def newest(run_dir):
    """The newest checkpoint that loads; that a damaged one is met is a failure."""
    import pytest

    from gan import checkpoint

    return checkpoint.newest(Path(run_dir) / "checkpoints", notice=pytest.fail)


def resumed(run_dir, stream=None, **options):
    """A new trainer that goes on where the newest checkpoint was written."""
    run = trainer(run_dir, stream, **options)
    run.resume(newest(run_dir))
    return run
