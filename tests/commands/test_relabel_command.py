"""`gan relabel`: a file of corrected labels beside a store that stays as it is."""

import hashlib
import re

import numpy as np
import pytest
import safetensors.numpy
import torch

from gan.commands import main
from gan.commands.relabel import changes, rehearsed
from gan.data.datasets import Images
from gan.data.labels import Labels, read_labels, write_labels
from gan.data.store import Store
from gan.data.stream import Stream
from gan.robust import relabel

APART = ("--apart", "character")
QUICK = ("--epochs", 2, "--start", 1, "--window", 2, "--width", 2, "--device", "cpu")


def run(*arguments):
    return main(["relabel", *map(str, arguments)])


@pytest.fixture
def store(glyph_store, tmp_path):
    path = tmp_path / "tiny.lmdb"
    path.write_bytes(glyph_store.read_bytes())
    return path


@pytest.fixture
def labels(store):
    opened = Store(store)
    given = opened.fields["style"]
    label = given.copy()
    label[:3] = [1, 1, 2]
    soft = np.full((len(label), 14), 0.01, np.float32)
    soft[np.arange(len(label)), label] = 0.87
    return Labels(opened.content_hash, "style", label, given, soft, {"noise": 0.2})


def test_labels_are_corrected_beside_the_store_and_told(store, tmp_path, capsys):
    before = hashlib.sha256(store.read_bytes()).hexdigest()
    assert run(store, "--field", "style", *QUICK) == 0
    assert hashlib.sha256(store.read_bytes()).hexdigest() == before
    file = tmp_path / "tiny.style.labels.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.lmdb", file.name]
    out = capsys.readouterr().out
    assert "joint epoch 2/2" in out
    assert re.search(rf"{file}: \d+ of 280 labels of style changed", out)
    assert "plain" not in out
    found = read_labels(file, Store(store))
    assert np.array_equal(found.given, Store(store).fields["style"])
    assert np.array_equal(found.label, found.soft.argmax(1))
    np.testing.assert_allclose(found.soft.sum(1), 1, rtol=1e-5)
    assert found.settings["epochs"] == 2
    data = file.read_bytes()
    assert run(store, "--field", "style", *QUICK) == 2
    assert f"{file} exists; give another name (--out), or replace it" in capsys.readouterr().err
    assert run(store, "--field", "style", "--overwrite", *QUICK) == 0
    assert file.read_bytes() == data  # a function of the seed


def test_a_rehearsal_tells_what_was_right_before_and_is_afterwards(store, tmp_path, capsys):
    assert run(store, "--field", "style", "--noise", 0.25, "--noise-seed", 3, *APART, *QUICK) == 0
    out = capsys.readouterr().out
    assert "plain epoch 2/2" in out
    assert re.search(r"given +\|  75\.0% +\| +100\.0% +\| +100\.0%", out)
    assert re.search(r"plain training +\| +[\d.]+% +\| +[\d.]+% +\| +[\d.]+%", out)
    found = read_labels(tmp_path / "tiny.style.rehearsal-0.25-3.labels.safetensors", Store(store))
    assert (found.given != Store(store).fields["style"]).sum() == 70
    right = (found.label == Store(store).fields["style"]).mean()
    assert re.search(rf"joint optimisation +\| +{right:.1%}", out)
    assert (found.settings["noise"], found.settings["noise_seed"]) == (0.25, 3)
    assert found.settings["apart"] == "character"
    character = Store(store).fields["character"]  # each in all 14 styles
    assert abs(found.soft[character == 5].sum(0) - 1).max() < 0.05


