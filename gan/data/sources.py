"""What holds images, as a source and as an open store: folders, archives, fonts, glyph sheets."""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gan.data.archives import Archive, archive_of, located
from gan.data.builder import Source
from gan.data.building import StoreBusyError, build_held, exclusive, listed, refusal
from gan.data.foreign import ForeignImages, ForeignStore, is_foreign
from gan.data.images import (
    CHOICE,
    FONTS,
    READ,
    RULES,
    Fit,
    classes,
    digest,
    files_below,
    fitted,
    is_image,
    listing,
    printable,
    read_image,
    record,
    require_channels,
)
from gan.data.layout import Record, Rejected
from gan.data.pages import StoreError
from gan.data.store import Store

Kind = Literal["archive", "lmdb", "sheets", "fonts", "images"]
Wanted = Literal["glyphs", "images"]  # of a folder that holds both fonts and images

_EMBEDDED = [Path(__file__).parents[2] / "data", Path(__file__).parent]  # a checkout, a wheel


class ImageFolder:
    """The JPEG, PNG and WebP images of a folder and its sub-folders, in the order of their names.

    Where every image lies in a sub-folder, the first level of sub-folders that not all images share
    are classes (field `label`), or the one that holds them all. Keys are the paths within the
    folder. Names that begin with a dot are passed over.

    An image is turned as its EXIF data say and laid on white where it is transparent; palettes are
    resolved, 16 bits become 8 by division by 257 (of colours by 256, as Pillow does it), CMYK
    becomes RGB without a profile, grey is ITU-R 601 luma. Then the shorter side is resized by
    Pillow's antialiased Lanczos filter (the choice of StyleGAN's data sets, Karras et al. 2019,
    arXiv:1812.04948) and the middle is cut out. Refused are animations, damaged files, and by their
    header files above 64 MiB or 2^26 pixels.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: int, channels: int = 3, fit: Fit = fitted
    ) -> None:
        """Lists the folder; `size` is in pixels, `channels` 1 or 3, `fit` the last rule above.

        Raises:
            ValueError: there is no such folder, or no image in it.
        """
        require_channels(channels)
        self.path, self.fit = Path(path), fit
        if not self.path.is_dir():
            raise ValueError(f"there is no folder {self.path}")
        self.shape = (size, size, channels)
        self.name = printable(f"image folder {self.path.name or self.path.resolve().name}")
        self.files = [f for f in files_below(self.path) if is_image(f.name)]
        read = [self._key(file) for file in self.files if _is_read(file)]
        if not read:
            raise ValueError(f"the folder {self.path} holds no JPEG, PNG or WebP image")
        self.classes = classes(read, alone=True)
        self.names: Mapping[str, Sequence[str]] = self.classes.names
        self.facts: Mapping[str, Any] = self.classes.facts

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any image."""
        return digest([RULES, CHOICE, self.shape, listing(self.path, self.files)])

    def __len__(self) -> int:
        """How many image files there are."""
        return len(self.files)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in order."""
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The images after the first `seen` files."""
        return map(self._item, self.files[seen:])

    def _item(self, file: Path) -> Record | Rejected:
        key = self._key(file)
        fields = self.classes.fields(key) if _is_read(file) else {}  # others are refused
        return record(key, partial(read_image, file, *self.shape[1:], self.fit), fields)

    def _key(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()


def kind(path: str | os.PathLike[str], wanted: Wanted | None = None) -> Kind:
    """What is at a path; `lmdb` is one of another program.

    Raises:
        ValueError: nothing that is read, or fonts and images and nothing `wanted`.
    """
    path = Path(path)
    if not path.is_dir() and archive_of(path):
        return "archive"
    if not path.exists():
        raise ValueError(
            f"there is nothing at {path}{_here(path)}: data.path names a folder or a .lmdb store"
        )
    if not path.is_dir() and path.suffix == ".lmdb":
        raise ValueError(f"{path} is to be a source of images, but it is named as a store of them")
    if not path.is_dir():
        raise ValueError(
            f"{path} is not read: data.path names a store that ends in .lmdb, an archive (.zip, "
            ".tar, .tar.gz, .tar.bz2, .tar.xz), or a folder of images (JPEG, PNG, WebP), of fonts "
            "(TTF, OTF, TTC) or of glyph sheets (index.json)"
        )
    if is_foreign(path):
        return "lmdb"
    if _is_sheets(path):
        return "sheets"
    files = files_below(path)
    font, image = (next(filter(test, files), None) for test in (_is_font, _is_read))
    if font and image and wanted is None:
        first, second = (file.relative_to(path) for file in (font, image))
        raise ValueError(
            f"{path} holds fonts ({first}) and images ({second}): move one kind of them into a "
            "folder of its own"
        )
    return "fonts" if font and not (image and wanted == "images") else "images"


def _here(path: Path) -> str:
    """What a relative path is looked for from: a run may be used elsewhere than it was trained."""
    return "" if path.is_absolute() else f", seen from {Path.cwd()}"


def _is_sheets(path: Path) -> bool:
    """Whether there is an index.json of glyph sheets, whole or damaged."""
    file = path / "index.json"
    try:
        content = file.read_bytes() if file.is_file() else b""
    except OSError:
        return False
    try:
        index = json.loads(content)
    except (ValueError, RecursionError):
        return b'"cell"' in content  # what reads it says that it is damaged
    return isinstance(index, dict) and {"format", "cell"} <= index.keys()


def guess(
    path: str | os.PathLike[str],
    size: int,
    channels: int | None = None,
    characters: str | None = None,
    prototype: str | None = None,
    wanted: Wanted | None = None,
) -> Source:
    """The source at a path: an archive, another program's LMDB, glyph sheets, fonts, or images.

    `channels` is 3 for images and 1 for glyphs unless it is given. `characters` and `prototype` are
    those of `FontFolder`, and for a folder of fonts only. `wanted` decides where there are fonts
    and images.

    Raises:
        ValueError: naming the path and what would be read, or `image.channels` for coloured glyphs.
    """
    path, found = Path(path), kind(path, wanted or ("glyphs" if characters or prototype else None))
    for key, given in (("characters", characters), ("prototype", prototype)):
        if given is not None and found != "fonts":
            raise ValueError(f"{key}={given} is for a folder of fonts, which {path} is not")
    if found == "archive":
        return Archive(path, size, channels or 3)
    if found == "lmdb":
        return ForeignImages(path, size, channels or 3)
    if found == "images":
        return ImageFolder(path, size, channels or 3)
    from gan.data.fonts import FontFolder  # fontTools takes its time to import
    from gan.data.sheets import GlyphSheets

    glyphs: Source = (
        GlyphSheets(path, size)
        if found == "sheets"
        else FontFolder(path, size, characters, prototype)
    )
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
    path: str | os.PathLike[str],
    size: int,
    channels: int,
    folder: Path = Path("data"),
    chosen: Sequence[str | None] = (),
) -> Path:
    """Where the store of a source is kept: its name, a hash of its real path, and the shape.

    The hash also covers what else was chosen, such as the characters of fonts.
    """
    real = Path(path).resolve()
    top = archive_of(real) or real
    name = re.sub(r"[^A-Za-z0-9._-]", "_", str(real.relative_to(top.parent)))[:100]
    if real.parent not in _EMBEDDED:
        whole = os.fsencode(real) + (json.dumps(chosen).encode() if chosen else b"")
        name = f"{name}-{hashlib.sha256(whole).hexdigest()[:8]}"
    return folder / f"{name}-{size}x{size}x{channels}.lmdb"


