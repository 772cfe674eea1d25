"""Time of a step in one process and in two with the same batch, taken in turn, and bytes sent.

    PYTHONPATH=.:tests python tests/benchmarks/processes.py model=dcgan trainer.batch_size=64

Two processes share the machine's cores: on few of them only processor time says something. What
they should take together is twice a step of half the batch, and what sending takes by itself.
"""

import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf
from ranks import forked

from gan import distributed
from gan.build import build
from gan.commands.train import conf_dir

STEPS, ROUNDS = 3, 3


def composed(overrides):
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)


def timed(values, folder):
    """Work for `forked`: wall and processor seconds of a step, and the bytes of all gradients."""

    def work(rank):
        run = build({**values, "run_dir": folder}, say=lambda text: None)
        distributed.replicate(run.recipe.state_dict().values())
        run.play()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            run.play()
        sizes = [
            4 * sum(p.numel() for p in player.parameters) * turns
            for player, turns in zip(run.players, (1, run.settings.critic(0)), strict=True)
        ]
        spent = time.perf_counter() - wall, time.process_time() - processor
        return [*(seconds / STEPS for seconds in spent), sum(sizes)]

    return work


def sending(total):
    """Work for `forked`: wall and processor seconds of averaging so many bytes of gradients."""

    def work(rank):
        weight = torch.nn.Parameter(torch.zeros(total // 4))
        weight.grad = torch.ones_like(weight)
        distributed.average_gradients([weight], torch.zeros(()))
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(10 * STEPS):
            distributed.average_gradients([weight], torch.zeros(()))
        spent = time.perf_counter() - wall, time.process_time() - processor
        return [*(seconds / (10 * STEPS) for seconds in spent), total]

    return work


def shown(name, work, count):
    """Print what the work takes in so many processes; its processor seconds in all, and bytes."""
    found = forked(work, count, timeout=300.0)
    assert all(isinstance(result, list) for result in found), found
    wall, processor = max(result[0] for result in found), sum(result[1] for result in found)
    total = found[0][2]
    print(f"{name:25}  {wall * 1e3:7.1f}  {processor * 1e3:12.1f}  {total / 1e6:.2f}", flush=True)
    return processor, int(total)


def main(overrides):
    values = composed(overrides)
    half = {**values, "trainer": {**values["trainer"]}}
    half["trainer"]["batch_size"] //= 2
    print(f"{'':25}  wall ms  processor ms  gradient MB a step")
    for _ in range(ROUNDS):
        folder = str(Path(tempfile.mkdtemp()) / "run")
        shown("one process", timed(values, folder), 1)
        alone, total = shown("one with half the batch", timed(half, folder + "-half"), 1)
        shown("two processes", timed(values, folder + "-two"), 2)
        sent, _ = shown("two that average alone", sending(total), 2)
        print(f"{'two, as expected':25}  {'':7}  {1e3 * (2 * alone + sent):12.1f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
