"""`gan evaluate`: how good a trained run is, as a table, a page with pictures, and numbers."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan.commands.arguments import folder

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
        "--out",
        type=folder,
        metavar="FOLDER",
        help="where the report goes (in the run: evaluation/, of the best evaluation-best/, of a "
        "step evaluation-STEP/)",
    )
    parser.add_argument(
        "--count", type=int, help="images to draw (50000 with a reference network, else 10000)"
    )
    parser.add_argument(
        "--adapt",
        type=int,
        default=0,
        metavar="STEPS",
        help="measure a W-Net also when it has learnt the references of each style by heart, in so "
        "many steps, such as 40 (0: only as it was trained); most of an hour of a CPU",
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
    """Measures the raw and every averaged generator, writes the report and prints its tables.

    Of a run that keeps a best checkpoint, that one stands beside the last.
    """
    from gan import distributed, runs
    from gan.config.signature import coerce
    from gan.metrics import report
    from gan.registry import Count, Whole
    from gan.trained.reports import Options, report_of

    count = None if args.count is None else coerce(Count, args.count, "--count")
    given = {name: getattr(args, name) for name in WEIGHTS if getattr(args, name)}
    steps = coerce(Whole, args.adapt, "--adapt")
    options = Options(count, given, args.download, steps, strict=True)
    device = distributed.device(args.device)
    loaded = runs.every(args.run, device, args.plugins, args.checkpoint)
    last = [*loaded.values()][-1]
    found = report_of(loaded, runs.dataset(last), device, options)
    said = facts(loaded)
    print(found.text, found.verdict, sep="\n\n")
    if "best" in said:
        print(f"best: {said['best']}")
    for path in report.write(found, said, args.out or folder_for(args, last)):
        print(path)
    if args.out is None and last.folder != last.path.parent:
        note(last, found)
    return 0


def folder_for(args: argparse.Namespace, evaluated: "Run") -> Path:
    """Where a report goes by itself: that of a run's last checkpoint is never written over."""
    if args.checkpoint == "best":
        return evaluated.folder / "evaluation-best"
    of_run = args.run.resolve() == evaluated.folder.resolve() and args.checkpoint == "last"
    alone = evaluated.folder == evaluated.path.parent  # a checkpoint that lies in no run
    return evaluated.folder / ("evaluation" if of_run or alone else f"evaluation-{evaluated.step}")


def facts(loaded: dict[str, "Run"]) -> dict[str, Any]:
    """What was evaluated."""
    last = [*loaded.values()][-1]
    best = loaded.get("best")
    said = {"best": f"the {best.weights} weights of {best.path.name}"} if best else {}
    return {
        "run": str(last.folder),
        "checkpoint": last.path.name,
        "step": last.step,
        "recipe": last.config["recipe"]["name"],
        "weights": f"{last.weights}, beside {', '.join([*loaded][:-1]) or 'nothing'}",
        **said,
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