def test_what_was_interrupted_goes_on(store, tmp_path, capsys, monkeypatch):
    epoch_of = relabel._epoch

    def killed(*given):
        if given[-1] == 1:
            raise KeyboardInterrupt
        return epoch_of(*given)

    with monkeypatch.context() as patched:
        patched.setattr(relabel, "_epoch", killed)
        assert run(store, "--field", "style", *QUICK) == 1
    assert not (tmp_path / "tiny.style.labels.safetensors").exists()
    assert run(store, "--field", "style", *QUICK) == 0
    assert "goes on after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--field names one of style, character: .*tiny.lmdb has several"),
        (("--field", "stile"), "stile is no field of .*did you mean 'style'"),
        (("--field", "style", "--noise", 1.5), "--noise must be at least 0 and at most 1, not 1.5"),
        (("--field", "style", "--epochs", 0), "--epochs must be at least 1, not 0"),
        (("--field", "style", "--batch-size", 0), "--batch-size must be at least 1, not 0"),
        (("--field", "style", "--apart", "style"), "20 images are of group 0, which cannot"),
        (("--field", "style", "--apart", "charcter"), "--apart: charcter is no .*'character'"),
        (("--field", "style", "--apart", "style,character"), "--apart names one of style, char"),
        (("--field", "stile"), "--field: stile is no field of .*'style'"),
        (("--field", "style", "--lr", 0), "--lr must be greater than 0, not 0"),
        (("--field", "style", "--out", "labels.txt"), "ends in .safetensors, unlike labels.txt"),
    ],
)
def test_mistakes_are_named(store, capsys, options, message):
    assert run(store, *options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_report_names_the_changes_the_surest_first(labels):
    labels.soft[1] = 0.999
    text = changes(labels, [f"s{n}" for n in range(14)], [f"key{n}" for n in range(280)])
    assert text.splitlines() == [
        "3 of 280 labels of style changed (1.1%)",
        "",
        "most frequent changes, of 2:",
        "     2  s0 -> s1",
        "     1  s0 -> s2",
        "",
        "surest changes:",
        " 0.999  s0 -> s1  key1",
        " 0.870  s0 -> s1  key0",
        " 0.870  s0 -> s2  key2",
    ]


def test_the_table_counts_right_labels_and_wrong_ones_kept():
    truth, given = np.array([0, 0, 0, 0, 0]), np.array([0, 0, 0, 1, 2])
    lines = rehearsed({"half": np.array([0, 0, 3, 0, 2])}, given, truth).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")] == ["half", "60.0%", "60.0%", "50.0%"]


# ---- files --------------------------------------------------------------------------------------


def test_labels_come_back_as_they_were_written(labels, store, tmp_path):
    path = tmp_path / "a.safetensors"
    write_labels(path, labels)
    found = read_labels(path, Store(store), "style")
    for name, value in labels._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), value)
    with pytest.raises(ValueError, match="exists; give another name"):
        write_labels(path, labels)
    write_labels(path, labels._replace(label=labels.given), overwrite=True)
    assert np.array_equal(read_labels(path, Store(store)).label, labels.given)


def test_a_failed_write_leaves_what_was_there(labels, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_labels(path, labels)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("gan.disk.sync", full)
    with pytest.raises(OSError, match="no space left"):
        write_labels(path, labels._replace(label=labels.given), overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("*a.safetensors*")] + [
        p.name for p in tmp_path.glob(".*")
    ] == [path.name]


def test_images_carry_the_corrected_labels(labels, store, tmp_path):
    path = str(tmp_path / "a.safetensors")
    write_labels(tmp_path / "a.safetensors", labels)
    rows = np.array([0, 2, 200])
    for images in (
        Images(Store(store), labels=path),
        Images(Store(store), "style", labels=path),
    ):
        assert images.plan(0, 0, rows).fields["label"].tolist() == [1, 2, 10]
        assert np.array_equal(images.labelled()[1]["label"], labels.label)
        assert images.gives == ("real", "label")
        assert images.facts == {"classes": 14}
    assert Images(Store(store), "style").plan(0, 0, rows).fields["label"].tolist() == [0, 0, 10]


def test_a_run_does_not_go_on_with_other_labels(labels, store, tmp_path):
    path = tmp_path / "a.safetensors"
    contents = [Images(Store(store), "style").content]
    assert contents == [Store(store).content_hash]
    other = np.roll(labels.label, 1)
    for label in (labels.label, other, labels.label):
        write_labels(path, labels._replace(label=label), overwrite=True)
        images = Images(Store(store), labels=str(path))
        contents.append(images.content)
        assert Stream(images, 4, 0, torch.device("cpu"), ["real"]).content == images.content
    assert contents[1] == contents[3]
    assert len({*contents}) == 3


def test_labels_of_another_store_or_field_are_refused(labels, store, tmp_path):
    path = tmp_path / "a.safetensors"
    write_labels(path, labels._replace(content="0123"))
    content = Store(store).content_hash
    with pytest.raises(ValueError, match=f"data.labels={path} .* content 0123, but .*{content}"):
        Images(Store(store), labels=str(path))
    write_labels(path, labels, overwrite=True)
    with pytest.raises(ValueError, match="of the field style, not data.label=character"):
        Images(Store(store), "character", labels=str(path))


def test_what_is_no_file_of_labels_is_refused(labels, store, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="there is no such file; `gan relabel"):
        read_labels(path, Store(store))
    path.write_bytes(b"labels")
    with pytest.raises(ValueError, match="is no file of labels"):
        read_labels(path, Store(store))
    safetensors.numpy.save_file({"label": labels.label}, path)
    with pytest.raises(ValueError, match="is no file of labels"):
        read_labels(path, Store(store))


def test_a_flipped_bit_is_found(labels, store, tmp_path):
    path = tmp_path / "a.safetensors"
    write_labels(path, labels)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        read_labels(path, Store(store))
