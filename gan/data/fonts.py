"""A folder of fonts as a source of glyph records: distinct styles, families, one prototype."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gan.data.embedded import REGION_NEUTRAL
from gan.data.faces import Face, FontError, faces, font_files
from gan.data.glyphs import RENDERING, Pixels, Rendered, render, versions
from gan.data.images import digest, printable
from gan.data.store import Record, Rejected

NOTICE = (
    "A font's licence does not settle what may be done with images or weights made from it: "
    "for your own fonts that is your responsibility."
)
SAME = 0.02  # mean difference of ink below which two faces are one design
_SAMPLE, _SAMPLE_SIZE = 32, 64  # characters and pixels on which designs are compared

log = logging.getLogger(__name__)


class NoStandardError(FontError):
    """No font of a folder draws all characters: a `fact`, and what to do where one is needed."""

    def __init__(self, fact: str) -> None:
        super().__init__(f"{fact}: name a prototype, or give other characters")
        self.fact = fact


class FontFolder:
    """All distinct styles in a folder of TTF, OTF and TTC files, at one scale per font.

    Records are keyed `<font id>/<code point as 6 hex digits>`, with the fields `style` and
    `character`, by style and then by code point. Faces that draw the same design count once: the
    first stays (the prototype in any case), the others are rejected as near-duplicates. A face that
    draws none of a sample of the characters is rejected, too.

    Args:
        path: the folder, searched recursively.
        size: pixels of a side.
        characters: a text of characters, or the path of a UTF-8 file holding them (a name ending in
            `.txt` is always a path); default the region-neutral Hanzi.
        prototype: id of the standard font; default WenQuanYi Zen Hei, else the first font that
            draws every character. Characters that it lacks are left out of all styles, and of two
            that it draws alike the second.

    Raises:
        FontError: the folder holds no font file, or the characters cannot be read.
    """

    def __init__(
        self,
        path: Path,
        size: int = 64,
        characters: str | None = None,
        prototype: str | None = None,
    ) -> None:
        self.path, self.size, self.prototype = Path(path), size, prototype
        if size < 1:
            raise FontError(f"size must be at least 1, not {size}")
        self.files = font_files(self.path)
        if not self.files:
            raise FontError(f"{path} holds no font file (.ttf, .otf, .ttc, .otc)")
        self.wanted = listed_characters(REGION_NEUTRAL if characters is None else characters)
        self.name = printable(f"fonts {self.path.name}")
        self.shape = (size, size, 1)

    @cached_property
    def selection(self) -> "Selection":
        """What is used of the folder; found by drawing, so at first use.

        Raises:
            FontError: no font is usable, none draws all characters, or the prototype is not there.
        """
        log.warning(NOTICE)
        found, rejected = faces(self.path)
        standard, drawn = _standard(self.path, found, self.wanted, self.size, self.prototype)
        lacking = drawn.rejected | _same_drawing(drawn.images)
        rejected += [Rejected(key(standard.id, one), reason) for one, reason in lacking.items()]
        characters = [character for character in self.wanted if character not in lacking]
        styles, refused = _distinct(found, standard, spread(characters, _SAMPLE))
        return Selection(standard.id, characters, styles, rejected + refused)

    @property
    def names(self) -> dict[str, list[str]]:
        """Font ids and characters."""
        used = self.selection
        return {"style": [face.id for face in used.styles], "character": used.characters}

    @property
    def facts(self) -> dict[str, Any]:
        """Prototype, families and licences of the styles, and what was refused, with reasons."""
        used = self.selection
        family = families(used.styles)
        return {
            "prototype": used.prototype,
            "notice": NOTICE,
            "styles": {face.id: _described(face, family[face.id]) for face in used.styles},
            "refused": dict(used.rejected),
        }

    def fingerprint(self) -> str:
        """Digest of all that decides the records: font files, parameters, rendering, libraries."""
        fonts = [
            (file.relative_to(self.path).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest())
            for file in self.files
        ]
        rendering = [RENDERING, SAME, _SAMPLE, _SAMPLE_SIZE, versions()]
        parameters = [self.size, self.wanted, self.prototype]
        return digest([fonts, rendering, parameters])

    def __len__(self) -> int:
        """How many records there are at most."""
        return len(self.selection.styles) * len(self.selection.characters)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """Refused faces first, then every (style, character) as a record or with its reason."""
        used = self.selection
        yield from used.rejected
        for style, face in enumerate(used.styles):
            glyphs = _drawn(face, used.characters, self.size)
            yield from records(face.id, style, used.characters, glyphs)


class Selection(NamedTuple):
    """What is used of a folder of fonts: a face of each design, and the prototype's characters."""

    prototype: str
    characters: list[str]
    styles: list[Face]
    rejected: list[Rejected]


