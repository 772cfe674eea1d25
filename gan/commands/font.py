"""`gan font`: an installable font in the style of a reference, drawn by a trained W-Net."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from gan.data.triples import Glyphs
    from gan.font.prototypes import Prototypes
    from gan.font.truetype import Names, Places
    from gan.runs import Run
    from gan.styles import Relatives

LEAST = 0.95  # SSIM of the rendered font and the drawn characters, on average
BATCH = 64  # characters drawn at once
_WORST = 5  # characters listed
_BESIDE = 3  # styles named
_LONGEST = 30_000  # characters of a text that a font holds


def add_parser(commands: Any) -> None:
    """Adds `font` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("font", help=__doc__)
    parser.add_argument("run", type=Path, help="a W-Net's run directory, or one of its checkpoints")
    parser.add_argument(
        "--reference",
        type=Path,
        action="append",
        required=True,
        metavar="PICTURE",
        help="a scan or photograph of one character (JPEG, PNG, WebP); give it several times for "
        "several characters of the same style",
    )
    parser.add_argument(
        "--shows",
        metavar="TEXT",
        help="the characters that the references show, one each in their order: the generator "
        "learns them by heart before it draws, beside trained styles that are like them, which "
        "brings it closer to the style; one of few strokes says little of it; a run with "
        "generator.paired=true needs them",
    )
    parser.add_argument(
        "--adapt",
        type=int,
        metavar="STEPS",
        help="how many steps it learns for (40)",
    )
    parser.add_argument(
        "--characters", help="a UTF-8 file of those to draw, or a text (all that the data have)"
    )
    parser.add_argument("--out", type=Path, default=Path("MyFont.ttf"), help="MyFont.ttf")
    parser.add_argument("--name", help="the font's family name (that of the file)")
    parser.add_argument("--style", default="Regular", help="its style name (Regular)")
    parser.add_argument("--author", default="", help="for its designer and copyright fields")
    parser.add_argument(
        "--licence", default="", help="its licence: a text, OFL-1.1 or CC0-1.0 (none)"
    )
    parser.add_argument("--licence-url", default="", help="where the licence can be read")
    parser.add_argument(
        "--prototype-font",
        type=Path,
        metavar="FONT",
        help="a TTF, OTF or TTC to take prototypes from: the standard font that the run was "
        "trained with (its stored glyphs)",
    )
    parser.add_argument("--prototype-face", type=int, help="its number in a TTC (0)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out what it lacks")
    parser.add_argument("--weights", default="average", help="average, raw, or an average's name")
    parser.add_argument("--checkpoint", default="last", help="last, best, or a step (last)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plugins", action="store_true", help="import the run's own modules")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Draws, traces, writes and checks; status 1 where the font does not look like the drawings."""
    _require_libraries()
    from gan import distributed, runs
    from gan.config.signature import coerce
    from gan.data.fonts import NOTICE, listed_characters
    from gan.font import prototypes, references
    from gan.font.places import places
    from gan.font.specimen import specimen
    from gan.font.truetype import Names
    from gan.recipes.wnet import WNet
    from gan.references import is_paired
    from gan.registry import Whole
    from gan.styles import STEPS, accuracy, known

    _require_sound(args)
    shows = _shows(args)
    steps = coerce(Whole, STEPS if args.adapt is None else args.adapt, "--adapt")
    device = distributed.device(args.device)
    loaded = runs.load(args.run, args.weights, device, args.plugins, args.checkpoint)
    if not issubclass(loaded.recipe, WNet):
        raise ValueError(
            f"a font takes a run with recipe=wnet; {args.run} was trained with "
            f"recipe={loaded.config['recipe']['name']}: gan sample draws from it"
        )
    told = is_paired(loaded.generator)
    if told and not shows:
        raise ValueError(
            f"{args.run} sees references beside their characters: say by --shows which they show"
        )
    data = prototypes.trained_on(loaded)
    rows = data.rows[data.prototype, data.split.train]
    fill = references.fill_of(prototypes.read(data, rows)[..., 0])
    seen = [references.reference(path, loaded.size, fill) for path in args.reference]
    if args.characters:
        names = listed_characters(args.characters)
    else:  # all that come with the data, whichever font they are taken from
        names = sorted(prototypes.from_store(data).images)
    found = _prototypes(args, loaded, data, names)
    wanted = prototypes.wanted(names, found, skip=args.skip_missing)
    shown = _standard(shows, _prototypes(args, loaded, data, shows), told) if shows else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture = args.out.with_name(f"{args.out.stem}-references.png")
    references.picture(seen, shown).save(picture)
    print(f"{picture}: the references as they came, levelled, and as the model sees them")
    given = _floats(loaded, [one.seen for one in seen])
    standard = _floats(loaded, shown) if shown else None
    if standard is not None and steps:
        glyphs = known(data, loaded.device)
        enough, others = accuracy(loaded.generator, glyphs), glyphs["prototype"]
        relatives = _relatives(data, loaded.device, shows, given)
        loaded = loaded.adapted(standard, given, steps, enough, others, relatives)
    entries = Names(
        args.name or args.out.stem,
        args.style,
        args.author,
        args.licence,
        args.licence_url,
        f"Drawn by W-Net from {len(seen)} reference{'s' * (len(seen) > 1)}.",
    )
    style = loaded.style(given, standard)
    scores = make(loaded, wanted, style, args.out, entries, places(found.spots))
    if scores is None:
        if shown and steps:
            less = "with --adapt 0" if told else "without --shows"
            print(f"gan: {less} strokes may fade less", file=sys.stderr)
        return 1
    page = specimen(args.out, entries.family, [*wanted])
    for suffix in ("png", "pdf"):
        page.save(args.out.with_name(f"{args.out.stem}-specimen.{suffix}"), resolution=150)
    print(f"{args.out}: {len(wanted)} characters, {args.out.stat().st_size:,} bytes; {scores}")
    print(NOTICE)
    return 0


def _require_sound(args: argparse.Namespace) -> None:
    if args.out.suffix.lower() != ".ttf":
        raise ValueError(f"--out must end in .ttf, unlike {args.out}")
    if args.out.is_dir():
        raise ValueError(f"--out names a file, and {args.out} is a folder")
    if not args.style.strip():
        raise ValueError(f"--style must name a style, as Regular or Bold do, not {args.style!r}")
    name = args.name or args.out.stem
    if not name.strip():
        raise ValueError(f"--name must name a family, not {name!r}")
    _require_text("name", name, ("Cc", "Cs"))
    _require_text("style", args.style, ("Cc", "Cs"))
    _require_text("author", args.author)
    _require_text("licence", args.licence)
    _require_text("licence-url", args.licence_url)
    if args.prototype_face is not None and args.prototype_font is None:
        raise ValueError("--prototype-face needs --prototype-font: the TTC that has such a face")


def _require_text(option: str, text: str, refused: Sequence[str] = ("Cs",)) -> None:
    """Raises: ValueError for a text that a font cannot hold, as halves of characters are none."""
    if any(category(character) in refused for character in text):
        raise ValueError(f"--{option} holds what is no character: {text!r}")
    if len(text) > _LONGEST:
        raise ValueError(f"--{option} has {len(text)} characters, a font holds {_LONGEST} at most")


def _prototypes(
    args: argparse.Namespace, loaded: "Run", data: Any, names: Sequence[str]
) -> "Prototypes":
    """Characters in the standard font, those that it has."""
    from gan.font import prototypes

    if args.prototype_font is None:
        return prototypes.from_store(data)
    face = args.prototype_face or 0
    return prototypes.from_font(args.prototype_font, face, loaded.size, names)


def _shows(args: argparse.Namespace) -> str:
    """The character that each reference shows, or nothing."""
    if args.shows is None:
        if args.adapt is not None:
            raise ValueError("--adapt needs --shows: which characters the references show")
        return ""
    shows = "".join(args.shows.split())
    if len(shows) != len(args.reference):
        raise ValueError(
            f"--shows must name one character for each --reference, {len(args.reference)} in "
            f"their order, not {args.shows!r}"
        )
    return shows


def _relatives(
    data: "Glyphs", device: torch.device, shows: str, references: Tensor
) -> "Relatives | None":
    """The trained styles that the references are like; None where none has the characters."""
    from gan.styles import Relatives

    try:
        found = Relatives(data, device, shows, references)
    except LookupError as error:
        print(f"gan: {error}: the references are learnt alone", file=sys.stderr)
        return None
    print(f"learning {shows}, and most beside it {', '.join(found.names[:_BESIDE])}")
    return found


def _standard(shows: str, found: "Prototypes", told: bool) -> list[np.ndarray]:
    """The standard font's glyphs of what the references show; a generator may have to be told."""
    missing = [character for character in shows if character not in found.images]
    if missing:
        other = "take references of others" if told else "leave --shows out"
        raise ValueError(
            f"{found.source} does not draw {''.join(missing)} of --shows: give a --prototype-font "
            f"that does, or {other}"
        )
    return [found.images[character] for character in shows]