def open_store(
    path: str | os.PathLike[str],
    size: int,
    channels: int,
    *,
    characters: str | None = None,
    prototype: str | None = None,
    wanted: Wanted | None = None,
    folder: Path = Path("data"),
    on_error: Literal["raise", "skip"] = "raise",
) -> Store:
    """The store at a path, or the one kept under `folder` for what is there, built where needed.

    A kept store is built anew when its source has changed. Several processes may ask at once: one
    builds, the others wait for it.

    Args:
        path: a `.lmdb` store, or anything that `guess` recognises.
        size: pixels, compared with the store's.
        channels: compared with the store's.
        characters: which ones are drawn of fonts, see `FontFolder`.
        prototype: the standard font of a folder of fonts, see `FontFolder`.
        wanted: what is read of a folder that holds fonts and images.
        folder: where stores are kept.
        on_error: `raise` refuses images that cannot be used, `skip` leaves them out. Glyphs that a
            font does not draw are always left out.

    Raises:
        ValueError: naming the path and the parameter.
    """
    path = Path(path)
    if path.suffix == ".lmdb" and not is_foreign(path):
        if characters is not None:
            raise ValueError(f"data.characters are those of {path}: it was built with them")
        return _fitting(Store(path), size, channels)
    found = kind(path, wanted)
    if found == "lmdb":
        return _foreign(path, size, channels)
    chosen = [characters, prototype] if found == "fonts" and (characters or prototype) else []
    return kept_store(
        lambda: guess(path, size, channels, characters, prototype, wanted),
        store_path(path, size, channels, folder, chosen),
        stamp(path, found, characters, prototype),
        on_error if found in ("images", "archive") else "skip",
    )


