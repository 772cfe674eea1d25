"""Clocks and memory of devices."""

import gc

import torch

from gan.bench.paired import Timer, Work, by, processor


def timer(device: torch.device) -> Timer:
    """On CUDA the seconds between two events around a work; elsewhere processor time.

    The device is idle before, and the work is awaited.
    """
    if device.type != "cuda":
        return by(processor)

    def timed(work: Work) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait(device)
        before.record()
        work()
        after.record()
        wait(device)
        return before.elapsed_time(after) / 1e3

    return timed


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back the memory of what nobody holds any more."""
    gc.collect()  # a trainer and its players hold each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
