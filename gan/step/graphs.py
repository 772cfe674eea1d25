"""CUDA graphs: turns are recorded once and replayed, where starting operations takes longest.

A turn is recorded in two halves, up to the gradients and from the optimizer's step on, with the
guard's decision between them. Every kind of turn is one recording: with and without a penalty that
is due, with fakes for one player or for both, with parts still frozen. Those that make fakes are
played a few times before.
A replay draws the numbers that the turn would have drawn. What a recipe decides in Python is
decided once, at the recording; one whose losses compute with the update's number stays eager.
"""

import random
from collections import Counter
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor

from gan.player import Losses, Player
from gan.recipe import Batch, due
from gan.step.guard import DivergedError, NonFiniteError
from gan.step.turns import Dealt
from gan.trainer import Trainer

WARM = 3  # turns of a kind that are played before one is recorded

Work = Callable[[], None]
Recorder = Callable[[Work], Work]
Kind = tuple[object, ...]


class Cuda:
    """Records what a piece of work does on the device, as a graph that can be replayed."""

    def __init__(self, device: torch.device) -> None:
        """All graphs share one pool of memory, as turns never overlap."""
        self.pool = torch.cuda.graph_pool_handle()
        self.generator = torch.cuda.default_generators[device.index or 0]
        self.stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        """Raises: RuntimeError where a part of the work cannot be recorded."""
        graph, before = torch.cuda.CUDAGraph(), _host_randomness()
        try:
            with torch.cuda.graph(
                graph,
                self.pool,
                self.stream,
                capture_error_mode="thread_local",  # the stream of data goes on
            ):
                work()
        except BaseException:  # torch leaves the generator waiting for the recording's end
            self.generator.graphsafe_set_state(self.generator.clone_state())
            raise
        if _host_randomness() != before:
            raise RuntimeError("random numbers are drawn on the host: draw with gan.draws")
        return graph.replay


