"""Data sets of torchvision: converted once, fetched only on request, with names for labels."""

import os
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from gan.data import torchvision_sets
from gan.data.entries import torchvision as entry
from gan.data.store import Record, Store
from gan.data.torchvision_sets import SETS, Dataset, Known, TorchvisionSet, open_set

DIGITS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as torchvision has it, with five images of MNIST and of EMNIST."""
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    for name, prefix in (("MNIST", ""), ("EMNIST", "emnist-balanced-")):
        raw = tmp_path / "sets" / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k" if name == "MNIST" else "test"):
            images = struct.pack(">IIII", 2051, *DIGITS.shape) + DIGITS.tobytes()
            (raw / f"{prefix}{part}-images-idx3-ubyte").write_bytes(images)
            (raw / f"{prefix}{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 2049, len(labels)) + labels.tobytes()
            )
    return tmp_path / "sets"


def test_every_registered_name_is_one_of_torchvision() -> None:
    assert set(SETS) == set(get_args(Dataset))
    for name, known in SETS.items():
        assert known.name.lower() == name
        assert issubclass(getattr(datasets, known.name), torch.utils.data.Dataset)
        assert {"train", "test"} <= set(known.parts)


def test_records_are_the_images_of_torchvision(mnist: Path) -> None:
    source = TorchvisionSet("mnist", mnist, 28, 1)
    assert source.name == "torchvision's MNIST (train)"
    assert source.names["label"][3] == "3 - three"
    records = list(source)
    assert np.array_equal([record.image[..., 0] for record in records], DIGITS)
    assert [record.fields["label"] for record in records] == [3, 1, 4, 1, 5]
    assert [record.key for record in source.after(3)] == ["000003", "000004"]
    assert len(source) == 5
    assert next(iter(TorchvisionSet("mnist", mnist, 32, 3, "test"))).image.shape == (32, 32, 3)


def test_letters_stand_upright(mnist: Path) -> None:
    source = TorchvisionSet("emnist", mnist, 28, 1)
    assert np.array_equal([r.image[..., 0] for r in source], DIGITS.transpose(0, 2, 1))
    assert source.names["label"][10] == "A"
    with pytest.raises(ValueError, match="does not hold EMNIST"):
        TorchvisionSet("emnist", mnist, 28, 1, "letters-train")


def test_a_class_that_stands_for_none_is_left_out(mnist: Path) -> None:
    raw = mnist / "EMNIST" / "raw"
    for file in list(raw.iterdir()):
        file.rename(raw / file.name.replace("balanced", "letters"))
    source = TorchvisionSet("emnist", mnist, 28, 1, "letters-train")
    assert [source.names["label"][record.fields["label"]] for record in source] == [*"cadae"]
    assert len(source.names["label"]) == 26


def test_a_set_is_converted_once(
    mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = entry("mnist", os.fspath(mnist), 8, 1, label="label")
    assert dataset.facts == {"classes": 10}
    assert dataset.store.path.match("data/mnist-train-*-8x8x1.lmdb")
    assert "building" in capsys.readouterr().err
    monkeypatch.setattr(torchvision_sets, "_opened", None)
    entry("mnist", os.fspath(mnist), 8, 1)
    assert capsys.readouterr().err == ""
    os.utime(next(mnist.glob("MNIST/raw/train-images*")), ns=(1, 1))
    with pytest.raises(TypeError, match="NoneType"):  # it is to be opened again
        entry("mnist", os.fspath(mnist), 8, 1)
    dataset.store.close()


@pytest.mark.parametrize("name", sorted(set(SETS) - {"flowers102", "svhn"}))
def test_missing_files_name_the_folder_and_the_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"{tmp_path} does not hold {SETS[name].name} .*data\.download=true"
    ):
        open_set(name, os.fspath(tmp_path), 8, 3, folder=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_fetched_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(ValueError, match=r"data\.download=true"):
        TorchvisionSet("cifar10", tmp_path, 8)
    assert asked == []
    with pytest.raises(ValueError, match="CIFAR10 cannot be fetched into"):
        open_set("cifar10", os.fspath(tmp_path), 8, 3, download=True)
    assert asked == [os.fspath(tmp_path)]


@pytest.mark.parametrize(
    ("name", "package", "download"),
    [("svhn", "scipy", False), ("flowers102", "scipy", False), ("celeba", "gdown", True)],
)
def test_missing_packages_are_named(
    name: str, package: str, download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_sets, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=rf"data\.dataset={name} .* needs the package {package}: pip"
    ):
        TorchvisionSet(name, tmp_path, 8, download=download)


def test_unknown_names_and_parts_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.dataset=imagenet is none of celeba, cifar10"):
        TorchvisionSet("imagenet", tmp_path, 8)
    with pytest.raises(
        ValueError, match=r"data\.part=extra is no part of mnist, which has train, test"
    ):
        TorchvisionSet("mnist", tmp_path, 8, part="extra")


class Faces:
    """What torchvision's CelebA looks like from outside."""

    attr_names = ("Smiling", "Young", "")
    identity = torch.tensor([[2], [1]])

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> tuple[Image.Image, tuple[torch.Tensor, torch.Tensor]]:
        return Image.new("RGB", (9, 11)), (torch.tensor([number, 1]), self.identity[number, 0])


def test_attributes_and_identities_of_faces_are_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "CelebA", lambda *_, **__: Faces())
    store = open_set("celeba", os.fspath(tmp_path), 8, 3, "all", folder=tmp_path)
    assert {name: field.tolist() for name, field in store.fields.items()} == {
        "Smiling": [0, 1],
        "Young": [1, 1],
        "identity": [1, 0],
    }
    assert store.names["Smiling"] == ["not Smiling", "Smiling"]
    assert store.names["identity"] == ["1", "2"]
    store.close()


def test_images_without_labels_have_no_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = datasets.FakeData(3, (3, 10, 12), num_classes=4)
    monkeypatch.setattr(datasets, "STL10", lambda *_, **__: fake)
    bare = TorchvisionSet("stl10", tmp_path, 8, part="unlabeled")
    assert bare.names == {}
    assert [record.fields for record in bare] == [{}, {}, {}]
    assert "label" in next(iter(TorchvisionSet("stl10", tmp_path, 8))).fields


def test_fake_data_become_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"size": 6, "image_size": (3, 8, 8), "num_classes": 3}
    monkeypatch.setattr(
        datasets, "Fake", lambda _, download, **rest: datasets.FakeData(**rest), False
    )
    monkeypatch.setitem(SETS, "fake", Known("Fake", "*", {"train": arguments}))
    store = open_set("fake", os.fspath(tmp_path / "none"), 8, 3, folder=tmp_path)
    assert isinstance(store, Store)
    images = np.empty((6, 8, 8, 3), np.uint8)
    store.read(np.arange(6), images)
    fake = datasets.FakeData(**arguments)
    assert np.array_equal(images, [np.asarray(image) for image, _ in fake])
    assert store.fields["label"].tolist() == [int(label) for _, label in fake]
    store.close()


def test_a_damaged_image_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Faces):
        def __getitem__(self, number: int) -> object:
            if number:
                raise OSError("image file is truncated")
            return super().__getitem__(number)

    monkeypatch.setattr(datasets, "CelebA", lambda *_, **__: Broken())
    good, bad = TorchvisionSet("celeba", tmp_path, 8)
    assert isinstance(good, Record)
    assert bad == ("000001", "image file is truncated")
