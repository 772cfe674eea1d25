"""Contact sheets of glyphs: one grey PNG per style and an index, small enough to ship with code.

A sheet holds `columns` cells a row, each `cell` pixels square, in the order of the characters. The
index names everything that decided a pixel, and the SHA-256 of each sheet's decoded pixels.
"""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fontTools.ttLib import TTCollection
from PIL import Image

from gan import disk
from gan.data.embedded import ALLOWED_LICENCES, PACKAGES, PROTOTYPE, REGION_RULE, STYLES, Pick
from gan.data.faces import Face
from gan.data.fonts import records, spread, twins
from gan.data.glyphs import RENDERING, Pixels, Rendered, area_reduce, render, versions
from gan.data.images import digest, printable
from gan.data.store import Record, Rejected

FORMAT = 1
CELL, COLUMNS, LEVELS, CHARACTERS = 64, 16, 32, 256
_NEEDED = {"cell", "characters", "prototype", "region", "rendering", "styles", "versions"}
LARGEST = 6_000_000  # bytes of all sheets together
_AT_ONCE = 256  # cells that are reduced together, as floats


class SheetError(ValueError):
    """A folder of sheets, or the building of one, that is not as it must be."""


class GlyphSheets:
    """A folder of contact sheets as a source of glyph records, checked against its index.

    Records are keyed `<style>/<code point as 6 hex digits>`, with the fields `style` and
    `character`.

    Args:
        path: the folder with `index.json` and the sheets.
        size: pixels of a side; the cells are reduced by area, so it divides their size.

    Raises:
        SheetError: no index, another format, or a size that the cells do not give.
    """

    def __init__(self, path: Path, size: int = CELL) -> None:
        self.path, self.size = Path(path), size
        self.index = read_index(self.path)
        cell = self.index["cell"]
        if size < 1 or cell % size:
            raise SheetError(
                f"size={size} is no whole fraction of the {cell} pixels of the glyphs in {path}: "
                f"larger or other sizes need a build from the fonts themselves"
            )
        self.name = printable(f"glyph sheets {self.path.name}")
        self.shape = (size, size, 1)
        self.names: dict[str, Sequence[str]] = {
            "style": list(self.index["styles"]),
            "character": list(self.index["characters"]),
        }
        self.facts: dict[str, Any] = {
            name: self.index[name]
            for name in ("prototype", "region", "rendering", "versions", "styles")
        }

    def fingerprint(self) -> str:
        """Digest of the index, which holds the digests of all pixels, and of the size."""
        return digest([FORMAT, self.index, self.size])

    def __len__(self) -> int:
        """How many records there are at most."""
        return sum(len(drawn_of(self.index, one)) for one in self.index["styles"].values())

    def __iter__(self) -> Iterator[Record | Rejected]:
        """Every (style, character), by style and then by code point.

        Raises:
            SheetError: a sheet is missing or its pixels are not those of the index.
        """
        for style, id in enumerate(self.index["styles"]):
            yield from records(id, style, self.names["character"], self.glyphs(id))

    def glyphs(self, id: str) -> Rendered:
        """What one style draws, and why it does not draw the rest of its characters.

        Raises:
            SheetError: as reading all of them does.
        """
        entry = self.index["styles"][id]
        cells = self._cells(id, entry)
        parts = np.array_split(cells, len(cells) // _AT_ONCE + 1)
        small = np.concatenate([area_reduce(part, self.size) for part in parts])
        unusable: dict[str, str] = entry["unusable"]
        drawn = zip(drawn_of(self.index, entry), small, strict=True)
        return Rendered({one: cell for one, cell in drawn if one not in unusable}, unusable)

    def _cells(self, id: str, entry: Mapping[str, Any]) -> Pixels:
        """The cells of one sheet, [characters, cell, cell]."""
        path = self.path / entry["sheet"]
        try:
            with Image.open(path) as image:
                sheet = np.asarray(image.convert("L"))
        except OSError as error:
            raise SheetError(f"the sheet of style {id} cannot be read: {error}") from error
        if pixel_hash(sheet) != entry["pixels"]:
            raise SheetError(
                f"{path} does not hold the pixels that {self.path / 'index.json'} promises"
            )
        return cut(sheet, self.index["cell"])[: len(drawn_of(self.index, entry))]


def drawn_of(index: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The characters of a style's sheet, in the order of its cells."""
    characters: str = entry.get("characters", index["characters"])
    return characters


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of sheets.

    Raises:
        SheetError: it is missing, no JSON, or of another format.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SheetError(f"{path} cannot be read as the index of glyph sheets: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        raise SheetError(f"{path} has format {found}, this version reads {FORMAT}")
    if missing := _NEEDED - index.keys():
        raise SheetError(f"{path} lacks {', '.join(sorted(missing))}")
    return index


def pixel_hash(sheet: Pixels) -> str:
    """SHA-256 of a sheet's shape and bytes."""
    return hashlib.sha256(f"{sheet.shape}".encode() + sheet.tobytes()).hexdigest()


def paste(cells: Sequence[Pixels], columns: int) -> Pixels:
    """Cells [n, cell, cell] as one sheet [rows * cell, columns * cell], filled up with paper."""
    cell = cells[0].shape[0]
    rows = -(-len(cells) // columns)
    grid = np.full((rows * columns, cell, cell), 255, np.uint8)
    grid[: len(cells)] = cells
    return (
        grid.reshape(rows, columns, cell, cell).swapaxes(1, 2).reshape(rows * cell, columns * cell)
    )


def cut(sheet: Pixels, cell: int) -> Pixels:
    """A sheet [rows * cell, columns * cell] as cells [rows * columns, cell, cell]."""
    rows, columns = sheet.shape[0] // cell, sheet.shape[1] // cell
    return sheet.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(-1, cell, cell)


class Sheets(NamedTuple):
    """What `build_sheets` made, and where it differs from the sheets at the target."""

    path: Path
    styles: int
    bytes: int
    differences: list[str]
    written: bool


def build_sheets(
    fonts: Path,
    target: Path,
    *,
    overwrite: bool = False,
    styles: Mapping[str, Pick] = STYLES,
    characters: str | None = None,
    prototype: str = PROTOTYPE,
    every: int | None = None,
    framed: str | None = None,
    region: str = REGION_RULE,
) -> Sheets:
    """Draw the embedded data set from a folder of fonts.

    The characters are 256 of the region-neutral ones that all styles draw, evenly spaced by code
    point, unless they are given. Of those a style but the prototype draws one in `every` so many,
    and the next style the next ones. `framed` characters decide the scale of a font where those
    that are drawn do not, and `region` tells which they are. Where the target already holds sheets,
    nothing is written without `overwrite`: the result names the differences.

    Raises:
        SheetError: fonts are missing, a licence does not allow embedding, the styles share too few
            characters, two styles are one design, the sheets are too large, or the target holds
            something else.
    """
    refuse_licences(styles)
    fonts, target = Path(fonts), Path(target)
    faces = _located(fonts, styles)
    if characters is None:
        characters = _evenly(faces, region_neutral(fonts))
    drawn = dict.fromkeys(faces, characters)
    if every is not None:
        drawn = {id: characters[n % every :: every] for n, id in enumerate(faces)}
        drawn[prototype] = characters
    glyphs = {id: render(face, drawn[id], CELL, LEVELS, framed) for id, face in faces.items()}
    if every is None:  # of few characters in common there is no telling
        _refuse_twins(glyphs)
    index = {
        "format": FORMAT,
        "cell": CELL,
        "columns": COLUMNS,
        "polarity": "ink 0 on paper 255",
        "levels": LEVELS,
        "region": region,
        "characters": characters,
        "prototype": prototype,
        "rendering": RENDERING,
        "versions": versions(),
        "styles": {
            id: _entry(face, styles[id], glyphs[id], drawn[id])
            | ({"characters": drawn[id]} if drawn[id] != characters else {})
            for id, face in faces.items()
        },
    }
    sheets = {f"{id}.png": _png(_sheet(glyphs[id], drawn[id])) for id in faces}
    size = sum(map(len, sheets.values()))
    if size > LARGEST:
        raise SheetError(f"the sheets take {size:,} bytes, more than the {LARGEST:,} allowed")
    there = (target / "index.json").exists()
    differences = list(differing(read_index(target), index)) if there else []
    if overwrite or not there:
        _write(target, sheets, index)
    return Sheets(target, len(faces), size, differences, overwrite or not there)


def refuse_licences(styles: Mapping[str, Pick]) -> None:
    """Raise SheetError, naming style and licence, unless every style may be embedded."""
    for id, pick in styles.items():
        licence = PACKAGES[pick.package].licence if pick.package in PACKAGES else "unknown"
        if licence not in ALLOWED_LICENCES:
            raise SheetError(
                f"style {id} ({pick.package}) has the licence {licence}, which is not among those "
                f"that allow embedding: {', '.join(sorted(ALLOWED_LICENCES))}"
            )


def _located(fonts: Path, styles: Mapping[str, Pick]) -> dict[str, Face]:
    """The face of every style, by id in alphabetical order."""
    files = {path.name: path for path in sorted(fonts.rglob("*")) if path.is_file()}
    missing = sorted({pick.package for pick in styles.values() if pick.file not in files})
    if missing:
        raise SheetError(f"{fonts} lacks fonts of these packages: {' '.join(missing)}")
    return {id: Face(files[styles[id].file], styles[id].face, id) for id in sorted(styles)}


def _evenly(faces: Mapping[str, Face], pool: Sequence[str]) -> str:
    """`CHARACTERS` characters out of those that every face draws."""
    refused: set[str] = set()
    for face in faces.values():
        refused |= render(face, pool, CELL).rejected.keys()
    shared = [character for character in pool if character not in refused]
    if len(shared) < CHARACTERS:
        raise SheetError(
            f"the styles share {len(shared)} characters of {len(pool)}, not {CHARACTERS}"
        )
    return "".join(spread(shared, CHARACTERS))


def region_neutral(fonts: Path) -> str:
    """The characters with one shape in every region, by code point, read from the Noto CJK fonts.

    They belong to level 1 of GB 2312, JIS X 0208 and Big5, and the JP, SC and TC faces of Noto Sans
    CJK draw them by one glyph, and so do those of Noto Serif CJK.

    Raises:
        SheetError: the folder lacks one of the two collections.
    """
    neutral = level_one()
    for series in ("Sans", "Serif"):
        name = f"Noto{series}CJK-Regular.ttc"
        path = next(iter(sorted(fonts.rglob(name))), None)
        if path is None:
            raise SheetError(
                f"{fonts} lacks {name} (package fonts-noto-cjk), which shows regional forms"
            )
        wanted = {f"Noto {series} CJK {region}" for region in ("JP", "SC", "TC")}
        with TTCollection(path, lazy=True) as collection:
            regional = [face for face in collection if face["name"].getDebugName(1) in wanted]
            maps = [face.getBestCmap() for face in regional]
        if len(maps) < len(wanted):
            raise SheetError(f"{path} lacks one of the faces {', '.join(sorted(wanted))}")
        neutral = {character for character in neutral if _one_glyph(character, maps)}
    return "".join(sorted(neutral))


def _one_glyph(character: str, maps: Sequence[Mapping[int, str]]) -> bool:
    glyphs = {map.get(ord(character)) for map in maps}
    return len(glyphs) == 1 and None not in glyphs


def level_one() -> set[str]:
    """The 1,583 characters that the first levels of three national standards share."""
    simplified = _decoded("gb2312", range(0xB0A1, 0xD7FA))
    japanese = _decoded("euc_jp", range(0xB0A1, 0xCFD4))
    traditional = _decoded("big5", range(0xA440, 0xC67F))
    return simplified & japanese & traditional


def _decoded(encoding: str, codes: range) -> set[str]:
    """The characters of a range of two-byte codes."""
    texts = (code.to_bytes(2, "big").decode(encoding, errors="ignore") for code in codes)
    return {text for text in texts if len(text) == 1 and not text.isascii()}


def _refuse_twins(glyphs: Mapping[str, Rendered]) -> None:
    original = twins({id: drawn.images for id, drawn in glyphs.items()})
    for id, first in original.items():
        if id != first:
            raise SheetError(f"style {id} is a near-duplicate of {first}: embed one of them")


def _entry(face: Face, pick: Pick, glyphs: Rendered, characters: str) -> dict[str, Any]:
    package = PACKAGES[pick.package]
    return {
        "name": face.name,
        "family": package.family,
        "cluster": face.id,
        "licence": package.licence,
        "copyright": package.copyright,
        "package": pick.package,
        "version": _package_version(pick.package, face.path),
        "file": pick.file,
        "face": pick.face,
        "sha256": face.sha256,
        "unusable": glyphs.rejected,
        "sheet": f"{face.id}.png",
        "pixels": pixel_hash(_sheet(glyphs, characters)),
    }


def _package_version(package: str, path: Path) -> str:
    """The installed version of a Debian package, where dpkg says that the file belongs to it."""
    if shutil.which("dpkg-query") is None or f"{package}:" not in _dpkg("-S", str(path)):
        return "unknown"
    return _dpkg("-W", "-f", "${Version}", package)


def _dpkg(*arguments: str) -> str:
    return subprocess.run(["dpkg-query", *arguments], capture_output=True, encoding="utf-8").stdout


def _sheet(glyphs: Rendered, characters: str) -> Pixels:
    """The glyphs side by side; an unusable one leaves its cell empty."""
    paper = np.full((CELL, CELL), 255, np.uint8)
    return paste([glyphs.images.get(character, paper) for character in characters], COLUMNS)


def _png(sheet: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG", optimize=True)
    return file.getvalue()


def differing(old: Any, new: Any, name: str = "index") -> Iterator[str]:
    """Every place where two indices differ, in words."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for entry in {**old, **new}:
            yield from differing(old.get(entry), new.get(entry), f"{name}.{entry}")
    elif old != new:
        yield f"{name}: {old} there, {new} from these fonts"


def _write(target: Path, sheets: Mapping[str, bytes], index: Mapping[str, Any]) -> None:
    """Put the sheets in place, and the index last: without it they are not read."""
    index_path = target / "index.json"
    stale = []
    if index_path.exists():
        stale = [entry["sheet"] for entry in read_index(target)["styles"].values()]
    elif taken := [name for name in sheets if (target / name).exists()]:
        raise SheetError(f"{target} holds {taken[0]} but no index.json: give another folder")
    target.mkdir(parents=True, exist_ok=True)
    index_path.unlink(missing_ok=True)
    for name in set(stale) - sheets.keys():
        (target / name).unlink(missing_ok=True)
    for name, content in sheets.items():
        (target / name).write_bytes(content)
    disk.replace(index_path, json.dumps(index, ensure_ascii=False, indent=1) + "\n")
