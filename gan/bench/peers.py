"""Other frameworks, whose own training steps are played beside ours on their own networks.

They are imported where they are installed, and nothing of them is part of this. Both sides play the
same game on the same batch: the peer's networks from the same weights, the peer's loss, one update
of the discriminator, then one of the generator, Adam of the same rates. The rest is each side's
own. The peers make fakes for either turn, let the opponent have gradients, keep maps as they come
(NCHW) and are given Adam as their examples have it; ours makes fakes once, freezes the opponent,
has maps channels last and fused Adam. Averages are off, which the peers do not have. Logs, images
and checkpoints are left out on both sides, not so what a step itself reads from the device.
"""

import copy
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from gan.bench import games
from gan.bench.desk import Desk, repeated
from gan.bench.paired import Goal, Row, failed, skipped
from gan.config.rehearsal import SIDES
from gan.trainer import Trainer

Networks = Mapping[str, Any]  # by side; the generator says how long its `latent` is
Optimizers = Mapping[str, Optimizer]
Values = Mapping[str, Any]  # of a configuration
SAME = 1e-2  # of the size of gradients, within which they are the same


@dataclass(frozen=True)
class Peer:
    """A framework: the package to install, and the game of ours that it plays too.

    `networks` makes its own for the values of a configuration. `step` is its step with these and
    their optimizers on a batch of reals. Ours should be `goal` times as fast; a prototype's step
    was `recorded` times.
    """

    package: str
    model: str
    goal: float
    recorded: float
    networks: Callable[[Values], Networks]
    step: Callable[[Networks, Optimizers, Tensor], Callable[[], Any]]


@dataclass(frozen=True)
class Side:
    """Networks, their optimizers, and what plays a step with them."""

    networks: Networks
    optimizers: Optimizers
    play: Callable[[], Any]


def compared(desk: Desk, name: str) -> Row:
    """Our step beside a peer's, whose second instance is the null."""
    peer, case = PEERS[name], f"peers {name}"
    checked = desk.checked(peer.model, "average=none")
    try:
        networks = peer.networks(checked.values)
    except ImportError as error:
        hint = f"pip install --no-deps --target DIR {peer.package}, then PYTHONPATH=DIR"
        return skipped("T7", case, f"{error}; {hint}; a prototype's ratio was {peer.recorded}")
    game = games.trainer_of(checked, networks=copy.deepcopy(networks))
    given = next(game.stream)["real"], checked.values
    theirs, null = (_theirs(peer, copy.deepcopy(networks), *given) for _ in range(2))
    if (apart := difference(_ours(game), theirs)) > SAME:
        said = f"the two play different games: their gradients differ by {apart:.1%}"
        return failed("T7", case, ValueError(said))
    steps = desk.options.steps
    works = desk.plays(game), repeated(theirs.play, steps), repeated(null.play, steps)
    return desk.compare("T7", case, peer.model, Goal(peer.goal, "at least"), *works)


def difference(one: Side, other: Side) -> float:
    """How far two sides' gradients are apart in a first step, relative to their size.

    Both start from the same weights, on the same latents. Adam's first moments tell: the weights of
    a step later have moved by the rate where gradients are rounding errors, too.
    """
    moments: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    for played in (one, other):
        with _latents(played.networks["generator"]):
            played.play()
        for side in SIDES:
            state = played.optimizers[side].state
            weights = played.networks[side].parameters()
            moments[side].append(torch.cat([state[w]["exp_avg"].flatten() for w in weights]))
    return max((torch.dist(a, b) / b.norm()).item() for a, b in moments.values())