def _floats(loaded: "Run", glyphs: Sequence[np.ndarray]) -> Tensor:
    """Glyphs [H, W] as the generator reads them, [N, C, H, W]."""
    from gan.images import to_floats

    channels = loaded.config["image"]["channels"]
    return to_floats(np.stack(glyphs)[..., None]).repeat(1, channels, 1, 1)


def make(
    loaded: "Run",
    wanted: Mapping[str, np.ndarray],
    style: Any,
    out: Path,
    names: "Names",
    places: "Places",
) -> str | None:
    """Write the font; how alike it is to what was drawn, in words, or None where it is not.

    A font that is not like the drawings is not kept.
    """
    from gan.font import truetype

    drawn: dict[str, Tensor] = {}
    glyphs: dict[str, Any] = {}
    bar = tqdm(total=len(wanted), desc="drawing", unit="glyph", disable=None)
    for character, ink, outlined in drawings(loaded, wanted, style):
        drawn[character], glyphs[character] = ink, outlined
        bar.update()
    bar.close()
    partial = out.with_name(f".{out.name}.partial")
    try:
        truetype.write(partial, glyphs, names, places)
        return _kept(partial, out, truetype.likeness(partial, drawn, places), glyphs)
    finally:
        partial.unlink(missing_ok=True)


