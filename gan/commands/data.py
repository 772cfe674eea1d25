"""`gan data`: build a store out of images of any kind, and verify one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gan.data.builder import Source
from gan.data.building import build, listed
from gan.data.sources import embedded, guess, kind
from gan.data.store import verify
from gan.data.torchvision_sets import SETS, TorchvisionSet

SHEETS = "hanzi", "hanzi-web", "hanzi-more"


def add_parser(subparsers: Any) -> None:
    """Adds `data` with its two commands, each with the function `func(args) -> exit status`."""
    commands = subparsers.add_parser("data", help=__doc__).add_subparsers(required=True)
    _add_build(commands.add_parser("build", help="make a store of images or fonts"))
    verifying = commands.add_parser("verify", help="read a whole store and list what is damaged")
    verifying.add_argument("store", type=Path, help="NAME.lmdb")
    verifying.set_defaults(func=run_verify)


def _add_build(building: argparse.ArgumentParser) -> None:
    building.add_argument(
        "source",
        type=Path,
        help="a folder of images, fonts or glyph sheets; a .zip or .tar of images, or "
        "ARCHIVE/FOLDER within it; an LMDB of LSUN or BasicSR; with --dataset the folder it is in",
    )
    building.add_argument(
        "store",
        type=Path,
        help="NAME.lmdb; for a folder of fonts also hanzi, hanzi-web or hanzi-more, the embedded "
        "glyph sheets",
    )
    building.add_argument("--size", type=_positive, default=64, help="pixels a side (64)")
    building.add_argument("--channels", type=_positive, help="1 or 3 (images 3, glyphs 1)")
    building.add_argument("--overwrite", action="store_true", help="replace what is there")
    fonts = building.add_argument_group("fonts")
    fonts.add_argument("--characters", help="those to draw, as text or as a UTF-8 file of them")
    fonts.add_argument("--prototype", help="the id of the standard font")
    sets = building.add_argument_group("data sets of torchvision")
    sets.add_argument("--dataset", choices=sorted(SETS))
    sets.add_argument("--part", help="train, test or another part of it (train)")
    sets.add_argument("--download", action="store_true", help="fetch what is missing")
    building.set_defaults(func=run_build)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run_build(args: argparse.Namespace) -> int:
    """Builds a store, or the embedded glyph sheets out of fonts; lists what was left out."""
    if args.store.resolve().name in SHEETS:
        return _build_sheets(args)
    if args.store.suffix != ".lmdb":
        raise ValueError(f"STORE must end in .lmdb, unlike {args.store}")
    source = _source(args)
    report = build(source, args.store, overwrite=args.overwrite)
    height, width, channels = source.shape
    print(f"{report.path}: {report.count} images of {height}x{width}x{channels} from {source.name}")
    if report.rejected:
        print(f"{len(report.rejected)} left out:")
        print(listed(report.rejected, len(report.rejected)))
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.dataset is None:
        _refuse(args, ("part", "download"), "is for the data sets of torchvision: name --dataset")
        return guess(args.source, args.size, args.channels, args.characters, args.prototype)
    _refuse(args, ("characters", "prototype"), "is for fonts, not for --dataset")
    part = args.part or "train"
    return TorchvisionSet(
        args.dataset, args.source, args.size, args.channels or 3, part, args.download
    )


def _refuse(args: argparse.Namespace, options: Sequence[str], why: str) -> None:
    """Raises: ValueError for an option that is given and would not be read."""
    for option in options:
        if getattr(args, option):
            raise ValueError(f"--{option} {why}")


def _build_sheets(args: argparse.Namespace) -> int:
    if kind(args.source) != "fonts":
        raise ValueError(f"STORE must end in .lmdb, unlike {args.store}: {args.source} has no font")
    others = "dataset", "part", "download", "characters", "prototype", "channels"
    _refuse(args, others, f"is not for {args.store}, the embedded glyph sheets")
    from gan.data import embedded as sets
    from gan.data.sheets import build_sheets, level_one, read_index

    which: dict[str, Any] = {}
    name = args.store.resolve().name
    characters = "" if name == "hanzi" else read_index(embedded("hanzi"))["characters"]
    if name == "hanzi-web":
        styles, prototype = sets.WEB_STYLES, sets.WEB_PROTOTYPE
        which = {"styles": styles, "characters": characters, "prototype": prototype}
    if name == "hanzi-more":
        which = {
            "styles": sets.STYLES | sets.WEB_STYLES,
            "characters": "".join(sorted(level_one() - {*characters})),
            "every": sets.EVERY,
            "framed": characters,
            "region": sets.LEVEL_RULE,
        }
    sheets = build_sheets(args.source, args.store, overwrite=args.overwrite, **which)
    for difference in sheets.differences:
        print(difference)
    if not sheets.written:
        print(f"{args.store} was left as it is; --overwrite replaces it")
        return 0
    print(f"{sheets.path}: sheets of {sheets.styles} styles, {sheets.bytes} bytes")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Prints what is damaged; the status is 1 if anything is."""
    result = verify(args.store)
    for part, reason in result.damages:
        print(f"{part}: {reason}")
    if result.damages:
        print(f"{args.store}: {len(result.damages)} parts are damaged; build or copy it again")
        return 1
    print(f"{args.store}: {result.count} images, all whole")
    return 0
