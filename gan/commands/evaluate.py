"""`gan evaluate`: how good a trained run is, as a table, a page with pictures, and numbers."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan.metrics.report import Report
    from gan.runs import Run

WEIGHTS = {
    "inception": "weights of the Inception network of 2015, for FID, KID and inception score",
    "vgg16": "torchvision's weights of VGG-16, for precision, recall, density and coverage",
    "lpips": "torchvision's weights of AlexNet, VGG-16 or SqueezeNet 1.1, for LPIPS of pairs",
}


def add_parser(commands: Any) -> None:
    """Adds `evaluate` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("evaluate", help=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or one of its checkpoints")
    parser.add_argument("--checkpoint", default="last", help="last, best, or a step (last)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the report goes (evaluation/ in the run)"
    )
    parser.add_argument(
        "--count", type=int, help="images to draw (50000 with a reference network, else 10000)"
    )
    for name, what in WEIGHTS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "--download", action="store_true", help="fetch those weights, which nothing else does"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plugins", action="store_true", help="import the run's own modules")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measures the raw and every averaged generator, writes the report and prints its tables."""
    from gan import distributed, runs
    from gan.config.signature import coerce
    from gan.metrics import report
    from gan.registry import Count
    from gan.trained.reports import Options, report_of

    count = None if args.count is None else coerce(Count, args.count, "--count")
    given = {name: getattr(args, name) for name in WEIGHTS if getattr(args, name)}
    options = Options(count, given, args.download)
    device = distributed.device(args.device)
    loaded = runs.every(args.run, device, args.plugins, args.checkpoint)
    last = [*loaded.values()][-1]
    found = report_of(loaded, runs.dataset(last), device, options)
    print(found.text, found.verdict, sep="\n\n")
    out = args.out or last.folder / "evaluation"
    for path in report.write(found, facts(loaded), out):
        print(path)
    if args.out is None and last.folder != last.path.parent:
        note(last, found)
    return 0


def facts(loaded: dict[str, "Run"]) -> dict[str, Any]:
    """What was evaluated."""
    last = [*loaded.values()][-1]
    return {
        "run": str(last.folder),
        "checkpoint": last.path.name,
        "step": last.step,
        "recipe": last.config["recipe"]["name"],
        "weights": f"{last.weights}, beside {', '.join([*loaded][:-1]) or 'nothing'}",
        "device": str(last.device),
    }


def note(last: "Run", found: "Report") -> None:
    """Adds a report to the run's own log, at the checkpoint's step; not while it is training."""
    from gan.log import noted
    from gan.registry import ConfigError
    from gan.run import rundir

    try:
        rundir.hold(last.folder)
    except ConfigError as error:
        print(f"gan: the numbers are not added to the run's log: {error}", file=sys.stderr)
        return
    try:
        numbers = {f"evaluation/{tag}": value for tag, value in found.numbers.items()}
        text = f"{found.verdict}\n\n{found.text}"
        noted(last.folder, last.clocks, numbers, text, found.pictures.values())
    finally:
        rundir.release(last.folder)
