"""Well-known autograd errors in plain words: what they mean in a GAN, why, the fix and the line.

An error raised in user code has its line in the traceback; one raised inside `backward` has none,
and a replay of the turn looks for it. Nothing is done before there is an error.
"""

import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gan import distributed
from gan.recipe import Recipe
from gan.registry import ConfigError
from gan.step.replay import Clue, Place, Replay, user_line

SATURATING = (nn.Sigmoid, nn.LogSigmoid, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)


class Known(NamedTuple):
    """A well-known error; `clue` is what a replay looks for, "" if the traceback is enough."""

    pattern: str
    what: str
    cause: str
    fix: str
    clue: Clue = ""


STEPPED = Known(
    "",
    "a weight changed between a forward and its backward",
    "the recipe steps an optimizer itself, or uses in one update what a network said in another",
    "leave optimizer steps to the trainer; compute the value again in the update that uses it",
    "write",
)
KNOWN = (
    Known(
        r"backward through the graph a second time",
        "two backward passes went through one graph, and the first has freed it",
        "a value with its graph outlives its update (a kept fake, a running mean), or the recipe "
        "differentiates a loss that it also returns",
        "keep `value.detach()`, or run the network again in the update that needs its graph",
        "kept",
    ),
    Known(
        r"modified by an inplace operation",
        "a value was overwritten that a gradient still needs",
        "`x += y`, `x[:, 0] = y` or "
        "`ReLU(inplace=True)` on the result of another operation",  # the fault, as it is told
        "write `x = x + y`, build a new tensor, or set inplace=False",
        "write",
    ),
    Known(
        r"only change requires_grad flags of leaf variables",
        "a result of a network cannot be frozen, only the network can",
        "`fake.requires_grad = False`, to keep a gradient away from the generator",
        "use `fake.detach()`; the trainer freezes the opponent by itself",
    ),
    Known(
        r"\.grad attribute of a Tensor that is not a leaf",
        "only weights keep their gradient; that of an image or a feature is None",
        "`.grad` of a result is read as if it were a weight",
        "use `torch.autograd.grad(output, image, create_graph=True)`, or `retain_grad()` before",
    ),
    Known(
        r"finished reduction in the prior iteration|mark a variable ready only once",
        "DistributedDataParallel expects one backward for each forward of all its parameters",
        "a network of the recipe is wrapped in it, but serves both players' losses",
        "remove the wrapper: the trainer averages the gradients of all processes",
    ),
    Known(
        r"does not require grad and does not have a grad_fn",
        "the differentiated value depends on nothing that can be trained",
        "no_grad, `.detach()`, `.item()` or a loss of frozen weights on its way",
        "remove the cut, or leave the term to the player whose weights it depends on",
    ),
    Known(
        r"differentiated Tensors? .*(does not require grad|not have been used in the graph)",
        "a penalty takes the gradient at an image that the judged value does not depend on",
        "the image is not marked, or another tensor than the marked one was judged",
        "mark first and judge that very tensor: `image = image.detach().requires_grad_()`",
    ),
    Known(
        r"not currently support double backward|marked with @once_differentiable"
        r"|derivative for .*backward.* is not implemented",
        "a gradient penalty differentiates twice; a part of the discriminator allows it once",
        "the discriminator is compiled, or an operation of it has no second derivative",
        "judge with the uncompiled module, and replace such an operation",
        "gradient",
    ),
    Known(
        r"Inference tensors cannot be saved for backward|Inplace update to inference tensor",
        "a tensor made in inference mode can never take part in training",
        "a sample was made under `inference_mode` and used in a loss",
        "make it under `torch.no_grad()`",
    ),
    Known(
        r"leaf Variable that requires grad is being used in an in-place operation",
        "a weight was edited where its gradient is recorded",
        "weights are clipped, initialised or averaged inside a forward or a loss",
        "edit under `torch.no_grad()`; for clipping there is the key clip.<player>.weights",
    ),
    Known(
        r"support the deepcopy protocol",
        "a network that holds results of its last forward cannot be copied",
        "the hooks `torch.nn.utils.spectral_norm` and `weight_norm`, or a kept activation",
        "use `torch.nn.utils.parametrizations`; keep activations detached",
    ),
    Known(
        r"implicitly created only for scalar outputs",
        "a gradient of many values at once was asked for",
        "a loss or the scores of a batch were not reduced",
        "reduce them: `.mean()` for a loss, `.sum()` for the scores of a penalty",
    ),
)


class ExplainedError(RuntimeError):
    """A known autograd error in the words of a GAN; torch's own is its `__cause__`.

    `count` numbers the player's updates; what is not known of the `place` is None or empty.
    """

    def __init__(self, known: Known, player: str, count: int, place: Place, original: str) -> None:
        self.known, self.player, self.count, self.place = known, player, count, place
        rows = {
            "line": place.line,
            "write": place.operation,
            "needed": place.needed,
            "cause": known.cause,
            "fix": known.fix,
            "note": place.note,
            "torch": re.split(r"\.\s|\n|: \[", original)[0],
        }
        term = f", term {place.term!r}" if place.term else ""
        lines = [f"  {name + ':':8}{value}" for name, value in rows.items() if value]
        super().__init__("\n".join([f"{player}, update {count}{term}: {known.what}", *lines]))


@contextmanager
def explained(
    player: str, count: int, losses_of: Callable[[], Mapping[str, Tensor]] | None = None
) -> Iterator[None]:
    """Known errors inside the block leave it as ExplainedError, all others as they are.

    `losses_of` can be replayed if it is a partial of a recipe's losses with batch, fakes, count.
    """
    try:
        yield
    except Exception as error:
        known = next((known for known in KNOWN if re.search(known.pattern, str(error))), None)
        if known is None or isinstance(error, ExplainedError):
            raise
        place = _place(known, error, player, losses_of)
        known = STEPPED if place.weight else known
        raise ExplainedError(known, player, count, place, str(error)) from error


@contextmanager
def strict_gradients() -> Iterator[None]:
    """Reading `.grad` of a result is an error inside the block, not a warning and None."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"The \.grad attribute of a Tensor that is not a leaf")
        yield


def require_logits(network: nn.Module, section: str) -> None:
    """Refuse a network whose last layer, in order of registration, is a sigmoid or softmax.

    Raises: ConfigError naming the section of the configuration and the layer.
    """
    path, layer = list(network.named_modules())[-1]
    if isinstance(layer, SATURATING):
        raise ConfigError(
            f"{section} ends in {type(layer).__name__} ({path or 'the network itself'}), but "
            "losses expect logits and squash them themselves: remove it, or register it earlier "
            "if it is not the end"
        )


def _place(
    known: Known,
    error: Exception,
    player: str,
    losses_of: Callable[[], Mapping[str, Tensor]] | None,
) -> Place:
    raised = user_line(reversed(list(traceback.walk_tb(error.__traceback__))))
    recipe = getattr(losses_of.func, "__self__", None) if isinstance(losses_of, partial) else None
    if not isinstance(losses_of, partial) or not isinstance(recipe, Recipe):
        return Place(raised)
    if not known.clue:
        return Place(raised, note=_wrapped(recipe))
    if distributed.size() > 1:
        return Place(raised, note="train in one process to learn more of the place")
    batch, _, count = losses_of.args
    replay = Replay(recipe)
    replay.play(player, batch, count)
    return replay.place(raised, known.clue)


def _wrapped(recipe: Recipe) -> str:
    modules = recipe.named_modules()
    paths = [path for path, module in modules if isinstance(module, DistributedDataParallel)]
    return f"wrapped in DistributedDataParallel: {', '.join(paths)}" if paths else ""
