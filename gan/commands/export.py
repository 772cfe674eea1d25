"""`gan export`: the averaged generator as a torch.export program, safetensors and ONNX."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan.commands.arguments import folder

if TYPE_CHECKING:
    from gan.runs import Run


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
    """Writes the files, removes those of an earlier export, and says what it did."""
    from gan import runs
    from gan.trained import export

    loaded = runs.load(args.run, args.weights, plugins=args.plugins, checkpoint=args.checkpoint)
    export.inputs(loaded, 1)  # refuses unknown recipes before anything is written
    out = args.out or loaded.folder / "exported"
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for path, said in _written(loaded, out, args.onnx):
            written.append(path)
            print(f"{path}: {said}")
    except export.ExportError as error:
        print(f"gan: {error}", file=sys.stderr)
        return 1
    finally:
        for path in export.remove_older(out, written):
            print(f"{path}: removed, it was of an earlier export")
    return 0


def _written(loaded: "Run", out: Path, onnx: bool) -> Iterator[tuple[Path, str]]:
    """Every file as soon as it is there, with what is to be said of it."""
    from gan.trained import export

    path = out / "generator.safetensors"
    export.weights(loaded, path)
    yield path, f"weights ({loaded.weights}, step {loaded.step})"
    writers = {"pt2": export.program, **({"onnx": export.onnx} if onnx else {})}
    for suffix, write in writers.items():
        path = out / f"generator.{suffix}"
        yield path, f"differs by at most {write(loaded, path):.1e} from the original"