def _kept(
    partial: Path, out: Path, scores: dict[str, float], glyphs: Mapping[str, Any]
) -> str | None:
    """Give the font its name if it is as `scores` have to be for that; what `make` returns."""
    scores |= {c: 0.0 for c, glyph in glyphs.items() if not glyph.numberOfContours}  # blank
    mean = sum(scores.values()) / len(scores)
    worst = sorted(scores, key=scores.__getitem__)[:_WORST]
    listed = " ".join(f"{character} {scores[character]:.3f}" for character in worst)
    if not mean >= LEAST:  # nor where it is no number
        print(
            f"gan: {out} was not written: as rendered it is like the drawn characters to an SSIM "
            f"of {mean:.3f}, which must be {LEAST}; the worst: {listed}",
            file=sys.stderr,
        )
        return None
    os.replace(partial, out)
    below = sum(score < LEAST for score in scores.values())
    return (
        f"rendered as drawn to an SSIM of {mean:.4f}, {below} of {len(scores)} below {LEAST}; "
        f"the worst: {listed}"
    )


def drawings(
    loaded: "Run", wanted: Mapping[str, np.ndarray], style: Any
) -> Iterator[tuple[str, Tensor, Any]]:
    """Every character in a style, its ink [1, size, size] in [0, 1] and its TrueType glyph."""
    from gan.font import outlines
    from gan.font.ink import shapes

    names = iter(wanted)
    for batch in torch.split(_floats(loaded, [*wanted.values()]), BATCH):
        made = loaded.dressed(batch, style)
        ink = (0.5 - 0.5 * made.mean(1, keepdim=True)).clamp(0, 1)  # [B, 1, H, W]
        for one, field in zip(ink, shapes(ink)[:, 0].numpy(), strict=True):
            contours = outlines.outline(field, loaded.size)
            yield next(names), one, outlines.glyph(contours)


def _require_libraries() -> None:
    missing = [name for name in ("contourpy", "scipy") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"gan font needs {' and '.join(missing)}: pip install 'gan[font]'")
