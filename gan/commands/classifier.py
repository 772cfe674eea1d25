"""`gan classifier`: train a classifier of a store's fields, for feature losses and as a judge."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gan import distributed
from gan.commands.arguments import folder
from gan.config.signature import coerce, conform, nearest
from gan.data.datasets import Images
from gan.data.store import Store
from gan.data.stream import Stream
from gan.features import EPOCHS, FOLDER, Lesson, Training, accuracy_under, fitted, in_words
from gan.networks.pretrained import stored
from gan.registry import Count, Fraction, entry, names


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
    known = "|".join(names("perturbation"))
    parser.add_argument(
        "--train-against",
        metavar="NAME[,key=value...]",
        help=f"a perturbation of every image while it learns, as pgd,radius=0.2,steps=5 ({known})",
    )
    parser.add_argument(
        "--attack",
        action="append",
        default=[],
        metavar="NAME[,key=value...]",
        help="a perturbation under which the held-out images are named; may be given often",
    )
    parser.add_argument(
        "--through",
        type=Path,
        metavar="FOLDER",
        help="another classifier, of the same fields, that the attacks are made on",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help=f"where to keep it (a folder in {FOLDER})"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains the classifier, unless it is there already, and prints how well it names images."""
    training = Training(
        coerce(Count, args.epochs, "--epochs"),
        coerce(Fraction, args.held_out, "--held-out"),
        args.loss,
        perturbation(args.train_against, "--train-against") if args.train_against else {},
    )
    attacks = {text: perturbation(text, "--attack") for text in args.attack}
    if attacks and not training.held_out:
        raise ValueError("--attack is measured on held-out images: --held-out must be above 0")
    if args.through and not attacks:
        raise ValueError("--through is what an --attack is made on: name one")
    store, device = Store(args.store), distributed.device(args.device)
    labels = chosen(store, args.fields)
    lesson = Lesson(
        Stream(Images(store), 1, 0, device, ("real",)).images,
        np.arange(store.count),
        labels,
        store.content_hash,
    )
    settings = {"name": "small", "channels": store.shape[2], "width": args.width}
    through = other(args.through, labels, store.shape[2]).to(device) if args.through else None
    result = fitted(settings, lesson, device, training, args.out)
    print(f"{result.path}: {', '.join(labels)} of {store.path}; {in_words(result.accuracy)}")
    for text, against in attacks.items():
        share = accuracy_under(against, result.network, lesson, training.held_out, through)
        origin = f" through {args.through}" if through else ""
        print(f"under {text}{origin}: {in_words({'held_out': share})}")
    return 0


def perturbation(text: str, option: str) -> dict[str, Any]:
    """The name and all settings of a registered perturbation, as `pgd,radius=0.2`.

    Raises: ValueError for an unknown name or key, or a value that does not fit.
    """
    name, *given = text.split(",")
    found = entry("perturbation", name, option)
    values = {}
    for part in given:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{option} {text}: {part!r} must be written key=value")
        values[key] = _plain(value)
    return {"name": name, **conform(found.parameters, values, f"{option} {name}")}


def _plain(value: str) -> Any:
    try:
        return json.loads(value)  # numbers, true, false and null
    except json.JSONDecodeError:
        return value


def other(folder: Path, labels: Mapping[str, np.ndarray], channels: int) -> nn.Module:
    """The classifier in a folder, which must know the classes of these fields.

    Raises: ValueError where it does not.
    """
    network: Any = stored(folder, channels)
    known = {name: len(head.bias) for name, head in zip(network.fields, network.heads, strict=True)}
    for name, label in labels.items():
        if known.get(name) != int(label.max()) + 1:
            raise ValueError(
                f"--through {folder} does not know the {int(label.max()) + 1} classes of {name}: "
                f"it tells {', '.join(f'{count} of {field}' for field, count in known.items())}"
            )
    return network


def chosen(store: Store, fields: str | None, option: str = "--fields") -> dict[str, np.ndarray]:
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
                f"{option}: {name} is no field of {store.path}; {nearest(name, store.fields)}"
            )
        if store.fields[name].min() < 0:
            raise ValueError(
                f"{option}: {name} of {store.path} has negative values, which are no classes; "
                f"name other fields of {', '.join(store.fields)}"
            )
    return {name: store.fields[name] for name in wanted}