def key(style: str, character: str) -> str:
    """The key of a glyph in a store."""
    return f"{style}/{ord(character):06x}"


def records(
    id: str, style: int, characters: Sequence[str], glyphs: Rendered
) -> Iterator[Record | Rejected]:
    """One style's glyphs as records in the order of the characters; others are passed over."""
    for number, character in enumerate(characters):
        if character in glyphs.images:
            image = glyphs.images[character][..., None]  # [H, W, 1]
            yield Record(key(id, character), image, {"style": style, "character": number})
        elif character in glyphs.rejected:
            yield Rejected(key(id, character), glyphs.rejected[character])


def listed_characters(characters: str) -> list[str]:
    """Distinct characters by code point, out of a text or of the UTF-8 file that it names.

    Raises:
        FontError: the file does not exist, is no UTF-8 text, or holds nothing but white space.
    """
    text = characters
    if characters.endswith(".txt") or os.path.isfile(characters):
        try:
            text = Path(characters).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise FontError(f"the characters cannot be read from {characters}: {error}") from error
    listed = sorted(set("".join(text.split())))
    if not listed:
        raise FontError(f"characters={characters!r} holds no character besides white space")
    return listed


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` items, evenly spaced, in their order."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _standard(
    path: Path, found: Sequence[Face], wanted: Sequence[str], size: int, prototype: str | None
) -> tuple[Face, Rendered]:
    """The prototype face and its drawings of the wanted characters."""
    if not found:
        raise FontError(f"{path} holds no usable font (.ttf, .otf, .ttc)")
    if prototype is not None:
        named = [face for face in found if face.id == prototype]
        if not named:
            ids = ", ".join(face.id for face in found[:20])
            raise FontError(f"prototype={prototype} is not among the fonts of {path}: {ids}")
        drawn = render(named[0], wanted, size)
        if not drawn.images:
            raise FontError(f"prototype={prototype} draws none of the {len(wanted)} characters")
        return named[0], drawn
    for face in sorted(found, key=lambda face: face.name != "WenQuanYi Zen Hei"):
        if face.covers(wanted) == len(wanted):
            drawn = _drawn(face, wanted, size)
            if not drawn.rejected:
                return face, drawn
    fullest = max(found, key=lambda face: face.covers(wanted))
    raise NoStandardError(
        f"no font in {path} draws all {len(wanted)} characters ({''.join(wanted[:8])}...), the "
        f"fullest is {fullest.id} with {fullest.covers(wanted)}"
    )


def _drawn(face: Face, characters: Sequence[str], size: int) -> Rendered:
    """The drawings of a face that may not open, in which case every character says so."""
    try:
        return render(face, characters, size)
    except FontError as error:
        return Rendered({}, dict.fromkeys(characters, str(error)))


def _same_drawing(images: Mapping[str, Pixels]) -> dict[str, str]:
    """Characters that no judge can tell from an earlier one, with the reason."""
    first: dict[bytes, str] = {}
    return {
        character: f"the prototype draws it like {earlier}, which stands for both"
        for character, image in images.items()
        if (earlier := first.setdefault(image.tobytes(), character)) != character
    }


def _distinct(
    found: Sequence[Face], standard: Face, sample: Sequence[str]
) -> tuple[list[Face], list[Rejected]]:
    """One face of each design, sorted as found, and the faces that draw nothing or nothing new."""
    images: dict[str, Mapping[str, Pixels]] = {}
    rejected: list[Rejected] = []
    for face in [standard, *(face for face in found if face is not standard)]:
        glyphs = _drawn(face, sample, _SAMPLE_SIZE)
        if glyphs.images:
            images[face.id] = glyphs.images
        else:
            character, reason = next(iter(glyphs.rejected.items()))
            rejected.append(
                Rejected(face.id, f"draws none of {len(sample)} samples: {character} is {reason}")
            )
    original = twins(images)
    rejected += [
        Rejected(id, f"near-duplicate of {first}") for id, first in original.items() if id != first
    ]
    return [face for face in found if original.get(face.id) == face.id], rejected


def twins(images: Mapping[str, Mapping[str, Pixels]], same: float = SAME) -> dict[str, str]:
    """The first face of the same design for every face, by images of the same characters.

    Two faces are linked when their ink differs by less than `same` per pixel on average over the
    characters that both draw, at least half of either's; designs are the connected groups.
    """
    ids = list(images)
    characters = sorted(set().union(*images.values()))
    size = next(image.size for glyphs in images.values() for image in glyphs.values())
    ink = np.zeros((len(ids), len(characters), size), np.int16)
    drawn = np.zeros((len(ids), len(characters)), bool)
    for row, glyphs in enumerate(images.values()):
        for column, character in enumerate(characters):
            if character in glyphs:
                ink[row, column], drawn[row, column] = glyphs[character].ravel(), True
    pairs = []
    for row in range(1, len(ids)):
        both = drawn[:row] & drawn[row]  # [row, characters]
        difference = np.abs(ink[:row] - ink[row]).mean(axis=2) / 255  # [row, characters]
        shared = both.sum(axis=1)
        mean = (difference * both).sum(axis=1) / shared.clip(1)
        enough = 2 * shared >= np.maximum(drawn[:row].sum(axis=1), drawn[row].sum())
        pairs += [(ids[other], ids[row]) for other in np.flatnonzero(enough & (mean < same))]
    return _first_of_group(ids, pairs)


def _first_of_group(ids: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For every id the first one of its connected group."""
    place = {id: number for number, id in enumerate(ids)}
    first = {id: id for id in ids}
    for one, other in pairs:
        keep, lose = sorted((first[one], first[other]), key=place.__getitem__)
        first = {id: keep if head == lose else head for id, head in first.items()}
    return first


_VARIANT = re.compile(
    r"thin|hairline|(extra|ultra|semi|demi)?(light|bold)|regular|normal|book|roman|medium|demi|heavy|"
    r"black|italic|oblique|condensed|narrow|wide|mono|code|latin|sharp|jp|sc|tc|hk|kr|cn|tw|mbe"
)
_ANYBODY = re.compile(
    r"copyright|all|rights?|reserved|the|projects?|authors?|inc|ltd|co|company|created|by|with|"
    r"fonts?|fontforge|public|domain|and|https?|www|com|org|net"
)


def families(styles: Sequence[Face]) -> dict[str, str]:
    """The family of every face, named by its first member.

    Faces belong together when they share the family name without weight, width and region, the
    designer, or the words of the copyright line: all weights of a series, all fonts of a foundry or
    calligrapher. Too large a family costs styles to hold out, too small a one would leak them.
    """
    members: dict[tuple[str, str], str] = {}
    pairs = []
    for face in styles:
        for trait in _traits(face):
            pairs.append((members.setdefault(trait, face.id), face.id))
    first = _first_of_group([face.id for face in styles], pairs)
    named = {face.id: _series(face.family) or face.id for face in styles}
    return {face.id: named[first[face.id]] for face in styles}


def _traits(face: Face) -> list[tuple[str, str]]:
    designer = [("designer", face.designer.lower())] if face.designer else []
    return [*traits(face.family, face.copyright), *designer]


def traits(name: str, copyright: str) -> list[tuple[str, str]]:
    """What relates fonts: the series that the name tells, and the words of the copyright line."""
    holder = [word.lower() for word in re.findall(r"[^\W\d_][^\W\d_A-Z]+|[A-Z]{2,}", copyright)]
    words = " ".join(sorted({word for word in holder if not _ANYBODY.fullmatch(word)}))
    found = {"family": _series(name), "copyright": words}
    return [(trait, value) for trait, value in found.items() if value]


def _series(family: str) -> str:
    """A family name in lower case without weight, width, region, digits and single letters."""
    words = re.findall(r"[^\W\d_]{2,}", family.lower())
    return "-".join(word for word in words if not _VARIANT.fullmatch(word))


def _described(face: Face, family: str) -> dict[str, Any]:
    return {
        "name": face.name,
        "family": family,
        "cluster": face.id,
        "licence": face.licence,
        "copyright": face.copyright[:200],
        "file": face.file,
        "face": face.index,
        "sha256": face.sha256,
    }
