"""Faces of font files: what each says of itself, and which characters it maps.

A character map is no proof that they are drawn: `glyphs.py` draws them.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from gan.data.images import FONTS, files_below, printable
from gan.data.store import Rejected

MOST_FACES = 1000  # of a collection; the largest in use have some fifty
_NOT_TEXT = re.compile(r"last ?resort|symbol|dingbat|emoji", re.IGNORECASE)
_NAMES = (0, 1, 4, 9, 13, 14, 16)  # copyright, family, full name, designer, licence, URL, family


class FontError(ValueError):
    """A font file or face that cannot be used: the message names it and says why."""


class Face:
    """One face of a font file: its names and the code points of its best Unicode character map.

    `mapped` holds the code points [n] that lead to a glyph other than .notdef.

    Raises:
        FontError: the file is no readable font, or the face has no Unicode character map.
    """

    def __init__(self, path: Path, index: int = 0, id: str = "") -> None:
        self.path, self.index, self.id = path, index, id or printable(path.stem)
        self.file = printable(path.name)
        try:
            with path.open("rb") as file, TTFont(file, fontNumber=index, lazy=True) as font:
                glyphs: dict[int, str] = font.getBestCmap() or {}  # leaves out glyph 0
                said = {key: font["name"].getDebugName(key) or "" for key in _NAMES}
        except Exception as error:  # a damaged table may raise anything, AssertionError too
            raise FontError(f"{self.file} (face {index}) is no readable font: {error!r}") from error
        if not glyphs:
            raise FontError(f"{self.file} (face {index}) has no Unicode character map")
        text = {key: " ".join(words.split()) for key, words in said.items()}
        self.mapped = np.array([code for code, glyph in glyphs.items() if glyph != ".notdef"], int)
        self.family = text[16] or text[1] or printable(path.stem)
        self.name = text[4] or self.family
        self.copyright, self.designer = text[0], text[9]
        self.licence = licence(f"{text[13]} {text[14]} {text[0]}")

    def covers(self, characters: Iterable[str]) -> int:
        """How many of the characters are mapped to a glyph; drawing them may still fail."""
        return int(np.isin([ord(character) for character in characters], self.mapped).sum())

    @cached_property
    def sha256(self) -> str:
        """Digest of the whole font file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


_LICENCES = {  # SPDX name: what the licence field of a font says
    "OFL-1.1": r"SIL Open Font|openfontlicense|scripts\.sil\.org",
    "Apache-2.0": r"Apache License|apache\.org/licenses",
    "IPA": r"IPA Font License|ipa_font_license",
    "Arphic-1999": r"Arphic Public License",
    "GPL-2.0-only WITH Font-exception-2.0": r"GPL.*font (embedding )?exception",
    "MIT": r"MIT License|Permission is hereby granted, free of charge",
    "BSD-3-Clause": r"BSD",
    "public-domain": r"public domain",
}


def licence(text: str) -> str:
    """The SPDX name of the licence that a font's own words mention, or "unknown"."""
    found = (spdx for spdx, words in _LICENCES.items() if re.search(words, text, re.IGNORECASE))
    return next(found, "unknown")


def font_files(folder: Path) -> list[Path]:
    """All font files below a folder, sorted; one reached through several links counts once.

    Names that begin with a dot are passed over.

    Raises:
        ValueError: a folder cannot be listed.
    """
    files: dict[Path, Path] = {}
    every = files_below(folder) if folder.is_dir() else []
    for path in sorted(every, key=lambda path: (path.is_symlink(), path.parts)):
        if path.suffix.lower() in FONTS and path.is_file():
            files.setdefault(path.resolve(), path)
    return sorted(files.values(), key=lambda path: path.parts)  # alike on all systems


def faces(folder: Path) -> tuple[list[Face], list[Rejected]]:
    """All faces of all font files below a folder, sorted by path, and those that cannot be used.

    A face is named by its file, without suffix; faces of a collection get their number, files of
    one name their folder, and where another face has that name already, its file's suffix as well.
    """
    paths = font_files(folder)
    stems = [path.stem for path in paths]
    found: dict[str, Face] = {}
    rejected: list[Rejected] = []
    for path in paths:
        whole = printable("-".join(path.relative_to(folder).parts))
        stem = printable(path.stem) if stems.count(path.stem) == 1 else whole
        try:
            count = _face_count(path)
        except FontError as error:
            rejected.append(Rejected(stem, str(error)))
            continue
        for index in range(count):
            number = "" if count == 1 else f"-{index}"
            id = (whole if stem + number in found else stem) + number
            while id in found:
                id += "+"
            try:
                face = Face(path, index, id)
            except FontError as error:
                rejected.append(Rejected(id, str(error)))
                continue
            if _NOT_TEXT.search(face.name):
                rejected.append(Rejected(id, f"{face.name} is a symbol or last-resort font"))
            else:
                found[id] = face
    return [*found.values()], rejected


def _face_count(path: Path) -> int:
    """Faces in a file: collections open with `ttcf`, a version, their number, and their places.

    Raises:
        FontError: a damaged one says that it has more than it can hold.
    """
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"ttcf":
        return 1
    count = int.from_bytes(head[8:12], "big")
    if count > min(MOST_FACES, path.stat().st_size // 4):
        name = printable(path.name)
        raise FontError(f"{name} says that it holds {count} faces: it is damaged")
    return count
