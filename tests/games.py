"""Every game at its smallest, in float64 and without batch statistics, to be split and compared."""

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from gan import distributed
from gan.average import Ema
from gan.config.settings import Settings
from gan.player import Player
from gan.registry import create, entry, names
from gan.run.monitor import Monitor
from gan.step import pieces

import_module("torch._dynamo")  # optimizers do; slow, and once for all that fork from here

SIZE, CLASSES, TOTAL = 16, 3, 8
BOTH = {"size": SIZE, "channels": 1, "width": 2}
NETWORKS = {
    "synthesis": (
        ("dcgan", {"latent": 4, "norm": "group"}),
        ("dcgan", {"norm": "layer"}),
        {"classes": 0},
    ),
    "conditional": (
        ("dcgan", {"latent": 4, "norm": "adain"}),
        ("dcgan", {"norm": "none", "condition": "both"}),
        {"classes": CLASSES},
    ),
    "wnet": (("wnet", {"dropout": 0.0}), ("wnet", {}), {"styles": CLASSES, "characters": CLASSES}),
    "pix2pix": (
        ("unet", {"norm": "instance", "dropout": 0.0}),
        ("patch", {"norm": "instance", "layers": 1}),
        {"images": 2},
    ),
    "cyclegan": (
        ("translators", {"blocks": 1}),
        ("patches", {"norm": "instance", "layers": 1}),
        {},
    ),
}
SETTINGS = {
    "wnet": {
        "feature_source": "discriminator",
        **dict.fromkeys(("restyle", "mix", "hollow", "splice", "bend", "turn"), 0.5),
    },
    "cyclegan": {"pool": 0, "size": SIZE, "channels": 1},
    "pix2pix": {"size": SIZE, "channels": 1},
}
OFTEN = {"ada": {"start": 0.5, "every": 1, "images": 100}}
CHANCE = {"bce": {"real": (0.7, 1.0), "fake": (0.0, 0.3), "flip": 0.2}}
SCHEDULES = {
    "plain": {},
    "lazy": {"every": 2},
    "critic": {"n_critic": 2},
    "generator first": {"order": "generator", "n_critic": 2},
    "warm-up": {"discriminator_warmup": 1},
    "frozen": {"asleep": True},
}


class Batches:
    """This process's share of random batches, which are a function of their position."""

    content, waited = "random", 0.0

    def __init__(self, reads):
        self.reads, self.position = reads, 0

    def __next__(self):
        generator = torch.Generator().manual_seed(self.position)
        self.position += 1
        share = TOTAL // distributed.size()
        rows = slice(share * distributed.rank(), share * (distributed.rank() + 1))
        return {key: self._drawn(key, generator)[rows] for key in self.reads}

    def _drawn(self, key, generator):
        if key in ("label", "style", "character"):
            return torch.randint(CLASSES, (TOTAL,), generator=generator)
        several = {"reference": 2, "mate": 2, "other": 4}
        lead = (TOTAL, several[key]) if key in several else (TOTAL,)
        return torch.rand(*lead, 1, SIZE, SIZE, generator=generator) * 2 - 1

    def close(self):
        """Nothing reads ahead."""


@contextmanager
def doubles():
    """Everything is float64 inside, also what asks for fp32."""
    single, before = torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else x.double()
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(before)


