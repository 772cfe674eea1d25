"""Micro-batches: an update in pieces with one backward each, where a whole batch is too large.

The gradient is that of the whole batch with the same noise. Fakes are made anew for every piece and
for each player's turn, so that the graph of one piece is alive at a time. Batch norm, and losses
that compare samples, see a piece; dropout draws for each.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from gan import distributed
from gan.config.settings import Settings
from gan.draws import Share
from gan.player import Losses, Player
from gan.recipe import Batch, detached
from gan.step.graphs import GraphedTrainer
from gan.step.turns import Dealt
from gan.trainer import Trainer


def trainer_for(
    settings: Settings, device: torch.device, say: Callable[[str], None], ours: bool
) -> type[Trainer]:
    """The trainer that plays a process's share of a batch, whole, in pieces or from recordings.

    By itself it records what comes with gan (that is `ours`) and is not compiled: a user's own part
    may decide in Python what a recording would fix.
    """
    share = settings.batch_size // distributed.size()
    whole = settings.rows(distributed.size()) == share
    recordable = whole and device.type == "cuda" and distributed.size() == 1
    asked, chosen = settings.graphs is True, settings.graphs == "auto"
    if recordable and (asked or (chosen and ours and not settings.compile)):
        return GraphedTrainer
    if recordable and chosen and not settings.compile:
        say("trainer.graphs=auto records no turns with parts of your own; trainer.graphs=true does")
    if asked:
        say("trainer.graphs: only whole batches of one process on CUDA are recorded; none is here")
    return Trainer if whole else PiecewiseTrainer


class PiecewiseTrainer(Trainer):
    """Plays every turn in micro-batches.

    What it deals as fakes is `update`, the discriminator's that has made them, and `shared`; and
    the fakes themselves, as `<piece>/<name>`, where the generator has played first.
    """

    def _fakes(self, batch: Batch, shared: bool) -> dict[str, Tensor]:
        """None yet: they are made piece by piece."""
        return {"update": torch.tensor(self.discriminator_updates), "shared": torch.tensor(shared)}

    def _batch(self) -> Batch:
        """As it came: it is prepared piece by piece."""
        return next(self.stream)

    def _redrawn(self, dealt: Dealt) -> object:
        """What is made of the last piece: all of them at once may be too many."""
        *_, share = self._shares()
        raw = {key: rows[-share.rows :] for key, rows in dealt[0].items()}
        with distributed.seeded(self.seed, self.device, share, "generator", self.step):
            return super()._redrawn((self.recipe.prepare(raw), {}))

    def _losses(self, player: Player, dealt: Dealt, count: int) -> Callable[[], Losses]:
        return partial(self._accumulated, player, dealt, count)

    def _accumulated(self, player: Player, dealt: Dealt, count: int) -> Losses:
        """Terms as means over the pieces, of which all but the last are differentiated."""
        *earlier, last = enumerate(self._shares())
        terms: Losses = {}
        for piece in earlier:
            with unmoved(self.recipe):
                made = self._terms(player, dealt, count, *piece)
                with torch.autocast(self.device.type, enabled=False):
                    torch.autograd.backward(torch.stack(player.trained(made)).sum())
            terms = {name: terms.get(name, 0) + term.detach() for name, term in made.items()}
        again = player is self.discriminator and dealt[1]["shared"]
        with unmoved(self.recipe.generator if again else nn.Identity()):
            made = self._terms(player, dealt, count, *last)
        return {name: terms[name] + term for name, term in made.items()}

    def _shares(self) -> Iterator[Share]:
        """The rows of each piece of this process's share."""
        rows, size = self.settings.rows(distributed.size()), self.settings.batch_size
        share = size // distributed.size()
        begin = distributed.rank() * share
        for first in range(begin, begin + share, rows):
            yield Share(first, rows, size)

    def _terms(self, player: Player, dealt: Dealt, count: int, place: int, share: Share) -> Losses:
        """A player's terms of one piece, as parts of the mean over all."""
        prefix, mine, update = f"{place}/", player is self.generator, int(dealt[1]["update"])
        raw = {key: rows[place * share.rows :][: share.rows] for key, rows in dealt[0].items()}
        fakes = {k.removeprefix(prefix): f for k, f in dealt[1].items() if k.startswith(prefix)}
        here = dealer = player.name, count
        if fakes:
            dealer = "generator", self.step
        elif mine and update < self.discriminator_updates:
            dealer = "discriminator", update
        seeded = partial(distributed.seeded, self.seed, self.device, share)
        with seeded(*dealer):
            batch = self.recipe.prepare(raw)
            fakes = fakes or super()._fakes(batch, shared=mine)
            if dealer == here:
                kept = detached(fakes) if mine else {}  # the discriminator will be dealt them
                dealt[1].update({prefix + name: fake for name, fake in kept.items()})
                return self._part(player, (batch, fakes), count)
        with seeded(*here):
            return self._part(player, (batch, fakes), count)

    def _part(self, player: Player, dealt: Dealt, count: int) -> Losses:
        terms, pieces = super()._losses(player, dealt, count)(), len(list(self._shares()))
        return {name: term / pieces for name, term in terms.items()}


@contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Put power iterations back afterwards: those of all pieces start where a whole batch's do."""
    norms = [m for m in module.modules() if isinstance(m, _SpectralNorm)]
    vectors = [buffer for norm in norms for buffer in norm.buffers()]
    kept = [vector.clone() for vector in vectors]
    yield
    if vectors:
        with torch.no_grad():
            torch._foreach_copy_(vectors, kept)
