"""Glyphs of two sources in one store: of the first, and more styles that are for training alone."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gan.data.builder import Source
from gan.data.fonts import key, spread, twins
from gan.data.glyphs import Pixels, faces
from gan.data.images import digest
from gan.data.layout import Record, Rejected
from gan.data.sources import embedded, guess, kept_store, kind, stamp, store_path
from gan.data.store import Store
from gan.data.triples import TRAINING

_SAMPLE = 32  # characters on which designs are compared


class Joined:
    """The glyphs of `first`, and its characters in the styles of `more`.

    Styles of `more` follow in their order, with the fact `training` in their description. Those of
    the same design as a style before them are rejected as near-duplicates, and one whose id is
    taken gets a plus sign. What `more` draws of other characters is passed over.

    Raises:
        ValueError: one of them holds no glyphs, or they share no character; when it is read, that
            `more` has no new style.
    """

    def __init__(self, first: Source, more: Source) -> None:
        for source in (first, more):
            if not {"style", "character"} <= set(source.names):
                raise ValueError(f"data.more joins glyphs, and {source.name} holds none")
        self.first, self.more = first, more
        if not set(first.names["character"]) & set(more.names["character"]):
            raise ValueError(f"{more.name} draws none of the characters of {first.name}")
        self.name = f"{first.name} and {more.name}"
        self.shape = first.shape

    @cached_property
    def _used(self) -> dict[str, str]:
        """The styles of `more` that are new, with their ids in the store."""
        taken = set(self.first.names["style"])
        ids = [id for id in self.more.names["style"] if id not in self._twins]
        if not ids:
            raise ValueError(
                f"data.more: {self.more.name} has no style that {self.first.name} lacks"
            )
        return {id: f"{id}+" if id in taken else id for id in ids}

    @cached_property
    def _twins(self) -> dict[str, str]:
        """The styles of `more` that are of a design before them, with the id of that."""
        shared = set(self.more.names["character"])
        common = [one for one in self.first.names["character"] if one in shared]
        sample = set(spread(common, _SAMPLE))
        before = _drawn(self.first, sample)
        images = {**before, **{f"+{id}": one for id, one in _drawn(self.more, sample).items()}}
        return {
            id.removeprefix("+"): earlier.removeprefix("+")
            for id, earlier in twins(images).items()
            if id not in before and earlier != id
        }

    @property
    def names(self) -> Mapping[str, list[str]]:
        """The styles of both and the characters of the first."""
        styles = [*self.first.names["style"], *self._used.values()]
        return {"style": styles, "character": list(self.first.names["character"])}

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the first, with the styles of both."""
        told = self.more.facts["styles"]
        new = {name: {**told[id], TRAINING: True} for id, name in self._used.items()}
        return {**self.first.facts, "styles": {**self.first.facts["styles"], **new}}

    def fingerprint(self) -> str:
        """Digest of both fingerprints."""
        both = [1, self.first.fingerprint(), self.more.fingerprint()]
        return hashlib.sha256(json.dumps(both).encode()).hexdigest()

    def __len__(self) -> int:
        """How many records there are at most."""
        return len(self.first) + len(self.more)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """The records of the first, the near-duplicates, and the records of the new styles."""
        yield from self.first
        for id, earlier in self._twins.items():
            yield Rejected(f"{id}+", f"near-duplicate of {earlier}")
        styles = {name: place for place, name in enumerate(self.names["style"])}
        characters = {one: place for place, one in enumerate(self.names["character"])}
        for item in self.more:
            if isinstance(item, Rejected):
                yield item
                continue
            id, character = _named(self.more, item)
            if id in self._used and character in characters:
                name = self._used[id]
                fields = {"style": styles[name], "character": characters[character]}
                yield Record(key(name, character), item.image, fields)


def _named(source: Source, record: Record) -> tuple[str, str]:
    """The style's id and the character of a record."""
    named = (source.names[field][record.fields[field]] for field in ("style", "character"))
    style, character = named
    return style, character


def _drawn(source: Source, characters: Collection[str]) -> dict[str, dict[str, Pixels]]:
    """The images [H, W] of some characters in every style of a source."""
    drawn: dict[str, dict[str, Pixels]] = {}
    for item in source:
        if isinstance(item, Record):
            id, character = _named(source, item)
            if character in characters:
                drawn.setdefault(id, {})[character] = item.image[..., 0]
    return drawn


def open_joined(
    path: str | os.PathLike[str],
    more: Sequence[str],
    size: int,
    channels: int,
    *,
    characters: str | None = None,
    prototype: str | None = None,
    folder: Path = Path("data"),
    progress: bool = True,
) -> Store:
    """The store of the glyphs at a path with `more` styles for training, built where needed.

    All are folders of fonts or of glyph sheets; `more` may also name embedded ones. The rest is as
    for `open_store`.

    Raises:
        ValueError: one of them is something else, or they cannot be joined.
    """
    first, others = (
        Path(path),
        [Path(one) if Path(one).exists() else _embedded(one) for one in more],
    )
    for name, there in [("path", first), *(("more", other) for other in others)]:
        if not there.is_dir() or kind(there) not in ("fonts", "sheets"):
            raise ValueError(
                f"data.more joins folders of fonts or glyph sheets, and data.{name}={there} is none"
            )

    def source() -> Source:
        joined = guess(first, size, channels, characters, prototype)
        for other in others:
            joined = Joined(joined, _styles(other, size, channels, joined.names["character"]))
        return joined

    chosen = [characters, prototype] if characters or prototype else []
    shape = f"-{size}x{size}x{channels}.lmdb"
    parts = [store_path(first, size, channels, folder, chosen)]
    parts += [store_path(other, size, channels, folder) for other in others]
    target = folder / ("+".join(part.name.removesuffix(shape) for part in parts) + shape)
    stamps = [stamp(first, kind(first), characters, prototype)]
    stamps += [stamp(other, kind(other)) for other in others]
    return kept_store(source, target, digest(stamps), "skip", progress)


def _styles(path: Path, size: int, channels: int, characters: Sequence[str]) -> Source:
    """Glyph sheets, or fonts that draw these characters, the fullest of them the standard one."""
    if kind(path) == "sheets":
        return guess(path, size, channels)
    fullest = max(faces(path)[0], key=lambda face: face.covers(characters), default=None)
    return guess(path, size, channels, "".join(characters), fullest.id if fullest else None)


def _embedded(name: str) -> Path:
    try:
        return embedded(name)
    except ValueError:
        raise ValueError(
            f"there is nothing at {name}: data.more names folders of fonts or of glyph sheets, or "
            "embedded ones (hanzi-web)"
        ) from None
