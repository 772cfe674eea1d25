"""Processes and randomness: rank, world size, step seeds, averaged gradients.

One process is the special case in which nothing is sent.
"""

import hashlib
import itertools
import os
import random
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import distributed_c10d as c10d

from gan import draws, system
from gan.config.signature import ConfigError
from gan.draws import Share

THREADS = torch.get_num_threads()  # as torch chose them
START = 300.0  # seconds that a process waits for another until the first step is done
TICK = 0.1  # seconds between two looks at what the first process is doing
PLACE = "place/{}"  # where a process notes each second that it is alive, by rank
_patience = START  # seconds that a process waits for another
_turns = itertools.count()  # of the first process; all count alike


class PeerError(RuntimeError):
    """Another process has ended, or has not come to where this one waits for it."""


class FirstError(PeerError):
    """The first process could not do what the others waited for; it says why."""


@contextmanager
def group() -> Iterator[None]:
    """The processes that torchrun, or whoever set the same variables, has started, for the block.

    gloo joins what is on CPUs, NCCL what is on CUDA devices. There is one group in a process's
    life, whatever it trains. One process alone needs none.

    Raises: ConfigError for variables that contradict each other, ConnectionError where the
        processes do not find each other.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if alone or _together():
        yield
        return
    _meet()
    yield
    torch.distributed.destroy_process_group()  # after an error it might wait for the others


def _meet() -> None:
    try:
        mine, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but RANK, "
            f"MASTER_ADDR and MASTER_PORT do not say which this one is ({error}): start them "
            "with torchrun, or remove WORLD_SIZE"
        ) from None
    if not 0 <= mine < count:
        raise ConfigError(f"RANK={mine} must be below WORLD_SIZE={count}: start with torchrun")
    limit = timedelta(seconds=START)
    hosts = mine == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        met = meeting(*address, hosts)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and system.POSIX else "gloo",
            store=c10d.PrefixStore(_roll_call(met, mine, count), met),
            rank=mine,
            world_size=count,
            timeout=limit,
        )
    except (RuntimeError, OSError) as error:
        raise ConnectionError(
            f"the {count} processes did not meet at {address[0]}:{address[1]} within {START:g} s "
            f"({str(error).partition(chr(10))[0]}): start as many as WORLD_SIZE says, and choose "
            "another MASTER_PORT (torchrun --master-port) if this one is taken"
        ) from error


def meeting(host: str, port: int, hosts: bool) -> Any:
    """The store at an address, by which processes find each other; whoever `hosts` keeps it."""
    options = {"timeout": timedelta(seconds=START), "wait_for_workers": False, **system.STORE}
    there: Any = torch.distributed  # its types lack the store, as builds without sockets do
    return there.TCPStore(host, port, is_master=hosts, **options)


def _roll_call(met: Any, mine: int, count: int) -> str:
    """A name for these very processes, on which all of them agree.

    torchrun keeps its store over a restart, and with it the notes of processes that are dead. Each
    living one has a name of its own and answers to a list with that name; dead ones never answer.

    Raises: TimeoutError with the ranks that have not come.
    """
    name, until = uuid.uuid4().hex, time.monotonic() + START
    met.set(f"here/{mine}", name)
    missing = list(range(count))
    while time.monotonic() < until:
        if mine == 0:
            missing = [rank for rank in range(count) if not met.check([f"here/{rank}"])]
            if not missing:
                met.set("list", ",".join(met.get(f"here/{rank}").decode() for rank in range(count)))
        called = met.get("list").decode() if met.check(["list"]) else ""
        if name in called:
            answer = hashlib.sha256(called.encode()).hexdigest()
            met.set(f"{answer}/{mine}", "here")
            missing = [rank for rank in range(count) if not met.check([f"{answer}/{rank}"])]
            if not missing:
                return answer
        time.sleep(TICK)
    raise TimeoutError(f"rank {', '.join(map(str, missing))} did not come")


@contextmanager
def first() -> Iterator[None]:
    """The first process goes through the block before all others, however long it takes it.

    What it builds is there when they come. No time-out of a collective runs meanwhile.

    Raises: FirstError in the others where the first leaves the block with an error.
    """
    if size() == 1:
        yield
        return
    turn = f"turn/{next(_turns)}"
    if rank():
        _await(turn)
        yield
        return
    try:
        yield
    except BaseException as error:
        store().set(turn, f"{type(error).__name__}: {error}")
        raise
    store().set(turn, "done")


def by_first(work: Callable[[], Any]) -> None:
    """Done by the first process alone, while the others wait for as long as it lives."""
    with first():
        if not rank():
            work()


def _await(turn: str) -> None:
    """Wait until the first process has left the block, or no longer says that it is alive."""
    place, last, heard = PLACE.format(0), b"", time.monotonic()
    try:
        while not store().check([turn]):
            time.sleep(TICK)
            note = store().get(place) if store().check([place]) else b""
            heard = heard if note == last else time.monotonic()
            if (last := note) and time.monotonic() - heard > _patience:
                raise PeerError(f"the first process has said nothing for {_patience:g} s")
        said = store().get(turn).decode()
    except RuntimeError as error:
        raise PeerError(f"the first process has ended ({error})") from error
    if said != "done":
        raise FirstError(f"the first process failed with {said}")


def store() -> Any:
    """Where the processes leave each other notes."""
    return c10d._get_default_store()


def limit(seconds: float) -> None:
    """From now on wait at most so long for another process."""
    global _patience  # there is one group in a process's life, and torch's limit is one as well
    _patience = seconds
    change = getattr(torch.distributed, "set_timeout", None) or c10d._set_pg_timeout  # before 2.14
    change(timedelta(seconds=seconds))


def _collect(collective: Callable[..., Any], *given: Any) -> None:
    """What all processes take part in.

    Raises: PeerError where one does not.
    """
    try:
        collective(*given)
    except RuntimeError as error:
        said = re.split(r"\n|\. This is", str(error))[0]
        raise PeerError(f"rank {rank()} waited for the others in vain ({said})") from error


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if not rank():
        print(text)


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
    """`auto` is CUDA where there is one; each process of a node has a device of its own.

    Raises: ConfigError where there is no device, or fewer than processes.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cuda":
        return torch.device(wanted)
    if size() > 1:
        local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(
                f"process {local} of this node has no CUDA device, as there are {there}: start as "
                "many processes (torchrun --nproc-per-node), or set trainer.device=cpu"
            )
        torch.cuda.set_device(local)
    elif not torch.cuda.is_available():
        raise ConfigError("device=cuda, but there is no CUDA device here; use auto or cpu")
    return torch.device("cuda", torch.cuda.current_device())


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Let a network's batch norms see all processes' samples, where the device can do it.

    Elsewhere each process has statistics of its own, and those of the first count.
    """
    if size() > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)


def seed(root: int, side: str, count: int, device: torch.device) -> None:
    """Make what follows a function of (root seed, side, count, rank) alone.

    Sets the generators in use directly: `torch.manual_seed` would visit every device. The CPU
    generator reads 32 bits of a seed, hence the hash.
    """
    value = _hash(root, side, count, rank())
    random.seed(value)
    numpy.random.seed(value)  # noqa: NPY002 - the global generator is what users' modules draw from
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


def _hash(root: int, side: str, count: int, rank: int) -> int:
    return zlib.crc32(f"{root}/{side}/{count}/{rank}".encode())


def share(batch_size: int) -> Share | None:
    """The rows of a batch that this process plays; None for all of them."""
    count = batch_size // size()
    return Share(rank() * count, count, batch_size) if size() > 1 else None


@contextmanager
def seeded(
    root: int, device: torch.device, share: Share | None, side: str, count: int
) -> Iterator[None]:
    """Inside the block chance is a function of (root seed, side, count) and of the sample.

    What is drawn for no sample depends on the share as well.
    """
    if share is None:
        seed(root, side, count, device)
        yield
        return
    seed(root, f"{side}/{share.first}", count, device)
    with draws.shared(share, _hash(root, side, count, 0)):
        yield


def average_gradients(parameters: Sequence[Tensor], said: Tensor) -> Tensor:
    """Replace every gradient by its mean over the processes, in one flat all-reduce.

    The buffer always has the full length: a rank without some gradient contributes zeros and a
    mark, and a gradient that is absent everywhere stays None (Adam would move a weight whose
    gradient is zero). `said` is a number of this process that travels along; returns the sum.
    """
    if size() == 1:
        return said
    there = [float(p.grad is not None) for p in parameters]
    present = torch.tensor(there, device=parameters[0].device)
    parts = [_laid_out(p) for p in parameters]
    rows = (part.as_strided((part.numel(),), (1,)) for part in parts)  # as they lie in memory
    flat = torch.cat([said.detach().float().reshape(1), present, *rows])
    _collect(torch.distributed.all_reduce, flat)
    marks, means = flat[1 : len(present) + 1].tolist(), flat[len(present) + 1 :] / size()
    for parameter, part, mark, mean in zip(
        parameters, parts, marks, torch.split(means, [p.numel() for p in parts]), strict=True
    ):  # views: a copy of each would be an operation for each
        parameter.grad = mean.as_strided(part.size(), part.stride()) if mark else None
    return flat[0]


def _laid_out(parameter: Tensor) -> Tensor:
    """The gradient, or zeros, in the weight's memory format: fused Adam goes through both so."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.stride() == parameter.stride():
        return parameter.grad
    return torch.empty_like(parameter).copy_(parameter.grad)


