"""Images of two kinds: aligned pairs, side by side or in two folders, and unpaired folders."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from gan.data.archives import Archive
from gan.data.building import listed
from gan.data.datasets import Plan, Resident, coins, draw, evenly, picked
from gan.data.images import digest, fitted_halves, shared_folders, squared, whole
from gan.data.layout import Record, Rejected
from gan.data.pages import StoreError
from gan.data.sources import ImageFolder, kept_store, kind, open_store, store_path
from gan.data.store import Store

Direction = Literal["ab", "ba"]
OnError = Literal["raise", "skip"]

_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # of one split
_SHAPE = 0.01  # difference of width to height that two images of one shape have at most


class Halves:
    """The images of a folder or an archive, each cut in two: left halves `a/KEY`, right `b/KEY`.

    The field `label` is 0 and 1. Halves are fitted each alone, by the rules of `ImageFolder`;
    images of odd width are refused.
    """

    def __init__(self, path: Path, size: int, channels: int) -> None:
        """`size` is in pixels, of a half; `channels` 1 or 3."""
        self.source = _lister(path)(path, size, channels, fitted_halves)
        self.shape = self.source.shape
        self.name = f"{self.source.name}, side by side"
        self.names: Mapping[str, Sequence[str]] = {"label": ["a", "b"]}
        self.facts: Mapping[str, Any] = {}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any image."""
        return digest(["halves", self.source.fingerprint()])

    def __len__(self) -> int:
        """Two for each image."""
        return 2 * len(self.source)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """Both halves of each image in order."""
        for item in self.source:
            if isinstance(item, Rejected):
                yield item
                continue
            for label, half in enumerate(np.split(item.image, 2, axis=1)):
                yield Record(f"{'ab'[label]}/{item.key}", half, {"label": label})


class Sides:
    """The images of two sub-folders, as `ImageFolder` has them; partners have one shape.

    Partners are those of one name. The middle that is cut out of each would be of another place in
    images of unlike shape: the later one is refused.
    """

    def __init__(self, path: Path, size: int, channels: int) -> None:
        """`size` is in pixels, `channels` 1 or 3."""
        self.source = _lister(path)(path, size, channels, whole)
        self.shape, self.name = self.source.shape, self.source.name
        self.names, self.facts = self.source.names, self.source.facts

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any image."""
        return digest(["sides", self.source.fingerprint()])

    def __len__(self) -> int:
        """How many image files there are."""
        return len(self.source)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in order."""
        depth = len(self.source.classes.shared) + 1
        found: dict[tuple[str, int], tuple[str, int, int]] = {}  # key and shape, by name and side
        for item in self.source:
            if isinstance(item, Rejected):
                yield item
                continue
            name, side = _name(item.key, depth), item.fields["label"]
            own = found[name, side] = item.key, *item.image.shape[:2]  # upright and uncut
            (key, height, width), (partner, high, wide) = own, found.get((name, 1 - side), own)
            if abs(width * high - wide * height) <= _SHAPE * wide * height:
                yield item._replace(image=squared(item.image, self.shape[0]))
            else:
                yield Rejected(
                    key,
                    f"it has {width} x {height} pixels and its partner {partner} {wide} x {high}, "
                    "which is another shape; cut both alike",
                )


def _lister(path: Path) -> type[Archive] | type[ImageFolder]:
    """What lists the images at a path."""
    return Archive if kind(path, "images") == "archive" else ImageFolder


def open_pairs(
    path: str | os.PathLike[str],
    size: int,
    channels: int,
    on_error: OnError = "raise",
    folder: Path = Path("data"),
) -> Store:
    """The store of a folder or an archive: two sub-folders, or else images to be cut in two.

    Raises:
        ValueError: naming the path, where it holds nothing of the kind.
    """
    path = Path(path)
    if path.suffix == ".lmdb":
        return open_store(path, size, channels)
    apart = bool(_folders(path, size, channels, "data=pairs"))
    source = Sides(path, size, channels) if apart else Halves(path, size, channels)
    target = store_path(path, size, channels, folder, ["sides" if apart else "halves"])
    return kept_store(lambda: source, target, source.fingerprint(), on_error)


