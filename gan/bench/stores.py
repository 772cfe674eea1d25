"""The same made-up pictures in every layout that is compared: store, flat file, LMDB, zip, FFCV.

LMDB and zip are read as is usual elsewhere, by a `Dataset` with one image per call.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gan.data.layout import Record
from gan.data.store import Store, build

DISTINCT = 256  # pictures, repeated under other keys


class Pictures:
    """Smooth colours with a little noise: they compress about as photographs do."""

    names: dict[str, list[str]] = {}
    facts: dict[str, Any] = {}

    def __init__(self, count: int, size: int, channels: int = 3) -> None:
        self.count, self.shape = count, (size, size, channels)
        self.name = f"{count} made-up pictures of {size} pixels"

    def fingerprint(self) -> str:
        """Changes whenever the pictures would."""
        return f"pictures/{self.count}/{self.shape}"

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def __iter__(self) -> Iterator[Record]:
        """The pictures under keys of equal length."""
        for number in range(self.count):
            yield Record(f"{number:08d}", self.pixels(number), {})

    def pixels(self, number: int) -> np.ndarray:
        """One picture, uint8 [H, W, C]."""
        return self._distinct[number % DISTINCT]

    @cached_property
    def _distinct(self) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=0))
        made = np.empty((min(DISTINCT, self.count), *self.shape), np.uint8)
        for picture in made:
            coarse = rng.integers(0, 256, (4, 4, self.shape[2]), dtype=np.uint8)
            for channel in range(self.shape[2]):
                layer = Image.fromarray(coarse[:, :, channel])
                smooth = np.asarray(layer.resize(self.shape[:2], Image.Resampling.BICUBIC), float)
                noisy = smooth + rng.normal(0, 3, self.shape[:2])
                picture[:, :, channel] = noisy.round().clip(0, 255)
        return made


def store(pictures: Pictures, folder: Path) -> Store:
    """Our own layout."""
    path = folder / "pictures.lmdb"
    if not path.exists():
        build(pictures, path)
    return Store(path)


def flat(pictures: Pictures, folder: Path) -> np.ndarray:
    """A file of nothing but pixels, as a map [N, H, W, C] of the memory."""
    path, shape = folder / "pictures.npy", (len(pictures), *pictures.shape)
    if not path.exists():
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for number in range(len(pictures)):
            pixels[number] = pictures.pixels(number)
        pixels.flush()
    return np.load(path, mmap_mode="r")


class LmdbImages(Dataset):
    """One raw image per value, one lookup per image; each worker opens the file for itself."""

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        """Writes the file where it is missing."""
        self.path, self.shape, self.count = folder / "single.mdb", pictures.shape, len(pictures)
        self._transaction: lmdb.Transaction | None = None
        if not self.path.exists():
            size = self.count * (int(np.prod(self.shape)) + 8192) + (16 << 20)
            with (
                lmdb.open(str(self.path), subdir=False, map_size=size, lock=False) as file,
                file.begin(write=True) as transaction,
            ):
                for record in pictures:
                    transaction.put(record.key.encode(), record.image.tobytes())

    def __len__(self) -> int:
        """How many images there are."""
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """One image, uint8 [H, W, C]."""
        pixels = np.frombuffer(self._value(number), np.uint8)
        return torch.from_numpy(pixels.reshape(self.shape).copy())

    def _value(self, number: int) -> Any:
        if self._transaction is None:
            file = lmdb.open(
                str(self.path), subdir=False, readonly=True, lock=False, readahead=False
            )
            self._transaction = file.begin(buffers=True)
        return self._transaction.get(f"{number:08d}".encode())


def encoded(pictures: Pictures, folder: Path) -> Path:
    """A folder of LMDB's default form, with one JPEG per value, as LSUN's."""
    path = folder / "pictures_lmdb"
    if not path.exists():
        size = len(pictures) * (int(np.prod(pictures.shape)) + 8192) + (16 << 20)
        with lmdb.open(str(path), map_size=size) as file, file.begin(write=True) as transaction:
            for record in pictures:
                transaction.put(record.key.encode(), _written(record.image, "JPEG", quality=90))
    return path


class JpegImages(LmdbImages):
    """One JPEG per value, decoded by Pillow, one lookup per image."""

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        """Writes the file where it is missing."""
        self.path, self.count = encoded(pictures, folder) / "data.mdb", len(pictures)
        self._transaction: lmdb.Transaction | None = None

    def __getitem__(self, number: int) -> Tensor:
        """One image, uint8 [H, W, C]."""
        return torch.from_numpy(np.array(Image.open(io.BytesIO(self._value(number)))))


class ZipImages(Dataset):
    """PNG files in an uncompressed zip, decoded by Pillow, as StyleGAN2-ADA reads its data sets.

    Written anew after the description of that format; where pyspng is installed the original
    decodes with that instead.
    """

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        """Writes the archive where it is missing."""
        self.path, self.count = folder / "pictures.zip", len(pictures)
        self._file: zipfile.ZipFile | None = None
        if not self.path.exists():
            with zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED) as archive:
                for record in pictures:
                    png = _written(record.image, "PNG", compress_level=0, optimize=False)
                    archive.writestr(f"{record.key}.png", png)

    def __len__(self) -> int:
        """How many images there are."""
        return self.count

    def __getitem__(self, number: int) -> np.ndarray:
        """One image, uint8 [C, H, W]."""
        if self._file is None:
            self._file = zipfile.ZipFile(self.path)
        with self._file.open(f"{number:08d}.png") as entry:
            pixels = np.array(Image.open(entry))
        return pixels.transpose(2, 0, 1)


def beton(pictures: Pictures, folder: Path, batch: int, mode: str = "raw") -> Iterable[Any]:
    """FFCV's file of raw images, or of `jpg`, and its loader, shuffled, with one thread.

    Raises: ImportError where FFCV is not installed.
    """
    loader, writer, fields, decoders = (
        import_module(f"ffcv.{name}") for name in ("loader", "writer", "fields", "fields.rgb_image")
    )
    path = folder / f"pictures_{mode}.beton"
    if not path.exists():
        written = {"image": fields.RGBImageField(write_mode=mode, jpeg_quality=90)}
        writer.DatasetWriter(str(path), written, num_workers=1).from_indexed_dataset(
            [(pictures.pixels(number),) for number in range(len(pictures))]
        )
    return loader.Loader(
        str(path),
        batch_size=batch,
        num_workers=1,
        order=loader.OrderOption.RANDOM,
        pipelines={"image": [decoders.SimpleRGBImageDecoder()]},
    )


def _written(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
