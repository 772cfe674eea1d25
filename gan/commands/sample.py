"""`gan sample`: pictures of a trained run, by its averaged weights, fixed by a seed."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from gan.runs import Run

KINDS = ("grid", "images", "interpolation", "classes")
LEGS, FRAMES, COLUMNS = 4, 16, 10  # legs of an animation, frames of each, columns of its picture
PAUSE = 60  # milliseconds a frame is shown


def add_parser(commands: Any) -> None:
    """Adds `sample` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("sample", help=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or one of its checkpoints")
    parser.add_argument("--out", type=Path, help="a folder for the pictures (sampled/ in the run)")
    parser.add_argument("--only", action="append", choices=KINDS, help="what to draw (all of it)")
    parser.add_argument("--count", type=int, default=64, help="images of the grid (64)")
    parser.add_argument("--seed", type=int, default=0, help="another number, other images (0)")
    parser.add_argument("--label", type=int, help="the class of all images (each has its share)")
    parser.add_argument(
        "--truncation", type=float, help="draw noise beyond this size again, as 0.7 (off)"
    )
    parser.add_argument("--weights", default="average", help="average, raw, or an average's name")
    parser.add_argument("--checkpoint", default="last", help="last, best, or a step (last)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plugins", action="store_true", help="import the run's own modules")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Draws what was asked for and prints where it is."""
    from gan import distributed, runs
    from gan.recipes.synthesis import Synthesis
    from gan.recipes.wnet import WNet

    device = distributed.device(args.device)
    loaded = runs.load(args.run, args.weights, device, args.plugins, args.checkpoint)
    out = args.out or loaded.folder / "sampled"
    draw: Callable[[argparse.Namespace, Run, Path], Iterator[Path]]
    if issubclass(loaded.recipe, WNet):
        draw = characters
    elif issubclass(loaded.recipe, Synthesis):
        draw = pictures
    else:
        raise ValueError(
            f"gan sample draws from noise, and characters of a W-Net; {args.run} was trained with "
            f"recipe={loaded.config['recipe']['name']}: call gan.load(RUN).generator instead"
        )
    for path in draw(args, loaded, out):
        print(path)
    return 0


def pictures(args: argparse.Namespace, loaded: "Run", out: Path) -> Iterator[Path]:
    """The chosen kinds of pictures of a generator that draws from noise."""
    from gan import images

    kinds = args.only or [kind for kind in KINDS if kind != "classes" or loaded.classes]
    if "classes" in kinds and not loaded.classes:
        raise ValueError(f"--only classes: {args.run} was trained without classes")
    made = loaded.sample(args.count, args.seed, args.label, args.truncation)
    enlarge = images.enlargement(loaded.size)
    out.mkdir(parents=True, exist_ok=True)
    if "grid" in kinds:
        yield _saved(images.grid(made, enlarge=enlarge), out / "grid.png")
    if "images" in kinds:
        folder = out / "images"
        folder.mkdir(exist_ok=True)
        for number, pixels in enumerate(images.to_bytes(made)):
            _saved(pixels, folder / f"{number:04d}.png")
        yield folder
    if "interpolation" in kinds:
        yield from _interpolations(args, loaded, out, enlarge)
    if "classes" in kinds:
        yield _saved(class_sheet(loaded, args.seed, args.truncation), out / "classes.png")


def class_sheet(loaded: "Run", seed: int = 0, truncation: float | None = None) -> np.ndarray:
    """A row for each class and a column for each of ten latent vectors."""
    from gan import images

    noise = loaded.noise(COLUMNS, seed, truncation).repeat(loaded.classes, 1)
    label = torch.arange(loaded.classes).repeat_interleave(COLUMNS)
    made = loaded.draw(noise, label)
    return images.grid(made, columns=COLUMNS, enlarge=images.enlargement(loaded.size))


def _interpolations(
    args: argparse.Namespace, loaded: "Run", out: Path, enlarge: int
) -> Iterator[Path]:
    """A picture of eight ways between two images, and an animation of a grid on its way."""
    from gan import images

    rows, side = 8, 4
    start, end = loaded.noise(2 * rows, args.seed, args.truncation).chunk(2)
    way = torch.stack([spherical(start, end, k / (COLUMNS - 1)) for k in range(COLUMNS)], 1)
    label = loaded.labels(rows, args.label)
    label = None if label is None else label.repeat_interleave(COLUMNS)
    made = loaded.draw(way.flatten(0, 1), label)
    yield _saved(images.grid(made, COLUMNS, enlarge), out / "interpolation.png")
    stops = loaded.noise(LEGS * side**2, args.seed, args.truncation).chunk(LEGS)
    label = loaded.labels(side**2, args.label)
    legs = zip(stops, (*stops[1:], stops[0]), strict=True)
    frames = [
        images.grid(loaded.draw(spherical(a, b, k / FRAMES), label), side, enlarge)
        for a, b in legs
        for k in range(FRAMES)
    ]
    yield _animated(frames, out / "interpolation.gif")


def spherical(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Vectors [N, D] at this share of the way along the arcs between two sets of them.

    White 2016, arXiv:1609.04468, section 2.1: on the straight line between two Gaussian vectors
    lie shorter ones than a generator was trained with. Parallel ones are joined by that line.
    """
    cosine = torch.cosine_similarity(start, end).clamp(-1, 1)[:, None]
    angle = torch.acos(cosine)
    near, far = torch.sin((1 - share) * angle), torch.sin(share * angle)
    whole = torch.sin(angle)
    arc = (near * start + far * end) / whole
    return torch.where(whole > 1e-4, arc, (1 - share) * start + share * end)


def characters(args: argparse.Namespace, loaded: "Run", out: Path) -> Iterator[Path]:
    """What training has shown of a W-Net, and an animation between held-out styles."""
    from gan import images
    from gan.font import prototypes

    for option in ("label", "truncation"):
        if getattr(args, option) is not None:
            raise ValueError(
                f"--{option} is for generators that draw from noise; a W-Net draws characters in "
                "the style of a reference"
            )
    if set(args.only or ()) - {"grid", "interpolation"}:
        raise ValueError("--only grid and --only interpolation are what a W-Net draws")
    data = prototypes.trained_on(loaded)
    out.mkdir(parents=True, exist_ok=True)
    enlarge = images.enlargement(loaded.size)
    if "grid" in (args.only or KINDS):
        for name, plan in data.shown(("target",)).items():
            shown = {
                key: images.to_floats(prototypes.read(data, plan.images[key].ravel()))
                for key in ("prototype", "reference", "target")
            }
            kept = plan.images["reference"].shape  # [B, K]
            references = shown["reference"].reshape(*kept, *shown["reference"].shape[1:])
            pairs = zip(shown["prototype"], references, strict=True)
            made = torch.cat([loaded.write(one[None], style) for one, style in pairs])
            columns = {
                "prototype": shown["prototype"],
                "reference": references[:, 0],
                "generated": made,
                "truth": shown["target"],
            }
            yield _saved(images.table(columns, enlarge), out / f"{name}.png")
    if "interpolation" in (args.only or KINDS):
        yield _animated(_between_styles(args, loaded, data, enlarge), out / "interpolation.gif")


def _between_styles(
    args: argparse.Namespace, loaded: "Run", data: Any, enlarge: int
) -> list[np.ndarray]:
    """Frames of sixteen characters on the way through four styles, held-out ones where they are.

    The styles' codes and shortcuts are mixed linearly.
    """
    from gan import images
    from gan.font import prototypes
    from gan.runs import mixed

    random = np.random.default_rng(args.seed)
    styles = data.styles.test if len(data.styles.test) else data.styles.train
    styles = random.permutation(styles)[:LEGS]
    chosen = random.permutation(data.split.test)[:16]
    rows = data.rows[data.prototype, chosen]
    content = images.to_floats(prototypes.read(data, rows))
    codes = []
    for style in styles:
        drawn = data.rows[style, data.split.train]
        reference = random.choice(drawn[drawn >= 0], data.references, replace=False)
        codes.append(loaded.style(images.to_floats(prototypes.read(data, reference))))
    return [
        images.grid(loaded.dressed(content, mixed(a, b, k / FRAMES)), 4, enlarge)
        for a, b in zip(codes, [*codes[1:], codes[0]], strict=True)
        for k in range(FRAMES)
    ]


def _saved(pixels: np.ndarray, path: Path) -> Path:
    """A picture uint8 [H, W, C] as PNG."""
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def _animated(frames: list[np.ndarray], path: Path) -> Path:
    """Frames uint8 [H, W, 3] as a GIF that runs for ever, of at most 256 colours each."""
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=PAUSE, loop=0)
    return path
