"""Endless, sharded, resumable batches on the device.

A thread plans and copies batches ahead of need into a few reused buffers (pinned on CUDA, then
sent on a side stream); bytes become floats, and are mirrored, on the device. The position is one
integer: the order is a permutation by (seed, epoch), and a batch may run over an epoch's end, so
batches are always full.
"""

import itertools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gan.data.datasets import Dataset, Plan
from gan.images import to_floats

TIMEOUT = 120.0  # seconds without a batch after which the stream is called stalled
SHORT = 20.0  # the same from when the program is asked to stop: it has 30 to save as well
TICK = 0.5


class _Ready(NamedTuple):
    images: dict[str, Tensor]  # uint8 [B, (K,) H, W, C]
    fields: dict[str, Tensor]
    flip: dict[str, Tensor]
    copied: torch.cuda.Event | None
    slot: int


class Stream:
    """Iterator over batches: float images [B, (K,) C, H, W] in [-1, 1] and integer fields [B]."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        device: torch.device,
        keys: Collection[str],
        position: int = 0,
        rank: int = 0,
        size: int = 1,
        ahead: int = 3,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """`batch_size` counts all processes, `position` delivered batches; only `keys` are read.

        `asked` says whether the program was asked to stop: no batch is awaited for long after that.
        """
        if len(dataset) < batch_size:
            raise ValueError(
                f"trainer.batch_size={batch_size} needs as many samples, but {dataset.store.path} "
                f"gives {len(dataset)}: lower trainer.batch_size or add images"
            )
        self.dataset, self.batch_size, self.seed, self.device = dataset, batch_size, seed, device
        self.keys, self.position, self.rank, self.ahead = keys, position, rank, ahead
        self.share = batch_size // size
        self.waited, self._asked = 0.0, asked
        content: str | None = getattr(dataset, "content", None)
        self.content = dataset.store.content_hash if content is None else content
        self._orders: dict[int, np.ndarray] = {}
        self._resident: Tensor | None = None
        self._buffers: list[dict[str, Tensor]] = [{} for _ in range(ahead)]
        self._free: queue.Queue[int] = queue.Queue()
        self._ready: queue.Queue[_Ready | BaseException] = queue.Queue()
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> "Stream":
        """Itself: a stream has no end."""
        return self

    def __next__(self) -> dict[str, Tensor]:
        """The next batch."""
        if self._thread is None:
            self._start()
        started = time.perf_counter()
        ready = self._wait()
        self.waited += time.perf_counter() - started
        self.position += 1
        batch = self.finish(ready)
        self._free.put(ready.slot)
        return batch

    def again(self) -> dict[str, Tensor]:
        """The last batch once more."""
        return self.read(self.plan(self.position - 1))

    def keys_at(self, position: int) -> dict[str, list[str]]:
        """The store's names of the images in the batch at a position, by key of the batch."""
        plan = self.plan(position)
        return {
            key: [self.dataset.store.keys[row] for row in rows.reshape(-1)]
            for key, rows in plan.images.items()
            if key in self.keys
        }

    def close(self) -> None:
        """Stop the thread; the stream is not used afterwards."""
        self._closing.set()
        if self._thread is not None:
            self._free.put(0)
            self._thread.join(timeout=10)

    def plan(self, position: int) -> Plan:
        """What this process's share of the batch at a position is made of."""
        first = position * self.batch_size + self.rank * self.share
        end, parts = first + self.share, []
        while first < end:  # a part for each epoch that it reaches into
            epoch, index = divmod(first, len(self.dataset))
            part = self._order(epoch)[index : index + end - first]
            parts.append(self.dataset.plan(self.seed, epoch, part))
            first += len(part)
        return parts[0] if len(parts) == 1 else _join(parts)

    def read(self, plan: Plan) -> dict[str, Tensor]:
        """A batch made at once in the calling thread, for samples and measures."""
        return self.finish(self._send(plan, {}, -1))

    def images(self, rows: np.ndarray) -> Tensor:
        """The store's images at these rows, [N, C, H, W]."""
        return self.finish(self._send(Plan({"image": rows}, {}), {}, -1, {"image"}))["image"]

    def finish(self, ready: _Ready) -> dict[str, Tensor]:
        """Bytes to floats, on the device."""
        if ready.copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready.copied)
            for part in (ready.images, ready.fields, ready.flip):
                for tensor in part.values():
                    tensor.record_stream(current)
        images = {key: _floats(image, ready.flip.get(key)) for key, image in ready.images.items()}
        return {**images, **ready.fields}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = rng.permutation(len(self.dataset))
        return self._orders[epoch]

    def _start(self) -> None:
        self._resident = self._load() if self._stays() else None
        if self._side is not None:  # it reads what was loaded on this stream
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        for slot in range(self.ahead):
            self._free.put(slot)
        self._thread = threading.Thread(
            target=self._feed, args=(self.position,), daemon=True, name="stream"
        )
        self._thread.start()

    def _feed(self, position: int) -> None:
        try:
            while True:
                slot = self._free.get()
                if self._closing.is_set():
                    return
                self._ready.put(self._send(self.plan(position), self._buffers[slot], slot))
                position += 1
        except BaseException as error:  # raised again where the batch is awaited
            error.add_note(f"while batch {position} was read from {self.dataset.store.path}")
            self._ready.put(error)

    def _wait(self) -> _Ready:
        stopping = 0  # ticks since the program was asked to stop
        for passed in itertools.count(1):
            try:
                ready = self._ready.get(timeout=TICK)
            except queue.Empty:
                stopping += self._asked()
                ticks, limit = (stopping, SHORT) if stopping else (passed, TIMEOUT)
                if ticks * TICK >= limit:
                    raise TimeoutError(self._stalled(limit)) from None
            else:
                if isinstance(ready, BaseException):
                    raise ready
                return ready
        raise AssertionError

    def _stalled(self, seconds: float) -> str:
        """What the reading thread is doing instead of giving a batch."""
        frame = sys._current_frames().get(self._thread.ident or 0) if self._thread else None
        stack = "".join(traceback.format_stack(frame)) if frame else "it has ended"
        return (
            f"no batch came from {self.dataset.store.path} for {seconds:g} s: is its disk "
            f"reachable? The reading thread stands at\n{stack}"
        )

    def _send(
        self, plan: Plan, buffers: dict[str, Tensor], slot: int, keys: Collection[str] | None = None
    ) -> _Ready:
        """Gather the images that are read and put them on their way to the device."""
        keys = keys or self.keys
        move = self._moved if self._side is not None else lambda tensor: tensor
        with torch.cuda.stream(self._side):
            fields = {
                key: move(torch.from_numpy(np.ascontiguousarray(field)))
                for key, field in plan.fields.items()
                if key in keys
            }
            flip = {
                key: move(torch.from_numpy(who))
                for key, who in _mirrored(plan).items()
                if key in keys
            }
            images = {
                key: self._gather(rows, key, buffers, move)
                for key, rows in plan.images.items()
                if key in keys
            }
            copied = self._side.record_event() if self._side is not None else None
        if copied is not None:
            copied.synchronize()  # this thread waits, so that the pinned buffer may be filled again
        return _Ready(images, fields, flip, copied, slot)

    def _gather(
        self,
        rows: np.ndarray,
        key: str,
        buffers: dict[str, Tensor],
        move: Callable[[Tensor], Tensor],
    ) -> Tensor:
        shape = (*rows.shape, *self.dataset.store.shape)
        if self._resident is not None:
            return self._resident[move(torch.from_numpy(rows.reshape(-1)))].view(shape)
        if key not in buffers or buffers[key].shape != shape:
            buffers[key] = torch.empty(shape, dtype=torch.uint8, pin_memory=self._side is not None)
        flat = buffers[key].numpy().reshape(-1, *self.dataset.store.shape)
        self.dataset.store.read(rows.reshape(-1), flat)
        return move(buffers[key])

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _stays(self) -> bool:
        """Whether the device keeps the whole set: as asked, or where a quarter of it suffices."""
        if self.dataset.resident != "auto":
            return self.dataset.resident == "on"
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.dataset.store.count * int(np.prod(self.dataset.store.shape)) <= free / 4

    def _load(self) -> Tensor:
        store = self.dataset.store
        whole = torch.empty((store.count, *store.shape), dtype=torch.uint8, device=self.device)
        part = np.empty((min(store.count, 4096), *store.shape), dtype=np.uint8)
        for first in range(0, store.count, len(part)):
            rows = np.arange(first, min(first + len(part), store.count))
            store.read(rows, part[: len(rows)])
            whole[first : first + len(rows)] = torch.from_numpy(part[: len(rows)]).to(self.device)
        return whole


def _floats(image: Tensor, flip: Tensor | None) -> Tensor:
    """Bytes [B, (K,) H, W, C] to floats [B, (K,) C, H, W] in [-1, 1], channels last in memory."""
    values = to_floats(image)
    if flip is None:
        return values
    return torch.where(flip.view(-1, *(1,) * (values.ndim - 1)), values.flip(-1), values)


def _mirrored(plan: Plan) -> dict[str, np.ndarray]:
    """Who is mirrored of each key, [B]."""
    if plan.flip is None:
        return {}
    columns = plan.flip.reshape(len(plan.flip), -1)  # [B, 1] or [B, keys]
    columns = np.broadcast_to(columns, (len(columns), len(plan.images)))
    return dict(zip(plan.images, columns.T.copy(), strict=True))


def _join(parts: list[Plan]) -> Plan:
    images = {key: np.concatenate([part.images[key] for part in parts]) for key in parts[0].images}
    fields = {key: np.concatenate([part.fields[key] for part in parts]) for key in parts[0].fields}
    flips = [part.flip for part in parts if part.flip is not None]
    return Plan(images, fields, np.concatenate(flips) if flips else None)
