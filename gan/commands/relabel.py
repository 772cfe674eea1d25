"""`gan relabel`: correct the labels of a store of which some are wrong, in a file beside it."""

import argparse
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from gan import distributed
from gan.commands.classifier import chosen
from gan.config.signature import coerce
from gan.data.datasets import Images
from gan.data.labels import Labels, require_free, write_labels
from gan.data.store import Store
from gan.data.stream import Stream
from gan.features import Lesson, alone
from gan.registry import Fraction, Whole
from gan.robust.belief import corrupted
from gan.robust.relabel import Settings, correct, plain
from gan.system import POSIX

MOST = 10  # changes listed, of the most frequent and of the surest
_KINDS = get_type_hints(Settings, include_extras=True)
_HELP = {
    "epochs": "passes over the images",
    "start": "epochs before the labels first move",
    "window": "epochs whose predictions are averaged",
    "alpha": "weight of the loss that keeps the classes as frequent as they are",
    "beta": "weight of the predictions' entropy",
    "lr": "learning rate: high, so that no image is learnt by heart",
    "shift": "pixels by which images are moved at most",
    "width": "channels of the first maps",
    "batch_size": "images per update",
    "seed": "of the training",
}


def add_parser(commands: Any) -> None:
    """Adds `relabel` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("relabel", help=__doc__)
    parser.add_argument("store", type=Path, help="NAME.lmdb; it is read only")
    parser.add_argument("--field", help="the field to correct (the one that varies)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="NAME.FIELD.labels.safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    training = parser.add_argument_group("training")
    for name, text in _HELP.items():
        default = Settings._field_defaults[name]
        option = f"--{name.replace('_', '-')}"
        training.add_argument(
            option, type=type(default), default=default, help=f"{text} ({default})"
        )
    training.add_argument("--hard", action="store_true", help="labels are classes, not shares")
    training.add_argument(
        "--evidence", action="store_true", help="the given label counts beside the prediction"
    )
    training.add_argument(
        "--apart",
        metavar="FIELD",
        help="images alike in this field have different labels, as the styles of a character",
    )
    rehearsal = parser.add_argument_group("rehearsal")
    rehearsal.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="replace this share of the labels by other classes first, and tell what comes of it",
    )
    rehearsal.add_argument("--noise-seed", type=int, default=0, help="which ones (0)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Corrects the labels, unless there is such a file already, and prints what has changed."""
    settings = Settings(
        **{
            name: coerce(kind, getattr(args, name), f"--{name.replace('_', '-')}")
            for name, kind in _KINDS.items()
        }
    )
    noise = coerce(Fraction, args.noise, "--noise")
    noise_seed = coerce(Whole, args.noise_seed, "--noise-seed")
    store, device = Store(args.store), distributed.device(args.device)
    field, truth = _field(store, args.field)
    names = list(store.names.get(field, ()))
    names += map(str, range(len(names), truth.max() + 1))
    groups = None if args.apart is None else _field(store, args.apart, "--apart")[1]
    given = corrupted(truth, len(names), noise, noise_seed) if noise else truth
    rehearsal = f"rehearsal-{noise:g}-{noise_seed}." if noise else ""
    out = args.out or store.path.with_suffix(f".{field}.{rehearsal}labels.safetensors")
    folder = out.with_name(f".{out.name}.training")
    require_free(out, args.overwrite)
    images = Stream(Images(store), 1, 0, device, ("real",)).images
    lesson = Lesson(images, np.arange(store.count), {field: given}, store.content_hash)
    with alone(folder, print):
        require_free(out, args.overwrite)  # another process may have been here first
        soft = correct(lesson, len(names), settings, device, folder / "joint", groups=groups)
        label = soft.argmax(1)
        ordinary = plain(lesson, len(names), settings, device, folder / "plain") if noise else None
        facts = settings._asdict() | {"apart": args.apart, "noise": noise, "noise_seed": noise_seed}
        labels = Labels(store.content_hash, field, label, given, soft, facts)
        write_labels(out, labels, overwrite=args.overwrite)
        shutil.rmtree(folder, ignore_errors=not POSIX)  # its lock's file may have to stay
    print(f"\n{out}: {changes(labels, names, store.keys)}")
    if ordinary is not None:
        rows = {"given": given, "plain training": ordinary.argmax(1), "joint optimisation": label}
        print(f"\n{rehearsed(rows, given, truth)}")
    return 0


def _field(store: Store, name: str | None, option: str = "--field") -> tuple[str, np.ndarray]:
    """The named field of a store, or the only one that varies, with its labels [N].

    Raises: ValueError where there is none, or more than one to choose from.
    """
    fields = chosen(store, name, option)
    if len(fields) > 1:
        raise ValueError(f"{option} names one of {', '.join(fields)}: {store.path} has several")
    ((field, label),) = fields.items()
    return field, label


def changes(labels: Labels, names: Sequence[str], keys: Sequence[str]) -> str:
    """How many labels have changed, the most frequent changes, and the surest ones with keys."""
    given, label, count = labels.given, labels.label, len(labels.label)
    changed = np.flatnonzero(label != given)
    share = f"{len(changed) / count:.1%}"
    head = f"{len(changed)} of {count} labels of {labels.field} changed ({share})"
    flows = Counter(zip(given[changed].tolist(), label[changed].tolist(), strict=True))
    sure = labels.soft.max(1)
    surest = changed[np.argsort(-sure[changed], kind="stable")][:MOST]
    return "\n".join(
        [
            head,
            f"\nmost frequent changes, of {len(flows)}:",
            *(f"{n:6d}  {names[a]} -> {names[b]}" for (a, b), n in flows.most_common(MOST)),
            "\nsurest changes:",
            *(
                f"{sure[row]:6.3f}  {names[given[row]]} -> {names[label[row]]}  {keys[row]}"
                for row in surest
            ),
        ]
    )


def rehearsed(labels: Mapping[str, np.ndarray], given: np.ndarray, truth: np.ndarray) -> str:
    """A table of what several kinds of labels have right, and of the wrong ones that they keep."""
    wrong = given != truth
    lines = ["                    |  right | as given | wrong ones kept"]
    lines.append("-" * len(lines[0]))
    for name, label in labels.items():
        right, same = (label == truth).mean(), (label == given).mean()
        kept = (label == given)[wrong].mean()
        lines.append(f"{name:19} | {right:6.1%} | {same:8.1%} | {kept:15.1%}")
    return "\n".join(lines)
