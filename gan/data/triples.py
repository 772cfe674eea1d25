"""Glyphs: triples of prototype, reference and target, and a split that keeps some back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from gan.data.datasets import Plan, Resident, draw, evenly, picked
from gan.data.store import Store, StoreError

TRAINING = "training"  # for a style that is for training alone: the families it is related to
MORE = "training_characters"  # those for training alone, the last of all
LEAST = 8  # groups that can always be split
Draw = Callable[[str], np.ndarray]  # uniform uint64 numbers [B] for a purpose


@dataclass(frozen=True)
class Split:
    """Disjoint numbers for training, validation and test, each sorted."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Glyphs:
    """Triples: a character in the standard font, others of a style, the character in that style.

    One epoch visits every pair of a training style and a training character once. References are
    training characters of the same style and never the target, and `shown` are the standard font's
    glyphs of their characters. Families of styles, and characters, are split 70/10/20; the
    prototype is in no split. Styles that are for training alone (see `Joined`) are left out where a
    family that they are related to is held out. Characters that are for training alone (see
    `Extended`) are in `split` and not in `measured`.

    To make more of them there are a `mate`, another training character in the standard font and in
    the style, and what `other` draws, another training style: target, mate and references.

    Other recipes read the same glyphs by other names: `real` and `real_b` are the target, `input`
    is the prototype, and `real_a` the standard font's glyph of an unrelated training character.
    """

    gives = (
        "prototype",
        "reference",
        "shown",
        "target",
        "style",
        "character",
        "mate",
        "other",
        "real",
        "label",
        "input",
        "real_a",
        "real_b",
    )

    def __init__(
        self,
        store: Store,
        references: int = 1,
        split: int = 0,
        prototype: str | None = None,
        label: Literal["style", "character"] = "style",
        style: str | None = None,
        shots: int | None = None,
        resident: Resident = "auto",
    ) -> None:
        """`split` seeds the split; `prototype` names a style, the store's own choice when None.

        `label` is the field that serves as class. With a `style`, whichever part of the split it is
        in, training sees that style alone; `shots` are the training characters it sees, of each.
        """
        self.store, self.references, self.label, self.resident = store, references, label, resident
        if not {"style", "character"} <= set(store.names):
            raise StoreError(
                f"{store.path} holds images and no glyphs: use data=folder or data=lmdb"
            )
        self.style_names, self.characters = store.names["style"], store.names["character"]
        self.rows = _table(store)  # [styles, characters], -1 where a glyph is missing
        self.prototype = self._style("prototype", prototype or store.facts["prototype"])
        if TRAINING in self._told(self.prototype):
            raise StoreError(
                f"data.prototype={prototype} is a style of data.more, which are for training alone"
            )
        self.families = _families(store)
        self.styles = self._styles(style, split)
        drawn = np.flatnonzero(self.rows[self.prototype] >= 0)  # it must have the character
        many = len(own(self.characters, store.facts))
        some, more = drawn[drawn < many], drawn[drawn >= many]
        more = more[(self.rows[np.ix_(self.styles.train, more)] >= 0).any(0)]
        self.measured = split_groups(np.arange(many), some, split, "characters")
        if shots is not None:
            self.measured = replace(self.measured, train=evenly(self.measured.train, shots))
            more = more[:0]
        train = np.concatenate([self.measured.train, more])
        self.split = replace(self.measured, train=train)
        self.pairs = self._pairs(self.styles.train, self.split.train)
        self._candidates, self._counts, self._every = self._reference_table()
        self._drawers = _lists((self.rows[self.styles.train] >= 0).T, self.styles.train)

    def __len__(self) -> int:
        """Usable pairs of a training style and a training character."""
        return len(self.pairs)

    @property
    def facts(self) -> dict[str, int]:
        """Numbers that networks are built with."""
        counts = {"styles": len(self.styles.train), "characters": len(self.split.train)}
        return {**counts, "classes": counts[f"{self.label}s"]}

    def plan(self, seed: int, epoch: int, indices: np.ndarray) -> Plan:
        """Targets at these indices, each with its prototype and references drawn for this epoch."""
        style, character = self.pairs[indices].T
        drawn = partial(draw, seed, epoch, indices)
        numbers = range(self.references)
        chosen = np.stack([self._reference(drawn, style, character, k) for k in numbers], 1)
        unrelated = self.split.train[drawn("real_a") % np.uint64(len(self.split.train))]
        plan = self.triple(style, character, chosen)
        more = self._more(drawn, style, character, chosen)
        real_a = self.rows[self.prototype, unrelated]
        return plan._replace(images={**plan.images, **more, "real_a": real_a})

    def _more(
        self, drawn: Draw, style: np.ndarray, character: np.ndarray, references: np.ndarray
    ) -> dict[str, np.ndarray]:
        """A mate [B, 2] and the other style's glyphs [B, 2 + K].

        The other style is one that draws what the fewest do. A mate that happens to be a reference,
        which is not to be seen in a target, and a glyph that the other style lacks are replaced by
        the sample's own.
        """
        mate = self._reference(drawn, style, character, self.references)
        mate = np.where((mate[:, None] == references).any(1), character, mate)
        wanted = np.concatenate([character[:, None], mate[:, None], references], 1)
        rarest = wanted[np.arange(len(wanted)), self._drawers[1][wanted].argmin(1)]
        table, counts = (part[rarest] for part in self._drawers)
        place = drawn("other") % counts.astype(np.uint64)
        other = table[np.arange(len(table)), place.astype(np.int64)]
        own, others = self.rows[style[:, None], wanted], self.rows[other[:, None], wanted]
        whole = (others >= 0).all(1, keepdims=True)
        return {
            "mate": np.stack([self.rows[self.prototype, mate], own[:, 1]], 1),
            "other": np.where(whole, others, own),
        }

    def triple(self, style: np.ndarray, character: np.ndarray, references: np.ndarray) -> Plan:
        """The plan of given styles [B], characters [B] and reference characters [B, K]."""
        prototype, target = self.rows[self.prototype, character], self.rows[style, character]
        images = {
            "prototype": prototype,
            "reference": self.rows[style[:, None], references],
            "shown": self.rows[self.prototype, references],
            "target": target,
            "real": target,
            "input": prototype,
            "real_a": prototype,
            "real_b": target,
        }
        fields = {
            "style": np.searchsorted(self.styles.train, style),
            "character": np.searchsorted(self.split.train, character),
        }
        return Plan(images, {**fields, "label": fields[self.label]})

    def labelled(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows of all training pairs, with their `style` and `character` counted from 0."""
        style, character = self.pairs.T
        fields = self.triple(style, character, character[:, None]).fields
        return self.rows[style, character], {name: fields[name] for name in ("style", "character")}

    def shown(self, keys: Collection[str], many: int = 8, seed: int = 0) -> dict[str, Plan]:
        """So many pairs each of seen and held-out styles and characters.

        Where no triples are read, 64 glyphs.
        """
        if not {"target", "real_b"} & {*keys}:
            return {"glyphs": self.plan(0, 0, evenly(np.arange(len(self)), 64))}
        styles = {"seen style": self.styles.train, "new style": self.styles.test}
        characters = {"seen character": self.measured.train, "new character": self.split.test}
        return {
            f"{s}, {c}".replace(" ", "-").replace(",", ""): self._spread(
                styles[s], characters[c], many, seed
            )
            for s in styles
            for c in characters
            if len(styles[s])
        }

    def held_out(self, part: Literal["validation", "test"]) -> Plan:
        """Every character of a held-out part, in the training styles; with its truth."""
        return self._spread(self.styles.train, getattr(self.split, part), 256)

    def _style(self, key: str, name: str) -> int:
        if name not in self.style_names:
            raise StoreError(
                f"data.{key}={name} is no style of {self.store.path}: {', '.join(self.style_names)}"
            )
        return self.style_names.index(name)

    def _told(self, style: int) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self.store.facts["styles"][self.style_names[style]]
        return told

    def _related(self, style: int) -> set[str]:
        """The families that a style for training alone may not be trained on beside."""
        told = self._told(style)
        return {told["family"], *told[TRAINING]}

    def _styles(self, only: str | None, seed: int) -> Split:
        """The split of the styles, or one style that is all training."""
        own = self.families[self.prototype]
        if only is None:
            more = np.array([TRAINING in self._told(n) for n in range(len(self.rows))])
            members = np.flatnonzero(~more & (self.families != own))
            split = split_groups(self.families, members, seed)
            apart = (self.prototype, *split.validation, *split.test)
            held_out = {self._told(n)["family"] for n in apart}
            kept = [n for n in np.flatnonzero(more) if not self._related(int(n)) & held_out]
            return replace(split, train=np.sort(np.array([*split.train, *kept])))
        chosen = self._style("style", only)
        if chosen == self.prototype:
            raise StoreError(
                f"data.style={only} is the prototype itself: choose another style, or another "
                "data.prototype"
            )
        none = np.array([], dtype=np.int64)
        return Split(np.array([chosen]), none, none)

    def _spread(self, styles: np.ndarray, characters: np.ndarray, many: int, seed: int = 0) -> Plan:
        style, character = picked(self._pairs(styles, characters), many, seed).T
        table, counts = self._candidates[style], self._counts[style]
        places = np.arange(self.references) + (len(style) + np.arange(len(style)))[:, None]
        chosen = np.take_along_axis(table, places % counts[:, None], 1)
        clash = chosen == character[:, None]
        spare = np.take_along_axis(table, (places + self.references) % counts[:, None], 1)
        return self.triple(style, character, np.where(clash, spare, chosen))

    def _pairs(self, styles: np.ndarray, characters: np.ndarray) -> np.ndarray:
        usable = self.rows[np.ix_(styles, characters)] >= 0
        s, c = np.nonzero(usable)
        return np.stack([styles[s], characters[c]], 1)  # [N, 2]

    def _reference_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Training characters of each style [styles, most], how many are measured, how many are."""
        table, every = _lists(self.rows[:, self.split.train] >= 0, self.split.train)
        counts = (self.rows[:, self.measured.train] >= 0).sum(1)
        for style in (*self.styles.train, *self.styles.validation, *self.styles.test):
            if counts[style] <= self.references:
                raise StoreError(
                    f"style {self.style_names[style]!r} has {counts[style]} usable training "
                    f"characters, too few for data.references={self.references} beside the target"
                )
        return table, counts, every

    def _reference(
        self, drawn: Draw, style: np.ndarray, character: np.ndarray, k: int
    ) -> np.ndarray:
        """A uniform training character of the style other than the target, [B].

        Of a target that most styles draw, so that any can be mixed in, one that most draw as well.
        """
        table, measured = self._candidates[style], np.isin(character, self.measured.train)
        counts = np.where(measured, self._counts[style], self._every[style])
        own = np.argmax(table == character[:, None], axis=1)  # every target is a training character
        place = (drawn(f"ref{k}") % (counts - 1).astype(np.uint64)).astype(np.int64)
        place = place + (place >= own)  # steps over the target
        return table[np.arange(len(style)), place]


def own(characters: Sequence[str], facts: Mapping[str, Any]) -> list[str]:
    """The characters that are not for training alone."""
    return [*characters[: len(characters) - len(facts.get(MORE, ""))]]


def split_groups(
    groups: np.ndarray, members: np.ndarray, seed: int, what: str = "families"
) -> Split:
    """Split members 70/10/20 so that no group is divided, in an order drawn by the seed.

    A group larger than a third of a held-out part is trained on, so that such a part holds several.
    Where that leaves too few, the three smallest are held out first.

    Raises: StoreError if there are fewer than 8 groups and too few of them are small.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5917]))
    order = rng.permutation(np.unique(groups[members]))
    apart = [members[groups[members] == group] for group in order]
    held_out = _dealt(apart, len(members), [], [])
    if len(apart) >= LEAST and not _several(held_out):
        one, two, three, *others = sorted(apart, key=len)
        held_out = _dealt(others, len(members), [one, two], [three])
    if not _several(held_out):
        raise StoreError(
            f"{len(apart)} {what} are too few to hold any out for validation and test; "
            f"at least {LEAST} are needed"
        )
    test, validation = (np.sort(np.concatenate(part)) for part in held_out)
    return Split(np.setdiff1d(members, [*test, *validation]), validation, test)


def _dealt(
    groups: Sequence[np.ndarray],
    count: int,
    test: list[np.ndarray],
    validation: list[np.ndarray],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Those for test and validation, and of the groups those that are small and still fit in."""
    for group in groups:
        for part, quota in ((test, 0.2 * count), (validation, 0.1 * count)):
            small = len(group) <= max(1, quota / 3)
            if small and sum(map(len, part)) + len(group) / 2 <= quota:
                part.append(group)
                break
    return test, validation


def _several(held_out: tuple[list[np.ndarray], list[np.ndarray]]) -> bool:
    test, validation = held_out
    return len(test) > 1 and len(validation) > 0


def _table(store: Store) -> np.ndarray:
    table = np.full((len(store.names["style"]), len(store.names["character"])), -1, dtype=np.int64)
    table[store.fields["style"], store.fields["character"]] = np.arange(store.count)
    return table


def _lists(there: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row [N, M] the `numbers` [M] that are there [N, most], and how many; then zeros."""
    counts = there.sum(1)
    table = np.zeros((len(there), counts.max()), dtype=np.int64)
    rows, places = np.nonzero(there)
    table[rows, there.cumsum(1)[rows, places] - 1] = numbers[places]
    return table, counts


def _families(store: Store) -> np.ndarray:
    facts: Mapping[str, Mapping[str, str]] = store.facts["styles"]
    named = [facts[name]["family"] for name in store.names["style"]]
    return np.array([sorted(set(named)).index(family) for family in named])
