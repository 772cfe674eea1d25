"""Processes and randomness: rank, world size, step seeds, averaged gradients.

One process is the special case in which nothing is sent.
"""

import os
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy
import torch
import torch.distributed
from torch import Tensor

THREADS = torch.get_num_threads()  # as torch chose them


def rank() -> int:
    """The number of this process, 0 when it is alone."""
    return torch.distributed.get_rank() if _together() else 0


def size() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if _together() else 1


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def spare_a_core() -> None:
    """Leave one core to the stream, to TensorBoard and to other programs, unless told otherwise.

    Threads that share a core with another program wait for it at every operation, so that one
    thread more can make a step many times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, THREADS - 1))


def device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        torch.device("cuda", torch.cuda.current_device())
        if wanted == "cuda"
        else torch.device(wanted)
    )


def seed(root: int, side: str, count: int, device: torch.device) -> None:
    """Make what follows a function of (root seed, side, count, rank) alone.

    Sets the generators in use directly: `torch.manual_seed` would visit every device. The CPU
    generator reads 32 bits of a seed, hence the hash.
    """
    value = zlib.crc32(f"{root}/{side}/{count}/{rank()}".encode())
    random.seed(value)
    numpy.random.seed(value)  # noqa: NPY002 - the global generator is what users' modules draw from
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


def average_gradients(parameters: Sequence[Tensor], said: Tensor) -> Tensor:
    """Replace every gradient by its mean over the processes, in one flat all-reduce.

    The buffer always has the full length: a rank without some gradient contributes zeros and a
    mark, and a gradient that is absent everywhere stays None (Adam would move a weight whose
    gradient is zero). `said` is a number of this process that travels along; returns the sum.
    """
    if size() == 1:
        return said
    present = torch.tensor(
        [float(p.grad is not None) for p in parameters], device=parameters[0].device
    )
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([said.detach().float().reshape(1), present, *parts])
    torch.distributed.all_reduce(flat)
    marks, gradients = flat[1 : len(present) + 1].tolist(), flat[len(present) + 1 :] / size()
    for parameter, mark, part in zip(
        parameters, marks, torch.split(gradients, [p.numel() for p in parts]), strict=True
    ):
        parameter.grad = part.view_as(parameter).clone() if mark else None
    return flat[0]


@torch.no_grad()
def replicate(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


@torch.no_grad()
def elsewhere(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the other processes have under these names, as `ranks/<rank>/<name>`, where it differs
    from what the first has."""
    found = {}
    for name, tensor in tensors.items() if size() > 1 else ():
        everywhere = [torch.empty_like(tensor) for _ in range(size())]
        torch.distributed.all_gather(everywhere, tensor.contiguous())
        for number, other in enumerate(everywhere[1:], 1):
            if not torch.equal(other, everywhere[0]):
                found[f"ranks/{number}/{name}"] = other
    return found


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: a decision that all of them take alike."""
    if size() == 1:
        return flag
    up = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(up)
    return bool(up.item())


def wait(device: torch.device) -> None:
    """Go on when every process has come this far."""
    anywhere(False, device)


def require_same(facts: Mapping[str, object], device: torch.device, what: str) -> None:
    """Refuse to go on where the processes differ in a fact, naming it.

    Raises: RuntimeError in every process alike.
    """
    if size() == 1 or not facts:
        return
    digests = [zlib.crc32(repr(fact).encode()) for fact in facts.values()]
    mine = torch.tensor(digests, dtype=torch.int64, device=device)
    least, most = mine.clone(), mine.clone()
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    differing = [
        name for name, same in zip(facts, (least == most).tolist(), strict=True) if not same
    ]
    if differing:
        here = ", ".join(f"{name}={facts[name]!r}" for name in differing[:5])
        raise RuntimeError(f"{what}: the processes differ in {here} (as rank {rank()} has it)")
