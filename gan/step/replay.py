"""Finds the line behind an error of `backward` by playing the turn once more.

Torch raises such errors where its engine stands, without a frame of the network. The replay notes
which line saved a tensor for its gradient, overwrote one, or used the graph of an earlier update.
"""

import linecache
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version, saved_tensors_hooks
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree

from gan.recipe import Batch, Recipe, detached

Clue = Literal["", "kept", "write", "gradient"]

PACKAGE = Path(__file__).parents[1]
FOREIGN = (str(Path(torch.__file__).parent), str(PACKAGE))
USERS = tuple(str(PACKAGE / part) for part in ("networks", "recipes"))
LIBRARY = sysconfig.get_path("stdlib")


class Line(NamedTuple):
    """A line of user code."""

    file: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.text}"


class Place(NamedTuple):
    """What is known of where an error comes from; `needed` is the line whose gradient broke."""

    line: Line | None
    needed: Line | None = None
    operation: str = ""  # the write and the module that made it
    weight: bool = False  # whether a weight was overwritten
    term: str | None = None
    note: str = ""


class Saved(NamedTuple):
    """A tensor that a gradient needs, as it was when it was saved."""

    tensor: Tensor
    version: int
    writes: int  # writes noted before
    line: Line | None


class Write(NamedTuple):
    """An in-place operation; `version` is the tensor's after it."""

    storage: int
    version: int
    operation: str
    line: Line | None


def user_line(frames: Iterable[tuple[FrameType, int]]) -> Line | None:
    """The first line outside torch, Python and the core; networks and recipes are user code."""
    for frame, number in frames:
        file = frame.f_code.co_filename
        if file.endswith(".py") and _of_user(file):
            return Line(file, number, linecache.getline(file, number).strip())
    return None


def _of_user(file: str) -> bool:
    if file.startswith(LIBRARY):
        return "site-packages" in file and not file.startswith(FOREIGN)
    return file.startswith(USERS) or not file.startswith(FOREIGN)


class Replay(TorchFunctionMode):
    """Plays one turn of a recipe and notes writes, saved tensors and graphs of earlier updates.

    It takes no optimizer step; gradients, buffers and randomness are of no use afterwards.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.modules = {id(module): path for path, module in recipe.named_modules()}
        self.weights = {p.untyped_storage().data_ptr() for p in recipe.parameters()}
        self.writes: list[Write] = []
        self.kept: list[Line | None] = []  # lines that used a graph of an earlier update
        self.gradients: list[Line | None] = []  # lines that took a gradient
        self.results: list[Tensor] = []  # of those gradients
        self.broken: Saved | None = None
        self.term: str | None = None
        self.begun = 0

    def play(self, player: str, batch: Batch, count: int) -> None:
        """The discriminator's turn, then the generator's if it is the player; an error ends it."""
        recipe = self.recipe
        with _eagerly(), saved_tensors_hooks(self.save, self.load), self:
            try:
                fakes = recipe.generate(batch)
                self._begin()
                terms = recipe.discriminator_losses(batch, detached(fakes), count)
                self._differentiate(terms)
                if player == "generator":
                    increment_version(list(recipe.discriminator.parameters()))  # as its step does
                    self._begin()
                    terms = recipe.generator_losses(batch, recipe.generate(batch), count)
                    self._differentiate(terms)
            except Exception:  # the error that is being explained, or one that follows from it
                return

    def place(self, raised: Line | None, clue: Clue) -> Place:
        """What the notes say about an error that was raised below a line of user code, if any."""
        kept, gradient = (next(filter(None, lines), None) for lines in (self.kept, self.gradients))
        if clue == "kept":
            line = kept or raised or gradient
        elif clue == "gradient":
            line = gradient or raised
        elif self.broken is None:
            line = kept or raised
        else:
            return self._overwritten(self.broken, kept or raised)
        stepped = clue == "write" and kept is not None
        note = "" if line else "a replay of this turn did not show the place"
        return Place(line, weight=stepped, term=self.term, note=note)

    def _overwritten(self, saved: Saved, otherwise: Line | None) -> Place:
        storage = saved.tensor.untyped_storage().data_ptr()
        fitting = (
            write
            for write in self.writes[saved.writes :]
            if write.storage == storage and write.version > saved.version
        )
        write = next(fitting, None)
        line, operation = (write.line, write.operation) if write else (otherwise, "")
        return Place(line, saved.line, operation, storage in self.weights, self.term)

    def _begin(self) -> None:
        """From here on, graphs that exist already belong to an earlier update."""
        node = (torch.zeros((), requires_grad=True) + 0).grad_fn
        assert node is not None
        self.begun = node._sequence_nr()

    def _differentiate(self, terms: Mapping[str, Tensor]) -> None:
        for name, term in terms.items():
            if term.requires_grad:
                self.term = name
                torch.autograd.backward(term.sum(), retain_graph=True)  # terms share a graph
        self.term = None

    def save(self, tensor: Tensor) -> Saved:
        """Note a tensor that autograd keeps for the gradient."""
        return Saved(tensor, tensor._version, len(self.writes), user_line(_stack()))

    def load(self, saved: Saved) -> Tensor:
        """Hand a kept tensor to its gradient; one that was overwritten ends the replay."""
        if saved.tensor._version != saved.version:
            self.broken = saved
            raise RuntimeError("overwritten")
        return saved.tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        tensors = _tensors((args, kwargs))
        versions = [tensor._version for tensor in tensors]
        kept = [tensor for tensor in tensors if self._is_kept(tensor)]
        if func in (torch.autograd.grad, Tensor.backward):
            self.gradients.append(user_line(_stack()))
        result = func(*args, **(kwargs or {}))
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                self._note_write(tensor, resolve_name(func) or str(func))
        if kept and any(tensor.requires_grad for tensor in _tensors(result)):
            self.kept.append(user_line(x for x in _stack() if not _was_given(x[0], kept[0])))
        if func is torch.autograd.grad:
            self.results += _tensors(result)
        return result

    def _is_kept(self, tensor: Tensor) -> bool:
        """Nodes are numbered by thread: those that a device's backward made tell nothing."""
        node = tensor.grad_fn
        made_by_backward = any(tensor is result for result in self.results)
        return node is not None and not made_by_backward and node._sequence_nr() < self.begun

    def _note_write(self, tensor: Tensor, operation: str) -> None:
        owners = (self.modules.get(id(frame.f_locals.get("self"))) for frame, _ in _stack())
        module = next(filter(None, owners), "")
        shape = list(tensor.shape)
        self.writes.append(
            Write(
                tensor.untyped_storage().data_ptr(),
                tensor._version,
                f"{operation} on {shape}" + (f" in {module}" if module else ""),
                user_line(_stack()),
            )
        )


def _stack() -> Iterator[tuple[FrameType, int]]:
    """Frames from the innermost outwards, as far as the replay reaches."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Replay.play.__code__:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _was_given(frame: FrameType, tensor: Tensor) -> bool:
    """Whether the tensor came into a function as an argument."""
    arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return any(frame.f_locals.get(name) is tensor for name in arguments)


def _tensors(tree: Any) -> list[Tensor]:
    leaves = _pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _eagerly() -> AbstractContextManager[Any]:
    """Compiled modules hide their lines."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
