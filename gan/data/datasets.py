"""Datasets: which rows of a store make a sample, as a function of (seed, epoch, index).

A dataset reads nothing itself. For a slice of an epoch's order it says which rows of the store
belong to each key of the batch; the stream copies them.
"""

import hashlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from gan.data.labels import read_labels
from gan.data.store import Store, StoreError

MOST_CLASSES = 1 << 20  # networks have weights for every number up to the highest
Resident = Literal["auto", "on", "off"]


class Plan(NamedTuple):
    """A batch: store rows [B] or [B, K] by key, integers [B] by field, who is mirrored.

    `flip` is [B] where images of a sample are mirrored alike, or [B, keys] in the order of keys.
    """

    images: dict[str, np.ndarray]
    fields: dict[str, np.ndarray]
    flip: np.ndarray | None = None


class Dataset(Protocol):
    """What a source gives: the store that the stream copies from, and which rows make a sample.

    Where more is learnt from than the store's images, `content` is a hash of all of it. Measures of
    images from noise also read `labelled`, as `Images` has it; those of pairs `held_out`, and their
    sheets `shown(keys, many, seed)`, as `gan.data.translation.Pairs` has them.
    """

    store: Store
    resident: Resident

    @property
    def gives(self) -> tuple[str, ...]:
        """The keys of a batch."""

    @property
    def facts(self) -> Mapping[str, int]:
        """Numbers that networks are built with, such as `classes`."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def plan(self, seed: int, epoch: int, indices: np.ndarray) -> Plan:
        """The samples at these places of the dataset, in this epoch."""

    def shown(self, keys: Collection[str]) -> dict[str, Plan]:
        """Samples to look at during training, always the same, by name."""


def draw(seed: int, epoch: int, indices: np.ndarray, what: str) -> np.ndarray:
    """Independent uniform uint64 numbers [B], one for each (seed, epoch, index) and purpose.

    The finaliser of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) applied to a
    running hash.
    """
    state = np.full(len(indices), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for part in (int.from_bytes(what.encode()[:8], "little"), seed, epoch, indices):
        state = _mix(state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    return _mix(state)


def coins(seed: int, epoch: int, indices: np.ndarray, what: str = "flip") -> np.ndarray:
    """Heads or tails for each index [B], one series for each `what`."""
    return draw(seed, epoch, indices, what) % np.uint64(2) == 1


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Images:
    """Every image of a store under `real`, with an integer field of the store under `label`."""

    gives: tuple[str, ...]

    def __init__(
        self,
        store: Store,
        label: str | None = None,
        flip: bool = False,
        resident: Resident = "auto",
        labels: str | None = None,
    ) -> None:
        """`label` names the integer field that serves as class; `flip` mirrors half of the samples.

        Without a name it is the field `label`, where a folder's sub-folders have made one.
        `labels` is a file of corrected ones (see `gan.data.labels`), of that field or its own.
        """
        corrected = None if labels is None else read_labels(Path(labels), store, label)
        if corrected:
            label = corrected.field
        elif label is None and "label" in store.fields:
            label = "label"
        beside = _beside(store)
        if label is None and beside:
            print(f"{store.path}: {beside}", file=sys.stderr)
        if label is not None and label not in store.fields:
            raise StoreError(
                f"data.label={label} is no field of {store.path}; "
                f"it has {', '.join(store.fields) or 'none'}{beside and f': {beside}'}"
            )
        if label is not None and store.fields[label].min() < 0:
            raise StoreError(f"data.label={label} has negative values, which are no classes")
        if label is not None and store.fields[label].max() >= MOST_CLASSES:
            raise StoreError(
                f"data.label={label} has the value {store.fields[label].max()}, but classes are "
                f"numbered from 0 to {MOST_CLASSES - 1} at most: build the store with such numbers"
            )
        self.store, self.label, self.flip, self.resident = store, label, flip, resident
        self.gives = ("real",) if label is None else ("real", "label")
        self._fields: dict[str, np.ndarray] = {}
        if label is not None:
            self._fields["label"] = corrected.label if corrected else store.fields[label]
        self.content = store.content_hash  # of all that is learnt from
        if corrected:
            both = f"{self.content} {label} ".encode() + corrected.label.astype("<i8").tobytes()
            self.content = hashlib.sha256(both).hexdigest()

    def __len__(self) -> int:
        """Images in the store."""
        return self.store.count

    @property
    def facts(self) -> dict[str, int]:
        """Numbers that networks are built with."""
        if self.label is None:
            return {}
        named = len(self.store.names.get(self.label, ()))
        return {"classes": max(named, int(self.store.fields[self.label].max()) + 1)}

    def labelled(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every row, with its label; without labels, none."""
        return np.arange(len(self)), dict(self._fields)

    def plan(self, seed: int, epoch: int, indices: np.ndarray) -> Plan:
        """The image at each index."""
        fields = {name: values[indices] for name, values in self._fields.items()}
        flip = coins(seed, epoch, indices) if self.flip else None
        return Plan({"real": indices}, fields, flip)

    def shown(self, keys: Collection[str]) -> dict[str, Plan]:
        """Up to 64 images, evenly spaced."""
        rows = evenly(np.arange(len(self)), 64)
        return {"images": self.plan(0, 0, rows)._replace(flip=None)}


def _beside(store: Store) -> str:
    """Why the sub-folders that a store was made of are no classes, or nothing."""
    image = store.facts.get("beside")
    return f"{image} lies beside the sub-folders, which are no classes therefore" if image else ""


def picked(members: np.ndarray, many: int, seed: int = 0) -> np.ndarray:
    """At most so many of the members: evenly spaced, or with another seed than 0 at random."""
    if not seed:
        return evenly(members, many)
    return np.random.default_rng(seed).permutation(members)[:many]


def sampled(members: np.ndarray, many: int) -> np.ndarray:
    """At most so many of the members at random, always the same ones, in their order.

    What distances are measured of must not be evenly spaced: files may come by turns or by kind.
    """
    return members[np.sort(shuffled(len(members))[:many])]


def shuffled(count: int) -> np.ndarray:
    """The numbers below `count` in a random order, always the same one."""
    return np.random.default_rng(0).permutation(count)


def evenly(members: np.ndarray, many: int) -> np.ndarray:
    """At most so many of the members, evenly spaced."""
    return members[np.linspace(0, len(members) - 1, min(many, len(members))).astype(np.int64)]