@contextmanager
def _latents(generator: nn.Module) -> Iterator[None]:
    """Whatever a generator is given, its first layer sees the same numbers."""

    def replaced(layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return torch.randn(given[0].shape, generator=torch.Generator().manual_seed(0))

    first = next(module for module in generator.modules() if not list(module.children()))
    handle = first.register_forward_pre_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def _ours(game: Trainer) -> Side:
    networks = {side: game.recipe.get_submodule(side) for side in SIDES}
    return Side(networks, {player.name: player.optimizer for player in game.players}, game.play)


def _theirs(peer: Peer, networks: Networks, real: Tensor, values: Values) -> Side:
    optimizers = {}
    for side in SIDES:
        rates = {key: values["optimizer"][side][key] for key in ("lr", "betas")}
        optimizers[side] = Adam(networks[side].parameters(), **rates)
    return Side(networks, optimizers, peer.step(networks, optimizers, real.contiguous()))


def _mimicry_networks(values: Values) -> Networks:
    """SNGAN's. What the package imports to measure and to read files is passed over."""
    spec = find_spec("torch_mimicry")
    if spec and "torch_mimicry" not in sys.modules:
        sys.modules["torch_mimicry"] = module_from_spec(spec)  # its start wants TensorFlow
    if "skimage" not in sys.modules and not find_spec("skimage"):
        sys.modules["skimage"] = reader = ModuleType("skimage")
        reader.__dict__["io"] = None
    nets, size = importlib.import_module("torch_mimicry.nets.sngan"), values["image"]["size"]
    generator = getattr(nets, f"SNGANGenerator{size}")(ngf=values["generator"]["width"])
    judge = getattr(nets, f"SNGANDiscriminator{size}")(ndf=values["discriminator"]["width"])
    generator.latent = generator.nz
    return {"generator": generator, "discriminator": judge}


def _mimicry_step(networks: Networks, optimizers: Optimizers, real: Tensor) -> Callable[[], Any]:
    """What its `Trainer` calls for one update of each."""
    logs = importlib.import_module("torch_mimicry.training.metric_log")
    generator, judge = (networks[side] for side in SIDES)

    def step() -> None:
        log, given = logs.MetricLog(), {"real_batch": (real, None), "device": real.device}
        log = judge.train_step(
            netG=generator, optD=optimizers["discriminator"], log_data=log, **given
        )
        generator.train_step(netD=judge, optG=optimizers["generator"], log_data=log, **given)

    return step


def _torchgan_networks(values: Values) -> Networks:
    """DCGAN's."""
    for writer in ("TENSORBOARD_LOGGING", "VISDOM_LOGGING"):
        os.environ.setdefault(writer, "0")  # it logs wherever it finds them
    models = importlib.import_module("torchgan.models")
    size, channels = values["image"]["size"], values["image"]["channels"]
    width = {side: values[side]["width"] for side in SIDES}
    generator = models.DCGANGenerator(
        out_size=size, out_channels=channels, step_channels=width["generator"]
    )
    judge = models.DCGANDiscriminator(
        in_size=size, in_channels=channels, step_channels=width["discriminator"]
    )
    generator.latent = generator.encoding_dims
    return {"generator": generator, "discriminator": judge}


def _torchgan_step(networks: Networks, optimizers: Optimizers, real: Tensor) -> Callable[[], Any]:
    """Its trainer's `train_iter`."""
    trainer, losses = (importlib.import_module(f"torchgan.{m}") for m in ("trainer", "losses"))
    models = {}
    for side in SIDES:
        given = {"name": lambda *_, optimizer=optimizers[side]: optimizer}
        models[side] = {"name": lambda network=networks[side]: network, "optimizer": given}
    with tempfile.TemporaryDirectory() as folder:  # it makes two, and writes nothing in a step
        played = trainer.Trainer(
            models,
            [losses.MinimaxDiscriminatorLoss(), losses.MinimaxGeneratorLoss()],
            device=real.device,
            checkpoints=f"{folder}/model",
            recon=folder,
        )
    played.real_inputs, played.batch_size = real, len(real)
    return played.train_iter


PEERS: Mapping[str, Peer] = {
    "mimicry": Peer("torch-mimicry", "sngan", 1.05, 1.08, _mimicry_networks, _mimicry_step),
    "torchgan": Peer("torchgan", "dcgan", 1.10, 1.14, _torchgan_networks, _torchgan_step),
}
