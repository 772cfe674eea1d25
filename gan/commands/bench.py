"""`gan bench`: what this machine reaches, what limits it, what the framework costs.

`gan bench data|step|train|gpu|scale`, with options as KEY=VALUE: case, size, model, batch, records,
rounds, steps, images, threads, folder; what no chosen case reads is refused. Cases that do not run
by themselves are chosen by name. Every result is one line of JSON; what it means follows in words
on standard error, so that results can be redirected.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SUBJECTS = {
    "data": "reading a store",
    "step": "a training step beside loops by hand",
    "train": "a training loop: waiting for data, and what limits it",
    "gpu": "the same on a GPU",
    "scale": "growth with batch, image, store and loss terms",
}


def add_parser(commands: Any) -> None:
    """Adds `bench` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("bench", help=__doc__.partition("\n")[0], description=__doc__)
    parser.add_argument(
        "subject",
        choices=SUBJECTS,
        help="; ".join(f"{name}: {what}" for name, what in SUBJECTS.items()),
    )
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="folder for the plot of scale, scale.png")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prints a JSON object for every case, then one paragraph of advice."""
    import torch

    from gan.bench import data, games, gpu, scale, steps, train
    from gan.bench.options import parse
    from gan.bench.paired import in_words

    subjects = {"data": data, "step": steps, "train": train, "gpu": gpu, "scale": scale}
    chosen: Any = subjects[args.subject]
    given = {} if chosen is data else {"compose": compose}
    models = gpu.GAMES if chosen is gpu else games.MODELS
    options = parse(args.options, chosen.READS, list(models), chosen.DEFAULT)
    draw = None if args.out is None else _drawing(args.subject, args.out)
    torch.set_num_threads(options.threads)
    rows = []
    for case in options.case or chosen.DEFAULT:
        for row in chosen.CASES[case](options, **given):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if draw is not None:
        draw(rows)
    if said := chosen.advice(rows) or in_words(rows):
        print(f"\n{said}", file=sys.stderr)
    return int(any("failed" in row for row in rows))


def _drawing(subject: str, out: Path) -> Callable[[Sequence[Any]], None]:
    """What draws rows into a folder.

    Raises: ValueError before anything is measured, where nothing can be drawn.
    """
    if subject != "scale":
        raise ValueError(f"--out={out}: only `gan bench scale` draws a plot, not {subject}")
    try:
        from gan.bench.growth import draw
    except ImportError:
        raise ValueError(f"--out={out} needs matplotlib: pip install 'gan[compare]'") from None
    out.mkdir(parents=True, exist_ok=True)
    return partial(draw, path=out / "scale.png")


def compose(*overrides: str) -> dict[str, Any]:
    """The values of a configuration, as on the command line."""
    import hydra
    from omegaconf import OmegaConf

    from gan.commands.composing import fitted
    from gan.commands.train import conf_dir, switched_on

    given = [*map(switched_on, overrides)]
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        config = hydra.compose("config", given)
        fitted(config, given)
        values: Any = OmegaConf.to_container(config, resolve=True)
    return values
