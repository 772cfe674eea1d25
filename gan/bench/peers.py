"""Other frameworks, whose own training steps are played beside ours on their own networks.

They are imported where they are installed, and nothing of them is part of this. Both sides play the
same game on the same batch: the peer's networks from the same weights, the peer's loss, one update
of the discriminator, then one of the generator, Adam of the same rates. The rest is each side's
own. The peers make fakes for either turn, let the opponent have gradients (StudioGAN freezes it),
keep maps as they come (NCHW) and are given Adam as their examples have it; ours makes fakes once,
freezes the opponent, has maps channels last and fused Adam. Averages are off, as in the peers'
examples. Logs, images and checkpoints are left out on both sides, not so what a step itself reads
from the device.
"""

import copy
import importlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from packaging.version import parse
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from gan.bench import games
from gan.bench.desk import Desk, repeated
from gan.bench.paired import Goal, Row, failed, skipped
from gan.networks.blocks import Critique
from gan.recipe import Batch
from gan.step.guard import SIDES
from gan.trainer import Trainer

Networks = Mapping[str, Any]  # by side; the generator says how long its `latent` is
Optimizers = Mapping[str, Optimizer]
Values = Mapping[str, Any]  # of a configuration
SAME = 1e-2  # of the size of gradients, within which they are the same
STAND_INS: Mapping[str, Any] = {  # packages that no step uses, and what is found in them
    **dict.fromkeys(("kornia", "matplotlib", "scipy", "seaborn", "skimage", "sklearn", "wandb")),
    "pkg_resources": parse,
}


@dataclass(frozen=True)
class Peer:
    """A framework: how to install it, and the game of ours that it plays too.

    `networks` makes its own for the values of a configuration. `step` is its step with these and
    their optimizers on a batch. Ours should be `goal` times as fast; a prototype's step was
    `recorded` times. `settings` are those of our game that its model does not have.
    """

    install: str
    model: str
    goal: float
    recorded: float | None
    networks: Callable[[Values], Networks]
    step: Callable[[Networks, Optimizers, Batch], Callable[[], Any]]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """Networks, their optimizers, and what plays a step with them."""

    networks: Networks
    optimizers: Optimizers
    play: Callable[[], Any]


def compared(desk: Desk, name: str) -> Row:
    """Our step beside a peer's, whose second instance is the null; both compute in float32."""
    peer, case = PEERS[name], f"peers {name}"
    checked = desk.checked(peer.model, "average=none", "trainer.precision=fp32", *peer.settings)
    try:
        with _standing_in():
            networks = peer.networks(checked.values)
    except ImportError as error:
        known = f"; a prototype's ratio was {peer.recorded}" if peer.recorded else ""
        return skipped("T7", case, f"{error}; {peer.install}{known}")
    game = games.trainer_of(checked, networks=copy.deepcopy(networks))
    given = next(game.stream), checked.values
    theirs, null = (_theirs(peer, copy.deepcopy(networks), *given) for _ in range(2))
    if (apart := difference(_ours(game), theirs)) > SAME:
        said = f"the two play different games: their gradients differ by {apart:.1%}"
        return failed("T7", case, ValueError(said))
    steps = desk.options.steps
    works = desk.plays(game), repeated(theirs.play, steps), repeated(null.play, steps)
    return desk.compare("T7", case, peer.model, Goal(peer.goal, "at least"), *works)


def difference(one: Side, other: Side) -> float:
    """How far two sides' gradients are apart in a first step, relative to their size.

    Both start from the same weights, on the same latents and labels. Adam's first moments tell: the
    weights of a step later have moved by the rate where gradients are rounding errors, too.
    """
    moments: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    for played in (one, other):
        with _drawn(played.networks):
            played.play()
        for side in SIDES:
            state = played.optimizers[side].state
            weights = played.networks[side].parameters()
            firsts = [state[w].get("exp_avg", torch.zeros_like(w)) for w in weights]
            moments[side].append(torch.cat([first.flatten() for first in firsts]))
    return max((torch.dist(a, b) / b.norm()).item() for a, b in moments.values())


