"""Several processes that train together: forked, over gloo and a file, on the CPU."""

import contextlib
import datetime
import gc
import os
import shutil
import signal
import tempfile
import threading
import traceback
from pathlib import Path

import torch
import torch.distributed

PATIENCE = 120.0  # seconds after which processes that hang are killed, or twice their time-out


def forked(work, count=2, timeout=20.0):
    """Call `work(rank)` in so many processes; their results, or the tracebacks of those that fail.

    A result is tensors, numbers and texts. A process that is killed gives "killed".
    """
    folder = Path(tempfile.mkdtemp())
    children = [_fork(work, rank, count, folder, timeout) for rank in range(count)]
    timer = threading.Timer(max(PATIENCE, 2 * timeout), _kill, (children,))
    timer.start()
    for child in children:
        os.waitpid(child, 0)
    timer.cancel()
    try:
        return [_read(folder / str(rank)) for rank in range(count)]
    finally:
        shutil.rmtree(folder)


def _kill(children):
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _fork(work, rank, count, folder, timeout):
    child = os.fork()
    if child:
        return child
    status = 1
    gc.freeze()  # what is garbage here may have threads that only the parent has, to be waited for
    try:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = torch.distributed.FileStore(str(folder / "store"), count)
        torch.distributed.init_process_group(
            "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=datetime.timedelta(seconds=timeout),
        )
        torch.save({"result": work(rank)}, folder / f"{rank}.part")
        (folder / f"{rank}.part").rename(folder / str(rank))
        status = 0
    except BaseException:
        torch.save({"error": traceback.format_exc()}, folder / f"{rank}.part")
        (folder / f"{rank}.part").rename(folder / str(rank))
    finally:
        os._exit(status)
    return 0


def _read(path):
    if not path.exists():
        return "killed"
    found = torch.load(path, weights_only=True)
    return found["result"] if "result" in found else found["error"]
