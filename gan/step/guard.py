"""Nothing that is not finite reaches a weight, a moment, an average or a running statistic.

A player raises NonFiniteError before its optimizer step, so weights and moments stay as they were.
Forward passes in training mode have moved buffers by then (running means, power iterations, pools
of images); the guard of the turn puts those back. A few such turns are passed over; more stop the
run, since going on with the same settings would meet them again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gan import distributed
from gan.step.buffers import Copies, places

SIDES = ("generator", "discriminator")
FIRST = 2  # steps after which common slips are looked for
IN_A_ROW, IN_ALL, WINDOW = 3, 10, 10_000  # skipped updates of one player that a run survives
LARGEST = 2.0**64  # beyond it fp32 has no square, which optimizers keep
ADVICE = (
    "lower both learning rates (optimizer.generator.lr, optimizer.discriminator.lr)",
    "clip gradients (clip.generator.norm=1, clip.discriminator.norm=1)",
    "train in full precision (trainer.precision=fp32)",
)


class NonFiniteError(FloatingPointError):
    """A player's update that was not taken, because a term or its gradient is NaN or infinite.

    It is made in all processes alike, and says in which of them what has broken.
    """

    def __init__(self, player: str, count: int, terms: Mapping[str, Tensor]) -> None:
        self.player, self.count, self.terms = player, count, terms
        self.values = {name: term.item() for name, term in terms.items()}  # training has paused
        mine = {name: value for name, value in self.values.items() if not abs(value) < LARGEST}
        broken = distributed.gathered(mine)
        values = [value for own in broken for value in own.values()]
        large = values and all(map(isfinite, values))
        what = "is too large, as its square is not finite" if large else "is not finite"
        super().__init__(f"{player}, update {count}: {_by_rank(broken)} {what}")


def _by_rank(broken: Sequence[Collection[str]]) -> str:
    """Terms that have broken: the own ones of each process, and those of all."""
    everywhere = [name for name in broken[0] if all(name in own for own in broken)]
    alone = [[name for name in own if name not in everywhere] for own in broken]
    parts = [f"rank {rank}: {', '.join(own)}" for rank, own in enumerate(alone) if own]
    if everywhere:
        parts.append(f"{'every rank: ' if len(broken) > 1 else ''}{', '.join(everywhere)}")
    return "; ".join(parts) or "a sum over the processes"


class DivergedError(FloatingPointError):
    """More updates in a row, or within the window, than a run survives."""

    def __init__(self, last: NonFiniteError, batch: Mapping[str, Tensor], skipped: int) -> None:
        self.last, self.batch = last, batch
        super().__init__(
            f"{last}, for the {skipped}th time of the last {WINDOW} updates; weights and averages "
            f"are untouched and the checkpoints sound: {', or '.join(ADVICE)}"
        )


def require_owned(recipe: nn.Module) -> None:
    """Refuse weights that no player moves: of the recipe beside them, and of its losses.

    Raises: ValueError naming them.
    """
    owned = {weight for side in SIDES for weight in recipe.get_submodule(side).parameters()}
    weights = dict(recipe.named_parameters())
    for name, part in beside(recipe):
        own = {"": part} if isinstance(part, nn.Parameter) else dict(part.named_parameters())
        weights |= {f"{name}.{inner}".rstrip("."): weight for inner, weight in own.items()}
    stray = {w: name for name, w in weights.items() if w.requires_grad and w not in owned}
    if stray:
        raise ValueError(
            f"{', '.join(stray.values())} would never be trained, as each optimizer moves its "
            "player alone: put them into the generator or the discriminator, or set "
            "requires_grad=False"
        )


def beside(recipe: nn.Module) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Networks and weights, by name, that a recipe or a loss holds without being made of them."""
    inside = {*recipe.modules(), *recipe.parameters()}
    for name, value in vars(recipe).items():
        several = value.values() if isinstance(value, Mapping) else value
        for part in several if isinstance(value, Mapping | tuple | list) else [value]:
            inner = getattr(part, "__dict__", {})
            for place, held in {name: part, **{f"{name}.{n}": h for n, h in inner.items()}}.items():
                if isinstance(held, nn.Module | nn.Parameter) and held not in inside:
                    yield place, held