def open_unpaired(
    path: str | os.PathLike[str],
    size: int,
    channels: int,
    on_error: OnError = "raise",
    folder: Path = Path("data"),
) -> Store:
    """The store of a folder or an archive with a sub-folder for each kind.

    Raises:
        ValueError: naming the path, where it holds nothing of the kind.
    """
    path = Path(path)
    if path.suffix != ".lmdb" and not _folders(path, size, channels, "data=unpaired"):
        raise ValueError(f"data=unpaired needs two sub-folders of images, but {path} has none")
    return open_store(path, size, channels, folder=folder, on_error=on_error, wanted="images")


def _folders(path: Path, size: int, channels: int, wanted: str) -> Sequence[str]:
    """The sub-folders of images at a path, after a check that they are two kinds."""
    found = kind(path, "images")
    if found not in ("images", "archive"):
        raise ValueError(f"{wanted} needs a folder or an archive of images; {path} holds {found}")
    source = _lister(path)(path, size, channels)
    if beside := source.classes.beside:
        raise StoreError(
            f"{wanted}: {beside} of {source.name} lies beside its sub-folders of images; move it "
            "into one of them, or away"
        )
    names = source.names.get("label", ())
    if names:
        _require_kinds(names, source.name, wanted)
    return names


def _require_kinds(names: Sequence[str], source: str, wanted: str) -> None:
    if len(names) != 2 and not (wanted == "data=unpaired" and {"trainA", "trainB"} <= {*names}):
        found = f"{len(names)}: {', '.join(names[:8])}" if names else "none"
        raise StoreError(
            f"{wanted} needs two sub-folders of images, one of each kind, but {source} has {found}"
        )
    if {name.lower() for name in names} <= _PARTS:
        layout = ", or hold trainA, trainB, testA and testB" * (wanted == "data=unpaired")
        raise StoreError(
            f"{wanted}: the sub-folders {' and '.join(names)} of {source} are parts of a split, "
            f"not two kinds of images; data.path must name one of them{layout}"
        )


class Pairs:
    """Aligned pairs of images, `input` and `target`, of which a part is held out."""

    gives = ("input", "target")
    facts: Mapping[str, int] = {}  # networks are built with none

    def __init__(
        self,
        store: Store,
        direction: Direction = "ab",
        held_out: float = 0.1,
        split: int = 0,
        flip: bool = False,
        on_error: OnError = "raise",
        resident: Resident = "auto",
    ) -> None:
        """`direction` ba makes the second kind the input; `split` seeds what is held out.

        Held out are at least two pairs: half of them are measured during training, half at its end.
        `flip` mirrors half of the pairs, both images alike. Images without a partner are refused,
        or left out with `on_error` skip.
        """
        self.store, self.flip, self.resident = store, flip, resident
        _require_kinds(store.names.get("label", ()), store.source, "data=pairs")
        pairs = _matched(store, *_two(store), on_error)  # [N, 2]
        if direction == "ba":
            pairs = pairs[:, ::-1]
        self.train, held = _split(pairs, held_out, split)
        self._held = {"validation": held[::2], "test": held[1::2]}

    def __len__(self) -> int:
        """Pairs to train on."""
        return len(self.train)

    def plan(self, seed: int, epoch: int, indices: np.ndarray) -> Plan:
        """The pair at each index."""
        flip = coins(seed, epoch, indices) if self.flip else None
        return _aligned(self.train[indices])._replace(flip=flip)

    def shown(self, keys: Collection[str], many: int = 8, seed: int = 0) -> dict[str, Plan]:
        """So many pairs each that are trained on and held out."""
        return {
            "training": _aligned(picked(self.train, many, seed)),
            "held-out": _aligned(picked(self._held["test"], many, seed)),
        }

    def held_out(self, part: Literal["validation", "test"]) -> Plan:
        """The pairs of a held-out part, at most 256."""
        return _aligned(evenly(self._held[part], 256))


