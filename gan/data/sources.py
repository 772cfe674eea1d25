"""What holds images, as a source and as an open store: folders of images, fonts, glyph sheets."""

import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from gan.data.building import Source, StoreBusyError, build, refusal
from gan.data.layout import Record, Rejected, StoreError, key_problem
from gan.data.store import Store

READ = {".jpg", ".jpeg", ".png", ".webp"}
NOT_READ = {".avif", ".bmp", ".gif", ".heic", ".jp2", ".jxl", ".psd", ".tga", ".tif", ".tiff"}
FONTS = {".ttf", ".otf", ".ttc", ".otc"}
USED = READ | NOT_READ | FONTS
LARGEST_FILE = 64 << 20  # bytes
MOST_PIXELS = 1 << 26

_EMBEDDED = [Path(__file__).parents[2] / "data", Path(__file__).parent]  # a checkout, a wheel
_RULES = 1  # raise it when the same file would give other pixels


class ImageFolder:
    """The JPEG, PNG and WebP images of a folder and its sub-folders, in the order of their names.

    Where every image lies in a sub-folder, the first level of sub-folders are classes (field
    `label`). Keys are the paths within the folder. Names that begin with a dot are passed over.

    An image is turned as its EXIF data say and laid on white where it is transparent; palettes are
    resolved, 16 bits become 8 by division by 257, CMYK becomes RGB without a profile, grey is
    ITU-R 601 luma. Then the shorter side is resized by Pillow's antialiased Lanczos filter (the
    choice of StyleGAN's data sets, Karras et al. 2019, arXiv:1812.04948) and the middle is cut out.
    Refused are animations, damaged files, and by their header files above 64 MiB or 2^26 pixels.
    """

    def __init__(self, path: str | os.PathLike[str], size: int, channels: int = 3) -> None:
        """Lists the folder; `size` is in pixels, `channels` 1 or 3.

        Raises:
            ValueError: there is no such folder, or no image in it.
        """
        if channels not in (1, 3):
            raise ValueError(f"image.channels must be 1 or 3, not {channels}")
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}")
        self.shape = (size, size, channels)
        self.name = f"image folder {self.path.name or self.path.resolve().name}"
        self.files = [f for f in _files(self.path) if f.suffix.lower() in READ | NOT_READ]
        if not any(file.suffix.lower() in READ for file in self.files):
            raise ValueError(f"the folder {self.path} holds no JPEG, PNG or WebP image")
        self.facts: Mapping[str, Any] = {}

    @cached_property
    def names(self) -> Mapping[str, Sequence[str]]:
        """The classes, if there are any."""
        folders = [file.relative_to(self.path).parts[:-1] for file in self.files]
        if not all(folders):
            return {}
        return {"label": [_printable(name) for name in sorted({parts[0] for parts in folders})]}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any image."""
        return _digest([_RULES, self.shape, _listing(self.path, self.files)])

    def __len__(self) -> int:
        """How many image files there are."""
        return len(self.files)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in order."""
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The images after the first `seen` files."""
        return map(self._item, self.files[seen:])

    def _key(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _item(self, file: Path) -> Record | Rejected:
        key = self._key(file)
        problem = key_problem(key)
        if problem:
            return Rejected(_printable(key), problem)
        try:
            image = read_image(file, *self.shape[1:])
        except Exception as error:  # a damaged file may raise anything in its decoder
            return Rejected(key, str(error) or repr(error))
        labels = self.names.get("label")
        return Record(key, image, {"label": labels.index(key.split("/")[0])} if labels else {})


def read_image(file: Path, size: int, channels: int) -> np.ndarray:
    """An image file as uint8 [size, size, channels], by the rules of `ImageFolder`.

    Raises:
        Exception: the file breaks a rule, or is damaged in a way that its decoder notices.
    """
    if file.suffix.lower() not in READ:
        raise ValueError(f"{file.suffix} files are not read; convert it to PNG")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"it has {file.stat().st_size} bytes, at most {LARGEST_FILE} are read")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(file, formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, too many")
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ValueError("it is an animation")  # MPO: a photograph with its previews
            upright = ImageOps.exif_transpose(image)
            pixels = _square(_flat(upright, "L" if channels == 1 else "RGB"), size)
    return np.asarray(pixels).reshape(size, size, channels)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode as `L` or `RGB`."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("it has more than 16 bits a pixel")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(f"its mode {image.mode} is not read; convert it to RGB")
    return image.convert(mode)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image whose shorter side becomes `size`; at that size pixels stay."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box)


def _files(folder: Path) -> list[Path]:
    """All files below a folder in the order of their names; links are followed, once."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _raise(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _listing(folder: Path, files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time (ns) of each file."""
    stats = [(_printable(file.relative_to(folder).as_posix()), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def kind(path: str | os.PathLike[str]) -> Literal["sheets", "fonts", "images"]:
    """What a folder holds.

    Raises:
        ValueError: it is no folder.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is nothing at {path}: data.path names a folder or a .lmdb store")
    if not path.is_dir():
        raise ValueError(
            f"{path} is not read: data.path names a store that ends in .lmdb, or a folder of "
            "images (JPEG, PNG, WebP), of fonts (TTF, OTF, TTC) or of glyph sheets (index.json)"
        )
    if _is_sheets(path):
        return "sheets"
    return "fonts" if any(f.suffix.lower() in FONTS for f in _files(path)) else "images"


def _is_sheets(path: Path) -> bool:
    """Whether there is an index.json that describes cells, or is broken."""
    try:
        index = json.loads((path / "index.json").read_bytes())
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(index, dict) and "cell" in index


def guess(path: str | os.PathLike[str], size: int, channels: int | None = None) -> Source:
    """The source at a path: glyph sheets, a folder of fonts, or a folder of images.

    `channels` is 3 for images and 1 for glyphs unless it is given.

    Raises:
        ValueError: naming the path and what would be read, or `image.channels` for coloured glyphs.
    """
    path, found = Path(path), kind(path)
    if found == "images":
        return ImageFolder(path, size, channels or 3)
    from gan.data.fonts import FontFolder  # fontTools takes its time to import
    from gan.data.sheets import GlyphSheets

    glyphs: Source = GlyphSheets(path, size) if found == "sheets" else FontFolder(path, size)
    if channels not in (None, glyphs.shape[2]):
        raise ValueError(f"image.channels must be {glyphs.shape[2]} for {glyphs.name}")
    return glyphs


def embedded(name: str) -> Path:
    """The folder of glyph sheets that comes with the package."""
    for folder in _EMBEDDED:
        if _is_sheets(folder / name):
            return folder / name
    raise ValueError(f"the embedded data {name!r} are not part of this installation")


def store_path(
    path: str | os.PathLike[str], size: int, channels: int, folder: Path = Path("data")
) -> Path:
    """Where the store of a source is kept: its name, a hash of its real path, and the shape."""
    real = Path(path).resolve()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", real.name)[:100]
    if real.parent not in _EMBEDDED:
        name = f"{name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"
    return folder / f"{name}-{size}x{size}x{channels}.lmdb"


def open_store(
    path: str | os.PathLike[str],
    size: int,
    channels: int,
    *,
    folder: Path = Path("data"),
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Store:
    """The store at a path, or the one kept under `folder` for what is there, built where needed.

    A kept store is built anew when its source has changed. Several processes may ask at once: one
    builds, the others wait for it.

    Args:
        path: a `.lmdb` store, or anything that `guess` recognises.
        size: pixels, compared with the store's.
        channels: compared with the store's.
        folder: where stores are kept.
        on_error: `raise` refuses an image folder with images that cannot be used, `skip` leaves
            them out. Glyphs that a font does not draw are always left out.
        progress: whether a bar is shown, where there is a terminal.

    Raises:
        ValueError: naming the path and the parameter.
    """
    if Path(path).suffix == ".lmdb":
        return _fitting(Store(path), size, channels)
    strict = on_error == "raise" and kind(path) == "images"
    target, stamp = store_path(path, size, channels, folder), _stamp(Path(path))
    store = _kept(target, stamp) or _built(
        guess(path, size, channels), target, stamp, "raise" if strict else "skip", progress
    )
    if store.rejected and strict:
        store.close()
        raise StoreError(refusal(store.source, store.rejected, store.rejected_count))
    return store


def _fitting(store: Store, size: int, channels: int) -> Store:
    if store.shape == (size, size, channels):
        return store
    store.close()
    height, width, depth = store.shape
    raise StoreError(
        f"{store.path} holds images of {height}x{width}x{depth}, not of {size}x{size}x{channels}: "
        f"set image.size={height} image.channels={depth}, or build another store"
    )


def _stamp(path: Path) -> str:
    """Changes with the name, size or time of any file that a source at this path may read."""
    files = [f for f in _files(path) if f.suffix.lower() in USED or f.name == "index.json"]
    return _digest([_RULES, _drawing(path), _listing(path, files)])


def _drawing(path: Path) -> Any:
    """What decides how fonts are drawn: with other libraries they look different."""
    if kind(path) != "fonts":
        return None
    from gan.data.glyphs import RENDERING, versions

    return [RENDERING, versions()]


def _kept(target: Path, stamp: str) -> Store | None:
    """The store that was built before from the same files, or None."""
    if not target.exists():
        return None
    try:
        store = Store(target)
    except StoreError as error:
        _notice(f"{error}; it is built again")
        return None
    if store.stamp == stamp:
        return store
    store.close()
    _notice(f"the files that {target} was built from have changed; it is built again")
    return None


def _built(
    source: Source, target: Path, stamp: str, on_error: Literal["raise", "skip"], progress: bool
) -> Store:
    """The store built by this process, or by the one that is at it already."""
    _notice(f"building {target} from {source.name}")
    waiting = False
    while True:
        try:
            build(source, target, stamp=stamp, overwrite=True, on_error=on_error, progress=progress)
            return Store(target)
        except StoreBusyError as busy:
            if not waiting:
                _notice(f"{busy}; waiting for it")
            waiting = True
        time.sleep(0.2)
        if target.exists() and (store := _kept(target, stamp)):
            return store


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