def kept(recipe: nn.Module) -> dict[str, list[int]]:
    """The shapes of what a checkpoint keeps, by name."""
    state = recipe.state_dict()
    return {n: [*t.shape] for n, t in state.items() if isinstance(t, Tensor) and not is_lazy(t)}


class Guard:
    """Keeps what a turn may move beside the weights, and counts the turns that were not taken.

    Attributes:
        skipped: for each player, the numbers of the updates that were skipped, within the window.
    """

    def __init__(self, recipe: nn.Module, tell: Callable[[str, str], None]) -> None:
        """`tell` is given a kind of event and a text."""
        self.skipped: dict[str, list[int]] = {player: [] for player in SIDES}
        self._tell = tell
        self._places = places(recipe)
        self._copies = Copies(self.buffers())
        self._recipe, self._unseen, self._kept = recipe, FIRST, kept(recipe)
        require_owned(recipe)

    @contextmanager
    def turn(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Leave the block early, and everything as it was, where an update is not taken.

        Raises: DivergedError once there are too many of them.
        """
        self._remember()
        try:
            yield
            if self._unseen:
                self._inspect()
        except NonFiniteError as error:
            self._restore()
            skipped = [n for n in self.skipped[error.player] if n > error.count - WINDOW]
            self.skipped[error.player] = skipped = [*skipped, error.count]
            last = range(error.count - IN_A_ROW, error.count + 1)
            if len(skipped) > IN_ALL or set(last) <= set(skipped):
                raise DivergedError(error, batch, len(skipped)) from error
            self._tell("skipped", f"{error}; the update is skipped, nothing has changed")

    def _inspect(self) -> None:
        """Look for common slips once both players have moved: a step is over then.

        Raises: ValueError naming a value that keeps the graph of a past update alive, or a buffer
            that no start could take from a checkpoint.
        """
        weights = dict(self._recipe.named_parameters())
        reached = {name for name, weight in weights.items() if weight.grad is not None}
        if {*SIDES} - {name.partition(".")[0] for name in reached}:
            return
        unreached = [n for n, w in weights.items() if w.requires_grad and n not in reached]
        if unreached and self._unseen == FIRST:
            more = f" and {len(unreached) - 10} more" if len(unreached) > 10 else ""
            self._tell(
                "unused",
                f"no loss reaches {', '.join(unreached[:10])}{more}: they are not trained; if they "
                "should be, look for a detach, a loss with the weight 0, or a forgotten term",
            )
        self._unseen -= 1
        if self._unseen:  # a graph that is used again tells of itself, and with its line
            return
        for path, module in self._recipe.named_modules():
            renewed = {getattr(hook, "name", "") for hook in module._forward_pre_hooks.values()}
            for name, value in {**vars(module), **module._buffers}.items():
                if name in renewed:  # torch's older spectral norm makes it anew for every pass
                    continue
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    raise ValueError(
                        f"{'.'.join(filter(None, ['recipe', path, name]))} keeps the graph of a "
                        "past update, which holds its memory and cannot be differentiated again: "
                        "keep `value.detach()`"
                    )
        for name, shape in kept(self._recipe).items():
            if shape != (before := self._kept.get(name, "no tensor")):
                raise ValueError(
                    f"recipe.{name} was {before} at the start and is {shape} now, so that no start "
                    "could go on from its checkpoint: register it with the shape that it keeps, or "
                    "with persistent=False"
                )

    def buffers(self) -> list[Tensor]:
        """All buffers of the recipe, as they are now."""
        return [owner[name] for owner, name in self._places]

    def _remember(self) -> None:
        buffers = self.buffers()
        if self._copies.serve(buffers):
            self._copies.take()
        else:  # a module has put another tensor in a buffer's place
            self._copies = Copies(buffers)

    def _restore(self) -> None:
        self._copies.put_back()
        for (owner, name), buffer in zip(self._places, self._copies.tensors, strict=True):
            owner[name] = buffer
