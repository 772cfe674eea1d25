"""Images as they come: every rule for the odd ones, up to pixels of one shape."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image, ImageOps

from gan.data import jpeg
from gan.data.layout import Record, Rejected, key_problem

READ = {".jpg", ".jpeg", ".jpe", ".jfif", ".pjp", ".pjpeg", ".png", ".webp"}
NOT_READ = {
    *(".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jpf", ".jpx"),
    *(".jxl", ".mpo", ".psd", ".tga", ".tif", ".tiff"),  # pictograms and raw files lie beside those
}
FONTS = {".ttf", ".otf", ".ttc", ".otc"}  # read by `gan.data.fonts`
LARGEST_FILE = 64 << 20  # bytes
MOST_PIXELS = 1 << 26
MODES = {1: "L", 3: "RGB"}  # by channels
_TO_BYTES = {"L;2": 255 / 3, "L;4": 255 / 15, "RGB;16B": 1 / 256}  # by which Pillow scales them
RULES = 3  # raise it when the same file would give other pixels
CHOICE = 3  # raise it when the same folder or archive would give other files or classes


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, read or not."""
    return PurePosixPath(name).suffix.lower() in READ | NOT_READ


def unread(name: str, length: int) -> str | None:
    """Why an image file of this name and length (bytes) is not read, or None."""
    suffix = PurePosixPath(name).suffix
    if not suffix:
        return "its name has no suffix; end it in .png, .jpg or .webp, whichever the file is"
    if suffix.lower() not in READ:
        return f"{suffix} files are not read; convert it to PNG"
    if length > LARGEST_FILE:
        return f"it has {length} bytes, at most {LARGEST_FILE} are read"
    return None


def require_channels(channels: int) -> None:
    """Raises unless images can have so many."""
    if channels not in MODES:
        raise ValueError(f"image.channels must be 1 or 3, not {channels}")


def shared_folders(folders: Sequence[Sequence[str]]) -> int:
    """How many folders all images have in common, from the first level on."""
    first, last = min(folders, key=tuple), max(folders, key=tuple)
    same = [one == other for one, other in zip(first, last, strict=False)]
    return [*same, False].index(False)


class Classes(NamedTuple):
    """What folders make of images: classes, by the first level that not all of them share."""

    shared: list[str]  # folders that all images lie in
    found: list[str]  # sub-folders of those
    beside: str | None  # the first image that lies beside such sub-folders

    @property
    def names(self) -> dict[str, list[str]]:
        """The field `label`, where every image lies in a sub-folder."""
        return {"label": self.found} if self.found and self.beside is None else {}

    @property
    def facts(self) -> dict[str, str]:
        """The image, if there is one, for which sub-folders are no classes."""
        return {} if self.beside is None else {"beside": self.beside}

    def fields(self, key: str) -> dict[str, int]:
        """The class of an image."""
        folder = key.split("/")[len(self.shared)]
        return {name: among.index(printable(folder)) for name, among in self.names.items()}


def classes(keys: Sequence[str], alone: bool = False) -> Classes:
    """What the folders in the keys of images mean; one that holds all may be a class `alone`."""
    folders = [key.split("/")[:-1] for key in keys]
    shared = shared_folders(folders)
    if alone and all(len(parts) == shared for parts in folders):
        shared = 0
    found = {parts[shared] for parts in folders if parts[shared:]}
    beside = [key for key, parts in zip(keys, folders, strict=True) if not parts[shared:]]
    stray = printable(beside[0]) if found and beside else None
    return Classes(folders[0][:shared], [printable(name) for name in sorted(found)], stray)


def record(
    key: str, image: Callable[[], np.ndarray], fields: Mapping[str, int]
) -> Record | Rejected:
    """The image as a record, or the reason that its key or its decoder gives against it."""
    problem = key_problem(key)
    if problem:
        return Rejected(printable(key), problem)
    try:
        return Record(key, image(), fields)
    except Exception as error:  # a damaged file may raise anything in its decoder
        return Rejected(key, str(error) or repr(error))


def printable(name: str) -> str:
    """A name of any bytes as text that can be shown and stored."""
    return name.encode("utf-8", "backslashreplace").decode()


def files_below(folder: Path) -> list[Path]:
    """All files below a folder in the order of their names; links are followed, once.

    Names that begin with a dot are passed over.

    Raises:
        ValueError: a folder cannot be listed.
    """
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


def _raise(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} cannot be listed: {error.strerror}") from error


