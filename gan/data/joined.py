"""Glyphs of two sources in one store: of the first, and what is for training alone.

That is more styles of its characters, or more characters of its styles.
"""

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gan.config.signature import nearest
from gan.data.builder import Source
from gan.data.faces import FontError
from gan.data.fonts import NoStandardError, key, spread, traits, twins
from gan.data.glyphs import Pixels
from gan.data.images import digest
from gan.data.layout import Record, Rejected
from gan.data.sources import embedded, guess, kept_store, kind, stamp, store_path
from gan.data.store import Store
from gan.data.triples import MORE, TRAINING, own

_FIELDS = ("style", "character")
_SAMPLE = 32  # characters on which designs are compared
_EMBEDDED = ("hanzi-web", "hanzi-more")  # for training alone, with the package
_SAME = 0.04  # mean difference of ink: a font drawn at two sizes may differ by 0.02 from itself
_RULES = 2  # changes when what is joined, or told of it, does
_SAID = 8  # styles that are named where some are left out
_LONGEST = 120  # characters of a store's name before its shape


class Joined:
    """The glyphs of `first`, and its characters in the styles of `more`.

    Styles of `more` follow in their order, where they draw all of the characters and are of no
    design before them; the others are rejected. One whose id is taken gets a plus sign. Their fact
    `training` lists the families of `first` that they are related to, by the family's name, the
    series or the words of the copyright line, with all the rest of their own family.

    Raises:
        ValueError: one of them holds no glyphs, or `more` has no such style.
    """

    def __init__(self, first: Source, more: Source) -> None:
        for source in (first, more):
            if not {"style", "character"} <= set(source.names):
                raise ValueError(f"data.more joins glyphs, and {source.name} holds none")
        self.first, self.more = first, more
        self.name = f"{first.name} and {more.name}"
        self.shape = first.shape
        self.refused = self._refused()
        self.used: dict[str, str] = {}  # styles of `more`, and their ids in the store
        taken = set(first.names["style"])
        for id in more.names["style"]:
            if id not in self.refused:
                self.used[id] = _free(id, taken)
                taken.add(self.used[id])
        if not self.used:
            raise ValueError(
                f"data.more: no style of {more.name} can join {first.name}, leave it away: "
                f"{self._left_out()}"
            )

    def _refused(self) -> dict[str, str]:
        """The styles of `more` that are not used, and why."""
        wanted = own(self.first.names["character"], self.first.facts)
        sample = set(spread(wanted, _SAMPLE))
        before, _ = _surveyed(self.first, wanted, sample)
        images, counts = _surveyed(self.more, wanted, sample)
        refused = {
            id: f"draws {counts.get(id, 0)} of the {len(wanted)} characters"
            for id in self.more.names["style"]
            if counts.get(id, 0) < len(wanted)
        }
        compared = {f"0{id}": drawn for id, drawn in before.items()}
        compared |= {f"1{id}": drawn for id, drawn in images.items() if id not in refused}
        for id, earlier in twins(compared, _SAME).items():
            if id[0] == "1" and earlier != id:
                there = self.first if earlier[0] == "0" else self.more
                refused[id[1:]] = f"near-duplicate of {earlier[1:]} of {there.name}"
        return refused

    def summary(self) -> str:
        """Which styles of `more` are used, in words."""
        given = len(self.more.names["style"])
        used = f"{len(self.used)} of {given} styles of {self.more.name} are for training"
        return f"{used}; left out: {self._left_out()}" if self._left_out() else used

    def _left_out(self) -> str:
        """What of `more` is not used and why, so far as a line holds it."""
        why = {**self.more.facts.get("refused", {}), **self.refused}
        styles = {id: reason for id, reason in why.items() if "/" not in id}  # no single glyphs
        said = "; ".join(f"{id} ({reason})" for id, reason in [*styles.items()][:_SAID])
        more = len(styles) - _SAID
        return f"{said}; and {more} more" if more > 0 else said

    @property
    def names(self) -> Mapping[str, list[str]]:
        """The styles of both and the characters of the first."""
        styles = [*self.first.names["style"], *self.used.values()]
        return {"style": styles, "character": list(self.first.names["character"])}

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the first, with the styles of both."""
        old, told = self.first.facts["styles"], self.more.facts["styles"]
        held = [style for style in old.values() if TRAINING not in style]  # or may be
        related: dict[str, set[str]] = {}
        for style in [*old.values(), *told.values()]:
            same = {other["family"] for other in held if _traits(style) & _traits(other)}
            related.setdefault(style["family"], set()).update(same, style.get(TRAINING, ()))
        joined = {id: style for id, style in old.items() if TRAINING in style}
        joined |= {name: told[id] for id, name in self.used.items()}
        new = {
            id: {**style, TRAINING: sorted(related[style["family"]])}
            for id, style in joined.items()
        }
        return {**self.first.facts, "styles": {**old, **new}}

    def fingerprint(self) -> str:
        """Digest of both fingerprints."""
        return digest([1, self.first.fingerprint(), self.more.fingerprint()])

    def __len__(self) -> int:
        """How many records there are at most."""
        return len(self.first) + len(self.more)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """The records of the first, the refused styles, and the records of the others."""
        yield from self.first
        for id, reason in self.refused.items():
            yield Rejected(id, f"{self.more.name}: {reason}")
        yield from _renumbered(self.more, self.used, self.names, self.names["character"])


class Extended:
    """The glyphs of `first`, and those of `more`, which are other characters of its styles.

    Styles are the same where id, name and copyright line are; others of `more` are passed over, and
    characters that `first` has. The fact `training_characters` lists those that follow.

    Raises:
        ValueError: `more` does not draw them in the standard font of `first`, or has no others.
    """

    def __init__(self, first: Source, more: Source) -> None:
        self.first, self.more = first, more
        self.name = f"{first.name} and {more.name}"
        self.shape, there = first.shape, first.names["character"]
        added = [character for character in more.names["character"] if character not in {*there}]
        if not added:
            raise ValueError(f"data.more: {first.name} has all characters of {more.name}")
        self.names = {**first.names, "character": [*there, *added]}
        self.facts: dict[str, Any] = {
            **first.facts,
            MORE: first.facts.get(MORE, "") + "".join(added),
        }
        one, other = (source.facts["styles"] for source in (first, more))
        self.styles = {
            id
            for id in {*first.names["style"]} & {*more.names["style"]}
            if all(one[id].get(fact) == other[id].get(fact) for fact in ("name", "copyright"))
        }
        if first.facts["prototype"] not in self.styles:
            raise ValueError(
                f"data.more: {more.name} has other characters than {first.name}, and does not "
                f"draw them in its standard font, {first.facts['prototype']}"
            )

    def summary(self) -> str:
        """What is added, in words."""
        count = len(self.names["character"]) - len(self.first.names["character"])
        return (
            f"{count} characters of {self.more.name} are for training, in {len(self.styles)} of "
            f"{len(self.names['style'])} styles"
        )

    def fingerprint(self) -> str:
        """Digest of both fingerprints."""
        return digest([2, self.first.fingerprint(), self.more.fingerprint()])

    def __len__(self) -> int:
        """How many records there are at most."""
        return len(self.first) + len(self.more)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """The records of the first, and those of its styles among the others."""
        yield from self.first
        added = self.names["character"][len(self.first.names["character"]) :]
        yield from _renumbered(self.more, {id: id for id in self.styles}, self.names, added)


def _renumbered(
    source: Source,
    used: Mapping[str, str],
    names: Mapping[str, Sequence[str]],
    wanted: Sequence[str],
) -> Iterator[Record]:
    """The records of `used` styles, by new ids, and `wanted` characters, numbered as in `names`."""
    styles, characters = ({name: n for n, name in enumerate(names[field])} for field in _FIELDS)
    listed = {*wanted}
    for item in source:
        if isinstance(item, Record):
            id, character = _named(source, item)
            if id in used and character in listed:
                name = used[id]
                fields = {"style": styles[name], "character": characters[character]}
                yield Record(key(name, character), item.image, fields)


def apart(first: Source, more: Source) -> bool:
    """Whether `more` has no character that is measured in `first`, but others."""
    named = [{*source.names.get("character", ())} for source in (first, more)]
    return all(named) and not named[1] & {*own(first.names["character"], first.facts)}


def join(first: Source, more: Source) -> Joined | Extended:
    """More characters of the same styles where they are apart, more styles otherwise.

    Raises:
        ValueError: one of them holds no glyphs, or they cannot be joined.
    """
    return Extended(first, more) if apart(first, more) else Joined(first, more)


def _free(id: str, taken: Collection[str]) -> str:
    while id in taken:
        id += "+"
    return id


def _traits(style: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What relates a style to others, out of its facts."""
    return {("stated", style["family"]), *traits(style.get("name", ""), style.get("copyright", ""))}