@contextmanager
def _drawn(networks: Networks) -> Iterator[None]:
    """Whatever is drawn, the generator's first layer sees the same numbers, and what is given as
    integers are the same labels.
    """

    def latents(layer: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return torch.randn(given[0].shape, generator=torch.Generator().manual_seed(0))

    def labels(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x if x.is_floating_point() else torch.arange(len(x)) % 2 for x in given)

    modules = [module for side in SIDES for module in networks[side].modules()]
    first = next(module for module in modules if not list(module.children()))
    handles = [module.register_forward_pre_hook(labels) for module in modules]
    handles.append(first.register_forward_pre_hook(latents))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ours(game: Trainer) -> Side:
    networks = {side: game.recipe.get_submodule(side) for side in SIDES}
    return Side(networks, {player.name: player.optimizer for player in game.players}, game.play)


def _theirs(peer: Peer, networks: Networks, batch: Batch, values: Values) -> Side:
    optimizers = {}
    for side in SIDES:
        rates = {key: values["optimizer"][side][key] for key in ("lr", "betas", "eps")}
        optimizers[side] = Adam(networks[side].parameters(), **rates)
    packed = {key: value.contiguous() for key, value in batch.items()}
    with _standing_in():
        return Side(networks, optimizers, peer.step(networks, optimizers, packed))


class _StandIn(ModuleType):
    """A package, or a module of it, in which every name means the same."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return STAND_INS[self.__name__.partition(".")[0]]


class _Absent(MetaPathFinder, Loader):
    """Finds stand-ins for packages that nobody else has found."""

    def find_spec(self, name: str, *where: Any) -> ModuleSpec | None:
        known = name.partition(".")[0] in STAND_INS
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@contextmanager
def _standing_in() -> Iterator[None]:
    """What a peer imports to measure, to draw and to report may be absent."""
    finder = _Absent()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


def _mimicry_networks(values: Values) -> Networks:
    """SNGAN's."""
    spec = find_spec("torch_mimicry")
    if spec and "torch_mimicry" not in sys.modules:
        sys.modules["torch_mimicry"] = module_from_spec(spec)  # its start wants TensorFlow
    nets, size = importlib.import_module("torch_mimicry.nets.sngan"), values["image"]["size"]
    generator = getattr(nets, f"SNGANGenerator{size}")(ngf=values["generator"]["width"])
    judge = getattr(nets, f"SNGANDiscriminator{size}")(ndf=values["discriminator"]["width"])
    generator.latent = generator.nz
    return {"generator": generator, "discriminator": judge}


def _mimicry_step(networks: Networks, optimizers: Optimizers, batch: Batch) -> Callable[[], Any]:
    """What its `Trainer` calls for one update of each."""
    logs = importlib.import_module("torch_mimicry.training.metric_log")
    generator, judge = (networks[side] for side in SIDES)
    real = batch["real"]

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


def _torchgan_step(networks: Networks, optimizers: Optimizers, batch: Batch) -> Callable[[], Any]:
    """Its trainer's `train_iter`."""
    trainer, losses = (importlib.import_module(f"torchgan.{m}") for m in ("trainer", "losses"))
    models, real = {}, batch["real"]
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


class _Critic(nn.Module):
    """StudioGAN's discriminator, asked as ours is; it says more than a logit."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def critique(self, image: Tensor, label: Tensor) -> Critique:
        return Critique(self.judge(image, label)["adv_output"], None)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        return self.critique(image, label).logits


def _studiogan_settings() -> Any:
    """Those of its SNGAN for CIFAR-10, with one update of each and as many classes as our batches.

    Raises: ImportError where the modules on the path are not its own.
    """
    spec = find_spec("config")
    chosen = Path(spec.origin or "" if spec else "").parent / "configs/CIFAR10/SNGAN.yaml"
    if not chosen.is_file():
        raise ModuleNotFoundError("No StudioGAN on the path")
    settings = importlib.import_module("config").Configurations(chosen)
    settings.update_cfgs({"num_classes": games.STYLES}, super="DATA")
    settings.update_cfgs({"d_updates_per_step": 1}, super="OPTIMIZATION")
    off = "batch_statistics distributed_data_parallel empty_cache mixed_precision synchronized_bn"
    settings.update_cfgs({**dict.fromkeys(off.split(), False), "freezeD": -1}, super="RUN")
    return settings


def _studiogan_networks(values: Values) -> Networks:
    """Those of its SNGAN, which knows labels, at our size and widths."""
    settings = _studiogan_settings()
    settings.update_cfgs({"img_size": values["image"]["size"]}, super="DATA")
    widths = {"g": values["generator"]["width"] // 4, "d": values["discriminator"]["width"] // 2}
    settings.update_cfgs({f"{side}_conv_dim": width for side, width in widths.items()}, "MODEL")
    sections = ("DATA", "OPTIMIZATION", "MODEL", "STYLEGAN", "MODULES", "RUN")
    given = {section: getattr(settings, section) for section in sections}
    load = importlib.import_module("models.model").load_generator_discriminator
    generator, _, _, judge, *_ = load(**given, device="cpu", logger=None)
    generator.latent = generator.z_dim
    return {"generator": generator, "discriminator": _Critic(judge)}


def _studiogan_step(networks: Networks, optimizers: Optimizers, batch: Batch) -> Callable[[], Any]:
    """What its loop calls for the updates of each, in a process that is not the one to report."""
    settings, workers = _studiogan_settings(), importlib.import_module("worker")
    generator, judge = (optimizers[side] for side in SIDES)
    adapted = {"batch_size": len(batch["real"]), "g_optimizer": generator, "d_optimizer": judge}
    settings.update_cfgs(adapted, super="OPTIMIZATION")
    parts = {
        "cfgs": settings,
        "Gen": networks["generator"],
        "Dis": networks["discriminator"].judge,
        "train_dataloader": repeat((batch["real"], batch["label"])),
        "local_rank": batch["real"].device,
        "global_rank": 1,
    }
    unused = dict.fromkeys(inspect.signature(workers.WORKER).parameters)
    worker = workers.WORKER(**{**unused, **parts})
    worker.prepare_train_iter(epoch_counter=0)

    def step() -> None:
        worker.train_discriminator(current_step=0)
        worker.train_generator(current_step=0)

    return step


def _pip(package: str) -> str:
    return f"pip install --no-deps --target DIR {package}, then PYTHONPATH=DIR"


PEERS: Mapping[str, Peer] = {
    "mimicry": Peer(_pip("torch-mimicry"), "sngan", 1.05, 1.08, _mimicry_networks, _mimicry_step),
    "torchgan": Peer(_pip("torchgan"), "dcgan", 1.10, 1.14, _torchgan_networks, _torchgan_step),
    "studiogan": Peer(
        "git clone https://github.com/POSTECH-CVLab/PyTorch-StudioGAN DIR, then PYTHONPATH=DIR/src",
        "sngan",
        1.0,
        None,
        _studiogan_networks,
        _studiogan_step,
        (
            "recipe=conditional",
            *(f"optimizer.{side}={{betas:[0.5,0.999],eps:1e-6}}" for side in SIDES),
        ),
    ),
}
