"""What a step that one GPU was measured to take would be on several: scale on paper.

    PYTHONPATH=tests python tests/benchmarks/scaling.py wnet=80.2 dcgan=12.8 sngan=33.5

Gradients go round a ring after each update, and nothing else is done meanwhile: each process sends
2 (n - 1) messages of an n-th of them. Before each step goes one number more: whether any process
was asked to stop. Eight processes share a node. Speeds are those of data sheets and latencies are
assumed; change them for the links at hand.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

COUNTS = 1, 2, 4, 8, 16, 32, 64
NODE = 8  # processes
ASKED = 4e-6  # MB: one float


class Link(NamedTuple):
    """GB/s in one direction, and microseconds until a message has come."""

    speed: float
    latency: float


class Sent(NamedTuple):
    """MB of fp32 gradients of an update of each player, and the discriminator's updates a step."""

    generator: float
    discriminator: float
    n_critic: int = 1


INSIDE = Link(450.0, 5.0)  # NVLink of the fourth generation
BETWEEN = Link(25.0, 15.0)  # 200 Gb/s for a node
ETHERNET = Link(1.25, 50.0)  # 10 Gb/s
PRESETS = {
    "acgan": Sent(6.24, 3.01),
    "cgan": Sent(17.35, 4.22, 5),
    "cyclegan": Sent(2.74, 1.33),
    "dcgan": Sent(4.73, 2.65),
    "dragan": Sent(4.27, 2.65),
    "lsgan": Sent(4.73, 2.65, 2),
    "pix2pix": Sent(16.65, 0.67),
    "r3gan": Sent(82.92, 82.73),
    "sngan": Sent(17.09, 4.21, 5),
    "wgan": Sent(4.27, 2.65, 5),
    "wgan_gp": Sent(4.81, 4.21, 5),
    "wnet": Sent(12.85, 1.11),
}


def all_reduce(megabytes: float, processes: int, link: Link) -> float:
    """Milliseconds of a ring."""
    messages = 2 * (processes - 1)
    return messages * (megabytes / processes / link.speed + link.latency / 1e3)


def communication(sent: Sent, processes: int, between: Link = BETWEEN) -> float:
    """Milliseconds of a step in which gradients are averaged; the slowest link sets the pace."""
    link = INSIDE if processes <= NODE else between
    messages = ASKED, sent.generator, *[sent.discriminator] * sent.n_critic
    return sum(all_reduce(megabytes, processes, link) for megabytes in messages)


def weak(step: float, waiting: float) -> float:
    """Efficiency where the total batch grows with the processes: each has a batch of its own."""
    return step / (step + waiting)


def strong(fixed: float, shared: float, processes: int, waiting: float) -> float:
    """Efficiency where one batch is split: `fixed` milliseconds of a step do not become fewer."""
    return (fixed + shared) / (processes * (fixed + waiting) + shared)


def main(words: Sequence[str]) -> None:
    """Print a table of Markdown, of milliseconds and of the efficiency where steps are known."""
    known = {name: float(step) for name, step in (word.split("=") for word in words)}
    print("| preset | MB a step |", *(f"{count} |" for count in COUNTS), "64 over 10 Gb/s |")
    print("| --- | --- |", *("--- |" for _ in (*COUNTS, 64)))
    for name, sent in PRESETS.items():
        waits = [communication(sent, count) for count in COUNTS]
        waits.append(communication(sent, 64, ETHERNET))
        total = sent.generator + sent.n_critic * sent.discriminator
        step = known.get(name)
        cells = [f"{wait:.2f} ms" for wait in waits]
        if step is not None:
            cells = [
                f"{cell}, {100 * weak(step, wait):.0f} %"
                for cell, wait in zip(cells, waits, strict=True)
            ]
        print(f"| {name} | {total:.2f} |", *(f"{cell} |" for cell in cells))


if __name__ == "__main__":
    main(sys.argv[1:])