def listing(folder: Path, files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, bytes and time (ns) of each file; -1 and 0 of a link that leads nowhere."""
    return [(printable(file.relative_to(folder).as_posix()), *_changes(file)) for file in files]


def _changes(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # it is refused by name where it is read
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def fitted(
    image: Image.Image, size: int, channels: int, out: np.ndarray | None = None
) -> np.ndarray:
    """An opened image as uint8 [size, size, channels]; nothing is decoded before its checks.

    What is returned may be `out`, of that shape, where an image can be decoded right into it;
    elsewhere `out` holds nothing that counts.
    """
    _require_readable(image)
    pixels = jpeg.pixels(image, MODES[channels], out) if min(image.size) == size else None
    return _square(_upright(image, channels), size) if pixels is None else _middle(pixels, size)


def fitted_halves(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """An opened image of two side by side, each fitted alone, as uint8 [size, 2*size, channels]."""
    upright = _upright(image, channels)
    half, rest = divmod(upright.width, 2)
    if rest:
        raise ValueError(f"it is {upright.width} pixels wide, which has no middle for two images")
    left, right = (upright.crop((x, 0, x + half, upright.height)) for x in (0, half))
    return np.concatenate([_square(left, size), _square(right, size)], 1)


def whole(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """An opened image at its own size, whatever `size` is, as uint8 [H, W, channels]."""
    upright = _upright(image, channels)
    return np.asarray(upright).reshape(upright.height, upright.width, channels)


Fit = Callable[[Image.Image, int, int], np.ndarray]


def read_image(file: Path, size: int, channels: int, fit: Fit = fitted) -> np.ndarray:
    """An image file as uint8 [size, size, channels], by the rules of `ImageFolder` and of `fit`.

    Raises:
        Exception: the file breaks a rule, or is damaged in a way that its decoder notices.
    """
    length = file.stat().st_size
    problem = unread(file.name, length) if file.is_file() else "it is no regular file"
    if problem:
        raise ValueError(problem)
    return strictly_decoded(file, size, channels, fit)


def strictly_decoded(
    data: Path | IO[bytes], size: int, channels: int, fit: Fit = fitted
) -> np.ndarray:
    """What `decoded` gives, with Pillow's warnings as errors; for one thread at a time.

    Those about EXIF data pass: they say nothing of the pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        return decoded(data, size, channels, fit)


def decoded(data: Path | IO[bytes], size: int, channels: int, fit: Fit = fitted) -> np.ndarray:
    """An encoded image as uint8 [size, size, channels]."""
    with Image.open(data, formats=("JPEG", "PNG", "WEBP")) as image:
        return fit(image, size, channels)


def _upright(image: Image.Image, channels: int) -> Image.Image:
    """An opened image as `L` or `RGB`, turned as its EXIF data say."""
    _require_readable(image)
    _scale_transparent(image)
    ImageOps.exif_transpose(image, in_place=True)
    return _flat(image, MODES[channels])


def _require_readable(image: Image.Image) -> None:
    """Raises, before anything is decoded, unless an opened image is one and not too large."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels, too many")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("it is an animation")  # MPO: a photograph with its previews


def _scale_transparent(image: Image.Image) -> None:
    """Scales the colour that a PNG calls transparent as Pillow scales pixels, but not that one."""
    clear, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    scale = _TO_BYTES.get(tiles[0].args) if tiles else None
    if scale and isinstance(clear, int):
        image.info["transparency"] = int(scale * clear)
    elif scale and clear:
        image.info["transparency"] = tuple(int(scale * value) for value in clear)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode as `L` or `RGB`."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("it has more than 16 bits a pixel")
        clear = image.info.get("transparency")  # the grey that a PNG calls transparent
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(f"its mode {image.mode} is not read; convert it to RGB")
    return image if image.mode == mode else image.convert(mode)


def _square(image: Image.Image, size: int) -> np.ndarray:
    """The middle of an image whose shorter side becomes `size`; at that size pixels stay."""
    side = min(image.size)
    if side == size:
        return _middle(np.asarray(image), size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box))
    return pixels.reshape(size, size, -1)


def squared(pixels: np.ndarray, size: int) -> np.ndarray:
    """What `fitted` makes of an image whose pixels, uint8 [H, W, channels], `whole` gave."""
    return _square(Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]), size)


def _middle(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle [size, size, C] of the pixels [H, W, (C)] of an image."""
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size].reshape(size, size, -1)
