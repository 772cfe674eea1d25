"""Time of a step in one process and in two with the same batch, taken in turn, and bytes sent.

    PYTHONPATH=.:tests python tests/benchmarks/processes.py model=dcgan trainer.batch_size=64

Two processes share the machine's cores: on few of them only processor time says something.
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


def main(overrides):
    values = composed(overrides)
    print("processes  wall ms  processor ms  gradient MB a step")
    for _ in range(ROUNDS):
        for count in (1, 2):
            folder = str(Path(tempfile.mkdtemp()) / "run")
            found = forked(timed(values, folder), count, timeout=300.0)
            assert all(isinstance(result, list) for result in found), found
            wall = max(result[0] for result in found)
            processor = sum(result[1] for result in found)
            line = f"{wall * 1e3:7.0f}  {processor * 1e3:12.0f}  {found[0][2] / 1e6:.2f}"
            print(f"{count:9}  {line}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
