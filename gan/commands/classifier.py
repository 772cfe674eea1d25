"""`gan classifier`: train a classifier of a store's fields, for feature losses and as a judge."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from gan import distributed
from gan.data.datasets import Images
from gan.data.store import Store
from gan.data.stream import Stream
from gan.features import EPOCHS, FOLDER, Lesson, Training, fitted, in_words
from gan.registry import Count, Fraction, names
from gan.signature import coerce, nearest


def add_parser(commands: Any) -> None:
    """Adds `classifier` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("classifier", help=__doc__)
    parser.add_argument("store", type=Path, help="NAME.lmdb")
    parser.add_argument("--fields", help="integer fields, as style,character (all that vary)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes ({EPOCHS})")
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share of the images it is tested on (0.1)"
    )
    parser.add_argument("--width", type=int, default=32, help="channels of the first maps (32)")
    parser.add_argument("--loss", choices=names("classification"), default="cross_entropy")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"where to keep it (a folder in {FOLDER})"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains the classifier, unless it is there already, and prints how well it names images."""
    training = Training(
        coerce(Count, args.epochs, "--epochs"),
        coerce(Fraction, args.held_out, "--held-out"),
        args.loss,
    )
    store, device = Store(args.store), distributed.device(args.device)
    labels = chosen(store, args.fields)
    lesson = Lesson(
        Stream(Images(store), 1, 0, device, ("real",)).images,
        np.arange(store.count),
        labels,
        store.content_hash,
    )
    settings = {"name": "small", "channels": store.shape[2], "width": args.width}
    result = fitted(settings, lesson, device, training, args.out)
    print(f"{result.path}: {', '.join(labels)} of {store.path}; {in_words(result.accuracy)}")
    return 0


def chosen(store: Store, fields: str | None) -> dict[str, np.ndarray]:
    """The named fields of a store, or all with more than one value: labels [N] from 0 on.

    Raises: ValueError for a field that is not there or has negative values, or no field at all.
    """
    varying = [name for name, label in store.fields.items() if label.min() != label.max()]
    wanted = varying if fields is None else fields.split(",")
    if not wanted:
        raise ValueError(f"{store.path} has no integer field with more than one value to learn")
    for name in wanted:
        if name not in store.fields:
            raise ValueError(
                f"--fields: {name} is no field of {store.path}; {nearest(name, store.fields)}"
            )
        if store.fields[name].min() < 0:
            raise ValueError(
                f"--fields: {name} of {store.path} has negative values, which are no classes; "
                f"name other fields of {', '.join(store.fields)}"
            )
    return {name: store.fields[name] for name in wanted}