class Unpaired:
    """Images of two kinds, `real_a` and `real_b`, of which a part is held out.

    One epoch visits every training image of the first kind once, each beside one of the second that
    is drawn anew. Sub-folders `trainA`, `trainB`, `testA` and `testB`, as CycleGAN's data sets have
    them, are the kinds and what is held out of them.
    """

    gives = ("real_a", "real_b")
    facts: Mapping[str, int] = {}

    def __init__(
        self,
        store: Store,
        direction: Direction = "ab",
        held_out: float = 0.1,
        split: int = 0,
        flip: bool = False,
        resident: Resident = "auto",
    ) -> None:
        """`direction` ba swaps the kinds; `split` seeds what is held out of each, one at least.

        `flip` mirrors half of the images of each kind.
        """
        self.store, self.flip, self.resident = store, flip, resident
        step = 1 if direction == "ab" else -1
        self.train, self.held = zip(*_kinds(store, held_out, split)[::step], strict=True)

    def __len__(self) -> int:
        """Images of the first kind to train on."""
        return len(self.train[0])

    def plan(self, seed: int, epoch: int, indices: np.ndarray) -> Plan:
        """The image a at each index, and an image b drawn for it."""
        a, b = self.train
        drawn = draw(seed, epoch, indices, "real_b") % np.uint64(len(b))
        images = {"real_a": a[indices], "real_b": b[drawn]}
        kinds = ("flip", "flip_b") if self.flip else ()
        flips = [coins(seed, epoch, indices, kind) for kind in kinds]
        return Plan(images, {}, np.stack(flips, 1) if flips else None)

    def shown(self, keys: Collection[str], many: int = 8, seed: int = 0) -> dict[str, Plan]:
        """So many images of each kind that are trained on, and as many that are held out."""
        parts = {"training": self.train, "held-out": self.held}
        return {name: _beside(a, b, many, seed) for name, (a, b) in parts.items()}


def _two(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both kinds, in the order of their names."""
    first, second = (np.flatnonzero(store.fields["label"] == label) for label in range(2))
    return first, second


def _matched(store: Store, first: np.ndarray, second: np.ndarray, on_error: OnError) -> np.ndarray:
    """Rows of images with one name [N, 2], sorted by it; suffixes do not count."""
    above = shared_folders([store.keys[row].split("/")[:-1] for row in (*first, *second)])
    kinds = [_named(store, rows, above + 1) for rows in (first, second)]
    names = sorted(kinds[0].keys() & kinds[1].keys())
    alone = [
        Rejected(store.keys[kinds[here][name]], f"no {name} in {store.names['label'][1 - here]}")
        for here in range(2)
        for name in sorted(kinds[here].keys() - kinds[1 - here].keys())
    ]
    if not names or (alone and on_error == "raise"):
        raise StoreError(
            f"data=pairs: {len(alone)} images of {store.source} have no partner of the same name "
            "(for images that hold both sides, data.path must name the folder they are in; "
            f"data.on_error=skip leaves single ones out):\n{listed(alone[:20], len(alone))}"
        )
    return np.array([[kind[name] for kind in kinds] for name in names])


def _named(store: Store, rows: np.ndarray, depth: int) -> dict[str, int]:
    """The row of each name below its kind's folder at this depth."""
    named: dict[str, int] = {}
    for row in rows.tolist():
        name = _name(store.keys[row], depth)
        if name in named:
            twins = f"{store.keys[named[name]]} and {store.keys[row]}"
            raise StoreError(f"data=pairs: {twins} have one name; rename or remove one of them")
        named[name] = row
    return named


def _name(key: str, depth: int) -> str:
    """The path of an image below a folder at this depth, without suffix."""
    return str(PurePosixPath(*PurePosixPath(key).parts[depth:]).with_suffix(""))


def _kinds(store: Store, held_out: float, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out rows of each kind."""
    names = store.names.get("label", ())
    _require_kinds(names, store.source, "data=unpaired")
    if {"trainA", "trainB"} <= {*names}:
        part = {name: np.flatnonzero(store.fields["label"] == n) for n, name in enumerate(names)}
        return [
            (part[f"train{kind}"], part[f"test{kind}"])
            if f"test{kind}" in part
            else _split(part[f"train{kind}"], held_out, seed, least=1)
            for kind in "AB"
        ]
    return [_split(rows, held_out, seed, least=1) for rows in _two(store)]


def _split(
    members: np.ndarray, share: float, seed: int, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """What is trained on and what is held out, each in the order of the members."""
    held_out = max(least, round(share * len(members)))
    if held_out >= len(members):
        raise StoreError(
            f"data.held_out={share:g} of {len(members)} leaves nothing to train on: lower it, or "
            "add images"
        )
    order = np.random.Generator(np.random.Philox(key=[seed, 0x2A18])).permutation(len(members))
    return members[np.sort(order[held_out:])], members[np.sort(order[:held_out])]


def _aligned(pairs: np.ndarray) -> Plan:
    return Plan({"input": pairs[:, 0], "target": pairs[:, 1]}, {})


def _beside(a: np.ndarray, b: np.ndarray, many: int, seed: int = 0) -> Plan:
    many = min(many, len(a), len(b))
    return Plan({"real_a": picked(a, many, seed), "real_b": picked(b, many, seed)}, {})
