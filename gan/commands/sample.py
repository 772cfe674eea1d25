"""`gan sample`: pictures of a trained run, by its averaged weights, fixed by a seed."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gan import distributed, images, runs
from gan.commands.arguments import folder
from gan.config.signature import Count, Whole, coerce, nearest
from gan.font import prototypes
from gan.noise import FromNoise
from gan.recipes.wnet import WNet
from gan.runs import Run
from gan.styles import mixed
from gan.trained.sheets import kind_of, sheets

KINDS = ("grid", "images", "interpolation", "classes")
ROWS = 100  # classes of a picture, which nothing could open with thousands of them
LEGS, FRAMES, COLUMNS = 4, 16, 10  # legs of an animation, frames of each, columns of its picture
PAUSE = 60  # milliseconds a frame is shown


def add_parser(commands: Any) -> None:
    """Adds `sample` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("sample", help=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or one of its checkpoints")
    parser.add_argument("--out", type=folder, help="a folder for the pictures (sampled/ in RUN)")
    parser.add_argument("--only", action="append", choices=KINDS, help="what to draw (all of it)")
    parser.add_argument(
        "--count",
        type=int,
        help="images of the grid (64); of what is given images, rows of each sheet (8)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another number, other images (0)")
    parser.add_argument(
        "--label",
        metavar="CLASS",
        help="the class of all images, by the name that the data have for it, or else by number "
        "(each has its share)",
    )
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
    device = distributed.device(args.device)
    loaded = runs.load(args.run, args.weights, device, args.plugins, args.checkpoint)
    out = args.out or loaded.folder / "sampled"
    draw: Callable[[argparse.Namespace, Run, Path], Iterator[Path]]
    if kind_of(loaded.recipe):
        draw = translations
    elif issubclass(loaded.recipe, FromNoise):
        draw = pictures
    else:
        raise ValueError(
            "gan sample draws from noise, translates images and writes characters; "
            f"{args.run} was trained with recipe={loaded.config['recipe']['name']}: call "
            "gan.load(RUN).generator instead"
        )
    for path in draw(args, loaded, out):
        print(path)
    return 0


def pictures(args: argparse.Namespace, loaded: Run, out: Path) -> Iterator[Path]:
    """The chosen kinds of pictures of a generator that draws from noise."""
    kinds = args.only or [kind for kind in KINDS if kind != "classes" or loaded.classes]
    if "classes" in kinds and not loaded.classes:
        raise ValueError(f"--only classes: {args.run} was trained without classes")
    _require_read(args, kinds)
    args.label = _class(loaded, args.label)
    many = 64 if args.count is None else args.count
    files = _numbered(out / "images", {"": many}) if "images" in kinds else []
    asked = {"grid", "images"} & {*kinds}
    made = [loaded.sample(many, args.seed, args.label, args.truncation)] if asked else []
    out.mkdir(parents=True, exist_ok=True)
    if "grid" in kinds:
        yield _saved(images.grid(made[0]), out / "grid.png")
    if "images" in kinds:
        yield _one_by_one(made, files)
    if "interpolation" in kinds:
        yield from _interpolations(args, loaded, out)
    if "classes" in kinds:
        yield _saved(class_sheet(loaded, args.seed, args.truncation), out / "classes.png")
        if loaded.classes > ROWS:
            print(f"classes.png has the first {ROWS} of {loaded.classes}: --label draws another")


def _class(loaded: Run, said: str | None) -> int | None:
    """The number of a class; names are in the store that was trained on, and go before numbers."""
    if said is None:
        return None
    number = re.fullmatch(r"-?\d+", said)
    if not loaded.classes:
        if number:
            return int(said)
        raise ValueError(f"--label={said}, but {loaded.path} was trained without classes")
    try:
        data = runs.dataset(loaded)
    except ValueError as error:
        if not number:
            raise
        print(f"gan: --label={said} is taken as a number, not as a name: {error}", file=sys.stderr)
        return int(said)
    names = [*data.store.names.get(getattr(data, "label", None), ())]
    if said in names:
        return names.index(said)
    if number:
        return int(said)
    known = f": {nearest(said, names)}" if names else ", which has numbers alone"
    raise ValueError(f"--label={said} is no class of {data.store.path}{known}")


def class_sheet(loaded: Run, seed: int = 0, truncation: float | None = None) -> np.ndarray:
    """A row for each class, the first hundred, and a column for each of ten latent vectors."""
    rows = min(loaded.classes, ROWS)
    noise = loaded.noise(COLUMNS, seed, truncation).repeat(rows, 1)
    label = torch.arange(rows).repeat_interleave(COLUMNS)
    made = loaded.draw(noise, label)
    return images.grid(made, COLUMNS)


def _interpolations(args: argparse.Namespace, loaded: Run, out: Path) -> Iterator[Path]:
    """A picture of eight ways between two images, and an animation of a grid on its way."""
    rows, side = 8, 4
    start, end = loaded.noise(2 * rows, args.seed, args.truncation).chunk(2)
    way = torch.stack([spherical(start, end, k / (COLUMNS - 1)) for k in range(COLUMNS)], 1)
    label = loaded.labels(rows, args.label)
    label = None if label is None else label.repeat_interleave(COLUMNS)
    made = loaded.draw(way.flatten(0, 1), label)
    yield _saved(images.grid(made, COLUMNS), out / "interpolation.png")
    stops = loaded.noise(LEGS * side**2, args.seed, args.truncation).chunk(LEGS)
    label = loaded.labels(side**2, args.label)
    legs = zip(stops, (*stops[1:], stops[0]), strict=True)
    frames = [
        images.grid(loaded.draw(spherical(a, b, k / FRAMES), label), side)
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


def translations(args: argparse.Namespace, loaded: Run, out: Path) -> Iterator[Path]:
    """What is made of images that are given, beside them and the truth, on sheets and one by one.

    Of a W-Net also the ways between styles, held-out ones where there are any.
    """
    writes = issubclass(loaded.recipe, WNet)
    possible = KINDS[:3] if writes else KINDS[:2]
    _refuse(args, loaded, possible)
    _require_read(args, args.only or possible)
    many = 8 if args.count is None else coerce(Count, args.count, "--count")
    seed = coerce(Whole, args.seed, "--seed")
    data = prototypes.trained_on(loaded) if writes else runs.dataset(loaded)
    kinds = args.only or possible
    out.mkdir(parents=True, exist_ok=True)
    if {"grid", "images"} & {*kinds}:
        found = dict(sheets(loaded, data, many, seed))
        made = {f"{name}-": columns["generated"] for name, columns in found.items()}
        counts = {name: len(several) for name, several in made.items()}
        files = _numbered(out / "images", counts) if "images" in kinds else []
        if "grid" in kinds:
            for name, columns in found.items():
                yield _saved(images.table(columns), out / f"{name}.png")
        if "images" in kinds:
            yield _one_by_one([*made.values()], files)
    if "interpolation" in kinds:
        content, codes = _styles(seed, loaded, data)
        ways = _between(loaded, content[:8], codes, COLUMNS - 1, legs=1)
        way = torch.stack([*ways, loaded.dressed(content[:8], codes[1 % len(codes)])], 1)
        yield _saved(images.grid(way.flatten(0, 1), COLUMNS), out / "interpolation.png")
        frames = _between(loaded, content, codes, FRAMES, legs=len(codes))
        pictures = [images.grid(frame, 4) for frame in frames]
        yield _animated(pictures, out / "interpolation.gif")


def _refuse(args: argparse.Namespace, loaded: Run, possible: Sequence[str]) -> None:
    """Options that a generator without noise and labels does not read."""
    recipe = loaded.config["recipe"]["name"]
    for option in ("label", "truncation"):
        if getattr(args, option) is not None:
            raise ValueError(
                f"--{option} is for generators that draw from noise; {args.run} was trained with "
                f"recipe={recipe}, which is given images"
            )
    for kind in args.only or ():
        if kind not in possible:
            raise ValueError(
                f"--only {kind}: {args.run} was trained with recipe={recipe}, of which gan sample "
                f"draws {', '.join(possible)}"
            )


def _require_read(args: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Raises: ValueError for an option that none of the chosen kinds of pictures reads."""
    for option, readers in (("count", KINDS[:2]), ("label", KINDS[:3])):
        if getattr(args, option) is not None and not {*kinds} & {*readers}:
            raise ValueError(
                f"--{option} is for {' and '.join(readers)}, of which --only draws none"
            )


def _styles(seed: int, loaded: Run, data: Any) -> tuple[Tensor, list[Any]]:
    """Prototypes of sixteen held-out characters, and four styles' codes and shortcuts."""
    random = np.random.default_rng(seed)
    styles = data.styles.test if len(data.styles.test) else data.styles.train
    styles = random.permutation(styles)[:LEGS]
    chosen = random.permutation(data.split.test)[:16]
    content = images.to_floats(prototypes.read(data, data.rows[data.prototype, chosen]))
    codes = []
    for style in styles:
        drawn = data.rows[style, data.split.train]
        reference = random.choice(drawn[drawn >= 0], data.references, replace=False)
        shown = data.rows[data.prototype, data.store.fields["character"][reference]]
        glyphs = (images.to_floats(prototypes.read(data, rows)) for rows in (reference, shown))
        codes.append(loaded.style(*glyphs))
    return content, codes


def _between(
    loaded: Run, content: Tensor, codes: Sequence[Any], steps: int, legs: int
) -> Iterator[Tensor]:
    """The characters [N, C, H, W] on the straight ways from each style to the next."""
    ways = zip(codes, [*codes[1:], codes[0]], strict=True)
    for one, other in islice(ways, legs):
        for step in range(steps):
            yield loaded.dressed(content, mixed(one, other, step / steps))


def _numbered(folder: Path, counts: Mapping[str, int]) -> list[Path]:
    """Where so many PNGs of each name go, with a number after it, in order.

    Raises: ValueError where others lie there that are named like that.
    """
    files = []
    for name, count in counts.items():
        digits = max(4, len(str(count - 1)))
        own = [folder / f"{name}{number:0{digits}d}.png" for number in range(count)]
        numbered = re.compile(rf"{re.escape(name)}[0-9]+\.png")
        there = folder.iterdir() if folder.is_dir() else ()
        others = {path for path in there if numbered.fullmatch(path.name)} - {*own}
        if others:
            raise ValueError(
                f"{folder} holds {len(others)} pictures of another sample, as {min(others).name}: "
                "remove that folder, or choose another one by --out"
            )
        files += own
    return files


def _one_by_one(made: Sequence[Tensor], files: Sequence[Path]) -> Path:
    """Images [N, C, H, W] as PNGs, one for each file; their folder."""
    folder = files[0].parent
    folder.mkdir(exist_ok=True)
    for file, pixels in zip(files, (p for m in made for p in images.to_bytes(m)), strict=True):
        _saved(pixels, file)
    return folder


def _saved(pixels: np.ndarray, path: Path) -> Path:
    """A picture uint8 [H, W, C] as PNG."""
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def _animated(frames: list[np.ndarray], path: Path) -> Path:
    """Frames uint8 [H, W, 3] as a GIF that runs for ever, of at most 256 colours each."""
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=PAUSE, loop=0)
    return path
