"""The data sets that torchvision reads, as sources: they become stores, and are not read again."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image

from gan.data.images import RULES, digest, fitted, listing, require_channels
from gan.data.layout import Record, Rejected
from gan.data.sources import kept_store, store_path
from gan.data.store import Store

Dataset = Literal[
    "celeba", "cifar10", "cifar100", "emnist", "fashionmnist", "flowers102", "kmnist", "mnist",
    "oxfordiiitpet", "qmnist", "stl10", "svhn", "usps",
]  # fmt: skip


class Known(NamedTuple):
    """A data set of torchvision: its class, its files in the folder, the arguments of each part."""

    name: str
    files: str
    parts: Mapping[str, Mapping[str, Any]]
    reading: str = ""  # the package that it needs to be read
    fetching: str = ""  # the package that it needs to be downloaded


def _splits(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"split": name} for name in names}


_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_EMNIST = {
    f"{split}-{part}": {"split": split, "train": part == "train"}
    for split in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
    for part in ("train", "test")
}
_CELEBA = {
    part: {"split": part, "target_type": ["attr", "identity"]}
    for part in ("train", "valid", "test", "all")
}

SETS: dict[str, Known] = {
    "celeba": Known("CelebA", "celeba/**/*", _CELEBA, fetching="gdown"),
    "cifar10": Known("CIFAR10", "cifar-10-batches-py/*", _TRAIN),
    "cifar100": Known("CIFAR100", "cifar-100-python/*", _TRAIN),
    "emnist": Known(
        "EMNIST",
        "EMNIST/raw/*",
        {"train": _EMNIST["balanced-train"], "test": _EMNIST["balanced-test"], **_EMNIST},
    ),
    "fashionmnist": Known("FashionMNIST", "FashionMNIST/raw/*", _TRAIN),
    "flowers102": Known(
        "Flowers102", "flowers-102/**/*", _splits("train", "val", "test"), reading="scipy"
    ),
    "kmnist": Known("KMNIST", "KMNIST/raw/*", _TRAIN),
    "mnist": Known("MNIST", "MNIST/raw/*", _TRAIN),
    "oxfordiiitpet": Known(
        "OxfordIIITPet",
        "oxford-iiit-pet/**/*",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
    ),
    "qmnist": Known("QMNIST", "QMNIST/raw/*", _TRAIN),
    "stl10": Known(
        "STL10", "stl10_binary/*", _splits("train", "test", "unlabeled", "train+unlabeled")
    ),
    "svhn": Known("SVHN", "*_32x32.mat", _splits("train", "test", "extra"), reading="scipy"),
    "usps": Known("USPS", "usps*.bz2", _TRAIN),
}
assert set(SETS) == set(get_args(Dataset))

_DIGITS = [str(digit) for digit in range(10)]  # the classes of those that do not name them


class TorchvisionSet:
    """One part of a data set that torchvision reads; keys are its numbers, `label` its classes.

    CelebA has its forty attributes as fields (0 or 1), and `identity`; the parts of STL-10 without
    labels have no field. EMNIST, whose files hold letters mirrored along the diagonal, is turned
    upright. Images are fitted by the rules of `ImageFolder`.
    """

    def __init__(
        self,
        dataset: str,
        path: Path,
        size: int,
        channels: int = 3,
        part: str = "train",
        download: bool = False,
    ) -> None:
        """Reads the labels and, unless they are single files, the images.

        Args:
            dataset: a name in `SETS`.
            path: the folder that torchvision calls `root`.
            size: pixels of a side.
            channels: 1 or 3.
            part: a name in the `parts` of the data set.
            download: whether missing files are fetched into the folder.

        Raises:
            ValueError: a name is unknown, files are missing or damaged, or a package is missing.
        """
        require_channels(channels)
        self.known = _known(dataset, part)
        self.shape = (size, size, channels)
        self.name = f"torchvision's {self.known.name} ({part})"
        _require_package(self.known.reading, f"data.dataset={dataset} to be read")
        if download:
            _require_package(self.known.fetching, f"data.dataset={dataset} to be downloaded")
        self._data = _opened(self.known, path, part, download)
        self._labelled = "unlabeled" not in part
        self.names = self._names()
        self._unused = self.names.get("label", [])[:1] == ["N/A"]  # EMNIST's letters begin at 1
        if self._unused:
            self.names = {"label": self.names["label"][1:]}
        self._made = [RULES, dataset, part, self.shape, files(dataset, path)]
        self._made += [self.names] if self._unused else []
        self.facts: Mapping[str, Any] = {}

    def fingerprint(self) -> str:
        """Changes with the name, size or time of any of the files."""
        return digest(self._made)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._data)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in order."""
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The images after the first `seen`."""
        return map(self._item, range(seen, len(self)))

    def _names(self) -> dict[str, list[str]]:
        if not self._labelled:
            return {}
        if self.known.name != "CelebA":
            return {"label": list(getattr(self._data, "classes", _DIGITS))}
        attributes = {name: [f"not {name}", name] for name in self._data.attr_names if name}
        people = int(self._data.identity.max())
        return {**attributes, "identity": [str(person) for person in range(1, people + 1)]}

    def _item(self, number: int) -> Record | Rejected:
        key = f"{number:06d}"
        try:
            image, target = self._data[number]
            if self.known.name == "EMNIST":
                image = image.transpose(Image.Transpose.TRANSPOSE)
            return Record(key, fitted(image, *self.shape[1:]), self._fields(target))
        except Exception as error:  # a damaged file may raise anything in its decoder
            return Rejected(key, str(error) or repr(error))

    def _fields(self, target: Any) -> dict[str, int]:
        if not self._labelled:
            return {}
        if self.known.name != "CelebA":
            return {"label": int(target) - self._unused}
        attributes, identity = target
        values = [*attributes.tolist(), int(identity) - 1]
        return dict(zip(self.names, values, strict=True))


def _known(dataset: str, part: str) -> Known:
    if dataset not in SETS:
        raise ValueError(f"data.dataset={dataset} is none of {', '.join(SETS)}")
    known = SETS[dataset]
    if part not in known.parts:
        parts = ", ".join(known.parts)
        raise ValueError(f"data.part={part} is no part of {dataset}, which has {parts}")
    return known


def _require_package(package: str, purpose: str) -> None:
    if package and find_spec(package) is None:
        raise ValueError(f"{purpose} needs the package {package}: pip install {package}")


def _opened(known: Known, path: Path, part: str, download: bool) -> Any:
    """The data set as torchvision opens it, which checks the official MD5 sums of most."""
    from torchvision import datasets  # takes its time to import

    try:
        return getattr(datasets, known.name)(str(path), download=download, **known.parts[part])
    except (OSError, RuntimeError) as error:
        if download:
            raise ValueError(f"{known.name} cannot be fetched into {path}: {error}") from error
        raise ValueError(
            f"the folder {path} does not hold {known.name} ({known.files}) whole: let data.path "
            "name the folder that does, or fetch it with data.download=true"
        ) from error


def files(dataset: str, path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time (ns) of the files of a data set in a folder."""
    found = sorted(file for file in path.glob(SETS[dataset].files) if file.is_file())
    return listing(path, found)


def open_set(
    dataset: str,
    path: str,
    size: int,
    channels: int,
    part: str = "train",
    download: bool = False,
    *,
    folder: Path = Path("data"),
    on_error: Literal["raise", "skip"] = "raise",
) -> Store:
    """The store kept under `folder` for a part of a data set, built where needed.

    With `download` the files are checked and missing ones fetched, whether a store is there or not.

    Raises:
        ValueError: see `TorchvisionSet`.
    """
    root = Path(path)
    _known(dataset, part)

    def source() -> TorchvisionSet:
        return TorchvisionSet(dataset, root, size, channels, part, download)

    if download:
        source()  # before its files are looked at
    return kept_store(
        source,
        store_path(root / f"{dataset}-{part}", size, channels, folder),
        digest([RULES, files(dataset, root)]),
        on_error,
    )
