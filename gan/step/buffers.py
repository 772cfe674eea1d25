"""Buffers of modules: where they are, cheap copies, and those that follow averaged weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def places(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where all buffers of a module are: others may be put in their place."""
    owners = [part._buffers for part in module.modules()]
    return [(owner, name) for owner in owners for name in owner if owner[name] is not None]


def normed(module: nn.Module) -> list[nn.Module]:
    """Its batch norms."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def others(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """The same but for the running statistics of batch norms."""
    running = {id(norm._buffers) for norm in normed(module)}
    return [(owner, name) for owner, name in places(module) if id(owner) not in running]


@contextmanager
def exchanged(one: nn.Module, other: nn.Module) -> Iterator[None]:
    """Inside the block each of two equal modules has the other's parameters and buffers."""

    def exchange() -> None:
        for part in (nn.Module.parameters, nn.Module.buffers):
            for a, b in zip(part(one), part(other), strict=True):
                a.data, b.data = b.data, a.data

    exchange()
    try:
        yield
    finally:
        exchange()


@torch.no_grad()
def settled(generator: nn.Module) -> nn.Module:
    """The same generator, whose power iterations have followed its averaged weights."""
    for module in generator.modules():
        for name, entries in getattr(module, "parametrizations", {}).items():
            entries.train()  # a spectral norm iterates once per reading in training
            for _ in range(20):
                getattr(module, name)
            entries.eval()
    return generator


class Copies:
    """Copies of tensors that change in place, taken as bytes by one call for each device.

    The tensors are reached apart from autograd's count of versions: a graph that waits for its
    backward reads none of the values that are put back.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """The first copies are taken here."""
        self.tensors = tensors
        self._places = [tensor.data_ptr() for tensor in tensors]
        kinds: dict[object, list[Tensor]] = {}
        for tensor in tensors:
            dense = _dense(tensor.data)
            kind = id(tensor) if dense is None else tensor.device
            kinds.setdefault(kind, []).append(tensor.data if dense is None else dense)
        self._kinds = [(group, torch.cat(group)) for group in kinds.values()]

    def serve(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these lie where the ones lie that are copied."""
        return [tensor.data_ptr() for tensor in tensors] == self._places

    def take(self) -> None:
        """Copy the values of now."""
        for group, copies in self._kinds:
            torch.cat(group, out=copies)

    def put_back(self) -> None:
        """Write the copied values into the tensors."""
        for group, copies in self._kinds:
            torch._foreach_copy_(group, torch.split(copies, [len(part) for part in group]))


def _dense(tensor: Tensor) -> Tensor | None:
    """A view as one row of bytes, as they lie in memory, where all of that is the tensor's."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return None
