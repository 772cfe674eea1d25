"""`gan export`: the averaged generator as a torch.export program, safetensors and ONNX."""

import argparse
import sys
from pathlib import Path
from typing import Any

from gan.commands.arguments import folder


def add_parser(commands: Any) -> None:
    """Adds `export` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("export", help=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or one of its checkpoints")
    parser.add_argument("--out", type=folder, help="a folder for the files (exported/ in the run)")
    parser.add_argument("--onnx", action="store_true", help="also ONNX; needs gan[export]")
    parser.add_argument("--weights", default="average", help="average, raw, or an average's name")
    parser.add_argument("--checkpoint", default="last", help="last, best, or a step (last)")
    parser.add_argument("--plugins", action="store_true", help="import the run's own modules")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints how far their images are from the original's."""
    from gan import runs
    from gan.trained import export

    loaded = runs.load(args.run, args.weights, plugins=args.plugins, checkpoint=args.checkpoint)
    export.inputs(loaded, 1)  # refuses unknown recipes before anything is written
    out = args.out or loaded.folder / "exported"
    out.mkdir(parents=True, exist_ok=True)
    path = out / "generator.safetensors"
    export.weights(loaded, path)
    print(f"{path}: weights ({loaded.weights}, step {loaded.step})")
    writers = {"pt2": export.program, **({"onnx": export.onnx} if args.onnx else {})}
    for suffix, write in writers.items():
        path = out / f"generator.{suffix}"
        try:
            difference = write(loaded, path)
        except export.ExportError as error:
            print(f"gan: {error}", file=sys.stderr)
            return 1
        print(f"{path}: differs by at most {difference:.1e} from the original")
    return 0