class GraphedTrainer(Trainer):
    """Plays recorded turns; one that cannot be recorded stays eager, and the log says why."""

    def __init__(self, *args: Any, recorder: Recorder | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recorder = Cuda(self.device) if recorder is None else recorder
        self._turns: dict[Kind, Turn] = {}
        self._played: Counter[Kind] = Counter()
        self._now: Turn | None = None
        for player in self.players:
            make_recordable(player.optimizer, self.device)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, and record anew: what optimizers keep lies elsewhere then."""
        super().resume(path)
        self._turns.clear()
        self._played.clear()

    def _turn(self, player: Player, count: int, dealt: Dealt | None, shared: bool) -> Dealt:
        player.prepare(count)
        self._now = self._find(player, count, dealt, shared)
        try:
            return super()._turn(player, count, dealt, shared)
        except DivergedError as error:  # what is looked into is the batch that was played
            error.batch = self._now.dealing.batch if self._now else error.batch
            raise

    def _batch(self) -> Batch:
        return self._now.deal(next(self.stream)) if self._now else super()._batch()

    def _fakes(self, batch: Batch, shared: bool) -> dict[str, Tensor]:
        return self._now.fakes if self._now else super()._fakes(batch, shared)

    def _redrawn(self, dealt: Dealt) -> object:
        prepared = self._now.dealing.batch if self._now else dealt[0]
        return super()._redrawn((prepared, dealt[1]))

    def _update(self, player: Player, dealt: Dealt, count: int) -> Losses:
        if self._now is None:
            return super()._update(player, dealt, count)
        if self._now.dealer is not None and self._now.dealer.eager:
            self._now.eager = True
        if not (self._now.recorded or self._now.eager):
            self._record(self._now, count)
        return self._now.play(count)

    def _record(self, turn: "Turn", count: int) -> None:
        try:
            turn.record(self.recorder, count)
        except Exception as error:  # a mistake in the recipe is met again, and told, without graphs
            for other in self._turns.values():
                other.eager |= turn.dealing in (other, other.dealer)
            if turn.dealer is not None:
                turn.dealing.make_fakes()  # the graph of those that there are may be used up
            reason = str(error).partition("\n")[0]
            self.monitor.tell("graphs", f"the {turn.player.name}'s turn stays eager: {reason}")

    def _find(self, player: Player, count: int, dealt: Dealt | None, shared: bool) -> "Turn | None":
        """The recorded turn of this kind, one to be recorded now, or none yet."""
        dealer = None
        if dealt is not None:
            dealers = (turn for turn in self._turns.values() if turn.fakes is dealt[1])
            dealer = next((turn.dealing for turn in dealers), None)
            if dealer is None:
                return None
        awake = [p[0].requires_grad for side in self.players for _, p in side.asleep]
        penalties = getattr(self.recipe, "penalties", {})
        paid = due(penalties, count) if player is self.discriminator else []
        kind = (player.name, shared, dealer and dealer.kind, *awake, *paid)
        if kind in self._turns:
            return self._turns[kind]
        self._played[kind] += 1
        if dealer is None and self._played[kind] <= WARM:
            return None
        return self._turns.setdefault(kind, Turn(kind, self, player, dealer, shared))


class Turn:
    """One player's turn of a kind: what goes in, what comes out, and the halves between them.

    Attributes:
        fakes: by name, what the generator made of the batch; empty until the turn is recorded.
        dealing: the turn whose batch and fakes these are: its dealer, or itself.
        eager: whether it is played without a recording.
    """

    def __init__(
        self, kind: Kind, trainer: Trainer, player: Player, dealer: "Turn | None", shared: bool
    ) -> None:
        """`dealer` is the turn that made the fakes, if that is another one."""
        self.kind, self.trainer, self.player, self.shared = kind, trainer, player, shared
        self.dealer, self.dealing = dealer, dealer or self
        self.recorded = self.eager = False
        self.number: Any = 0
        self.raw: dict[str, Tensor] = {}
        self.batch: Batch = {}
        self.fakes: dict[str, Tensor] = {} if dealer is None else dealer.fakes

    def deal(self, raw: Batch) -> Batch:
        """Copy a batch to where the recorded turn reads it."""
        if not self.raw:
            self.raw = {key: torch.empty_like(tensor) for key, tensor in raw.items()}
        for key, tensor in raw.items():
            self.raw[key].copy_(tensor)
        return self.raw

    def make_fakes(self) -> None:
        """What the generator makes of the batch that was dealt."""
        self.batch = self.trainer.recipe.prepare(self.raw)
        self.fakes |= Trainer._fakes(self.trainer, self.batch, self.shared)

    def record(self, recorder: Recorder, count: int) -> None:
        """Raises: RuntimeError and others where that cannot be done."""
        self.number, guard = Number(count, self.trainer.device), self.trainer.guard
        before = [buffer.data_ptr() for buffer in guard.buffers()]
        self._halves = recorder(self._differentiate), recorder(self._move)
        if before != [buffer.data_ptr() for buffer in guard.buffers()]:
            raise RuntimeError("a module puts another tensor in a buffer's place: use copy_")
        self.gradients = [parameter.grad for parameter in self.player.parameters]
        self.recorded = True

    def play(self, count: int) -> Losses:
        """The turn on what was dealt last; returns its terms.

        Raises: NonFiniteError between the halves.
        """
        if self.eager:
            self.number, differentiate, move = count, self._differentiate, self._move
        else:
            self.number.move(count)
            differentiate, move = self._halves
        differentiate()
        terms = dict(zip(self.names, self.values.clone().unbind(), strict=True))
        if not isfinite(self.size.item()):
            self._show_gradients()
            raise NonFiniteError(self.player.name, count, terms)
        move()
        return terms

    def _differentiate(self) -> None:
        """The first half: batch, fakes, losses and gradients."""
        if self.dealer is None:
            self.make_fakes()
        dealt = self.dealing.batch, self.fakes
        losses_of = self.trainer._losses(self.player, dealt, self.number)
        terms, self.size = self.player.differentiate(losses_of, self.number)
        self.norm, self.names = terms["gradient_norm"], [*terms]
        self.values = torch.stack([term.float() for term in terms.values()])

    def _move(self) -> None:
        """The second half: clipping and the optimizer's step."""
        self.player.move(self.norm)

    def _show_gradients(self) -> None:
        """Let the parameters show this turn's gradients: the last one recorded may be another."""
        if not self.eager:
            for parameter, gradient in zip(self.player.parameters, self.gradients, strict=True):
                parameter.grad = gradient


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep on the device what a recorded step reads: counters, and rates that change."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
        group["lr"] = torch.tensor(group["lr"], device=device)


def _host_randomness() -> list[object]:
    legacy = numpy.random.get_state(legacy=False)  # noqa: NPY002 - users' modules draw from it
    own = torch.default_generator.get_state().tolist()
    return [random.getstate(), own, legacy["state"]["pos"], legacy["state"]["key"].tolist()]


class Number:
    """An update's number while a turn is recorded: what is computed from it would be frozen in.

    It can be shown, and handed on to a penalty; `value` is for what is part of a turn's kind.
    """

    def __init__(self, value: int, device: torch.device | None = None) -> None:
        self.value, self._tensor, self._read = value, torch.tensor(value, device=device), False

    @property
    def tensor(self) -> Tensor:
        """The number on the device, where replays read what it is by then."""
        self._read = True
        return self._tensor

    def move(self, value: int) -> None:
        """From now on the number of another update."""
        self.value = value
        if self._read:  # a replay of most turns does not
            self._tensor.fill_(value)

    def __str__(self) -> str:
        return str(self.value)


def _refuse(self: Number, *_: object) -> NoReturn:
    raise TypeError("its losses compute with the number of the update")


_BOTH = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor"
_ALONE = "lt le gt ge eq ne neg pos abs invert bool int float complex index round trunc floor ceil"
for _name in [*_BOTH.split(), *(f"r{name}" for name in _BOTH.split()), *_ALONE.split(), "hash"]:
    setattr(Number, f"__{_name}__", _refuse)
