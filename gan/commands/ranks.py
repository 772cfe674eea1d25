"""Processes that a run starts for itself on this machine, to train together.

torchrun and submitit start a command in several processes. A job of any other launcher is a call
in a process that has more to do, so its ranks are new processes, which are given all values and
compose nothing. What they read comes from the starter: the values in one line, then the name of a
signal that it was asked to stop by and, whatever has ended it, the end.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import IO, Any, TextIO

import torch
import yaml

from gan import distributed, system
from gan.commands import spell_out
from gan.commands.composing import UsageError
from gan.run.signals import Stop

DONE, FAILED, MISTAKE, DIVERGED, STOPPED, LOST = range(6)  # how a rank ends; lost by another's end
COMMAND = ("-u", "-m", "gan.commands.ranks")  # what it says is handed on at once
GRACE = 30.0  # seconds in which the others end once one has failed


class RankError(RuntimeError):
    """One of the processes has failed; it has said why, unless it was killed."""

    def __init__(self, rank: int, status: int) -> None:
        self.status = status
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"rank {rank} {how}")


class Ranks:
    """Trains as a trainer does, in processes of its own."""

    def __init__(
        self, values: Mapping[str, Any], count: int, stop: Stop, devices: Sequence[int] = ()
    ) -> None:
        """`devices` are the numbers of the CUDA devices to use, where these are not all."""
        self.values, self.count, self.stop, self.devices = values, count, stop, devices

    def train(self) -> bool:
        """Train to the last step; False if a signal asked to stop, after a checkpoint.

        Raises: RankError for the one that has failed first, when all have ended.
        """
        store = distributed.meeting("127.0.0.1", 0, hosts=True)
        started: list[subprocess.Popen[str]] = []
        try:
            for rank in range(self.count):
                started.append(self._start(self._environment(rank, store.port)))
            said = [thread for one in started for thread in _handed_on(one)]
            ended = self._attend(started)
        finally:
            for one in started:
                _end(one)
        for thread in said:
            thread.join(5)  # whoever they have started themselves may still hold the other end
        failed = {rank: status for rank, status in ended if status not in (DONE, STOPPED)}
        if failed:
            first = next((rank for rank in failed if failed[rank] != LOST), next(iter(failed)))
            raise RankError(first, failed[first])
        return all(status == DONE for _, status in ended)

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        there = ",".join(map(str, range(torch.cuda.device_count())))
        visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or there).split(",")
        chosen = [visible[device] for device in self.devices]
        return {
            "OMP_NUM_THREADS": str(max(1, (distributed.THREADS - 1) // self.count)),
            **os.environ,
            **({"CUDA_VISIBLE_DEVICES": ",".join(chosen)} if chosen else {}),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first process need not keep one
        }

    def _start(self, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        pipe = None if sys.stdout is sys.__stdout__ else subprocess.PIPE
        started = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=pipe,
            stderr=pipe,
            env={**environment, **({"PYTHONIOENCODING": "utf-8"} if pipe else {})},
            encoding="utf-8",
            errors="replace",
            **system.APART,  # a terminal's Ctrl-C is the starter's to hand on, once
        )
        _write(started, json.dumps(yaml.safe_dump({**self.values, "processes": 1})))
        return started

    def _attend(self, started: Sequence[subprocess.Popen[str]]) -> Sequence[tuple[int, int]]:
        """Ranks and their statuses, in the order in which they have ended."""
        ended: dict[int, int] = {}
        asked, until = False, inf
        while len(ended) < len(started):
            for rank, one in enumerate(started):
                if rank not in ended and one.poll() is not None:
                    ended[rank] = one.returncode
                    if one.returncode not in (DONE, STOPPED):
                        until = min(until, time.monotonic() + GRACE)
            stopping = bool(self.stop)  # once for all ranks: a signal may come between them
            for one in started:
                if time.monotonic() > until:
                    one.kill()
                elif stopping and not asked:
                    _write(one, self.stop.name)
            asked = stopping
            time.sleep(distributed.TICK)
        return list(ended.items())


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # of a last line that it has not read
        process.stdin.close()


def _handed_on(process: subprocess.Popen[str]) -> list[threading.Thread]:
    """Threads that say what the process says, where it does not do so itself."""
    pairs = [(process.stdout, sys.stdout), (process.stderr, sys.stderr)]
    threads = [
        threading.Thread(target=_hand_on, args=(source, stream), daemon=True)
        for source, stream in pairs
        if source is not None
    ]
    for thread in threads:
        thread.start()
    return threads


def _hand_on(source: IO[str], stream: TextIO) -> None:
    with source:
        for line in source:
            stream.write(line)
            stream.flush()


def main() -> int:
    """Be one of the ranks; the exit status says how it went."""
    from gan.commands import train  # which starts ranks

    spell_out()
    orders = io.FileIO(sys.stdin.fileno(), closefd=False)  # without a lock that a thread may hold
    values = yaml.safe_load(json.loads(orders.readline()))
    stop = Stop()
    try:
        with stop:
            threading.Thread(target=_obey, args=(orders, stop), daemon=True).start()
            with distributed.group():
                try:
                    trainer = train.built(values, stop)
                except (ValueError, OSError) as error:
                    raise UsageError(str(error)) from error
                return DONE if trainer.train() else STOPPED
    except KeyboardInterrupt:  # before the training: nothing was to be saved
        return STOPPED
    except UsageError as error:
        return train.fail(error)
    except distributed.FirstError:  # it has said why, or was stopped as this one is
        return STOPPED if stop else LOST
    except distributed.PeerError as error:
        train.fail(error)
        return LOST
    except FloatingPointError as error:
        train.fail(error)
        return DIVERGED
    except Exception:
        traceback.print_exc()
        return FAILED


def _obey(orders: Iterable[bytes], stop: Stop) -> None:
    """Stop when the starter says so, unless a signal did, and end with it."""
    for line in orders:
        if not stop:
            stop.name = line.decode().strip()
            if stop.interrupts:  # what is being built is left as by that signal
                system.send(signal.SIGTERM)
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main())