def game(kind, loss, penalty=None, every=1, norms=None):
    """A recipe of this kind with tiny networks; `norms` replaces those of both."""
    adversarial = create("adversarial", loss, **CHANCE.get(loss, {}))
    penalties = {}
    if penalty:
        parts = {"adversarial": adversarial}
        given = {key: parts[key] for key in entry("penalty", penalty).given}
        penalties = {penalty: create("penalty", penalty, every=every, **given)}
    *sides, facts = NETWORKS[kind]
    made = [
        create(
            side,
            name,
            **BOTH,
            **{**settings, **({"norm": norms} if norms else {})},
            **{key: facts[key] for key in entry(side, name).given if key in facts},
        )
        for side, (name, settings) in zip(("generator", "discriminator"), sides, strict=True)
    ]
    given = {
        "generator": made[0],
        "discriminator": made[1],
        "adversarial": adversarial,
        "penalties": penalties,
        "classification": create("classification", "cross_entropy"),
        "reconstruction": {},
        "classifier": None,
        "classes": CLASSES,
        "augment": {n: create("augment", n, **OFTEN.get(n, {})) for n in names("augment")},
    }
    chosen = entry("recipe", kind)
    recipe = chosen.build(**{k: given[k] for k in chosen.given}, **SETTINGS.get(kind, {}))
    for norm in (m for m in recipe.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.eval()  # W-Net has no other norm
    return recipe


def started(
    kind,
    loss,
    penalty,
    every=1,
    asleep=False,
    micro=None,
    norms=None,
    folder="unused",
    graphed=None,
    **settings,
):
    """A trainer of the game; `graphed` may give its kind, and it then averages as well."""
    torch.manual_seed(0)
    recipe = game(kind, loss, penalty, every, norms)
    sides = recipe.generator, recipe.discriminator
    late = [(1, list(side.parameters())[:1]) for side in sides] if asleep else [None, None]
    if asleep:  # and others for good
        for side in sides:
            list(side.parameters())[2].requires_grad = False
    players = [
        Player(
            name,
            mine,
            other,
            torch.optim.SGD(mine.parameters(), lr=1e-2),
            create("schedule", "constant"),
            statistics=recipe.statistics,
            asleep=[sleeping] if sleeping else [],
        )
        for name, mine, other, sleeping in zip(
            ("generator", "discriminator"), sides, sides[::-1], late, strict=True
        )
    ]
    chosen = Settings(
        batch_size=TOTAL, micro_batch=micro, device="cpu", precision="fp32", **settings
    )
    kind = graphed or pieces.trainer_for(chosen, torch.device("cpu"), print, True)
    averages = {"ema": Ema(recipe.generator, halflife=30.0)} if graphed else {}
    monitor = Monitor(Path(folder), 10)
    made = ("mate", "other") if getattr(recipe, "restyle", 0) else ()
    stream = Batches((*recipe.reads, *made))
    return kind(recipe, *players, stream, averages, chosen, monitor, seed=1)


def gradients(case, micro=None, steps=2, **options):
    """Gradients of every update of a case, by player and parameter, and the terms' values."""
    kind, loss, penalty, schedule = case
    with doubles():
        run = started(kind, loss, penalty, micro=micro, **SCHEDULES[schedule], **options)
        found = []
        for player in run.players:
            player.optimizer.register_step_pre_hook(
                lambda *_, player=player: found.append(
                    {
                        f"{player.name}/{name}": None if p.grad is None else p.grad.clone()
                        for name, p in player.module.named_parameters()
                    }
                )
            )
        while run.step < steps:
            if run.discriminator_updates < run.settings.discriminator_warmup:
                run.discriminate(shared=False)
            else:
                run.play()
        terms = {k: [float(t) for t in v] for k, v in run.monitor.pending().items()}
    return found, terms


def error(found, expected):
    """The largest deviation of any gradient, relative to the largest gradient of its update."""
    assert len(found) == len(expected)
    worst = 0.0
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        scale = max(g.abs().max().item() for g in other.values() if g is not None)
        for name, gradient in other.items():
            assert (mine[name] is None) == (gradient is None), name
            if gradient is not None:
                worst = max(worst, (mine[name] - gradient).abs().max().item() / scale)
    return worst


LOSSES = [name for name in names("adversarial") if name != "ragan"]  # its means span the batch
PENALTIES = [None, *names("penalty")]
__all__ = ["LOSSES", "PENALTIES", "SCHEDULES", "error", "gradients", "started"]