@torch.no_grad()
def replicate(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if size() > 1:
        for tensor in tensors:
            plain = tensor.detach().contiguous()
            _collect(torch.distributed.broadcast, plain, 0)
            tensor.copy_(plain)


@torch.no_grad()
def elsewhere(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What other processes have that is not as the first one's, as `ranks/<rank>/<name>`."""
    found = {}
    for name, tensor in tensors.items() if size() > 1 else ():
        everywhere = [torch.empty_like(tensor) for _ in range(size())]
        _collect(torch.distributed.all_gather, everywhere, tensor.contiguous())
        for number, other in enumerate(everywhere[1:], 1):
            if not torch.equal(other, everywhere[0]):
                found[f"ranks/{number}/{name}"] = other
    return found


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, of values that each has its own of."""
    if size() > 1:
        values = values / size()
        _collect(torch.distributed.all_reduce, values)
    return values


def gathered(fact: Any) -> list[Any]:
    """What each process says, by rank. For words and numbers, and for when training has paused."""
    said = [fact] * size()
    if size() > 1:
        _collect(torch.distributed.all_gather_object, said, fact)
    return said


def anywhere(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: a decision that all of them take alike."""
    if size() == 1:
        return flag
    up = torch.tensor([float(flag)], device=device)
    _collect(torch.distributed.all_reduce, up)
    return bool(up.item())


def require_same(facts: Mapping[str, object], device: torch.device, what: str) -> None:
    """Refuse to go on where the processes differ in a fact, naming it.

    Raises: RuntimeError in every process alike.
    """
    if size() == 1 or not facts:
        return
    digests = [zlib.crc32(repr(fact).encode()) for fact in facts.values()]
    mine = torch.tensor(digests, dtype=torch.int64, device=device)
    least, most = mine.clone(), mine.clone()
    _collect(torch.distributed.all_reduce, least, torch.distributed.ReduceOp.MIN)
    _collect(torch.distributed.all_reduce, most, torch.distributed.ReduceOp.MAX)
    alike = zip(facts, (least == most).tolist(), strict=True)
    differing = [name for name, same in alike if not same]
    if differing:
        here = ", ".join(f"{name}={facts[name]!r}" for name in differing[:5])
        raise RuntimeError(f"{what}: the processes differ in {here} (as rank {rank()} has it)")