def _named(source: Source, record: Record) -> tuple[str, str]:
    """The style's id and the character of a record."""
    style, character = (source.names[field][record.fields[field]] for field in _FIELDS)
    return style, character


def _surveyed(
    source: Source, wanted: Collection[str], sample: Collection[str]
) -> tuple[dict[str, dict[str, Pixels]], dict[str, int]]:
    """For each style its images [H, W] of a sample, and how many characters it draws."""
    listed = set(wanted)
    images: dict[str, dict[str, Pixels]] = {}
    counts: dict[str, int] = {}
    for item in source:
        if isinstance(item, Record):
            id, character = _named(source, item)
            counts[id] = counts.get(id, 0) + (character in listed)
            if character in sample:
                images.setdefault(id, {})[character] = item.image[..., 0]
    return images, counts


def open_joined(
    path: str | os.PathLike[str],
    more: Sequence[str],
    size: int,
    channels: int,
    *,
    characters: str | None = None,
    prototype: str | None = None,
    folder: Path = Path("data"),
) -> Store:
    """The store of the glyphs at a path with `more` styles for training, built where needed.

    All are folders of fonts or of glyph sheets; `more` may also name embedded ones. Sheets of other
    characters are joined when all styles are there. The rest is as for `open_store`.

    Raises:
        ValueError: one of them is something else, or they cannot be joined.
    """
    first, others = Path(path), [_located(one) for one in more]
    if not _has_glyphs(first):
        raise ValueError(
            f"data.more joins folders of fonts or glyph sheets, and data.path={path} is none: "
            "data.more=null does without"
        )

    fewer = "" if _is_sheets(first) else "; data.characters can name fewer"

    def source() -> Source:
        sheets = {other: guess(other, size, channels) for other in others if _is_sheets(other)}
        joined = guess(first, size, channels, characters, prototype, "glyphs")
        wanted = "".join(joined.names["character"])
        last = [other for other, sheet in sheets.items() if apart(joined, sheet)]
        for other in sorted(others, key=last.__contains__):
            fonts = None if other in sheets else guess(other, size, channels, wanted)
            try:
                joined = join(joined, fonts or sheets[other])
            except NoStandardError as error:
                raise ValueError(
                    f"data.more={other}: {error.fact}, and styles join that draw every character "
                    f"of {joined.name}{fewer}"
                ) from error
            except FontError as error:
                raise ValueError(f"data.more={other}: {error}") from error
            print(joined.summary(), file=sys.stderr)
        return joined

    chosen = [characters, prototype] if characters or prototype else []
    shape = f"-{size}x{size}x{channels}.lmdb"
    parts = [store_path(first, size, channels, folder, chosen)]
    parts += [store_path(other, size, channels, folder) for other in others]
    name = "+".join(part.name.removesuffix(shape) for part in parts)
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{digest([name])[:8]}"
    stamps = [_RULES, stamp(first, kind(first, "glyphs"), characters, prototype)]
    stamps += [stamp(other, kind(other, "glyphs")) for other in others]
    return kept_store(source, folder / f"{name}{shape}", digest(stamps), "skip")


def _located(name: str) -> Path:
    """A folder of glyphs, or the embedded ones of that name."""
    path = Path(name)
    if _has_glyphs(path):
        return path
    try:
        return embedded(name)
    except ValueError:
        found = "that is none" if path.exists() else f"there is nothing; {nearest(name, _EMBEDDED)}"
        raise ValueError(
            "data.more names folders of fonts or of glyph sheets, or embedded ones "
            f"({', '.join(_EMBEDDED)}); at {name} {found}"
        ) from None


def _has_glyphs(path: Path) -> bool:
    return path.is_dir() and kind(path, "glyphs") in ("fonts", "sheets")


def _is_sheets(path: Path) -> bool:
    return kind(path, "glyphs") == "sheets"
