"""`trainer.compile`: what a recipe calls while it trains runs compiled, all else as it is.

Compiled is what the recipe calls first and outermost: a whole network, or its parts where it calls
those one by one. Weights, buffers and their names stay those of the modules, and copies of a module
are not compiled. Samples and measures (evaluation mode) run as they are, and so do penalties:
compiled code cannot be differentiated twice.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LIMIT = 64  # compiled variants that may share Python code: networks, turns, frozen or not

_eager = 0  # blocks of `eager` that are open


@contextmanager
def eager() -> Iterator[None]:
    """Nothing that is called inside the block runs compiled."""
    global _eager
    _eager += 1
    try:
        yield
    finally:
        _eager -= 1


def compile_calls(recipe: nn.Module, say: Callable[[str], None]) -> None:
    """Have a recipe's modules compiled when they are first called; each is told by `say`."""
    for side in ("generator", "discriminator"):
        for path, module in recipe.get_submodule(side).named_modules(prefix=side):
            module._compiled_call_impl = _Gate(path, module, say)


class _Gate:
    """Stands before a module's calls and compiles it at the first one."""

    def __init__(self, path: str, module: nn.Module, say: Callable[[str], None]) -> None:
        self.path, self.module, self.say = path, module, say
        self.plain: Callable[..., Any] = module._call_impl
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        if _eager or not self.module.training:
            return self.plain(*args, **kwargs)
        if self.compiled is None:
            self.compiled = self._compile()
        with warnings.catch_warnings():  # torch looks at `.grad` of whatever comes in
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf"
            )
            return self.compiled(*args, **kwargs)

    def _compile(self) -> Callable[..., Any]:
        for inner in self.module.modules():
            if inner is not self.module:
                inner._compiled_call_impl = None
        self.say(f"{self.path} is compiled; the first steps take longer")
        return _compiled(self.plain)


def _compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    return torch.compile(call, dynamic=False)