def kept_store(
    source: Callable[[], Source], target: Path, stamp: str, on_error: Literal["raise", "skip"]
) -> Store:
    """The store at `target`, built of the source unless it is there with the same stamp.

    Raises:
        ValueError: the source is refused, or the store cannot be built.
    """
    store = _kept(target, stamp) or _built(source(), target, stamp, on_error)
    if store.rejected and on_error == "raise":
        store.close()
        raise StoreError(refusal(store.source, store.rejected, store.rejected_count))
    return store


def _foreign(path: Path, size: int, channels: int) -> Store:
    store = ForeignStore(path, size, channels)
    _notice(
        f"{path} is read as it is, {store.source}: it has no checksums, and every image is decoded "
        f"again and again; `gan data build {path} NAME.lmdb` makes a store of it"
    )
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


def stamp(
    path: Path, found: Kind, characters: str | None = None, prototype: str | None = None
) -> str:
    """Changes with what is chosen, and the name, size or time of any file that may be read."""
    if found == "archive":
        archive, _ = located(path)
        return digest([RULES, CHOICE, listing(archive.parent, [archive])])
    every = files_below(path)
    used = [f for f in every if is_image(f.name) or _is_font(f) or f.name == "index.json"]
    choice = CHOICE if found == "images" else None
    made = _drawing(characters, prototype) if found == "fonts" else choice
    return digest([RULES, made, listing(path, used)])


def _drawing(characters: str | None, prototype: str | None) -> Any:
    """What decides how fonts are drawn: with other libraries they look different."""
    from gan.data.fonts import listed_characters
    from gan.data.glyphs import RENDERING, versions

    return [RENDERING, versions(), characters and listed_characters(characters), prototype]


def _is_font(file: Path) -> bool:
    return file.suffix.lower() in FONTS


def _is_read(file: Path) -> bool:
    return file.suffix.lower() in READ


def _kept(target: Path, stamp: str, quiet: bool = False) -> Store | None:
    """The store that was built before from the same files, or None, and why it is not taken."""
    say = (lambda _: None) if quiet else _notice
    if not target.exists():
        return None
    try:
        store = Store(target)
    except StoreError as error:
        say(f"{error}; it is built again")
        return None
    if store.stamp == stamp:
        return store
    store.close()
    say(f"the files that {target} was built from have changed; it is built again")
    return None


def _built(source: Source, target: Path, stamp: str, on_error: Literal["raise", "skip"]) -> Store:
    """The store built by this process, or by another one before or meanwhile."""
    waiting = False
    while True:
        try:
            with exclusive(target, source):
                if store := _kept(target, stamp, quiet=True):
                    return store
                if not waiting:
                    _notice(f"building {target} from {source.name}")
                made = build_held(source, target, stamp, True, on_error)
                if left := made.rejected:
                    _notice(f"{len(left)} left out of {target}:\n{listed(left, len(left))}")
                return Store(target)
        except StoreBusyError as busy:
            if not waiting:
                _notice(f"{busy}; waiting for it")
            waiting = True
        time.sleep(0.2)


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
