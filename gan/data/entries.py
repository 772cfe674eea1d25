"""What `data=` can choose: each opens a store, built first where needed, and returns a dataset."""

from pathlib import Path
from typing import Literal

from gan.config.signature import SHAPE
from gan.data.datasets import Images, Resident
from gan.data.sources import embedded, open_store
from gan.data.store import Store
from gan.data.torchvision_sets import Dataset, open_set
from gan.data.translation import Direction, Pairs, Unpaired, open_pairs, open_unpaired
from gan.data.triples import Glyphs
from gan.registry import Count, Fraction, Whole, register


@register("source", "hanzi", **SHAPE)
def hanzi(
    size: Count,
    channels: Count,
    more: str | list[str] | None = None,
    references: Count = 1,
    split: Whole = 0,
    prototype: str | None = None,
    label: Literal["style", "character"] = "style",
    style: str | None = None,
    shots: Count | None = None,
    resident: Resident = "auto",
) -> Glyphs:
    """The embedded Chinese characters: 32 styles of 256 characters.

    `more` names folders of fonts or of glyph sheets. Their styles that draw every character are
    trained on and never held out, and so are sheets' other characters of the same styles. With the
    package come `hanzi-web`, 34 styles, and `hanzi-more`, 1,327 characters, some in each style.
    """
    store = _glyphs(embedded("hanzi"), size, channels, more)
    return Glyphs(store, references, split, prototype, label, style, shots, resident)


@register("source", "fonts", **SHAPE)
def fonts(
    path: str,
    size: Count,
    channels: Count,
    characters: str | None = None,
    more: str | list[str] | None = None,
    references: Count = 1,
    split: Whole = 0,
    prototype: str | None = None,
    label: Literal["style", "character"] = "style",
    style: str | None = None,
    shots: Count | None = None,
    resident: Resident = "auto",
) -> Glyphs:
    """A folder of TTF, OTF or TTC fonts, or a store made of one.

    `characters` is a text of characters or a UTF-8 file of them, by default region-neutral Hanzi;
    `more` names other folders: their styles that draw every character are trained on and never
    held out.
    """
    store = _glyphs(path, size, channels, more, characters, prototype)
    return Glyphs(store, references, split, prototype, label, style, shots, resident)


def _glyphs(
    path: str | Path,
    size: int,
    channels: int,
    more: str | list[str] | None,
    characters: str | None = None,
    prototype: str | None = None,
) -> Store:
    if not more:
        return open_store(
            path, size, channels, characters=characters, prototype=prototype, wanted="glyphs"
        )
    from gan.data.joined import open_joined  # fontTools takes its time to import

    folders = [more] if isinstance(more, str) else more
    return open_joined(path, folders, size, channels, characters=characters, prototype=prototype)


@register("source", "folder", **SHAPE)
def folder(
    path: str,
    size: Count,
    channels: Count,
    label: str | None = None,
    labels: str | None = None,
    flip: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    resident: Resident = "auto",
) -> Images:
    """A folder or an archive of images, or a store of one; sub-folders are classes (`label`).

    `labels` is a file that `gan relabel` made for the store.
    """
    store = open_store(path, size, channels, on_error=on_error, wanted="images")
    return Images(store, label, flip, resident, labels)


@register("source", "lmdb", **SHAPE)
def lmdb(
    path: str,
    size: Count,
    channels: Count,
    label: str | None = None,
    labels: str | None = None,
    flip: bool = False,
    resident: Resident = "auto",
) -> Images:
    """A store built before, or an LMDB of LSUN or BasicSR, which is read as it is."""
    return Images(open_store(path, size, channels), label, flip, resident, labels)


@register("source", "torchvision", **SHAPE)
def torchvision(
    dataset: Dataset,
    path: str,
    size: Count,
    channels: Count,
    part: str = "train",
    download: bool = False,
    label: str | None = None,
    labels: str | None = None,
    flip: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    resident: Resident = "auto",
) -> Images:
    """A data set that torchvision reads, from the folder that holds it; fetched only on request."""
    store = open_set(dataset, path, size, channels, part, download, on_error=on_error)
    return Images(store, label, flip, resident, labels)


@register("source", "pairs", **SHAPE)
def pairs(
    path: str,
    size: Count,
    channels: Count,
    direction: Direction = "ab",
    held_out: Fraction = 0.1,
    split: Whole = 0,
    flip: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    resident: Resident = "auto",
) -> Pairs:
    """Aligned pairs: images with both sides in one, or two sub-folders with the same file names."""
    store = open_pairs(path, size, channels, on_error)
    return Pairs(store, direction, held_out, split, flip, on_error, resident)


@register("source", "unpaired", **SHAPE)
def unpaired(
    path: str,
    size: Count,
    channels: Count,
    direction: Direction = "ab",
    held_out: Fraction = 0.1,
    split: Whole = 0,
    flip: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    resident: Resident = "auto",
) -> Unpaired:
    """Images of two kinds: two sub-folders, or trainA, trainB and, held out, testA and testB."""
    store = open_unpaired(path, size, channels, on_error)
    return Unpaired(store, direction, held_out, split, flip, resident)
